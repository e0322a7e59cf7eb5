"""The MLflow runs of a sweep or study: a parent, and a child per trial."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from easycore_ray.config.base import JobConfig, to_dict
from easycore_ray.core.eps import format_eps
from easycore_ray.engine.run_history import describe_training_run
from easycore_ray.evaluation.tracked_evaluation import SUSPICIOUS, flat_metrics, tags_of
from easycore_ray.experiments.finished_trials import FinishedTrial
from easycore_ray.experiments.stopped_trials import read_stop
from easycore_ray.experiments.trials import Trial
from easycore_ray.reporting.tables import print_table
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import MANIFEST, RUN, content_folder
from easycore_ray.tracking.runs import TrackedModel, TrackedRun, data_of, describe_job, params_of

# As much of a description as MLflow keeps everywhere.
_NOTE_CHARS = 4500


def describe_parent(config: JobConfig, path: str, kind: str, status: str) -> TrackedRun:
    """The run of a sweep, study or pipeline as a whole: once it is finished, what came out.

    Args:
        config: its configuration.
        path: its folder, claimed or finished.
        kind: ``sweep``, ``study`` or ``pipeline``.
        status: of the run.
    """
    run = describe_job(path, kind, kind, to_dict(config), status)
    if status != "FINISHED" or not paths.exists(paths.join(path, "summary.json")):
        return replace(run, status=status)
    manifest, summary = paths.read_json(paths.join(path, MANIFEST)), paths.read_json(paths.join(path, "summary.json"))
    rows = summary["rows"]
    metrics = {key: value for row in rows for key, value in _row_metrics(row).items()}
    metrics |= {name: float(value) for name, value in manifest["counts"].items()}
    metrics["device_hours"] = manifest["device_seconds"] / 3600
    best = max((row for row in rows if row["eps"] == rows[-1]["eps"]), key=lambda row: _robust(row) or 0.0)
    metrics |= {"best_robust_accuracy_mean": _robust(best), "best_clean_accuracy_mean": best["clean_accuracy_mean"]}
    doubtful = sum(bool(row.get("suspicious")) for row in rows)
    return replace(
        run,
        points={0: metrics},
        tags={**run.tags, "easycore.best_arm": f"{_arm_text(best)} at eps {format_eps(best['eps'])}",
              "mlflow.note.content": _note(run, summary), **({SUSPICIOUS: doubtful} if doubtful else {})},
        files=_shown_files(path),
        data=data_of(manifest["parents"]),
        status=status,
    )  # fmt: skip


def _shown_files(path: str) -> dict[str, str]:
    """What MLflow keeps a copy of, by name: the summary, the report and its pictures."""
    found = {name: file for name in ("summary.json", "report.html") if paths.exists(file := paths.join(path, name))}
    plots = [entry.path for entry in paths.entries(paths.join(path, "report", "plots")) if entry.path.endswith(".png")]
    return found | {f"plots/{file.rpartition('/')[2]}": file for file in sorted(plots)}


def _arm_text(row: Mapping[str, Any]) -> str:
    """Names the arm, size and objective of a result row, in characters that MLflow allows in names of metrics."""
    arm = " ".join(str(part) for part in (row["method"], row["score"], row["balance"]) if part and part != "none")
    beta = "" if row["beta"] is None else f" beta {row['beta']:g}"
    return f"{arm} {row['fraction']:g} {row['training']}{beta}"


def _robust(row: Mapping[str, Any]) -> float | None:
    """Mean robust accuracy of a row under PGD, which every sweep runs."""
    return row.get("robust_accuracy_pgd20_mean")


def _row_metrics(row: Mapping[str, Any]) -> dict[str, float | None]:
    """Mean and standard deviation over seeds, and the cost, of an arm at an eps."""
    arm, eps = _arm_text(row), format_eps(row["eps"]).replace("/", "_")
    found = {f"{arm}/device_seconds": row["training_seconds"]}
    found |= {f"{arm}/{name}": row[name] for name in row if name.endswith(("images_per_second", "_megabytes"))}
    for end in ("mean", "std"):
        found[f"{arm}/clean_accuracy_{end}"] = row[f"clean_accuracy_{end}"]
        more = [f"{name}_{end}" for name in ("clean_ece", "corruption_accuracy") if f"{name}_{end}" in row]
        found |= {f"{arm}/{name}": row[name] for name in more}
        if f"robust_accuracy_averaged_{end}" in row:
            found[f"{arm}/clean_accuracy_averaged_{end}"] = row[f"clean_accuracy_averaged_{end}"]
            found[f"{arm}/robust_accuracy_averaged_{end}_eps_{eps}"] = row[f"robust_accuracy_averaged_{end}"]
        found[f"{arm}/robust_accuracy_{end}_eps_{eps}"] = row.get(f"robust_accuracy_pgd20_{end}")
        if row.get(f"robust_gap_{end}") is not None:
            found[f"{arm}/robust_gap_{end}_eps_{eps}"] = row[f"robust_gap_{end}"]
    return found


def _note(run: TrackedRun, summary: Mapping[str, Any]) -> str:
    """The description on the run's page, in Markdown."""
    rows = summary["rows"]
    arms, seeds = len({_arm_text(row) for row in rows}), sorted({seed for row in rows for seed in row["seeds"]})
    head = (
        f"{arms} arms (method, fraction, objective), seeds {', '.join(map(str, seeds))}; the artifacts lie in "
        f"`{run.tags['easycore.folder']}`.\n\n```\n"
    )
    lines, text = print_table(rows, summary["diverged"], summary.get("stopped", ())).splitlines(), head
    for line in lines:
        if len(text) + len(line) > _NOTE_CHARS:
            text += "…\n"
            break
        text += line + "\n"
    return text + "```"


def new_trial_run(trial: Trial, parent: TrackedRun) -> TrackedRun:
    """The run of a trial that has just started, a child of the given one."""
    params = {"method": trial.arm.method, "score": trial.arm.score, "balance": trial.arm.balance,
              "fraction": trial.fraction, "training": trial.training, "beta": trial.beta, "seed": trial.seed,
              **params_of(to_dict(trial.train))}  # fmt: skip
    return TrackedRun(f"{parent.key}-{trial.name}{trial.attack_suffix}", trial.name, params, {"kind": "trial"}, parent)


def describe_trial(finished: FinishedTrial, parent: TrackedRun) -> TrackedRun:
    """The run of a finished trial: its parameters, epochs, and accuracies at the end."""
    new, made = new_trial_run(finished.trial, parent), finished.checkpoint.manifest
    found = trial_summary(finished)
    points = {int(entry["epoch"]): dict(entry) for entry in made["epochs"]}
    points[found["epoch"]] = {**points.get(found["epoch"], {}), **found["metrics"]}
    tags = {**new.tags, "easycore.folder": finished.trial.train.out, **found["tags"]}
    return replace(new, points=points, tags=tags, data=data_of(made["parents"]), status="FINISHED")


def describe_begun_trial(trial: Trial, parent: TrackedRun, status: str) -> TrackedRun:
    """The run of a trial that is not finished: its parameters and epochs.

    Args:
        trial: the trial; its checkpoint's folder is claimed, or finished and not evaluated.
        parent: the run it is a child of.
        status: of the run.
    """
    new = new_trial_run(trial, parent)
    run = describe_training_run(trial.train.out, "train", "trial", to_dict(trial.train), status)
    status = status if run.status == "FINISHED" else run.status  # a checkpoint alone is no finished trial
    tags = {**run.tags, **new.tags}
    if status == "KILLED" and (note := read_stop(trial)) is not None:
        tags["easycore.stopped"] = note["problem"]
    return replace(run, key=new.key, name=new.name, params=new.params, parent=parent, tags=tags, status=status)


def describe_trials(
    config: JobConfig,
    path: str,
    kind: str,
    trials: Sequence[Trial],
    status: str,
    finished: Mapping[str, FinishedTrial],
) -> list[TrackedRun]:
    """The runs of a sweep or study and of the trials that were begun.

    Args:
        config: as of ``describe_parent``, like ``path``, ``kind`` and ``status``.
        path: its folder.
        kind: ``sweep`` or ``study``.
        trials: all of them.
        status: of what is not finished.
        finished: those that are, by ``Trial.place``.
    """
    parent = describe_parent(config, path, kind, status)
    runs = [parent]
    for trial in trials:
        if trial.place in finished:
            runs.append(describe_trial(finished[trial.place], parent))
        elif paths.exists(paths.join(trial.train.out, RUN)):
            runs.append(describe_begun_trial(trial, parent, status))
    return runs


def keep_best_models(
    children: Sequence[TrackedRun], checkpoints: Mapping[str, str], register: str | None
) -> list[TrackedRun]:
    """The runs of trials; the most robust of each objective, at the last eps, brings its model along.

    Args:
        children: of a finished sweep.
        checkpoints: their folders by name.
        register: name in the model registry, before the objective; None for none.
    """
    best: dict[str, TrackedRun] = {}
    for child in children:
        training = child.params["training"]
        if training not in best or _robust_accuracy(child) > _robust_accuracy(best[training]):
            best[training] = child
    models = {
        child.name: TrackedModel(
            f"easycore-{training}", content_folder(checkpoints[child.name]), register and f"{register}-{training}"
        )
        for training, child in best.items()
        if _robust_accuracy(child) >= 0
    }
    return [replace(child, model=models.get(child.name)) for child in children]


def _robust_accuracy(run: TrackedRun) -> float:
    """Of a trial's run at the last eps; below 0 for one without, which has diverged."""
    found = run.points[max(run.points)].get("robust_accuracy_pgd20") if run.points else None
    return -1.0 if found is None else found


def trial_summary(finished: FinishedTrial) -> dict[str, Any]:
    """What a finished trial found: ``metrics`` after its last ``epoch``, ``tags``, ``words``.

    Metrics of other weights end in ``_best`` and ``_averaged``; ``robust_gap`` is best − last under PGD-20, at the last
    eps.
    """
    last = finished.summaries["last"]
    others = {name: summary for name, summary in finished.summaries.items() if name != "last"}
    metrics = flat_metrics(last)
    for weights, summary in others.items():
        metrics |= {f"{name}_{weights}": value for name, value in flat_metrics(summary).items()}
    manifest = finished.checkpoint.manifest
    if manifest.get("best_epoch") is not None:
        metrics["best_epoch"] = manifest["best_epoch"]
        pgd20 = metrics["robust_accuracy_pgd20"]
        metrics["robust_gap"] = metrics.get("robust_accuracy_pgd20_best", pgd20) - pgd20
    titles = {"best": "best epoch", "averaged": "averaged"}
    words = "; ".join(
        [short_result(last), *(f"{titles[name]}: {short_result(found)}" for name, found in others.items())]
    )
    return {"metrics": metrics, "words": words, "tags": tags_of(last), "epoch": int(manifest["epochs"][-1]["epoch"])}


def short_result(summary: dict[str, Any]) -> str:
    """``clean 91.0 %, robust 55.2 %`` (at the last eps, under all attacks)."""
    doubt = ", SUSPICIOUS" if summary["suspicious"] else ""
    robust = summary["robust"][-1]["accuracy"]
    return f"clean {100 * summary['clean_accuracy']:.1f} %, robust {100 * robust:.1f} %{doubt}"
