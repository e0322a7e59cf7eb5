"""What a checkpoint is attacked with, and what is refused before any work: an evaluation's inputs, without torch."""

import importlib.util
from dataclasses import dataclass

from easycore_ray.config.evaluation import EvaluateConfig
from easycore_ray.core.eps import format_eps
from easycore_ray.core.names import SEVERITIES, chosen_corruptions
from easycore_ray.data.dataset import Dataset
from easycore_ray.engine.run_inputs import check_budget
from easycore_ray.storage.artifact import Artifact
from easycore_ray.storage.errors import EasyCoreError

AUTOATTACK = "autoattack"


@dataclass(frozen=True, kw_only=True)
class Threats:
    """The attacks of an evaluation; ``eps`` in [0, 1] pixel units, one per budget."""

    attack: tuple[str, ...]
    eps: tuple[float, ...]
    norm: str
    seed: int
    batch_size: int | None = None
    """Images that go through the model at once; by default what ``memory.default_rows`` says of their size."""
    pgd_restarts: int = 1
    """Random starts of pgd20."""
    corruptions: tuple[str, ...] = ()
    """In the order of ``names.CORRUPTION_NAMES``, each at all severities."""

    def columns(self) -> list[str]:
        """Names of the outcome columns of attacks, e.g. ``robust_pgd20_8/255``."""
        return [outcome_column(name, eps) for name in self.attack for eps in self.eps]

    def corruption_columns(self) -> list[str]:
        """Names of the outcome columns of corruptions, e.g. ``corrupted_contrast_5``."""
        return [corruption_column(name, severity) for name in self.corruptions for severity in SEVERITIES]


def outcome_column(attack: str, eps: float) -> str:
    """Name of the bool column of images that stay correct under an attack at an eps."""
    return f"robust_{attack}_{format_eps(eps)}"


def corruption_column(name: str, severity: int) -> str:
    """Name of the bool column of images that are classified right when corrupted."""
    return f"corrupted_{name}_{severity}"


def require_autoattack() -> None:
    """Refuse early where the package is missing.

    Raises:
        EasyCoreError: with the command that installs it.
    """
    if importlib.util.find_spec("pyautoattack") is None:
        raise EasyCoreError(
            "attack autoattack needs the package pyautoattack, which is not installed; "
            "run: pip install 'pyautoattack>=0.2,<0.3'"
        )


def check_autoattack(image_shape: tuple[int, ...], norm: str) -> None:
    """Refuse early what AutoAttack cannot run on.

    Args:
        image_shape: (C, H, W).
        norm: one of ``threat.NORMS``.

    Raises:
        EasyCoreError: the package is missing, or images below 5 × 5 pixels for l2 and l1, where Square divides by zero.
    """
    require_autoattack()
    if norm != "linf" and min(image_shape[1:]) < 5:
        raise EasyCoreError(
            f"autoattack with norm {norm} needs images of at least 5 × 5 pixels, got {tuple(image_shape[1:])}; use linf"
        )


def threats_of(config: EvaluateConfig) -> Threats:
    """The threats a configuration names."""
    attack = tuple(name for name in config.attack if name != "none")
    return Threats(attack=attack, eps=config.eval_eps, norm=config.norm, seed=config.seed,
                   batch_size=config.eval_batch_size, pgd_restarts=config.pgd_restarts,
                   corruptions=chosen_corruptions(config.corruptions))  # fmt: skip


def check_threats(threats: Threats, image_shape: tuple[int, ...]) -> None:
    """Refuse, before any work, budgets wider than the images and attacks that cannot run here.

    Raises:
        EasyCoreError: says which and what is allowed.
    """
    for eps in threats.eps:
        check_budget(eps, threats.norm, image_shape)
    if AUTOATTACK in threats.attack:
        check_autoattack(tuple(image_shape), threats.norm)
    if "jpeg_compression" in threats.corruptions and image_shape[0] not in (1, 3):
        raise EasyCoreError(f"jpeg_compression needs images of 1 or 3 channels, got {image_shape[0]}; leave it out")


def check_fits(checkpoint: Artifact, dataset: Dataset) -> None:
    """Refuse a checkpoint of other classes or image shape.

    Raises:
        EasyCoreError: names what differs.
    """
    model = checkpoint.manifest["model"]
    if tuple(model["image_shape"]) != tuple(dataset.image_shape) or model["num_classes"] != dataset.num_classes:
        raise EasyCoreError(
            f"{checkpoint.path} takes images of shape {tuple(model['image_shape'])} in {model['num_classes']} classes, "
            f"{dataset.path} has {tuple(dataset.image_shape)} in {dataset.num_classes}; "
            "pass the dataset it was trained on"
        )


def check_split(dataset: Dataset, split: str) -> int:
    """Samples of a split; one without any is refused."""
    total = dataset.num_rows(split)
    if total == 0:
        raise EasyCoreError(f"{dataset.path} has no {split} split; prepare it with one, or pass another --split")
    return total
