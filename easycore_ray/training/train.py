"""train(): one model on one coreset: standard, TRADES or PGD-AT → checkpoint.

A checkpoint is ``model.safetensors``, the weights after the last epoch, and a manifest that says how to build
the model; it holds its own normalisation, so inputs are always pixels in [0, 1]. The validation split, never
the test set, picks the best epoch; its weights are in ``best.safetensors``, unless it is the last one.
"""

import time
from typing import Any

from easycore_ray.config.base import to_dict, verb
from easycore_ray.config.fields import ADVERSARIAL
from easycore_ray.config.stages import TrainConfig
from easycore_ray.data.dataset import Dataset
from easycore_ray.data.samples import Samples
from easycore_ray.engine.budget import StepBudget, settle_budget, with_steps
from easycore_ray.engine.checkpoint import Checkpoint, write_model
from easycore_ray.engine.checkpoint_files import (
    AVERAGED,
    BEST,
    LAST,
    best_epoch_text,
    overfitted_epochs,
    overfitting_text,
)
from easycore_ray.engine.extra_data import ExtraData, extra_data
from easycore_ray.engine.loader import open_loader
from easycore_ray.engine.plan import Fit, make_fit
from easycore_ray.engine.ray_train import check_resources, fit_tracked
from easycore_ray.engine.run import fit_here, run_epochs
from easycore_ray.engine.run_history import LAST_GOOD, describe_training_run
from easycore_ray.engine.run_identity import claim_run, run_identity
from easycore_ray.engine.run_inputs import INIT_FROM, open_run_inputs
from easycore_ray.engine.state import HaltedError, State
from easycore_ray.engine.worker_group import LocalContext
from easycore_ray.runtime.console import duration, say
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import (
    DIVERGED,
    MANIFEST,
    Artifact,
    Claim,
    finish,
    giving_back,
    work_folder,
)
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.storage.hashes import content_hash
from easycore_ray.tracking.mlflow import reconcile, track
from easycore_ray.tracking.runs import TrackedRun
from easycore_ray.training.plans import plan_train


class DivergedError(EasyCoreError):
    """Loss or weights of a training run were not finite."""


@verb(TrainConfig, gives=Checkpoint, plan=plan_train)
def train(config: TrainConfig) -> Artifact:
    """Train (or resume, or reuse) a model.

    Returns:
        The checkpoint.

    Raises:
        EasyCoreError: for a missing or foreign dataset or coreset, initial weights of another network, workers the
            cluster cannot give, or a diverged run: the message says where the model after its last good epoch is kept.
    """
    started = time.monotonic()
    dataset, parents = open_run_inputs(config)
    extra = extra_data(config, dataset, parents)
    fit = make_training_fit(config, dataset, parents.get("coreset"), parents.get(INIT_FROM), extra)
    out = paths.absolute(config.out)
    made = claim_run("checkpoint", config, parents)
    if isinstance(made, Artifact):
        say(f"train: {out} is finished, reused")
        reconcile(config, out, lambda status: [describe_training(config, made.path, status)])
        return made
    check_resources(fit, config, made, "train")
    budget = _settle(config, made)
    if budget is not None:
        settled = with_steps(config, budget.steps)
        fit = make_training_fit(settled, dataset, parents.get("coreset"), parents.get(INIT_FROM), extra)
    for text in dataset.describe_constant_channels():
        say(f"train: {text}")
    with track(config, out, lambda status: [describe_training(config, made.path, status)]) as tracker:
        try:
            run = describe_training(config, made.path, "RUNNING")
            state = fit_tracked(fit, config, made, run, tracker, label="train")
        except HaltedError as halted:
            raise keep_last_good(config, made, parents, fit, halted, time.monotonic() - started) from halted
        timed = {} if budget is None else {"seconds_per_step": budget.seconds_per_step}
        artifact = finish_checkpoint(config, made, parents, fit, state, time.monotonic() - started, **timed)
        say(f"train: best epoch: {best_epoch_text(artifact.manifest)}")
        if problem := overfitting_text(state.history):
            say(f"warning: train: {problem}; take the best epoch, or lower --eps or --attack-step-size")
        waited = f"{100 * stall_share(state.history):.1f} % of training waiting for data"
        taken = duration(time.monotonic() - started)
        also = "" if extra is None else f" and {extra.num_rows:,} extra ones"
        say(f"train: {fit.num_rows:,} samples{also}, {state.step:,} steps in {taken}, {waited} → {out}")
    return artifact


def _settle(config: TrainConfig, made: Claim) -> StepBudget | None:
    """The steps of a run that was given device-seconds."""
    if config.device_seconds is None:
        return None
    with giving_back(made):
        return settle_budget("train", made, config, [config.training], config.device_seconds)[config.training]


def make_training_fit(
    config: TrainConfig,
    dataset: Dataset,
    coreset: Artifact | None,
    initial: Artifact | None = None,
    extra: ExtraData | None = None,
) -> Fit:
    """The run that a configuration describes.

    Args:
        config: of the training run.
        dataset: a finished one.
        coreset: whose samples are trained on; the whole training split if None.
        initial: the checkpoint it starts from, see ``run_inputs``; random weights if None.
        extra: rows that are mixed into every batch, from ``extra_data.extra_data``; None without ``extra_dataset``.
    """
    return make_fit(
        config,
        dataset,
        coreset,
        initial=initial,
        extra=extra,
        objective=config,
        keep_best=True,
        val_attack_steps=config.val_attack_steps if config.training in ADVERSARIAL else 0,
        prune_ratio=config.prune_ratio if config.pruning != "none" else None,
    )


def read_divergence(config: TrainConfig) -> dict[str, Any] | None:
    """What ``keep_last_good`` noted of this very run, see ``artifact.DIVERGED``; None for a finished one."""
    out = work_folder(paths.absolute(config.out))
    if paths.exists(paths.join(out, MANIFEST)) or not paths.exists(paths.join(out, DIVERGED)):
        return None
    _, parents = open_run_inputs(config)
    found = paths.read_json(paths.join(out, DIVERGED))
    return found if found["identity"] == run_identity("checkpoint", config, parents) else None


def train_here(fit: Fit, rows: Samples | None, **options: Any) -> State:
    """Train in this process, as a one-worker trial of a sweep does.

    Args:
        fit: the run.
        rows: what it trains on; streamed if None.
        options: of ``LocalContext``: device, progress, where it commits.
    """
    context = LocalContext(**options)
    if rows is not None:
        return fit_here(fit, rows, context)
    return run_epochs(fit, context, open_loader(fit))


def finish_checkpoint(
    config: TrainConfig,
    made: Claim,
    parents: dict[str, Artifact],
    fit: Fit,
    state: State,
    seconds: float,
    **details: Any,
) -> Artifact:
    """Write weights and manifest."""
    contents = [write_model(made.path, state.model, LAST)]
    files = {"last": LAST}
    if state.best_epoch == state.epoch:
        files["best"] = LAST
    elif state.best_epoch:
        contents.append(write_model(made.path, state.best, BEST))
        files["best"] = BEST
    if state.averaged:
        contents.append(write_model(made.path, state.averaged, AVERAGED))
        files["averaged"] = AVERAGED
    best = state.history[state.best_epoch - 1][fit.selected_by] if state.best_epoch else None
    return finish(
        made,
        fingerprint=content_hash(*contents),
        config=to_dict(config),
        parents=parents,
        counts={"samples": fit.num_rows, "steps": state.step, "epochs": state.epoch},
        wall_seconds=seconds,
        device_seconds=device_seconds(state.history, "train_seconds") + device_seconds(state.history, "val_seconds"),
        model={key: list(value) if isinstance(value, tuple) else value for key, value in fit.model.items()},
        classes=list(parents["dataset"].manifest["classes"]),
        num_workers=max(entry["num_workers"] for entry in state.history),
        devices=state.carried.get("devices", []),
        steps=state.step,
        training_seconds=round(sum(entry["train_seconds"] for entry in state.history), 3),
        weights=files,
        best_epoch=state.best_epoch or None,
        selected_by=fit.selected_by if state.best_epoch else None,
        best_value=best,
        overfitted_epochs=overfitted_epochs(state.history),
        epochs=state.history,
        **fit.describe_sources(state.step),
        **details,
    )


def stall_share(history: list[dict[str, float]]) -> float:
    """Share of all epochs' training time that was spent waiting for data, in [0, 1]."""
    seconds = sum(entry["train_seconds"] for entry in history)
    waited = sum(entry["train_seconds"] * entry.get("stall_share", 0.0) for entry in history)
    return waited / seconds if seconds else 0.0


def device_seconds(history: list[dict[str, float]], name: str) -> float:
    """Seconds × workers over all epochs of ``train_seconds`` or ``val_seconds``, at least 0."""
    return sum(entry.get(name, 0.0) * entry["num_workers"] for entry in history)


def keep_last_good(
    config: TrainConfig, made: Claim, parents: dict[str, Artifact], fit: Fit, halted: HaltedError, seconds: float
) -> EasyCoreError:
    """Keep the model after the last completed epoch as a checkpoint inside the unfinished one; gives the error.

    It is an artifact of its own, so that it can be evaluated and is never taken for the run that was requested. That
    a run diverged is noted beside it.
    """
    if halted.state is None:
        problem = f"{halted}; no epoch was completed before"
    else:
        where = paths.join(made.path, LAST_GOOD)
        inside = made.inside(LAST_GOOD, "checkpoint", content_hash(made.identity, LAST_GOOD))
        finish_checkpoint(config, inside, parents, fit, halted.state, seconds, halted=str(halted))
        problem = f"{halted}; the model after epoch {halted.state.epoch}, the last good one, is kept in {where}"
    made.check()
    note = {"identity": made.identity, "problem": problem, "device_seconds": round(seconds * config.max_workers, 3)}
    paths.write_json(paths.join(made.path, DIVERGED), note)
    return DivergedError(problem)


def describe_training(config: TrainConfig, path: str, status: str) -> TrackedRun:
    """The MLflow run of the checkpoint in a folder, and its status if it is not finished."""
    return describe_training_run(path, "train", "checkpoint", to_dict(config), status)
