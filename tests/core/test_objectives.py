"""MART, N-FGSM, label smoothing and clean forwards against their sources' formulas, written out in plain PyTorch."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from easycore_ray.core.attacks import pgd_training_attack
from easycore_ray.core.augment import to_float
from easycore_ray.core.loop import make_optimizer, train_epoch
from easycore_ray.core.losses import cross_entropy_rows, kl_rows, mart_rows, trades_rows
from easycore_ray.core.objectives import attack_batch, draw_start, loss_rows
from easycore_ray.core.seeding import generator
from easycore_ray.core.training_plan import TRAINING
from tests.core.test_loop import make_batches, make_model, make_plan

LABELS = torch.arange(8) % 3


@pytest.fixture
def inputs():
    return torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def draws(seed=3):
    return torch.Generator().manual_seed(seed)


def logits_of(seed, scale=4.0):
    return scale * torch.randn(9, 5, generator=draws(seed), dtype=torch.float64)


def test_smoothed_cross_entropy_is_that_of_smoothed_labels():
    """1 − s + s / K at the label, s / K elsewhere; unsmoothed by default, and in the clean term of TRADES alone."""
    logits, adv_logits, labels = logits_of(0), logits_of(1), torch.arange(9) % 5
    targets = F.one_hot(labels, 5).double() * 0.9 + 0.1 / 5
    expected = -(targets * logits.log_softmax(1)).sum(1)
    torch.testing.assert_close(cross_entropy_rows(logits, labels, 0.1), expected)
    assert torch.equal(cross_entropy_rows(logits, labels, 0.0), cross_entropy_rows(logits, labels))
    plain = trades_rows(logits, adv_logits, labels, 6.0)
    smoothed = trades_rows(logits, adv_logits, labels, 6.0, 0.1)
    torch.testing.assert_close(smoothed - plain, expected - cross_entropy_rows(logits, labels))


def test_mart_is_the_loss_of_its_source():
    """Boosted cross-entropy, and the divergence weighted by the doubt about the clean input; Wang et al. 2020."""
    logits, adv_logits, labels = logits_of(0), logits_of(1), torch.arange(9) % 5
    p, q = logits.softmax(1), adv_logits.softmax(1)
    second = [max((q[row, k].item(), k) for k in range(5) if k != labels[row])[1] for row in range(9)]
    boosted = F.cross_entropy(adv_logits, labels) + F.nll_loss(torch.log(1.0001 - q + 1e-12), torch.tensor(second))
    doubt = 1.0000001 - p[range(9), labels]
    kl = nn.KLDivLoss(reduction="none")((q + 1e-12).log(), p).sum(1)
    torch.testing.assert_close(mart_rows(logits, adv_logits, labels, 5.0).mean(), boosted + 5.0 * (kl * doubt).mean())


def test_mart_is_finite_where_a_probability_is_none():
    """In float32, with a gradient that is finite as well."""
    logits, adv_logits = (torch.tensor([[200.0, 0.0, -200.0]]).roll(shift, 1).requires_grad_() for shift in (0, 1))
    loss = mart_rows(logits, adv_logits, torch.tensor([0]), 6.0).sum()
    loss.backward()
    assert all(torch.isfinite(value).all() for value in (loss, logits.grad, adv_logits.grad))


def test_mart_attacks_from_beside_the_input(inputs):
    """PGD on the cross-entropy from 0.001 · noise, not from the ball, in evaluation mode, projected."""
    plan = make_plan(training="mart", eps=0.1, attack_steps=3, attack_step_size=0.04)
    noise = draw_start(inputs, plan, draws())
    assert torch.equal(noise, torch.randn(inputs.shape, generator=draws()))
    found = attack_batch(make_model().train(), inputs, LABELS, noise, plan)
    twin, points = make_model().eval(), inputs + 0.001 * noise
    for _ in range(3):
        points = points.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(twin(points), LABELS), points)
        points = torch.min(torch.max(points.detach() + 0.04 * gradient.sign(), inputs - 0.1), inputs + 0.1).clamp(0, 1)
    torch.testing.assert_close(found, points)


def test_nfgsm_steps_once_from_strong_noise_and_is_not_clipped(inputs):
    """Noise of twice the radius, a step of the radius, the pixel range alone; its gradient in training mode."""
    plan = make_plan(training="nfgsm", eps=0.1, attack_step_size=0.1)
    start = draw_start(inputs, plan, draws())
    noise = (2 * torch.rand(inputs.shape, generator=draws()) - 1) * 0.2
    torch.testing.assert_close(start, (inputs + noise).clamp(0, 1))

    found = attack_batch(make_model().train(), inputs, LABELS, start, plan)
    twin, points = make_model().train(), start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(twin(points), LABELS), points)
    torch.testing.assert_close(found, (start + 0.1 * gradient.sign()).clamp(0, 1))
    assert (found - inputs).abs().max() > 0.2


def test_nfgsm_shows_running_statistics_the_noisy_batch_and_the_attacked_one(inputs):
    """As its source does; no clean batch is forwarded."""
    plan, model, twin = make_plan(training="nfgsm", eps=0.1, attack_step_size=0.1), make_model(), make_model()
    model.train(), twin.train()
    start = draw_start(inputs, plan, draws())
    adv_inputs = attack_batch(model, inputs, LABELS, start, plan)
    losses, logits = loss_rows(model, inputs, adv_inputs, LABELS, plan)
    twin(start)
    torch.testing.assert_close(logits, twin(adv_inputs))
    torch.testing.assert_close(losses, F.cross_entropy(logits, LABELS, reduction="none"))
    for mine, other in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("training", ["trades", "pgd", "mart", "nfgsm"])
def test_without_room_an_attack_is_the_clean_image(training, inputs):
    """Eps 0 draws nothing and moves nothing."""
    plan, model = make_plan(training=training, eps=0.0, attack_step_size=0.0), make_model().train()
    start = draw_start(inputs, plan, draws())
    assert start is None
    assert torch.equal(attack_batch(model, inputs, LABELS, start, plan), inputs)


def test_clean_forwards_show_running_statistics_what_the_source_of_bag_of_tricks_shows_them():
    """Attacked, clean, update, clean: three batches a step, the last with the new weights."""
    batches, plan = make_batches((7, 6, 5)), make_plan(training="pgd", eps=0.3, clean_forwards=True)
    ours, theirs, plain = make_model(), make_model(), make_model()
    result = train_epoch(ours, make_optimizer(ours, plan), batches, plan, epoch=2, step=0)
    train_epoch(plain, make_optimizer(plain, plan), batches, replace(plan, clean_forwards=False), epoch=2, step=0)

    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    draws, right = generator("attack", 0, 2, 0, 0), 0
    for _, images, labels in batches:
        inputs = to_float(images)
        attacked = pgd_training_attack(theirs, inputs, labels, eps=0.3, norm="linf", steps=2, step_size=0.05,
                                       generator=draws)  # fmt: skip
        optimizer.zero_grad()
        logits = theirs.train()(attacked)
        theirs(inputs)
        F.cross_entropy(logits, labels).backward()
        optimizer.step()
        theirs(inputs)
        right += int((logits.argmax(1) == labels).sum())

    counts = [value for name, value in ours.named_buffers() if "num_batches" in name]
    assert counts == [9] * len(counts) != []
    assert result.num_correct == right
    for mine, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)
    means = [value for name, value in ours.named_buffers() if "running_mean" in name]
    others = [value for name, value in plain.named_buffers() if "running_mean" in name]
    assert any((mine - other).abs().max() > 0.01 for mine, other in zip(means, others, strict=True))


@pytest.mark.parametrize("training", TRAINING)
def test_each_word_is_its_own_loss(training, inputs):
    """Of the inputs that it forwards, with smoothed labels where it has any, and the logits it reports."""
    smoothing = 0.0 if training == "mart" else 0.2
    plan = make_plan(training=training, beta=3.0, label_smoothing=smoothing)
    model, adv_inputs = make_model().train(), (inputs + 0.1).clamp(0, 1)
    losses, logits = loss_rows(model, inputs, None if training == "standard" else adv_inputs, LABELS, plan)

    clean, attacked = make_model().train()(inputs), make_model().train()(adv_inputs)
    entropy = lambda out: F.cross_entropy(out, LABELS, reduction="none", label_smoothing=smoothing)  # noqa: E731
    expected = {
        "standard": (entropy(clean), clean),
        "pgd": (entropy(attacked), attacked),
        "nfgsm": (entropy(attacked), attacked),
        "trades": (entropy(clean) + 3.0 * kl_rows(attacked, clean), clean),
        "mart": (mart_rows(clean, attacked, LABELS, 3.0), clean),
    }[training]
    torch.testing.assert_close((losses, logits), expected)
