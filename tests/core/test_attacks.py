"""Attacks and the threat model: inside the ball, as strong as the exact answer, and without a trace."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from easycore_ray.core.attacks import (
    ATTACKS,
    carries_gradient,
    fgsm,
    frozen_eval,
    pgd,
    pgd_training_attack,
    trades_attack,
)
from easycore_ray.core.eps import NORMS
from easycore_ray.core.losses import cross_entropy_rows, trades_rows
from easycore_ray.core.threat import (
    check_inputs,
    l2_norms,
    project,
    random_point,
)

EPS = {"linf": 8 / 255, "l2": 0.5, "l1": 3.0}


def draws(seed=0):
    """A fresh stream."""
    return torch.Generator().manual_seed(seed)


def trades(model, inputs, labels, *, eps, norm, generator):
    """The TRADES attack under the signature of the others."""
    return trades_attack(model, inputs, eps=eps, norm=norm, step_size=eps / 4, generator=generator)


ALL_ATTACKS = ATTACKS | {"trades": trades}


def distances(adv_inputs, inputs, norm):
    """How far each row moved."""
    return (adv_inputs - inputs).flatten(1).norm(p={"linf": math.inf, "l2": 2, "l1": 1}[norm], dim=1)


class LinearModel(nn.Module):
    """Two classes apart by a plane, so that each point's distance to it is known."""

    def __init__(self, num_pixels):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_pixels, generator=draws(5)))

    def forward(self, inputs):
        side = (inputs - 0.5).flatten(1) @ self.weight
        return torch.stack([side, -side], dim=1)

    def distance(self, inputs, norm):
        """Exact distance of each row to the plane: |side| over the dual norm of the weights."""
        side = ((inputs - 0.5).flatten(1) @ self.weight).abs()
        return side / self.weight.norm(p={"linf": 1, "l2": 2, "l1": math.inf}[norm])


# ---------------------------------------------------------------- every attack


@pytest.mark.parametrize("name", sorted(ALL_ATTACKS))
@pytest.mark.parametrize("norm", NORMS)
class TestEveryAttack:
    """What holds for each attack under each norm."""

    def test_stays_in_the_ball_and_in_the_pixel_range(self, model, inputs, labels, name, norm):
        """No attack leaves eps or [0, 1], and each moves every row."""
        inputs = inputs.round(decimals=1)  # many pixels at exactly 0 and 1
        adv_inputs = ALL_ATTACKS[name](model, inputs, labels, eps=EPS[norm], norm=norm, generator=draws())
        assert (distances(adv_inputs, inputs, norm) <= EPS[norm] * (1 + 1e-5)).all()
        assert (distances(adv_inputs, inputs, norm) > 0.1 * EPS[norm]).all()
        assert adv_inputs.min() >= 0
        assert adv_inputs.max() <= 1

    def test_eps_zero_is_clean(self, model, inputs, labels, name, norm):
        """Without room the inputs come back unchanged."""
        adv_inputs = ALL_ATTACKS[name](model, inputs, labels, eps=0.0, norm=norm, generator=draws())
        assert torch.equal(adv_inputs, inputs)

    def test_leaves_no_trace(self, model, inputs, labels, name, norm):
        """Weights, buffers, .grad, every submodule's mode, and the inputs are as before."""
        model.train()
        model.network[1].eval()  # a layer the caller froze
        model.network[0].weight.requires_grad_(False)
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 0.5)
        before, clean = copy.deepcopy(model), inputs.clone()
        ALL_ATTACKS[name](model, inputs, labels, eps=EPS[norm], norm=norm, generator=draws())
        assert all(map(torch.equal, model.state_dict().values(), before.state_dict().values()))
        assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
        for now, then in zip(model.parameters(), before.parameters(), strict=True):
            assert (now.grad == 0.5).all()
            assert now.requires_grad == then.requires_grad
        assert torch.equal(inputs, clean)
        assert not inputs.requires_grad

    def test_repeats_under_a_seed_and_whatever_the_mode(self, model, inputs, labels, name, norm):
        """The same stream gives the same inputs; the model's mode and no_grad around it do not matter."""
        first = ALL_ATTACKS[name](model.train(), inputs, labels, eps=EPS[norm], norm=norm, generator=draws())
        with torch.no_grad():
            again = ALL_ATTACKS[name](model.eval(), inputs, labels, eps=EPS[norm], norm=norm, generator=draws())
        assert torch.equal(first, again)
        assert not first.requires_grad

    def test_keeps_type_and_memory_format(self, model, inputs, labels, name, norm):
        """Half-precision, channels-last inputs come back as such."""
        inputs = inputs.to(torch.bfloat16, memory_format=torch.channels_last)
        adv_inputs = ALL_ATTACKS[name](model, inputs, labels, eps=0.25, norm=norm, generator=draws())
        assert adv_inputs.dtype == torch.bfloat16
        assert adv_inputs.is_contiguous(memory_format=torch.channels_last)

    def test_restores_the_model_when_it_fails(self, model, inputs, labels, name, norm):
        """An error in the middle of an attack leaves the mode as it was."""
        model.train()
        model.network.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ALL_ATTACKS[name](model, inputs, labels, eps=EPS[norm], norm=norm, generator=draws())
        assert all(module.training for module in model.modules())

    def test_normalised_inputs_are_refused(self, model, inputs, labels, name, norm):
        """Inputs outside [0, 1] point to normalisation in the wrong place."""
        with pytest.raises(ValueError, match="normalisation inside the model"):
            ALL_ATTACKS[name](model, inputs * 4 - 2, labels, eps=EPS[norm], norm=norm, generator=draws())

    def test_runs_under_the_callers_autocast(self, model, inputs, labels, name, norm):
        """In bfloat16 autocast the attack still moves float32 inputs within the ball."""
        with torch.autocast("cpu", torch.bfloat16):
            adv_inputs = ALL_ATTACKS[name](model, inputs, labels, eps=EPS[norm], norm=norm, generator=draws())
        assert adv_inputs.dtype == torch.float32
        assert (distances(adv_inputs, inputs, norm) <= EPS[norm] * (1 + 1e-5)).all()
        assert not torch.equal(adv_inputs, inputs)


def test_frozen_eval_restores_each_submodule():
    """Inside all are in eval mode, afterwards each is in its own mode again."""
    net = nn.Sequential(nn.Linear(1, 1), nn.Dropout(), nn.Sequential(nn.Dropout())).train()
    net[1].eval()
    with frozen_eval(net):
        assert not any(module.training for module in net.modules())
    assert [module.training for module in net.modules()] == [True, True, False, True, True]


# ---------------------------------------------------------------- FGSM and PGD


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", [pgd, fgsm])
def test_attacks_reach_the_exact_distance_of_a_linear_model(attack, norm):
    """Just beyond each row's distance to the plane the attack succeeds, just before it cannot."""
    net = LinearModel(48)
    inputs = 0.4 + 0.2 * torch.rand(20, 3, 4, 4, generator=draws(6))  # far from 0 and 1: the box does not bind
    labels = net(inputs).argmax(1)
    for row in range(len(inputs)):
        point, label = inputs[row : row + 1], labels[row : row + 1]
        exact = net.distance(point, norm).item()
        options = {"norm": norm, "generator": draws()}
        assert net(attack(net, point, label, eps=exact * 1.02, **options)).argmax(1) != label
        assert net(attack(net, point, label, eps=exact * 0.98, **options)).argmax(1) == label


def outcome(model, adv_inputs, labels):
    """Per row: whether the model is wrong, and its loss."""
    with frozen_eval(model), torch.no_grad():
        logits = model(adv_inputs)
    return logits.argmax(1) != labels, cross_entropy_rows(logits, labels)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("more", [{"steps": 3}, {"steps": 9}, {"restarts": 3}])
def test_more_effort_never_helps_the_defender(model, inputs, labels, norm, more):
    """Longer runs and more restarts keep every success and never lower the loss of what still stands."""
    labels = outcome(model, inputs, labels)[0].long()  # arbitrary, some right and some wrong
    options = {
        "eps": 2 * EPS[norm],
        "norm": norm,
        "step_size": EPS[norm],
        "steps": 2,
    }  # a coarse step overshoots
    for seed in range(5):
        wrong, loss = outcome(model, pgd(model, inputs, labels, generator=draws(seed), **options), labels)
        more_effort = pgd(model, inputs, labels, generator=draws(seed), **(options | more))
        worse_wrong, worse_loss = outcome(model, more_effort, labels)
        assert (worse_wrong >= wrong).all()
        assert (worse_loss >= loss - 1e-6)[wrong == worse_wrong].all()


def test_pgd_prefers_a_wrong_answer_to_a_higher_loss():
    """A point that is misclassified beats one that is right at a higher loss."""

    class TwoRegions(nn.Module):
        """Left: class 1 beats the label 0 by a hair. Right: the label wins by a hair, against two others."""

        def forward(self, inputs):
            x = inputs.flatten(1)[:, 0]
            left = torch.stack([0 * x, 0 * x + 0.1, x - 30], dim=1)
            right = torch.tensor([0.0, -0.01, -0.01])
            return torch.where((x < 0.53)[:, None], left, right)

    point, label = torch.full((1, 1, 1, 1), 0.5), torch.tensor([0])
    (wrong,), (loss,) = outcome(TwoRegions(), point, label)
    (last_wrong,), (last_loss,) = outcome(TwoRegions(), point + 0.06, label)
    assert wrong
    assert not last_wrong
    assert last_loss > loss
    adv_input = pgd(TwoRegions(), point, label, eps=0.06, steps=1, step_size=0.06, random_start=False)
    assert torch.equal(adv_input, point)


@pytest.mark.parametrize("norm", NORMS)
def test_pgd_is_at_least_as_strong_as_fgsm(model, inputs, labels, norm):
    """Started at the input with FGSM's step, PGD finds nothing worse than FGSM does."""
    options = {"eps": EPS[norm], "norm": norm}
    single = outcome(model, fgsm(model, inputs, labels, **options), labels)
    many = pgd(model, inputs, labels, steps=5, step_size=EPS[norm], random_start=False, **options)
    assert (outcome(model, many, labels)[0] >= single[0]).all()


@pytest.mark.parametrize(("restarts", "steps"), [(1, 1), (1, 7), (3, 4)])
def test_pgd_spends_one_forward_pass_beyond_its_steps(model, inputs, labels, restarts, steps):
    """Bookkeeping uses the passes the gradients need; only the last point costs an extra one."""
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    pgd(model, inputs, labels, eps=0.1, steps=steps, restarts=restarts, generator=draws())
    assert len(calls) == restarts * (steps + 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "at least 1"),
        ({"restarts": 0}, "at least 1"),
        ({"restarts": 2, "random_start": False}, "from the same point"),
        ({"norm": "l3"}, "linf, l2, l1"),
        ({"eps": 8.0}, "8/255"),
    ],
)
def test_pgd_refuses_what_cannot_be_meant(model, inputs, labels, options, message):
    """Nonsense is an error, not a weak attack."""
    with pytest.raises(ValueError, match=message):
        pgd(model, inputs, labels, **({"eps": 0.1} | options))


# ---------------------------------------------------------------- TRADES


def plain_trades_attack(model, inputs, noise, *, eps, norm, steps, step_size):
    """The attack written as the formula says: clean prediction anew in every step, torch's own KLDivLoss."""
    criterion = nn.KLDivLoss(reduction="sum")
    model.eval()
    offset = 0.001 * noise
    for _ in range(steps):
        point = (inputs + offset).detach().requires_grad_()
        divergence = criterion(model(point).log_softmax(1), model(inputs).softmax(1))
        (gradient,) = torch.autograd.grad(divergence, point)
        if norm == "linf":
            point = point.detach() + step_size * gradient.sign()
            point = torch.min(torch.max(point, inputs - eps), inputs + eps).clamp(0, 1)
            offset = point - inputs
        else:
            unit = gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            offset = (point.detach() + step_size * unit).clamp(0, 1) - inputs
            offset = offset.renorm(p=2, dim=0, maxnorm=eps)
    model.train()
    return (inputs + offset).clamp(0, 1)


@pytest.mark.parametrize(("norm", "step_size"), [("linf", 0.007), ("l2", 2 * 0.5 / 10)])
@pytest.mark.parametrize("seed", range(3))
def test_trades_equals_its_plain_transcription(model, inputs, labels, norm, step_size, seed):
    """Attack and loss of fixed weights and noise agree with the formula to 1e-6."""
    noise = torch.randn(inputs.shape, generator=draws(seed))
    options = {"eps": EPS[norm], "norm": norm, "steps": 10, "step_size": step_size}
    ours = trades_attack(model, inputs, noise=noise, **options)
    plain = plain_trades_attack(copy.deepcopy(model), inputs, noise, **options)
    assert torch.allclose(ours, plain, atol=1e-6)
    model.eval()
    rows = trades_rows(model(inputs), model(ours), labels, 6.0)
    divergence = nn.KLDivLoss(reduction="sum")(model(plain).log_softmax(1), model(inputs).softmax(1))
    official = nn.functional.cross_entropy(model(inputs), labels) + 6.0 / len(labels) * divergence
    assert rows.mean().item() == pytest.approx(official.item(), abs=1e-6)


def test_trades_computes_the_clean_prediction_once(model, inputs):
    """Ten steps cost eleven forward passes, not twenty."""
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    trades_attack(model, inputs, eps=0.1, step_size=0.02, generator=draws())
    assert len(calls) == 11


def test_trades_attack_raises_the_divergence(model, inputs, labels):
    """After the attack the predictions are further from the clean ones than random noise brings them."""
    noisy = random_point(inputs, EPS["linf"], "linf", draws())
    attacked = trades(model, inputs, labels, eps=EPS["linf"], norm="linf", generator=draws())
    clean_logits = model.eval()(inputs)
    assert (
        trades_rows(clean_logits, model(attacked), labels, 1.0) > trades_rows(clean_logits, model(noisy), labels, 1.0)
    ).all()


def test_trades_without_steps_is_a_valid_start(model, inputs):
    """Zero steps leave the start noise, inside [0, 1]."""
    adv_inputs = trades_attack(model, inputs.round(), eps=0.1, steps=0, step_size=0.01, generator=draws())
    assert adv_inputs.min() >= 0
    assert adv_inputs.max() <= 1
    assert not torch.equal(adv_inputs, inputs.round())


def test_weights_still_get_gradients_when_attack_and_loss_share_an_autocast(model, inputs, labels):
    """The weights that autocast casts and caches inside the attack keep their way back to the parameters."""
    with torch.autocast("cpu", torch.bfloat16):
        adv_inputs = trades_attack(model, inputs, eps=0.1, step_size=0.02, generator=draws())
        rows = trades_rows(model(inputs), model(adv_inputs), labels, 6.0)
    rows.mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.network[-1].parameters())
    assert all(p.grad is not None for p in model.parameters())


# ---------------------------------------------------------------- the threat model


@settings(deadline=None)
@given(st.sampled_from(NORMS), st.floats(0, 1), st.integers(0, 99), st.floats(0.01, 5))
def test_projection_lands_inside_and_keeps_what_is_inside(norm, eps, seed, spread):
    """Projected points are in the ball and the box; projecting them again changes nothing but rounding."""
    inputs = torch.rand(4, 2, 3, 3, generator=draws(seed)).round(decimals=1)
    points = inputs + spread * torch.randn(inputs.shape, generator=draws(seed + 1))
    projected = project(points, inputs, eps, norm)
    assert (distances(projected, inputs, norm) <= eps + 1e-6).all()
    assert projected.min() >= 0
    assert projected.max() <= 1
    assert torch.allclose(project(projected, inputs, eps, norm), projected, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_random_start_fills_the_ball(norm):
    """Starts are spread over the whole radius, as a uniform draw from the ball is."""
    inputs = torch.full((4000, 1, 1, 2), 0.5)
    start = random_point(inputs, 0.2, norm, draws())
    radii = distances(start, inputs, norm) / 0.2
    # In two dimensions the share of the ball within radius r is r squared.
    for radius in (0.25, 0.5, 0.75, 1.0):
        assert (radii <= radius + 1e-6).float().mean().item() == pytest.approx(radius**2, abs=0.03)
    assert abs((start - inputs).mean().item()) < 0.005


def test_small_gradients_keep_their_norm():
    """Norms far below and above the square root of float32's range are exact, zero stays zero."""
    rows = torch.tensor([[3e-30, 4e-30], [3e30, 4e30], [0.0, 0.0], [3.0, 4.0]])
    assert torch.allclose(l2_norms(rows), torch.tensor([5e-30, 5e30, 0.0, 5.0]), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "bad",
    [
        torch.zeros(1, dtype=torch.uint8),
        torch.tensor([1.01]),
        torch.tensor([-0.01]),
        torch.tensor([math.nan]),
    ],
)
def test_inputs_that_are_not_pixels_are_refused(bad):
    """Bytes, values outside [0, 1] and NaN are not inputs."""
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        check_inputs(bad)


def test_an_empty_batch_of_inputs_is_fine():
    """No pixel is wrong where there is none."""
    check_inputs(torch.empty(0, 3, 8, 8))


class Wrapped(nn.Module):
    """A network with something done to its inputs or logits."""

    def __init__(self, network, call):
        super().__init__()
        self.network, self.call = network, call

    def forward(self, inputs):
        """Logits."""
        return self.call(self.network, inputs)


def detached(network):
    """A model whose logits have no way back to the pixels."""
    return Wrapped(network, lambda network, inputs: network(inputs.detach()))


def test_a_model_without_a_gradient_is_known_by_it(model, inputs):
    """Detached, or classes instead of logits; a gradient that is zero is one."""
    classes = Wrapped(model, lambda network, inputs: nn.functional.one_hot(network(inputs).argmax(dim=1)))
    zero = Wrapped(model, lambda network, inputs: network(0 * inputs))

    assert carries_gradient(model, inputs[:1])
    assert carries_gradient(zero, inputs[:1])
    assert not carries_gradient(detached(model), inputs[:1])
    assert not carries_gradient(classes, inputs[:1])


def test_a_model_without_a_gradient_is_attacked_but_not_trained_against(model, inputs, labels):
    """FGSM moves nothing and PGD keeps its random start; a training attack that does nothing would go unnoticed."""
    threat = {"eps": 0.1, "steps": 2, "step_size": 0.05}

    assert torch.equal(fgsm(detached(model), inputs, labels, eps=0.1), inputs)
    assert (pgd(detached(model), inputs, labels, eps=0.1) - inputs).abs().max() <= 0.1 + 1e-6
    with pytest.raises(ValueError, match="carry no gradient to its pixels in evaluation mode"):
        trades_attack(detached(model), inputs, **threat)
    with pytest.raises(ValueError, match="carry no gradient to its pixels in evaluation mode"):
        pgd_training_attack(detached(model), inputs, labels, **threat)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("restarts", [1, 2])
def test_stopping_at_the_first_mistake_fools_the_same_rows(model, norm, restarts):
    """until_fooled saves work on rows that are lost; which rows are lost, and the ball, stay the same."""
    eps = 0.02 if norm == "linf" else 0.3
    inputs = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        labels = model.eval()(inputs).argmax(dim=1)
    found = {}
    for early in (False, True):
        draws = torch.Generator().manual_seed(7)
        adv_inputs = pgd(model, inputs, labels, eps=eps, norm=norm, steps=6, generator=draws, restarts=restarts,
                         until_fooled=early)  # fmt: skip
        moved = (adv_inputs - inputs).flatten(1)
        length = moved.abs().amax(dim=1) if norm == "linf" else moved.norm(dim=1)
        assert float(length.max()) <= eps * (1 + 1e-5)
        with torch.no_grad():
            found[early] = model(adv_inputs).argmax(dim=1) != labels

    assert 0 < int(found[True].sum()) < 64, "all or none fooled: nothing is compared"
    assert torch.equal(found[False], found[True])


# ---------------------------------------------------------------- PGD-AT


def plain_pgd_training_attack(model, inputs, labels, start, *, eps, norm, steps, step_size):
    """The attack of adversarial training row by row, as its papers write it: no helper of the package."""
    model.eval()
    rows = []
    for image, label, point in zip(inputs, labels, start, strict=True):
        for _ in range(steps):
            point = point.detach().requires_grad_()
            nn.functional.cross_entropy(model(point[None]), label[None]).backward()
            direction = point.grad.sign() if norm == "linf" else point.grad / point.grad.norm()
            moved = (point + step_size * direction).detach()
            if norm == "linf":
                point = torch.min(torch.max(moved, image - eps), image + eps).clamp(0, 1)
            else:
                offset = moved.clamp(0, 1) - image
                point = image + offset * min(1.0, eps / offset.norm().item())
        rows.append(point.detach())
    return torch.stack(rows)


@pytest.mark.parametrize(("norm", "eps", "step_size"), [("linf", 8 / 255, 2 / 255), ("l2", 0.5, 0.125)])
def test_the_pgd_training_attack_is_its_formula(model, inputs, labels, norm, eps, step_size):
    """Ten steps from the same start equal a plain loop over rows, the last iterate kept, to 1e-6."""
    start = random_point(inputs, eps, norm, draws())
    options = {"eps": eps, "norm": norm, "steps": 10, "step_size": step_size}
    plain = plain_pgd_training_attack(copy.deepcopy(model), inputs, labels, start, **options)
    ours = pgd_training_attack(model, inputs, labels, start=start, **options)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-6)
    assert not torch.allclose(ours, start, atol=1e-3)


def test_the_pgd_training_attack_starts_at_a_uniform_point_of_the_ball(model, inputs, labels):
    """Without a start it is the draw of ``random_point``, not the input and not TRADES' Gaussian."""
    options = {"eps": 0.1, "steps": 3, "step_size": 0.02}
    drawn = pgd_training_attack(model, inputs, labels, generator=draws(), **options)
    given = pgd_training_attack(model, inputs, labels, start=random_point(inputs, 0.1, "linf", draws()), **options)
    assert torch.equal(drawn, given)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_pgd_training_attack_leaves_no_trace(model, inputs, labels, norm):
    """Weights, running statistics, gradients and every module's mode are as they were; no graph comes out."""
    model.train()
    next(model.children()).eval()
    modes = [module.training for module in model.modules()]
    before = copy.deepcopy(model.state_dict())
    adv_inputs = pgd_training_attack(model, inputs, labels, eps=0.1, norm=norm, step_size=0.02, generator=draws())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [module.training for module in model.modules()] == modes
    assert not adv_inputs.requires_grad
