"""How far inputs are from the decision boundary: the smallest perturbation found that fools the model.

Takes a model, inputs in [0, 1] and a norm, and gives for each row a distance and the point at it. The method is the
fast minimum-norm attack (FMN, Pintor et al. 2021): descend the margin on a ball whose radius grows where the point is
still classified right and shrinks where it is not. Departures: a step is a share of the current radius instead of a
fixed length, so that nothing has to be tuned to the size of the images or the norm; there are two descents, whose
first steps go to the class with the next highest logit and to the one whose boundary seems nearest (as in DeepFool,
Moosavi-Dezfooli et al. 2016); and the best point is at last pulled straight towards its input as far as it stays
wrong. A distance is reported only with a point that proves it, so it is never below the true one. By how much
it exceeds the true one is unknown.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from easycore_ray.core.ascent import gradient_at
from easycore_ray.core.attacks import frozen_eval
from easycore_ray.core.eps import DENSE_NORMS, check_norm
from easycore_ray.core.losses import at_least_float32
from easycore_ray.core.threat import check_inputs, l2_norms, per_row, project

STEPS = 20
_GROWTH = (0.1, 0.001)  # share by which the radius changes: first and last step
_STRIDE = (1.0, 0.02)  # length of a step as a share of the radius: first and last step
_RIVALS = 9
_HALVINGS = 8  # a share 1 / 256 of the distance is left


class _Margin(NamedTuple):
    """The label's logit minus a rival's (B,), its gradient (like the points), and whether the row is wrong (B,)."""

    margin: Tensor
    gradient: Tensor
    wrong: Tensor


def boundary_distance(
    model: nn.Module, inputs: Tensor, labels: Tensor, *, norm: str = "linf", steps: int = STEPS
) -> tuple[Tensor, Tensor]:
    """Distance of each input to the nearest point found that the model gets wrong, and that point.

    An upper bound of the true distance. Costs 2 · steps forward and backward passes, and about ten more of either.
    Draws nothing at random; a row does not depend on its batch-mates but for rounding.

    Args:
        model: returns logits.
        inputs: (B, …) float pixels in [0, 1].
        labels: int64 (B,), the true ones.
        norm: one of ``eps.DENSE_NORMS``.
        steps: gradient steps of each of the two descents.

    Returns:
        float32 (B,), in [0, 1] pixel units: 0 where the input itself is classified wrong, inf where nothing was
        found; and the points, like ``inputs``, the inputs themselves where nothing was found.

    Raises:
        ValueError: inputs outside [0, 1], an unknown norm, or steps below 1.
    """
    check_norm(norm, DENSE_NORMS)
    check_inputs(inputs)
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    inputs = inputs.detach()
    if len(inputs) == 0:
        return torch.empty(0, device=inputs.device), inputs
    best, nearest = torch.full((len(inputs),), torch.inf, device=inputs.device), inputs
    with frozen_eval(model):
        for first in (_nearest_rival, _margin):
            found, points = _descend(model, inputs, labels, first, norm, steps)
            take = found < best
            best, nearest = torch.where(take, found, best), torch.where(per_row(take, points), points, nearest)
        return _pulled_back(model, inputs, labels, best, nearest, norm)


def distances(points: Tensor, inputs: Tensor, norm: str) -> Tensor:
    """Length of each row's perturbation in the norm: float32 (B,)."""
    offsets = (points - inputs).float()
    return offsets.flatten(1).abs().amax(dim=1) if norm == "linf" else l2_norms(offsets)


def _descend(
    model: nn.Module, inputs: Tensor, labels: Tensor, first: Callable[..., _Margin], norm: str, steps: int
) -> tuple[Tensor, Tensor]:
    """FMN from the inputs: the nearest wrong points passed through, and how far they are.

    ``first`` says where the first step goes; later ones go to the class with the next highest logit.
    """
    best, nearest = torch.full((len(inputs),), torch.inf, device=inputs.device), inputs
    points, radius = inputs, torch.zeros_like(best)
    for step in range(steps):
        done = step / max(steps - 1, 1)
        margin = (_margin if step else first)(model, points, labels, norm)
        best, nearest = _nearer(best, nearest, points, inputs, margin.wrong, norm)
        radius = _next_radius(radius, best, points, inputs, margin, norm, _between(_GROWTH, done))
        length = per_row(_between(_STRIDE, done) * radius, points)
        points = project(points - length * _direction(margin.gradient, norm), inputs, radius, norm)
    return _nearer(best, nearest, points, inputs, _is_wrong(model, points, labels), norm)


def _between(ends: tuple[float, float], done: float) -> float:
    """From the first value to the last along half a cosine."""
    return ends[1] + (ends[0] - ends[1]) * (1 + math.cos(math.pi * done)) / 2


def _margin(model: nn.Module, points: Tensor, labels: Tensor, norm: str) -> _Margin:  # noqa: ARG001
    """Against the class with the highest logit."""
    points = points.detach().requires_grad_()
    with torch.enable_grad():
        logits = at_least_float32(model(points))
        own, others = _apart(logits, labels)
        margin = own - others.amax(dim=1)
        gradient = _slopes_at(points, margin)
    return _Margin(margin.detach(), gradient, logits.detach().argmax(dim=1) != labels)


def _nearest_rival(model: nn.Module, points: Tensor, labels: Tensor, norm: str) -> _Margin:
    """Against the class whose boundary is nearest by the slope of the margin; of ``_RIVALS`` next highest logits."""
    points = points.detach().requires_grad_()
    with torch.enable_grad():
        logits = at_least_float32(model(points))
        own, others = _apart(logits, labels)
        rivals = others.topk(min(_RIVALS, logits.shape[1] - 1), dim=1).values
        margins = (own.unsqueeze(1) - rivals).unbind(dim=1)
        gradients = [_slopes_at(points, margin, retain_graph=True) for margin in margins]
    seen = torch.stack([m.detach() / _slope(g, norm) for m, g in zip(margins, gradients, strict=True)])
    chosen = seen.nan_to_num(nan=torch.inf).argmin(dim=0)
    rows = torch.arange(len(labels), device=labels.device)
    margin, gradient = torch.stack(margins).detach()[chosen, rows], torch.stack(gradients)[chosen, rows]
    return _Margin(margin, gradient, logits.detach().argmax(dim=1) != labels)


def _slopes_at(points: Tensor, margin: Tensor, *, retain_graph: bool = False) -> Tensor:
    """Gradient of each row's margin; zeros for a model whose logits carry none, which no descent will fool."""
    gradient = gradient_at(points, margin.sum(), retain_graph=retain_graph)
    return torch.zeros_like(points) if gradient is None else gradient


def _apart(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The label's logit (B,), and all others (B, num_classes) with −inf in its place."""
    column = labels.unsqueeze(1)
    return logits.gather(1, column).squeeze(1), logits.scatter(1, column, -torch.inf)


def _slope(gradient: Tensor, norm: str) -> Tensor:
    """By how much the margin changes along the steepest direction of length 1: the dual norm."""
    return gradient.float().flatten(1).abs().sum(dim=1) if norm == "linf" else l2_norms(gradient)


@torch.no_grad()
def _is_wrong(model: nn.Module, points: Tensor, labels: Tensor) -> Tensor:
    return model(points).argmax(dim=1) != labels


def _nearer(
    best: Tensor, nearest: Tensor, points: Tensor, inputs: Tensor, wrong: Tensor, norm: str
) -> tuple[Tensor, Tensor]:
    """The nearest wrong points so far, these included."""
    found = distances(points, inputs, norm)
    take = wrong & (found < best)
    return torch.where(take, found, best), torch.where(per_row(take, points), points, nearest)


def _next_radius(
    radius: Tensor, best: Tensor, points: Tensor, inputs: Tensor, margin: _Margin, norm: str, growth: float
) -> Tensor:
    """Where wrong: smaller, and below the best. Where right: larger, or as far as the boundary seems."""
    seen = distances(points, inputs, norm) + margin.margin / _slope(margin.gradient, norm)
    grown = torch.where(best.isinf(), torch.maximum(seen, radius), radius) * (1 + growth)
    shrunk = torch.minimum(radius * (1 - growth), best)
    largest = 1.0 if norm == "linf" else math.sqrt(inputs[0].numel())
    return torch.where(margin.wrong, shrunk, grown).nan_to_num(nan=largest).clamp(max=largest)


def _direction(gradient: Tensor, norm: str) -> Tensor:
    """The steepest direction of length 1 in the norm; 0 where there is no gradient."""
    if norm == "linf":
        return gradient.sign()
    norms = l2_norms(gradient)
    return gradient / per_row(torch.where(norms > 0, norms, 1.0), gradient)


def _pulled_back(
    model: nn.Module, inputs: Tensor, labels: Tensor, best: Tensor, nearest: Tensor, norm: str
) -> tuple[Tensor, Tensor]:
    """The best points moved straight towards their inputs for as long as they stay wrong, by halving."""
    low, high = torch.zeros_like(best), torch.ones_like(best)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        points = inputs + (nearest - inputs) * per_row(middle, inputs)
        wrong = _is_wrong(model, points, labels)
        low, high = torch.where(wrong, low, middle), torch.where(wrong, middle, high)
    points = inputs + (nearest - inputs) * per_row(high, inputs)
    # Checked once more at this very point: it may differ from the tested one by rounding.
    return _nearer(best, nearest, points, inputs, _is_wrong(model, points, labels), norm)
