"""Ctrl-C and SIGTERM: one line, exit code 130 within seconds, no process left behind, and the same command goes on."""

import os
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from easycore_ray.storage.artifact import open_artifact
from tests.faults import MARK, processes

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture
def command(settings, tmp_path):
    """A scoring job on a Ray of its own, as a user starts it, and its environment."""
    fields = settings(tmp_path / "run", epochs=400) | {"initial_pass": None}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in fields.items() if value is not None]
    folder = tempfile.mkdtemp(prefix="ec", dir="/tmp")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return [sys.executable, "-m", "jobs.score", *options], environment | {MARK: folder, "RAY_TMPDIR": folder}


def interrupted(command, environment, sign, number):
    """Send a signal to a command once a line of standard error holds ``sign``: seconds to its end, exit code, lines.

    No process is there that would ask a dashboard which this Ray does not have.
    """
    job = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True,
        # As a shell starts it: what runs in its background inherits that SIGINT is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    said = []
    for line in job.stderr:
        said.append(line)
        if sign in line:
            break
    assert processes(environment[MARK], "ray::TrainController")
    assert not processes(environment[MARK], "ray::PlacementGroupCleaner")
    assert not processes(environment[MARK], "ray::DatasetManager")
    sent = time.monotonic()
    job.send_signal(number)
    said += job.stderr.readlines()
    code = job.wait(timeout=120)
    return time.monotonic() - sent, code, said


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        (signal.SIGINT, 130, "interrupted"),
        pytest.param(signal.SIGTERM, 143, "terminated", marks=pytest.mark.soak),
    ],
)
def test_a_run_that_is_interrupted_ends_at_once(command, tmp_path, number, code, word):
    """While Ray Train's workers are at work; MLflow is told as well."""
    arguments, environment = command
    seconds, found, said = interrupted(arguments, environment, "epoch ", number)
    assert (found, said[-1]) == (code, f"{word}; run the same command again to resume\n"), "".join(said)
    print(f"{seconds:.1f} s from the interrupt to the end")
    assert seconds < 10, "5 s where nothing else runs"
    deadline = time.monotonic() + 10
    while processes(environment[MARK], "") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes(environment[MARK], "") == []
    with pytest.raises(Exception, match="still being written"):
        open_artifact(str(tmp_path / "run"))
