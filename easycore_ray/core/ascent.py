"""Projected gradient ascent: gradients at points, steps inside the threat model, the worst points on the way.

Takes a model, points and labels; gives iterates and how they do. The parts of the attacks in ``core.attacks``, which
put the model into eval mode and check what they are given.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from easycore_ray.core.losses import cross_entropy_rows
from easycore_ray.core.threat import l2_norms, per_row, project, sparse_step

_SPARSE = 0.01  # share of the pixels that a step in l1 moves: the q = 99 % of SLIDE


class Ascent(NamedTuple):
    """Projected gradient ascent: radius and norm of the ball, number and length of the steps."""

    eps: float
    norm: str
    steps: int
    step_size: float

    def move(self, points: Tensor, gradient: Tensor, inputs: Tensor) -> Tensor:
        """The points one step up the gradient, projected onto the ball around ``inputs`` and [0, 1].

        All are (B, C, H, W). A step goes along the sign of the gradient for linf, along its direction for l2. For l1 it
        moves the pixels of the largest gradient, one in a hundred, as SLIDE does, or the fewest that can take a single
        step: see ``threat.sparse_step``.
        """
        if self.norm == "linf":
            points = points.add(gradient.sign(), alpha=self.step_size)
        elif self.norm == "l1":
            pixels = 1 if self.steps == 1 else max(1, round(_SPARSE * gradient[0].numel()))
            points = sparse_step(points, gradient, self.step_size, pixels)
        else:
            norms = l2_norms(gradient).to(gradient.dtype)
            points = points + self.step_size * gradient / per_row(torch.where(norms > 0, norms, 1.0), gradient)
        return project(points, inputs, self.eps, self.norm)


class Iterates(NamedTuple):
    """One point per row and how it does: loss (B,) and whether the model gets it wrong (B,)."""

    adv_inputs: Tensor
    loss: Tensor
    wrong: Tensor


def gradient_at(points: Tensor, total: Tensor, *, retain_graph: bool = False) -> Tensor | None:
    """Gradient of a sum, of shape (), at points (B, …); None where autograd finds no way from one to the other."""
    if not total.requires_grad:
        return None
    # grad, not backward: nothing may reach the parameters' .grad.
    return torch.autograd.grad(total, points, allow_unused=True, retain_graph=retain_graph)[0]


def input_gradient(
    model: nn.Module, points: Tensor, loss_rows: Callable[[Tensor], Tensor], *, required: bool
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Gradient of the summed loss at ``points`` (B, …), and (logits (B, K), loss (B,)) there, all detached.

    Without a gradient that is ``required``, to train with, a ValueError; otherwise zeros.
    """
    points = points.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(points)
        loss = loss_rows(logits)
        gradient = gradient_at(points, loss.sum())
    if gradient is None and required:
        raise ValueError(
            "the model's logits carry no gradient to its pixels in evaluation mode (detached, or classes instead of "
            "logits?), so it cannot be trained against an attack"
        )
    return torch.zeros_like(points) if gradient is None else gradient, (logits.detach(), loss.detach())


def cross_entropy_gradient(
    model: nn.Module, points: Tensor, labels: Tensor, *, required: bool = False
) -> tuple[Tensor, Iterates]:
    """Gradient of the summed cross-entropy at ``points`` (B, …) of ``labels`` int64 (B,), and how those points do."""
    loss_rows = lambda out: cross_entropy_rows(out, labels)  # noqa: E731
    gradient, (logits, loss) = input_gradient(model, points, loss_rows, required=required)
    return gradient, Iterates(points.detach(), loss, logits.argmax(dim=1) != labels)


@torch.no_grad()
def _last_iterates(model: nn.Module, points: Tensor, labels: Tensor) -> Iterates:
    """How the points do that no further step starts from: a forward pass without a gradient."""
    logits = model(points)
    return Iterates(points, cross_entropy_rows(logits, labels), logits.argmax(dim=1) != labels)


def climb(model: nn.Module, inputs: Tensor, start: Tensor, labels: Tensor, ascent: Ascent) -> Iterator[Iterates]:
    """All iterates of one run, the start first; inputs and start (B, …), labels int64 (B,)."""
    points = start
    for _ in range(ascent.steps):
        gradient, iterates = cross_entropy_gradient(model, points, labels)
        yield iterates
        points = ascent.move(points, gradient, inputs)
    yield _last_iterates(model, points, labels)


def climb_until_fooled(
    model: nn.Module, inputs: Tensor, start: Tensor, labels: Tensor, ascent: Ascent
) -> Iterator[Iterates]:
    """The worst iterates of one run in which rows stop where they are first misclassified.

    As ``climb``: inputs and start (B, …), labels int64 (B,).
    """
    found: Iterates | None = None
    active, points = torch.arange(len(labels), device=inputs.device), start
    for step in range(ascent.steps + 1):
        if step < ascent.steps:
            gradient, iterates = cross_entropy_gradient(model, points, labels[active])
        else:
            iterates = _last_iterates(model, points, labels[active])
        if found is None:
            found = Iterates(*(column.clone() for column in iterates))
        else:
            put(found, active, worse(Iterates(*(column[active] for column in found)), iterates))
        left = ~iterates.wrong
        active, points = active[left], points[left]
        if step == ascent.steps or len(active) == 0:
            break
        points = ascent.move(points, gradient[left], inputs[active])
    assert found is not None
    yield found


def put(found: Iterates, rows: Tensor, values: Iterates) -> None:
    """Write values at some rows, numbered, int64 (n,), or marked, bool (B,), in place."""
    for column, value in zip(found, values, strict=True):
        column[rows] = value


def worst_of(iterates: Iterable[Iterates]) -> Iterates:
    """Per row the worst of all."""
    worst: Iterates | None = None
    for one in iterates:
        worst = worse(worst, one)
    assert worst is not None
    return worst


def worse(worst: Iterates | None, new: Iterates) -> Iterates:
    """Per row the worse of the two for the defender: wrong before right, then the higher loss."""
    if worst is None:
        return new
    take = torch.where(new.wrong == worst.wrong, new.loss > worst.loss, new.wrong)
    return Iterates(
        torch.where(per_row(take, new.adv_inputs), new.adv_inputs, worst.adv_inputs),
        torch.where(take, new.loss, worst.loss),
        worst.wrong | new.wrong,
    )
