"""What a GPU would be told, shown without one: no operation mixes devices, and no training step waits for an answer.

Tensors of the ``meta`` device stand in for a GPU's. They have shapes but no values, so that asking for a number raises
where a GPU would have to be waited for; a dispatch mode refuses what a GPU refuses and ``meta`` lets through.
"""

from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from easycore_ray.core import attacks, distance, loop, scores
from easycore_ray.core.ascent import Ascent
from easycore_ray.core.augment import AUGMENTATIONS, augment
from easycore_ray.core.averaging import AveragedWeights
from easycore_ray.core.loop import make_optimizer, train_epoch
from easycore_ray.core.memory import RowLimit
from easycore_ray.core.models import MODELS, build_model
from easycore_ray.core.passes import ScoreAttack, score_epoch
from easycore_ray.core.score_columns import ScoreColumns
from easycore_ray.core.scores import INPUT_SPACES
from easycore_ray.core.training_plan import TRAINING, TrainingPlan

DEVICE = torch.device("meta")


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of several devices, but for copies and single numbers."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor) and leaf.ndim]
        if len({tensor.device for tensor in tensors}) > 1 and "copy" not in func.__name__:
            raise RuntimeError(f"{func} on tensors of several devices")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def asked(monkeypatch):
    """The questions that were put to the device, by their names; each is answered with 0."""
    found = []

    def answer(name, kind):
        def ask(tensor):
            found.append(name)
            return kind()

        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self: ask(self) if self.is_meta else original(self))

    for name, kind in (("__float__", float), ("__int__", int), ("__bool__", lambda: True)):
        answer(name, kind)
    return found


@pytest.fixture
def pixels_are_trusted(monkeypatch):
    """Those of meta have no values to check."""
    for module in (attacks, scores, distance):
        monkeypatch.setattr(module, "check_inputs", lambda *_: None)


def model_on(device, name="resnet18"):
    width = {"wrn-28-10": 1, "wrn-34-10": 1, "resnet18-imagenet": 64}.get(name, 4)
    with torch.device(device):
        return build_model(name, num_classes=10, image_shape=(3, 32, 32), width=width, mean=(0.5,) * 3, std=(0.2,) * 3)


def batches(count=3, rows=4):
    """As feeds give them: bytes and labels of the CPU."""
    images = torch.zeros(rows, 3, 32, 32, dtype=torch.uint8)
    return [(torch.arange(rows), images, torch.arange(rows)) for _ in range(count)]


def plan_of(**changes):
    fields = dict(
        training="trades", beta=6.0, eps=8 / 255, norm="linf", attack_steps=2, attack_step_size=2 / 255, lr=0.1,
        momentum=0.9, nesterov=True, weight_decay=5e-4, schedule="cosine", warmup_steps=0, total_steps=10,
        augment="crop-flip", crop_pad=4, precision="fp32", seed=0,
    )  # fmt: skip
    return TrainingPlan(**fields | changes)


def test_the_mode_refuses_what_a_gpu_refuses():
    """Also where meta alone would not."""
    image, kernel = torch.zeros(1, 1, 4, 4, device=DEVICE), torch.zeros(1, 1, 3, 3)
    torch.nn.functional.conv2d(image, kernel)

    with OneDevice(), pytest.raises(RuntimeError, match="several devices"):
        torch.nn.functional.conv2d(image, kernel)


@pytest.mark.parametrize("fold", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("norm", ["linf", pytest.param("l2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("training", TRAINING)
def test_a_training_step_waits_for_no_answer(asked, monkeypatch, training, norm, fold):
    """Bytes go to the device and nothing comes back before the epoch ends: then a look at the losses and two sums."""
    looks = []
    monkeypatch.setattr(loop._DivergenceWatch, "look", lambda watch: looks.append((watch._waiting.clear(), len(asked))))
    monkeypatch.setattr(loop._DivergenceWatch, "refuse_weights", lambda *_: None)
    awp = 0.0 if training == "standard" else 0.01
    model = model_on(DEVICE, "cnn")
    plan = plan_of(training=training, norm=norm, fold=fold, awp=awp, ema=0.9, clean_forwards=training == "pgd")
    with OneDevice():
        averaged = AveragedWeights(model, plan.ema, first_step=1)
        result = train_epoch(
            model, make_optimizer(model, plan), batches(), plan, epoch=1, step=0, on_step=averaged.update
        )

    assert looks == [(None, 0)], "only after the epoch, before which nothing was asked"
    assert asked == ["__float__", "__int__"]
    assert (result.steps, result.num_rows) == (3, 12)


@pytest.mark.parametrize("reflect", [False, True])
@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_views_are_made_on_the_device_of_the_images(asked, kind, reflect):
    """From ids of the CPU, with no question."""
    images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8, device=DEVICE)
    with OneDevice():
        views = augment(images, torch.arange(4), kind, seed=0, epoch=1, reflect=reflect)

    assert (views.device, views.shape, views.dtype) == (DEVICE, images.shape, torch.uint8)
    assert asked == []


def kept_on_the_device(monkeypatch):
    """Rows and device of the gradient norms of each batch that is kept. They are not fetched, which meta cannot do."""
    kept, add = [], ScoreColumns.add

    def watched(columns, batch):
        add(columns, batch)
        kept.append((len(batch["grad_norm"]), columns._columns["grad_norm"].device.type))

    monkeypatch.setattr(ScoreColumns, "add", watched)
    monkeypatch.setattr(ScoreColumns, "to_numpy", lambda _: "fetched")
    return kept


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_network_trains_on_one_device(asked, monkeypatch, name):
    """With scores taken on the way, which come back after the epoch."""
    monkeypatch.setattr(loop._DivergenceWatch, "look", lambda watch: watch._waiting.clear())
    monkeypatch.setattr(loop._DivergenceWatch, "refuse_weights", lambda *_: None)
    kept = kept_on_the_device(monkeypatch)
    model, plan = model_on(DEVICE, name), plan_of(training="standard", input_space="normalised")
    with OneDevice():
        result = train_epoch(model, make_optimizer(model, plan), batches(), plan, epoch=1, step=0, record_scores=True)

    assert asked == ["__float__", "__int__"]
    assert kept == [(4, DEVICE.type)] * 3
    assert result.scores == "fetched"


@pytest.mark.usefixtures("pixels_are_trusted", "asked")
@pytest.mark.parametrize("input_space", INPUT_SPACES)
@pytest.mark.parametrize("norm", [None, "linf", "l2"])
def test_exact_scores_are_taken_on_one_device(monkeypatch, input_space, norm):
    """A batch at a time, under an attack as well; all are fetched at the end."""
    monkeypatch.setattr(torch, "autocast", lambda **_: nullcontext())  # meta has none
    kept = kept_on_the_device(monkeypatch)
    with OneDevice():
        attack = norm and ScoreAttack(Ascent(0.1, norm, 2, 0.1), seed=0, epoch=1)
        scores = score_epoch(model_on(DEVICE), batches(2), input_space=input_space, attack=attack, limit=RowLimit(4))

    assert kept == [(4, "meta")] * 2
    assert scores == "fetched"


@pytest.mark.slow
@pytest.mark.usefixtures("pixels_are_trusted", "asked")
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_attacks_stay_on_the_device_of_their_inputs(norm):
    """With starts drawn by a generator of the CPU, as everywhere."""
    model, draws = model_on(DEVICE, "cnn"), torch.Generator().manual_seed(0)
    inputs, labels = torch.zeros(4, 3, 32, 32, device=DEVICE), torch.zeros(4, dtype=torch.int64, device=DEVICE)
    with OneDevice():
        found = [
            attacks.fgsm(model, inputs, labels, eps=0.1, norm=norm),
            attacks.pgd(model, inputs, labels, eps=0.1, norm=norm, steps=2, restarts=2, generator=draws),
            *distance.boundary_distance(model, inputs, labels, norm=norm),
        ]

    assert {values.device for values in found} == {DEVICE}
