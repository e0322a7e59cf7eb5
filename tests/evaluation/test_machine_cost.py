"""What an evaluation takes of its machine: summed over shards, in no outcome, absent where it is not known."""

import time
from types import SimpleNamespace

import pyarrow as pa
import pytest

from easycore_ray.evaluation.attack_shards import merge_shards
from easycore_ray.evaluation.machine_cost import cost_of, with_cost
from easycore_ray.experiments.results import cost_columns, machine_cost


def shard(rows, seconds):
    """Outcomes that took so long to make."""
    table = pa.table({"sample_id": range(rows)})
    return with_cost(lambda: (time.sleep(seconds), table)[1], "cpu")


def test_the_rate_is_that_of_all_shards():
    """Images of all by the time of all, whichever process made them; memory is that of the largest."""
    found = cost_of([shard(20, 0.1), shard(60, 0.3)])

    assert found["images_per_second"] == pytest.approx(200, rel=0.1)
    assert found["peak_memory_megabytes"] > 50


def test_outcomes_come_without():
    """They are the same whatever they took; a shard kept by an earlier version has no cost."""
    fast, slow = shard(5, 0.0), shard(5, 0.05)
    plain = pa.table({"sample_id": range(5)})

    assert not fast.equals(slow, check_metadata=True)
    assert merge_shards([fast]).equals(merge_shards([slow]), check_metadata=True)
    assert cost_of([fast, plain]) == {}


def test_extra_rows_are_among_the_images():
    """What a step trains on, whatever source it came from."""
    counts, steps = {"samples": 100, "epochs": 1}, 10
    checkpoint = {"epochs": [{"epoch": 1, "train_seconds": 2.0}], "counts": counts, "steps": steps}
    mixed = checkpoint | {"sources": {"main": {"rows": 100}, "extra": {"rows": 300}}}
    train = SimpleNamespace(batch_size=40, gpus_per_worker=0.0)
    for manifest, rate in ((checkpoint, 50), (mixed, 200)):
        finished = SimpleNamespace(checkpoint=SimpleNamespace(manifest=manifest), trial=SimpleNamespace(train=train),
                                   evaluations=[SimpleNamespace(manifest={})])  # fmt: skip
        assert machine_cost(finished)["training_images_per_second"] == rate


def test_rows_have_the_mean_rate_and_the_most_memory():
    """Over seeds; what one of them does not know, the row does not."""
    costs = [{"training_images_per_second": 10.0, "evaluation_peak_memory_megabytes": 5.0, "other_megabytes": 1.0},
             {"training_images_per_second": 30.0, "evaluation_peak_memory_megabytes": 7.0}]  # fmt: skip

    assert cost_columns(costs) == {"training_images_per_second": 20.0, "evaluation_peak_memory_megabytes": 7.0}
    assert cost_columns([{}, costs[0]]) == {}
