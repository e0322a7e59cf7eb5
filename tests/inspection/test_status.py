"""Whether a job is finished, by its folder: for people and schedulers."""

import subprocess
import sys
from pathlib import Path

import pytest

from easycore_ray import status
from easycore_ray.storage import artifact, lease, paths
from easycore_ray.storage.errors import EasyCoreError


def exit_code(path):
    return subprocess.run([sys.executable, "-m", "jobs.status", path], cwd=Path(__file__).parents[2], check=False,
                          capture_output=True, text=True)  # fmt: skip


@pytest.mark.slow
def test_every_stage_of_a_jobs_life(tmp_path):
    """Nothing, an empty folder, at work, left alone, diverged, finished."""
    out = str(tmp_path / "run")
    assert (status(path=out).finished, status(path=out).reason) == (False, "there is nothing yet")
    Path(out).mkdir()
    assert status(path=out).reason == "no job of ours has begun there"

    made = artifact.claim(out, "scoring_run", "identity")
    assert status(path=out).reason.startswith("scoring run, being written by ")
    assert "last sign 0 s ago" in status(path=out).reason
    lease.release(out)
    assert status(path=out).reason == "scoring run, and nobody is at work on it; run the same command again to go on"
    done = exit_code(out)
    assert (done.returncode, done.stdout) == (3, f"unfinished: {out}: {status(path=out).reason}\n")

    paths.write_json(f"{made.path}/{artifact.DIVERGED}", {"identity": "identity", "problem": "training diverged: …"})
    assert status(path=out).reason == "scoring run, training diverged: …"

    made = artifact.claim(out, "scoring_run", "identity")
    artifact.finish(made, fingerprint="f", config={}, parents={}, counts={}, wall_seconds=1.0)
    assert status(path=out).finished
    done = exit_code(out)
    assert (done.returncode, done.stdout.startswith(f"finished: {out}: scoring run, 20")) == (0, True)


def test_a_folder_of_somebody_else_is_an_error(tmp_path):
    """Its manifest is none of ours."""
    (tmp_path / "manifest.json").write_text("{}")

    with pytest.raises(EasyCoreError, match="is not one of ours"):
        status(path=str(tmp_path))
