"""Cleaning what real Ray Train workers leave behind: a killed run still goes on, to the same table."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from easycore_ray import clean, inspect, score
from easycore_ray.manifest import open_artifact
from tests.distributed.test_scoring import _KILLED_RUN, settings

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def killed_run(fields, folder):
    """Start a run whose second worker kills itself in the first epoch; kill the driver when that epoch is committed."""
    marker, script = folder / "killed", folder / "run.py"
    script.write_text(_KILLED_RUN.format(fields=json.dumps(fields), marker=str(marker)))
    environment = os.environ | {"RAY_TMPDIR": os.environ["RAY_TMPDIR"] + "c"}
    driver = subprocess.Popen([sys.executable, str(script)], env=environment, start_new_session=True,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    commits = Path(fields["out"]) / "commits"
    deadline = time.monotonic() + 240
    while not (marker.exists() and any("epoch-00001" in path.read_text() for path in commits.glob("*/*snapshot.json"))):
        assert driver.poll() is None, "the driver ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    time.sleep(2.0)  # workers notice, and end


def test_a_killed_run_that_was_cleaned_goes_on_to_the_same_table(digits, population, tmp_path):
    """Its orphans go, what it goes on from stays; finished and cleaned again it verifies and is still reused."""
    whole = score(**settings(digits, population, tmp_path / "whole", epochs=3))
    fields = settings(digits, population, tmp_path / "run", epochs=3)
    killed_run(fields, tmp_path)
    told = inspect(path=fields["out"])
    young = clean(path=fields["out"], yes=True)
    removed = clean(path=fields["out"], yes=True, older_than=0)

    assert told["state"] == "unfinished"
    assert told["progress"]["committed_epochs"] in (1, 2)
    assert told["progress"]["committed_rows"] == 97 * (told["progress"]["committed_epochs"] + 1)
    assert young == []
    assert any("part-" in leftover.path for leftover in removed), "the kill left no orphan"
    run = score(**fields)
    assert open_artifact(f"{run.path}/table").fingerprint == open_artifact(f"{whole.path}/table").fingerprint

    assert any("training state" in leftover.reason for leftover in clean(path=run.path, yes=True))
    assert not (tmp_path / "run" / "commits").exists()
    assert [entry["problems"] for entry in inspect(path=run.path, verify=True)["verified"]] == [[], [], []]
    assert score(**fields).manifest["created"] == run.manifest["created"]
