"""The L1 threat model against slow oracles: SciPy's projection, linear programs; steps, starts, what is refused."""

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from easycore_ray.config.evaluation import EvaluateConfig
from easycore_ray.config.stages import TrainConfig
from easycore_ray.core.attacks import fgsm, pgd
from easycore_ray.core.eps import check_eps
from easycore_ray.core.threat import l1_norms, project, random_point, sparse_step
from easycore_ray.core.training_plan import TrainingPlan
from easycore_ray.storage.errors import EasyCoreError


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def by_bisection(point, centre, eps):
    """The nearest point of ball and box for one row, in float64: bisection on the multiplier of the constraint."""
    offset = point - centre
    room = np.where(offset > 0, 1 - centre, centre)
    cut = lambda threshold: np.clip(np.abs(offset) - threshold, 0, room)  # noqa: E731
    low, high = 0.0, float(np.abs(offset).max(initial=0))
    if cut(0.0).sum() > eps:
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if cut(middle).sum() > eps else (low, middle)
    return centre + np.sign(offset) * cut(low if cut(0.0).sum() <= eps else high)


@settings(deadline=None)
@given(st.floats(0, 8), st.integers(0, 999), st.floats(0.01, 5), st.booleans())
def test_the_projection_is_that_of_bisection(eps, seed, spread, rounded):
    """Ball, box and both of them in the way; pixels at 0 and 1 among them; offsets that tie."""
    inputs = torch.rand(4, 2, 3, 3, generator=draws(seed)).double().round(decimals=1 if rounded else 6)
    points = inputs + spread * torch.randn(inputs.shape, generator=draws(seed + 1)).double().round(decimals=rounded * 1)
    found = project(points, inputs, eps, "l1")

    for one, point, centre in zip(found, points, inputs, strict=True):
        expected = by_bisection(point.numpy().ravel(), centre.numpy().ravel(), eps)
        np.testing.assert_allclose(one.numpy().ravel(), expected, atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_no_allowed_point_is_nearer(seed):
    """A general solver, which knows no threshold, finds the same point."""
    centre = torch.rand(1, 6, generator=draws(seed)).double().round(decimals=1)
    point = centre + torch.randn(1, 6, generator=draws(seed + 9)).double()
    eps = 0.6
    # Offsets as differences of two non-negative parts, so that the norm is linear.
    parts = np.concatenate([np.eye(6), -np.eye(6)], axis=1)
    solved = scipy.optimize.minimize(
        lambda z: ((centre.numpy()[0] + parts @ z - point.numpy()[0]) ** 2).sum(), np.zeros(12), bounds=[(0, 1)] * 12,
        constraints=[{"type": "ineq", "fun": lambda z: eps - z.sum()},
                     {"type": "ineq", "fun": lambda z: centre.numpy()[0] + parts @ z},
                     {"type": "ineq", "fun": lambda z: 1 - centre.numpy()[0] - parts @ z}],
        options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    found = project(point, centre, eps, "l1")

    np.testing.assert_allclose(found.numpy()[0], centre.numpy()[0] + parts @ solved.x, atol=2e-5)


def test_cutting_after_the_balls_own_threshold_would_waste_radius():
    """A pixel at 1 pushed further takes no part of the radius: Croce and Hein's point."""
    inputs, points = torch.tensor([[1.0, 0.5]]), torch.tensor([[2.0, 0.9]])
    assert torch.allclose(project(points, inputs, 0.4, "l1"), torch.tensor([[1.0, 0.9]]))


class Linear(nn.Module):
    """Two classes apart by a plane, with a box that matters."""

    def __init__(self, num_pixels):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_pixels, generator=draws(5)))

    def forward(self, inputs):
        side = (inputs - 0.5).flatten(1) @ self.weight
        return torch.stack([side, -side], dim=1)


def farthest_side(model, image, label, eps):
    """The most that any allowed point changes the margin, by a linear program over ball and box."""
    x, w = image.flatten().double().numpy(), model.weight.detach().double().numpy() * (1 if label else -1)
    n = len(x)
    solved = scipy.optimize.linprog(
        np.concatenate([-w, w]), A_ub=np.ones((1, 2 * n)), b_ub=[eps],
        bounds=[(0, 1 - value) for value in x] + [(0, value) for value in x],
    )  # fmt: skip
    return -solved.fun


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_attacks_find_what_a_linear_program_finds(attack):
    """On a plane with the box in the way: the margin reached is the best there is, FGSM exactly, PGD within 2 %."""
    model = Linear(48)
    inputs = torch.rand(12, 3, 4, 4, generator=draws(6)).round(decimals=1)
    labels = model(inputs).argmax(1)
    for eps in (0.3, 1.5, 4.0):
        found = attack(model, inputs, labels, eps=eps, norm="l1", generator=draws())
        side = ((found - inputs).flatten(1).double() @ model.weight.detach().double()) * torch.where(labels == 1, 1, -1)
        best = torch.tensor([farthest_side(model, *row, eps) for row in zip(inputs, labels, strict=True)])

        assert (side <= best + 1e-5).all()
        assert (side >= best * (1 - (1e-5 if attack is fgsm else 0.02))).all()


def test_a_step_moves_few_pixels_by_its_length():
    """The largest gradients, as far as they can; a pixel at its end is passed over; zeros stay."""
    points = torch.tensor([[0.5, 1.0, 0.9, 0.2], [0.5, 0.5, 0.5, 0.5]])
    gradient = torch.tensor([[1.0, 9.0, 2.0, -3.0], [0.0, 0.0, 0.0, 0.0]])

    one = sparse_step(points, gradient, 0.25, 1)
    two = sparse_step(points, gradient, 0.25, 2)

    assert torch.allclose(one, torch.tensor([[0.5, 1.0, 0.95, 0.0], [0.5] * 4]))
    assert torch.allclose(two, torch.tensor([[0.525, 1.0, 1.0, 0.075], [0.5] * 4]))


def test_starts_are_uniform_in_the_ball():
    """In three dimensions the share within radius r is r cubed, and no axis is preferred."""
    inputs = torch.full((6000, 1, 1, 3), 0.5)
    offsets = (random_point(inputs, 0.3, "l1", draws()) - inputs).flatten(1)
    radii = l1_norms(offsets) / 0.3
    for radius in (0.5, 0.75, 1.0):
        assert (radii <= radius + 1e-6).float().mean().item() == pytest.approx(radius**3, abs=0.03)
    # Of a Dirichlet(1, 1, 1) share each coordinate has the mean 1/3 and the variance 1/18.
    shares = offsets.abs() / l1_norms(offsets)[:, None]
    assert torch.allclose(shares.mean(0), torch.full((3,), 1 / 3), atol=0.01)
    assert torch.allclose(shares.var(0), torch.full((3,), 1 / 18), atol=0.005)
    assert offsets.mean(0).abs().max() < 0.005


def test_eps_may_be_as_large_as_the_image():
    """12 is usual for 3,072 values; more than all of them is a slip."""
    check_eps(12.0, "l1", num_pixels=3072)
    with pytest.raises(ValueError, match=r"at most 64 in l1; got 100\.0"):
        check_eps(100.0, "l1", num_pixels=64)


def test_training_refuses_l1():
    """In one line: of a configuration, and of the loop's own plan."""
    with pytest.raises(EasyCoreError, match="norm must be one of linf, l2, got 'l1'"):
        TrainConfig(dataset="d", out="o", norm="l1")
    assert EvaluateConfig(checkpoint="c", dataset="d", out="o", norm="l1", eval_eps=12.0).norm == "l1"
    fields = dict.fromkeys(TrainingPlan.__dataclass_fields__, 1) | {"training": "trades", "norm": "l1"}
    with pytest.raises(ValueError, match="norm must be one of linf, l2"):
        TrainingPlan(**fields)
