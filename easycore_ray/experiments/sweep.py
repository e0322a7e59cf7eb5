"""sweep(): train and evaluate every arm × fraction × objective × seed with Ray Tune, and tabulate.

Scores are taken once and serve all arms. A trial is two artifacts, a checkpoint and its evaluation, and a
third, the evaluation of its best epoch, where that is not the last; a sweep that is run again skips the trials
whose artifacts are finished, so nothing pickled is ever restored. One-worker trials train in the trial's own
process, several workers through Ray Train.
"""

import functools
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from easycore_ray.config.base import to_dict, verb
from easycore_ray.config.experiments import SweepConfig
from easycore_ray.data.dataset import Dataset
from easycore_ray.engine.extra_data import extra_data
from easycore_ray.experiments.early_stopping import EarlyStopping
from easycore_ray.experiments.finished_trials import FinishedTrial, read_finished
from easycore_ray.experiments.plans import open_sweep_inputs, plan_sweep
from easycore_ray.experiments.results import (
    described,
    lineage,
    lost_row,
    read_result_rows,
    result_rows,
    training_curves,
)
from easycore_ray.experiments.search_points import sweep_trials
from easycore_ray.experiments.stopped_trials import read_stops, stopped_row
from easycore_ray.experiments.tracked_trials import describe_parent, describe_trials, keep_best_models
from easycore_ray.experiments.trial_runner import run_trials, trial_demand
from easycore_ray.experiments.trials import FULL, Trial, budget_columns, select_coresets, settle_steps
from easycore_ray.runtime import cluster
from easycore_ray.runtime.claims import claim_artifact
from easycore_ray.runtime.console import duration, say
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Artifact, Claim, finish, giving_back
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.storage.hashes import content_hash
from easycore_ray.tracking.mlflow import Tracker, reconcile, track
from easycore_ray.tracking.runs import TrackedRun
from easycore_ray.training.train import read_divergence


class Sweep(Artifact):
    """A finished sweep."""

    def rows(self) -> list[dict[str, Any]]:
        """One row per arm, fraction, objective and eps: mean and standard deviation over seeds."""
        return read_result_rows(self.path)


@verb(SweepConfig, gives=Sweep, plan=plan_sweep)
def sweep(config: SweepConfig) -> Artifact:
    """Run (or go on with, or reuse) a sweep.

    The folder holds ``coresets/``, ``trials/`` (checkpoint and evaluation of each) and ``summary.json``:
    ``{"rows": [one per arm, fraction, objective and eps, over seeds], "curves": [one per arm, fraction and
    objective: metrics of every epoch], "diverged": [one per run without results], "lineage": …}``, with ``--scheduler``
    also ``"stopped": [one per run that was stopped early]``.

    Returns:
        The sweep.

    Raises:
        EasyCoreError: for foreign inputs, more than the cluster can give, or trials that failed; with ``keep_going``
            not for those whose training diverged, unless no other is left.
    """
    started = time.monotonic()
    dataset, _, parents = open_sweep_inputs(config)
    out = paths.absolute(config.out)
    made = claim_artifact("sweep", config, parents)
    if isinstance(made, Artifact):
        say(f"sweep: {out} is finished, reused")
        reconcile(config, out, lambda status: describe_sweep(config, made.path, status))
        return made
    with giving_back(made):
        cluster.connect()
        cluster.check_demand(trial_demand(config))
        settle_steps(config, made)
    if (extra := extra_data(config, dataset, parents)) is not None:
        say(f"sweep: {extra.describe(config.batch_size)}")
    select_coresets(config, dataset, made.path)
    trials = sweep_trials(config, made.path)
    finished = read_finished(trials)
    if finished:
        say(f"sweep: {len(finished)} of {len(trials)} trials are finished already")
    with track(config, out, lambda status: describe_sweep(config, made.path, status, finished)) as tracker:
        diverged = _run(config, dataset, made, trials, finished, tracker)
        trials = sweep_trials(config, made.path)
        stopped = _read_stops(config, trials)
        ended = {*finished, *(trial.place for trial in trials if trial.name in {*diverged, *stopped})}
        finished |= read_finished(trial for trial in trials if trial.place not in ended)
        artifact = _finish(config, made, parents, _Outcome(trials, finished, diverged, stopped), started)
        _report(artifact, finished.values(), [trial.name for trial in trials if trial.name in diverged], started)
    return artifact


@dataclass(frozen=True)
class _Outcome:
    """What has become of the trials of a sweep."""

    trials: list[Trial]
    finished: Mapping[str, FinishedTrial]
    """By ``Trial.place``."""
    diverged: Mapping[str, dict[str, Any]]
    """Notes by name."""
    stopped: Mapping[str, dict[str, Any]]
    """Notes by name."""


def _read_stops(config: SweepConfig, trials: Sequence[Trial]) -> dict[str, dict[str, Any]]:
    return read_stops(trials) if config.scheduler != "none" else {}


def _run(
    config: SweepConfig,
    dataset: Dataset,
    made: Claim,
    trials: list[Trial],
    finished: Mapping[str, FinishedTrial],
    tracker: Tracker,
) -> dict[str, dict[str, Any]]:
    """Run the trials that are missing; notes of those that diverged, by name."""
    run = functools.partial(
        run_trials, config, made, tracker=tracker, parent=describe_parent(config, made.path, "sweep", "RUNNING")
    )
    stopped, stopping = _read_stops(config, trials), None
    if config.scheduler != "none":
        stopping = EarlyStopping(config, made.check)
        stopping.replay(trials, finished, stopped)
    todo = [trial for trial in trials if trial.place not in finished and trial.name not in stopped]
    if config.search == "none":
        return run(todo, stopping=stopping)
    from easycore_ray.experiments.point_search import PointSearch

    diverged = run([trial for trial in todo if trial.arm == FULL])
    if config.keep_going:
        diverged |= {trial.name: note for trial in todo if (note := read_divergence(trial.train)) is not None}
    points = PointSearch(config, dataset, made, finished, {**stopped, **diverged})
    return diverged | run([], stopping=stopping, points=points)


def describe_sweep(
    config: SweepConfig, folder: str, status: str, finished: Mapping[str, FinishedTrial] | None = None
) -> list[TrackedRun]:
    """The MLflow runs of a sweep and of its trials that were begun.

    Args:
        config: of the sweep.
        folder: of its files.
        status: of what is not finished.
        finished: trials that were read before, by ``Trial.place``; what others have made is read now.
    """
    trials = sweep_trials(config, folder)
    finished = dict(finished or {})
    finished |= read_finished(trial for trial in trials if trial.place not in finished)
    parent, *children = describe_trials(config, folder, "sweep", trials, status, finished)
    if status == "FINISHED":
        coresets = dict.fromkeys(trial.train.coreset or "" for trial in trials)
        ids = {f"coresets/{path.rpartition('/')[2]}/sample_ids.npy": paths.join(path, "sample_ids.npy")
               for path in coresets}  # fmt: skip
        parent = replace(parent, files={**parent.files, **ids})
        children = keep_best_models(children, {trial.name: trial.train.out for trial in trials}, config.register)
    return [parent, *children]


def _finish(
    config: SweepConfig,
    made: Claim,
    parents: dict[str, Artifact],
    outcome: _Outcome,
    started: float,
) -> Artifact:
    """Write the summary and the manifest."""
    trials, diverged, notes = outcome.trials, outcome.diverged, outcome.stopped
    lost = [trial for trial in trials if trial.name in diverged]
    stopped = [trial for trial in trials if trial.name in notes]
    made_by = [outcome.finished[trial.place] for trial in trials if trial.place in outcome.finished]
    if not made_by:
        raise EasyCoreError(f"all {len(lost)} trials diverged, the first with: {diverged[lost[0].name]['problem']}")
    budget = budget_columns(config, made.path)
    found = result_rows(made_by, parents["scores"], lost, stopped)
    rows = [row | budget.get(row["training"], {}) for row in found]
    summary = {
        "rows": rows,
        "curves": training_curves(made_by),
        "diverged": [lost_row(trial, diverged[trial.name]["problem"]) for trial in lost],
        "lineage": lineage(config, parents),
    }
    if config.scheduler != "none":
        summary["stopped"] = [described(trial) | stopped_row(trial, notes[trial.name]) for trial in stopped]
    paths.write_json(paths.join(made.path, "summary.json"), summary)
    spent = [each.checkpoint.manifest["device_seconds"] for each in made_by]
    return finish(
        made,
        fingerprint=content_hash(
            *(evaluation.fingerprint for each in made_by for evaluation in each.evaluations),
            *(f"{trial.name} diverged" for trial in lost),
            *(f"{trial.name} stopped at {notes[trial.name]['share']}" for trial in stopped),
        ),
        config=to_dict(config),
        parents=parents,
        counts={"trials": len(made_by), "rows": len(rows)}
        | {name: len(ended) for name, ended in (("diverged", lost), ("stopped", stopped)) if ended},
        wall_seconds=time.monotonic() - started,
        device_seconds=sum(spent) + sum(note["device_seconds"] for note in (*diverged.values(), *notes.values())),
        **({"budget": budget} if budget else {}),
    )


def _report(artifact: Artifact, finished: Iterable[FinishedTrial], diverged: Sequence[str], started: float) -> None:
    """Report the end of a sweep, and what is to be doubted in it."""
    count = artifact.manifest["counts"]["trials"]
    say(f"sweep: {count} trials in {duration(time.monotonic() - started)} → {artifact.path}")
    if stopped := artifact.manifest["counts"].get("stopped"):
        say(f"sweep: {stopped} more were stopped early, see the table")
    if diverged:
        say(f"sweep: DIVERGED, without results: {', '.join(diverged)}")
    doubtful = [each.trial.name for each in finished if each.summaries["last"]["suspicious"]]
    if doubtful:
        say(f"sweep: SUSPICIOUS evaluations, marked in the table: {', '.join(doubtful)}")
