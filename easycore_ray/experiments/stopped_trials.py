"""What trials have shown in validation so far, by the share of their steps, and notes of those that were stopped.

A note lies in the folder of the trial's checkpoint, beside its last committed state. It is the record: which trials a
sweep stopped depends on timing, and a sweep that is run again reads it instead of deciding anew.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from easycore_ray.engine.run_history import STOPPED, read_committed_history, train_run_name
from easycore_ray.engine.shares import steps_per_epoch, training_steps
from easycore_ray.experiments.comparison_rules import SHARE, VALIDATION, WHOLE, compared_by
from easycore_ray.experiments.trials import Trial
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import DIVERGED, MANIFEST, RUN, open_artifact, work_folder
from easycore_ray.training.train import device_seconds


def standings(trial: Trial, history: Iterable[Mapping[str, float]]) -> list[dict[str, float]]:
    """What a trial is compared by after each epoch: ``SHARE``, in ‰, and ``VALIDATION``, in [0, 1].

    Args:
        trial: whose coreset is there.
        history: metrics of its epochs, from the first on or some of them; those without validation are left out.
    """
    num_rows = open_artifact(trial.train.coreset or "", "coreset").manifest["counts"]["samples"]
    total, metric = training_steps(trial.train, num_rows), compared_by(trial.training)
    per_epoch = steps_per_epoch(trial.train, num_rows)
    # Pruned epochs say how many steps were done; all others have as many each.
    return [
        {
            SHARE: round(WHOLE * min(entry.get("steps", entry["epoch"] * per_epoch), total) / total),
            VALIDATION: entry[metric],
        }
        for entry in history
        if metric in entry
    ]


def committed_history(trial: Trial) -> list[dict[str, float]]:
    """Metrics of every epoch that a trial which is not finished has committed; none where it has not begun."""
    folder = work_folder(paths.absolute(trial.train.out))
    if paths.exists(paths.join(folder, MANIFEST)) or not paths.exists(paths.join(folder, RUN)):
        return []
    claimed = paths.read_json(paths.join(folder, RUN))
    return read_committed_history(paths.join(folder, "commits", train_run_name("train", claimed)))


def decided_history(trial: Trial) -> list[dict[str, float]]:
    """The part of ``committed_history`` after which it was decided that the trial goes on.

    All of it for one that diverged. Else without the last epoch, which the trial reports again when it resumes: its
    process, or the sweep's, may have ended before the decision.
    """
    history = committed_history(trial)
    diverged = paths.exists(paths.join(work_folder(paths.absolute(trial.train.out)), DIVERGED))
    return history if diverged else history[:-1]


def note_stop(trial: Trial, standing: Mapping[str, float], rung: float) -> dict[str, Any]:
    """Note in a trial's folder that it is stopped; gives the note.

    Args:
        trial: it has committed the epoch it is stopped after.
        standing: what it was compared by, see ``standings``.
        rung: the share, in ‰, at which it was compared.
    """
    folder, history = work_folder(paths.absolute(trial.train.out)), committed_history(trial)
    metric, epoch = compared_by(trial.training), int(history[-1]["epoch"])
    seconds = device_seconds(history, "train_seconds") + device_seconds(history, "val_seconds")
    note = {
        "identity": paths.read_json(paths.join(folder, RUN))["identity"],
        "problem": f"stopped after epoch {epoch}, {standing[SHARE] / 10:g} % of its steps: {metric} "
        f"{standing[VALIDATION]:.4f} was behind at the comparison from {rung / 10:g} % on",
        "rung": rung,
        "epoch": epoch,
        "metric": metric,
        **standing,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device_seconds": round(seconds, 3),
        "epochs": history,
    }
    paths.write_json(paths.join(folder, STOPPED), note)
    return note


def read_stop(trial: Trial) -> dict[str, Any] | None:
    """What ``note_stop`` noted of this very run; None for one that was not stopped, or was finished after all."""
    folder = work_folder(paths.absolute(trial.train.out))
    if paths.exists(paths.join(folder, MANIFEST)) or not paths.exists(paths.join(folder, STOPPED)):
        return None
    note = paths.read_json(paths.join(folder, STOPPED))
    return note if note["identity"] == paths.read_json(paths.join(folder, RUN))["identity"] else None


def read_stops(trials: Iterable[Trial]) -> dict[str, dict[str, Any]]:
    """The notes of those of the trials that were stopped, by name."""
    return {trial.name: note for trial in trials if (note := read_stop(trial)) is not None}


def stopped_row(trial: Trial, note: Mapping[str, Any]) -> dict[str, Any]:
    """What a summary says of a stopped trial, beside the columns that name it; never part of a mean."""
    names = ("problem", "rung", "epoch", SHARE, "metric", VALIDATION, "device_seconds")
    return {"seed": trial.seed, **{name: note[name] for name in names}}
