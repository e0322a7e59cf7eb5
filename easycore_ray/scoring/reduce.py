"""reduce(): score table → hardness table, one row per sample.

Ids are cut into ranges, and one Ray task per range does the work (``id_range``). Here: which epochs, how
many ranges, and the artifact.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from easycore_ray.config.base import to_dict, verb
from easycore_ray.config.fields import parse_epoch_range
from easycore_ray.config.stages import ReduceConfig
from easycore_ray.core.selection import ADVERSARIAL_SCORES
from easycore_ray.core.trajectory import RunFacts, TooFewEpochsError
from easycore_ray.runtime.claims import claim_artifact
from easycore_ray.runtime.console import say
from easycore_ray.runtime.tasks import TaskResources, map_tasks
from easycore_ray.scoring.feature_table import open_features
from easycore_ray.scoring.hardness_table import HardnessTable, not_recorded
from easycore_ray.scoring.plans import plan_reduce
from easycore_ray.scoring.reduce_task import Plan, make_plan, reduce_range, sum_range
from easycore_ray.scoring.score_reader import (
    ScoreTable,
    input_space_of,
    open_table,
    population,
    training_of,
    val_losses_of,
)
from easycore_ray.scoring.trajectories import exact_mean, needs_threshold, trajectory_scores
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Artifact, content_folder, finish
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.storage.hashes import content_hash

# A table that is cut at all may be cut up to this much finer, to give every CPU an equal share.
_MOST_CUTS = 4
# Memory of a sample in a task, about, without that of trajectory scores.
_SAMPLE_BYTES = 200

_Result = TypeVar("_Result")


@verb(ReduceConfig, gives=HardnessTable, plan=plan_reduce)
def reduce(config: ReduceConfig) -> Artifact:
    """Reduce the score table of a scoring run to ``aign`` and the other scores of each sample.

    ``aign`` is the mean gradient norm over the scored epochs 1..E (arXiv 2510.11018). ``el2n`` (arXiv 2107.07075),
    ``loss`` and ``aum`` (arXiv 2001.10528) are the means of the rows' ``el2n``, ``loss`` and ``margin``.
    ``forgetting_events`` counts correct → wrong between consecutive scored epochs (Toneva et al. 2019,
    arXiv 1812.05159). ``first_learned_epoch`` is the first epoch with a correct prediction, −1 if there is none.
    Of a run in adversarial training also ``adv_loss``, the mean of the rows' ``adv_loss``, and ``problematic``, the
    number of scored epochs in which the attacked image is misclassified (Dong et al. 2021, arXiv 2102.07437).
    With ``epoch_range`` A:B all of them are over the scored epochs A..B, and parts of later or
    earlier ones are not looked at; epoch 0 stays the control, ``aign_epoch0``. With ``only``, the columns
    of other scores are not read and null in the result; those of ``core.trajectory_scores`` are made if they are in it.

    Returns:
        The hardness table (``hardness_table.schema_of``: means float64, counts int32), one row per sample, sorted by
        id; ``config.out`` is usually ``<scores>/hardness``.

    Raises:
        EasyCoreError: if the table is unfinished or damaged, a sample lacks or doubles a row, or
            ``epoch_range`` holds no scored epoch or ends after the last one, or the table lacks a score of ``only``.
    """
    started = time.monotonic()
    table = open_table(paths.join(content_folder(paths.absolute(config.scores)), "table"))
    parents = {"score_table": table.artifact} | _features_of(config, table)
    out = paths.absolute(config.out)
    between = parse_epoch_range(config.epoch_range) if config.epoch_range is not None else None
    epochs = used_epochs(config, table, between)
    run = _run_of(table, epochs, config)
    made = claim_artifact("hardness_table", config, parents)
    if isinstance(made, Artifact):
        say(f"reduce: {out} is finished, reused")
        return made
    run = _with_threshold(run, table, epochs, config)
    files = _map_ranges(reduce_range, table, epochs, made.path, config, run)
    rows = sum(entry["rows"] for entry in files)
    artifact = finish(
        made,
        # The rows follow from the table and the epochs alone, however they are cut into files.
        fingerprint=content_hash(
            "hardness_table", table.artifact.fingerprint, *map(str, between or ()), *(config.only or ())
        ),
        config=to_dict(config),
        parents=parents,
        counts={"samples": rows, "scored_epochs": len([epoch for epoch in epochs if epoch > 0])},
        wall_seconds=time.monotonic() - started,
        files=files,
        only=None if config.only is None else list(config.only),
        epoch_range=None if between is None else list(between),
        score_pass=table.artifact.manifest["config"]["score_pass"],
        input_space=input_space_of(table.artifact),
        training=training_of(table.artifact),
        dataset=table.artifact.manifest["parents"]["dataset"],
    )
    say(f"reduce: {rows:,} samples × {len(epochs)} epochs → {out}")
    return artifact


def used_epochs(config: ReduceConfig, table: ScoreTable, between: tuple[int, int] | None) -> tuple[int, ...]:
    """Epochs to read, ascending: the control, if its column is requested, and the scored ones of the range.

    Raises:
        EasyCoreError: the range holds no scored epoch, or ends after the last one; or a score is requested that needs
            scoring under attack, and there was none.
    """
    for score in ADVERSARIAL_SCORES if training_of(table.artifact) == "standard" else ():
        if score in (config.only or ()):
            raise EasyCoreError(f"{table.path} has no {score}: {not_recorded(score)}")
    for asked in trajectory_scores(config.only):
        if missing := set(asked.COLUMNS) - set(table.schema.names):
            raise EasyCoreError(
                f"score {asked} needs {', '.join(missing)}, which {table.path} has not; score with --record kd"
            )
    epochs = _epochs_between(table, between)
    if config.only is not None and "aign_epoch0" not in config.only:
        return tuple(epoch for epoch in epochs if epoch > 0)
    return epochs


def _epochs_between(table: ScoreTable, between: tuple[int, int] | None) -> tuple[int, ...]:
    scored = [epoch for epoch in table.epochs() if epoch > 0]
    if not scored:
        raise EasyCoreError(f"{table.path} holds no scored epoch after the first weights; nothing to average")
    if between is None:
        return tuple(table.epochs())
    first, last = between
    if last > scored[-1]:
        raise EasyCoreError(
            f"epoch_range {first}:{last} ends after the last scored epoch of {table.path}, {scored[-1]}; "
            f"B must be at most {scored[-1]}"
        )
    chosen = [epoch for epoch in scored if first <= epoch <= last]
    if not chosen:
        near = [epoch for epoch in scored if epoch < first][-1:] + [epoch for epoch in scored if epoch > last][:1]
        raise EasyCoreError(
            f"epoch_range {first}:{last} holds no scored epoch of {table.path}; the nearest are "
            f"{' and '.join(map(str, near))}"
        )
    return tuple(epoch for epoch in table.epochs() if epoch == 0 or epoch in chosen)


def _run_of(table: ScoreTable, epochs: tuple[int, ...], config: ReduceConfig) -> RunFacts:
    """What the trajectory scores that are asked for must know of the scoring run.

    Raises:
        EasyCoreError: it has too few scored epochs for one of them, or no validation losses where one needs them.
    """
    scores = trajectory_scores(config.only)
    run = RunFacts(count=len([epoch for epoch in epochs if epoch > 0]))
    for score in scores:
        try:
            score.check_epochs(run.count)
        except TooFewEpochsError as error:
            raise EasyCoreError(
                f"{error}: {table.path}; score more epochs, or give the score a shorter window"
            ) from error
    scored = tuple(epoch for epoch in epochs if epoch > 0)
    if any(score.NEEDS_VALIDATION for score in scores):
        run = replace(run, val_loss=val_losses_of(table, scored))
    return run


def _features_of(config: ReduceConfig, table: ScoreTable) -> dict[str, Artifact]:
    """The run's features, as a parent, where a score that is asked for reads them.

    Raises:
        EasyCoreError: there are none, or the epochs do not end with the weights that they are of.
    """
    asked = [str(score) for score in trajectory_scores(config.only) if score.NEEDS_FEATURES]
    if not asked:
        return {}
    found = open_features(table.path.rpartition("/")[0], f"score {asked[0]}")
    if config.epoch_range is not None:
        raise EasyCoreError(
            f"score {asked[0]} is of the final weights, got epoch_range {config.epoch_range}; leave it out"
        )
    return {"feature_table": found}


def _with_threshold(run: RunFacts, table: ScoreTable, epochs: tuple[int, ...], config: ReduceConfig) -> RunFacts:
    """The same with the mean over all samples, where a score compares with it: the table is read once more."""
    if not needs_threshold(trajectory_scores(config.only)):
        return run
    scored = tuple(epoch for epoch in epochs if epoch > 0)
    totals = _map_ranges(sum_range, table, scored, "", config.replace(only=("aign",)), run)
    return replace(run, threshold=exact_mean(sum(totals), table.artifact.manifest["counts"]["samples"]))


def _map_ranges(
    work: Callable[[Plan, int], Any],
    table: ScoreTable,
    epochs: tuple[int, ...],
    out: str,
    config: ReduceConfig,
    run: RunFacts,
) -> list[Any]:
    """Run one task per id range; what they give, in id order."""
    first, last, _ = population(table.path)
    num_ranges = -(-(last + 1 - first) // config.bucket_rows)
    if num_ranges == 1:
        # A table this small is reduced before a Ray task has started.
        return [work(make_plan(table, epochs, out, 1, config.only, run), 0)]
    from easycore_ray.runtime.cluster import capacity, connect

    connect()
    cpus = capacity().tasks
    even = -(-num_ranges // cpus) * cpus
    return _map_on_ray(work, make_plan(table, epochs, out, min(even, _MOST_CUTS * num_ranges), config.only, run))


def _map_on_ray(work: Callable[[Plan, int], _Result], plan: Plan) -> list[_Result]:
    import ray

    shared = ray.put(plan)
    total, count = len(plan.epochs) * plan.table.artifact.manifest["counts"]["samples"], len(plan.ranges)
    # For the progress line: ids lie nearly evenly in the ranges.
    rows = [total * (number + 1) // count - total * number // count for number in range(count)]
    items = [(shared, number) for number in range(len(plan.ranges))]
    return map_tasks(work, items, label="reduce", resources=TaskResources(), rows=rows)
