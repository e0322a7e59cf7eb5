"""One run of the training loop, in this process or on Ray Train workers: same code, same weights.

An epoch is a list of segments, of training and of exact scoring. The loop commits at the ends of segments, once
``commit_minutes`` have passed, and always at the end of an epoch. A commit is one Ray Train checkpoint: weights, those
of the best epoch so far, optimizer state, the sums of the epoch under way and whatever the recorder carries along (its
score parts), registered together, so that they cannot diverge. A lost worker, node or driver costs at most the minutes
and the segment under way. At the end of a segment all workers are made equal, whether or not it commits: results never
depend on where commits fell.
"""

import math
import time
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from easycore_ray.core.averaging import AveragedWeights
from easycore_ray.core.gradients import Gradients, GraphedGradients, compute_gradients
from easycore_ray.core.loop import EpochResult, NotFiniteError, make_optimizer, train_epoch
from easycore_ray.core.memory import RowLimit
from easycore_ray.core.models import build_model, compiled
from easycore_ray.core.passes import ScoreAttack, score_epoch
from easycore_ray.core.sgd import SGD
from easycore_ray.data.samples import Samples
from easycore_ray.engine.checkpoint import load_initial
from easycore_ray.engine.loader import Loader, PrunableLoader, open_loader
from easycore_ray.engine.machine_use import MachineUse
from easycore_ray.engine.plan import Fit
from easycore_ray.engine.pruning import PrunedEpoch, Pruner
from easycore_ray.engine.state import (
    VAL_LOSSES,
    EpochProgress,
    HaltedError,
    State,
    load_optimizer,
    optimizer_tensors,
)
from easycore_ray.engine.validation import ValidationBlocks
from easycore_ray.engine.worker_group import Context
from easycore_ray.storage.machine import cpu


class Recorder(Protocol):
    """Records scores while a model is trained. All workers call its methods together, with equal ``carried``.

    ``carried`` holds what is committed with the weights; methods change it in place, alike on all workers.
    """

    def records_steps(self, epoch: int) -> bool:
        """Whether the scores of an epoch's own training steps are recorded."""
        ...

    def exact_pass(self, epoch: int, carried: dict[str, Any]) -> int | None:
        """The epoch under which an exact pass with the weights after ``epoch`` (0: untrained) is recorded, if any."""
        ...

    def also_records(self, epoch: int) -> tuple[str, ...]:
        """What the exact pass that is recorded under an epoch records besides scores: see ``score_epoch``."""
        ...

    def record(
        self,
        context: Context,
        columns: dict[str, np.ndarray],
        *,
        epoch: int,
        segment: int,
        rows: int,
        carried: dict[str, Any],
    ) -> None:
        """Record the scores of this worker's rows of a segment; ``rows`` are those of all workers."""
        ...

    def complete(self, context: Context, epoch: int, carried: dict[str, Any]) -> dict[str, float]:
        """After the last segment of what is recorded under ``epoch``: metrics to log."""
        ...


@dataclass
class _Run:
    """What the epochs of a run share, on one worker."""

    fit: Fit
    context: Context
    loader: Loader
    """Of all of this worker's rows."""
    model: nn.Module
    trained: nn.Module
    """``model``, or its compiled form."""
    gradients: Gradients
    optimizer: SGD
    averaged: AveragedWeights | None
    """Of ``model``, where the plan wants them."""
    recorder: Recorder | None
    validation: ValidationBlocks
    use: MachineUse
    scored_at_once: RowLimit
    """Rows of an exact pass; it stays halved from segment to segment."""
    pruner: Pruner | None
    """Where epochs are pruned."""
    epoch: PrunedEpoch
    """What the epoch under way trains on: all rows of the loader, unless it is pruned."""
    committed: float
    """When the last commit was made, or the run began: ``time.monotonic``."""


def run_epochs(fit: Fit, context: Context, loader: Loader, recorder: Recorder | None = None) -> State:
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
    state = _restore(context)
    if state is None:
        if fit.initial is not None:
            load_initial(model, fit.initial)
        state = State(0, 0, {}, {}, progress=EpochProgress(0, context.world_size))
    else:
        model.load_state_dict(state.model)
        load_optimizer(optimizer, model, state.optimizer)
    averaged = AveragedWeights(model, fit.plan.ema, fit.plan.warmup_steps) if fit.plan.ema else None
    if averaged is not None and state.averaged:
        averaged.load(state.averaged)
    # A number can depend on where it was computed: recorded, for the nodes of a cluster may differ.
    state.carried["devices"] = sorted(
        {*state.carried.get("devices", []), *context.gather(_device_name(context.device))}
    )
    validation = ValidationBlocks(fit, context)
    graphed = fit.cuda_graphs and context.device.type == "cuda"
    gradients = GraphedGradients() if graphed else compute_gradients
    use = MachineUse(context.device)
    # Runs that prune have no extra rows, and all other loaders can leave rows out.
    pruner = None if fit.prune_ratio is None else Pruner(fit, context, cast(PrunableLoader, loader))
    run = _Run(fit, context, loader, model, trained, gradients, optimizer, averaged, recorder, validation, use,
               fit.row_limit(fit.score_batch_size), pruner, PrunedEpoch(loader, None, fit.plan.total_steps),
               time.monotonic())  # fmt: skip
    while state.progress is not None or (state.step < fit.plan.total_steps and not state.carried.get("stopped")):
        state = _run_epoch(run, state, state.progress or EpochProgress(state.epoch + 1, context.world_size))
        context.commit(state)
        run.committed = time.monotonic()
    return state


def _restore(context: Context) -> State | None:
    """The last committed state that this number of workers can go on with."""
    state = context.restore()
    if state is not None and state.progress is not None and state.progress.world_size != context.world_size:
        # What is left of an epoch is cut by the shares of the workers that began it.
        return context.restore(whole=True)
    return state


def _device_name(device: torch.device) -> str:
    """Model of the GPU or CPU a worker computes on."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu()


def _run_epoch(run: _Run, state: State, progress: EpochProgress) -> State:
    """Train, score, validate, from where ``progress`` is; the state to commit."""
    if progress.epoch == 0:
        _score(run, state, progress)
        progress = EpochProgress(1, progress.world_size, segments=progress.segments)
    if run.pruner is not None:
        run.epoch = run.pruner.begin(state.carried, progress.epoch, state.step)
    _train(run, state, progress)
    _score(run, state, progress)
    context = run.context
    metrics: dict[str, float] = {
        "epoch": progress.epoch,
        "num_workers": context.world_size,
        "train_seconds": progress.train_seconds,
        **progress.metrics,
    }
    if run.recorder is not None:
        metrics["score_seconds"] = progress.score_seconds
    rows = max(progress.num_rows, 1)
    metrics["train_loss"] = progress.loss_sum / rows
    metrics["train_accuracy"] = progress.num_correct / rows
    if run.pruner is not None:
        metrics |= {**run.pruner.end(state.carried), "steps": float(state.step + progress.steps)}
    metrics["stall_share"] = progress.wait_seconds / max(progress.train_seconds, 1e-9)
    metrics |= _validate(run, state.carried)
    metrics |= run.use.measure(context)
    now = _snapshot(run, state, progress)
    better = run.fit.keep_best and _is_best(metrics, state.history, run.fit.selected_by)
    return replace(
        now,
        epoch=progress.epoch,
        step=now.steps,
        history=[*state.history, metrics],
        best_epoch=progress.epoch if better else state.best_epoch,
        best=now.model if better else state.best,
        progress=None,
    )


def _validate(run: _Run, carried: dict[str, Any]) -> dict[str, float]:
    """Metrics of the validation split: of the weights, and of their average where there is one.

    A run that records scores carries each class's loss after every epoch.
    """
    found, losses = run.validation.measure(run.model)
    if run.recorder is not None and losses:
        carried.setdefault(VAL_LOSSES, []).append(losses)
    if run.averaged is None or not run.averaged.tensors or not found:
        return found
    with run.averaged.in_place():
        averaged, _ = run.validation.measure(run.model)
    seconds = found["val_seconds"] + averaged.pop("val_seconds")
    return found | {f"averaged_{name}": value for name, value in averaged.items()} | {"val_seconds": seconds}


def _make_equal(run: _Run) -> None:
    """Give every worker what rank 0 has: running statistics of batch norm are each worker's own until here."""
    run.context.same(run.model.state_dict().values())
    if run.averaged is not None:
        run.context.same(run.averaged.tensors.values())


def _train(run: _Run, state: State, progress: EpochProgress) -> None:
    """Train on the segments of the epoch that are left."""
    segments, recorder = run.epoch.loader.segments, run.recorder
    while not _is_trained(run, state, progress):
        segment, started = progress.trained, time.monotonic()
        result = _train_segment(run, state, progress)
        ended = time.monotonic()
        _make_equal(run)
        results = _add(run.context, progress, result, ended - started)
        if run.pruner is not None:
            run.pruner.record(state.carried, results)
        last = _is_trained(run, state, progress)
        if recorder is not None and recorder.records_steps(progress.epoch):
            assert result.scores is not None
            recorder.record(run.context, result.scores, epoch=progress.epoch, segment=segment,
                            rows=segments.global_rows(segment), carried=state.carried)  # fmt: skip
            if last:
                progress.metrics |= recorder.complete(run.context, progress.epoch, state.carried)
        progress.score_seconds += time.monotonic() - ended
        if not last or _exact_pass(run, state, progress) is not None:
            _commit_if_due(run, state, progress)


def _is_trained(run: _Run, state: State, progress: EpochProgress) -> bool:
    """Whether nothing is left to train in the epoch under way."""
    return progress.trained == run.epoch.loader.segments.count or state.step + progress.steps >= run.epoch.last_step


def _train_segment(run: _Run, state: State, progress: EpochProgress) -> EpochResult:
    """Train on every batch of this worker's next segment once, reporting progress in rows of all workers, or steps."""
    fit, context, epoch, loader = run.fit, run.context, progress.epoch, run.epoch.loader
    step, pruned = state.step + progress.steps, run.pruner is not None
    note = f"epoch {epoch}, {loader.segments.num_rows:,} samples" if pruned else f"epoch {epoch} of {fit.epochs}"
    # Rows of all workers, batch by batch, are arithmetic; nothing need travel.
    global_sizes = loader.segments.global_batch_sizes(progress.trained)
    sizes = iter(global_sizes)
    ends = (epoch - 1) * fit.epoch_rows + progress.num_rows + np.cumsum(global_sizes)
    done = iter(ends.tolist())

    def combine(tensors: list[Tensor], rows: int) -> int:
        del rows
        context.combine(tensors)
        return next(sizes)

    def on_step(step: int) -> None:
        if run.averaged is not None:
            run.averaged.update(step)
        context.post(step if pruned else next(done), note)

    try:
        return train_epoch(
            run.trained,
            run.optimizer,
            islice(loader.shuffled(epoch, progress.trained), run.epoch.last_step - step),
            fit.plan,
            epoch=epoch,
            step=step,
            segment=progress.trained,
            rank=context.rank,
            combine=combine if context.world_size > 1 else None,
            record_scores=fit.record_scores,
            on_step=on_step,
            gradients=run.gradients,
            weigh=run.epoch.weigh,
            record_losses=pruned,
        )
    except NotFiniteError as error:
        # All workers see the same loss, so all stop here, and none waits for another.
        last = context.restore(whole=True) if state.progress is not None else state
        raise HaltedError(str(error), last if last is not None and last.epoch else None) from error


def _add(context: Context, progress: EpochProgress, result: EpochResult, seconds: float) -> list[EpochResult]:
    """Add a segment's sums over all workers, in the order of their ranks; returns those of each."""
    parts: list[EpochResult] = context.gather(replace(result, scores=None))
    progress.trained += 1
    progress.segments += 1
    progress.steps += result.steps
    progress.loss_sum += math.fsum(part.loss_sum for part in parts)
    progress.num_correct += sum(part.num_correct for part in parts)
    progress.num_rows += sum(part.num_rows for part in parts)
    progress.train_seconds += seconds
    # In a step all workers wait for the last one.
    progress.wait_seconds += seconds * max(part.stall_share for part in parts)
    return parts


def _exact_pass(run: _Run, state: State, progress: EpochProgress) -> int | None:
    """The epoch under which exact scores of the epoch under way are recorded; None if there is no pass."""
    return None if run.recorder is None else run.recorder.exact_pass(progress.epoch, state.carried)


def _score(run: _Run, state: State, progress: EpochProgress) -> None:
    """Score the segments of the epoch's exact pass that are left, if it has one."""
    epoch, segments = _exact_pass(run, state, progress), run.loader.segments
    if epoch is None or progress.scored == segments.scored_segments:
        return
    assert run.recorder is not None
    while progress.scored < segments.scored_segments:
        segment, started = progress.scored, time.monotonic()
        columns = score_epoch(run.model, run.loader.ordered(segment), input_space=run.fit.plan.input_space,
                              attack=ScoreAttack.of_plan(run.fit.plan, epoch),
                              also=run.recorder.also_records(epoch), limit=run.scored_at_once)  # fmt: skip
        run.recorder.record(run.context, columns, epoch=epoch, segment=segment,
                            rows=segments.scored_rows(segment), carried=state.carried)  # fmt: skip
        progress.scored += 1
        progress.segments += 1
        last = progress.scored == segments.scored_segments
        if last:
            progress.metrics |= run.recorder.complete(run.context, epoch, state.carried)
        progress.score_seconds += time.monotonic() - started
        if not last or progress.epoch == 0:
            _commit_if_due(run, state, progress)


def _commit_if_due(run: _Run, state: State, progress: EpochProgress) -> None:
    """Commit at the end of a segment if the last commit is long enough ago, by the clock of rank 0."""
    due = time.monotonic() - run.committed >= 60 * run.fit.commit_minutes
    if run.context.gather(due)[0]:
        run.context.commit(_snapshot(run, state, progress))
        run.committed = time.monotonic()


def _snapshot(run: _Run, state: State, progress: EpochProgress) -> State:
    """The state at the end of a segment."""
    # Copied: on a CPU the model's own tensors are those that the next step changes.
    weights = {name: _copy_to_cpu(tensor) for name, tensor in run.model.state_dict().items()}
    averaged = {} if run.averaged is None else run.averaged.tensors
    return replace(
        state,
        model=weights,
        optimizer=optimizer_tensors(run.optimizer, run.model),
        averaged={name: _copy_to_cpu(tensor) for name, tensor in averaged.items()},
        progress=replace(progress),
    )


def _copy_to_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _is_best(metrics: dict[str, float], history: list[dict[str, float]], name: str) -> bool:
    """Whether an epoch is ahead of all before it; of equals the earliest stays the best."""
    return name in metrics and all(metrics[name] > entry[name] for entry in history if name in entry)


def fit_here(fit: Fit, rows: Samples, context: Context, recorder: Recorder | None = None) -> State:
    """Run in this process, on rows that are in memory."""
    return run_epochs(fit, context, open_loader(fit, rows=rows), recorder)
