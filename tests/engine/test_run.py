"""What a run is told and what it keeps, without any training: schedules over worlds, states on disk."""

import dataclasses
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from easycore_ray.config.stages import ScoreConfig, TrainConfig
from easycore_ray.core import loop
from easycore_ray.engine.loader import batches_per_epoch
from easycore_ray.engine.plan import Fit, make_training_plan
from easycore_ray.engine.state import State, load_state, save_state
from easycore_ray.storage.errors import EasyCoreError
from tests import together


def fit_of(num_rows=1000, epochs=10, **changes):
    config = ScoreConfig(out="unused", dataset="unused", epochs=epochs, batch_size=10, warmup_fraction=0.1)
    steps = epochs * batches_per_epoch(num_rows, 4, config.batch_size)
    fit = Fit(
        dataset="unused", sample_ids=None, num_rows=num_rows, model={},
        plan=make_training_plan(config, total_steps=steps),
        epochs=epochs, batch_size=10, cache_gib=1.0, threads=1, warmup_fraction=0.1,
    )  # fmt: skip
    return dataclasses.replace(fit, **changes)


def state_of(**changes):
    return dataclasses.replace(State(3, 75, {}, {}), **changes)


def test_the_schedule_of_the_planned_world_is_the_plan():
    """With the number of workers that was planned for, nothing changes: same plan, step as counted."""
    fit = fit_of()

    assert fit.schedule(4, state_of()) == (fit.plan, 75)


@pytest.mark.parametrize(("world_size", "steps"), [(1, 100), (2, 50), (3, 34)])
def test_another_world_goes_on_at_the_same_epoch_of_its_own_schedule(world_size, steps):
    """Three of ten epochs are three tenths of the schedule, however many steps they took before."""
    plan, step = fit_of().schedule(world_size, state_of())

    assert plan.total_steps == 10 * steps
    assert plan.warmup_steps == steps
    assert step == 3 * steps


def test_a_budget_of_steps_counts_steps():
    """Where steps were asked for they are the schedule."""
    fit = fit_of(fixed_steps=True)

    assert fit.schedule(2, state_of(step=61)) == (fit.plan, 61)


def test_a_budget_of_steps_needs_one_world():
    """MIN:MAX and --steps contradict each other."""
    with pytest.raises(EasyCoreError, match="steps needs one number of workers, got MIN:MAX; pass --epochs"):
        TrainConfig(out="o", dataset="d", steps=5, num_workers=(1, 2))


def test_a_state_survives_the_disk(tmp_path):
    """Weights, momentum, JSON content and tensors of the caller come back bit for bit."""
    state = State(
        2, 40, {"w": torch.randn(3, 4)}, {"w": torch.randn(3, 4)}, [{"epoch": 1}, {"epoch": 2}],
        {"parts": [{"rows": 7}], "sample_epochs": 2, "sample_sums": torch.rand(5, dtype=torch.float64)},
    )  # fmt: skip
    save_state(str(tmp_path), state)
    found = load_state(str(tmp_path))

    assert (found.epoch, found.step, found.history) == (2, 40, state.history)
    assert torch.equal(found.model["w"], state.model["w"])
    assert torch.equal(found.optimizer["w"], state.optimizer["w"])
    assert torch.equal(found.carried.pop("sample_sums"), state.carried.pop("sample_sums"))
    assert found.carried == state.carried


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_processes_that_train_together_take_the_steps_of_one(tmp_path, monkeypatch):
    """Real processes, 2 and 3 of them, uneven batches: everyone ends with the weights of one process, to 1e-5.

    The one process sees, step by step, what all workers see in that step; every objective is compared.
    """
    monkeypatch.setattr(loop, "trades_attack", together.shifted)
    monkeypatch.setattr(loop, "pgd_training_attack", together.shifted)
    workers = [subprocess.Popen([sys.executable, together.__file__, str(rank), str(tmp_path)]) for rank in range(3)]
    try:
        assert [worker.wait(250) for worker in workers] == [0, 0, 0]
    finally:
        for worker in workers:
            worker.kill()
    for world in together.WORLDS:
        shares = [list(together.feed_of(rank, world).shuffled(1)) for rank in range(world)]
        assert len({len(batch.labels) for share in shares for batch in share}) > 1, "even batches prove nothing"
        batches = [tuple(map(torch.cat, zip(*step, strict=True))) for step in zip(*shares, strict=True)]
        for training in together.OBJECTIVES:
            whole = together.train(training, batches)
            for rank in range(world):
                mine = load_file(tmp_path / f"{training}-{world}-{rank}.safetensors")
                torch.testing.assert_close(mine, dict(whole), rtol=1e-5, atol=1e-6)
