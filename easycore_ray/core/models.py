"""Image classifiers by name, with the normalisation inside.

Takes a name and sizes, gives a module that maps pixels in [0, 1] to logits. ``Normalise`` is the first layer of every
model, so that attacks, scores and checkpoints all speak of pixels. To add a model, put a function ``(*, num_classes,
in_channels, width=DEFAULT) -> nn.Module`` into MODELS, or name one of your own as ``package.module:function``, called
as ``function(num_classes=…, image_shape=…)``. Those of timm are ``timm:NAME``, see ``timm_models``.
"""

import functools
import importlib
import platform
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from importlib.machinery import PathFinder
from typing import cast

import torch
from torch import Tensor, nn

from easycore_ray.core.names import FIXED_WIDTHS, default_width, is_timm_model, is_user_model
from easycore_ray.core.onednn_workaround import spare_narrow_strides
from easycore_ray.core.seeding import seeded
from easycore_ray.core.timm_models import timm_network


class Normalise(nn.Module):
    """(inputs - mean) / std per channel, for float inputs (B, C, H, W) in [0, 1].

    Both are float32 buffers of shape (1, C, 1, 1) and are saved with the weights.

    Raises:
        ValueError: mean and std differ in length, or a std is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or any(value <= 0 for value in std):
            raise ValueError(f"mean and std must have one value per channel, std > 0; got {mean} and {std}")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalised inputs (B, C, H, W)."""
        return (inputs - self.mean) / self.std


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm after each, beside a shortcut (He et al. 2015, arXiv 1512.03385).

    Maps (B, in_channels, H, W) to (B, channels, H / stride, W / stride).
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            _conv(in_channels, channels, stride=stride),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            _conv(channels, channels),
            nn.BatchNorm2d(channels),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(_conv(in_channels, channels, size=1, stride=stride), nn.BatchNorm2d(channels))

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, channels, H / stride, W / stride)."""
        return torch.relu(self.residual(features) + self.shortcut(features))


class PreActBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and ReLU before each, beside a shortcut (He et al. 2016).

    Where the shape changes, the shortcut starts behind the first activation, as in wide residual networks.

    Args:
        in_channels: of the input.
        channels: of the output.
        stride: of the first convolution.
        raw_shortcut: start the shortcut at the input itself, before batch norm and ReLU, as Wong et al. 2020 (arXiv
            2001.03994) and the ``PreActBlock`` of RobustBench do. The weights have the same names and shapes.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, *, raw_shortcut: bool = False) -> None:
        super().__init__()
        self.raw_shortcut = raw_shortcut
        self.activation = nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True))
        self.residual = nn.Sequential(
            _conv(in_channels, channels, stride=stride),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            _conv(channels, channels),
        )
        same_shape = stride == 1 and in_channels == channels
        self.shortcut = None if same_shape else _conv(in_channels, channels, size=1, stride=stride)

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, channels, H / stride, W / stride)."""
        active = self.activation(features)
        start = features if self.raw_shortcut else active
        shortcut = features if self.shortcut is None else self.shortcut(start)
        return self.residual(active) + shortcut


def build_model(
    name: str,
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
    width: int | None = None,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int = 0,
) -> nn.Module:
    """A new model in train mode that maps pixels in [0, 1] to logits (B, num_classes).

    Its weights depend on the arguments alone; torch's global generator is left as it was.

    Args:
        name: a key of MODELS, ``timm:NAME``, or ``package.module:function`` of a user's; its module must map
            (B, C, H, W) to logits (B, num_classes) and gets normalised pixels.
        num_classes: size of the output.
        image_shape: (channels, height, width) of the inputs.
        width: channels of the first block, or the widening factor of a wide residual network; the model's
            usual one if not given; None for a user's and timm's.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1], above 0.
        seed: of the initial weights.

    Raises:
        ValueError: an unknown name, sizes that do not fit together, timm where it is missing, or a user's function
            that cannot be imported or called, or gives no module or other shapes.
    """
    width = default_width(name) if width is None else width
    channels = image_shape[0]
    if num_classes < 1 or (width is not None and width < 1):
        raise ValueError(f"num_classes and width must be at least 1, got {num_classes} and {width}")
    if width != FIXED_WIDTHS.get(name, width):
        raise ValueError(f"width of {name} is {FIXED_WIDTHS[name]}, got {width}")
    if len(mean) != channels:
        raise ValueError(f"mean and std need {channels} values, one per channel, got {len(mean)}")
    with seeded("weights", name, seed):
        if is_user_model(name):
            network = _users_network(name, num_classes, tuple(image_shape))
        elif is_timm_model(name):
            network = timm_network(name, num_classes, image_shape)
        else:
            network = MODELS[name](num_classes=num_classes, in_channels=channels, width=width)
        model = nn.Sequential(OrderedDict(normalise=Normalise(mean, std), network=network)).train()
        if name not in MODELS:
            _check_output(model, name, num_classes, image_shape)
    spare_narrow_strides(model)
    return model


def compiled(model: nn.Module, device: torch.device) -> nn.Module:
    """The same model, weights and modes shared, whose passes are compiled at their first use.

    Raises:
        ValueError: if nothing can be compiled here, with the compiler's own words.
    """
    try:
        torch.compile(lambda values: 2 * values + 1)(torch.zeros(2, device=device))
    except Exception as error:  # no compiler, no headers, no Triton, no room for its files: all say so themselves
        raise ValueError(
            f"--compile finds no working compiler on {platform.node()}: {_in_a_line(error)[:300]}; install a C++ "
            "compiler (and on GPUs Triton) on every node, or leave --compile out"
        ) from error
    return cast(nn.Module, torch.compile(model))


def files_of(name: str) -> list[str]:
    """Files that a user's model ``package.module:function`` would be imported from, outermost package first.

    Nothing is imported to find them; those of a module that is not there are left out.
    """
    found: list[str] = []
    parts, places = name.partition(":")[0].split("."), None
    for count in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:count]), places)
        if spec is None:
            break
        found += [spec.origin] if spec.has_location and spec.origin is not None else []
        places = spec.submodule_search_locations
    return found


def _users_network(name: str, num_classes: int, image_shape: tuple[int, ...]) -> nn.Module:
    """What a user's function makes."""
    module, _, function = name.partition(":")
    try:
        make = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever the user's module does on import is worth reporting
        raise ValueError(
            f"model {name} cannot be imported: {_in_a_line(error)}; write package.module:function and have the "
            "package installed or on PYTHONPATH on every node"
        ) from error
    if not callable(make):
        raise ValueError(f"model {name} must be a function, got {type(make).__name__}")
    call = f"{function}(num_classes={num_classes}, image_shape={image_shape})"
    try:
        network = make(num_classes=num_classes, image_shape=image_shape)
    except Exception as error:
        raise ValueError(f"model {name} failed when called as {call}: {_in_a_line(error)}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"model {name}: {call} must give a torch.nn.Module, got {type(network).__name__}")
    return network


@torch.no_grad()
def _check_output(model: nn.Module, name: str, num_classes: int, image_shape: Sequence[int]) -> None:
    """Refuse a model of others that maps no images to logits; checked with two grey images in evaluation mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        logits = model(torch.full((2, *image_shape), 0.5))
    except Exception as error:
        raise ValueError(f"model {name} fails on images {(2, *image_shape)}: {_in_a_line(error)}") from error
    for module, training in modes:
        module.training = training
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != (2, num_classes):
        raise ValueError(
            f"model {name} must give logits {(2, num_classes)} for images {(2, *image_shape)}, got {found}; "
            "build it for num_classes and image_shape"
        )


def _in_a_line(error: Exception) -> str:
    """An error of a user's code for a one-line message."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def num_parameters(model: nn.Module) -> int:
    """Number of trainable weights."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def cnn(*, num_classes: int, in_channels: int, width: int = 16) -> nn.Module:
    """Three 3x3 convolutions, the last two halving the image: seconds to train on 8x8 digits.

    Maps (B, in_channels, H, W) to logits (B, num_classes).
    """
    sizes = [in_channels, width, 2 * width, 4 * width]
    layers: list[nn.Module] = []
    for before, after, stride in zip(sizes, sizes[1:], (1, 2, 2), strict=False):
        layers += [_conv(before, after, stride=stride), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, *_head(sizes[-1], num_classes))


def resnet18(*, num_classes: int, in_channels: int, width: int = 64) -> nn.Module:
    """ResNet-18 for small images: 3x3 stem, no pooling before the blocks, as in kuangliu/pytorch-cifar.

    He et al. 2015 (arXiv 1512.03385). Maps (B, in_channels, H, W) to logits (B, num_classes).
    """
    stem = [_conv(in_channels, width), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    widths = (width, 2 * width, 4 * width, 8 * width)
    blocks = _blocks(BasicBlock, width, widths, blocks_per_stage=2)
    return nn.Sequential(*stem, *blocks, *_head(8 * width, num_classes))


def preactresnet18(*, num_classes: int, in_channels: int, width: int = 64) -> nn.Module:
    """Pre-activation ResNet-18 for small images, with a last batch norm, as in Bag of Tricks for AT.

    He et al. 2016 (arXiv 1603.05027). Maps (B, in_channels, H, W) to logits (B, num_classes).
    """
    return nn.Sequential(*_preact18_body(in_channels, width), *_preact_head(8 * width, num_classes))


def preactresnet18_nobn(*, num_classes: int, in_channels: int, width: int = 64) -> nn.Module:
    """Pre-activation ResNet-18 whose features go to the head as they are, as in kuangliu/pytorch-cifar.

    Maps (B, in_channels, H, W) to logits (B, num_classes).
    """
    return nn.Sequential(*_preact18_body(in_channels, width), *_head(8 * width, num_classes))


def preactresnet18_fast(*, num_classes: int, in_channels: int, width: int = 64) -> nn.Module:
    """Pre-activation ResNet-18 of "Fast is better than free" (Wong et al. 2020, arXiv 2001.03994).

    No batch norm before the head, and shortcuts from the block's own input: RobustBench's ``PreActResNet`` of
    ``PreActBlock``. Maps (B, in_channels, H, W) to logits (B, num_classes).
    """
    body = _preact18_body(in_channels, width, raw_shortcut=True)
    return nn.Sequential(*body, *_head(8 * width, num_classes))


def wrn_28_10(*, num_classes: int, in_channels: int, width: int = 10) -> nn.Module:
    """Wide residual network of depth 28 without dropout (Zagoruyko & Komodakis 2016, arXiv 1605.07146).

    Maps (B, in_channels, H, W) to logits (B, num_classes).
    """
    return _wide_resnet(28, num_classes, in_channels, width=width)


def wrn_34_10(*, num_classes: int, in_channels: int, width: int = 10) -> nn.Module:
    """Wide residual network of depth 34 without dropout: the model of the TRADES paper (arXiv 1901.08573).

    Maps (B, in_channels, H, W) to logits (B, num_classes).
    """
    return _wide_resnet(34, num_classes, in_channels, width=width)


def resnet18_imagenet(*, num_classes: int, in_channels: int, width: int = 64) -> nn.Module:
    """ResNet-18 of torchvision for images around 224x224, untrained; its width is fixed, see ``names.FIXED_WIDTHS``.

    Maps (B, in_channels, H, W) to logits (B, num_classes).
    """
    return _torchvision_resnet("resnet18", num_classes, in_channels, width=width)


def resnet50_imagenet(*, num_classes: int, in_channels: int, width: int = 64) -> nn.Module:
    """ResNet-50 of torchvision for images around 224x224, untrained; width is that of the bottlenecks.

    Maps (B, in_channels, H, W) to logits (B, num_classes).
    """
    return _torchvision_resnet("resnet50", num_classes, in_channels, width=width)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "cnn": cnn,
    "resnet18": resnet18,
    "preactresnet18": preactresnet18,
    "preactresnet18-nobn": preactresnet18_nobn,
    "preactresnet18-fast": preactresnet18_fast,
    "wrn-28-10": wrn_28_10,
    "wrn-34-10": wrn_34_10,
    "resnet18-imagenet": resnet18_imagenet,
    "resnet50-imagenet": resnet50_imagenet,
}


def _conv(in_channels: int, channels: int, *, size: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the image size (up to its stride); no bias, batch norm has one."""
    return nn.Conv2d(in_channels, channels, size, stride=stride, padding=size // 2, bias=False)


def _blocks(
    block: Callable[[int, int, int], nn.Module],
    in_channels: int,
    widths: Iterable[int],
    *,
    blocks_per_stage: int,
) -> list[nn.Module]:
    """All residual blocks; each stage but the first halves the image."""
    layers: list[nn.Module] = []
    for stage, channels in enumerate(widths):
        for position in range(blocks_per_stage):
            stride = 2 if stage > 0 and position == 0 else 1
            layers.append(block(in_channels, channels, stride))
            in_channels = channels
    return layers


def _preact18_body(in_channels: int, width: int, *, raw_shortcut: bool = False) -> list[nn.Module]:
    """Stem and blocks of a pre-activation ResNet-18."""
    block = functools.partial(PreActBlock, raw_shortcut=raw_shortcut)
    widths = (width, 2 * width, 4 * width, 8 * width)
    return [_conv(in_channels, width), *_blocks(block, width, widths, blocks_per_stage=2)]


def _head(channels: int, num_classes: int) -> list[nn.Module]:
    """Mean over the image, then the logits."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)]


def _preact_head(channels: int, num_classes: int) -> list[nn.Module]:
    """The activation that the last pre-activation block leaves out, then the head."""
    return [nn.BatchNorm2d(channels), nn.ReLU(inplace=True), *_head(channels, num_classes)]


def _wide_resnet(depth: int, num_classes: int, in_channels: int, *, width: int) -> nn.Module:
    """Stem of 16 channels, three stages of width times 16, 32, 64; He initialisation, as its paper."""
    widths = (16 * width, 32 * width, 64 * width)
    blocks = _blocks(PreActBlock, 16, widths, blocks_per_stage=(depth - 4) // 6)
    network = nn.Sequential(_conv(in_channels, 16), *blocks, *_preact_head(widths[-1], num_classes))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
    return network


def _torchvision_resnet(name: str, num_classes: int, in_channels: int, *, width: int) -> nn.Module:
    """A torchvision network; its first layer is replaced where images do not have 3 channels."""
    from torchvision.models import get_model  # a second to import, and few runs need it

    network = get_model(name, weights=None, num_classes=num_classes, width_per_group=width)
    if in_channels != 3:
        network.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
    return network
