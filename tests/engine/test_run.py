"""What a run is told and what it keeps, without any training: schedules over worlds, states on disk."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from easycore_ray.core import gradients
from easycore_ray.data.samples import Samples
from easycore_ray.engine.loader import MemoryLoader
from easycore_ray.engine.segments import Segments
from easycore_ray.engine.state import State, load_state, pack_state, save_state, unpack_state
from tests import together


def sizes_of(segments):
    """Rows of each worker."""
    return [segments.rows_of_worker(rank) for rank in range(segments.world_size)]


@pytest.mark.parametrize("batch_size", [12, 24])
@pytest.mark.parametrize("num_rows", [1000, 997, 121])
def test_another_number_of_workers_takes_the_same_steps(num_rows, batch_size):
    """Each draws its share in as many batches as one worker draws all rows in, and every row once."""
    rows = Samples(torch.arange(num_rows), torch.zeros(num_rows, 1, 1, 1, dtype=torch.uint8), torch.zeros(num_rows))
    for world in (1, 2, 3, 4):
        segments = Segments(num_rows, batch_size, num_rows, world)
        blocks = zip(*(column.split(sizes_of(segments)) for column in rows), strict=True)
        loaders = [
            MemoryLoader(Samples(*block), segments=segments, seed=0, rank=rank) for rank, block in enumerate(blocks)
        ]
        drawn = [[batch.sample_ids for batch in loader.shuffled(1, 0)] for loader in loaders]
        assert {len(batches) for batches in drawn} == {-(-num_rows // batch_size)}
        assert sorted(torch.cat([ids for batches in drawn for ids in batches]).tolist()) == list(range(num_rows))
        assert max(sum(map(len, step)) for step in zip(*drawn, strict=True)) <= batch_size


def test_a_state_survives_the_disk(tmp_path):
    """Weights, momentum, JSON content and tensors of the caller come back bit for bit, from files or from one."""
    state = State(
        2, 40, {"w": torch.randn(3, 4)}, {"w": torch.randn(3, 4)}, [{"epoch": 1}, {"epoch": 2}],
        {"parts": [{"rows": 7}], "sample_epochs": 2, "sample_sums": torch.rand(5, dtype=torch.float64)},
    )  # fmt: skip
    packed = pack_state(state)
    save_state(str(tmp_path), state)
    sums = state.carried.pop("sample_sums")
    for found in (load_state(str(tmp_path)), unpack_state(packed, "a file")):
        assert (found.epoch, found.step, found.history) == (2, 40, state.history)
        assert torch.equal(found.model["w"], state.model["w"])
        assert torch.equal(found.optimizer["w"], state.optimizer["w"])
        assert torch.equal(found.carried.pop("sample_sums"), sums)
        assert found.carried == state.carried


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_processes_that_train_together_take_the_steps_of_one(tmp_path, monkeypatch):
    """Real processes, 2 and 3 of them, uneven batches: everyone ends with the weights of one process, to 1e-5.

    The one process sees, step by step, what all workers see in that step; every objective is compared.
    """
    monkeypatch.setattr(gradients, "attack_batch", together.shifted)
    workers = [subprocess.Popen([sys.executable, together.__file__, str(rank), str(tmp_path)]) for rank in range(3)]
    try:
        assert [worker.wait(250) for worker in workers] == [0, 0, 0]
    finally:
        for worker in workers:
            worker.kill()
    for world in together.WORLDS:
        shares = [list(together.feed_of(rank, world).shuffled(1, 0)) for rank in range(world)]
        assert len({len(batch.labels) for share in shares for batch in share}) > 1, "even batches prove nothing"
        batches = [tuple(map(torch.cat, zip(*step, strict=True))) for step in zip(*shares, strict=True)]
        for training in together.OBJECTIVES:
            whole = together.train(training, batches)
            for rank in range(world):
                mine = load_file(tmp_path / f"{training}-{world}-{rank}.safetensors")
                torch.testing.assert_close(mine, dict(whole), rtol=1e-5, atol=1e-6)
