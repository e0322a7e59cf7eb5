"""Names that command lines offer, free of torch; tests hold them against the functions they stand for."""

import re
from collections.abc import Iterable

MODEL_NAMES = (
    "cnn",
    "resnet18",
    "preactresnet18",
    "preactresnet18-nobn",
    "preactresnet18-fast",
    "wrn-28-10",
    "wrn-34-10",
    "resnet18-imagenet",
    "resnet50-imagenet",
)
"""Built-in networks: the keys of ``models.MODELS``."""
DEFAULT_WIDTHS = {
    "cnn": 16,
    "resnet18": 64,
    "preactresnet18": 64,
    "preactresnet18-nobn": 64,
    "preactresnet18-fast": 64,
    "wrn-28-10": 10,
    "wrn-34-10": 10,
    "resnet18-imagenet": 64,
    "resnet50-imagenet": 64,
}
"""Their widths where none is chosen."""
FIXED_WIDTHS = {"resnet18-imagenet": 64}
"""Networks that come in one width."""
NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "none": ((0.0,), (1.0,)),
    "half": ((0.5,), (0.5,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "pytorch-cifar": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and std per channel, of pixels in [0, 1], that networks of others were trained with; one value: for any number
of channels. none: TRADES. half: pixels in [-1, 1]. cifar10: robust_overfitting and Bag of Tricks. pytorch-cifar:
kuangliu/pytorch-cifar. cifar100: RobustBench. imagenet: torchvision."""
ATTACK_NAMES = ("fgsm", "pgd20")
"""Attacks of an evaluation: the keys of ``attacks.ATTACKS``; AutoAttack comes from another package."""

CORRUPTION_NAMES = ("gaussian_noise", "gaussian_blur", "jpeg_compression", "contrast", "brightness")
"""Corruptions of images: the keys of ``corruptions.CORRUPTIONS``."""
SEVERITIES = (1, 2, 3, 4, 5)
"""Of a corruption, from mild to severe."""


def chosen_corruptions(names: Iterable[str]) -> tuple[str, ...]:
    """Those of ``CORRUPTION_NAMES`` that are named, in its order; all of them for ``all``."""
    wanted = set(names)
    return tuple(name for name in CORRUPTION_NAMES if name in wanted or "all" in wanted)


_TIMM = "timm:"


def is_user_model(name: str) -> bool:
    """Whether a name is written as ``package.module:function``; ``timm:NAME`` is one of timm's."""
    written = re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", name) is not None
    return written and not name.startswith(_TIMM)


def is_timm_model(name: str) -> bool:
    """Whether a name is written as ``timm:NAME``: an architecture of timm, without the tag of pretrained weights."""
    return re.fullmatch(_TIMM + r"\w+", name) is not None


def default_width(name: str) -> int | None:
    """The width that a model has by default; None for a user's and timm's, which have none to choose.

    Raises:
        ValueError: an unknown name.
    """
    if is_user_model(name) or is_timm_model(name):
        return None
    if name not in DEFAULT_WIDTHS:
        raise ValueError(f"model must be one of {', '.join(sorted(MODEL_NAMES))}; got {name!r}")
    return DEFAULT_WIDTHS[name]
