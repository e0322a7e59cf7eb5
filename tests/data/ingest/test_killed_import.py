"""Imports that lose their driver, or a task: nothing reads as finished, and the same command makes a whole dataset."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import ray
from PIL import Image

from easycore_ray.data.dataset import open_dataset
from easycore_ray.data.ingest import sources
from easycore_ray.storage.errors import EasyCoreError
from tests.faults import processes
from tests.image_sources import contents, make, write_folders

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
ROOT = Path(__file__).parents[3]


def killed(source, out, moment, *, here, **fields):
    """Import in a process of its own that dies at a moment."""
    fields |= {"source": source, "out": str(out), "val_fraction": 0.1, "shard_mib": 15 * 108 / 2**20}
    request = json.dumps({"fields": fields, "moment": moment, "here": here})
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    done = subprocess.run(
        [sys.executable, "tests/killed_import.py", request], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def names(out):
    """Every file of a dataset, hidden ones too, but those that say who is writing."""
    files = {path.relative_to(out).as_posix() for path in Path(out).rglob("*") if path.is_file()}
    return {name for name in files if "lease" not in name}


@pytest.mark.parametrize(
    ("moment", "here"),
    [
        ("staging", False), ("writing", False), ("staged", True), ("written", True), ("indexed", True),
        ("finish", True),
    ],
)  # fmt: skip
def test_an_import_that_was_killed_is_made_whole_by_the_same_command(folders, dataset, tmp_path, moment, here):
    """What it left is no dataset, is not read again, and is gone afterwards."""
    out = tmp_path / "out"

    killed(folders, out, moment, here=here)

    assert list(out.rglob("*"))
    with pytest.raises(EasyCoreError, match="still being written"):
        open_dataset(str(out))
    make(folders, out)
    assert names(out) == names(dataset.path)
    assert contents(out) == contents(dataset.path)


def test_what_a_killed_import_wrote_of_another_source_is_not_used(folders, dataset, tmp_path):
    """Files that are no longer there leave no shard behind."""
    source = Path(write_folders(tmp_path / "source", count=40))
    out = tmp_path / "out"
    killed(str(source), out, "indexed", here=True)
    for path in source.rglob("*.png"):
        path.unlink()
    write_folders(source)

    make(str(source), out)

    assert names(out) == names(dataset.path)
    assert contents(out) == contents(dataset.path)


@pytest.mark.parametrize("moment", ["staging", "written", "finish"])
def test_a_dataset_stays_while_another_replaces_it(folders, dataset, tmp_path, moment):
    """Until the last write of the new one; a killed replacement is made whole in the same way."""
    out = tmp_path / "out"
    other = write_folders(tmp_path / "other", count=30)
    make(other, out)
    before = open_dataset(str(out)).fingerprint

    killed(folders, out, moment, here=True, overwrite=True)

    assert open_dataset(str(out)).fingerprint == before
    made = make(folders, out, overwrite=True)
    assert open_dataset(str(out)).fingerprint == dataset.fingerprint
    assert contents(made.path) == contents(dataset.path)
    assert not list(out.rglob("staging-*"))


def test_a_lost_task_is_run_again(tmp_path, monkeypatch):
    """With the same result, to the byte."""
    monkeypatch.setattr(sources, "_FILES_PER_PIECE", 12)
    for number in range(48):
        path = tmp_path / "source" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (600, 600, 3), np.uint8)
        Image.fromarray(noise).save(path)
    make(str(tmp_path / "source"), tmp_path / "whole", shard_mib=20)
    lost = []
    done = threading.Event()

    def kill_one():
        while not lost and not done.is_set():
            lost.extend(processes(os.environ["EASYCORE_TEST_PROCESSES"], "ray::stage_piece")[:1])
        for process in lost:
            os.kill(process, signal.SIGKILL)

    killing = threading.Thread(target=kill_one)
    killing.start()
    make(str(tmp_path / "source"), tmp_path / "out", shard_mib=20)
    done.set()
    killing.join()

    assert lost
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert names(tmp_path / "out") == names(tmp_path / "whole")
