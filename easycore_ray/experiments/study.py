"""study(): coresets compared over whole repetitions, each with a scoring run of its own.

A sweep goes by one scoring run; here every seed scores, selects, trains and attacks anew, so that the spread over
seeds is that of the whole method. What a trial found is kept in one JSON file and never computed again, on any
machine: a study may take many sittings, and its figures outlive its models.
"""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from easycore_ray.config.base import to_dict, verb
from easycore_ray.config.experiments import StudyConfig, SweepConfig
from easycore_ray.config.identity import identity_fields
from easycore_ray.core.selection import METHODS
from easycore_ray.data.dataset import Dataset, open_dataset
from easycore_ray.evaluation.threats import check_threats, threats_of
from easycore_ray.experiments.plans import plan_study
from easycore_ray.experiments.results import (
    described,
    evaluation_messages,
    lineage,
    lost_row,
    mean,
    mean_std,
    read_result_rows,
    robust_columns,
)
from easycore_ray.experiments.tracked_trials import describe_parent, describe_trials
from easycore_ray.experiments.trial_runner import run_trials
from easycore_ray.experiments.trials import Trial, coreset_folders, make_trials, select_coresets
from easycore_ray.reporting.study_plots import draw_study
from easycore_ray.runtime import cluster
from easycore_ray.runtime.console import duration, say
from easycore_ray.scoring.score import score
from easycore_ray.selection.select import draw_subset
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import (
    FORMAT_VERSION,
    MANIFEST,
    Artifact,
    Claim,
    claim,
    finish,
    git_commit,
    identity,
    open_artifact,
    refuse_other_format,
    study_fingerprint,
    versions,
)
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.tracking.mlflow import TrackedRun, Tracker, track
from easycore_ray.training.plans import check_training
from easycore_ray.training.train import device_seconds

_HALF = ("random", "random/class", "easycore", "easycore/class", "hardest", "easiest:el2n", "easiest:aum")
# Fields that say how much of the study is done, not how.
_EXTENT = {"seeds", "parts"}
_AUTOATTACK = "+autoattack"
# The columns that ``tuning.described`` gives.
_DESCRIBED = ("method", "score", "balance", "fraction", "training", "beta")


@dataclass(frozen=True)
class Part:
    """Trials that belong together: one objective, some arms, some fractions; all data are always among them."""

    training: str
    method: tuple[str, ...]
    fraction: tuple[float, ...]


PARTS = {
    "standard": Part("standard", _HALF, (0.5,)),
    "trades": Part("trades", ("random", "easycore", "easycore/class"), (0.5,)),
    "fractions": Part("standard", _HALF, (0.3, 0.7)),
}


class Book:
    """What has been found so far: one JSON file, rewritten whole after every trial."""

    def __init__(self, path: str, setting: dict[str, Any], dataset: Artifact) -> None:
        self.path = path
        self._content: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "setting": setting,
            "dataset": dataset.fingerprint,
            "scoring": {},
            "trials": {},
            "diverged": {},
        }
        if paths.exists(path):
            found = paths.read_json(path)
            _refuse_other(path, found, self._content)
            self._content |= {kind: found[kind] for kind in ("scoring", "trials", "diverged") if kind in found}

    @property
    def trials(self) -> dict[str, dict[str, Any]]:
        """Records by key, in the order of the parts they were run in."""
        return self._content["trials"]

    @property
    def scoring(self) -> dict[str, dict[str, Any]]:
        """What the scoring run of each seed cost."""
        return self._content["scoring"]

    @property
    def diverged(self) -> dict[str, dict[str, Any]]:
        """What is known of trials whose training diverged, by name: no attack has a model to attack."""
        return self._content["diverged"]

    def knows(self, trial: Trial, *, diverged: bool) -> bool:
        """Whether nothing is left to run; ``diverged``: that it diverged is an answer, too."""
        return key_of(trial) in self.trials or (diverged and trial.name in self.diverged)

    def add(self, kind: str, key: str, record: dict[str, Any]) -> None:
        """Keep a record; a trial that was finished after all has not diverged."""
        self._content[kind][key] = record
        if kind == "trials":
            self.diverged.pop(key.removesuffix(_AUTOATTACK), None)
        paths.write_json(self.path, self._content)


class Study(Artifact):
    """A finished study."""

    def rows(self) -> list[dict[str, Any]]:
        """One row per arm, fraction, objective and eps: mean and standard deviation over seeds."""
        return read_result_rows(self.path)


@dataclass(frozen=True)
class OpenStudy:
    """What a study is about, and what is left of it."""

    dataset: Dataset
    setting: dict[str, Any]
    results: str
    book: Book
    missing: dict[str, list[Trial]]
    """Trials by part that the results do not have."""
    total: int
    """Trials of the whole study, those that belong to several parts counted once."""


def open_study(config: StudyConfig) -> OpenStudy:
    """Open a study's dataset and results, and find what is missing; nothing is changed.

    Raises:
        EasyCoreError: results of another setting, or an attack that is wider than the images or not installed.
    """
    dataset = open_dataset(config.dataset)
    setting = {key: value for key, value in identity_fields(config).items() if key not in _EXTENT}
    results = paths.absolute(config.results or paths.join(config.out, "results.json"))
    book = Book(results, setting, dataset)
    wanted: dict[str, list[Trial]] = {part: _trials(config, part) for part in config.parts}
    missing = {
        part: [trial for trial in trials if not book.knows(trial, diverged=config.keep_going)]
        for part, trials in wanted.items()
    }
    for trial in itertools.chain(*missing.values()):
        check_threats(threats_of(trial.evaluate), dataset.image_shape)
        check_training(trial.train, dataset.image_shape)
    total = len({key_of(trial) for trial in itertools.chain(*wanted.values())})
    return OpenStudy(dataset, setting, results, book, missing, total)


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
    opened = open_study(config)
    book, results, missing, total = opened.book, opened.results, opened.missing, opened.total
    count = len({key_of(trial) for trial in itertools.chain(*missing.values())})
    made = _claim(config, opened.setting, opened.dataset)
    if count < total:
        say(f"study: {total - count} of {total} trials are in {results} already")
    with track(config, config.out, lambda status: describe_study(config, status)) as tracker:
        if not count:
            draw_book(book)
        for part, trials in missing.items():
            if trials:
                _run(config, made, opened, part, tracker)
                draw_book(book)
                say(f"study: part {part} is done → {results}")
        return _finish(config, made, opened, started)


def describe_study(config: StudyConfig, status: str) -> list[TrackedRun]:
    """The MLflow runs of a study and of its trials whose folders are there; the status of what is not finished."""
    trials = {key_of(trial): trial for part in config.parts for trial in _trials(config, part)}
    return describe_trials(config, config.out, "study", list(trials.values()), status)


def _finish(config: StudyConfig, made: Claim, opened: OpenStudy, started: float) -> Artifact:
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
        config=to_dict(config),
        parents={"dataset": dataset},
        counts={"trials": len(book.trials), "rows": len(rows)} | ({"diverged": len(diverged)} if diverged else {}),
        wall_seconds=time.monotonic() - started,
        results=results,
    )
    say(f"study: {len(book.trials)} trials in {duration(time.monotonic() - started)} → {results}")
    if diverged:
        say(f"study: DIVERGED, without results: {', '.join(book.diverged)}")
    return artifact


def draw_book(book: Book) -> None:
    """Draw what is known beside the results file; nothing where nothing is."""
    draw_study(rows_of(book), list(book.trials.values()), book.path, diverged=list(book.diverged.values()))


def key_of(trial: Trial) -> str:
    """The name of a trial in the results, e.g. ``easycore_f0.5_standard_s0`` or the same with ``+autoattack``."""
    return trial.name + (_AUTOATTACK if "autoattack" in trial.evaluate.attack else "")


def rows_of(book: Book) -> list[dict[str, Any]]:
    """One row per arm, fraction, objective and eps, as in a sweep's summary: mean and spread over seeds, under PGD."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for key, record in book.trials.items():
        if not key.endswith(_AUTOATTACK):
            groups.setdefault(_without_seed(record), []).append(record)
    found = []
    for members in sorted(groups.values(), key=lambda group: _place(group[0])):
        members.sort(key=lambda record: record["seed"])
        found += [_row(members, entry["eps"], book) for entry in members[0]["robust"]]
    return found


def _row(members: Sequence[dict[str, Any]], eps: float, book: Book) -> dict[str, Any]:
    first, seeds = members[0], [record["seed"] for record in members]
    same = _without_seed(first)
    scored = METHODS[first["method"]].needs_score
    seconds = [book.scoring[str(record["seed"])]["device_seconds"] for record in members] if scored else [0.0]
    return {
        **{name: first[name] for name in _DESCRIBED},
        "scoring_seed": None,  # each seed has its own
        "seeds": seeds,
        **mean_std("clean_accuracy", [record["clean_accuracy"] for record in members]),
        "worst_class_clean_accuracy_mean": mean(record["worst_class_clean_accuracy"] for record in members),
        **robust_columns(members, eps),
        "diverged_seeds": sorted({lost["seed"] for lost in book.diverged.values() if _without_seed(lost) == same}),
        "eps": eps,
        "steps": first["steps"],
        "num_samples": first["num_samples"],
        "scoring_seconds": round(mean(seconds), 3),
        "training_seconds": round(mean(record["training_seconds"] for record in members), 3),
        "device": first["device"],
        "suspicious": evaluation_messages("suspicious", seeds, members),
        "warnings": evaluation_messages("warnings", seeds, members),
    }


def _without_seed(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record[name] for name in _DESCRIBED)


def _place(record: dict[str, Any]) -> tuple[Any, ...]:
    """Where a row stands among others: by objective, all data first, the smallest coresets next."""
    return record["training"], record["method"] != "full", record["fraction"]


def _refuse_other(path: str, found: Any, mine: dict[str, Any]) -> None:
    """Refuse results that are no study's, of another release, of another dataset or of another setting."""
    if not isinstance(found, dict) or not {"setting", "dataset", "scoring", "trials"} <= set(found):
        raise EasyCoreError(f"{path} holds no results of a study; pass another --results")
    refuse_other_format(path, found)
    if found["dataset"] != mine["dataset"]:
        raise EasyCoreError(
            f"{path} is of another dataset (fingerprint {found['dataset'][:12]}, this one has "
            f"{mine['dataset'][:12]}); pass that dataset or another --results"
        )
    for key in sorted({*mine["setting"], *found["setting"]}):
        theirs, value = found["setting"].get(key), mine["setting"].get(key)
        if theirs != value:
            raise EasyCoreError(f"{path} was made with {key} = {theirs}, not {value}; pass that or another --results")


def _claim(config: StudyConfig, setting: dict[str, Any], dataset: Dataset) -> Claim:
    """The right to write into ``--out``; a finished study is opened again, for it may go on with more seeds."""
    key = identity("study", setting, {"dataset": dataset.fingerprint})
    made = claim(config.out, "study", key, overwrite=config.overwrite)
    if isinstance(made, Artifact):
        paths.delete_file(paths.join(config.out, MANIFEST))
        made = claim(config.out, "study", key)
    assert isinstance(made, Claim)
    return made


def scores_folder(config: StudyConfig, seed: int) -> str:
    """Where the scoring run of a seed lies."""
    return paths.join(config.out, "scores", f"seed-{seed}")


def _sweep(config: StudyConfig, part: str, seed: int) -> SweepConfig:
    """One seed of one part."""
    what = PARTS[part]
    return config.sweep_config(
        scores_folder(config, seed),
        seed,
        what.method,
        fraction=what.fraction,
        training=(what.training,),
        eval_eps=config.eval_eps if what.training == "trades" else config.standard_eval_eps,
    )


def _coresets_of(part: str) -> tuple[str, ...]:
    """The parts whose coresets and models a part works on: its own, and for AutoAttack those that are there."""
    return ("standard", "trades") if part == "autoattack" else (part,)


def _trials(config: StudyConfig, part: str) -> list[Trial]:
    """The trials of a part, seed by seed."""
    if part == "autoattack":
        first = config.replace(seeds=config.seeds[:1])
        return [_under_autoattack(config, trial) for name in _coresets_of(part) for trial in _trials(first, name)]
    found: list[Trial] = []
    for seed in config.seeds:
        sweep = _sweep(config, part, seed)
        trials = make_trials(sweep, sweep.out, coreset_folders(sweep, sweep.out))
        found += [replace(trial, best_too=False) for trial in trials]
    return found


def _under_autoattack(config: StudyConfig, trial: Trial) -> Trial:
    """The same model, evaluated with PGD and AutoAttack at one eps."""
    out = trial.evaluate.out.rsplit("/", 1)[0]
    evaluation = trial.evaluate.replace(
        out=paths.join(out, "autoattack"),
        attack=("pgd20", "autoattack"),
        eval_eps=(config.eps if trial.training == "trades" else config.autoattack_eval_eps,),
        num_eval_samples=config.num_autoattack_samples,
    )
    return replace(trial, evaluate=evaluation)


def _run(config: StudyConfig, made: Claim, opened: OpenStudy, part: str, tracker: Tracker) -> None:
    """Score and select what the trials need, run them, keep what they find."""
    dataset, book, trials = opened.dataset, opened.book, opened.missing[part]
    cluster.connect()
    for seed in dict.fromkeys(trial.seed for trial in trials):
        _score(config, dataset, book, seed)
        for name in _coresets_of(part):
            sweep = _sweep(config, name, seed)
            select_coresets(sweep, dataset, sweep.out)
    waiting = []
    for trial in trials:
        if trial.finished():
            book.add("trials", key_of(trial), _record(trial))
        else:
            waiting.append(trial)
    sweep = _sweep(config, "standard", config.seeds[0])
    diverged = run_trials(
        sweep,
        made,
        waiting,
        tracker=tracker,
        parent=describe_parent(config, config.out, "study", "RUNNING"),
        on_finished=lambda trial: book.add("trials", key_of(trial), _record(trial)),
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


def _record(trial: Trial) -> dict[str, Any]:
    """What a finished trial found."""
    checkpoint = open_artifact(trial.train.out, "checkpoint").manifest
    evaluation = open_artifact(trial.evaluate.out, "evaluation").manifest
    summary = evaluation["summary"]
    return {
        **described(trial),
        "seed": trial.seed,
        "num_samples": checkpoint["counts"]["samples"],
        "steps": checkpoint["steps"],
        "training_seconds": round(device_seconds(checkpoint["epochs"], "train_seconds"), 3),
        "evaluation_seconds": evaluation["wall_seconds"],
        "device": "cuda" if trial.train.gpus_per_worker else "cpu",
        "num_eval_samples": summary["num_samples"],
        "clean_accuracy": summary["clean_accuracy"],
        "worst_class_clean_accuracy": summary["worst_class_clean_accuracy"],
        "robust": [
            {name: entry[name] for name in ("attack", "eps", "accuracy", "worst_class_accuracy")}
            for entry in summary["robust"]
        ],
        "suspicious": summary["suspicious"],
        "warnings": summary["warnings"],
        "finished": evaluation["created"],
        "versions": versions(),
        "git_commit": git_commit(),
    }
