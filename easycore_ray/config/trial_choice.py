"""Configuration of which trials a sweep runs, and for how long: early stopping, and points that are searched for."""

from typing import Any, Literal

from easycore_ray.config.base import Checked, configuration, setting
from easycore_ray.config.fields import ADVERSARIAL, WEIGHTED, Count, Number

# Decimals of what is searched for: names of trials stay short, and no two points have one name.
FRACTION_STEP, BETA_STEP = 0.01, 0.1


def stops_early(config: Any) -> bool:
    """Identity of early stopping, which decides nothing while it is off."""
    return bool(config.scheduler != "none")


def searches(config: Any) -> bool:
    """Identity of a search, which decides nothing while there is none."""
    return bool(config.search != "none")


@configuration
class EarlyStoppingConfig(Checked):
    """Whether trials that do badly in validation are ended before their time."""

    scheduler: Literal["none", "asha"] = setting(default="none", identity=stops_early, group="training")
    """asha: trials are compared by validation accuracy at equal shares of their steps, and those behind are stopped
    (asynchronous successive halving). Under attack for adversarial objectives, which compete with each other; standard
    training competes with itself. The full data are never stopped. Which trials are stopped depends on timing, and is
    recorded; a trial that ends has the weights it would have without."""
    reduction_factor: Number = setting(default=3.0, identity=stops_early, group="training")
    """asha: about one in this many trials goes on after each comparison; the next is at this many times the share."""
    grace_fraction: Number = setting(default=0.111, identity=stops_early, group="training")
    """asha: share of a trial's steps before the first comparison, in (0, 1)."""


@configuration
class SearchConfig(Checked):
    """Whether points are searched for instead of a grid."""

    search: Literal["none", "optuna"] = setting(default="none", identity=searches, group="training")
    """optuna: --fraction LO HI and --beta LO HI are ranges, in steps of 0.01 and 0.1, of which Optuna chooses points by
    validation accuracy (tree-structured Parzen estimator, seeded by --seeds, the extra search); also one of --method.
    One objective and one seed. The full data are trained on with both values of --beta."""
    num_trials: Count = setting(default=20, identity=searches, group="training")
    """optuna: points to try. One after the other (--max-concurrent-trials 1) they are the same in every run; else they
    depend on timing."""


def early_stopping_problems(config: Any) -> list[str]:
    """What is wrong with the early stopping of a sweep, a sentence each."""
    if not stops_early(config):
        return []
    found = []
    if not config.reduction_factor > 1:
        found.append(f"reduction_factor must be > 1, got {config.reduction_factor:g}; 3 lets about a third go on")
    if not 0.001 <= config.grace_fraction < 1:
        found.append(f"grace_fraction must be in [0.001, 1), got {config.grace_fraction:g}; it is a share of the steps")
    if config.trial_workers > 1:
        found.append(
            f"scheduler asha stops trials of one process, got trial_workers {config.trial_workers}; pass "
            "--trial-workers 1, or --scheduler none"
        )
    return found + _validation_problems(config, "scheduler asha compares")


def search_problems(config: Any) -> list[str]:
    """What is wrong with the search of a sweep, a sentence each."""
    if not searches(config):
        return []
    found = []
    if len(set(config.training)) > 1:
        found.append(f"search optuna goes by the metric of one objective, got training {' '.join(config.training)}")
    if len(config.seeds) > 1:
        found.append(f"search optuna trains one model a point, got seeds {' '.join(map(str, config.seeds))}; pass one")
    if all(method == "full" for method in config.method):
        found.append("search optuna needs a method besides full, whose fraction it searches for")
    found += _range_problems("fraction", config.fraction, FRACTION_STEP)
    if WEIGHTED & {*config.training}:
        found += _range_problems("beta", config.beta, BETA_STEP)
    if config.count_scoring:
        found.append("count_scoring shares the cost among the models of a grid; a search has none, leave it out")
    return found + _validation_problems(config, "search optuna goes by")


def _validation_problems(config: Any, what: str) -> list[str]:
    if not ADVERSARIAL & {*config.training} or config.val_attack_steps:
        return []
    return [f"{what} adversarial objectives under attack, got val_attack_steps 0; pass --val-attack-steps 10"]


def _range_problems(name: str, ends: tuple[float, ...], step: float) -> list[str]:
    if len(ends) != 2 or not ends[0] < ends[1]:
        return [f"{name} must be LO HI with LO < HI for search optuna, got {' '.join(f'{end:g}' for end in ends)}"]
    if any(abs(end / step - round(end / step)) > 1e-6 for end in ends):
        return [f"{name} is searched in steps of {step:g}, got {ends[0]:g} {ends[1]:g}; pass multiples of it"]
    return []
