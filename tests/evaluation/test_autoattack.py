"""AutoAttack through pyautoattack: any number of classes, no trace, never weaker than PGD; our PGD and foolbox's."""

import pytest
import torch
from torch import nn

from easycore_ray.core.attacks import pgd
from easycore_ray.core.models import build_model
from easycore_ray.evaluation.autoattack import autoattack
from easycore_ray.evaluation.threats import require_autoattack
from easycore_ray.storage.errors import EasyCoreError


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors this small are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def linear(num_classes):
    """A linear model of 1 × 6 × 6 images, ten images and its own answers."""
    draws = torch.Generator().manual_seed(num_classes)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, num_classes))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(num_classes, 36, generator=draws))
        model[1].bias.copy_(-0.5 * model[1].weight.sum(dim=1))  # gray is on every boundary
    inputs = torch.rand(10, 1, 6, 6, generator=draws)
    return model, inputs, model(inputs).argmax(dim=1)


def wrong(model, inputs, labels):
    with torch.no_grad():
        return model(inputs).argmax(dim=1) != labels


@pytest.fixture(scope="module")
def digits_cnn():
    """A small cnn trained on 1,200 digits for a second or two, and the 250 test images after them."""
    from sklearn.datasets import load_digits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(data.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model("cnn", num_classes=10, image_shape=(1, 8, 8), width=8, mean=[0.3], std=[0.37])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(6):
            for at in torch.randperm(1200).split(60):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images[at]), labels[at]).backward()
                optimizer.step()
    torch.set_num_threads(threads)
    return model.eval(), images[1200:1450], labels[1200:1450]


class TestAutoAttack:
    """The adapter."""

    @pytest.fixture(autouse=True)
    def installed(self):
        pytest.importorskip("pyautoattack")

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "num_classes", [2, *(pytest.param(number, marks=pytest.mark.slow) for number in (3, 4, 9, 10))]
    )
    def test_any_number_of_classes_runs(self, num_classes):
        """A budget far beyond the margin fools every image, one far below it none (there all four attacks run)."""
        model, inputs, labels = linear(num_classes)
        weak, _ = autoattack(model, inputs[:2], labels[:2], eps=1e-6, norm="linf", seed=0)
        strong, _ = autoattack(model, inputs, labels, eps=0.9, norm="linf", seed=0)

        assert not wrong(model, weak, labels[:2]).any()
        assert wrong(model, strong, labels).all()

    @pytest.mark.slow
    @pytest.mark.parametrize("norm", ["linf", "l2"])
    @pytest.mark.parametrize("num_classes", [2, 3])
    def test_few_classes_are_fooled_at_the_exact_distance(self, num_classes, norm):
        """On a linear model an image can be fooled if and only if eps exceeds its distance to the boundary."""
        model, inputs, labels = linear(num_classes)
        inputs = 0.4 + 0.2 * inputs  # the box is out of reach
        labels = model(inputs).argmax(dim=1)
        weight, logits = model[1].weight.detach(), model(inputs).detach()
        rows = torch.arange(len(labels))
        gaps = logits[rows, labels][:, None] - logits
        steps = (weight[labels][:, None] - weight).norm(p=1 if norm == "linf" else 2, dim=2)
        distances = (gaps / steps.clamp_min(1e-9)).masked_fill(gaps == 0, torch.inf).min(dim=1).values
        eps = distances.sort().values[4:6].mean().item()
        assert eps < 0.4, "or the box is not out of reach"
        adv_inputs, warnings = autoattack(model, inputs, labels, eps=eps, norm=norm, seed=0)

        torch.testing.assert_close(wrong(model, adv_inputs, labels), distances < eps)
        assert any("DLR" in text for text in warnings)

    @pytest.mark.slow
    def test_leaves_no_trace(self, digits_cnn):
        """Weights, gradients, modes and the global generator are as they were; the same seed repeats."""
        model, inputs, labels = digits_cnn
        weights = [value.clone() for value in model.state_dict().values()]
        random = torch.get_rng_state()
        first, _ = autoattack(model.train(), inputs[:6], labels[:6], eps=0.3, norm="linf", seed=1)
        assert model.training
        again, _ = autoattack(model.eval(), inputs[:6], labels[:6], eps=0.3, norm="linf", seed=1)

        assert torch.equal(first, again)
        assert torch.equal(random, torch.get_rng_state())
        assert all(torch.equal(old, new) for old, new in zip(weights, model.state_dict().values(), strict=True))
        assert all(weight.requires_grad for weight in model.parameters())

    @pytest.mark.slow
    @pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.6), ("l1", 2.0)])
    def test_is_never_weaker_than_pgd_and_stays_within_eps(self, digits_cnn, norm, eps):
        """On a trained cnn, also one that computes channels last."""
        model, inputs, labels = digits_cnn
        inputs, labels = inputs[:12], labels[:12]
        model = model.to(memory_format=torch.channels_last)
        draws = torch.Generator().manual_seed(0)
        ours = wrong(model, pgd(model, inputs, labels, eps=eps, norm=norm, generator=draws), labels)
        adv_inputs, _ = autoattack(model, inputs, labels, eps=eps, norm=norm, seed=0)
        theirs = wrong(model, adv_inputs, labels)
        moved = (adv_inputs - inputs).flatten(1)

        assert 0 < ours.sum() < len(labels), "a budget that decides nothing"
        assert theirs.sum() >= ours.sum()
        assert moved.norm(p={"linf": torch.inf, "l2": 2, "l1": 1}[norm], dim=1).max() <= eps + 1e-5
        assert adv_inputs.min() >= 0
        assert adv_inputs.max() <= 1

    @pytest.mark.slow
    def test_warns_of_masked_gradients(self):
        """A model that rounds its input has no gradients; the warning comes back instead of going to the log."""

        class Masked(nn.Module):
            def __init__(self, inner):
                super().__init__()
                self.inner = inner

            def forward(self, inputs):
                return self.inner((inputs * 8).round() / 8 + 0 * inputs)

        model, inputs, _ = linear(5)
        masked = Masked(model)
        _, warnings = autoattack(masked, inputs, masked(inputs).argmax(dim=1), eps=0.2, norm="linf", seed=0)

        assert any("gradient zero" in text for text in warnings)

    def test_one_image_and_eps_zero(self):
        """The smallest shard runs; eps 0 changes nothing."""
        model, inputs, labels = linear(4)
        adv_inputs, _ = autoattack(model, inputs[:1], labels[:1], eps=0.9, norm="linf", seed=0)

        assert wrong(model, adv_inputs, labels[:1]).all()
        assert autoattack(model, inputs, labels, eps=0, norm="linf", seed=0) == (inputs, [])

    @pytest.mark.parametrize("norm", ["l2", "l1"])
    def test_images_too_small_for_square_are_refused(self, norm):
        """The library would divide by zero after most of the work."""
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
        with pytest.raises(EasyCoreError, match=f"norm {norm} needs images of at least 5"):
            autoattack(model, torch.rand(2, 1, 4, 4), torch.tensor([0, 1]), eps=0.1, norm=norm, seed=0)

    def test_l1_fools_what_it_can_within_eps(self):
        """Beyond the distance of the plane every image, and none of its points leaves the ball or the box."""
        model, inputs, labels = linear(2)
        adv_inputs, _ = autoattack(model, inputs, labels, eps=3.0, norm="l1", seed=0)

        assert wrong(model, adv_inputs, labels).all()
        assert (adv_inputs - inputs).flatten(1).abs().sum(1).max() <= 3 + 1e-5
        assert 0 <= adv_inputs.min() <= adv_inputs.max() <= 1


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    """Before any work."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)

    with pytest.raises(EasyCoreError, match=r"pip install 'pyautoattack"):
        require_autoattack()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pgd_agrees_with_foolbox(digits_cnn):
    """The same steps from the same start fool the same share; ours, which keeps the worst iterate, at least as many."""
    import foolbox

    model, inputs, labels = digits_cnn
    known = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    shares = []
    for eps in (0.05, 0.1, 0.15):
        attack = foolbox.attacks.LinfPGD(abs_stepsize=eps / 8, steps=20, random_start=False)
        _, clipped, _ = attack(known, inputs, labels, epsilons=eps)
        theirs = wrong(model, clipped, labels)
        ours = wrong(model, pgd(model, inputs, labels, eps=eps, random_start=False), labels)
        shares.append(theirs.float().mean().item())

        assert not (theirs & ~ours).any()
        assert (ours != theirs).float().mean() <= 0.02
    assert 0.02 < shares[0] < shares[-1], "a budget that decides nothing"
