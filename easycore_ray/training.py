"""train(): one model on one coreset: standard, TRADES or PGD-AT → checkpoint.

A checkpoint is ``model.safetensors`` and a manifest that says how to build the model; it holds its own
normalisation, so inputs are always pixels in [0, 1].
"""

import time
from typing import Any

import numpy as np

from easycore_ray import paths
from easycore_ray.config import TrainConfig, format_workers, identity_fields, to_dict, verb
from easycore_ray.coreset import open_coreset, read_sample_ids
from easycore_ray.dataset import Dataset, Rows, open_dataset
from easycore_ray.feeding import batches_per_epoch
from easycore_ray.fitting import (
    Fit,
    LocalContext,
    State,
    fit_here,
    fit_on_ray,
    make_plan,
    model_arguments,
    read_model,
    settle,
    write_model,
)
from easycore_ray.manifest import Artifact, Claim, claim, content_hash, finish, identity, open_artifact
from easycore_ray.progress import duration, say
from easycore_ray.tracking import Tracker


@verb(TrainConfig)
def train(config: TrainConfig) -> Artifact | None:
    """Train (or resume, or reuse) a model.

    Returns:
        The checkpoint, or None with ``dry_run``.

    Raises:
        EasyCoreError: for a missing or foreign dataset or coreset, workers the cluster cannot give, or
            a diverged run.
    """
    started = time.monotonic()
    dataset, parents, sample_ids = open_inputs(config)
    fit = make_fit(config, dataset, sample_ids)
    out = paths.absolute(config.out)
    if config.dry_run:
        say(
            f"train: would train {config.model} ({config.training}) for {fit.plan.total_steps:,} steps on "
            f"{fit.num_rows:,} samples with {format_workers(config.num_workers)} workers → {out}"
        )
        return None
    made = claim_checkpoint(config, parents)
    if isinstance(made, Artifact):
        say(f"train: {out} is finished, reused")
        return made
    state = _run(config, fit, made)
    artifact = finish_checkpoint(config, made, parents, fit, state, time.monotonic() - started)
    waited = f"{100 * stall_share(state.history):.1f} % of training waiting for data"
    taken = duration(time.monotonic() - started)
    say(f"train: {fit.num_rows:,} samples, {state.step:,} steps in {taken}, {waited} → {out}")
    return artifact


def open_inputs(config: TrainConfig) -> tuple[Dataset, dict[str, Artifact], np.ndarray | None]:
    """The dataset, the parents by role, and the ids to train on (None: all)."""
    dataset = open_dataset(config.dataset)
    parents = {"dataset": dataset.artifact}
    if config.coreset is None:
        return dataset, parents, None
    parents["coreset"] = open_coreset(config.coreset, dataset)
    return dataset, parents, read_sample_ids(parents["coreset"])


def make_fit(config: TrainConfig, dataset: Dataset, sample_ids: np.ndarray | None) -> Fit:
    """The run this configuration describes."""
    num_rows = dataset.num_rows("train") if sample_ids is None else len(sample_ids)
    steps_per_epoch = batches_per_epoch(num_rows, config.max_workers, config.batch_size)
    steps = config.steps or config.epochs * steps_per_epoch
    plan = make_plan(
        config,
        total_steps=steps,
        training=config.training,
        beta=config.beta,
        eps=config.eps,
        norm=config.norm,
        attack_steps=config.attack_steps,
        attack_step_size=config.attack_step_size,
    )
    return Fit(
        dataset=dataset.path,
        sample_ids=sample_ids,
        num_rows=num_rows,
        model=model_arguments(config, dataset),
        plan=plan,
        epochs=-(-steps // steps_per_epoch),
        batch_size=config.batch_size,
        cache_gib=config.cache_gib,
        threads=config.threads_per_worker or 1,
        warmup_fraction=config.warmup_fraction,
        fixed_steps=config.steps is not None,
        compile=config.compile,
    )


def claim_checkpoint(config: TrainConfig, parents: dict[str, Artifact]) -> Artifact | Claim:
    """Claim ``config.out`` for this run; the finished checkpoint if it is there."""
    fingerprints = {role: parent.fingerprint for role, parent in parents.items()}
    key = identity("checkpoint", identity_fields(config), fingerprints)
    return claim(paths.absolute(config.out), "checkpoint", key, overwrite=config.overwrite)


def train_here(fit: Fit, rows: Rows, *, device: str = "cpu", on_epoch: Any = None) -> State:
    """Train in this process on rows in memory: what a one-worker trial of a sweep does."""
    return fit_here(fit, rows, LocalContext(device, on_epoch))


def finish_checkpoint(
    config: TrainConfig, made: Claim, parents: dict[str, Artifact], fit: Fit, state: State, seconds: float
) -> Artifact:
    """Write weights and manifest."""
    content = write_model(made.path, state.model)
    trained = sum(entry["train_seconds"] for entry in state.history)
    return finish(
        made,
        fingerprint=content_hash(content),
        config=to_dict(config),
        parents=parents,
        counts={"samples": fit.num_rows, "steps": state.step, "epochs": state.epoch},
        wall_seconds=seconds,
        device_seconds=sum(entry["train_seconds"] * entry["num_workers"] for entry in state.history),
        model={key: list(value) if isinstance(value, tuple) else value for key, value in fit.model.items()},
        classes=list(parents["dataset"].manifest["classes"]),
        num_workers=max(entry["num_workers"] for entry in state.history),
        steps=state.step,
        training_seconds=round(trained, 3),
        epochs=state.history,
    )


def stall_share(history: list[dict[str, float]]) -> float:
    """Share of all epochs' training time that was spent waiting for data, in [0, 1]."""
    seconds = sum(entry["train_seconds"] for entry in history)
    waited = sum(entry["train_seconds"] * entry.get("stall_share", 0.0) for entry in history)
    return waited / seconds if seconds else 0.0


def open_checkpoint(path: str) -> tuple[Artifact, Any]:
    """A finished checkpoint and its model, in evaluation mode on the CPU.

    Raises:
        EasyCoreError: if it is missing, unfinished or damaged.
    """
    artifact = open_artifact(path, "checkpoint")
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in artifact.manifest["model"].items()}
    return artifact, read_model(artifact.path, arguments)


def _run(config: TrainConfig, fit: Fit, made: Claim) -> State:
    """Train on Ray Train; tracked as one MLflow run."""
    fit = settle(fit, config, made)
    tracker = Tracker.open(config.tracking_uri, out=made.path, experiment=config.experiment)
    key = f"train-{made.identity[:16]}-{made.nonce}"
    tracker.run(key, name=f"train {config.training}", params=to_dict(config), tags={"kind": "checkpoint"})
    try:
        state = fit_on_ray(
            fit,
            config,
            storage=paths.join(made.path, "commits"),
            name=f"train-{made.identity[:12]}-{made.nonce}",
            label="train",
            on_metrics=lambda epoch, metrics: tracker.log(key, metrics, step=epoch),
        )
        tracker.finish(key)
    except BaseException:
        tracker.finish(key, status="FAILED")
        raise
    finally:
        tracker.close()
    return state
