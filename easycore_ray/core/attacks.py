"""Adversarial inputs: FGSM and PGD for evaluation, the attacks of TRADES and PGD-AT for training.

Takes a model, inputs in [0, 1] and a threat model, and gives inputs of the same shape inside it. An attack leaves no
trace. It runs in eval mode, differentiates with respect to the input only, and gives back every weight, gradient,
buffer and mode as it was, also when it fails. Pass the bare module, not its DDP wrapper. The attacks of training may
fold batch norm into the convolutions (``fold``) and skip the check of their inputs (``check``), which makes a GPU
wait.

The caller may wrap an attack in ``torch.autocast``; losses are float32 all the same. Prefer bfloat16 to
float16, in which the gradient of a confident sample becomes 0 and the attack stands still.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from easycore_ray.core.batchnorm_folding import folded
from easycore_ray.core.eps import check_eps
from easycore_ray.core.losses import at_least_float32, cross_entropy_rows
from easycore_ray.core.memory import Result, RowLimit
from easycore_ray.core.threat import check_inputs, draw, l2_norms, per_row, project, random_point

TRADES_START_SCALE = 1e-3  # standard deviation of the start noise in the official code


@contextmanager
def frozen_eval(model: nn.Module) -> Iterator[None]:
    """Inside the block every submodule is in eval mode; afterwards each is in the mode it was in.

    A blanket ``model.train()`` would also wake the layers that the caller had frozen on purpose.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _attacked(model: nn.Module, *, fold: bool) -> Iterator[None]:
    """``frozen_eval`` for a training attack, in which the weights are constants.

    Nothing would be computed for them in eager mode either, but a compiled backward pass has no parts to leave out.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with frozen_eval(model), folded(model) if fold else nullcontext():
        for parameter in trained:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)


def fgsm(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    generator: torch.Generator | None = None,  # noqa: ARG001  (every attack has the same signature)
    limit: RowLimit | None = None,
) -> Tensor:
    """Inputs moved by one step of length eps up the cross-entropy.

    Goodfellow et al. 2015 (arXiv 1412.6572); for l2 the step goes along the gradient, not along its sign.

    Args:
        model: returns logits.
        inputs: (B, …) float pixels in [0, 1].
        labels: int64 (B,), the true ones.
        eps: radius in [0, 1] pixel units; 0 gives ``inputs``.
        norm: one of ``threat.NORMS``.
        generator: not used.
        limit: rows that go through the model at once; all without one.

    Returns:
        Like ``inputs``, detached.

    Raises:
        ValueError: inputs outside [0, 1] or an impossible eps.
    """
    _check(inputs, eps, norm)
    if eps == 0:
        return inputs
    with frozen_eval(model):
        pieces = _in_pieces(limit, lambda *rows: _cross_entropy_gradient(model, *rows)[0], inputs, labels)
    return _Ascent(eps, norm, 1, eps).move(inputs, torch.cat(pieces), inputs)


def pgd(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    steps: int = 20,
    step_size: float | None = None,
    generator: torch.Generator | None = None,
    random_start: bool = True,
    restarts: int = 1,
    until_fooled: bool = False,
    limit: RowLimit | None = None,
) -> Tensor:
    """The worst points that projected gradient ascent on the cross-entropy passes through, one per row.

    Worst is misclassified rather than not, then the highest loss, over all iterates of all restarts, the
    start included: more steps of the same size, or more restarts, never help the defender. Costs steps + 1
    forward and steps backward passes per restart. Madry et al. 2018 (arXiv 1706.06083); the
    official code keeps the last iterate instead.

    Args:
        model: returns logits.
        inputs: (B, …) float pixels in [0, 1].
        labels: int64 (B,), the true ones.
        eps: radius in [0, 1] pixel units; 0 gives ``inputs``.
        norm: one of ``threat.NORMS``.
        steps: gradient steps per restart.
        step_size: length of one step in the norm; 2.5 · eps / steps if not given.
        generator: for the random starts; torch's global generator if not given.
        random_start: start at a random point of the ball, not at the input.
        restarts: independent runs.
        until_fooled: leave a row at its first misclassified iterate and compute no further on it: the same
            rows are fooled, at a part of the cost where the model is weak.
        limit: rows that go through the model at once; all without one.

    Returns:
        Like ``inputs``, detached.

    Raises:
        ValueError: inputs outside [0, 1], an impossible eps, steps or restarts below 1, or restarts that
            would all start at the same point.
    """
    _check(inputs, eps, norm)
    _check_runs(steps, restarts, random_start)
    if eps == 0:
        return inputs
    ascent = _Ascent(eps, norm, steps, 2.5 * eps / steps if step_size is None else step_size)
    climb: Callable[..., Iterator[_Iterates]] = _climb_until_fooled if until_fooled else _climb
    runs = []
    with frozen_eval(model):
        for _ in range(restarts):
            # Drawn for all rows, whichever of them stop early: a row's start does not depend on other rows.
            start = random_point(inputs, eps, norm, generator) if random_start else inputs
            pieces = _in_pieces(limit, lambda *rows: _worst_of(climb(model, *rows, ascent)), inputs, start, labels)
            runs.append(_Iterates(*(torch.cat(column) for column in zip(*pieces, strict=True))))
    return _worst_of(runs).adv_inputs


def _check_runs(steps: int, restarts: int, random_start: bool) -> None:
    if steps < 1 or restarts < 1:
        raise ValueError(f"steps and restarts must be at least 1, got {steps} and {restarts}")
    if restarts > 1 and not random_start:
        raise ValueError(f"{restarts} restarts from the same point are one; set random_start or restarts=1")


def _in_pieces(limit: RowLimit | None, function: Callable[..., Result], *columns: Tensor) -> list[Result]:
    """The function of all rows, as many at a time as the limit allows."""
    return [function(*columns)] if limit is None else limit.map(function, *columns)


def pgd20(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    generator: torch.Generator | None = None,
    limit: RowLimit | None = None,
) -> Tensor:
    """``pgd`` with 20 steps of eps / 8 from one random start: the attack behind ``robust_accuracy_pgd20``.

    Madry et al. 2018 (arXiv 1706.06083). Arguments, errors and result as in ``pgd``: inputs (B, …) float pixels in
    [0, 1], labels int64 (B,), eps in [0, 1] pixel units.
    """
    return pgd(model, inputs, labels, eps=eps, norm=norm, steps=20, generator=generator, until_fooled=True, limit=limit)


def trades_attack(
    model: nn.Module,
    inputs: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    steps: int = 10,
    step_size: float,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    fold: bool = False,
    check: bool = True,
) -> Tensor:
    """Inputs moved up KL(clean prediction || prediction), as official TRADES does before each update.

    Starts at 0.001 · N(0, 1) from the input and takes ``steps`` sign steps (l2: unit-gradient steps, a row
    without gradient stays), each projected; gives the last iterate. The clean prediction is computed once,
    where the official trades.py (Zhang et al. 2019, arXiv 1901.08573) computes the same numbers again in every step.

    Args:
        model: returns logits.
        inputs: (B, …) float pixels in [0, 1].
        eps: radius in [0, 1] pixel units; 0 gives ``inputs``.
        norm: one of ``threat.NORMS``.
        steps: gradient steps.
        step_size: length of one step in the norm; the authors use 0.007 for linf eps 0.031, 2 · eps / steps
            for l2.
        generator: for the start; torch's global generator if not given.
        noise: the N(0, 1) draws of the start, like ``inputs``, instead of fresh ones.
        fold: fold batch norm into the convolutions before it, see ``folding``: faster, the same up to rounding.
        check: refuse inputs outside [0, 1], for which a GPU must be waited for.

    Returns:
        Like ``inputs``, detached.

    Raises:
        ValueError: inputs outside [0, 1] or an impossible eps.
    """
    _check(inputs, eps, norm, values=check)
    if eps == 0:
        return inputs
    if noise is None:
        noise = draw(torch.randn, inputs.shape, inputs.device, generator)
    ascent = _Ascent(eps, norm, steps, step_size)
    adv_inputs = inputs + TRADES_START_SCALE * noise.to(inputs)
    with _attacked(model, fold=fold):
        with torch.no_grad():
            clean = at_least_float32(model(inputs)).softmax(dim=1)
        for _ in range(steps):
            gradient, _ = _input_gradient(model, adv_inputs, lambda logits: _kl_from(clean, logits), required=True)
            adv_inputs = ascent.move(adv_inputs, gradient, inputs)
    return adv_inputs.clamp(0.0, 1.0)  # the start is not clamped, and without steps it is what is left


def pgd_training_attack(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    steps: int = 10,
    step_size: float,
    generator: torch.Generator | None = None,
    start: Tensor | None = None,
    fold: bool = False,
    check: bool = True,
) -> Tensor:
    """The last iterate of projected gradient ascent on the cross-entropy, as adversarial training takes it.

    Madry et al. 2018 in the form of Bag of Tricks for AT (Pang et al. 2021): starts at a uniform point of the
    ball, takes ``steps`` sign steps (l2: unit-gradient steps, a row without gradient stays), each projected, in
    eval mode (their BNeval). Unlike ``pgd`` it keeps the last iterate, not the worst, and needs no forward pass
    after the last step.

    Args:
        model: returns logits.
        inputs: (B, …) float pixels in [0, 1].
        labels: int64 (B,), the true ones.
        eps: radius in [0, 1] pixel units; 0 gives ``inputs``.
        norm: one of ``threat.NORMS``.
        steps: gradient steps.
        step_size: length of one step in the norm; the authors use 2/255 for linf eps 8/255.
        generator: for the start; torch's global generator if not given.
        start: points to start from, like ``inputs`` and inside the threat model, instead of a draw.
        fold: fold batch norm into the convolutions before it, see ``folding``: faster, the same up to rounding.
        check: refuse inputs outside [0, 1], for which a GPU must be waited for.

    Returns:
        Like ``inputs``, detached.

    Raises:
        ValueError: inputs outside [0, 1] or an impossible eps.
    """
    _check(inputs, eps, norm, values=check)
    if eps == 0:
        return inputs
    ascent = _Ascent(eps, norm, steps, step_size)
    adv_inputs = random_point(inputs, eps, norm, generator) if start is None else start
    with _attacked(model, fold=fold):
        for _ in range(steps):
            gradient, _ = _cross_entropy_gradient(model, adv_inputs, labels, required=True)
            adv_inputs = ascent.move(adv_inputs, gradient, inputs)
    return adv_inputs.detach()


def mart_attack(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: str = "linf",
    steps: int = 10,
    step_size: float,
    noise: Tensor,
    fold: bool = False,
    check: bool = True,
) -> Tensor:
    """``pgd_training_attack`` from 0.001 · ``noise`` beside the input, as official MART does before each update.

    Wang et al. 2020, mart.py. Arguments, errors and result as there; ``noise`` holds N(0, 1) draws like ``inputs``.
    """
    start = inputs + TRADES_START_SCALE * noise.to(inputs)
    adv_inputs = pgd_training_attack(
        model, inputs, labels, eps=eps, norm=norm, steps=steps, step_size=step_size, start=start, fold=fold, check=check
    )
    return adv_inputs.clamp(0.0, 1.0)


ATTACKS: dict[str, Callable[..., Tensor]] = {"fgsm": fgsm, "pgd20": pgd20}
"""Attacks by name, all called as ``attack(model, inputs, labels, *, eps, norm, generator, limit)``."""


class _Ascent(NamedTuple):
    """Projected gradient ascent: radius and norm of the ball, number and length of the steps."""

    eps: float
    norm: str
    steps: int
    step_size: float

    def move(self, points: Tensor, gradient: Tensor, inputs: Tensor) -> Tensor:
        """The points one step up the gradient, projected onto the ball around ``inputs`` and [0, 1].

        All are (B, C, H, W). A step goes along the sign of the gradient for linf, along its direction for l2.
        """
        if self.norm == "linf":
            points = points.add(gradient.sign(), alpha=self.step_size)
        else:
            norms = l2_norms(gradient).to(gradient.dtype)
            points = points + self.step_size * gradient / per_row(torch.where(norms > 0, norms, 1.0), gradient)
        return project(points, inputs, self.eps, self.norm)


class _Iterates(NamedTuple):
    """One point per row and how it does: loss (B,) and whether the model gets it wrong (B,)."""

    adv_inputs: Tensor
    loss: Tensor
    wrong: Tensor


def _check(inputs: Tensor, eps: float, norm: str, *, values: bool = True) -> None:
    """Refuses what cannot be attacked; without ``values`` those of the inputs are trusted."""
    check_eps(eps, norm)
    if values:
        check_inputs(inputs)


def carries_gradient(model: nn.Module, inputs: Tensor) -> bool:
    """Whether the logits depend on the inputs in a way that can be differentiated, in eval mode.

    False for a model that detaches its inputs or gives classes instead of logits; a gradient may still be zero.

    Args:
        model: returns logits.
        inputs: (B, …) float pixels in [0, 1]; one is enough.
    """
    points = inputs.detach().requires_grad_()
    with frozen_eval(model), torch.enable_grad():
        return gradient_at(points, model(points).sum()) is not None


def gradient_at(points: Tensor, total: Tensor, *, retain_graph: bool = False) -> Tensor | None:
    """Gradient of a sum, of shape (), at points (B, …); None where autograd finds no way from one to the other."""
    if not total.requires_grad:
        return None
    # grad, not backward: nothing may reach the parameters' .grad.
    return torch.autograd.grad(total, points, allow_unused=True, retain_graph=retain_graph)[0]


def _input_gradient(
    model: nn.Module, points: Tensor, loss_rows: Callable[[Tensor], Tensor], *, required: bool
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Gradient of the summed loss at ``points``, and (logits, loss rows) there, all detached.

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


def _kl_from(probabilities: Tensor, logits: Tensor) -> Tensor:
    """KL(probabilities || softmax(logits)) of each row.

    In the operations of the official code, not by ``losses.kl_rows``: the first gradients are differences of
    nearly equal numbers, and another order of rounding flips the sign of some pixels.
    """
    log_q = F.log_softmax(at_least_float32(logits), dim=1)
    return F.kl_div(log_q, probabilities, reduction="none").sum(dim=1)


def _cross_entropy_gradient(
    model: nn.Module, points: Tensor, labels: Tensor, *, required: bool = False
) -> tuple[Tensor, "_Iterates"]:
    """Gradient of the summed cross-entropy at ``points``, and how those points do."""
    loss_rows = lambda out: cross_entropy_rows(out, labels)  # noqa: E731
    gradient, (logits, loss) = _input_gradient(model, points, loss_rows, required=required)
    return gradient, _Iterates(points.detach(), loss, logits.argmax(dim=1) != labels)


@torch.no_grad()
def _last_iterates(model: nn.Module, points: Tensor, labels: Tensor) -> "_Iterates":
    """How the points do that no further step starts from: a forward pass without a gradient."""
    logits = model(points)
    return _Iterates(points, cross_entropy_rows(logits, labels), logits.argmax(dim=1) != labels)


def _climb(model: nn.Module, inputs: Tensor, start: Tensor, labels: Tensor, ascent: "_Ascent") -> Iterator["_Iterates"]:
    """All iterates of one run, the start first."""
    points = start
    for _ in range(ascent.steps):
        gradient, iterates = _cross_entropy_gradient(model, points, labels)
        yield iterates
        points = ascent.move(points, gradient, inputs)
    yield _last_iterates(model, points, labels)


def _climb_until_fooled(
    model: nn.Module, inputs: Tensor, start: Tensor, labels: Tensor, ascent: "_Ascent"
) -> Iterator["_Iterates"]:
    """The worst iterates of one run in which rows stop where they are first misclassified."""
    found: _Iterates | None = None
    active, points = torch.arange(len(labels), device=inputs.device), start
    for step in range(ascent.steps + 1):
        if step < ascent.steps:
            gradient, iterates = _cross_entropy_gradient(model, points, labels[active])
        else:
            iterates = _last_iterates(model, points, labels[active])
        if found is None:
            found = _Iterates(*(column.clone() for column in iterates))
        else:
            held = _Iterates(*(column[active] for column in found))
            for column, value in zip(found, _worse(held, iterates), strict=True):
                column[active] = value
        left = ~iterates.wrong
        active, points = active[left], points[left]
        if step == ascent.steps or len(active) == 0:
            break
        points = ascent.move(points, gradient[left], inputs[active])
    assert found is not None
    yield found


def _worst_of(iterates: Iterable["_Iterates"]) -> "_Iterates":
    """Per row the worst of all."""
    worst: _Iterates | None = None
    for one in iterates:
        worst = _worse(worst, one)
    assert worst is not None
    return worst


def _worse(worst: "_Iterates | None", new: "_Iterates") -> "_Iterates":
    """Per row the worse of the two for the defender: wrong before right, then the higher loss."""
    if worst is None:
        return new
    take = torch.where(new.wrong == worst.wrong, new.loss > worst.loss, new.wrong)
    return _Iterates(
        torch.where(per_row(take, new.adv_inputs), new.adv_inputs, worst.adv_inputs),
        torch.where(take, new.loss, worst.loss),
        worst.wrong | new.wrong,
    )
