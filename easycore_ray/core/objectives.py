"""What a network is trained for: the attacked inputs of a batch, and the loss of each row.

Takes a network in training mode, inputs and labels on its device, and the draws of the attack. One pair of functions
for each word of ``TRAINING``; the plan holds the numbers.
"""

from typing import Any

import torch
from torch import Tensor, nn

from easycore_ray.core.ascent import cross_entropy_gradient
from easycore_ray.core.attacks import TRADES_START_SCALE, pgd_training_attack, trades_attack
from easycore_ray.core.batchnorm_stats import running_statistics, see_again
from easycore_ray.core.losses import cross_entropy_rows, mart_rows, trades_rows
from easycore_ray.core.threat import draw, random_point
from easycore_ray.core.training_plan import TrainingPlan

# The noise of N-FGSM reaches this many times as far as the attack (de Jorge et al. 2022: k = 2).
_NFGSM_NOISE = 2.0


def draw_start(inputs: Tensor, plan: TrainingPlan, draws: torch.Generator) -> Tensor | None:
    """What the attack of a batch starts from, like ``inputs``; None for training that needs no draws.

    N(0, 1) noise for trades and mart, points of the ball for pgd, points of the ball of twice the radius for nfgsm.

    Args:
        inputs: (B, C, H, W) float pixels in [0, 1].
        plan: of the run.
        draws: on a CPU, so that every device starts from the same.
    """
    if plan.training == "standard" or plan.eps == 0:
        return None
    if plan.training in ("trades", "mart"):
        return draw(torch.randn, inputs.shape, inputs.device, draws)
    reach = _NFGSM_NOISE * plan.eps if plan.training == "nfgsm" else plan.eps
    return random_point(inputs.detach(), reach, plan.norm, draws)


def attack_batch(
    model: nn.Module, inputs: Tensor, labels: Tensor, start: Tensor | None, plan: TrainingPlan
) -> Tensor | None:
    """The attacked inputs that a batch is trained on, like ``inputs`` and detached; None for standard training.

    Args:
        model: the network, in training mode; left as it was, but for running statistics by nfgsm.
        inputs: (B, C, H, W) float pixels in [0, 1].
        labels: int64 (B,).
        start: from ``draw_start``.
        plan: of the run.
    """
    threat: dict[str, Any] = {
        "eps": plan.eps,
        "norm": plan.norm,
        "steps": plan.attack_steps,
        "step_size": plan.attack_step_size,
        "fold": plan.fold,
        "check": False,  # bytes divided by 255 are in [0, 1]
    }
    clean = inputs.detach()
    if plan.training == "standard":
        return None
    if start is None:
        return clean  # eps is 0
    if plan.training == "trades":
        return trades_attack(model, clean, **threat, noise=start)
    if plan.training == "mart":
        # As official mart.py: PGD on the cross-entropy from beside the input, where trades starts.
        start = clean + TRADES_START_SCALE * start
    if plan.training in ("pgd", "mart"):
        return pgd_training_attack(model, clean, labels, **threat, start=start)
    return _nfgsm(model, start, labels, plan.attack_step_size)


def _nfgsm(model: nn.Module, start: Tensor, labels: Tensor, step_size: float) -> Tensor:
    """One step up the gradient from a point with strong noise, kept within the pixel range and no ball.

    N-FGSM (de Jorge et al. 2022, arXiv 2202.01181): the noise reaches 2 eps, the step is eps, and the sum is not
    clipped to eps. As in their code the gradient is taken in training mode, so that running statistics see the noisy
    batch as well.
    """
    gradient, _ = cross_entropy_gradient(model, start, labels, required=True)
    return start.add(gradient.sign(), alpha=step_size).clamp_(0.0, 1.0)


def loss_rows(
    model: nn.Module, inputs: Tensor, adv_inputs: Tensor | None, labels: Tensor, plan: TrainingPlan
) -> tuple[Tensor, Tensor]:
    """Loss of each row, float32 (B,), and logits (B, num_classes): of the clean inputs where those are forwarded.

    pgd and nfgsm never forward clean inputs; doing so for a number to show would change the running statistics.

    Args:
        model: the network, in training mode.
        inputs: (B, C, H, W) float pixels in [0, 1].
        adv_inputs: from ``attack_batch``.
        labels: int64 (B,).
        plan: of the run.
    """
    if plan.training in ("standard", "pgd", "nfgsm"):
        logits = model(inputs if adv_inputs is None else adv_inputs)
        return cross_entropy_rows(logits, labels, plan.label_smoothing), logits
    assert adv_inputs is not None
    if plan.training == "mart":
        logits = model(inputs)
        return mart_rows(logits, model(adv_inputs), labels, plan.beta), logits
    # The official code forwards the clean inputs twice in training mode. Once gives the same loss and gradient, but
    # the running statistics must see natural, adversarial, natural.
    before = running_statistics(model)
    logits = model(inputs)
    natural = running_statistics(model)
    adv_logits = model(adv_inputs)
    see_again(before, natural)
    return trades_rows(logits, adv_logits, labels, plan.beta, plan.label_smoothing), logits
