"""Loss rows against the formulas written out."""

import pytest
import torch
from torch import nn

from easycore_ray.core.losses import cross_entropy_rows, kl_rows, trades_rows


@pytest.fixture
def logits():
    """Clean logits of nine rows."""
    return torch.randn(9, 6, generator=torch.Generator().manual_seed(0)) * 3


@pytest.fixture
def adv_logits():
    """Attacked logits of the same rows."""
    return torch.randn(9, 6, generator=torch.Generator().manual_seed(1)) * 3


@pytest.fixture
def targets():
    """Labels of the rows."""
    return torch.arange(9) % 6


def test_cross_entropy_is_minus_the_log_probability_of_the_label(logits, targets):
    """One value per row, equal to -log softmax at the label."""
    by_hand = torch.stack([-row.softmax(0)[label].log() for row, label in zip(logits, targets, strict=True)])
    assert torch.allclose(cross_entropy_rows(logits, targets), by_hand, atol=1e-6)


def test_kl_is_the_divergence_of_the_attacked_from_the_clean_distribution(logits, adv_logits):
    """Sum over classes of p · log(p / q), p clean and q attacked; not the other way round."""
    p, q = logits.softmax(1), adv_logits.softmax(1)
    assert torch.allclose(kl_rows(adv_logits, logits), (p * (p / q).log()).sum(1), atol=1e-5)
    assert not torch.allclose(kl_rows(adv_logits, logits), kl_rows(logits, adv_logits), atol=1e-2)


def test_kl_of_equal_predictions_is_zero(logits):
    """No divergence from itself, exactly."""
    assert (kl_rows(logits, logits) == 0).all()


@pytest.mark.parametrize("beta", [0.0, 1.0, 6.0])
def test_mean_of_trades_rows_is_the_official_loss_and_gradient(logits, adv_logits, targets, beta):
    """Value and both gradients equal CE + beta / B · KLDivLoss(sum), target not detached, to 1e-6."""
    ours = [logits.clone().requires_grad_(), adv_logits.clone().requires_grad_()]
    theirs = [logits.clone().requires_grad_(), adv_logits.clone().requires_grad_()]
    loss = trades_rows(*ours, targets, beta).mean()
    natural = nn.functional.cross_entropy(theirs[0], targets)
    divergence = nn.KLDivLoss(reduction="sum")(theirs[1].log_softmax(1), theirs[0].softmax(1))
    official = natural + beta * divergence / len(targets)
    loss.backward()
    official.backward()
    assert loss.item() == pytest.approx(official.item(), rel=1e-6)
    for mine, reference in zip(ours, theirs, strict=True):
        assert torch.allclose(mine.grad, reference.grad, atol=1e-6)


def test_gradient_of_kl_reaches_the_clean_logits(logits, adv_logits):
    """The clean side is not detached, as in the official code."""
    clean = logits.requires_grad_()
    (grad,) = torch.autograd.grad(kl_rows(adv_logits, clean).sum(), clean)
    assert grad.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_logits_give_float32_rows(logits, adv_logits, targets, dtype):
    """The arithmetic of the loss is float32 whatever the model computes in."""
    rows = trades_rows(logits.to(dtype), adv_logits.to(dtype), targets, 6.0)
    exact = trades_rows(logits.to(dtype).float(), adv_logits.to(dtype).float(), targets, 6.0)
    assert rows.dtype == torch.float32
    assert torch.equal(rows, exact)


def test_saturated_logits_keep_loss_and_gradient_finite(targets):
    """A class whose probability is 0 in float32 gives no infinity and no NaN."""
    logits = (torch.eye(9, 6) * 1e4).requires_grad_()
    adv_logits = (torch.eye(9, 6).flip(1) * 1e4).requires_grad_()
    loss = trades_rows(logits, adv_logits, targets, 6.0).mean()
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
    assert torch.isfinite(adv_logits.grad).all()
