"""AutoAttack (Croce and Hein 2020), standard version, through the optional package ``pyautoattack``.

Takes a model and pixels in [0, 1] as the attacks of ``core`` do, and gives adversarial inputs and what the
library warns of. All four attacks run (APGD-CE, APGD-T, FAB-T, Square). The targeted ones take at most K - 1
targets; the library always takes 9 (APGD-T in l1: 5) and fails on fewer than 10 classes. Resuming is left to the
caller: the library cannot read back the state file it writes.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from easycore_ray.core.attacks import frozen_eval
from easycore_ray.core.eps import check_eps
from easycore_ray.core.losses import at_least_float32
from easycore_ray.core.memory import RowLimit
from easycore_ray.core.seeding import seeded
from easycore_ray.core.threat import check_inputs, project
from easycore_ray.evaluation.threats import check_autoattack

_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}

# How the library's warnings begin or differ, and how we word them; theirs name a file no user has.
_KNOWN = {
    "randomized defense": "the model answers the same input differently: randomness hides its weakness",
    "probability distribution": "the model gives probabilities, not logits: gradients vanish where it is sure",
    "zero gradient": "some images have gradient zero (masking, or a very sure model): gradient attacks may fail",
    "Square Attack has decreased": "Square, which uses no gradients, fooled images the others did not: masking",
    "dynamic defense": "the model computes gradients within its forward pass: AutoAttack may not suffice",
}
_FEW_CLASSES = "the targeted DLR loss needs 4 classes: APGD-T took the difference of the logits instead"


def autoattack(
    model: nn.Module, inputs: Tensor, labels: Tensor, *, eps: float, norm: str, seed: int, limit: RowLimit | None = None
) -> tuple[Tensor, list[str]]:
    """Inputs moved by the first of the four attacks that fools the model, unmoved where none does.

    Leaves weights, gradients, modes and random generators as they were. With 2 or 3 classes the targeted
    DLR loss, which divides by the fourth largest logit, gives way to its numerator.

    Args:
        model: returns logits (B, K), K >= 2.
        inputs: (B, C, H, W) float pixels in [0, 1].
        labels: int64 (B,), the true ones.
        eps: radius in [0, 1] pixel units; 0 gives ``inputs``.
        norm: one of ``threat.NORMS``.
        seed: of all random draws; the same seed, rows and limit give the same result.
        limit: rows that are attacked at once; all without one. The library draws anew for each batch.

    Returns:
        Adversarial inputs within eps of ``inputs``, and the library's warnings, sorted, without repeats.

    Raises:
        ValueError: inputs outside [0, 1], an impossible eps, or a model of one class.
        EasyCoreError: the package is missing, or images below 5 × 5 pixels for l2 and l1.
    """
    check_eps(eps, norm)
    check_inputs(inputs)
    check_autoattack(tuple(inputs.shape[1:]), norm)
    if eps == 0 or len(inputs) == 0:
        return inputs, []
    # The library flattens with view(), which strided images do not allow.
    inputs = inputs.contiguous()
    with torch.no_grad(), frozen_eval(model):
        num_classes = model(inputs[:1]).shape[1]

    def attack(rows: int) -> tuple[Tensor, list[str]]:
        with frozen_eval(model), _frozen_weights(model), seeded("autoattack", seed), _collected() as messages:
            standard = _standard(model, num_classes, eps, norm, seed, inputs.device)
            return standard.run_standard_evaluation(inputs, labels, batch_size=rows)[0], messages

    adv_inputs, messages = (limit or RowLimit(len(inputs))).fitting(attack, len(inputs))
    found = {_explain_warning(message) for message in messages if "classes" not in message}
    if num_classes < 4:
        found.add(_FEW_CLASSES)
    # The library's own points overstep the ball by rounding; none may count that does not lie in it.
    return project(adv_inputs.detach(), inputs, eps, norm), sorted(found)


def _standard(model: nn.Module, num_classes: int, eps: float, norm: str, seed: int, device: torch.device) -> Any:
    """The library's standard version, its targets limited to the classes there are."""
    from pyautoattack import AutoAttack

    if num_classes < 2:
        raise ValueError(f"autoattack needs a model of at least 2 classes, got {num_classes}")
    attack = AutoAttack(_Contiguous(model), norm=_NORMS[norm], eps=eps, version="standard", device=device, seed=seed)
    for targeted in (attack.apgd_targeted, attack.fab):
        targeted.n_target_classes = min(targeted.n_target_classes, num_classes - 1)
    if num_classes < 4:
        attack.apgd_targeted.dlr_loss_targeted = MethodType(_targeted_margin, attack.apgd_targeted)
    return attack


def _targeted_margin(attack: Any, logits: Tensor, labels: Tensor) -> Tensor:
    """Target's logit minus the label's: the targeted DLR loss without its scale, which APGD's steps ignore."""
    rows = torch.arange(len(logits), device=logits.device)
    return logits[rows, attack.y_target] - logits[rows, labels]


class _Contiguous(nn.Module):
    """The model, its input gradients contiguous also where it computes channels last, and zero where it has none."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (B, num_classes) of inputs (B, C, H, W)."""
        inputs = inputs.view_as(inputs)
        if inputs.requires_grad:
            inputs.register_hook(lambda gradient: gradient.contiguous())
        logits = at_least_float32(self.model(inputs))
        if logits.requires_grad or not inputs.requires_grad:
            return logits
        # Weights are frozen, so these logits have no way to the inputs; the library expects one.
        return logits + 0 * inputs.flatten(1).sum(dim=1, keepdim=True)


@contextmanager
def _frozen_weights(model: nn.Module) -> Iterator[None]:
    """FAB calls backward(), which would add to the gradients of the weights."""
    wanted = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in wanted:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in wanted:
            weight.requires_grad_(True)


class _Collector(logging.Handler):
    """Keeps messages instead of printing them."""

    def __init__(self) -> None:
        super().__init__(level=logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.messages.append(record.getMessage())


@contextmanager
def _collected() -> Iterator[list[str]]:
    """What the library logs as warnings inside the block."""
    logger, collector = logging.getLogger("auto-attack"), _Collector()
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(collector)
    try:
        yield collector.messages
    finally:
        logger.removeHandler(collector)
        logger.propagate = propagate


def _explain_warning(message: str) -> str:
    """Our sentence for a warning, or the warning itself where we know none."""
    return next((ours for theirs, ours in _KNOWN.items() if theirs in message), message)
