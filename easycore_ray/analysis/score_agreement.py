"""Scoring runs side by side: do they rank the same samples, and is the easiest half the same?

Takes folders of scoring runs, gives them opened and compared pair by pair. Two runs that differ by the seed alone are
the yardstick for runs of two networks, since no property of the data can be shared by two networks more than by one
network trained twice.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from easycore_ray.config.base import from_dict
from easycore_ray.config.identity import identity_fields
from easycore_ray.config.stages import ScoreConfig
from easycore_ray.core.metrics import overlap, spearman
from easycore_ray.core.names import default_width
from easycore_ray.core.selection import HIGHER_IS_HARDER, budget, lowest
from easycore_ray.scoring.hardness_table import COLUMNS_OF_SCORE, hardness_column, open_hardness, read_hardness
from easycore_ray.scoring.score_reader import input_space_of
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import MANIFEST, Artifact
from easycore_ray.storage.errors import EasyCoreError

# What two runs of one recipe may differ in; threads and devices only round otherwise.
_NO_RECIPE = {"seed", "model", "width", "threads_per_worker", "gpus_per_worker"}
_INPUTS = {"pixel": "pixels", "normalised": "normalised pixels"}
SEED, ARCHITECTURE, RECIPE = "seed", "architecture", "recipe"
EASIEST = 0.5


@dataclass(frozen=True)
class Run:
    """A scoring run: what it is called, how it was made, and the score of every sample."""

    name: str
    hardness: Artifact
    network: str | None
    """Model and width; None if the run's configuration is not at hand."""
    seed: int | None
    recipe: dict[str, Any] | None = field(repr=False)
    """What else decides the scores."""
    sample_ids: NDArray[np.int64] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
    scores: NDArray[np.float64] = field(repr=False)
    """As stored."""
    hard: NDArray[np.float64] = field(repr=False)
    """The scores, turned so that higher is harder."""
    first_learned: NDArray[np.float64] | None = field(repr=False)
    """First scored epoch that had the sample right, inf for never; None if not recorded."""


@dataclass(frozen=True)
class Pair:
    """Two runs compared."""

    first: int
    second: int
    """Places in the list of runs."""
    differ: str
    """``seed``: by the seed alone. ``architecture``: by the network, whatever else. ``recipe``: in another way."""
    rank_correlation: float | None
    """Spearman's, over all samples; None where one of the runs has one score for all."""
    overlap: float
    """Share of the easiest half of one that is in that of the other; 0.5 by chance."""


def open_runs(folders: Sequence[str], score: str) -> list[Run]:
    """The scoring runs, checked to be of the same samples.

    Raises:
        EasyCoreError: one is missing or unfinished, lacks the score or holds one that is not a number; two are of
            different datasets, samples or input spaces, or are the same scores.
    """
    tables = [open_hardness(folder) for folder in folders]
    _check_same_dataset(tables)
    _check_same_input_space(tables)
    runs = [_open_run(table, score) for table in tables]
    for run in runs[1:]:
        if not np.array_equal(run.sample_ids, runs[0].sample_ids):
            raise EasyCoreError(
                f"{run.hardness.path} scores {len(run.sample_ids):,} samples, {runs[0].hardness.path} "
                f"{len(runs[0].sample_ids):,}, not the same ones; pass runs of one --coreset, or all without"
            )
    names = [run.name for run in runs]
    return [
        run if names.count(run.name) == 1 else replace(run, name=f"{run.name} (run {number})")
        for number, run in enumerate(runs, start=1)
    ]


def compare(runs: Sequence[Run]) -> list[Pair]:
    """Every pair of runs, in order."""
    if len(runs) < 2:
        return []
    k = budget(len(runs[0].sample_ids), EASIEST)
    easiest = [lowest(run.hard, run.sample_ids, k) for run in runs]
    found = []
    for one, two in itertools.combinations(range(len(runs)), 2):
        correlation = spearman(runs[one].hard, runs[two].hard)
        found.append(
            Pair(
                one,
                two,
                _classify_difference(runs[one], runs[two]),
                None if np.isnan(correlation) else correlation,
                overlap(easiest[one], easiest[two]),
            )
        )
    return found


def _classify_difference(one: Run, two: Run) -> str:
    if one.network is None or two.network is None:
        return RECIPE
    if one.network != two.network:
        return ARCHITECTURE
    return SEED if one.recipe == two.recipe and one.seed != two.seed else RECIPE


def _check_same_dataset(tables: Sequence[Artifact]) -> None:
    first = tables[0].manifest["dataset"]
    seen: dict[str, str] = {}
    for table in tables:
        theirs = table.manifest["dataset"]
        if theirs["fingerprint"] != first["fingerprint"]:
            raise EasyCoreError(
                f"{table.path} holds scores of {theirs['path']} (fingerprint {theirs['fingerprint'][:12]}), "
                f"{tables[0].path} of {first['path']} ({first['fingerprint'][:12]}); pass scoring runs of one dataset"
            )
        if table.fingerprint in seen:
            raise EasyCoreError(f"{table.path} and {seen[table.fingerprint]} are the same scores; pass each run once")
        seen[table.fingerprint] = table.path


def _check_same_input_space(tables: Sequence[Artifact]) -> None:
    first = input_space_of(tables[0])
    for table in tables:
        if (theirs := input_space_of(table)) != first:
            raise EasyCoreError(
                f"{table.path} holds gradients with respect to {_INPUTS[theirs]}, {tables[0].path} with respect to "
                f"{_INPUTS[first]}; pass scoring runs of one --input-space"
            )


def _open_run(table: Artifact, score: str) -> Run:
    columns = sorted({"sample_id", "label", "first_learned_epoch", *COLUMNS_OF_SCORE[score]})
    rows = read_hardness(table, columns)
    try:
        scores = hardness_column(rows, score).to_numpy()
    except EasyCoreError as error:
        raise EasyCoreError(f"{table.path}: {error}") from error
    bad = int(np.isnan(scores).sum())
    if bad:
        raise EasyCoreError(f"{table.path}: {bad:,} of {len(scores):,} samples have a {score} that is not a number")
    learned = rows["first_learned_epoch"]
    epochs = None if learned.null_count else learned.to_numpy().astype(np.float64)
    config = _config_of(table)
    network = None if config is None else network_name(config.model, config.width)
    fields = None if config is None else identity_fields(config)
    folder = table.path.removesuffix("/hardness").rpartition("/")[2]
    return Run(
        name=folder if config is None else f"{network}, seed {config.seed}",
        hardness=table,
        network=network,
        seed=None if config is None else config.seed,
        recipe=fields and {name: value for name, value in fields.items() if name not in _NO_RECIPE},
        sample_ids=rows["sample_id"].to_numpy(),
        labels=rows["label"].to_numpy().astype(np.int64),
        scores=scores,
        hard=scores if HIGHER_IS_HARDER[score] else -scores,
        first_learned=None if epochs is None else np.where(epochs < 0, np.inf, epochs),
    )


def network_name(model: str, width: int | None) -> str:
    """A network with its width, e.g. ``resnet18-16``; a user's own has none."""
    width = default_width(model) if width is None else width
    return model if width is None else f"{model}-{width}"


def _config_of(table: Artifact) -> ScoreConfig | None:
    """How a run was made, from the manifest beside the table or that of the score table; None if neither is there."""
    beside = table.path.rpartition("/")[0]
    for folder in (beside, table.manifest.get("parents", {}).get("score_table", {}).get("path")):
        place = folder and paths.join(folder, MANIFEST)
        if not place or not paths.exists(place):
            continue
        found = paths.read_json(place)
        if isinstance(found, dict) and found.get("kind") in ("scoring_run", "score_table"):
            try:
                return from_dict(ScoreConfig, found["config"])
            except (EasyCoreError, KeyError):
                continue
    return None
