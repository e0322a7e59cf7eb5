"""Running statistics of batch norm, as if a batch had been forwarded once more.

Takes a model in training mode, and shows its batch norm layers a batch again without forwarding it. What such a layer
adds to its running mean and variance depends on the batch and the weights alone, so the difference that the first
forward pass made says what a second one would add. Official TRADES forwards its clean batch twice in every step; the
second pass changes nothing but these statistics.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Running(NamedTuple):
    """A layer's buffers and a copy of them: mean and variance, each (channels,), and the number of batches so far."""

    momentum: float | None
    buffers: tuple[Tensor, Tensor, Tensor]
    copies: tuple[Tensor, Tensor, Tensor]


def running_statistics(model: nn.Module) -> list[Running]:
    """What every layer keeps that a forward pass would update now; frozen layers are left out."""
    found = []
    for layer in model.modules():
        if not isinstance(layer, nn.modules.batchnorm._BatchNorm) or not layer.training:
            continue
        mean, variance, count = layer.running_mean, layer.running_var, layer.num_batches_tracked
        if mean is not None and variance is not None and count is not None:
            copies = mean.clone(), variance.clone(), count.clone()
            found.append(Running(layer.momentum, (mean, variance, count), copies))
    return found


@torch.no_grad()
def see_again(before: list[Running], after: list[Running]) -> None:
    """Update the layers as a second forward pass of a batch would.

    Every pass maps running statistics r to (1 - m) · r + m · b, with b those of the batch; so
    after = (1 - m) · before + m · b gives m · b without another pass. It holds for any number of uses of one layer
    in a pass, and for plain averages over all batches (``momentum=None``) with counts in place of 1 - m.

    Args:
        before: ``running_statistics`` just before the first pass of the batch.
        after: the same just after it. Passes of other batches may have followed.
    """
    for (momentum, buffers, old), (_, _, new) in zip(before, after, strict=True):
        count, uses = buffers[2], new[2] - old[2]
        for buffer, was, became in zip(buffers[:2], old[:2], new[:2], strict=True):
            # .data, as the forward pass itself updates them: autograd must not take them for values that the
            # backward pass needs unchanged. In training mode it does not read them.
            value = buffer.data
            if momentum is None:
                value.mul_(count).add_(became * new[2] - was * old[2]).div_(count + uses)
            else:
                # In the buffer's own type: a Python number to the power of an integer tensor is a float32.
                kept = torch.full_like(count, 1.0 - momentum, dtype=value.dtype) ** uses
                value.mul_(kept).add_(became - kept * was)
        count += uses
