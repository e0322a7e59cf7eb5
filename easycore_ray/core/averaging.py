"""Averaged weights: an exponential average over the steps of a training run.

The average of Izmailov et al. 2018 (arXiv 1803.05407) in its exponential form, as adversarial training uses it since
Gowal et al. 2020 (arXiv 2010.03593). Running statistics of batch norm are averaged like the weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class AveragedWeights:
    """The exponential average of a network's weights and buffers, updated after every step from a first one on.

    It begins with the weights after ``first_step`` steps. After t more, ``average ← d · average + (1 − d) · weights``
    with ``d = min(decay, (1 + t) / (10 + t))``: the weights it began with, which an average over 1 / (1 − decay) steps
    would still hold at the end of a short run, are forgotten sooner. What is no floating point number, such as a count
    of batches, is that of the network.

    Args:
        model: the bare module; its tensors are read in place and must stay where they are.
        decay: in (0, 1).
        first_step: steps that come before the average, those of the warm-up; at least 0.
    """

    def __init__(self, model: nn.Module, decay: float, first_step: int) -> None:
        tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        self._floating = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
        self._others = {name: tensor for name, tensor in tensors.items() if name not in self._floating}
        self._decay, self._first_step = decay, first_step
        self.tensors: dict[str, Tensor] = self._clones() if first_step == 0 else {}
        """The average, by the names of the network's state, in its shapes and dtypes; empty before ``first_step``."""

    def _clones(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in (self._floating | self._others).items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after ``step`` steps, the last of which has just been taken."""
        if step <= self._first_step:
            self.tensors = self._clones() if step == self._first_step else {}
            return
        since = step - self._first_step
        decay = min(self._decay, (1 + since) / (10 + since))
        averages = [self.tensors[name] for name in self._floating]
        torch._foreach_lerp_(averages, list(self._floating.values()), 1 - decay)
        for name, tensor in self._others.items():
            self.tensors[name].copy_(tensor)

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore an average: ``tensors`` of the network's names, shapes and dtypes, on any device."""
        model = self._floating | self._others
        self.tensors = {name: torch.empty_like(model[name]).copy_(tensor) for name, tensor in tensors.items()}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within this context the network has the averaged weights; afterwards its own, to the bit."""
        model = self._floating | self._others
        own = self._clones()
        self._fill(model, self.tensors)
        try:
            yield
        finally:
            self._fill(model, own)

    @staticmethod
    @torch.no_grad()
    def _fill(tensors: dict[str, Tensor], values: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            tensor.copy_(values[name])
