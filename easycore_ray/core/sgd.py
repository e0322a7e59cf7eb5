"""Stochastic gradient descent with momentum: the steps of ``torch.optim.SGD``, bit for bit, without its imports.

The first optimizer of ``torch.optim`` in a process imports torch's compiler, SymPy and Triton (torch 2.14: 870 modules,
1.5 s on a core, 100 MB), in every training worker and every trial of a sweep. Its steps themselves need none of them.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd


class SGD:
    """SGD over parameters of any shapes; see ``torch.optim.SGD`` for what it computes.

    Args:
        parameters: to move; those without a gradient stay.
        momentum: in [0, 1).
        nesterov: Nesterov's momentum; needs a positive one.
        weight_decay: L2 penalty, at least 0.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, momentum: float, nesterov: bool, weight_decay: float
    ) -> None:
        self.parameters = list(parameters)
        self.momentum_buffers: dict[nn.Parameter, Tensor] = {}
        """Of parameters that have been moved, in their shape and dtype; none without momentum."""
        self._momentum, self._nesterov, self._weight_decay = momentum, nesterov, weight_decay

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move the parameters by their gradients.

        Args:
            rate: the learning rate.
        """
        moved = [parameter for parameter in self.parameters if parameter.grad is not None]
        gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
        buffers = [self.momentum_buffers.get(parameter) for parameter in moved]
        sgd(
            list(moved),
            gradients,
            buffers,
            foreach=True,
            lr=rate,
            momentum=self._momentum,
            nesterov=self._nesterov,
            weight_decay=self._weight_decay,
            dampening=0.0,
            maximize=False,
        )
        made = zip(moved, buffers, strict=True)
        self.momentum_buffers.update((parameter, buffer) for parameter, buffer in made if buffer is not None)
