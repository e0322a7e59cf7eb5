"""Adversarial weight perturbation against the formula, and that it leaves nothing behind."""

import pytest
import torch
from torch import nn

from easycore_ray.core.loop import make_optimizer, train_epoch
from easycore_ray.core.models import build_model
from easycore_ray.core.weight_perturbation import perturbed_weights
from tests.core.test_loop import make_batches, make_plan


def make_network(seed=1):
    return build_model("resnet18", num_classes=3, image_shape=(1, 8, 8), width=2, mean=(0.5,), std=(0.25,), seed=seed)


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_of_a_linear_model_it_is_the_closed_form():
    """The gradient of a mean of x·w is the mean input: w moves by gamma times its own length along it."""
    model = nn.Linear(5, 1).double()
    inputs = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight, bias, mean = model.weight.detach().clone(), model.bias.detach().clone(), inputs.mean(dim=0, keepdim=True)
    with perturbed_weights(model, 0.01, lambda: model(inputs).sum()):
        torch.testing.assert_close(model.weight, weight + 0.01 * weight.norm() * mean / mean.norm())
        assert torch.equal(model.bias, bias)
    assert torch.equal(model.weight, weight)


@pytest.mark.parametrize("training", ["trades", "pgd"])
def test_a_step_is_the_authors(training):
    """Their step in plain PyTorch: a proxy that climbs by SGD, the difference scaled, the loss there, then undone.

    At weight decay 0, where putting weights back before or after the update is one thing.
    """
    plan = make_plan(training=training, awp=0.02, weight_decay=0.0, momentum=0.0, nesterov=False, attack_steps=2)
    ((ids, images, labels),) = make_batches((8,))
    ours, theirs = make_network(), make_network()
    watched = []
    train_epoch(ours, make_optimizer(ours, plan), [(ids, images, labels)], plan, epoch=1, step=0,
                gradients=watching(watched))  # fmt: skip

    inputs, adv_inputs = watched[0]
    theirs.train()
    proxy = make_network().train()
    ascent = torch.optim.SGD(proxy.parameters(), lr=0.01)
    (-authors_loss(proxy, inputs, adv_inputs, labels, plan)).backward()
    ascent.step()
    moves = {}
    for (name, old), (_, new) in zip(theirs.state_dict().items(), proxy.state_dict().items(), strict=True):
        if old.dim() > 1 and "weight" in name:
            moves[name] = old.norm() / ((new - old).norm() + 1e-20) * (new - old)
    for name, parameter in theirs.named_parameters():
        if name in moves:
            parameter.data.add_(moves[name], alpha=plan.awp)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=plan.lr)
    authors_loss(theirs, inputs, adv_inputs, labels, plan).backward()
    optimizer.step()
    for name, parameter in theirs.named_parameters():
        if name in moves:
            parameter.data.add_(moves[name], alpha=-plan.awp)

    assert len(moves) > 10
    for (name, mine), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        if not name.endswith("num_batches_tracked") and "running" not in name:
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=2e-6, msg=name)


def watching(seen):
    """``compute_gradients`` that notes clean and attacked inputs."""
    from easycore_ray.core import gradients

    def compute(model, inputs, labels, start, plan, weights):
        assert weights is None
        adv_inputs = gradients.attack_batch(model, inputs, labels, start, plan)
        seen.append((inputs.detach(), adv_inputs))
        return gradients.compute_gradients(model, inputs, labels, start, plan)

    return compute


def authors_loss(model, inputs, adv_inputs, labels, plan):
    if plan.training == "pgd":
        return nn.functional.cross_entropy(model(adv_inputs), labels)
    clean = model(inputs)
    kl = nn.functional.kl_div(model(adv_inputs).log_softmax(1), clean.softmax(1), reduction="batchmean")
    return nn.functional.cross_entropy(clean, labels) + plan.beta * kl


@pytest.mark.parametrize("training", ["trades", "pgd", "mart", "nfgsm"])
def test_running_statistics_do_not_see_the_pass_that_finds_it(training):
    """They count as many batches as without, though at other weights."""
    counts = []
    for awp in (0.0, 0.05):
        model, plan = make_network(), make_plan(training=training, awp=awp, attack_steps=1)
        train_epoch(model, make_optimizer(model, plan), make_batches((6, 5)), plan, epoch=1, step=0)
        counts.append([value.item() for name, value in model.state_dict().items() if name.endswith("tracked")])
    assert counts[0] == counts[1]


def test_weights_are_put_back_when_the_step_fails():
    """To the bit, running statistics too."""
    model = make_network().train()
    before, inputs = state_of(model), torch.rand(4, 1, 8, 8)
    weight = next(parameter for parameter in model.parameters() if parameter.dim() > 1)

    def fail():
        with perturbed_weights(model, 0.05, lambda: model(inputs).sum()):
            assert not any(torch.equal(weight, value) for value in before.values())
            raise RuntimeError("by chance")

    with pytest.raises(RuntimeError, match="by chance"):
        fail()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
