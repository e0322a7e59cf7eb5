"""Names that command lines offer, free of torch; tests hold them against the functions they stand for."""

import re
from collections.abc import Iterable

MODEL_NAMES = (
    "cnn",
    "resnet18",
    "preactresnet18",
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
    "wrn-28-10": 10,
    "wrn-34-10": 10,
    "resnet18-imagenet": 64,
    "resnet50-imagenet": 64,
}
"""Their widths where none is chosen."""
FIXED_WIDTHS = {"resnet18-imagenet": 64}
"""Networks that come in one width."""
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


def is_user_model(name: str) -> bool:
    """Whether a name is written as ``package.module:function``."""
    return re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", name) is not None


def default_width(name: str) -> int | None:
    """The width that a model has by default; None for a user's, which has none.

    Raises:
        ValueError: an unknown name.
    """
    if is_user_model(name):
        return None
    if name not in DEFAULT_WIDTHS:
        raise ValueError(f"model must be one of {', '.join(sorted(MODEL_NAMES))}; got {name!r}")
    return DEFAULT_WIDTHS[name]
