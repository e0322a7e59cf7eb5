"""Running statistics after a batch that was seen again are those after it was forwarded again."""

import copy

import pytest
import torch
from torch import nn

from easycore_ray.core.batchnorm_stats import running_statistics, see_again


class UsedTwice(nn.Module):
    """One batch norm for two stages of the network."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, inputs):
        return self.norm(2 * self.norm(inputs) + inputs)


NETWORKS = {
    "usual": lambda: nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)),
    "other momentum": lambda: nn.Sequential(nn.BatchNorm2d(3, momentum=0.7), nn.BatchNorm2d(3, momentum=0.01)),
    "average over all batches": lambda: nn.BatchNorm2d(3, momentum=None),
    "used twice": UsedTwice,
    "vectors": lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(75)),
    "none kept": lambda: nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.GroupNorm(1, 3)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_seen_again_is_forwarded_again(name):
    """Also with another batch in between, and after batches before: mean, variance and count, to rounding."""
    torch.manual_seed(0)
    shown = NETWORKS[name]()
    shown(torch.randn(4, 3, 5, 5))
    forwarded = copy.deepcopy(shown)
    clean, attacked = torch.randn(4, 3, 5, 5) + 1, 3 * torch.randn(4, 3, 5, 5)

    before = running_statistics(shown)
    shown(clean)
    after = running_statistics(shown)
    shown(attacked)
    see_again(before, after)
    for inputs in (clean, attacked, clean):
        forwarded(inputs)

    assert (len(before) == 0) == (name == "none kept")
    for mine, other in zip(shown.state_dict().values(), forwarded.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)


def test_frozen_layers_stay_as_they_are():
    """A layer in evaluation mode, as users freeze it, keeps its statistics, also an average over no batch yet."""
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=None), nn.BatchNorm2d(3))
    model[0].eval()
    inputs = torch.randn(4, 3, 5, 5)
    before = running_statistics(model)
    model(inputs)
    see_again(before, running_statistics(model))

    assert model[0].num_batches_tracked == 0
    assert torch.equal(model[0].running_mean, torch.zeros(3))
    assert model[1].num_batches_tracked == 2


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
def test_a_float64_model_is_seen_again_in_float64(momentum):
    """Everything is as exact as the buffers are: 1 - momentum is no number of float32."""
    torch.manual_seed(0)
    shown = nn.BatchNorm2d(3, momentum=momentum).double()
    clean, attacked = (torch.randn(4, 3, 5, 5, dtype=torch.float64) + shift for shift in (1, -2))
    shown(clean)
    forwarded = copy.deepcopy(shown)

    before = running_statistics(shown)
    shown(clean)
    after = running_statistics(shown)
    shown(attacked)
    see_again(before, after)
    for inputs in (clean, attacked, clean):
        forwarded(inputs)

    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(shown, name), getattr(forwarded, name), rtol=1e-14, atol=1e-14)
