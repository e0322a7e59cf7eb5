"""Adversarial weight perturbation: train at the worst weights nearby.

Wu et al. 2020 (arXiv 2004.05884) and their code: before each update every weight tensor w moves by
``gamma · ‖w‖ · g / ‖g‖``, where g is the gradient of the training loss on the attacked batch; the loss is taken there,
and the update made from where the weights were. Biases and the scales of batch norm stay.

Two differences to their code, both of the order of rounding: weights are put back before the update, so that weight
decay shrinks the weights themselves (there, the perturbed ones); and they are put back to the bit. With several workers
each perturbs by its own part of the batch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from easycore_ray.core.batchnorm_stats import running_statistics

# Keeps a direction finite where the gradient is 0; as in the authors' code.
_TINY = 1e-20


@contextmanager
def perturbed_weights(model: nn.Module, gamma: float, loss: Callable[[], Tensor]) -> Iterator[None]:
    """Within this context every weight is moved up the loss; afterwards it is what it was, to the bit.

    Args:
        model: the network, in training mode; its running statistics do not see the pass that finds the direction.
        gamma: length of the move relative to each tensor's own, above 0; 0: the weights stay, at no cost.
        loss: the training loss at the current weights, a sum over the batch of shape ().
    """
    if not gamma:
        yield
        return
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.dim() > 1]
    before = running_statistics(model)
    gradients = torch.autograd.grad(loss(), weights, allow_unused=True)
    with torch.no_grad():
        for _, buffers, copies in before:
            for buffer, copy in zip(buffers, copies, strict=True):
                buffer.copy_(copy)
        moved = [(weight, grad) for weight, grad in zip(weights, gradients, strict=True) if grad is not None]
        kept = [weight.clone() for weight, _ in moved]
        for weight, gradient in moved:
            weight.add_(gradient * (gamma * weight.norm() / (gradient.norm() + _TINY)))
    try:
        yield
    finally:
        with torch.no_grad():
            for (weight, _), value in zip(moved, kept, strict=True):
                weight.copy_(value)
