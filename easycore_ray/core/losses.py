"""Losses, one value per row: cross-entropy and TRADES.

Takes logits of any float type and gives float32 rows (float64 for float64 logits). Nothing is averaged here, so that
a caller says whether it wants the mean (training) or the sum (scores and attacks, where a mean would shrink every
sample's gradient with the batch size).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """The same values, of any shape, as float32, or as float64 if that is what they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def cross_entropy_rows(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of each row, in nats, at least 0.

    Args:
        logits: (B, num_classes).
        labels: int64 (B,).
        smoothing: share of each label that is spread evenly over all classes, in [0, 1) (Szegedy et al. 2016).

    Returns:
        (B,); the gradient flows to the logits.
    """
    return F.cross_entropy(at_least_float32(logits), labels, reduction="none", label_smoothing=smoothing)


def kl_rows(adv_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(softmax(logits) || softmax(adv_logits)) of each row, in nats, at least 0 up to rounding.

    The gradient flows to both: the official TRADES code does not detach the clean side either.

    Args:
        adv_logits: (B, num_classes), of the attacked inputs.
        logits: (B, num_classes), of the clean inputs.

    Returns:
        (B,).
    """
    log_p = F.log_softmax(at_least_float32(logits), dim=1)
    log_q = F.log_softmax(at_least_float32(adv_logits), dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def trades_rows(logits: Tensor, adv_logits: Tensor, labels: Tensor, beta: float, smoothing: float = 0.0) -> Tensor:
    """TRADES loss of each row: clean cross-entropy + beta · KL(clean || attacked).

    The mean over the batch is the loss of Zhang et al. 2019 (arXiv 1901.08573) as in their trades.py.

    Args:
        logits: (B, num_classes), of the clean inputs.
        adv_logits: (B, num_classes), of the inputs from ``attacks.trades_attack``.
        labels: int64 (B,).
        beta: weight of robustness against accuracy; the authors use 1 to 10, mostly 6.
        smoothing: of the labels, see ``cross_entropy_rows``.

    Returns:
        (B,).
    """
    return cross_entropy_rows(logits, labels, smoothing) + beta * kl_rows(adv_logits, logits)


def mart_rows(logits: Tensor, adv_logits: Tensor, labels: Tensor, beta: float) -> Tensor:
    """MART loss of each row: boosted cross-entropy + beta · KL(clean || attacked) · doubt about the clean input.

    Doubt is 1 − the clean probability of the label; the boosted cross-entropy of the attacked input adds −log(1 − the
    highest probability of another class). The mean over the batch is the loss of Wang et al. 2020 (ICLR, "Improving
    Adversarial Robustness Requires Revisiting Misclassified Examples") as in their mart.py, small constants included.

    Args:
        logits: (B, num_classes), of the clean inputs.
        adv_logits: (B, num_classes), of the attacked inputs, see ``objectives.attack_batch``; at least two classes.
        labels: int64 (B,).
        beta: weight of the misclassified rows' term; the authors use 5 to 6.

    Returns:
        (B,).
    """
    logits, adv_logits, label = at_least_float32(logits), at_least_float32(adv_logits), labels.unsqueeze(1)
    adv_probabilities, probabilities = adv_logits.softmax(dim=1), logits.softmax(dim=1)
    highest_other = adv_probabilities.scatter(1, label, -1.0).argmax(dim=1, keepdim=True)
    margin = -torch.log(1.0001 - adv_probabilities.gather(1, highest_other) + 1e-12).squeeze(1)
    log_ratio = probabilities.clamp_min(1e-45).log() - torch.log(adv_probabilities + 1e-12)
    kl = (probabilities * log_ratio).sum(dim=1)
    unsure = 1.0000001 - probabilities.gather(1, label).squeeze(1)
    return cross_entropy_rows(adv_logits, labels) + margin + beta * kl * unsure
