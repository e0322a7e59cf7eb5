"""The points that a search has chosen, as trials of its sweep; nothing of Ray and Optuna is needed to read them."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from easycore_ray.config.experiments import SweepConfig
from easycore_ray.data.dataset import Dataset
from easycore_ray.experiments.trials import FULL, Trial, coreset_folders, is_finished, make_trials
from easycore_ray.selection.select import arm_config, select
from easycore_ray.storage import paths

POINTS = "search.json"
"""In the folder of a sweep with a search: its points, in the order in which they were chosen."""


@dataclass(frozen=True)
class Point:
    """What a search chooses."""

    method: str
    """An arm, as in ``--method``."""
    fraction: float
    beta: float | None
    """None for objectives without a weight."""

    def as_json(self) -> dict[str, Any]:
        """Its fields."""
        return dataclasses.asdict(self)


def read_points(folder: str) -> list[Point]:
    """The points in the folder of a sweep, in the order in which they were chosen; none where there is no search."""
    file = paths.join(folder, POINTS)
    return [Point(**entry) for entry in paths.read_json(file)["points"]] if paths.exists(file) else []


def grid_of(config: SweepConfig, point: Point) -> SweepConfig:
    """The sweep whose only trial, besides all data, is that of a point."""
    beta = config.beta if point.beta is None else (point.beta,)
    return config.replace(search="none", method=(point.method,), fraction=(point.fraction,), beta=beta)


def point_trial(config: SweepConfig, folder: str, point: Point, steps: Mapping[str, int] | None = None) -> Trial:
    """The trial of a point; ``folder``: that of the sweep's files, ``steps``: see ``make_trials``."""
    grid = grid_of(config, point)
    return make_trials(grid, folder, coreset_folders(grid, folder), steps)[-1]


def select_point(config: SweepConfig, dataset: Dataset, folder: str, point: Point) -> None:
    """Select the coreset of a point, unless an earlier one had the same."""
    trial = point_trial(config, folder, point)
    out = trial.train.coreset or ""
    if not trial.arm.is_dynamic and not is_finished(out):
        select(arm_config(trial.arm, out=out, scores=config.scores, dataset=dataset.path, fraction=trial.fraction,
                          seed=trial.seed, cutoff=config.cutoff))  # fmt: skip


def sweep_trials(config: SweepConfig, folder: str, steps: Mapping[str, int] | None = None) -> list[Trial]:
    """The trials of a sweep: those of its grid, and those of the points that its search has chosen so far.

    Args:
        config: of the sweep.
        folder: of its files.
        steps: see ``make_trials``.
    """
    points = read_points(folder) if config.search != "none" else []
    grid = make_trials(config, folder, coreset_folders(config, folder), steps)
    return grid + [point_trial(config, folder, point, steps) for point in points]


def planned_trials(config: SweepConfig, folder: str, steps: Mapping[str, int] | None = None) -> list[Trial]:
    """All trials that a sweep may come to: points that are not chosen yet count as the largest that may be."""
    trials = sweep_trials(config, folder, steps)
    if config.search == "none":
        return trials
    weight = max(config.beta) if trials[0].beta is not None else None
    arm = next(name for name in config.method if name != "full")
    largest = point_trial(config, folder, Point(arm, max(config.fraction), weight), steps)
    chosen = sum(trial.arm != FULL for trial in trials)
    return trials + [largest] * (config.num_trials - chosen)
