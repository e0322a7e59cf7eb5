"""Batches that fit: cut where a device has no memory for them, with the results of whole ones."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from easycore_ray.core.attacks import fgsm, pgd, pgd20
from easycore_ray.core.memory import RowLimit, default_rows
from easycore_ray.core.passes import score_epoch, validate
from easycore_ray.core.seeding import generator


class Narrow(nn.Module):
    """A linear model for which a device has memory for ``most`` rows at a time; it notes how many it was given."""

    def __init__(self, most):
        super().__init__()
        self.layer = nn.Linear(12, 3, bias=False)
        nn.init.normal_(self.layer.weight, generator=torch.Generator().manual_seed(0))
        self.most, self.given = most, []

    def forward(self, inputs):
        self.given.append(len(inputs))
        if len(inputs) > self.most:
            raise torch.OutOfMemoryError(f"no memory for {len(inputs)} rows")
        return self.layer(inputs.flatten(1))


def rows(count, seed=0):
    draws = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 2, 2), generator=draws, dtype=torch.uint8)
    return torch.arange(count), images, torch.randint(0, 3, (count,), generator=draws)


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [(8 * 8, 256), (3 * 32 * 32, 256), (3 * 64 * 64, 256), (3 * 224 * 224, 64), (3 * 299 * 299, 32), (10**9, 1)],
)
def test_large_images_come_in_smaller_batches(pixels, expected):
    """256 of CIFAR's size, 64 of ImageNet's, one where a single image is huge."""
    assert default_rows(pixels) == expected


def test_a_limit_is_halved_until_it_fits_and_stays_so():
    """It says so once, on whatever it runs out."""
    model, limit = Narrow(3), RowLimit(16)
    inputs = torch.zeros(20, 3, 2, 2)

    with pytest.warns(RuntimeWarning, match="no memory for 16 images at a time") as said:
        pieces = limit.map(model, inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        limit.map(model, inputs)

    assert len(said) == 1
    assert limit.rows == 2
    assert sum(map(len, pieces)) == 20
    assert model.given == [16, 8, 4, *[2] * 20]


def test_a_limit_that_was_never_reached_says_nothing():
    """And cuts nothing that it does not have to."""
    model, limit = Narrow(100), RowLimit(8)

    assert torch.equal(torch.cat(limit.map(model, torch.zeros(17, 3, 2, 2))), model(torch.zeros(17, 3, 2, 2)))
    assert (model.given[:3], limit.rows, limit.message) == ([8, 8, 1], 8, "")
    assert [len(piece) for piece in limit.map(model, torch.zeros(0, 3, 2, 2))] == [0]


def test_a_single_row_that_does_not_fit_is_an_error():
    """Nothing is left to halve."""
    with pytest.warns(RuntimeWarning), pytest.raises(torch.OutOfMemoryError):
        RowLimit(4).map(Narrow(0), torch.zeros(4, 3, 2, 2))


def test_other_errors_pass():
    """As they are."""

    def fail(_):
        raise RuntimeError("another")

    limit = RowLimit(4)
    with pytest.raises(RuntimeError, match="another"):
        limit.map(fail, torch.zeros(4))
    assert limit.rows == 4


def test_scores_are_the_same_in_batches_of_any_size():
    """However the rows come, and whatever fits."""
    whole = score_epoch(Narrow(100), [rows(23)])
    ids, images, labels = rows(23)
    cut = [(ids[at], images[at], labels[at]) for at in (slice(0, 1), slice(1, 14), slice(14, 23))]
    with pytest.warns(RuntimeWarning):
        halved = score_epoch(Narrow(5), cut, limit=RowLimit(16))

    assert whole["sample_id"].tolist() == halved["sample_id"].tolist() == list(range(23))
    for name, values in whole.items():
        assert values.dtype == halved[name].dtype
        np.testing.assert_allclose(values.astype(float), halved[name].astype(float), rtol=1e-5, atol=1e-6)


def test_equal_limits_give_equal_bits_however_rows_come():
    """Batches are cut anew: those of a share in memory and of a stream are the same."""
    ids, images, labels = rows(23)
    cut = [(ids[at], images[at], labels[at]) for at in (slice(0, 9), slice(9, 10), slice(10, 23))]
    model = Narrow(100)
    found = [score_epoch(model, batches, limit=RowLimit(4)) for batches in ([rows(23)], cut)]

    assert [piece for piece in model.given if piece > 4] == []
    for name, values in found[0].items():
        assert (values == found[1][name]).all(), name


@pytest.mark.parametrize("attack", [fgsm, pgd, pgd20])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_attacks_draw_the_same_however_many_rows_fit(attack, norm):
    """Starts are drawn for all rows first: the points differ by rounding only."""
    _, images, labels = rows(13)
    inputs = images.float() / 255

    def points(model, limit):
        return attack(model, inputs, labels, eps=0.1, norm=norm, generator=generator("test"), limit=limit)

    with pytest.warns(RuntimeWarning):
        halved = points(Narrow(2), RowLimit(8))
    torch.testing.assert_close(halved, points(Narrow(100), None))
    assert torch.equal(points(Narrow(100), RowLimit(13)), points(Narrow(100), None))


def test_validation_counts_the_same_however_many_rows_fit():
    """Clean and attacked; losses but for rounding."""
    with pytest.warns(RuntimeWarning):
        halved = validate(Narrow(3), [rows(20), rows(7, seed=1)], eps=0.05, steps=3, limit=RowLimit(16))

    whole = validate(Narrow(100), [rows(20), rows(7, seed=1)], eps=0.05, steps=3)
    assert replace(halved, losses=()) == replace(whole, losses=())
    assert halved.losses == pytest.approx(whole.losses, rel=1e-6)
    assert 0 < halved.num_robust <= halved.num_correct <= halved.num_rows == 27
