"""Real jobs and a real MLflow: nothing is lost when the server, the driver, a node or an answer is."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest
import ray

from easycore_ray import pipeline, train
from easycore_ray.config.presets import tiny
from easycore_ray.runtime import progress_actor
from easycore_ray.runtime.progress_actor import watching
from easycore_ray.storage import paths
from easycore_ray.tracking.mlflow import Tracker
from easycore_ray.tracking.runs import TrackedRun
from tests.tracking.stores import EXPERIMENT, free_port, history, runs_of, serve, store_of

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


@pytest.fixture
def store(tmp_path, empty_store):
    """The address of an empty database."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return store_of(tmp_path)


def assert_has_epochs(uri, run, folder):
    """An MLflow run holds every metric of every epoch that a manifest has, once, and is finished."""
    expected = {}
    for entry in paths.read_json(paths.join(str(folder), "manifest.json"))["epochs"]:
        for name, value in entry.items():
            if value is not None:
                expected.setdefault(name, []).append((entry["epoch"], float(value)))
    assert len(expected["train_loss"]) > 1
    found = {name: sorted(history(uri, run, name)) for name in expected}
    assert found == expected
    assert run.info.status == "FINISHED"


def test_a_server_that_was_away_for_a_whole_pipeline_gets_everything_later(ray_session, empty_store, tmp_path, capfd):
    """What is missing is said, and the job goes on to its end.

    The command is given again with the server up and finds all finished: every run has every epoch, once.
    """
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    config = tiny(str(tmp_path / "run")).replace(
        method=(), training=("standard",), steps=50, num_workers=1, tracking_uri=uri
    )
    pipeline(config)
    said = capfd.readouterr().err
    assert uri in said
    assert "2 of 2 runs" in said
    assert "the next command with this --out brings them" in said
    assert paths.read_json(str(tmp_path / "run" / "summary.json"))["rows"]

    with serve(tmp_path, port, empty_store):
        for _ in range(2):
            pipeline(config)
            runs = {run.data.tags["kind"]: run for run in runs_of(uri).values()}
            assert sorted(runs) == ["pipeline", "scoring_run", "sweep", "trial"]
            above = {kind: run.data.tags.get("mlflow.parentRunId") for kind, run in runs.items()}
            ids = {kind: run.info.run_id for kind, run in runs.items()}
            assert above == {
                "pipeline": None, "scoring_run": ids["pipeline"], "sweep": ids["pipeline"], "trial": ids["sweep"],
            }  # fmt: skip
            assert_has_epochs(uri, runs["scoring_run"], tmp_path / "run" / "scores")
            (trial,) = (tmp_path / "run" / "sweep" / "trials").iterdir()
            assert_has_epochs(uri, runs["trial"], trial / "checkpoint")
            summary = paths.read_json(str(trial / "evaluation" / "manifest.json"))["summary"]
            assert runs["trial"].data.metrics["clean_accuracy"] == summary["clean_accuracy"]
    assert "not up to date" not in capfd.readouterr().err


# Never looks at progress, and dies a moment after epoch 2 was committed.
KILLED = """
import json, os, signal, sys, threading, time
from pathlib import Path
from easycore_ray import train
from easycore_ray.runtime import progress_actor
fields = json.loads(sys.argv[1])
progress_actor._POLL_SECONDS = 3600.0
def die():
    while not any("epoch-00002" in path.read_text() for path in Path(fields["out"]).rglob("*_snapshot.json")):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=die, daemon=True).start()
train(**fields)
"""


def test_a_driver_that_dies_before_it_looks_at_progress_loses_no_epoch(digits, population, store, tmp_path):
    """Two epochs are committed and never seen by the driver that is killed: the same command brings them too."""
    fields = dict(
        dataset=digits.path, coreset=population.path, out=str(tmp_path / "run"), model="cnn", width=4, epochs=4,
        batch_size=16, augment="none", num_workers=1, threads_per_worker=1, tracking_uri=store, experiment=EXPERIMENT,
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-c", KILLED, json.dumps(fields)], capture_output=True, text=True,
                          env=os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address},
                          timeout=200, check=False)  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    again = train(**fields)

    (run,) = runs_of(store).values()
    assert_has_epochs(store, run, again.path)
    assert [epoch for epoch, _ in sorted(history(store, run, "train_loss"))] == [1, 2, 3, 4]


def test_an_answer_that_comes_too_late_loses_no_epoch_in_mlflow(ray_session, store, monkeypatch):
    """The actor answers nothing for longer than the driver waits (5 s, here 0.3): live tracking has every epoch."""
    assert progress_actor._ANSWER_SECONDS == 5
    monkeypatch.setattr(progress_actor, "_ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(progress_actor, "_POLL_SECONDS", 0.1)
    tracker = Tracker(store, EXPERIMENT)

    def send(epoch, metrics):
        tracker.send(TrackedRun("t", "t", points={epoch: metrics}))

    with watching("test", 3, "epochs", send) as actor:
        ray.get(actor.post_metrics.remote(1, {"loss": 1.0}))
        process = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))
        os.kill(process, signal.SIGSTOP)
        actor.post_metrics.remote(2, {"loss": 1 / 2})
        time.sleep(2)  # several answers that nobody waits for any more, and epoch 2 is in all of them
        os.kill(process, signal.SIGCONT)
        ray.get(actor.post_metrics.remote(3, {"loss": 1 / 3}))
        monkeypatch.setattr(progress_actor, "_ANSWER_SECONDS", 5.0)
    tracker.close()

    assert history(store, runs_of(store)["t"], "loss") == [(1, 1.0), (2, 1 / 2), (3, 1 / 3)]


# The driver looks at progress at the end only, so what was posted before the loss must have outlived the node. Ray puts
# actors that are not bound to a node on any: eight show it.
LOST_NODES = """
import contextlib, os, sys, time, ray
from pathlib import Path
from ray.cluster_utils import Cluster
from easycore_ray.runtime import progress_actor
from easycore_ray.tracking.mlflow import Tracker
from easycore_ray.tracking.runs import TrackedRun
progress_actor._POLL_SECONDS = 3600.0
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80_000_000})
other = cluster.add_node(num_cpus=4, object_store_memory=80_000_000)
ray.init(address=cluster.address, log_to_driver=False)
tracker = Tracker(sys.argv[1], "easycore")

def sender(key):
    return lambda epoch, metrics: tracker.send(TrackedRun(key, key, points={epoch: metrics}))

@ray.remote(num_cpus=1)
def work(actor):
    ray.get(actor.post_metrics.remote(1, {"loss": 1.0}))
    return ray.get_runtime_context().get_node_id(), os.getpid()

def runs(process):
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes() != b""
    except OSError:
        return False

with contextlib.ExitStack() as stack:
    actors = [stack.enter_context(progress_actor.watching("test", 1, "epochs", sender(f"run {n}"))) for n in range(8)]
    nodes, processes = zip(*ray.get([work.remote(actor) for actor in actors]))
    assert set(nodes) == {other.node_id}
    cluster.remove_node(other, allow_graceful=False)
    while any(map(runs, processes)):
        time.sleep(0.1)  # processes of a node outlive it for a moment, and so would an actor among them
    time.sleep(1)
    for actor in actors:
        ray.get(actor.post_metrics.remote(2, {"loss": 0.5}), timeout=60)
tracker.close()
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.soak
def test_a_lost_node_takes_no_metrics_along(store):
    """Work on the other of two nodes reports an epoch, the node is lost: live tracking has this epoch and the next."""
    folder = tempfile.mkdtemp(prefix="ec", dir="/tmp")
    done = subprocess.run([sys.executable, "-c", LOST_NODES, store], env=os.environ | {"RAY_TMPDIR": folder},
                          capture_output=True, text=True, timeout=250, check=False)  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True)
    assert done.returncode == 0, done.stderr[-3000:]

    runs = runs_of(store)
    assert set(runs) == {f"run {number}" for number in range(8)}
    assert {key: history(store, run, "loss") for key, run in runs.items()} == {
        key: [(1, 1.0), (2, 0.5)] for key in runs
    }
