"""One run of the training loop, in this process or on Ray Train workers: same code, same weights.

The loop commits at epoch boundaries only. A commit is one Ray Train checkpoint: weights, those of the best
epoch so far, optimizer state and whatever the caller carries along (the list of score parts), registered
together, so that they cannot diverge. A lost worker, node or driver costs at most the epoch under way.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from easycore_ray.core.loop import EpochResult, NotFiniteError, make_optimizer, train_epoch
from easycore_ray.core.models import build_model, compiled
from easycore_ray.core.passes import validate
from easycore_ray.data.dataset import open_dataset
from easycore_ray.data.samples import Samples, read_split
from easycore_ray.engine.loader import Loader, MemoryLoader
from easycore_ray.engine.plan import Fit
from easycore_ray.engine.segments import Segments
from easycore_ray.engine.state import HaltedError, State, load_optimizer, optimizer_tensors
from easycore_ray.engine.worker_group import Context
from easycore_ray.storage.machine import cpu

# Rows of the validation split that are attacked together; workers take whole blocks, so that no outcome depends on
# how many they are.
_VALIDATION_BLOCK = 128


AfterEpoch = Callable[[Context, Loader, nn.Module, int, EpochResult | None, dict[str, Any]], dict[str, float]]
"""Called with (context, loader, model, epoch, training result, carried) after each epoch, and before the
first one with epoch 0 and no result; changes ``carried`` in place and returns metrics to log."""


@dataclass(frozen=True)
class _Run:
    """What stays the same over the epochs of a run, on one worker."""

    fit: Fit
    context: Context
    loader: Loader
    model: nn.Module
    trained: nn.Module
    """``model``, or its compiled form."""
    optimizer: torch.optim.SGD
    after_epoch: AfterEpoch | None
    validation: list[Samples]
    """This worker's blocks of the validation split."""


def run_epochs(fit: Fit, context: Context, loader: Loader, after_epoch: AfterEpoch | None = None) -> State:
    """Train from the last committed state to the end; the same on every kind of context.

    Raises:
        HaltedError: training diverges; on all workers at the same step.
        Exception: what else goes wrong on this worker alone. The others may be waiting for it in a collective, so it
            must end them (Ray Train does) and never take part in another one.
    """
    torch.set_num_threads(fit.threads)
    model = build_model(**fit.model).to(context.device).to(memory_format=torch.channels_last)
    trained = compiled(model, context.device) if fit.compile else model
    optimizer = make_optimizer(model, fit.plan)
    state = context.restore()
    if state is None:
        carried: dict[str, Any] = {}
        if after_epoch is not None:
            after_epoch(context, loader, model, 0, None, carried)
        state = State(0, 0, {}, {}, [], carried)
    else:
        model.load_state_dict(state.model)
        load_optimizer(optimizer, model, state.optimizer)
    # A number can depend on where it was computed: recorded, for the nodes of a cluster may differ.
    state.carried["devices"] = sorted(
        {*state.carried.get("devices", []), *context.gather(_device_name(context.device))}
    )
    run = _Run(fit, context, loader, model, trained, optimizer, after_epoch, _validation_blocks(fit, context))
    for epoch in range(state.epoch + 1, fit.epochs + 1):
        if state.carried.get("stopped"):
            break
        state = _run_epoch(run, state, epoch)
        context.commit(state)
    return state


def _device_name(device: torch.device) -> str:
    """Model of the GPU or CPU a worker computes on."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu()


def _run_epoch(run: _Run, state: State, epoch: int) -> State:
    """Train, score, validate; the state to commit."""
    fit, context, model, after_epoch = run.fit, run.context, run.model, run.after_epoch
    started = time.monotonic()
    result = _train(run, state, epoch)
    ended = time.monotonic()
    metrics: dict[str, float] = {
        "epoch": epoch,
        "num_workers": context.world_size,
        "train_seconds": ended - started,
    }
    if after_epoch is not None:
        metrics |= after_epoch(context, run.loader, model, epoch, result, state.carried)
        metrics["score_seconds"] = time.monotonic() - ended
    metrics |= _reduce_metrics(fit, context, result, model, run.validation)
    # Copied: on a CPU the model's own tensors are those that the next epoch changes.
    weights = {name: _copy_to_cpu(tensor) for name, tensor in model.state_dict().items()}
    better = fit.keep_best and _is_best(metrics, state.history, fit.selected_by)
    return State(
        epoch,
        state.step + result.steps,
        weights,
        optimizer_tensors(run.optimizer, model),
        [*state.history, metrics],
        state.carried,
        epoch if better else state.best_epoch,
        weights if better else state.best,
    )


def _train(run: _Run, state: State, epoch: int) -> EpochResult:
    """Train on every batch of this worker once, reporting progress in rows of all workers."""
    fit, context = run.fit, run.context
    done = (epoch - 1) * math.ceil(fit.num_rows / context.world_size)

    def on_batch(rows: int) -> None:
        nonlocal done
        done += rows
        context.post(min(done * context.world_size, epoch * fit.num_rows), f"epoch {epoch} of {fit.epochs}")

    results: list[EpochResult] = []
    try:
        for segment in range(run.loader.segments.count):
            step = state.step + sum(result.steps for result in results)
            if step >= fit.plan.total_steps:
                break
            results.append(
                train_epoch(
                    run.trained,
                    run.optimizer,
                    run.loader.shuffled(epoch, segment),
                    fit.plan,
                    epoch=epoch,
                    step=step,
                    segment=segment,
                    rank=context.rank,
                    combine=context.combine if context.world_size > 1 else None,
                    record_scores=fit.record_scores,
                    on_batch=on_batch,
                )
            )
            # Weights are equal already; running statistics of batch norm are each worker's own until here.
            context.same_weights(run.model)
    except NotFiniteError as error:
        # All workers see the same loss, so all stop here, and none waits for another.
        raise HaltedError(str(error), state if state.epoch else None) from error
    return _join(results)


def _join(results: list[EpochResult]) -> EpochResult:
    """The result of an epoch of these segments."""
    scores = [result.scores for result in results if result.scores is not None]
    return EpochResult(
        sum(result.loss_sum for result in results),
        sum(result.num_correct for result in results),
        sum(result.num_rows for result in results),
        sum(result.steps for result in results),
        {name: np.concatenate([found[name] for found in scores]) for name in scores[0]} if scores else None,
        sum(result.stall_share for result in results) / max(len(results), 1),
    )


def _copy_to_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _is_best(metrics: dict[str, float], history: list[dict[str, float]], name: str) -> bool:
    """Whether an epoch is ahead of all before it; of equals the earliest stays the best."""
    return name in metrics and all(metrics[name] > entry[name] for entry in history if name in entry)


def _validation_blocks(fit: Fit, context: Context) -> list[Samples]:
    """This worker's blocks of the validation split, cut alike for any number of workers; none without one."""
    dataset = open_dataset(fit.dataset)
    if not dataset.num_rows("val"):
        return []
    columns = [column.split(_VALIDATION_BLOCK) for column in read_split(dataset, "val")]
    return [Samples(*block) for block in zip(*columns, strict=True)][context.rank :: context.world_size]


def _reduce_metrics(
    fit: Fit, context: Context, result: EpochResult, model: nn.Module, validation: list[Samples]
) -> dict[str, float]:
    """Loss and accuracies over all workers' rows, and what validation took."""
    started, plan = time.monotonic(), fit.plan
    mine = validate(model, validation, eps=plan.eps, norm=plan.norm, steps=fit.val_attack_steps, seed=plan.seed)
    parts = context.gather((replace(result, scores=None), mine))
    rows = max(sum(trained.num_rows for trained, _ in parts), 1)
    metrics = {
        "train_loss": sum(trained.loss_sum for trained, _ in parts) / rows,
        "train_accuracy": sum(trained.num_correct for trained, _ in parts) / rows,
    }
    # In a step all workers wait for the last one.
    metrics["stall_share"] = max(trained.stall_share for trained, _ in parts)
    total = sum(part.num_rows for _, part in parts)
    if not total:
        return metrics
    metrics["val_accuracy"] = sum(part.num_correct for _, part in parts) / total
    if fit.val_attack_steps:
        metrics["val_robust_accuracy"] = sum(part.num_robust for _, part in parts) / total
    return metrics | {"val_seconds": time.monotonic() - started}


def fit_here(fit: Fit, rows: Samples, context: Context, after_epoch: AfterEpoch | None = None) -> State:
    """Run in this process, on rows that are in memory."""
    segments = Segments(fit.num_rows, fit.batch_size, fit.segment_images)
    loader = MemoryLoader(rows, segments=segments, seed=fit.plan.seed)
    return run_epochs(fit, context, loader, after_epoch)
