"""sweep(): train and evaluate every arm × fraction × objective × seed with Ray Tune, and tabulate.

Scores are taken once and serve all arms. A trial is two artifacts, a checkpoint and its evaluation, and a
third, the evaluation of its best epoch, where that is not the last; a sweep that is run again skips the trials
whose artifacts are finished, so nothing pickled is ever restored. One-worker trials train in the trial's own
process, several workers through Ray Train.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from easycore_ray.config.base import to_dict, verb
from easycore_ray.config.experiments import SweepConfig
from easycore_ray.experiments.finished_trials import FinishedTrial, read_finished
from easycore_ray.experiments.plans import open_sweep_inputs, plan_sweep
from easycore_ray.experiments.results import (
    lineage,
    lost_row,
    read_result_rows,
    result_rows,
    training_curves,
)
from easycore_ray.experiments.tracked_trials import describe_parent, describe_trials, keep_best_models
from easycore_ray.experiments.trial_runner import run_trials, trial_demand
from easycore_ray.experiments.trials import (
    Trial,
    budget_columns,
    coreset_folders,
    make_trials,
    select_coresets,
    settle_steps,
)
from easycore_ray.runtime import cluster
from easycore_ray.runtime.claims import claim_artifact
from easycore_ray.runtime.console import duration, say
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Artifact, Claim, finish, giving_back
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.storage.hashes import content_hash
from easycore_ray.tracking.mlflow import reconcile, track
from easycore_ray.tracking.runs import TrackedRun


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
    objective: metrics of every epoch], "diverged": [one per run without results], "lineage": …}``.

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
    trials = make_trials(config, made.path, select_coresets(config, dataset, made.path))
    finished = read_finished(trials)
    if finished:
        say(f"sweep: {len(finished)} of {len(trials)} trials are finished already")
    with track(config, out, lambda status: describe_sweep(config, made.path, status, finished)) as tracker:
        parent = describe_parent(config, made.path, "sweep", "RUNNING")
        todo = [trial for trial in trials if trial.place not in finished]
        diverged = run_trials(config, made, todo, tracker=tracker, parent=parent)
        finished |= read_finished(trial for trial in todo if trial.name not in diverged)
        artifact = _finish(config, made, parents, trials, finished, diverged, started)
        _report(artifact, finished.values(), [trial.name for trial in trials if trial.name in diverged], started)
    return artifact


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
    folders = coreset_folders(config, folder)
    trials = make_trials(config, folder, folders)
    finished = dict(finished or {})
    finished |= read_finished(trial for trial in trials if trial.place not in finished)
    parent, *children = describe_trials(config, folder, "sweep", trials, status, finished)
    if status == "FINISHED":
        ids = {f"coresets/{name}/sample_ids.npy": paths.join(path, "sample_ids.npy") for name, path in folders.items()}
        parent = replace(parent, files={**parent.files, **ids})
        children = keep_best_models(children, {trial.name: trial.train.out for trial in trials}, config.register)
    return [parent, *children]


def _finish(
    config: SweepConfig,
    made: Claim,
    parents: dict[str, Artifact],
    trials: list[Trial],
    finished: Mapping[str, FinishedTrial],
    diverged: dict[str, dict[str, Any]],
    started: float,
) -> Artifact:
    """Write the summary and the manifest."""
    lost = [trial for trial in trials if trial.name in diverged]
    made_by = [finished[trial.place] for trial in trials if trial.name not in diverged]
    if not made_by:
        raise EasyCoreError(f"all {len(lost)} trials diverged, the first with: {diverged[lost[0].name]['problem']}")
    budget = budget_columns(config, made.path)
    rows = [row | budget.get(row["training"], {}) for row in result_rows(made_by, parents["scores"], lost)]
    summary = {
        "rows": rows,
        "curves": training_curves(made_by),
        "diverged": [lost_row(trial, diverged[trial.name]["problem"]) for trial in lost],
        "lineage": lineage(config, parents),
    }
    paths.write_json(paths.join(made.path, "summary.json"), summary)
    spent = [each.checkpoint.manifest["device_seconds"] for each in made_by]
    return finish(
        made,
        fingerprint=content_hash(
            *(evaluation.fingerprint for each in made_by for evaluation in each.evaluations),
            *(f"{trial.name} diverged" for trial in lost),
        ),
        config=to_dict(config),
        parents=parents,
        counts={"trials": len(made_by), "rows": len(rows)} | ({"diverged": len(lost)} if lost else {}),
        wall_seconds=time.monotonic() - started,
        device_seconds=sum(spent) + sum(note["device_seconds"] for note in diverged.values()),
        **({"budget": budget} if budget else {}),
    )


def _report(artifact: Artifact, finished: Iterable[FinishedTrial], diverged: Sequence[str], started: float) -> None:
    """Report the end of a sweep, and what is to be doubted in it."""
    count = artifact.manifest["counts"]["trials"]
    say(f"sweep: {count} trials in {duration(time.monotonic() - started)} → {artifact.path}")
    if diverged:
        say(f"sweep: DIVERGED, without results: {', '.join(diverged)}")
    doubtful = [each.trial.name for each in finished if each.summaries["last"]["suspicious"]]
    if doubtful:
        say(f"sweep: SUSPICIOUS evaluations, marked in the table: {', '.join(doubtful)}")
