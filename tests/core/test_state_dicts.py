"""State dicts of other projects: the same logits in our networks, and every difference by name."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from easycore_ray.core.models import build_model
from easycore_ray.core.state_dicts import adopt, unwrap
from tests.foreign_networks import Normalised, PreActResNet, SmallResNet, WideResNet, trained

pytestmark = pytest.mark.slow

CLASSES, WIDTH = 7, 4
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2471, 0.2435, 0.2616]
SOURCES = {
    "wrn-28-10": lambda: WideResNet(28, 1, CLASSES),
    "wrn-34-10": lambda: WideResNet(34, 1, CLASSES),
    "resnet18": lambda: SmallResNet(WIDTH, CLASSES),
    "preactresnet18": lambda: PreActResNet(WIDTH, CLASSES, bn_before_fc=True),
    "preactresnet18-nobn": lambda: PreActResNet(WIDTH, CLASSES),
    "preactresnet18-fast": lambda: PreActResNet(WIDTH, CLASSES, from_input=True),
}


def network(name, **changes):
    """Ours of this name, as narrow as the foreign one."""
    arguments = {"num_classes": CLASSES, "image_shape": (3, 32, 32), "width": 1 if name.startswith("wrn") else WIDTH,
                 "mean": [0.0] * 3, "std": [1.0] * 3} | changes  # fmt: skip
    return build_model(name, **arguments).network.eval()


def adopted(tensors, name):
    """Ours with these weights, and the normalisation they bring."""
    ours = network(name)
    found = adopt(tensors, name, ours)
    ours.load_state_dict(found.tensors)
    return ours, found.norm


def pixels():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", SOURCES)
def test_the_sources_weights_give_the_sources_logits(name):
    """Of its own module, batch norm in evaluation mode."""
    theirs = trained(SOURCES[name]())
    ours, norm = adopted(theirs.state_dict(), name)

    with torch.no_grad():
        expected = theirs(pixels())
        assert torch.allclose(ours(pixels()), expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 0.01
    assert norm is None


def test_the_shortcuts_origin_changes_the_logits_and_no_name():
    """So no file says which it was trained with: it is the model's name that does."""
    theirs = trained(SOURCES["preactresnet18-fast"]())
    right, wrong = (adopted(theirs.state_dict(), f"preactresnet18-{kind}")[0] for kind in ("fast", "nobn"))

    with torch.no_grad():
        assert not torch.allclose(right(pixels()), wrong(pixels()), atol=1e-2)


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model.", "_orig_mod.", "1."])
def test_prefixes_are_dropped(prefix):
    """Those of DataParallel, compiled and wrapped networks: whatever all names share."""
    theirs = trained(SOURCES["resnet18"]())
    ours, _ = adopted({prefix + key: tensor for key, tensor in theirs.state_dict().items()}, "resnet18")

    with torch.no_grad():
        assert torch.allclose(ours(pixels()), theirs(pixels()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "test_robust_acc": 0.5},  # robust_overfitting, Bag of Tricks
        lambda state: {"net": state, "acc": 94.5, "epoch": 7},  # pytorch-cifar
        lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {}}},
        lambda state: {"last": state, "best": {}},  # RobustBench: Andriushchenko2020Understanding
        lambda state: {"model": {"state_dict": OrderedDict(state)}},
    ],
)
def test_wrappers_are_opened(wrap):
    """The state dict inside, and nothing beside it."""
    state = trained(SOURCES["resnet18"]()).state_dict()
    assert unwrap(wrap(state)).keys() == state.keys()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "optimizer": {}}, "holds no tensors, but epoch, optimizer; .*under state_dict, model_state_dict"),
        ({}, "holds no tensors, but nothing"),
        ([1, 2], "holds a list, no state dict"),
        (torch.zeros(2), "holds a Tensor, no state dict"),
    ],
)
def test_what_is_no_state_dict_is_refused(content, message):
    """With what is there."""
    with pytest.raises(ValueError, match=message):
        unwrap(content)


def test_a_normalisation_is_told_from_the_network():
    """As ``normalize.mean`` before ``model.``, and as RobustBench's buffers mu and sigma."""
    theirs = trained(SOURCES["wrn-28-10"]())
    wrapped = Normalised(theirs, MEAN, STD)
    buffers = theirs.state_dict() | {"mu": torch.tensor(MEAN).view(1, 3, 1, 1), "sigma": torch.tensor(STD)}
    ours, norm = adopted(nn.DataParallel(wrapped).state_dict(), "wrn-28-10")
    again, other = adopted(buffers, "wrn-28-10")

    with torch.no_grad():
        assert torch.allclose(ours(pixels()), theirs(pixels()), rtol=1e-4, atol=1e-5)
        assert torch.equal(again(pixels()), ours(pixels()))
    assert norm == other
    assert norm[0] == pytest.approx(MEAN)
    assert norm[1] == pytest.approx(STD)


def test_our_own_names_are_understood_as_well():
    """Of an exported model, whose normalisation is inside."""
    model = build_model("resnet18", num_classes=CLASSES, image_shape=(3, 32, 32), width=WIDTH, mean=MEAN, std=STD)
    ours, norm = adopted(model.state_dict(), "resnet18")

    assert all(map(torch.equal, ours.state_dict().values(), model.network.state_dict().values()))
    assert norm[0] == pytest.approx(MEAN)


def test_old_and_half_precision_files_are_read():
    """Without counts of batches, as before PyTorch 0.4.1; floats become float32."""
    state = trained(SOURCES["resnet18"]()).state_dict()
    old = {key: tensor.half() for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
    ours, _ = adopted(old, "resnet18")

    assert ours[0].weight.dtype == torch.float32
    assert torch.equal(ours[0].weight, state["conv1.weight"].half().float())


def changed(name, **changes):
    """The state dict of a source with other tensors; None drops those with this beginning."""
    state = trained(SOURCES[name]()).state_dict()
    for beginning, tensor in changes.items():
        state = {key: each for key, each in state.items() if not key.startswith(beginning)}
        state |= {} if tensor is None else {beginning: tensor}
    return state


@pytest.mark.parametrize(
    ("name", "state", "message"),
    [
        ("resnet18", changed("resnet18", linear=None),
         r"does not fit resnet18: it lacks linear.weight, linear.bias; check --model, --width"),
        ("resnet18", changed("resnet18", extra=torch.zeros(1)), "it has extra, which the network has not"),
        ("resnet18", changed("resnet18") | {"linear.weight": torch.zeros(9, 32)},
         r"linear.weight is of shape \(9, 32\), in the network \(7, 32\)"),
        ("resnet18", changed("resnet18", layer4=None), r"it lacks layer4.0.conv1.weight, .* and \d+ more"),
        ("wrn-34-10", changed("wrn-28-10"), "it lacks block1.layer.4.bn1.weight"),
        ("preactresnet18", changed("preactresnet18-nobn"),
         "it lacks bn.weight.*pass --model preactresnet18-nobn .* or preactresnet18-fast"),
        ("preactresnet18-fast", changed("preactresnet18"), "it has bn.weight.*pass --model preactresnet18,"),
        ("wrn-28-10", {"features.0.weight": torch.zeros(1), "classifier.weight": torch.zeros(1)},
         "it lacks conv1.weight, .* and 126 more; it has features.0.weight, classifier.weight, which"),
    ],
)  # fmt: skip
def test_differences_are_named_in_the_files_words(name, state, message):
    """What is missing, unknown, or of another shape; one line, and what to do."""
    with pytest.raises(ValueError, match=message) as caught:
        adopt(state, name, network(name))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_network_of_a_user_has_its_own_names():
    """Nothing is renamed, and no first word of its own is taken for a prefix."""
    ours = nn.Sequential(nn.Linear(2, 2))
    state = {"0.weight": torch.ones(2, 2), "0.bias": torch.zeros(2)}

    assert adopt(state, "mine:make", ours).tensors.keys() == state.keys()
    assert (
        adopt({f"module.{key}": each for key, each in state.items()}, "mine:make", ours).tensors.keys() == state.keys()
    )
