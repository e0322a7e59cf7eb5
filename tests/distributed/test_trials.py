"""Trials of a sweep whose process is lost."""

import os
from collections import Counter
from pathlib import Path

import pytest
from safetensors.torch import load_file

from easycore_ray import sweep
from easycore_ray.config.stages import TrainConfig
from easycore_ray.storage.errors import EasyCoreError
from tests.artifacts import weights_trained_here
from tests.users_models import KILLED_STEP

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


def test_a_killed_one_worker_trial_resumes_from_its_last_epoch(digits, population, two_workers, tmp_path):
    """Its process dies in the third epoch: Tune starts it there again; the weights are those of a run in one go."""
    place = Path(os.environ["EASYCORE_TEST_PROCESSES"])
    recipe = dict(model="tests.users_models:killing", batch_size=16, augment="crop", crop_pad=1, tracking_uri="none",
                  threads_per_worker=1)  # fmt: skip
    sweep(
        dataset=digits.path, scores=two_workers.path, out=str(tmp_path / "sweep"), method=(), fraction=(0.5,),
        seeds=(0,), training=("standard",), train_epochs=4, eval_eps=(0.1,), num_eval_samples=20, **recipe,
    )  # fmt: skip
    (trial,) = (tmp_path / "sweep" / "trials").glob("*/checkpoint")
    steps = Counter((place / "steps").read_text().split())

    assert (place / "killed").exists(), "nothing was lost"
    # 97 samples in batches of 16 are 7 steps; two epochs were committed before the 17th step.
    assert list(steps.values()) == [KILLED_STEP, 14], "what was committed is not trained again"
    config = TrainConfig(
        dataset=digits.path, coreset=population.path, out="unused", training="standard", epochs=4, num_workers=1,
        **recipe,
    )  # fmt: skip
    mine, theirs = load_file(trial / "model.safetensors"), weights_trained_here(config)
    assert mine.keys() == theirs.keys()
    assert all(mine[name].equal(theirs[name]) for name in mine)
    assert not list(trial.rglob("*.zip"))


def test_workers_that_leave_no_cpu_for_the_trial_itself_are_refused(digits, two_workers, tmp_path):
    """Three of a CPU each on three CPUs: a trial's own process reserves a tenth, and would wait for ever."""
    with pytest.raises(EasyCoreError, match=r"3\.1 CPUs are wanted, the cluster has 3; lower"):
        sweep(
            dataset=digits.path, scores=two_workers.path, out=str(tmp_path / "sweep"), method=(), fraction=(0.5,),
            seeds=(0,), training=("standard",), train_epochs=1, model="cnn", batch_size=15, tracking_uri="none",
            trial_workers=3, cpus_per_worker=1.0, threads_per_worker=1,
        )  # fmt: skip
    assert not (tmp_path / "sweep").exists()
