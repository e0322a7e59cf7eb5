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


def cross_entropy_rows(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each row, in nats, at least 0.

    Args:
        logits: (B, num_classes).
        labels: int64 (B,).

    Returns:
        (B,); the gradient flows to the logits.
    """
    return F.cross_entropy(at_least_float32(logits), labels, reduction="none")


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


def trades_rows(logits: Tensor, adv_logits: Tensor, labels: Tensor, beta: float) -> Tensor:
    """TRADES loss of each row: clean cross-entropy + beta · KL(clean || attacked).

    The mean over the batch is the loss of Zhang et al. 2019 (arXiv 1901.08573) as in their trades.py.

    Args:
        logits: (B, num_classes), of the clean inputs.
        adv_logits: (B, num_classes), of the inputs from ``attacks.trades_attack``.
        labels: int64 (B,).
        beta: weight of robustness against accuracy; the authors use 1 to 10, mostly 6.

    Returns:
        (B,).
    """
    return cross_entropy_rows(logits, labels) + beta * kl_rows(adv_logits, logits)
