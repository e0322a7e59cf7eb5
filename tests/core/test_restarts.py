"""Several random starts of PGD: the first run as it was, later ones for what withstood it; each of them counts."""

import pytest
import torch
from torch import nn

from easycore_ray.core.attacks import frozen_eval, pgd
from easycore_ray.core.eps import NORMS
from easycore_ray.core.losses import cross_entropy_rows
from easycore_ray.core.threat import random_point

EPS = {"linf": 8 / 255, "l2": 0.5, "l1": 3.0}


def draws(seed=0):
    """A fresh stream."""
    return torch.Generator().manual_seed(seed)


def outcome(model, adv_inputs, labels):
    """Per row: whether the model is wrong, and its loss."""
    with frozen_eval(model), torch.no_grad():
        logits = model(adv_inputs)
    return logits.argmax(1) != labels, cross_entropy_rows(logits, labels)


@pytest.mark.parametrize("norm", NORMS)
def test_restarts_go_on_with_the_rows_that_withstood(model, inputs, labels, norm):
    """The first run is that of one restart; whoever fell is computed no further, whoever stands is tried again."""
    labels = outcome(model, inputs, labels)[0].long()
    options = {"eps": EPS[norm], "norm": norm, "steps": 2, "step_size": EPS[norm] / 4, "until_fooled": True}
    once = pgd(model, inputs, labels, generator=draws(3), **options)
    rows = []
    model.register_forward_hook(lambda _, given, __: rows.append(len(given[0])))
    thrice = pgd(model, inputs, labels, generator=draws(3), restarts=3, **options)
    fell, fell_later = outcome(model, once, labels)[0], outcome(model, thrice, labels)[0]

    assert 0 < fell.sum() < len(labels), "or there is nothing to skip"
    assert torch.equal(thrice[fell], once[fell])
    assert (fell_later >= fell).all()
    assert max(rows[-8:-2]) <= (~fell).sum(), "the later runs, before the two passes that judge"


def test_every_restart_counts():
    """A model that is wrong in a corner of the ball alone is fooled by the start that lies there."""

    class Corner(nn.Module):
        """Right unless the only pixel is above 0.58, with a gradient of zero everywhere."""

        def forward(self, inputs):
            above = (inputs.flatten(1)[:, 0] > 0.58).float()
            return torch.stack([1 - above, above], dim=1) + 0 * inputs.flatten(1)

    point, label = torch.full((1, 1, 1, 1), 0.5), torch.tensor([0])
    options = {"eps": 0.1, "steps": 1, "until_fooled": True}
    starts = torch.cat([random_point(point, 0.1, "linf", stream) for stream in [draws(1)] for _ in range(20)])
    first = int((starts.flatten() > 0.58).nonzero()[0])
    tried = [pgd(Corner(), point, label, generator=draws(1), restarts=count, **options) for count in (first, first + 1)]

    assert first > 0
    assert [bool(outcome(Corner(), points, label)[0]) for points in tried] == [False, True]
