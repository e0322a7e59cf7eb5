"""InfoBatch: which samples an epoch has, what their losses are multiplied by, and what that does to a gradient."""

import numpy as np
import pytest
import torch

from easycore_ray.core.gradients import compute_gradients
from easycore_ray.core.hashing import uniform_draws
from easycore_ray.core.loop import make_optimizer, train_epoch
from easycore_ray.core.losses import cross_entropy_rows
from easycore_ray.core.pruning import infobatch_weights, last_pruned_step
from easycore_ray.core.seeding import derive_seed
from easycore_ray.core.training_plan import TRAINING, TrainingPlan

IDS = np.arange(400) * 7
LOSSES = np.random.default_rng(0).exponential(size=400).astype(np.float32)


def plan_of(**changes):
    fields = dict(
        training="standard", beta=6.0, eps=0.1, norm="linf", attack_steps=2, attack_step_size=0.05, lr=0.1,
        momentum=0.0, nesterov=False, weight_decay=0.0, schedule="constant", warmup_steps=0, total_steps=10**6,
        augment="none", crop_pad=1, precision="fp32", seed=0,
    )  # fmt: skip
    return TrainingPlan(**fields | changes)


def linear(seed=1):
    """A model without batch norm, whose gradient is a sum over rows."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))


def rows_of(count, seed=2):
    """(ids, images, labels)."""
    draws = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 1, 4, 4), dtype=torch.uint8, generator=draws)
    return torch.arange(count) * 7, images, torch.randint(0, 3, (count,), generator=draws)


@pytest.mark.parametrize("ratio", [0.5, 0.3])
def test_those_below_the_mean_are_drawn_one_by_one(ratio):
    """As a plain loop says, sample by sample, each by its own id; some have not been seen."""
    losses = LOSSES.copy()
    losses[::50] = np.nan
    found = infobatch_weights(losses, IDS, ratio=ratio, seed=3, epoch=4)
    mean = sum(float(loss) for loss in losses if loss == loss) / np.count_nonzero(losses == losses)
    for loss, number, weight in zip(losses, IDS, found, strict=True):
        draw = uniform_draws(derive_seed("infobatch", 3, 4), np.array([number]))[0]
        expected = (0 if draw < ratio else np.float32(1 / (1 - ratio))) if loss < mean else 1
        assert weight == expected

    left_out = np.count_nonzero(found == 0) / np.count_nonzero(losses < mean)
    assert left_out == pytest.approx(ratio, abs=0.1)


def test_seed_and_epoch_change_the_draw_and_other_samples_do_not():
    """A part of the samples with the same mean is drawn as in the whole."""
    base = infobatch_weights(LOSSES, IDS, ratio=0.5, seed=3, epoch=4)
    others = [infobatch_weights(LOSSES, IDS, ratio=0.5, seed=seed, epoch=epoch) for seed, epoch in ((4, 4), (3, 5))]
    assert all((other != base).any() for other in others)
    order = np.random.default_rng(1).permutation(400)
    assert (infobatch_weights(LOSSES[order], IDS[order], ratio=0.5, seed=3, epoch=4) == base[order]).all()


def test_nothing_is_left_out_before_anything_is_known():
    """Nor where all losses are the same: none is below the mean."""
    for losses in (np.full(400, np.nan, np.float32), np.full(400, 0.1, np.float32)):
        assert (infobatch_weights(losses, IDS, ratio=0.5, seed=0, epoch=1) == 1).all()


@pytest.mark.parametrize(("total", "last"), [(8, 7), (10, 8), (1000, 875), (1, 0)])
def test_at_least_the_last_eighth_has_all_samples(total, last):
    """In steps, rounded down."""
    assert last_pruned_step(total) == last


def test_the_expected_gradient_is_that_of_all_samples():
    """Over 3,000 epochs' draws, of a linear model; without the weights it is another by far more."""
    model, (ids, images, labels) = linear(), rows_of(60)
    inputs = images.float() / 255
    losses = compute_gradients(model, inputs, labels, None, plan_of()).losses.numpy()
    whole = model[1].weight.grad.clone()

    sums = {True: torch.zeros_like(whole), False: torch.zeros_like(whole)}
    draws = 3000
    for epoch in range(draws):
        weights = torch.from_numpy(infobatch_weights(losses, ids.numpy(), ratio=0.5, seed=0, epoch=epoch))
        kept = weights > 0
        for weighted in sums:
            compute_gradients(model, inputs[kept], labels[kept], None, plan_of(), weights[kept] if weighted else None)
            sums[weighted] += model[1].weight.grad
    errors = {weighted: float((total / draws - whole).norm() / whole.norm()) for weighted, total in sums.items()}
    assert errors[True] < 0.02
    assert errors[False] > 0.2


@pytest.mark.parametrize("training", TRAINING)
def test_a_weight_of_two_is_a_sample_that_is_there_twice(training):
    """In the gradient of every objective; the losses stay as they are."""
    _, images, labels = rows_of(6)
    plan, twice = plan_of(training=training), torch.tensor([0, 1, 1, 2, 3, 4, 4, 5])
    inputs, start = images.float() / 255, torch.zeros(6, 1, 4, 4)
    models = linear(), linear()
    one = compute_gradients(models[0], inputs, labels, start, plan, torch.tensor([1.0, 2, 1, 1, 2, 1]))
    other = compute_gradients(models[1], inputs[twice], labels[twice], start[twice], plan)

    torch.testing.assert_close(models[0][1].weight.grad, models[1][1].weight.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(one.losses[twice], other.losses, rtol=1e-5, atol=1e-6)


def test_steps_divide_by_the_rows_and_give_each_rows_loss():
    """An epoch of two batches is SGD on the weighted sum over the number of rows, in torch's words."""
    ids, images, labels = rows_of(7)
    weights = dict(zip(ids.tolist(), [1.0, 2, 2, 1, 1, 2, 1], strict=True))
    batches = list(zip(ids.split((4, 3)), images.split((4, 3)), labels.split((4, 3)), strict=True))
    ours, theirs, plan, expected = linear(), linear(), plan_of(), []
    found = train_epoch(ours, make_optimizer(ours, plan), batches, plan, epoch=1, step=0, record_losses=True,
                        weigh=lambda some: torch.tensor([weights[number] for number in some.tolist()]))  # fmt: skip

    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1)
    for some, pixels, targets in batches:
        optimizer.zero_grad()
        losses = cross_entropy_rows(theirs(pixels.float() / 255), targets)
        expected += losses.tolist()
        (losses * torch.tensor([weights[number] for number in some.tolist()])).sum().div(len(some)).backward()
        optimizer.step()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-5, atol=1e-6)
    assert found.row_losses["sample_id"].tolist() == ids.tolist()
    assert found.row_losses["loss"].dtype == np.float32
    np.testing.assert_allclose(found.row_losses["loss"], expected, rtol=1e-5)
    assert found.loss_sum == pytest.approx(sum(expected), rel=1e-6)
