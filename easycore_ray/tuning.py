"""sweep(): train and evaluate every arm × fraction × objective × seed with Ray Tune, and tabulate.

Scores are taken once and serve all arms. A trial is two artifacts, a checkpoint and its evaluation, and a
third, the evaluation of its best epoch, where that is not the last; a sweep that is run again skips the trials
whose artifacts are finished, so nothing pickled is ever restored. One-worker trials train in the trial's own
process, several workers through Ray Train.
"""

import functools
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from ray import tune

from easycore_ray import cluster, paths
from easycore_ray.config import (
    ADVERSARIAL,
    Arm,
    EvaluateConfig,
    StudyConfig,
    SweepConfig,
    TrainConfig,
    identity_fields,
    parse_arm,
    to_dict,
    verb,
)
from easycore_ray.core.selection import METHODS
from easycore_ray.core.threat import format_eps
from easycore_ray.coreset import arm_config, check_same_dataset, select
from easycore_ray.dataset import Dataset, Rows, open_dataset, read_split
from easycore_ray.errors import EasyCoreError
from easycore_ray.evaluation import (
    Threats,
    attack_rows,
    check_threats,
    claim_evaluation,
    evaluate,
    evaluation_ids,
    finish_evaluation,
    threats_of,
)
from easycore_ray.fitting import HaltedError, demand_of
from easycore_ray.hardness_table import open_hardness
from easycore_ray.manifest import Artifact, Claim, claim, content_hash, finish, giving_back, identity, open_artifact
from easycore_ray.progress import Progress, duration, say
from easycore_ray.tracking import Tracker
from easycore_ray.training import (
    DivergedError,
    check_budget,
    claim_checkpoint,
    device_seconds,
    finish_checkpoint,
    has_only_last,
    keep_last_good,
    make_fit,
    open_checkpoint,
    open_inputs,
    read_divergence,
    train,
    train_here,
)

FULL = Arm("full", None, "none")
CURVES = ("train_loss", "train_accuracy", "val_accuracy", "val_robust_accuracy")
"""Metrics of an epoch that the summary keeps."""
# A trial tells the driver of its epochs at most this often: reporting costs more than a tiny epoch.
_REPORT_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training run of a sweep, and where its artifacts go."""

    arm: Arm
    fraction: float
    training: str
    beta: float | None
    seed: int
    train: TrainConfig
    evaluate: EvaluateConfig
    best_too: bool = True
    """Evaluate the best epoch as well, where it is not the last."""

    @property
    def name(self) -> str:
        """What the trial is, for people and as its folder: ``easycore-class_f0.5_trades_b6_s1``."""
        beta = f"_b{self.beta:g}" if self.beta is not None else ""
        return f"{_slug(self.arm)}_f{self.fraction:g}_{self.training}{beta}_s{self.seed}"

    @property
    def evaluate_best(self) -> EvaluateConfig:
        """The evaluation of the best epoch: the same attacks on the weights that validation chose."""
        return self.evaluate.replace(out=f"{self.evaluate.out}_best", weights="best")

    def evaluations(self) -> list[EvaluateConfig]:
        """What is evaluated of the finished checkpoint: the last epoch, and the best where it is another one."""
        only_last = not self.best_too or has_only_last(open_artifact(self.train.out, "checkpoint").manifest)
        return [self.evaluate] if only_last else [self.evaluate, self.evaluate_best]

    def finished(self) -> bool:
        """True if all artifacts are there and were made by this configuration from these inputs."""
        if not all(_is_finished(config.out) for config in (self.train, self.evaluate)):
            return False
        _, parents, _ = open_inputs(self.train)
        if not isinstance(claim_checkpoint(self.train, parents), Artifact):
            return False
        return all(_is_finished(config.out) for config in self.evaluations())


def _is_finished(out: str) -> bool:
    return paths.exists(paths.join(out, "manifest.json"))


@verb(SweepConfig)
def sweep(config: SweepConfig) -> Artifact | None:
    """Run (or go on with, or reuse) a sweep.

    The folder holds ``coresets/``, ``trials/`` (checkpoint and evaluation of each) and ``summary.json``:
    ``{"rows": [one per arm, fraction, objective and eps, over seeds], "curves": [one per arm, fraction and
    objective: metrics of every epoch], "diverged": [one per run without results], "lineage": …}``.

    Returns:
        The sweep, or None with ``dry_run``.

    Raises:
        EasyCoreError: for foreign inputs, more than the cluster can give, or trials that failed; with ``keep_going``
            not for those whose training diverged, unless no other is left.
    """
    started = time.monotonic()
    dataset = open_dataset(config.dataset)
    hardness = open_hardness(config.scores)
    check_same_dataset(hardness, dataset)
    check_threats(Threats(attack=config.attack, eps=config.eval_eps, norm=config.norm, seed=0), dataset.image_shape)
    if ADVERSARIAL & {*config.training}:
        check_budget(config.eps, config.norm, dataset.image_shape)
    parents = {"dataset": dataset.artifact, "scores": open_artifact(config.scores, "scoring_run")}
    out = paths.absolute(config.out)
    if config.dry_run:
        _say_plan(config, dataset, hardness, out)
        return None
    made = claim(out, "sweep", _identity(config, parents), overwrite=config.overwrite)
    if isinstance(made, Artifact):
        say(f"sweep: {out} is finished, reused")
        return made
    with giving_back(made):
        cluster.connect()
        concurrency = concurrency_of(config)
    trials = make_trials(config, out, select_coresets(config, dataset, out))
    todo = [trial for trial in trials if not trial.finished()]
    if len(todo) < len(trials):
        say(f"sweep: {len(trials) - len(todo)} of {len(trials)} trials are finished already")
    diverged = run_trials(config, made, todo, concurrency)
    lost = [trial for trial in trials if trial.name in diverged]
    trials = [trial for trial in trials if trial.name not in diverged]
    if not trials:
        raise EasyCoreError(f"all {len(lost)} trials diverged, the first with: {diverged[lost[0].name]['problem']}")
    rows = result_rows(trials, parents["scores"], lost)
    summary = {
        "rows": rows,
        "curves": training_curves(trials),
        "diverged": [lost_row(trial, diverged[trial.name]["problem"]) for trial in lost],
        "lineage": lineage(config, parents),
    }
    paths.write_json(paths.join(out, "summary.json"), summary)
    spent = [open_artifact(trial.train.out).manifest["device_seconds"] for trial in trials]
    artifact = finish(
        made,
        fingerprint=content_hash(
            *(open_artifact(done.out).fingerprint for trial in trials for done in trial.evaluations()),
            *(f"{trial.name} diverged" for trial in lost),
        ),
        config=to_dict(config),
        parents=parents,
        counts={"trials": len(trials), "rows": len(rows)} | ({"diverged": len(lost)} if lost else {}),
        wall_seconds=time.monotonic() - started,
        device_seconds=sum(spent) + sum(note["device_seconds"] for note in diverged.values()),
    )
    say(f"sweep: {len(trials)} trials in {duration(time.monotonic() - started)} → {out}")
    if lost:
        say(f"sweep: DIVERGED, without results: {', '.join(trial.name for trial in lost)}")
    doubtful = [trial.name for trial in trials if _summary(trial)["suspicious"]]
    if doubtful:
        say(f"sweep: SUSPICIOUS evaluations, marked in the table: {', '.join(doubtful)}")
    return artifact


def _identity(config: SweepConfig, parents: dict[str, Artifact]) -> str:
    return identity("sweep", identity_fields(config), {role: p.fingerprint for role, p in parents.items()})


# --- what is run --------------------------------------------------------------------------------


def _arms(config: SweepConfig) -> list[tuple[Arm, float]]:
    """(arm, fraction) pairs; full data first, once."""
    chosen = [parse_arm(text) for text in config.method]
    pairs = [(arm, fraction) for arm in chosen if arm.method != "full" for fraction in config.fraction]
    return [(FULL, 1.0), *dict.fromkeys(pairs)]


def _objectives(config: SweepConfig) -> list[tuple[str, float | None]]:
    """(training, beta) pairs; only TRADES has a beta."""
    found: list[tuple[str, float | None]] = []
    for training in dict.fromkeys(config.training):
        found += [(training, beta) for beta in config.beta] if training == "trades" else [(training, None)]
    return found


def _slug(arm: Arm) -> str:
    return arm.name.replace(":", "-").replace("/", "-")


def _coreset_name(arm: Arm, fraction: float, seed: int) -> str:
    """Methods that draw at random draw anew with each seed; the others select once."""
    return f"{_slug(arm)}_f{fraction:g}" + (f"_s{seed}" if METHODS[arm.method].draws else "")


def coreset_folders(config: SweepConfig, out: str) -> dict[str, str]:
    """Where each coreset of the sweep goes, by name."""
    names = [_coreset_name(arm, fraction, seed) for arm, fraction in _arms(config) for seed in config.seeds]
    return {name: paths.join(out, "coresets", name) for name in names}


def select_coresets(config: SweepConfig, dataset: Dataset, out: str) -> dict[str, str]:
    """Select every coreset of the sweep; folders by name."""
    folders, done = coreset_folders(config, out), set()
    for arm, fraction in _arms(config):
        for seed in config.seeds:
            name = _coreset_name(arm, fraction, seed)
            if name not in done:
                select(
                    arm_config(
                        arm,
                        out=folders[name],
                        scores=config.scores,
                        dataset=dataset.path,
                        fraction=fraction,
                        seed=seed,
                    )
                )
                done.add(name)
    return folders


def make_trials(config: SweepConfig, out: str, coresets: dict[str, str]) -> list[Trial]:
    """Every training run of the sweep."""
    trials = []
    for arm, fraction in _arms(config):
        for training, beta in _objectives(config):
            for seed in config.seeds:
                coreset = coresets[_coreset_name(arm, fraction, seed)]
                trials.append(_make_trial(config, out, coreset, arm, fraction, training, beta, seed))
    return trials


def _make_trial(
    config: SweepConfig,
    out: str,
    coreset: str,
    arm: Arm,
    fraction: float,
    training: str,
    beta: float | None,
    seed: int,
) -> Trial:
    epochs = config.train_epochs
    if training != "standard" and config.trades_epochs is not None:
        epochs = config.trades_epochs
    names = {spec.name for spec in fields(TrainConfig)}
    shared = {key: value for key, value in vars(config).items() if key in names}
    own: dict[str, Any] = {
        "coreset": coreset,
        "training": training,
        "epochs": epochs,
        "seed": seed,
        "tracking_uri": "none",
    }
    train_config = TrainConfig(**{**shared, **own, "out": "pending", "beta": beta if beta is not None else 0.0})
    trial = Trial(
        arm=arm,
        fraction=fraction,
        training=training,
        beta=beta,
        seed=seed,
        train=train_config,
        evaluate=EvaluateConfig(
            out="pending",
            checkpoint="pending",
            dataset=config.dataset,
            attack=config.attack,
            eps=config.eval_eps,
            norm=config.norm,
            num_samples=config.num_test_samples,
            num_workers=config.max_workers,
            gpus_per_worker=config.gpus_per_worker,
            cpus_per_worker=config.cpus_per_worker,
        ),
    )
    checkpoint = paths.join(out, "trials", trial.name, "checkpoint")
    evaluation = paths.join(out, "trials", trial.name, "evaluation")
    return replace(
        trial,
        train=train_config.replace(out=checkpoint, overwrite=False),
        evaluate=trial.evaluate.replace(out=evaluation, checkpoint=checkpoint),
    )


def _say_plan(config: SweepConfig, dataset: Dataset, hardness: Artifact, out: str) -> None:
    count = len(_arms(config)) * len(_objectives(config)) * len(config.seeds)
    names = ", ".join(dict.fromkeys(arm.name for arm, _ in _arms(config)))
    say(
        f"sweep: would run {count} trials ({names}; {len(config.seeds)} seeds) on "
        f"{hardness.manifest['counts']['samples']:,} samples of {dataset.path} → {out}"
    )


# --- running trials -----------------------------------------------------------------------------


def concurrency_of(config: SweepConfig) -> int:
    """Trials at the same time: what the cluster can hold, at most what was asked for."""
    ever, _ = cluster.capacity()
    if config.max_workers > 1:
        demand = demand_of(config)
        cluster.preflight(demand)
        cpus = demand.num_workers * demand.cpus_per_worker
        room = ever.get("CPU", 0.0) / cpus
    else:
        demand = cluster.Demand(
            num_workers=1,
            cpus_per_worker=config.cpus_per_worker or 1.0,
            gpus_per_worker=config.gpus_per_worker,
        )
        cluster.preflight(demand)
        room = ever.get("CPU", 0.0) / demand.cpus_per_worker
    if config.gpus_per_worker:
        room = min(room, ever.get("GPU", 0.0) / (config.max_workers * config.gpus_per_worker))
    most = max(1, int(room))
    return min(most, config.max_concurrent_trials or most)


def run_trials(
    config: SweepConfig,
    made: Claim,
    trials: list[Trial],
    concurrency: int,
    on_finished: Callable[[Trial], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Run the trials with Ray Tune and track them.

    Args:
        config: resources and tracking; the trials say themselves what they do.
        made: the claim of the artifact they belong to, whose kind names them in messages and MLflow.
        trials: what to run.
        concurrency: how many at the same time.
        on_finished: called in this process with each trial whose artifacts are there.

    Returns:
        With ``config.keep_going`` what is noted of each trial whose training diverged, now or before, by name.

    Raises:
        EasyCoreError: if any other failed.
    """
    if not trials:
        return {}
    diverged: dict[str, dict[str, Any]] = {}
    if config.keep_going:
        diverged = {trial.name: note for trial in trials if (note := read_divergence(trial.train)) is not None}
    trials = [trial for trial in trials if trial.name not in diverged]
    tracker = Tracker.open(config.tracking_uri, out=made.path, experiment=config.experiment)
    parent = f"{made.kind}-{made.identity[:16]}-{made.nonce}"
    tracker.run(parent, name=made.kind, params=to_dict(config), tags={"kind": made.kind})
    callback = _Follow(trials, tracker, parent, made.kind, on_finished)
    try:
        crashed = _tune(config, made, trials, concurrency, callback)
        problems = callback.problems + crashed
        if not config.keep_going:
            problems += [f"{trial.name}: {problem}" for trial, problem in callback.diverged]
        tracker.finish(parent, status="FAILED" if problems else "FINISHED")
    finally:
        tracker.close()
    if not problems and callback.finished + len(callback.diverged) < len(trials):
        # Tune takes Ctrl-C for a wish to end early, and returns what there is.
        raise KeyboardInterrupt
    if problems:
        lost = callback.diverged and not config.keep_going
        hint = " (with --keep-going, without those that diverged)" if lost else ""
        raise EasyCoreError(
            f"{len(problems)} of {len(trials)} trials failed, the first with: {problems[0]}; "
            f"finished trials are kept, run the same command again to go on{hint}"
        )
    for trial, _ in callback.diverged:
        note = read_divergence(trial.train)
        assert note is not None
        diverged[trial.name] = note
    return diverged


def _tune(
    config: SweepConfig, made: Claim, trials: list[Trial], concurrency: int, callback: tune.Callback
) -> list[str]:
    """Run the trials with Ray Tune, if there are any; what ended those that crashed, a line each."""
    if not trials:
        return []
    run = _trial_here if config.max_workers == 1 else _trial_on_ray
    resources = {"cpu": 0.1}
    if config.max_workers == 1:
        resources = {"cpu": config.cpus_per_worker or 1.0}
        if config.gpus_per_worker:
            resources["gpu"] = config.gpus_per_worker
    filesystem, root = paths.locate(paths.join(made.path, "tune"))
    tuner = tune.Tuner(
        tune.with_resources(run, resources),
        param_space={"trial": tune.grid_search(trials)},
        tune_config=tune.TuneConfig(max_concurrent_trials=concurrency, reuse_actors=True),
        run_config=tune.RunConfig(
            name=f"{made.nonce}-{int(time.time())}",
            storage_path=root,
            storage_filesystem=filesystem,
            verbose=0,
            callbacks=[callback],
            failure_config=tune.FailureConfig(max_failures=config.max_failures),
        ),
    )
    results = tuner.fit()
    # Tune's own state is never read again: finished trials are recognised by their artifacts.
    paths.delete_tree(paths.join(made.path, "tune"))
    return [str(error).strip().splitlines()[-1] for error in results.errors]


class _Follow(tune.Callback):
    """Shows progress and tracks trials, in the driver."""

    def __init__(
        self,
        trials: list[Trial],
        tracker: Tracker,
        parent: str,
        label: str,
        on_finished: Callable[[Trial], None] | None,
    ) -> None:
        self._tracker, self._parent, self._on_finished = tracker, parent, on_finished
        self._progress = Progress(label, len(trials), "trials")
        self.finished = 0
        self.problems: list[str] = []
        self.diverged: list[tuple[Trial, str]] = []

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks for Tuner.restore, which is never used here.
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Open the trial's MLflow run."""
        spec: Trial = trial.config["trial"]
        params = {"method": spec.arm.method, "score": spec.arm.score, "balance": spec.arm.balance,
                  "fraction": spec.fraction, "training": spec.training, "beta": spec.beta, "seed": spec.seed,
                  **to_dict(spec.train)}  # fmt: skip
        self._tracker.run(
            self._key(spec), name=spec.name, parent_key=self._parent, params=params, tags={"kind": "trial"}
        )

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Log epochs; at the end, accuracies."""
        spec: Trial = trial.config["trial"]
        for entry in result.get("epochs", []):
            self._tracker.log(self._key(spec), entry, step=int(entry["epoch"]))
        if "problem" in result:
            self._tracker.finish(self._key(spec), status="FAILED")
            if result["diverged"]:
                self.diverged.append((spec, result["problem"]))
                self._progress.update(self.finished + len(self.diverged), f"{spec.name}: DIVERGED")
            else:
                self.problems.append(f"{spec.name}: {result['problem']}")
        if "summary" in result:
            self._tracker.log(self._key(spec), result["summary"]["metrics"], step=spec.train.epochs)
            self._tracker.finish(self._key(spec))
            self.finished += 1
            if self._on_finished is not None:
                self._on_finished(spec)
            self._progress.update(self.finished + len(self.diverged), f"{spec.name}: {result['summary']['words']}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Close the trial's MLflow run as failed."""
        self._tracker.finish(self._key(trial.config["trial"]), status="FAILED")

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """End the progress line."""
        self._progress.close()

    def _key(self, spec: Trial) -> str:
        return f"{self._parent}-{spec.name}"


def trial_summary(trial: Trial) -> dict[str, Any]:
    """What a finished trial found: ``metrics``, those of another best epoch ending in ``_best``, and ``words``."""
    last, *best = (open_artifact(config.out, "evaluation").manifest["summary"] for config in trial.evaluations())
    metrics = flat_metrics(last)
    metrics |= {f"{name}_best": value for summary in best for name, value in flat_metrics(summary).items()}
    epoch = open_artifact(trial.train.out, "checkpoint").manifest.get("best_epoch")
    if epoch is not None:
        metrics["best_epoch"] = epoch
    words = "; best epoch: ".join(map(short_result, (last, *best)))
    return {"metrics": metrics, "words": words}


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


def _trial_here(params: dict[str, Any]) -> None:
    """A trial in its own process: train, evaluate, write both artifacts."""
    _reporting_problems(params["trial"], _train_and_attack)


def _trial_on_ray(params: dict[str, Any]) -> None:
    """A trial whose training and evaluation are distributed: this process only drives them."""

    def work(trial: Trial, report: Callable[[dict[str, float]], None]) -> None:
        checkpoint = train(trial.train)
        assert checkpoint is not None
        for entry in checkpoint.manifest["epochs"]:
            report(entry)
        for config in trial.evaluations():
            evaluate(config)

    _reporting_problems(params["trial"], work)


def _reporting_problems(trial: Trial, work: Callable[[Trial, Callable[[dict[str, float]], None]], None]) -> None:
    """Do the work and report epochs, summary, or what is wrong (which no retry would mend)."""
    waiting: list[dict[str, float]] = []
    last = time.monotonic()

    def report(entry: dict[str, float]) -> None:
        nonlocal last
        waiting.append(entry)
        if time.monotonic() - last > _REPORT_SECONDS:
            tune.report({"epochs": list(waiting)})
            waiting.clear()
            last = time.monotonic()

    try:
        work(trial, report)
        summary = trial_summary(trial)
    except ValueError as error:
        diverged = isinstance(error, DivergedError)
        tune.report({"epochs": waiting, "problem": str(error), "diverged": diverged})
        return
    tune.report({"epochs": waiting, "summary": summary})


def _train_and_attack(trial: Trial, report: Callable[[dict[str, float]], None]) -> None:
    """Train and evaluate in this process, unless an earlier attempt finished either."""
    device = "cuda" if trial.train.gpus_per_worker else "cpu"
    dataset, parents, sample_ids = open_inputs(trial.train)
    made = claim_checkpoint(trial.train, parents)
    if isinstance(made, Claim):
        started = time.monotonic()
        threads = trial.train.threads_per_worker or max(1, int(trial.train.cpus_per_worker or 1))
        fit = replace(make_fit(trial.train, dataset, sample_ids), threads=threads)
        rows = _pick(_split_rows(dataset.path, "train"), sample_ids)
        try:
            state = train_here(fit, rows, device=device, on_epoch=report)
        except HaltedError as halted:
            raise keep_last_good(trial.train, made, parents, fit, halted, time.monotonic() - started) from halted
        finish_checkpoint(trial.train, made, parents, fit, state, time.monotonic() - started)
    for config in trial.evaluations():
        attack_here(config, dataset, device)


def attack_here(config: EvaluateConfig, dataset: Dataset, device: str) -> Artifact:
    """Evaluate in this process; equal to ``evaluate`` on any number of workers."""
    checkpoint, model = open_checkpoint(config.checkpoint, config.weights)
    parents = {"checkpoint": checkpoint, "dataset": dataset.artifact}
    made = claim_evaluation(config, parents)
    if isinstance(made, Artifact):
        return made
    started = time.monotonic()
    ids = evaluation_ids(dataset, config.split, config.num_samples, config.seed)
    rows = _pick(_split_rows(dataset.path, config.split), ids)
    outcomes = attack_rows(model, rows, threats_of(config), device=device, made=made)
    return finish_evaluation(config, made, parents, outcomes, time.monotonic() - started)


@functools.lru_cache(maxsize=4)
def _split_rows(path: str, split: str) -> Rows:
    """A split in memory; trials that follow one another in the same process share it."""
    return read_split(open_dataset(path), split)


def _pick(rows: Rows, sample_ids: np.ndarray | None) -> Rows:
    """The rows with these ids."""
    if sample_ids is None:
        return rows
    at = torch.searchsorted(rows.sample_ids, torch.from_numpy(np.array(sample_ids)))
    return Rows(*(column[at] for column in rows))


# --- results ------------------------------------------------------------------------------------


def result_rows(trials: Iterable[Trial], scores: Artifact, diverged: Sequence[Trial] = ()) -> list[dict[str, Any]]:
    """One row per arm, fraction, objective and eps: mean and standard deviation over seeds.

    Args:
        trials: finished ones.
        scores: the scoring run behind their coresets.
        diverged: trials without results, whose seeds the rows of the others name.
    """
    lost = {_without_seed(members[0]): [trial.seed for trial in members] for members in _over_seeds(diverged)}
    rows = []
    for members in _over_seeds(trials):
        checkpoints = [open_artifact(trial.train.out, "checkpoint").manifest for trial in members]
        # Last and best of each; the same one twice where they are one epoch.
        found = [
            [open_artifact(config.out, "evaluation").manifest["summary"] for config in trial.evaluations()]
            for trial in members
        ]
        last, best = ([summaries[end] for summaries in found] for end in (0, -1))
        missing = {"diverged_seeds": lost.get(_without_seed(members[0]), [])}
        rows += [
            _result_row(members, checkpoints, last, best, eps, scores) | missing for eps in members[0].evaluate.eps
        ]
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


def _over_seeds(trials: Iterable[Trial]) -> list[list[Trial]]:
    """Trials that differ by their seed alone, together."""
    groups: dict[tuple[Any, ...], list[Trial]] = {}
    for trial in trials:
        groups.setdefault(_without_seed(trial), []).append(trial)
    return list(groups.values())


def _without_seed(trial: Trial) -> tuple[Any, ...]:
    return trial.arm, trial.fraction, trial.training, trial.beta


def _summary(trial: Trial) -> dict[str, Any]:
    """What a finished trial's evaluation found."""
    return open_artifact(trial.evaluate.out, "evaluation").manifest["summary"]


def _result_row(
    members: list[Trial],
    checkpoints: list[dict[str, Any]],
    summaries: list[dict[str, Any]],
    best: list[dict[str, Any]],
    eps: float,
    scores: Artifact,
) -> dict[str, Any]:
    first = members[0]
    uses_scores = METHODS[first.arm.method].needs_score
    seeds = [trial.seed for trial in members]
    return {
        **described(first),
        "scoring_seed": scores.manifest["config"]["seed"] if uses_scores else None,
        "seeds": seeds,
        **mean_std("clean_accuracy", [summary["clean_accuracy"] for summary in summaries]),
        "worst_class_clean_accuracy_mean": mean(summary["worst_class_clean_accuracy"] for summary in summaries),
        **robust_columns(summaries, eps),
        "attack": list(first.evaluate.attack),
        **_best_columns(checkpoints, best, eps),
        "eps": eps,
        "epochs": checkpoints[0]["counts"]["epochs"],
        "steps": checkpoints[0]["steps"],
        "num_samples": checkpoints[0]["counts"]["samples"],
        "scoring_seconds": scores.manifest["device_seconds"] if uses_scores else 0.0,
        "training_seconds": _mean_seconds(checkpoints, "train_seconds"),
        "validation_seconds": _mean_seconds(checkpoints, "val_seconds"),
        "device": "cuda" if first.train.gpus_per_worker else "cpu",
        "suspicious": said("suspicious", seeds, summaries),
        "warnings": said("warnings", seeds, summaries),
    }


def robust_columns(summaries: Sequence[Mapping[str, Any]], eps: float) -> dict[str, float | None]:
    """Robust accuracies at an eps: under all attacks (no suffix), and ``_<attack>`` under each."""
    here = [[row for row in summary["robust"] if row["eps"] == eps] for summary in summaries]
    # The last one of an eps is the pointwise worst, with several attacks, or the only one.
    by_name = {"": [rows[-1] for rows in here]}
    for number, first in enumerate(here[0]):
        if first["attack"] != "worst":
            by_name[f"_{first['attack']}"] = [rows[number] for rows in here]
    found: dict[str, float | None] = {}
    for suffix, rows in by_name.items():
        found |= mean_std(f"robust_accuracy{suffix}", [row["accuracy"] for row in rows])
        found[f"worst_class_robust_accuracy{suffix}_mean"] = mean(row["worst_class_accuracy"] for row in rows)
    return found


def said(key: str, seeds: Iterable[int], summaries: Iterable[Mapping[str, Any]]) -> list[str]:
    """What the evaluations say of themselves (``suspicious`` or ``warnings``), each with its seed."""
    return [f"seed {seed}: {text}" for seed, summary in zip(seeds, summaries, strict=True) for text in summary[key]]


def _best_columns(checkpoints: list[dict[str, Any]], best: list[dict[str, Any]], eps: float) -> dict[str, float | None]:
    """Mean best epoch, and the accuracies there; None throughout where a run has none (no validation split)."""
    epochs = [checkpoint["best_epoch"] for checkpoint in checkpoints if checkpoint.get("best_epoch") is not None]
    robust = [
        next(row["accuracy"] for row in summary["robust"] if (row["attack"], row["eps"]) == ("pgd20", eps))
        for summary in best
    ]
    found = {
        "best_epoch_mean": mean(epochs) if epochs else None,
        **mean_std("clean_accuracy_best", [summary["clean_accuracy"] for summary in best]),
        **mean_std("robust_accuracy_pgd20_best", robust),
    }
    return found if len(epochs) == len(checkpoints) else dict.fromkeys(found)


def _mean_seconds(checkpoints: list[dict[str, Any]], name: str) -> float:
    """Device seconds of one run, from its epochs."""
    return round(mean(device_seconds(checkpoint["epochs"], name) for checkpoint in checkpoints), 3)


def training_curves(trials: Iterable[Trial]) -> list[dict[str, Any]]:
    """Metrics of every epoch, mean over seeds: one curve per arm, fraction and objective."""
    return [
        {
            **described(members[0]),
            "seeds": [trial.seed for trial in members],
            "epochs": _mean_epochs([open_artifact(trial.train.out, "checkpoint").manifest for trial in members]),
        }
        for members in _over_seeds(trials)
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
    from easycore_ray.manifest import git_commit, versions

    return {
        "parents": {role: parent.as_parent() for role, parent in parents.items()},
        "config": to_dict(config),
        "versions": versions(),
        "git_commit": git_commit(),
    }
