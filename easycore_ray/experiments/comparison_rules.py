"""How the trials of a sweep are compared while they run: by what, when, in which order. Arithmetic, without Ray."""

import importlib.util
import math
from collections.abc import Sequence

from easycore_ray.config.arms import needs_validation, parse_arm
from easycore_ray.config.experiments import GridConfig, SweepConfig
from easycore_ray.config.fields import ADVERSARIAL
from easycore_ray.data.dataset import Dataset
from easycore_ray.experiments.trials import Trial
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.storage.hashes import content_hash

SHARE, VALIDATION = "share", "validation"
"""Keys of what a trial reports of an epoch: steps done in ‰ of all its steps, and the accuracy it is compared by."""
WHOLE = 1000
"""The share of a finished training."""


def compared_by(training: str) -> str:
    """The metric of an epoch that trials of an objective are compared by."""
    return "val_robust_accuracy" if training in ADVERSARIAL else "val_accuracy"


def rungs_of(config: GridConfig) -> list[float]:
    """The shares, in ‰, from which on trials are compared: the grace fraction times powers of the reduction factor.

    None in the last hundredth, where nothing is left to save.
    """
    found: list[float] = []
    rung = float(max(1, math.floor(WHOLE * config.grace_fraction + 1e-9)))
    while not found or rung < 0.99 * WHOLE:
        found.append(rung)
        rung *= config.reduction_factor
    return found


def mixed_order(trials: Sequence[Trial]) -> list[Trial]:
    """All data first, since they take longest, then the others as by lot, the same each time.

    In the order of the grid, from small coresets to large ones, each would be better than those before, and none would
    be stopped.
    """
    return sorted(trials, key=lambda trial: (trial.arm.method != "full", content_hash(trial.name)))


def check_comparable(config: SweepConfig, dataset: Dataset) -> None:
    """Refuse what needs a validation split where there is none: early stopping, a search, scores of its losses.

    Also a search without Optuna.

    Raises:
        EasyCoreError: says what is missing.
    """
    options = {"--scheduler asha": config.scheduler != "none", "--search optuna": config.search != "none"}
    for option in (name for name, given in options.items() if given):
        if not dataset.num_rows("val"):
            raise EasyCoreError(
                f"{option} compares trials on the validation split, and {dataset.path} has none; prepare it with "
                "--val-fraction, e.g. 0.1"
            )
    for arm in map(parse_arm, config.method):
        if needs_validation(arm) and (missing := _classes_without_validation(dataset)):
            raise EasyCoreError(
                f"method {arm.name} compares losses with those of its class on the validation split, and "
                f"{dataset.path} has no validation images of {', '.join(missing)}; prepare it with a larger "
                "--val-fraction, e.g. 0.1"
            )
    if config.search != "none" and importlib.util.find_spec("optuna") is None:
        raise EasyCoreError(
            "--search optuna needs the package optuna, which is not installed; run: pip install 'easycore-ray[search]'"
        )


def _classes_without_validation(dataset: Dataset) -> list[str]:
    """Names of the first three classes that the validation split has no images of."""
    there = set(dataset.index("val", ["label"])["label"].to_pylist())
    return [name for label, name in enumerate(dataset.classes) if label not in there][:3]
