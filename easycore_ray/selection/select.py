"""select(): hardness table → coreset, the samples to keep.

A coreset names ids of its dataset; it holds no images. The choice is exact: k = floor(fraction · N + 0.5)
samples, ties broken by ``sample_id``, whatever the order of rows and however many files they lie in.
"""

import functools
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from easycore_ray.config.arms import Arm
from easycore_ray.config.base import to_dict, verb
from easycore_ray.config.fields import Balance
from easycore_ray.config.identity import identity_fields
from easycore_ray.config.stages import CoresetConfig, method_options
from easycore_ray.core.feature_selection import Features
from easycore_ray.core.selection import METHODS, look_up
from easycore_ray.core.trajectory_scores import Confidence, is_trajectory_score, parse_trajectory_score
from easycore_ray.data.coreset import Coreset, read_sample_ids
from easycore_ray.data.dataset import Dataset, check_same_dataset, open_dataset
from easycore_ray.runtime.claims import warn_of_other_machines
from easycore_ray.runtime.console import say
from easycore_ray.scoring.feature_table import open_features, read_features
from easycore_ray.scoring.hardness_table import columns_of, hardness_column, open_hardness, read_hardness
from easycore_ray.selection import partitions
from easycore_ray.selection.coreset_files import write_exports
from easycore_ray.selection.exact_cut import Choice, Selection, decide, write_choice
from easycore_ray.selection.exclusion import Exclusion, read_exclusion, without_samples
from easycore_ray.selection.plans import plan_select
from easycore_ray.selection.user_scores import with_user_scores
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import (
    Artifact,
    claim,
    content_folder,
    finish,
    giving_back,
    identity,
)
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.storage.hashes import content_hash
from easycore_ray.tracking.mlflow import track_if_named
from easycore_ray.tracking.runs import TrackedRun, data_of, describe_job

ROWS = "coreset.parquet"
"""A folder of Parquet files; what reads a Parquet file reads it as one."""


FEATURES = "feature_table"
"""Role, among a coreset's parents, of the features of the samples."""
SECOND = "second_hardness_table"
"""Role, among a coreset's parents, of the table that has the second score."""
DATASET = "dataset"
"""Folder, inside a coreset's, of the dataset of its images."""


@verb(CoresetConfig, gives=Coreset, plan=plan_select)
def select(config: CoresetConfig) -> Artifact:
    """Select the samples to keep and write them as a coreset.

    The folder holds ``coreset.parquet`` (a folder of ``coreset-NNNNN.parquet`` with ``sample_id, score, label,
    key``, sorted by id and listed in the manifest; score is null for methods that use none; read it with
    ``pq.read_table(f"{out}/coreset.parquet")``), ``sample_ids.npy`` and ``keys.txt`` for use elsewhere.

    With ``exclude`` the choice is made of the samples that are left, as if the others were not there.
    With ``materialize`` the images lie in ``dataset`` beside them, see ``data.materialize.materialize``.

    Returns:
        The coreset.

    Raises:
        EasyCoreError: if scores and dataset do not belong together, a score is missing or not a number,
            or the fraction keeps nothing.
    """
    started = time.monotonic()
    out = paths.absolute(config.out)
    parents, dataset = open_selection_inputs(config)
    excluded = open_exclusion(config, dataset)
    key = coreset_identity(config, parents, excluded)
    made = claim(out, "coreset", key, overwrite=config.overwrite, take_over=config.take_over)
    warn_of_other_machines(made, parents.values())
    if isinstance(made, Artifact):
        say(f"select: {out} is finished, reused")
        return _complete(config, made, dataset)
    with giving_back(made):
        choice = _decide(config, parents, dataset, excluded)
    # Partial results of a killed run may have been cut into other files.
    paths.delete_tree(paths.join(made.path, ROWS))
    files = write_choice(choice, paths.join(made.path, ROWS), dataset.path)
    fingerprint = write_exports(made.path, files)
    histogram = np.zeros(dataset.num_classes, np.int64)
    for entry in files:
        counts = entry.pop("class_histogram")
        histogram[: len(counts)] += counts
    details, left_out = _describe_exclusion(excluded, count_population(parents, dataset) - choice.total)
    artifact = finish(
        made,
        fingerprint=fingerprint,
        config=to_dict(config),
        parents=parents if excluded is None or excluded.audit is None else parents | {"audit": excluded.audit},
        counts={"samples": choice.kept, "of": choice.total},
        wall_seconds=time.monotonic() - started,
        method=config.method,
        score=score_name(config),
        balance=config.balance,
        fraction=config.fraction,
        classes=list(dataset.classes),
        class_histogram=histogram.tolist(),
        files=files,
        **details,
    )
    _say_empty_classes(dataset.classes, histogram, config.balance)
    say(f"select: {choice.kept:,} of {choice.total:,} samples by {config.method}{left_out} → {out}")
    return _complete(config, artifact, dataset)


def _describe_exclusion(excluded: Exclusion | None, count: int) -> tuple[dict[str, Any], str]:
    """What the manifest says of the samples that were left out, and the same in words."""
    if excluded is None:
        return {}, ""
    found = {"path": excluded.path, "fingerprint": excluded.fingerprint, "samples": count}
    return {"excluded": found}, f", {count:,} left out before"


def _say_empty_classes(classes: Sequence[str], histogram: NDArray[np.integer], balance: Balance) -> None:
    """Name the classes of which nothing is kept: a model would never see them."""
    empty = [name for name, count in zip(classes, histogram.tolist(), strict=True) if not count]
    if empty:
        named = ", ".join(empty[:5]) + (", …" if len(empty) > 5 else "")
        why = "their share rounds to none" if balance == "class" else "--balance class keeps a share of each"
        say(
            f"select: {len(empty):,} of {len(classes):,} classes have no sample in the coreset ({named}); {why}; a "
            "larger --fraction keeps more"
        )


def _complete(config: CoresetConfig, coreset: Artifact, dataset: Dataset) -> Artifact:
    """The coreset, its images copied into a dataset inside it if that is requested, tracked where that is."""
    if config.materialize:
        from easycore_ray.data.materialize import materialize

        materialize(dataset, read_sample_ids(coreset), paths.join(coreset.path, DATASET), parents={"coreset": coreset})
    track_if_named(config, coreset.path, lambda _: _describe(config, coreset))
    return coreset


def _describe(config: CoresetConfig, coreset: Artifact) -> TrackedRun:
    """The MLflow run of a finished coreset."""
    counts = coreset.manifest["counts"]
    return describe_job(
        coreset.path,
        "coreset",
        "coreset",
        to_dict(config),
        points={0: {"samples": counts["samples"], "fraction_kept": counts["samples"] / counts["of"]}},
        files={name: paths.join(coreset.path, name) for name in ("sample_ids.npy", "keys.txt")},
        data=data_of({**coreset.manifest["parents"], "coreset": coreset}, "selection"),
    )


def draw_subset(dataset: Dataset, out: str, size: int, seed: int) -> Artifact:
    """A seeded, class-balanced part of the training samples to work on instead of all, as a coreset.

    Raises:
        EasyCoreError: there are fewer samples.
    """
    check_subset(dataset, size)
    fraction = size / dataset.num_rows("train")
    return select(
        CoresetConfig(
            out=out,
            dataset=dataset.path,
            method="random",
            balance="class",
            fraction=fraction,
            seed=seed,
            tracking_uri="none",
        )
    )


def check_subset(dataset: Dataset, size: int) -> None:
    """Refuse a subset that is larger than the whole.

    Raises:
        EasyCoreError: says how many samples there are.
    """
    total = dataset.num_rows("train")
    if size > total:
        raise EasyCoreError(f"subset must be at most {total:,}, the training samples there are, got {size:,}")


def arm_config(
    arm: Arm, *, out: str, scores: str, dataset: str, fraction: float, seed: int, cutoff: float = 0.0
) -> CoresetConfig:
    """The selection an arm of a sweep stands for; ``cutoff`` is for those of stratified."""
    return CoresetConfig(
        tracking_uri="none",
        out=out,
        scores=scores,
        dataset=dataset,
        method=arm.method,
        score=arm.score,
        balance=arm.balance,
        fraction=fraction,
        cutoff=cutoff if arm.method == "stratified" else 0.0,
        seed=seed,
    )


def open_exclusion(config: CoresetConfig, dataset: Dataset) -> Exclusion | None:
    """The samples to leave out; None where none are requested.

    Raises:
        EasyCoreError: see ``read_exclusion``.
    """
    return None if config.exclude is None else read_exclusion(config.exclude, config.exclude_kind, dataset)


def open_population(
    parents: dict[str, Artifact], dataset: Dataset, excluded: Exclusion | None, column: str | None = None
) -> list[partitions.Partition]:
    """The samples to choose from: those of the hardness table or else of the dataset, without those left out.

    Args:
        parents: by role.
        dataset: that the ids belong to.
        excluded: what is left out.
        column: score of the table to read with them.

    Raises:
        EasyCoreError: none is left.
    """
    if "hardness_table" in parents:
        samples = partitions.hardness_partitions(parents["hardness_table"], column)
    else:
        samples = partitions.dataset_partitions(dataset.path)
    if excluded is None:
        return samples
    left = without_samples(samples, excluded.ids)
    if not left:
        total = count_population(parents, dataset)
        raise EasyCoreError(f"{excluded.path} names all {total:,} samples there are to choose from; none is left")
    return left


def count_population(parents: dict[str, Artifact], dataset: Dataset) -> int:
    """How many samples there are to choose from before any are left out."""
    table = parents.get("hardness_table")
    return dataset.num_rows("train") if table is None else table.manifest["counts"]["samples"]


def coreset_identity(config: CoresetConfig, parents: dict[str, Artifact], excluded: Exclusion | None = None) -> str:
    """What decides the content of a coreset."""
    fingerprints = {role: parent.fingerprint for role, parent in parents.items()}
    if config.user_scores is not None:
        fingerprints["user_scores"] = content_hash(paths.read_bytes(paths.absolute(config.user_scores)))
    if excluded is not None:
        fingerprints["excluded"] = excluded.fingerprint
    return identity("coreset", identity_fields(config), fingerprints)


def open_selection_inputs(
    config: CoresetConfig, opener: Callable[[str, str | None], Artifact] | None = None
) -> tuple[dict[str, Artifact], Dataset]:
    """Parents by role, and the dataset the ids belong to.

    Args:
        config: of the selection.
        opener: opens the hardness table of a scoring run that has a score; by default that of the requested epochs,
            reduced if need be.
    """
    parents: dict[str, Artifact] = {}
    if config.scores is not None:
        open_scores = opener or functools.partial(_open_scores, config)
        parents["hardness_table"] = open_scores(config.scores, score_name(config))
        if (second := second_score_name(config)) is not None:
            parents[SECOND] = open_scores(config.scores, second)
        if METHODS[config.method].needs_features:
            parents[FEATURES] = open_features(config.scores, f"method {config.method}")
        where = config.dataset or parents["hardness_table"].manifest["dataset"]["path"]
    else:
        assert config.dataset is not None
        where = config.dataset
        if METHODS[config.method].needs_features:
            raise EasyCoreError(
                f"method {config.method} needs features; pass --scores RUN of a run with --record features"
            )
        if score_name(config) not in (None, "user"):
            raise EasyCoreError(f"method {config.method} needs scores; pass --scores RUN or --user-scores FILE")
    dataset = open_dataset(where)
    if "hardness_table" in parents:
        check_same_dataset(parents["hardness_table"], dataset)
    parents["dataset"] = dataset
    return parents, dataset


def _open_scores(config: CoresetConfig, scores: str, score: str | None) -> Artifact:
    """The hardness table: the run's own, or one reduced to what it does not have, a score or some epochs."""
    out = reduced_folder(config, score)
    if out is None:
        return open_hardness(scores)
    from easycore_ray.config.stages import ReduceConfig
    from easycore_ray.scoring.reduce import reduce

    run, score = content_folder(paths.absolute(scores)), _trajectory_score(score)
    if not paths.exists(paths.join(run, "table", "manifest.json")):
        named = f"epoch_range {config.epoch_range}" if score is None else f"score {score}"
        raise EasyCoreError(
            f"{named} needs the scores of each epoch, and {run} has no finished table/; pass the folder of a scoring "
            "run as --scores"
        )
    only = None if score is None else (score,)
    return reduce(ReduceConfig(out=out, scores=run, epoch_range=config.epoch_range, only=only))


def reduced_folders(config: CoresetConfig) -> list[str]:
    """Where the scores that are requested lie inside the scoring run, as far as its own hardness table lacks them."""
    scores = (score_name(config), second_score_name(config))
    folders = [reduced_folder(config, score) for score in scores]
    return [folder for folder in dict.fromkeys(folders) if folder is not None]


def reduced_folder(config: CoresetConfig, score: str | None) -> str | None:
    """Where a score of the requested epochs lies inside the scoring run; None: in its own hardness table."""
    trajectory = _trajectory_score(score)
    if config.scores is None or (config.epoch_range is None and trajectory is None):
        return None
    name = "hardness"
    if config.epoch_range is not None:
        name += "-epochs-" + config.epoch_range.replace(":", "-")
    if trajectory is not None:
        name += "-" + re.sub(r"\W+", "-", trajectory)
    return paths.join(content_folder(paths.absolute(config.scores)), name)


def _trajectory_score(score: str | None) -> str | None:
    """The score, if it is one that is not in every hardness table."""
    return score if score is not None and is_trajectory_score(score) else None


def score_name(config: CoresetConfig) -> str | None:
    """The score that orders the samples: ``user``, a column's name, or None where none is needed."""
    if not METHODS[config.method].needs_score:
        return None
    return "user" if config.user_scores is not None else config.score or METHODS[config.method].default_score or "aign"


def _read_score(hardness: Artifact, score: str, excluded: Exclusion | None) -> NDArray[np.float64]:
    """A score of all samples that are not left out, in the order of their ids, float64 (n,)."""
    rows = read_hardness(hardness, ["sample_id", *columns_of(score)])
    values = hardness_column(rows, score).to_numpy()
    if excluded is None:
        return values
    return values[np.isin(rows["sample_id"].to_numpy(), excluded.ids, assume_unique=True, invert=True)]


def _read_features(parents: dict[str, Artifact], samples: Sequence[partitions.Partition]) -> Features:
    """Features of the samples to choose from, in the order of their ids."""
    table = parents[FEATURES]
    ids, features = read_features(table)
    wanted = np.concatenate(
        [batch.sample_ids for part in samples for batch in part.batches(labels=False, scores=False)]
    )
    at = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    if not np.array_equal(ids[at], wanted):
        raise EasyCoreError(f"{table.path} holds features of other samples than those to choose from; score anew")
    return features if len(wanted) == len(ids) else features.take(at)


def second_score_name(config: CoresetConfig) -> str | None:
    """The second score that a method reads; None where it reads none, or is given none."""
    if METHODS[config.method].second_score != "confidence":
        return config.cutoff_score
    first = score_name(config) or ""
    # Of the same epochs as the first one.
    epochs = getattr(parse_trajectory_score(first), "epochs", None) if is_trajectory_score(first) else None
    return str(Confidence() if epochs is None else Confidence(epochs=epochs))


def _decide(
    config: CoresetConfig, parents: dict[str, Artifact], dataset: Dataset, excluded: Exclusion | None
) -> Choice:
    """What is kept of the samples of the table, or of the dataset where no scores are needed."""
    score = score_name(config)
    column = None if score == "user" else score
    samples = open_population(parents, dataset, excluded, column)
    if score == "user":
        assert config.user_scores is not None
        samples = with_user_scores(samples, paths.absolute(config.user_scores), dataset.path)
    second = second_score_name(config)
    try:
        selection = Selection(
            method=look_up(config.method, balance=config.balance, score=column),
            second_score=second,
            fraction=config.fraction,
            score=score,
            num_classes=dataset.num_classes if config.balance == "class" else None,
            seed=config.seed,
            options=method_options(config),
        )
        also = None if second is None else _read_score(parents[SECOND], second, excluded)
        features = _read_features(parents, samples) if selection.method.needs_features else None
        return decide(selection, samples, second=also, features=features)
    except ValueError as error:
        if isinstance(error, EasyCoreError):
            raise
        raise EasyCoreError(str(error)) from error
