"""Validation: every row once, in the same blocks on any number of workers, kept or read anew."""

import dataclasses

import pytest
import torch

from easycore_ray.core.models import build_model
from easycore_ray.engine import validation
from easycore_ray.engine.validation import ValidationBlocks
from tests.artifacts import make_image_dataset
from tests.soak.segments import Case
from tests.worker_group import Group, GroupContext


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A run whose validation split has 300 images: two whole blocks and a part of one."""
    folder = tmp_path_factory.mktemp("validation") / "dataset"
    labels = [number % 3 for number in range(300)]
    return Case(make_image_dataset(folder, labels[:49], val_labels=labels).path, 1, "trades")


def blocks_of(case, world, folder, **changes):
    """What the workers of a world hold, one after the other."""
    group = Group(folder, world)
    fit = dataclasses.replace(case.fit, **changes)
    return [list(ValidationBlocks(fit, GroupContext(group, rank))) for rank in range(world)]


def assert_equal_blocks(found, expected):
    """Every column of every block."""
    for mine, other in zip(found, expected, strict=True):
        assert all(torch.equal(column, like) for column, like in zip(mine, other, strict=True))


def test_blocks_are_the_same_for_any_number_of_workers(case, tmp_path):
    """Shared in nearly equal parts; each row is in one of them, with its own image."""
    whole = blocks_of(case, 1, tmp_path)[0]
    assert [len(block.labels) for block in whole] == [128, 128, 44]
    assert sorted(torch.cat([block.sample_ids for block in whole]).tolist()) == list(range(300))
    for world in (2, 3, 4):
        shares = blocks_of(case, world, tmp_path)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        assert_equal_blocks([block for share in shares for block in share], whole)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_share_that_does_not_fit_the_cache_is_streamed(case, tmp_path, monkeypatch):
    """The same blocks, and the same accuracies, robust ones as well; no split is read into this process."""
    kept = blocks_of(case, 2, tmp_path)
    monkeypatch.setattr(validation, "read_split", None)
    for mine, other in zip(kept, blocks_of(case, 2, tmp_path, cache_gib=0.0), strict=True):
        assert_equal_blocks(mine, other)
    monkeypatch.undo()
    model = build_model(**case.fit.model).eval()
    found = []
    for cache_gib in (1.0, 0.0):
        fit = dataclasses.replace(case.fit, cache_gib=cache_gib)
        blocks = ValidationBlocks(fit, GroupContext(Group(tmp_path, 1), 0))
        found += [{name: value for name, value in blocks.measure(model)[0].items() if name != "val_seconds"}] * 2
    assert found[0] == found[2]
    assert set(found[0]) == {"val_accuracy", "val_robust_accuracy"}
