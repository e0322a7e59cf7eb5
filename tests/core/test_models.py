"""Models: the known architectures, pixels in, the seed alone decides the weights."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.resnet import BasicBlock as TorchvisionBlock
from torchvision.models.resnet import ResNet

from easycore_ray.core.models import MODELS, Normalise, build_model, num_parameters
from easycore_ray.core.names import default_width

SMALL_WIDTHS = {
    "cnn": 4,
    "resnet18": 4,
    "preactresnet18": 4,
    "preactresnet18-nobn": 4,
    "preactresnet18-fast": 4,
    "wrn-28-10": 1,
    "wrn-34-10": 1,
    "resnet18-imagenet": 64,
    "resnet50-imagenet": 8,
}


def small(name, *, channels=3, size=32, seed=0):
    """The model of this name, as narrow as it gets."""
    return build_model(
        name,
        num_classes=7,
        image_shape=(channels, size, size),
        width=SMALL_WIDTHS[name],
        mean=[0.5] * channels,
        std=[0.25] * channels,
        seed=seed,
    )


def same_weights(first, second):
    """Whether two models hold equal tensors."""
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("name", "num_classes", "expected"),
    [
        ("resnet18", 10, 11_173_962),  # kuangliu/pytorch-cifar
        ("preactresnet18", 10, 11_172_170),  # the next with a last batch norm of 2 x 512
        ("preactresnet18-nobn", 10, 11_171_146),  # kuangliu/pytorch-cifar
        ("preactresnet18-fast", 10, 11_171_146),
        ("wrn-28-10", 10, 36_479_194),
        ("wrn-34-10", 10, 46_160_474),
        ("resnet18-imagenet", 1000, 11_689_512),
        ("resnet50-imagenet", 1000, 25_557_032),
    ],
)
def test_architectures_have_their_published_size(name, num_classes, expected):
    """Each known network has exactly the number of weights its authors report."""
    with torch.device("meta"):
        network = MODELS[name](num_classes=num_classes, in_channels=3)
    assert num_parameters(network) == expected


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("channels", [1, 3])
def test_every_model_maps_pixels_to_logits(name, channels):
    """Grey and colour images give one finite row of logits each, and a gradient at the pixels."""
    inputs = torch.rand(2, channels, 32, 32, requires_grad=True)
    logits = small(name, channels=channels)(inputs)
    assert logits.shape == (2, 7)
    (grad,) = torch.autograd.grad(logits.sum(), inputs)
    assert torch.isfinite(logits).all()
    assert torch.isfinite(grad).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_trains_at_its_full_size(name):
    """At the width of its paper, in training mode: every weight gets a finite gradient."""
    size = 64 if name.endswith("imagenet") else 32
    model = build_model(name, num_classes=10, image_shape=(3, size, size), mean=[0.5] * 3, std=[0.25] * 3)
    F.cross_entropy(model(torch.rand(2, 3, size, size)), torch.tensor([3, 7])).backward()

    assert all(weight.grad is not None and torch.isfinite(weight.grad).all() for weight in model.parameters())


def test_resnet18_computes_what_torchvision_computes():
    """With the stem for small images and the same weights, torchvision's ResNet-18 gives the same logits."""
    ours = small("resnet18").network
    with torch.device("meta"):
        theirs = ResNet(TorchvisionBlock, [2, 2, 2, 2], num_classes=7)
    weights = iter(ours.state_dict().values())
    theirs = theirs.to_empty(device="cpu")
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Identity()
    for module in theirs.modules():
        for name, _ in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(next(weights)))
        for name, _ in list(module.named_buffers(recurse=False)):
            setattr(module, name, next(weights))
    inputs = torch.rand(2, 3, 32, 32)
    assert torch.allclose(ours.eval()(inputs), theirs.eval()(inputs), atol=1e-5)


def pre_activation_logits(weights, inputs, *, widths, blocks_per_stage, raw_shortcut=False, last_norm=True):
    """A pre-activation network by the equations of He et al. 2016 and its variants, batch norm in eval mode."""
    weights = iter(weights)

    def activate(features):
        scale, shift, mean, var, _ = (next(weights) for _ in range(5))
        return F.relu(F.batch_norm(features, mean, var, scale, shift))

    features = F.conv2d(inputs, next(weights), padding=1)
    channels = features.shape[1]
    for stage, width in enumerate(widths):
        for position in range(blocks_per_stage):
            stride = 2 if stage > 0 and position == 0 else 1
            active = activate(features)
            residual = F.conv2d(active, next(weights), stride=stride, padding=1)
            residual = F.conv2d(activate(residual), next(weights), padding=1)
            if stride != 1 or channels != width:
                features = F.conv2d(features if raw_shortcut else active, next(weights), stride=stride)
            features, channels = features + residual, width
    features = activate(features) if last_norm else features
    return F.linear(features.mean(dim=(2, 3)), next(weights), next(weights))


@pytest.mark.parametrize(
    ("name", "widths", "blocks_per_stage", "variant"),
    [
        ("preactresnet18", (4, 8, 16, 32), 2, {}),
        ("preactresnet18-nobn", (4, 8, 16, 32), 2, {"last_norm": False}),
        ("preactresnet18-fast", (4, 8, 16, 32), 2, {"last_norm": False, "raw_shortcut": True}),
        ("wrn-28-10", (16, 32, 64), 4, {}),
        ("wrn-34-10", (16, 32, 64), 5, {}),
    ],
)
def test_pre_activation_networks_follow_their_equations(name, widths, blocks_per_stage, variant):
    """The modules give the logits of the equations written out."""
    network, inputs = small(name).network, torch.rand(2, 3, 16, 16)
    network(inputs)  # running statistics away from 0 and 1
    expected = pre_activation_logits(
        network.state_dict().values(), inputs, widths=widths, blocks_per_stage=blocks_per_stage, **variant
    )
    assert torch.allclose(network.eval()(inputs), expected, atol=1e-5)


def test_wide_networks_start_as_in_their_paper():
    """Convolutions have variance 2 / fan-out and the last bias is 0."""
    network = small("wrn-28-10").network
    assert (network[-1].bias == 0).all()
    convolution = network[-6].residual[-1].weight  # 64 x 64 x 3 x 3
    assert convolution.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.03)


def test_cnn_takes_eight_by_eight_digits():
    """The embedded default dataset has grey 8x8 images."""
    assert small("cnn", channels=1, size=8)(torch.rand(3, 1, 8, 8)).shape == (3, 7)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_weights_depend_on_the_seed_alone(name):
    """The same seed gives the same weights whatever was drawn before; another seed gives others."""
    first = small(name)
    torch.rand(5)
    assert same_weights(first, small(name))
    assert not same_weights(first, small(name, seed=1))


def test_building_leaves_the_global_generator_alone():
    """Building a model in the middle of a run changes no later draw."""
    before = torch.get_rng_state()
    small("cnn")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["cnn", "wrn-28-10"])
def test_models_can_be_pickled(name):
    """A model travels to a worker and answers the same there."""
    model = small(name).eval()
    inputs = torch.rand(2, 3, 32, 32)
    assert torch.equal(pickle.loads(pickle.dumps(model))(inputs), model(inputs))


def test_normalisation_is_the_first_layer_and_is_saved():
    """Pixels are normalised per channel inside the model, and a checkpoint carries the numbers."""
    model = build_model("cnn", num_classes=2, image_shape=(2, 4, 4), mean=[0.1, 0.7], std=[0.5, 2.0])
    inputs = torch.rand(3, 2, 4, 4)
    by_hand = torch.stack([(inputs[:, 0] - 0.1) / 0.5, (inputs[:, 1] - 0.7) / 2.0], dim=1)
    assert torch.allclose(model[0](inputs), by_hand)
    assert {"normalise.mean", "normalise.std"} <= set(model.state_dict())


def test_width_scales_the_model():
    """A wider model has more weights; the default width is the one of the paper."""
    assert default_width("wrn-34-10") == 10
    assert default_width("cnn") == 16
    narrow, wide = (MODELS["cnn"](num_classes=2, in_channels=1, width=w) for w in (4, 8))
    assert num_parameters(narrow) < num_parameters(wide)


def test_frozen_weights_are_not_counted():
    """num_parameters counts what training can change."""
    layer = torch.nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    assert num_parameters(layer) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "resnet19"}, "cnn.*preactresnet18.*got 'resnet19'"),
        ({"width": 0}, "at least 1"),
        ({"num_classes": 0}, "at least 1"),
        ({"mean": [0.5, 0.5]}, "one per channel"),
        ({"std": [0.0]}, "std > 0"),
        ({"name": "resnet18-imagenet", "width": 32}, "width of resnet18-imagenet is 64, got 32"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    """A model that cannot be built says why."""
    arguments = {
        "name": "cnn",
        "num_classes": 2,
        "image_shape": (1, 8, 8),
        "mean": [0.5],
        "std": [0.5],
    } | change
    with pytest.raises(ValueError, match=message):
        build_model(arguments.pop("name"), **arguments)


def test_normalise_keeps_float32_for_half_inputs():
    """Half-precision pixels are normalised in float32, so that nothing more is lost."""
    assert Normalise([0.5], [0.25])(torch.rand(1, 1, 2, 2).bfloat16()).dtype == torch.float32


# ---------------------------------------------------------------- models of a user


def users(function, seed=0):
    """A model of tests/users_models.py for 7 classes of 3 x 8 x 8 pixels."""
    return build_model(
        f"tests.users_models:{function}",
        num_classes=7,
        image_shape=(3, 8, 8),
        mean=[0.5] * 3,
        std=[0.25] * 3,
        seed=seed,
    )


def test_a_users_model_gets_normalised_pixels():
    """It is in train mode, behind the normalisation, and gives what its own network gives."""
    model = users("good")
    pixels = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert all(module.training for module in model.modules())
    assert isinstance(model[0], Normalise)
    model.eval()
    assert torch.equal(model(pixels), model.network((pixels - 0.5) / 0.25))


def test_a_users_model_is_decided_by_its_seed_and_checked_without_a_trace():
    """Equal seeds give equal weights and fresh running statistics; torch's generator stays where it was."""
    state = torch.get_rng_state()
    model = users("good")
    assert torch.equal(torch.get_rng_state(), state)
    assert same_weights(model, users("good"))
    assert not same_weights(model, users("good", seed=1))
    assert (model.network[0].running_mean == 0).all()
    assert model.network[0].num_batches_tracked == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tests.nowhere:good", r"cannot be imported: ModuleNotFoundError.*nowhere.*PYTHONPATH on every node"),
        ("tests.users_models:missing", r"cannot be imported: AttributeError.*missing"),
        ("tests.users_models:NUMBER", r"must be a function, got int"),
        ("tests.users_models:other_arguments", r"called as other_arguments\(num_classes=7, image_shape=\(3, 8, 8\)\)"),
        ("tests.users_models:no_module", r"must give a torch.nn.Module, got int"),
        ("tests.users_models:one_output_too_many", r"must give logits \(2, 7\) .*got \(2, 8\)"),
        ("tests.users_models:other_image_size", r"fails on images \(2, 3, 8, 8\): RuntimeError"),
        ("tests.users_models:a_pair", r"must give logits \(2, 7\) .*got tuple"),
    ],
)
def test_a_users_model_that_cannot_work_is_refused_in_one_line(name, message):
    """Each way to get it wrong is told by name."""
    with pytest.raises(ValueError, match=message) as caught:
        build_model(name, num_classes=7, image_shape=(3, 8, 8), mean=[0.5] * 3, std=[0.25] * 3)
    assert "\n" not in str(caught.value)


def test_a_users_model_has_no_width():
    """None, so that the manifest says so."""
    assert default_width("tests.users_models:good") is None
