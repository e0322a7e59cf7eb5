"""Batch norm folded into the convolution before it, for as long as the weights do not change.

Takes a model in eval mode and, inside a block, runs it without the batch norms that it can do without: in eval mode
such a layer is a fixed scale and shift per channel, which a convolution can do at no cost. Only pairs that stand side
by side in an ``nn.Sequential`` are folded, because there the order of the data is certain without tracing the model;
a network without such pairs runs as it is. All built-in networks for small images have them.

Exact up to rounding. The attack of a training step runs the same weights eleven times and gains most.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.utils import fuse_conv_bn_eval

from easycore_ray.core.onednn_workaround import SubsampledConv2d


@contextmanager
def folded(model: nn.Module) -> Iterator[None]:
    """Inside the block folded copies stand in for convolutions and their batch norms; weights are not touched.

    Args:
        model: in eval mode; must not be changed inside the block.
    """
    swapped: list[tuple[nn.Sequential, str, nn.Module]] = []
    try:
        for sequence, (first, convolution), (second, norm) in _pairs(model):
            swapped += [(sequence, first, convolution), (sequence, second, norm)]
            sequence._modules[first] = fuse_conv_bn_eval(convolution, norm)
            sequence._modules[second] = nn.Identity()
        yield
    finally:
        for sequence, name, module in swapped:
            sequence._modules[name] = module


def _pairs(model: nn.Module) -> list[tuple[nn.Sequential, tuple[str, nn.Conv2d], tuple[str, nn.BatchNorm2d]]]:
    """Every convolution with the batch norm behind it, by their sequence and names in it."""
    uses: dict[nn.Module, int] = {}
    for _, module in model.named_modules(remove_duplicate=False):
        uses[module] = uses.get(module, 0) + 1
    found = []
    for sequence in model.modules():
        if type(sequence) is not nn.Sequential:  # a subclass may call its layers in another order
            continue
        layers = list(sequence._modules.items())
        for (first, convolution), (second, norm) in itertools.pairwise(layers):
            if not isinstance(convolution, nn.Conv2d) or type(norm) is not nn.BatchNorm2d:
                continue
            if type(convolution) not in (nn.Conv2d, SubsampledConv2d):  # a subclass may compute something else
                continue
            alone = uses[convolution] == uses[norm] == 1  # a layer used twice is needed as it is
            if alone and norm.track_running_stats and not _watched(convolution) and not _watched(norm):
                found.append((sequence, (first, convolution), (second, norm)))
    return found


def _watched(module: nn.Module) -> bool:
    """Whether hooks wait for this layer's values."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
