"""Tables of a sweep: result rows over seeds, training curves, lineage."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from easycore_ray.config.base import to_dict
from easycore_ray.config.experiments import StudyConfig, SweepConfig
from easycore_ray.engine.checkpoint_files import overfitted_epochs
from easycore_ray.engine.machine_use import SYSTEM
from easycore_ray.experiments.finished_trials import FinishedTrial
from easycore_ray.experiments.trials import Trial
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Artifact
from easycore_ray.training.train import device_seconds

CURVES = ("train_loss", "train_accuracy", "val_accuracy", "val_robust_accuracy")
"""Metrics of an epoch that the summary keeps."""


def result_rows(
    finished: Iterable[FinishedTrial],
    scores: Artifact,
    diverged: Sequence[Trial] = (),
    stopped: Sequence[Trial] = (),
) -> list[dict[str, Any]]:
    """One row per arm, fraction, objective and eps: mean and standard deviation over seeds.

    Args:
        finished: trials with what they have made.
        scores: the scoring run behind their coresets.
        diverged: trials without results, whose seeds the rows of the others name.
        stopped: trials that were stopped early, whose seeds the rows of the others name as well.
    """
    rows = []
    for members in _over_seeds(finished):
        first = members[0].trial
        arm = _without_seed(first)
        missing = {"diverged_seeds": [trial.seed for trial in diverged if _without_seed(trial) == arm]}
        if stopped:
            missing["stopped_seeds"] = [trial.seed for trial in stopped if _without_seed(trial) == arm]
        rows += [_result_row(members, eps, scores) | missing for eps in first.evaluate.eval_eps]
    return rows


def lost_row(trial: Trial, problem: str) -> dict[str, Any]:
    """What a summary says of a run that diverged."""
    return {**described(trial), "seed": trial.seed, "problem": problem}


def described(trial: Trial) -> dict[str, Any]:
    """The columns that name an arm, its size and its objective."""
    return {
        "method": trial.arm.method,
        "score": trial.arm.score,
        "balance": trial.arm.balance,
        "fraction": trial.fraction,
        "training": trial.training,
        "beta": trial.beta,
    }


def _over_seeds(finished: Iterable[FinishedTrial]) -> list[list[FinishedTrial]]:
    """Trials that differ by their seed alone, together."""
    groups: dict[tuple[Any, ...], list[FinishedTrial]] = {}
    for each in finished:
        groups.setdefault(_without_seed(each.trial), []).append(each)
    return list(groups.values())


def _without_seed(trial: Trial) -> tuple[Any, ...]:
    return trial.arm, trial.fraction, trial.training, trial.beta


def _result_row(members: list[FinishedTrial], eps: float, scores: Artifact) -> dict[str, Any]:
    first, checkpoints = members[0].trial, [each.checkpoint.manifest for each in members]
    uses_scores = first.arm.needs_score
    return {
        **described(first),
        "scoring_seed": scores.manifest["config"]["seed"] if uses_scores else None,
        **accuracy_columns([each.trial.seed for each in members], _summaries(members, "last"), eps),
        "attack": list(first.evaluate.attack),
        "pgd_restarts": first.evaluate.pgd_restarts,
        "overfitted_seeds": [
            each.trial.seed for each in members if each.checkpoint.manifest["epochs"][-1]["epoch"] in _overfitted(each)
        ],
        **_best_columns(checkpoints, _summaries(members, "best"), _summaries(members, "last"), eps),
        **_averaged_columns(members, eps),
        "epochs": checkpoints[0]["counts"]["epochs"],
        "steps": checkpoints[0]["steps"],
        "charged_steps": first.train.charged_steps,
        "num_samples": checkpoints[0]["counts"]["samples"],
        "scoring_seconds": scores.manifest["device_seconds"] if uses_scores else 0.0,
        "training_seconds": _mean_seconds(checkpoints, "train_seconds"),
        "validation_seconds": _mean_seconds(checkpoints, "val_seconds"),
        **cost_columns([machine_cost(each) for each in members]),
        "device": "cuda" if first.train.gpus_per_worker else "cpu",
    }


def _summaries(members: list[FinishedTrial], weights: str) -> list[dict[str, Any]]:
    """What was found of these weights, or of the last where they are the same."""
    return [each.summaries.get(weights, each.summaries["last"]) for each in members]


def accuracy_columns(seeds: Sequence[int], summaries: Sequence[Mapping[str, Any]], eps: float) -> dict[str, Any]:
    """The columns of a row that follow from evaluations, one for each seed: accuracies in [0, 1], and their messages.

    Args:
        seeds: of the models.
        summaries: see ``evaluate.summarise_outcomes``, in the order of the seeds.
        eps: one of those evaluated, in [0, 1] pixel units.
    """
    messages = {
        key: [f"seed {seed}: {text}" for seed, found in zip(seeds, summaries, strict=True) for text in found[key]]
        for key in ("suspicious", "warnings")
    }
    return {
        "seeds": list(seeds),
        **mean_std("clean_accuracy", [summary["clean_accuracy"] for summary in summaries]),
        "worst_class_clean_accuracy_mean": mean(summary["worst_class_clean_accuracy"] for summary in summaries),
        **_common_columns(summaries, "clean_ece", "corruption_accuracy"),
        **_robust_columns(summaries, eps),
        "eps": eps,
        **messages,
    }


def _common_columns(summaries: Sequence[Mapping[str, Any]], *names: str) -> dict[str, float | None]:
    """Mean and spread of figures that all of the summaries have; those of earlier versions lack some."""
    found: dict[str, float | None] = {}
    for name in names:
        if all(name in summary for summary in summaries):
            found |= mean_std(name, [summary[name] for summary in summaries])
    return found


def _robust_columns(summaries: Sequence[Mapping[str, Any]], eps: float) -> dict[str, Any]:
    """Robust accuracies at an eps: under all attacks (no suffix; seed by seed, too), and ``_<attack>`` under each."""
    here = [[row for row in summary["robust"] if row["eps"] == eps] for summary in summaries]
    # The last one of an eps is the pointwise worst, with several attacks, or the only one.
    by_name = {"": [rows[-1] for rows in here]}
    for number, first in enumerate(here[0]):
        if first["attack"] != "worst":
            by_name[f"_{first['attack']}"] = [rows[number] for rows in here]
    found: dict[str, Any] = {"robust_accuracy_by_seed": [row["accuracy"] for row in by_name[""]]}
    for suffix, rows in by_name.items():
        found |= mean_std(f"robust_accuracy{suffix}", [row["accuracy"] for row in rows])
        found[f"worst_class_robust_accuracy{suffix}_mean"] = mean(row["worst_class_accuracy"] for row in rows)
    return found


def _best_columns(
    checkpoints: list[dict[str, Any]], best: list[dict[str, Any]], last: list[dict[str, Any]], eps: float
) -> dict[str, float | None]:
    """Mean best epoch, the accuracies there, and how much of the robust one was lost until the last epoch.

    ``robust_gap`` is best − last under PGD-20, within a seed: above 0 where training on has cost robustness. None
    throughout where a run has no best epoch (no validation split).
    """
    epochs = [checkpoint["best_epoch"] for checkpoint in checkpoints if checkpoint.get("best_epoch") is not None]
    robust, robust_last = ([pgd20_accuracy(summary, eps) for summary in each] for each in (best, last))
    found = {
        "best_epoch_mean": mean(epochs) if epochs else None,
        **mean_std("clean_accuracy_best", [summary["clean_accuracy"] for summary in best]),
        **mean_std("robust_accuracy_pgd20_best", robust),
        **mean_std("robust_gap", [high - low for high, low in zip(robust, robust_last, strict=True)]),
    }
    return found if len(epochs) == len(checkpoints) else dict.fromkeys(found)


def pgd20_accuracy(summary: Mapping[str, Any], eps: float) -> float:
    """Accuracy under PGD-20 at an eps, of a summary that has it."""
    return next(row["accuracy"] for row in summary["robust"] if (row["attack"], row["eps"]) == ("pgd20", eps))


def _overfitted(finished: FinishedTrial) -> list[int]:
    return overfitted_epochs(finished.checkpoint.manifest["epochs"])


def _averaged_columns(members: list[FinishedTrial], eps: float) -> dict[str, float | None]:
    """Accuracies of the averaged weights, the robust one under all attacks; nothing for runs without an average."""
    if "averaged" not in members[0].summaries:
        return {}
    return averaged_columns(_summaries(members, "averaged"), eps)


def averaged_columns(summaries: Sequence[Mapping[str, Any]], eps: float) -> dict[str, float | None]:
    """Accuracies of averaged weights, the robust one under all attacks; ``summaries`` as in ``accuracy_columns``."""
    robust = [[row for row in summary["robust"] if row["eps"] == eps][-1]["accuracy"] for summary in summaries]
    return {
        **mean_std("clean_accuracy_averaged", [summary["clean_accuracy"] for summary in summaries]),
        **mean_std("robust_accuracy_averaged", robust),
    }


def _mean_seconds(checkpoints: list[dict[str, Any]], name: str) -> float:
    """Device seconds of one run, from its epochs."""
    return round(mean(device_seconds(checkpoint["epochs"], name) for checkpoint in checkpoints), 3)


def machine_cost(finished: FinishedTrial) -> dict[str, float]:
    """Images a second and the most memory (10^6 bytes) of a trial's training and of the evaluation of its last epoch.

    ``training_images_per_second`` is that of all workers together, ``evaluation_images_per_second`` of one. Memory is
    what tensors took on a GPU, with one, else the largest resident set of the process; of the worker that held most.
    Artifacts of earlier versions lack some of it.
    """
    checkpoint, evaluation = finished.checkpoint.manifest, finished.evaluations[0].manifest
    epochs, counts = checkpoint["epochs"], checkpoint["counts"]
    trained = sum(entry.get("kept_samples", counts["samples"]) for entry in epochs)
    images = min(trained, checkpoint["steps"] * finished.trial.train.batch_size)
    if "sources" in checkpoint:
        images = sum(source["rows"] for source in checkpoint["sources"].values())
    seconds = sum(entry["train_seconds"] for entry in epochs)
    name = SYSTEM + ("gpu_memory_usage_megabytes" if finished.trial.train.gpus_per_worker else "peak_memory_megabytes")
    memory = [entry[name] for entry in epochs if name in entry]
    return {
        "training_images_per_second": round(images / max(seconds, 1e-9), 3),
        **({"training_peak_memory_megabytes": round(max(memory), 1)} if memory else {}),
        **{f"evaluation_{name}": value for name, value in evaluation.get("machine_cost", {}).items()},
    }


def cost_columns(costs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """``machine_cost`` over a row's seeds: the mean of rates, the most memory; without what some seed lacks."""
    names = [name for name in costs[0] if all(name in cost for cost in costs)]
    join: dict[bool, Any] = {True: mean, False: max}
    return {name: round(join[name.endswith("per_second")](cost[name] for cost in costs), 3) for name in names}


def read_result_rows(folder: str) -> list[dict[str, Any]]:
    """The result rows of a finished sweep, study or pipeline."""
    return paths.read_json(paths.join(folder, "summary.json"))["rows"]


def training_curves(finished: Iterable[FinishedTrial]) -> list[dict[str, Any]]:
    """Metrics of every epoch, mean over seeds: one curve per arm, fraction and objective."""
    return [
        {
            **described(members[0].trial),
            "seeds": [each.trial.seed for each in members],
            "epochs": _mean_epochs([each.checkpoint.manifest for each in members]),
        }
        for members in _over_seeds(finished)
    ]


def _mean_epochs(checkpoints: list[dict[str, Any]]) -> list[dict[str, float]]:
    """The metrics that all runs have, epoch by epoch."""
    found = []
    for entries in zip(*(checkpoint["epochs"] for checkpoint in checkpoints), strict=False):
        names = [name for name in CURVES if all(name in entry for entry in entries)]
        found.append({"epoch": entries[0]["epoch"]} | {name: mean(e[name] for e in entries) for name in names})
    return found


def mean(values: Iterable[float]) -> float:
    """Arithmetic mean."""
    return statistics.fmean(values)


def mean_std(name: str, values: list[float]) -> dict[str, float | None]:
    """Mean and sample standard deviation (None for a single value)."""
    return {
        f"{name}_mean": mean(values),
        f"{name}_std": statistics.stdev(values) if len(values) > 1 else None,
    }


def lineage(config: SweepConfig | StudyConfig, parents: dict[str, Artifact]) -> dict[str, Any]:
    """What the rows came from: parents with fingerprints, the configuration, versions."""
    from easycore_ray.storage.provenance import git_commit, versions

    return {
        "parents": {role: parent.as_parent() for role, parent in parents.items()},
        "config": to_dict(config),
        "versions": versions(),
        "git_commit": git_commit(),
    }
