"""Scoring runs that lose processes: whatever is killed, and when, the table is the one of an uninterrupted run."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import ray

from easycore_ray import clean, inspect, score
from easycore_ray.scoring.hardness_table import open_hardness, read_hardness
from easycore_ray.scoring.score_reader import open_table
from easycore_ray.storage.errors import EasyCoreError
from tests import faults

pytestmark = [pytest.mark.ray, pytest.mark.soak, pytest.mark.timeout(600)]


def run_driver(fields, kills=(), address=None):
    """The command a user gives, in a process of its own on the tests' Ray; its exit status and last words."""
    environment = os.environ | {"RAY_ADDRESS": address or ray.get_runtime_context().gcs_address}
    # Workers find the tests' own modules by value, as those of a user's script.
    request = json.dumps({"fields": fields, "kills": list(kills)})
    done = subprocess.run([sys.executable, faults.__file__, request], env=environment, capture_output=True,
                          text=True, timeout=500, check=False)  # fmt: skip
    return done.returncode, done.stderr[-2000:]


def written_parts(run):
    """Parts on disk by epoch, listed or not."""
    return Counter(path.parent.name for path in Path(run.path, "table").glob("epoch=*/*.parquet"))


def assert_same_tables(run, other):
    """Score table and hardness table of two runs hold the same bits."""
    assert (
        open_table(run.path + "/table").artifact.fingerprint == open_table(other.path + "/table").artifact.fingerprint
    )
    assert read_hardness(open_hardness(run.path)).equals(read_hardness(open_hardness(other.path)))


def test_lost_workers_cost_an_epoch_and_no_row(two_workers, settings, tmp_path):
    """A worker dies before its part, one after it, all in the middle of a checkpoint upload: the same tables.

    What was written and not committed stays behind as orphans, and no committed epoch is done again.
    """
    fields = settings(tmp_path / "run", max_failures=3)
    kills = [
        {"point": "before_part", "epoch": 1, "rank": 0, "marker": str(tmp_path / "a")},
        {"point": "after_part", "epoch": 1, "rank": 1, "marker": str(tmp_path / "b")},
        {"point": "half_commit", "epoch": 2, "rank": 0, "marker": str(tmp_path / "c")},
    ]
    status, said = run_driver(fields, kills)
    assert status == 0, said
    assert {path.name for path in tmp_path.glob("?-*")} == {"a-0", "b-1", "c-0"}, "a kill did not happen"
    run = score(**fields)

    assert_same_tables(run, two_workers)
    parts = written_parts(run)
    assert parts["epoch=00000"] > 2, "the first commit is that of epoch 1, so the initial weights were scored anew"
    assert parts["epoch=00001"] > 2
    assert parts["epoch=00002"] == 4, "the killed attempt left its two parts, the one that counts wrote two"


def test_workers_lost_within_epochs_cost_a_segment(settings, tmp_path):
    """Of training and of the exact pass: what is scored again is the segment under way, and the tables are the same."""
    fields = dict(segment_images=32, commit_minutes=0.0, score_pass="fused+eval", max_failures=3)
    whole = score(**settings(tmp_path / "whole", **fields))
    kills = [
        {"point": "before_part", "epoch": 1, "segment": 2, "rank": 0, "marker": str(tmp_path / "a")},
        {"point": "after_part", "epoch": 2, "segment": 1, "rank": 1, "marker": str(tmp_path / "b")},
        {"point": "after_part", "epoch": 3, "segment": 1, "rank": 0, "marker": str(tmp_path / "c")},
    ]
    status, said = run_driver(settings(tmp_path / "run", **fields), kills)
    assert status == 0, said
    assert {path.name for path in tmp_path.glob("?-*")} == {"a-0", "b-1", "c-0"}, "a kill did not happen"
    run = score(**settings(tmp_path / "run", **fields))

    assert_same_tables(run, whole)
    table = open_table(run.path + "/table")
    assert {part.segment for part in table.parts} == {0, 1, 2, 3}
    listed = {part.path for part in table.parts}
    written = {f"{path.parent.name}/{path.name}" for path in Path(table.path).glob("epoch=*/*.parquet")}
    orphaned = {path.rpartition("-r")[0].rpartition("-")[0] for path in written - listed}
    assert {"epoch=00002/part-00001", "epoch=00003/part-00001"} <= orphaned
    assert orphaned <= {"epoch=00001/part-00002", "epoch=00002/part-00001", "epoch=00003/part-00001"}


def test_a_lost_driver_and_controller_cost_no_row(two_workers, settings, tmp_path):
    """Ray Train's controller dies; then the driver, after training, and again in reduce: the same command ends it.

    In between, what the dead left behind is cleaned away, and the finished run verifies.
    """
    fields = settings(tmp_path / "run")
    kills = [
        {"point": "controller", "epoch": 2, "rank": 0, "marker": str(tmp_path / "a")},
        {"point": "freeze", "marker": str(tmp_path / "b")},
        {"point": "reduce", "marker": str(tmp_path / "c")},
    ]
    for marker in ("b", "c"):
        status, said = run_driver(fields, kills)
        assert status == -signal.SIGKILL, said
        assert (tmp_path / marker).exists()
        assert inspect(path=fields["out"])["state"] == "unfinished"
        assert clean(path=fields["out"], yes=True) == [], "what is young may still be somebody's"
        leftovers = [leftover.path for leftover in clean(path=fields["out"], yes=True, older_than=0)]
        assert any("part-" in path for path in leftovers) == (marker == "b"), "only the controller's death left orphans"
    assert (tmp_path / "a-0").exists()
    run = score(**fields)

    assert_same_tables(run, two_workers)
    assert written_parts(run)["epoch=00001"] == 2, "an epoch that was committed was done again"
    assert any("training state" in leftover.reason for leftover in clean(path=run.path, yes=True))
    assert not (tmp_path / "run" / "commits").exists()
    assert [entry["problems"] for entry in inspect(path=run.path, verify=True)["verified"]] == [[], [], []]
    assert score(**fields).manifest["created"] == run.manifest["created"]


def test_a_lost_or_drained_node_costs_no_row(two_workers, settings, tmp_path):
    """A node dies, the run goes on with one worker on the other; both worlds' epochs hold every sample once.

    Then that node is drained and leaves: without a failure to spend, the run waits, goes on with the node that comes
    instead, and ends.
    """
    fields = settings(tmp_path / "run", num_workers=(1, 2), cpus_per_worker=1, epochs=6, max_failures=1)
    out, log = str(tmp_path / "run"), tmp_path / "log"
    with log.open("w") as sink:
        done = subprocess.run([sys.executable, "-c", _NODES, json.dumps(fields)], stdout=sink, stderr=sink,
                              timeout=500, check=False)  # fmt: skip
    assert done.returncode == 0, log.read_text()[-3000:]
    table = open_table(out + "/table")
    history = table.artifact.manifest["epochs"]

    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4, 5, 6]
    assert {entry["num_workers"] for entry in history} == {1, 2}
    assert read_hardness(open_hardness(out))["num_scores"].to_pylist() == [6] * 97
    assert open_hardness(out).manifest["counts"]["samples"] == 97


def test_a_full_disk_is_an_error_and_no_loss(two_workers, settings, tmp_path):
    """Where parts cannot be written the run says so; with room again, the same command goes on to the same table."""
    room = tmp_path / "disk"
    room.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(room)], check=False)
    if mounted.returncode:
        pytest.skip("no right to mount a small disk")
    try:
        fields = settings(room / "run", max_failures=0)
        with pytest.raises(EasyCoreError, match=r"No space left on device.*run the same command again"):
            score(**fields)
        left = {path.name for path in room.rglob("*") if path.is_file()}
        assert "manifest.json" not in left
        assert not [name for name in left if name.endswith(".tmp")], "half a file was left behind"
        subprocess.run(["mount", "-o", "remount,size=64m", str(room)], check=True)

        assert_same_tables(score(**fields), two_workers)
    finally:
        subprocess.run(["umount", "-l", str(room)], check=True)


_NODES = """
import json, os, subprocess, sys, time
from pathlib import Path
from ray.cluster_utils import Cluster
from tests import faults

fields = json.loads(sys.argv[1])
os.environ["RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S"] = "0.5"
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False,
                                                        "object_store_memory": 200 * 1024**2})
node = lambda: cluster.add_node(num_cpus=1, object_store_memory=100 * 1024**2)
first, second = node(), node()
environment = os.environ | {"RAY_ADDRESS": cluster.address}
driver = subprocess.Popen([sys.executable, faults.__file__, json.dumps({"fields": fields})], env=environment)
commits = Path(fields["out"], "commits")

def wait_for(epoch):
    while not list(commits.glob(f"*/epoch-{epoch:05d}-*/state.json")):
        assert driver.poll() is None, f"the driver ended before epoch {epoch}: {driver.returncode}"
        time.sleep(0.05)

wait_for(1)
print("kill a node", flush=True)
cluster.remove_node(second, allow_graceful=False)
wait_for(3)
print("drain the other", flush=True)
import ray
from ray._raylet import GcsClient
from ray.core.generated import autoscaler_pb2
reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
deadline = int((time.time() + 3) * 1000)
GcsClient(address=cluster.address).drain_node(first.node_id, reason, "spot", deadline)
third = node()
time.sleep(3)
cluster.remove_node(first, allow_graceful=False)
code = driver.wait()
cluster.shutdown()
sys.exit(code)
"""
