"""The MLflow runs of a sweep or study: a parent, and a child per trial."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from easycore_ray.config.base import JobConfig, to_dict
from easycore_ray.core.eps import format_eps
from easycore_ray.engine.run_history import describe_training_run
from easycore_ray.experiments.trials import Trial, is_finished
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import RUN, open_artifact
from easycore_ray.tracking.mlflow import TrackedRun


def describe_parent(config: JobConfig, path: str, kind: str, status: str) -> TrackedRun:
    """The run of a sweep or study as a whole.

    Args:
        config: its configuration.
        path: its folder, claimed or finished.
        kind: ``sweep`` or ``study``.
        status: of the run.
    """
    claimed = paths.read_json(paths.join(path, RUN))
    summary = paths.join(path, "summary.json")
    files = {"summary.json": summary} if status == "FINISHED" and paths.exists(summary) else {}
    key = f"{kind}-{claimed['identity'][:16]}-{claimed['nonce']}"
    return TrackedRun(key, kind, to_dict(config), {"kind": kind}, files=files, status=status)


def new_trial_run(trial: Trial, parent: str) -> TrackedRun:
    """The run of a trial that has just started; ``parent`` is the key of the run it is a child of."""
    params = {"method": trial.arm.method, "score": trial.arm.score, "balance": trial.arm.balance,
              "fraction": trial.fraction, "training": trial.training, "beta": trial.beta, "seed": trial.seed,
              **to_dict(trial.train)}  # fmt: skip
    suffix = "+autoattack" if "autoattack" in trial.evaluate.attack else ""
    return TrackedRun(f"{parent}-{trial.name}{suffix}", trial.name, params, {"kind": "trial"}, parent)


def describe_trial(trial: Trial, parent: str, status: str) -> TrackedRun:
    """The run of a trial that was begun: its parameters, epochs, and accuracies at the end.

    Args:
        trial: the trial; its checkpoint's folder is claimed or finished.
        parent: key of the run it is a child of.
        status: of the run, if the trial is not finished.
    """
    new = new_trial_run(trial, parent)
    run = describe_training_run(trial.train.out, "train", new, status)
    points = dict(run.points)
    if is_finished(trial.train.out):
        run = replace(run, status=status)
        if all(is_finished(config.out) for config in trial.evaluations()):
            found = trial_summary(trial)
            points[found["epoch"]] = {**points.get(found["epoch"], {}), **found["metrics"]}
            run = replace(run, status="FINISHED")
    return replace(run, key=new.key, params=new.params, points=points)


def describe_trials(config: JobConfig, path: str, kind: str, trials: Sequence[Trial], status: str) -> list[TrackedRun]:
    """The runs of a sweep or study and of the trials that were begun; arguments as of the functions above."""
    parent = describe_parent(config, path, kind, status)
    begun = [trial for trial in trials if paths.exists(paths.join(trial.train.out, RUN))]
    return [parent, *(describe_trial(trial, parent.key, status) for trial in begun)]


def trial_summary(trial: Trial) -> dict[str, Any]:
    """What a finished trial found after its last ``epoch``: ``metrics``, ``words``; ``…_best`` is the best epoch's."""
    last, *best = trial.summaries()
    metrics = flat_metrics(last)
    metrics |= {f"{name}_best": value for summary in best for name, value in flat_metrics(summary).items()}
    manifest = open_artifact(trial.train.out, "checkpoint").manifest
    if manifest.get("best_epoch") is not None:
        metrics["best_epoch"] = manifest["best_epoch"]
    words = "; best epoch: ".join(map(short_result, (last, *best)))
    return {"metrics": metrics, "words": words, "epoch": int(manifest["epochs"][-1]["epoch"])}


def flat_metrics(summary: dict[str, Any]) -> dict[str, float]:
    """An evaluation's summary as metrics; the one without a suffix belongs to the last eps."""
    found = {"clean_accuracy": summary["clean_accuracy"]}
    for row in summary["robust"]:
        found[f"robust_accuracy_{row['attack']}_eps_{format_eps(row['eps']).replace('/', '_')}"] = row["accuracy"]
        found[f"robust_accuracy_{row['attack']}"] = row["accuracy"]
    return found


def short_result(summary: dict[str, Any]) -> str:
    """``clean 91.0 %, robust 55.2 %`` (at the last eps, under all attacks)."""
    doubt = ", SUSPICIOUS" if summary["suspicious"] else ""
    robust = summary["robust"][-1]["accuracy"]
    return f"clean {100 * summary['clean_accuracy']:.1f} %, robust {100 * robust:.1f} %{doubt}"
