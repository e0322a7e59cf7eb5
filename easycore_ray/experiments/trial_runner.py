"""Trials run with Ray Tune, tracked and resumed by their artifacts."""

import functools
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ray import tune

from easycore_ray.config.evaluation import EvaluateConfig
from easycore_ray.config.experiments import SweepConfig
from easycore_ray.data.dataset import Dataset, open_dataset
from easycore_ray.data.samples import Samples, read_split
from easycore_ray.engine.extra_data import EXTRA_DATASET, count_extra_rows, extra_data, open_extra
from easycore_ray.engine.ray_train import decodes_beside, decodes_extra, demand_of
from easycore_ray.engine.run_history import local_commit_file
from easycore_ray.engine.run_identity import claim_run, keeps_rows
from easycore_ray.engine.run_inputs import INIT_FROM, open_run_inputs
from easycore_ray.engine.state import HaltedError
from easycore_ray.engine.worker_group import segment_file
from easycore_ray.evaluation.attack_shards import attack_in_shards, task_demand
from easycore_ray.evaluation.attacked_model import load_attacked, open_attacked
from easycore_ray.evaluation.evaluate import evaluate, evaluation_ids, finish_evaluation
from easycore_ray.evaluation.threats import threats_of
from easycore_ray.experiments.comparison_rules import mixed_order
from easycore_ray.experiments.early_stopping import EarlyStopping
from easycore_ray.experiments.finished_trials import FinishedTrial
from easycore_ray.experiments.stopped_trials import committed_history, standings
from easycore_ray.experiments.tracked_trials import new_trial_run, trial_summary
from easycore_ray.experiments.trials import Trial
from easycore_ray.runtime import cluster
from easycore_ray.runtime.claims import claim_artifact
from easycore_ray.runtime.console import Progress
from easycore_ray.runtime.devices import check_device
from easycore_ray.runtime.interrupts import interruptible
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Artifact, Claim
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.storage.lease import working_under
from easycore_ray.tracking.mlflow import Tracker
from easycore_ray.tracking.runs import TrackedRun
from easycore_ray.training.train import (
    DivergedError,
    finish_checkpoint,
    keep_last_good,
    make_training_fit,
    read_divergence,
    train,
    train_here,
)

if TYPE_CHECKING:
    from easycore_ray.experiments.point_search import PointSearch  # Optuna takes long to import

# A trial reports its epochs to the driver at most this often: reporting costs more than a tiny epoch.
_REPORT_SECONDS = 5.0
# What the process of a trial reserves that has workers of its own.
_DRIVER_CPUS = 0.1
# Trials that wait for nodes that an autoscaler may add.
_MOST_TRIALS = 1000


def trial_demand(config: SweepConfig) -> cluster.Demand:
    """What a trial must at least be given."""
    dataset = open_dataset(config.dataset)
    decodes = decodes_beside(dataset, dataset.num_rows("train"), config.trial_workers, config.cache_gib, config.augment)
    if extra := open_extra(config):
        other = open_dataset(extra[EXTRA_DATASET].path), count_extra_rows(extra)
        decodes |= decodes_extra(
            dataset, dataset.num_rows("train"), *other, config.trial_workers, config.cache_gib, config.augment
        )
    several = config.trial_workers > 1
    demand = demand_of(config, config.trial_workers, decodes=decodes) if several else task_demand(config)
    return replace(demand, decodes=decodes, driver_cpus=_DRIVER_CPUS if several else 0.0)


def concurrency_of(config: SweepConfig) -> int:
    """Trials at the same time: what the cluster can ever hold, at most as many as requested.

    Where nobody knows what nodes may come, all trials ask for their place at once, and run as nodes come.
    """
    there, demand = cluster.capacity(config.most), trial_demand(config)
    if not there.known:
        return config.max_concurrent_trials or _MOST_TRIALS
    # What decodes for the trials needs a CPU that none of them has reserved.
    room = (there.ever.get("CPU", 0.0) - demand.decodes) / (demand.cpus - demand.decodes)
    if config.gpus_per_worker:
        room = min(room, there.ever.get("GPU", 0.0) / (config.trial_workers * config.gpus_per_worker))
    most = max(1, int(room))
    return min(most, config.max_concurrent_trials or most)


def run_trials(
    config: SweepConfig,
    made: Claim,
    trials: list[Trial],
    *,
    tracker: Tracker,
    parent: TrackedRun,
    on_finished: Callable[[Trial], None] | None = None,
    stopping: EarlyStopping | None = None,
    points: "PointSearch | None" = None,
) -> dict[str, dict[str, Any]]:
    """Run the trials with Ray Tune and send what they report to MLflow.

    Args:
        config: resources; the trials say themselves what they do.
        made: the claim of the artifact they belong to, whose kind names them in messages.
        trials: what to run.
        tracker: where their epochs go.
        parent: the run in MLflow that theirs are children of.
        on_finished: called in this process with each trial whose artifacts are there.
        stopping: what stops trials early, and notes which; none is if left out.
        points: what chooses trials, in the place of ``trials``.

    Returns:
        With ``config.keep_going`` what is noted of each trial whose training diverged, now or before, by name.

    Raises:
        EasyCoreError: if any other failed.
    """
    diverged: dict[str, dict[str, Any]] = {}
    if config.keep_going:
        diverged = {trial.name: note for trial in trials if (note := read_divergence(trial.train)) is not None}
    trials = [trial for trial in trials if trial.name not in diverged]
    count = len(trials) if points is None else points.missing
    if not count:
        return diverged
    tracker.send(replace(parent, status="RUNNING", files={}))
    callback = _TrialCallback(count, tracker, parent, made.kind, on_finished, stopping)
    problems = callback.problems + _tune(config, made, trials, callback, stopping, points)
    if not config.keep_going:
        problems += [f"{trial.name}: {problem}" for trial, problem in callback.diverged]
    if not problems and callback.ended < count and not (points and points.exhausted):
        # Tune takes Ctrl-C for a wish to end early, and returns what there is.
        raise KeyboardInterrupt
    if problems:
        lost = callback.diverged and not config.keep_going
        hint = " (with --keep-going, without those that diverged)" if lost else ""
        raise EasyCoreError(
            f"{len(problems)} of {count} trials failed, the first with: {problems[0]}; "
            f"finished trials are kept, run the same command again to go on{hint}"
        )
    for trial, _ in callback.diverged:
        note = read_divergence(trial.train)
        assert note is not None
        diverged[trial.name] = note
    return diverged


def _tune(
    config: SweepConfig,
    made: Claim,
    trials: list[Trial],
    callback: tune.Callback,
    stopping: EarlyStopping | None,
    points: "PointSearch | None",
) -> list[str]:
    """Run the trials with Ray Tune; what ended those that crashed, a line each."""
    cluster.preflight(trial_demand(config), made.kind)
    run = _trial_here if config.trial_workers == 1 else _trial_on_ray
    resources = {"cpu": _DRIVER_CPUS}
    if config.trial_workers == 1:
        resources = {"cpu": config.cpus_per_worker or 1.0}
        if config.gpus_per_worker:
            resources["gpu"] = config.gpus_per_worker
    filesystem, root = paths.locate(paths.join(made.path, "tune"))
    tuner = tune.Tuner(
        tune.with_resources(run, resources),
        param_space={
            **({} if points else {"trial": tune.grid_search(mixed_order(trials) if stopping else trials)}),
            "lease": made.lease,
            "compared": stopping is not None or points is not None,
        },
        tune_config=tune.TuneConfig(
            max_concurrent_trials=concurrency_of(config),
            reuse_actors=True,
            scheduler=stopping,
            search_alg=points,
            num_samples=points.missing if points else 1,
        ),
        run_config=tune.RunConfig(
            name=f"{made.nonce}-{int(time.time())}",
            storage_path=root,
            storage_filesystem=filesystem,
            verbose=0,
            callbacks=[callback],
            failure_config=tune.FailureConfig(max_failures=config.max_failures),
        ),
    )
    results = interruptible(tuner.fit)
    made.check()
    # Tune's own state is never read again: finished trials are recognised by their artifacts.
    paths.delete_tree(paths.join(made.path, "tune"))
    return [str(error).strip().splitlines()[-1] for error in results.errors]


class _TrialCallback(tune.Callback):
    """Shows progress and tracks trials, in the driver."""

    def __init__(
        self,
        count: int,
        tracker: Tracker,
        parent: TrackedRun,
        label: str,
        on_finished: Callable[[Trial], None] | None,
        stopping: EarlyStopping | None,
    ) -> None:
        self._tracker, self._parent, self._on_finished, self._stopping = tracker, parent, on_finished, stopping
        self._runs: dict[str, TrackedRun] = {}
        self._progress = Progress(label, count, "trials")
        self.finished = 0
        self.problems: list[str] = []
        self.diverged: list[tuple[Trial, str]] = []

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks for Tuner.restore, which is never used here.
        return {}

    @property
    def ended(self) -> int:
        """Trials that are not to be run again: finished, diverged or stopped."""
        return self.finished + len(self.diverged) + len(self._stopping.stopped if self._stopping else ())

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Open the trial's MLflow run."""
        spec: Trial = trial.config["trial"]
        self._runs[spec.name] = run = new_trial_run(spec, self._parent)
        self._tracker.send(run)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Log epochs; at the end, accuracies."""
        spec: Trial = trial.config["trial"]
        for entry in result.get("epochs", []):
            self._send(spec, {int(entry["epoch"]): entry})
        if "problem" in result:
            self._send(spec, {}, status="FAILED")
            if result["diverged"]:
                self.diverged.append((spec, result["problem"]))
                self._progress.update(self.ended, f"{spec.name}: DIVERGED")
            else:
                self.problems.append(f"{spec.name}: {result['problem']}")
        if self._stopping is not None and spec.name in self._stopping.stopped:
            self._send(spec, {}, status="KILLED")
            self._progress.update(self.ended, f"{spec.name}: {self._stopping.stopped[spec.name]['problem']}")
        if "summary" in result:
            summary = result["summary"]
            self._send(spec, {summary["epoch"]: summary["metrics"]}, status="FINISHED")
            self.finished += 1
            if self._on_finished is not None:
                self._on_finished(spec)
            self._progress.update(self.ended, f"{spec.name}: {summary['words']}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Close the trial's MLflow run as failed."""
        self._send(trial.config["trial"], {}, status="FAILED")

    def _send(self, spec: Trial, points: dict[int, dict[str, float]], status: str = "RUNNING") -> None:
        if (run := self._runs.get(spec.name)) is not None:
            self._tracker.send(replace(run, points=points, status=status))

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """End the progress line."""
        self._progress.close()


def _trial_here(params: dict[str, Any]) -> None:
    """A trial in its own process: train, evaluate, write both artifacts."""
    with working_under(params["lease"]):
        _reporting_problems(params["trial"], _train_and_attack, compared=params["compared"])


def _trial_on_ray(params: dict[str, Any]) -> None:
    """A trial whose training and evaluation are distributed: this process only drives them."""

    def work(trial: Trial, report: Callable[[dict[str, float]], None]) -> FinishedTrial:
        checkpoint = train(trial.train)
        assert checkpoint is not None
        for entry in checkpoint.manifest["epochs"]:
            report(entry)
        return FinishedTrial(trial, checkpoint, tuple(map(evaluate, trial.evaluations(checkpoint.manifest))))

    with working_under(params["lease"]):
        _reporting_problems(params["trial"], work, compared=params["compared"])


def _reporting_problems(
    trial: Trial,
    work: Callable[[Trial, Callable[[dict[str, float]], None]], FinishedTrial],
    *,
    compared: bool = False,
) -> None:
    """Do the work and report epochs, summary, or what is wrong (which no retry would mend).

    A trial that is ``compared`` with others waits after each epoch for what Tune decides. When it is stopped, Tune ends
    this thread inside the report, by SystemExit.
    """
    waiting: list[dict[str, float]] = []
    last = time.monotonic()

    def report(entry: dict[str, float]) -> None:
        nonlocal last
        waiting.append(entry)
        (standing,) = standings(trial, [entry]) if compared else ({},)
        if compared or time.monotonic() - last > _REPORT_SECONDS:
            tune.report({"epochs": list(waiting), **standing})
            waiting.clear()
            last = time.monotonic()

    try:
        for entry in committed_history(trial)[-1:] if compared else ():
            report(entry)  # whether it goes on may not have been decided
        finished = work(trial, report)
        summary = trial_summary(finished)
    except ValueError as error:
        diverged = isinstance(error, DivergedError)
        tune.report({"epochs": waiting, "problem": str(error), "diverged": diverged})
        return
    (standing,) = standings(trial, finished.checkpoint.manifest["epochs"][-1:]) if compared else ({},)
    tune.report({"epochs": waiting, "summary": summary, **standing})


def _train_and_attack(trial: Trial, report: Callable[[dict[str, float]], None]) -> FinishedTrial:
    """Train and evaluate in this process, unless an earlier run finished either; resumes from its last commit."""
    torch.set_num_threads(trial.train.threads)
    device = trial.train.device
    check_device(device)
    dataset, parents = open_run_inputs(trial.train)
    checkpoint = made = claim_run("checkpoint", trial.train, parents)
    if isinstance(made, Claim):
        started = time.monotonic()
        extra = extra_data(trial.train, dataset, parents)
        fit = make_training_fit(trial.train, dataset, parents.get("coreset"), parents.get(INIT_FROM), extra)
        keeps = keeps_rows(dataset, fit.num_rows, 1, fit.cache_gib, fit.plan.augment)
        rows = _read_rows(dataset, "train", fit.read_sample_ids()) if keeps else None
        commit_file = local_commit_file(made.path, "train", {"identity": made.identity, "nonce": made.nonce})
        try:
            state = train_here(fit, rows, device=device, on_epoch=report, commit_file=commit_file, check=made.check)
        except HaltedError as halted:
            raise keep_last_good(trial.train, made, parents, fit, halted, time.monotonic() - started) from halted
        checkpoint = finish_checkpoint(trial.train, made, parents, fit, state, time.monotonic() - started)
        for file in (commit_file, segment_file(commit_file)):
            paths.delete_file(file)
    assert isinstance(checkpoint, Artifact)
    evaluations = [attack_here(config, dataset, device) for config in trial.evaluations(checkpoint.manifest)]
    return FinishedTrial(trial, checkpoint, tuple(evaluations))


def attack_here(config: EvaluateConfig, dataset: Dataset, device: str) -> Artifact:
    """Evaluate in this process; equal to ``evaluate`` on any number of workers."""
    parents = open_attacked(config, dataset)
    (model,) = (load_attacked(config, each) for each in parents.values())
    parents["dataset"] = dataset
    made = claim_artifact("evaluation", config, parents)
    if isinstance(made, Artifact):
        return made
    started = time.monotonic()
    ids = evaluation_ids(dataset, config.split, config.num_eval_samples, config.seed)
    rows = _read_rows(dataset, config.split, ids)
    shards = attack_in_shards(model, rows, threats_of(config), device=device, made=made)
    return finish_evaluation(config, made, parents, shards, time.monotonic() - started)


def _read_rows(dataset: Dataset, split: str, sample_ids: np.ndarray | None) -> Samples:
    """A split, or its samples with these ids, in memory; trials of one process that want the same share them."""
    ids = None if sample_ids is None else np.ascontiguousarray(sample_ids, np.int64).tobytes()
    return _cached_rows(dataset.path, split, ids)


@functools.lru_cache(maxsize=2)
def _cached_rows(path: str, split: str, sample_ids: bytes | None) -> Samples:
    """The last training samples and the last evaluated ones."""
    return read_split(open_dataset(path), split, None if sample_ids is None else np.frombuffer(sample_ids, np.int64))
