"""study(): coresets compared over whole repetitions, each with a scoring run of its own.

A sweep goes by one scoring run; here every seed scores, selects, trains and attacks anew, so that the spread over
seeds is that of the whole method. What a trial found is kept in one JSON file and never computed again, on any
machine: a study may take many sittings, and its figures outlive its models.
"""

import itertools
import time
from collections.abc import Sequence
from typing import Any

from easycore_ray.config.arms import Arm
from easycore_ray.config.base import to_dict, verb
from easycore_ray.config.experiments import StudyConfig
from easycore_ray.config.study_parts import trained_parts
from easycore_ray.data.dataset import Dataset
from easycore_ray.experiments.finished_trials import FinishedTrial, read_finished
from easycore_ray.experiments.plans import plan_study
from easycore_ray.experiments.results import (
    accuracy_columns,
    averaged_columns,
    cost_columns,
    described,
    lineage,
    lost_row,
    machine_cost,
    mean,
    read_result_rows,
)
from easycore_ray.experiments.study_results import (
    Book,
    OpenStudy,
    key_of,
    open_study,
    scores_folder,
    sweep_of_part,
    trials_of_part,
)
from easycore_ray.experiments.tracked_trials import describe_parent, describe_trials
from easycore_ray.experiments.trial_runner import run_trials
from easycore_ray.experiments.trials import AUTOATTACK_SUFFIX, select_coresets
from easycore_ray.reporting.study_plots import draw_study
from easycore_ray.runtime import cluster
from easycore_ray.runtime.claims import warn_of_other_machines
from easycore_ray.runtime.console import duration, say
from easycore_ray.scoring.score import score
from easycore_ray.selection.select import draw_subset
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import (
    Artifact,
    Claim,
    claim,
    finish,
    identity,
    reopen,
)
from easycore_ray.storage.hashes import study_fingerprint
from easycore_ray.storage.provenance import git_commit, versions
from easycore_ray.tracking.mlflow import Tracker, track
from easycore_ray.tracking.runs import TrackedRun
from easycore_ray.training.train import device_seconds

# The columns that ``results.described`` gives.
_DESCRIBED = ("method", "score", "balance", "fraction", "training", "beta")


class Study(Artifact):
    """A finished study."""

    def rows(self) -> list[dict[str, Any]]:
        """One row per arm, fraction, objective and eps: mean and standard deviation over seeds."""
        return read_result_rows(self.path)


@verb(StudyConfig, gives=Study, plan=plan_study)
def study(config: StudyConfig) -> Artifact:
    """Run what is missing of a study, and draw what there is.

    The folder holds ``scores/seed-N``, ``seed-N/coresets``, ``seed-N/trials`` and ``summary.json`` (rows as in a
    sweep's). Beside ``results``: ``results.md`` and plots.

    Returns:
        The study.

    Raises:
        EasyCoreError: results of another setting, an attack that is wider than the images or not installed, more than
            the cluster can give, or trials that failed.
    """
    started = time.monotonic()
    config = config.replace(out=paths.absolute(config.out))
    opened, root = open_study(config), config.out
    made = _claim(config, opened.setting, opened.dataset)
    if made.path != root:
        config = config.replace(out=made.path, results=opened.results)
        opened = open_study(config)
    opened.book.made = made
    book, results, missing, total = opened.book, opened.results, opened.missing, opened.total
    count = len({key_of(trial) for trial in itertools.chain(*missing.values())})
    if count < total:
        say(f"study: {total - count} of {total} trials are in {results} already")
    with track(config, root, lambda status: describe_study(config, status)) as tracker:
        if not count:
            draw_book(book)
        for part, trials in missing.items():
            if trials:
                _run_part(config, made, opened, part, tracker)
                draw_book(book)
                say(f"study: part {part} is done → {results}")
        return _finish(config, made, opened, to_dict(config.replace(out=root)), started)


def describe_study(config: StudyConfig, status: str) -> list[TrackedRun]:
    """The MLflow runs of a study and of its trials whose folders are there; the status of what is not finished."""
    trials = {key_of(trial): trial for part in config.parts for trial in trials_of_part(config, part)}
    finished = read_finished(trials.values())
    return describe_trials(config, config.out, "study", list(trials.values()), status, finished)


def _finish(config: StudyConfig, made: Claim, opened: OpenStudy, saved: dict[str, Any], started: float) -> Artifact:
    """Write the summary and the manifest."""
    book, dataset, results = opened.book, opened.dataset, opened.results
    rows, diverged = rows_of(book), list(book.diverged.values())
    paths.write_json(
        paths.join(config.out, "summary.json"),
        {"rows": rows, "diverged": diverged, "lineage": lineage(config, {"dataset": dataset})},
    )
    artifact = finish(
        made,
        fingerprint=study_fingerprint(book.trials),
        config=saved,
        parents={"dataset": dataset},
        counts={"trials": len(book.trials), "rows": len(rows)} | ({"diverged": len(diverged)} if diverged else {}),
        wall_seconds=time.monotonic() - started,
        device_seconds=sum(entry["device_seconds"] for entry in book.scoring.values())
        + sum(record["training_seconds"] for record in book.trials.values()),
        results=results,
    )
    say(f"study: {len(book.trials)} trials in {duration(time.monotonic() - started)} → {results}")
    if diverged:
        say(f"study: DIVERGED, without results: {', '.join(book.diverged)}")
    return artifact


def draw_book(book: Book) -> None:
    """Draw what is known beside the results file; nothing where nothing is."""
    records, diverged = list(book.trials.values()), list(book.diverged.values())
    draw_study(rows_of(book), records, book.path, diverged=diverged, scoring=book.scoring)


def rows_of(book: Book) -> list[dict[str, Any]]:
    """One row per arm, fraction, objective and eps, as in a sweep's summary: mean and spread over seeds, under PGD."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for key, record in book.trials.items():
        if AUTOATTACK_SUFFIX not in key:
            groups.setdefault(_without_seed(record), []).append(record)
    found = []
    for members in sorted(groups.values(), key=lambda group: _place(group[0])):
        members.sort(key=lambda record: record["seed"])
        found += [_row(members, entry["eps"], book) for entry in members[0]["robust"]]
    return found


def _row(members: Sequence[dict[str, Any]], eps: float, book: Book) -> dict[str, Any]:
    first, same = members[0], _without_seed(members[0])
    scored = Arm(first["method"], first["score"], first["balance"]).needs_score
    averaged = [record["averaged"] for record in members if "averaged" in record]
    seconds = [book.scoring[str(record["seed"])]["device_seconds"] for record in members] if scored else [0.0]
    return {
        **{name: first[name] for name in _DESCRIBED},
        "scoring_seed": None,  # each seed has its own
        **accuracy_columns([record["seed"] for record in members], members, eps),
        **(averaged_columns(averaged, eps) if len(averaged) == len(members) else {}),
        "diverged_seeds": sorted({lost["seed"] for lost in book.diverged.values() if _without_seed(lost) == same}),
        "steps": first["steps"],
        "num_samples": first["num_samples"],
        "scoring_seconds": round(mean(seconds), 3),
        "training_seconds": round(mean(record["training_seconds"] for record in members), 3),
        **cost_columns([record.get("machine_cost", {}) for record in members]),
        "device": first["device"],
    }


def _without_seed(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record[name] for name in _DESCRIBED)


def _place(record: dict[str, Any]) -> tuple[Any, ...]:
    """Where a row stands among others: by objective, all data first, the smallest coresets next."""
    return record["training"], record["method"] != "full", record["fraction"]


def _claim(config: StudyConfig, setting: dict[str, Any], dataset: Dataset) -> Claim:
    """The right to write into ``--out``; a finished study is opened again, for it may go on with more seeds."""
    key = identity("study", setting, {"dataset": dataset.fingerprint})
    made = claim(config.out, "study", key, overwrite=config.overwrite, take_over=config.take_over)
    warn_of_other_machines(made, [dataset])
    return made if isinstance(made, Claim) else reopen(made, config.out, take_over=config.take_over)


def _run_part(config: StudyConfig, made: Claim, opened: OpenStudy, part: str, tracker: Tracker) -> None:
    """Score and select what the trials need, run them, keep what they find."""
    dataset, book, trials = opened.dataset, opened.book, opened.missing[part]
    cluster.connect()
    for seed in dict.fromkeys(trial.seed for trial in trials):
        _score(config, dataset, book, seed)
        for name in trained_parts(part):
            sweep = sweep_of_part(config, name, seed)
            select_coresets(sweep, dataset, sweep.out)
    finished = read_finished(trials)
    for each in finished.values():
        book.add("trials", key_of(each.trial), _record(each))
    waiting = [trial for trial in trials if trial.place not in finished]
    sweep = sweep_of_part(config, "standard", config.seeds[0])
    diverged = run_trials(
        sweep,
        made,
        waiting,
        tracker=tracker,
        parent=describe_parent(config, config.out, "study", "RUNNING"),
        on_finished=lambda trial: book.add("trials", key_of(trial), _record(FinishedTrial.open(trial))),
    )
    for trial in waiting:
        if trial.name in diverged:
            book.add("diverged", trial.name, lost_row(trial, diverged[trial.name]["problem"]))


def _score(config: StudyConfig, dataset: Dataset, book: Book, seed: int) -> None:
    """The scoring run of a seed, and what it cost."""
    pool = None
    if config.subset is not None:
        # The same for every seed: the repetitions differ in what they do with the data, not in the data.
        pool = draw_subset(dataset, paths.join(config.out, "subset"), config.subset, 0).path
    scores = score(config.score_config(scores_folder(config, seed), seed, pool))
    book.add(
        "scoring",
        str(seed),
        {
            "device_seconds": scores.manifest["device_seconds"],
            "wall_seconds": scores.manifest["wall_seconds"],
            "fingerprint": scores.fingerprint,
        },
    )


def _record(finished: FinishedTrial) -> dict[str, Any]:
    """What a finished trial found."""
    trial, checkpoint, evaluation = finished.trial, finished.checkpoint.manifest, finished.evaluations[0].manifest
    summary = evaluation["summary"]
    return {
        **described(trial),
        "seed": trial.seed,
        "num_samples": checkpoint["counts"]["samples"],
        "steps": checkpoint["steps"],
        "training_seconds": round(device_seconds(checkpoint["epochs"], "train_seconds"), 3),
        "evaluation_seconds": evaluation["wall_seconds"],
        "machine_cost": machine_cost(finished),
        "device": "cuda" if trial.train.gpus_per_worker else "cpu",
        "num_eval_samples": summary["num_samples"],
        **_accuracies(summary),
        **{name: summary[name] for name in ("clean_ece",) if name in summary},
        **({"averaged": _accuracies(finished.summaries["averaged"])} if "averaged" in finished.summaries else {}),
        "suspicious": summary["suspicious"],
        "warnings": summary["warnings"],
        "finished": evaluation["created"],
        "versions": versions(),
        "git_commit": git_commit(),
    }


def _accuracies(summary: dict[str, Any]) -> dict[str, Any]:
    """What is kept of the evaluation of some weights."""
    return {
        "clean_accuracy": summary["clean_accuracy"],
        "worst_class_clean_accuracy": summary["worst_class_clean_accuracy"],
        "robust": [
            {name: entry[name] for name in ("attack", "eps", "accuracy", "worst_class_accuracy")}
            for entry in summary["robust"]
        ],
    }
