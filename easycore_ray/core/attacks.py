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

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from easycore_ray.core.ascent import (
    Ascent,
    Iterates,
    climb,
    climb_until_fooled,
    cross_entropy_gradient,
    gradient_at,
    input_gradient,
    put,
    worse,
    worst_of,
)
from easycore_ray.core.batchnorm_folding import folded
from easycore_ray.core.eps import check_eps
from easycore_ray.core.losses import at_least_float32
from easycore_ray.core.memory import Result, RowLimit
from easycore_ray.core.threat import check_inputs, draw, random_point

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

    Goodfellow et al. 2015 (arXiv 1412.6572); for l2 the step goes along the gradient, not along its sign,
    for l1 it moves the pixels of the largest gradient as far as [0, 1] allows, see ``threat.sparse_step``.

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
        pieces = _in_pieces(limit, lambda *rows: cross_entropy_gradient(model, *rows)[0], inputs, labels)
    return Ascent(eps, norm, 1, eps).move(inputs, torch.cat(pieces), inputs)


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
        restarts: independent runs; the first is the one that a single run makes.
        until_fooled: leave a row at its first misclassified iterate and compute no further on it, in this run or a
            later one: the same rows are fooled, at a part of the cost where the model is weak.
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
    ascent = Ascent(eps, norm, steps, 2.5 * eps / steps if step_size is None else step_size)
    way: Callable[..., Iterator[Iterates]] = climb_until_fooled if until_fooled else climb

    def run(*rows: Tensor) -> Iterates:
        pieces = _in_pieces(limit, lambda *some: worst_of(way(model, *some, ascent)), *rows)
        return Iterates(*(torch.cat(column) for column in zip(*pieces, strict=True)))

    # Drawn for all rows, whichever of them stop early: a row's start does not depend on other rows.
    starts = (random_point(inputs, eps, norm, generator) if random_start else inputs for _ in range(restarts))
    with frozen_eval(model):
        return _worst_of_runs(run, inputs, starts, labels, until_fooled=until_fooled).adv_inputs


def _worst_of_runs(
    run: Callable[..., Iterates], inputs: Tensor, starts: Iterable[Tensor], labels: Tensor, *, until_fooled: bool
) -> Iterates:
    """The worst iterates of a run from each start; ``until_fooled``: of the runs up to the first that fools a row."""
    found: Iterates | None = None
    for start in starts:
        if found is None or not until_fooled:
            found = worse(found, run(inputs, start, labels))
        elif (left := ~found.wrong).any():
            held = Iterates(*(column[left] for column in found))
            put(found, left, worse(held, run(inputs[left], start[left], labels[left])))
    assert found is not None
    return found


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
    restarts: int = 1,
    limit: RowLimit | None = None,
) -> Tensor:
    """``pgd`` with 20 steps of eps / 8 from random starts, one if not more: behind ``robust_accuracy_pgd20``.

    Madry et al. 2018 (arXiv 1706.06083). Arguments, errors and result as in ``pgd``: inputs (B, …) float pixels in
    [0, 1], labels int64 (B,), eps in [0, 1] pixel units.
    """
    return pgd(
        model, inputs, labels, eps=eps, norm=norm, steps=20, generator=generator, restarts=restarts, until_fooled=True,
        limit=limit,
    )  # fmt: skip


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
    ascent = Ascent(eps, norm, steps, step_size)
    adv_inputs = inputs + TRADES_START_SCALE * noise.to(inputs)
    with _attacked(model, fold=fold):
        with torch.no_grad():
            clean = at_least_float32(model(inputs)).softmax(dim=1)
        for _ in range(steps):
            gradient, _ = input_gradient(model, adv_inputs, lambda logits: _kl_from(clean, logits), required=True)
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
    ascent = Ascent(eps, norm, steps, step_size)
    adv_inputs = random_point(inputs, eps, norm, generator) if start is None else start
    with _attacked(model, fold=fold):
        for _ in range(steps):
            gradient, _ = cross_entropy_gradient(model, adv_inputs, labels, required=True)
            adv_inputs = ascent.move(adv_inputs, gradient, inputs)
    return adv_inputs.detach()


ATTACKS: dict[str, Callable[..., Tensor]] = {"fgsm": fgsm, "pgd20": pgd20}
"""Attacks by name, all called as ``attack(model, inputs, labels, *, eps, norm, generator, limit)``."""


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


def _kl_from(probabilities: Tensor, logits: Tensor) -> Tensor:
    """KL(probabilities || softmax(logits)) of each row.

    In the operations of the official code, not by ``losses.kl_rows``: the first gradients are differences of
    nearly equal numbers, and another order of rounding flips the sign of some pixels.
    """
    log_q = F.log_softmax(at_least_float32(logits), dim=1)
    return F.kl_div(log_q, probabilities, reduction="none").sum(dim=1)
