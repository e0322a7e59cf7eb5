"""Two commands with one ``--out`` on Ray, whose workers go on while their driver is stopped."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import ray

from easycore_ray import inspect, score
from easycore_ray.scoring.score_reader import open_table
from easycore_ray.storage import paths
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.storage.lease import SECONDS_VARIABLE
from tests.object_store import environment, running_store

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def start(job, fields, *, seconds):
    """A job in a process of its own on the tests' Ray, with a lease of so many seconds."""
    # A flag takes no value; those of these fields are off.
    options = [f"--{name.replace('_', '-')}={value}" for name, value in fields.items() if value is not False]
    environment = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, SECONDS_VARIABLE: str(seconds)}
    return subprocess.Popen(
        [sys.executable, "-m", f"jobs.{job}", *options], env=os.environ | environment, stderr=subprocess.PIPE, text=True
    )


def wait_for(found, job):
    """Wait until a function gives something, while a job is at work."""
    deadline = time.monotonic() + 120
    while not found():
        assert job.poll() is None, job.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.soak
def test_a_scoring_run_is_taken_over_while_its_workers_are_at_work(settings, tmp_path):
    """They end at their next commit; the second goes on from the last one, and the first ends with a line."""
    fields = settings(tmp_path / "run", epochs=5, num_workers=1, initial_pass=False)
    commits = tmp_path / "run" / "commits"
    first = start("score", fields, seconds=1)
    wait_for(lambda: list(commits.glob("*/epoch-00002-*/state.json")), first)
    with pytest.raises(EasyCoreError, match=f"run is being written by .*, process {first.pid}, since"):
        score(**fields)
    first.send_signal(signal.SIGSTOP)
    time.sleep(1.2)
    done = score(**fields)
    manifest = paths.read_bytes(str(tmp_path / "run" / "manifest.json"))

    first.send_signal(signal.SIGCONT)
    said = first.communicate(timeout=60)[1]
    assert first.returncode == 2, said
    assert "was taken over by" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert paths.read_bytes(str(tmp_path / "run" / "manifest.json")) == manifest
    assert [entry["problems"] for entry in inspect(path=done.path, verify=True)["verified"]] == [[], [], []]
    history = open_table(f"{done.path}/table").artifact.manifest["epochs"]
    assert [entry["epoch"] for entry in history] == list(range(1, 6))
    assert len(list(Path(done.path, "table").glob("epoch=00002/*"))) == 1, "a committed epoch was done again"


@pytest.mark.soak
@pytest.mark.parametrize("place", ["local", "s3"])
def test_of_two_pipelines_one_goes_on_where_the_other_was_stopped(tmp_path, place):
    """The second is refused, and the third takes over in the middle of the sweep; each runs on a Ray of its own."""
    with running_store("pipelines") as store:
        out = str(tmp_path / "run") if place == "local" else "s3://pipelines/run"
        surroundings = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        surroundings |= environment(store.url)
        log = tmp_path / "log"
        with log.open("w") as sink:
            first = subprocess.Popen(pipeline(out), env=surroundings | own_ray(seconds=4), stderr=sink)
        time.sleep(5)
        second = subprocess.run(
            pipeline(out), env=surroundings | own_ray(seconds=4), capture_output=True, text=True, check=False
        )
        assert (second.returncode, second.stderr.count("\n")) == (2, 1), second.stderr
        deadline = time.monotonic() + 200
        while " of 2 trials" not in log.read_text():
            assert first.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        first.send_signal(signal.SIGSTOP)
        time.sleep(6)
        third = subprocess.run(
            pipeline(out), env=surroundings | own_ray(seconds=60), capture_output=True, text=True, check=False
        )
        assert third.returncode == 0, third.stderr

        first.send_signal(signal.SIGCONT)
        # A traceback of ours would give 1; Ray Tune may log one of an upload that was stopped in the middle.
        assert first.wait(timeout=120) == 2
        assert "was taken over by" in log.read_text().splitlines()[-1]
        verify = [sys.executable, "-m", "jobs.inspect", out, "--verify"]
        checked = subprocess.run(verify, env=surroundings, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout


def pipeline(out):
    """The command of a small pipeline."""
    options = "--preset tiny --source digits --training standard --num-workers 1 --threads-per-worker 1"
    return [sys.executable, "-m", "jobs.pipeline", *options.split(), "--tracking-uri", "none", "--out", out]


def own_ray(*, seconds):
    """Environment of a process that starts a Ray of its own, and has a lease of so many seconds."""
    return {"RAY_TMPDIR": tempfile.mkdtemp(prefix="ec", dir="/tmp"), SECONDS_VARIABLE: str(seconds)}
