"""The distance to the decision boundary: proved by a point, near the exact answer, without a trace."""

import copy

import pytest
import torch
from torch import nn

from easycore_ray.core.attacks import pgd
from easycore_ray.core.distance import boundary_distance, distances
from easycore_ray.core.eps import DENSE_NORMS


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


class Planes(nn.Module):
    """Classes apart by planes through the middle of the pixel range, in float64 so that distances are exact."""

    def __init__(self, num_classes, num_pixels=48, scale=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes, num_pixels, generator=draws(5)).double() * scale)

    def forward(self, inputs):
        return (inputs.double() - 0.5).flatten(1) @ self.weight.T

    def exact(self, inputs, labels, norm):
        """Distance to the nearest plane between the label and another class: margin over the dual norm."""
        logits = self(inputs)
        apart = self.weight[labels][:, None] - self.weight[None]
        margins = logits.gather(1, labels[:, None]) - logits
        found = margins / apart.norm(p=1 if norm == "linf" else 2, dim=2)
        return found.scatter(1, labels[:, None], torch.inf).amin(1).float().detach()


def inner(count=40, pixels=(3, 4, 4)):
    """Images from the middle of the pixel range: the nearest plane is met before any pixel is 0 or 1."""
    return 0.35 + 0.3 * torch.rand(count, *pixels, generator=draws(1))


@pytest.mark.parametrize("norm", DENSE_NORMS)
@pytest.mark.parametrize("num_classes", [2, 6])
def test_is_that_of_the_nearest_plane_and_never_less(norm, num_classes):
    """Within 2 % above the exact distance of a linear model, and not below it."""
    model, inputs = Planes(num_classes), inner()
    labels = model(inputs).argmax(1)
    exact = model.exact(inputs, labels, norm)
    found, _ = boundary_distance(model, inputs, labels, norm=norm)

    assert (found >= exact * (1 - 1e-5)).all()
    assert (found <= 1.02 * exact).all()


@pytest.mark.parametrize("norm", DENSE_NORMS)
def test_does_not_depend_on_the_scale_of_logits_or_pixels(norm):
    """A model a thousand times as sure, or inputs hardly off the plane, need no other setting."""
    inputs = inner()
    for model in (Planes(4, scale=1000.0), Planes(4, scale=1e-3)):
        labels = model(inputs).argmax(1)
        found, _ = boundary_distance(model, inputs, labels, norm=norm)
        assert (found <= 1.02 * model.exact(inputs, labels, norm)).all()


@pytest.mark.parametrize("norm", DENSE_NORMS)
class TestEveryNorm:
    """What holds in each norm, on a network with batch norm."""

    def test_a_point_proves_each_distance(self, model, inputs, norm):
        """Wrong, in the pixel range, and exactly that far; where the model is wrong already the distance is 0."""
        with torch.no_grad():
            labels = copy.deepcopy(model).eval()(inputs).argmax(1)
        labels[:3] = (labels[:3] + 1) % 5
        found, points = boundary_distance(model, inputs, labels, norm=norm)
        with torch.no_grad():
            wrong = model.eval()(points).argmax(1) != labels

        assert wrong[found.isfinite()].all()
        assert found.isfinite().all()
        assert (found[:3] == 0).all()
        assert torch.equal(points[:3], inputs[:3])
        assert (found[3:] > 0).all()
        torch.testing.assert_close(found, distances(points, inputs, norm))
        assert points.min() >= 0
        assert points.max() <= 1

    def test_pgd_finds_nothing_much_nearer(self, model, inputs, norm):
        """A strong attack with 80 % of the distance fools at most one of six images."""
        with torch.no_grad():
            labels = model.eval()(inputs).argmax(1)
        found, _ = boundary_distance(model, inputs, labels, norm=norm)
        fooled = 0
        for row in range(0, len(inputs), 2):
            one, label = inputs[row : row + 1], labels[row : row + 1]
            eps = 0.8 * float(found[row])
            points = pgd(model, one, label, eps=eps, norm=norm, steps=20, generator=draws())
            with torch.no_grad():
                fooled += int(model(points).argmax(1) != label)

        assert fooled <= 1

    def test_leaves_no_trace_and_draws_nothing(self, model, inputs, labels, norm):
        """Weights, buffers, gradients, modes, inputs and the global generator are as before; twice gives the same."""
        model.train()
        model.network[1].eval()
        before, clean, state = copy.deepcopy(model), inputs.clone(), torch.get_rng_state()
        found, points = boundary_distance(model, inputs, labels, norm=norm, steps=4)
        again, _ = boundary_distance(model.eval(), inputs, labels, norm=norm, steps=4)

        assert torch.equal(found, again)
        assert not points.requires_grad
        assert all(map(torch.equal, model.state_dict().values(), before.state_dict().values()))
        assert all(parameter.grad is None for parameter in model.parameters())
        assert torch.equal(inputs, clean)
        assert torch.equal(torch.get_rng_state(), state)

    def test_restores_modes(self, model, inputs, labels, norm):
        """Each submodule is in the mode it was in, also after an error."""
        model.train()
        model.network[1].eval()
        modes = [module.training for module in model.modules()]
        boundary_distance(model, inputs, labels, norm=norm, steps=2)
        assert [module.training for module in model.modules()] == modes

        model.network.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            boundary_distance(model, inputs, labels, norm=norm, steps=2)
        assert [module.training for module in model.modules()] == modes

    def test_a_model_that_cannot_be_fooled_is_infinitely_far(self, norm):
        """One answer whatever the image: no point, no distance; the inputs come back."""

        class Constant(nn.Module):
            def forward(self, inputs):
                return torch.tensor([1.0, 0.0]).expand(len(inputs), 2) + 0 * inputs.flatten(1)[:, :2]

        inputs = inner(5)
        found, points = boundary_distance(Constant(), inputs, torch.zeros(5, dtype=torch.int64), norm=norm)

        assert found.isinf().all()
        assert torch.equal(points, inputs)

    def test_no_rows_give_no_distances(self, model, inputs, labels, norm):
        """An empty shard is no error."""
        found, points = boundary_distance(model, inputs[:0], labels[:0], norm=norm)
        assert found.shape == (0,)
        assert points.shape == inputs[:0].shape


def test_a_row_does_not_depend_on_its_batch_mates(model, inputs):
    """Alone or among others, to rounding."""
    with torch.no_grad():
        labels = model.eval()(inputs).argmax(1)
    together, _ = boundary_distance(model, inputs, labels)
    alone = torch.cat([boundary_distance(model, inputs[at : at + 1], labels[at : at + 1])[0] for at in range(11)])

    torch.testing.assert_close(alone, together, rtol=0.02, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"), [({"steps": 0}, "steps must be at least 1"), ({"norm": "l1"}, "norm must be one of")]
)
def test_impossible_settings_are_refused(model, inputs, labels, changes, words):
    """Before any work."""
    with pytest.raises(ValueError, match=words):
        boundary_distance(model, inputs, labels, **changes)


def test_normalised_inputs_are_refused(model, inputs, labels):
    """They point to normalisation in the wrong place."""
    with pytest.raises(ValueError, match="normalisation inside the model"):
        boundary_distance(model, 4 * inputs - 2, labels)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_model_without_a_gradient_is_fooled_by_nothing(norm):
    """Its logits are detached: what it gets wrong anyway is at 0, the rest at infinity."""
    inputs, labels = torch.rand(6, 1, 4, 4), torch.arange(6) % 3
    weights = torch.randn(16, 3)

    class Detached(nn.Module):
        def forward(self, inputs):
            return (inputs.flatten(1) @ weights).detach()

    model = Detached()
    found, points = boundary_distance(model, inputs, labels, norm=norm, steps=2)

    wrong = model(inputs).argmax(dim=1) != labels
    assert found.tolist() == torch.where(wrong, 0.0, torch.inf).tolist()
    assert torch.equal(points, inputs)
