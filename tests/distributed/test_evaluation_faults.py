"""Evaluations that lose processes: what is killed is done again, what is finished is not, and no outcome changes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray

from easycore_ray.config.evaluation import EvaluateConfig
from easycore_ray.data.dataset import open_dataset
from easycore_ray.data.samples import read_split
from easycore_ray.engine.checkpoint import open_checkpoint
from easycore_ray.evaluation.attack_shards import attack_rows
from easycore_ray.evaluation.evaluate import evaluation_ids
from easycore_ray.evaluation.threats import threats_of
from tests import faults
from tests.artifacts import make_checkpoint, make_image_dataset

pytestmark = [pytest.mark.ray, pytest.mark.soak, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
# Many budgets make a shard of a model without gradients, which no attack fools early, last a second.
EPS = [number / 1000 for number in range(1, 81)]


def test_a_lost_task_and_a_lost_driver_change_no_outcome(ray_session, tmp_path):
    """A task's process is killed, later the driver; the same command goes on from the finished shards.

    The outcome is that of the same shards in this process, bit for bit. The model has no gradients, which both the
    resumed command and the one that finds everything done say with exit code 1.
    """
    labels = [number % 3 for number in range(6 * 250)]
    dataset = make_image_dataset(tmp_path / "dataset", labels[:30], labels)
    checkpoint = make_checkpoint(tmp_path / "model", dataset.path, model="tests.users_models:masked", width=None)
    out = tmp_path / "evaluation"
    command = [sys.executable, "-m", "jobs.evaluate", "--checkpoint", checkpoint.path, "--dataset", dataset.path,
               "--out", str(out), "--num-workers", "1", "--threads-per-worker", "1",
               "--eval-eps", *map(str, EPS)]  # fmt: skip
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    wait_for(lambda: finished(out) >= 1, driver)
    lost = []
    # Between two shards no task is at work for a moment.
    wait_for(lambda: lost.extend(faults.processes(os.environ[faults.MARK], "ray::_Actor.call")) or lost, driver)
    for process in lost:
        os.kill(process, signal.SIGKILL)
    before = finished(out)
    # One task at a time, so that the next shard is the one that was lost.
    wait_for(lambda: finished(out) > before, driver)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    assert finished(out) < 6, "the driver was killed too late"
    assert not (out / "manifest.json").exists()

    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert again.returncode == 1, again.stderr
    assert "of 6 shards exist already" in again.stderr
    assert again.stderr.splitlines()[-1].startswith("error: this evaluation is suspicious: pgd20 at linf eps 0.5")
    config = EvaluateConfig(checkpoint=checkpoint.path, dataset=dataset.path, out="unused", eval_eps=tuple(EPS))
    opened = open_dataset(dataset.path)
    rows = read_split(opened, "test", evaluation_ids(opened, "test", None, 0))
    here = attack_rows(open_checkpoint(checkpoint.path)[1], rows, threats_of(config))
    assert pq.read_table(out / "outcomes.parquet").equals(here, check_metadata=True)
    assert not list(out.glob("shards-*")), "finished, shards are no longer needed"


def finished(out):
    """Shards that are written."""
    return len(list(out.glob("shards-*/*.parquet")))


def wait_for(reached, driver, seconds=200):
    """Wait until something is true while the driver lives."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert driver.poll() is None, f"the driver ended early, with {driver.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.01)
