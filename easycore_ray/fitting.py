"""One run of the training loop, in this process or on Ray Train workers: same code, same weights.

The loop commits at epoch boundaries only. A commit is one Ray Train checkpoint: weights, those of the best
epoch so far, optimizer state and whatever the caller carries along (the list of score parts), registered
together, so that they cannot diverge. A lost worker, node or driver costs at most the epoch under way.
"""

import contextlib
import json
import math
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor, nn

from easycore_ray import cluster, paths
from easycore_ray.config import ComputeConfig, SeededRecipeConfig
from easycore_ray.core.loop import EpochResult, NotFiniteError, Plan, make_optimizer, train_epoch, validate
from easycore_ray.core.models import build_model, compiled, default_width, is_users
from easycore_ray.dataset import Dataset, Rows, open_dataset, ray_dataset, read_split
from easycore_ray.errors import EasyCoreError
from easycore_ray.feeding import ExactDataConfig, Feed, MemoryFeed, batches_per_epoch, check_share, open_feed
from easycore_ray.manifest import Claim, giving_back
from easycore_ray.progress import watching

# A lost peer is noticed after this long in a collective; torch's default is half an hour.
_COLLECTIVE_TIMEOUT_SECONDS = 300
# Workers tell how far they are at most this often.
_POST_SECONDS = 0.2
# Rows of the validation split that are attacked together; workers take whole blocks, so that no outcome depends on
# how many they are.
_VALIDATION_BLOCK = 128
LAST, BEST = "model.safetensors", "best.safetensors"
"""Files of the weights after the last epoch and after the best one."""


@dataclass
class State:
    """What a commit holds: everything needed to go on from an epoch boundary."""

    epoch: int
    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    history: list[dict[str, float]] = field(default_factory=list)
    """Metrics of every epoch so far."""
    carried: dict[str, Any] = field(default_factory=dict)
    """The caller's: JSON content, e.g. the cumulative list of score parts, and tensors."""
    best_epoch: int = 0
    """The epoch that did best in validation; 0 if none is chosen."""
    best: dict[str, Tensor] = field(default_factory=dict)
    """Weights after ``best_epoch``; those of ``model`` if it is the last one."""


class HaltedError(EasyCoreError):
    """The run refused to go on: its loss was not finite, or its caller refused a result."""

    def __init__(self, problem: str, state: State | None, *, diverged: bool = False) -> None:
        super().__init__(problem)
        self.state = state
        """The last committed state; None if no epoch was completed."""
        self.diverged = diverged
        """Loss or weights were not finite: the recipe's doing, which no retry mends."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A run, as plain data that can be sent to workers."""

    dataset: str
    sample_ids: np.ndarray | None
    """Samples to train on, ascending; None for all."""
    num_rows: int
    model: dict[str, Any]
    """Arguments of ``core.models.build_model``."""
    plan: Plan
    epochs: int
    batch_size: int
    cache_gib: float
    threads: int
    warmup_fraction: float = 0.0
    fixed_steps: bool = False
    """The budget is ``plan.total_steps``; otherwise it is ``epochs``, and the plan is that of the largest number of
    workers the run may have."""
    record_scores: bool = False
    """Take fused scores in each training step."""
    compile: bool = False
    """Run training steps compiled; exact scores and validation never are."""
    keep_best: bool = False
    """Keep the weights of the epoch that does best in validation, if there is a validation split."""
    val_attack_steps: int = 0
    """Steps of the attack on the validation split after each epoch; 0: none."""

    @property
    def selected_by(self) -> str:
        """The metric that the best epoch has the highest value of."""
        return "val_robust_accuracy" if self.val_attack_steps else "val_accuracy"

    def schedule(self, world_size: int, state: State) -> tuple[Plan, int]:
        """The plan for this many workers, and the step in it from which the state goes on.

        Progress carries over in epochs: another number of workers takes another number of steps for the same.
        """
        if self.fixed_steps:
            return self.plan, state.step
        steps = batches_per_epoch(self.num_rows, world_size, self.batch_size)
        total = self.epochs * steps
        plan = replace(self.plan, total_steps=total, warmup_steps=round(self.warmup_fraction * total))
        return plan, state.epoch * steps


class Context(Protocol):
    """The workers a run is on, as seen from one of them."""

    rank: int
    world_size: int
    device: torch.device
    attempt: str
    """Unique for every start of the worker group."""

    def restore(self) -> State | None:
        """The last committed state, if there is one."""
        ...

    def commit(self, state: State) -> None:
        """Make a state the one to go on from; called by all workers, at epoch boundaries."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Every worker's value, by rank; called by all workers."""
        ...

    def combine(self, gradients: list[Tensor], count: int) -> int:
        """Add up gradients in place and counts over all workers; returns the global count."""
        ...

    def same_weights(self, model: nn.Module) -> None:
        """Give every worker rank 0's weights and buffers."""
        ...

    def post(self, done: float, note: str) -> None:
        """Tell whoever watches how many rows are done."""
        ...


class LocalContext:
    """One worker: this process. Nothing is kept between runs."""

    rank, world_size = 0, 1

    def __init__(self, device: str = "cpu", on_epoch: Callable[[dict[str, float]], None] | None = None) -> None:
        self.device = torch.device(device)
        self.attempt = uuid.uuid4().hex[:12]
        self._on_epoch = on_epoch

    def restore(self) -> State | None:
        """See ``Context``."""
        return None

    def commit(self, state: State) -> None:
        """See ``Context``."""
        if self._on_epoch is not None:
            self._on_epoch(state.history[-1])

    def gather(self, value: Any) -> list[Any]:
        """See ``Context``."""
        return [value]

    def combine(self, gradients: list[Tensor], count: int) -> int:
        """See ``Context``."""
        del gradients
        return count

    def same_weights(self, model: nn.Module) -> None:
        """See ``Context``."""

    def post(self, done: float, note: str) -> None:
        """See ``Context``."""


class RayContext:
    """One of the workers Ray Train started."""

    def __init__(self, board: Any) -> None:
        import ray.train
        import ray.train.collective
        import ray.train.torch

        info = ray.train.get_context()
        self.rank, self.world_size = info.get_world_rank(), info.get_world_size()
        self.device = ray.train.torch.get_device()
        attempt = uuid.uuid4().hex[:12] if self.rank == 0 else None
        self.attempt = ray.train.collective.broadcast_from_rank_zero(attempt)
        self._board = board
        self._news: tuple[float, str] | None = None
        self._posted = -math.inf

    def restore(self) -> State | None:
        """See ``Context``."""
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as folder:
            return load_state(folder)

    def commit(self, state: State) -> None:
        """See ``Context``: the checkpoint's registration by the Train controller is the commit point."""
        import ray.train

        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if self.rank == 0:
                save_state(folder, state)
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            # Attempts never share a directory, so a half-uploaded older one cannot mix with this one.
            name = f"epoch-{state.epoch:05d}-{self.attempt}"
            ray.train.report(state.history[-1], checkpoint=checkpoint, checkpoint_dir_name=name)
        # The controller registers a moment later; whoever is lost from here on, this epoch is not done again.
        ray.train.get_all_reported_checkpoints(ray.train.CheckpointConsistencyMode.COMMITTED)
        if self.rank == 0:
            self._send()
            self._board.post_metrics.remote(state.epoch, state.history[-1])

    def gather(self, value: Any) -> list[Any]:
        """See ``Context``."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def combine(self, gradients: list[Tensor], count: int) -> int:
        """See ``Context``.

        One all-reduce over one flat buffer in a fixed layout. DDP regroups its buckets after the first
        step of a process, so with three or more workers a restarted run would round differently from an
        uninterrupted one.
        """
        if self.world_size == 1:
            return count
        counts = torch.tensor([float(count)], device=self.device)
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients] + [counts])
        torch.distributed.all_reduce(flat)
        pieces = flat[:-1].split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [piece.view(g.shape) for piece, g in zip(pieces, gradients, strict=True)])
        return int(flat[-1])

    def same_weights(self, model: nn.Module) -> None:
        """See ``Context``."""
        if self.world_size > 1:
            for tensor in model.state_dict().values():
                torch.distributed.broadcast(tensor, src=0)

    def post(self, done: float, note: str) -> None:
        """See ``Context``."""
        self._news = (done, note)
        # A call to an actor in every step would cost quick steps dearly; an epoch's last news go with its commit.
        if self.rank == 0 and time.monotonic() - self._posted >= _POST_SECONDS:
            self._send()

    def _send(self) -> None:
        if self._news is not None:
            self._board.post.remote(*self._news)
            self._news, self._posted = None, time.monotonic()


AfterEpoch = Callable[[Context, Feed, nn.Module, int, EpochResult | None, dict[str, Any]], dict[str, float]]
"""Called with (context, feed, model, epoch, training result, carried) after each epoch, and before the
first one with epoch 0 and no result; changes ``carried`` in place and returns metrics to log."""


def run_epochs(fit: Fit, context: Context, feed: Feed, after_epoch: AfterEpoch | None = None) -> State:
    """Train from the last committed state to the end; the same on every kind of context.

    Raises:
        HaltedError: if training diverges, or ``after_epoch`` refuses its result; on all workers.
    """
    torch.set_num_threads(fit.threads)
    model = build_model(**fit.model).to(context.device).to(memory_format=torch.channels_last)
    trained = _together(context, lambda: compiled(model, context.device), None) if fit.compile else model
    optimizer = make_optimizer(model, fit.plan)
    state = context.restore()
    if state is None:
        carried: dict[str, Any] = {}
        if after_epoch is not None:
            _together(context, lambda: after_epoch(context, feed, model, 0, None, carried), None)
        state = State(0, 0, {}, {}, [], carried)
    else:
        model.load_state_dict(state.model)
        load_optimizer(optimizer, model, state.optimizer)
    validation = _validation_blocks(fit, context)
    rows_per_epoch = math.ceil(fit.num_rows / context.world_size)
    for epoch in range(state.epoch + 1, fit.epochs + 1):
        if state.carried.get("stopped"):
            break
        state = _one_epoch(
            fit, context, feed, model, trained, optimizer, state, epoch, after_epoch, validation, rows_per_epoch
        )
        context.commit(state)
    return state


def _one_epoch(
    fit: Fit,
    context: Context,
    feed: Feed,
    model: nn.Module,
    trained: nn.Module,
    optimizer: torch.optim.SGD,
    state: State,
    epoch: int,
    after_epoch: AfterEpoch | None,
    validation: list[Rows],
    rows_per_epoch: int,
) -> State:
    """Train, score, validate; the state to commit. ``trained`` is ``model``, or its compiled form."""
    started = time.monotonic()
    done = (epoch - 1) * rows_per_epoch

    def on_batch(rows: int) -> None:
        nonlocal done
        done += rows
        context.post(min(done * context.world_size, epoch * fit.num_rows), f"epoch {epoch} of {fit.epochs}")

    plan, step = fit.schedule(context.world_size, state)
    result = _together(
        context,
        lambda: train_epoch(
            trained,
            optimizer,
            feed.shuffled(epoch),
            plan,
            epoch=epoch,
            step=step,
            rank=context.rank,
            combine=context.combine if context.world_size > 1 else None,
            record_scores=fit.record_scores,
            on_batch=on_batch,
        ),
        state,
    )
    ended = time.monotonic()
    # Weights are equal already; running statistics of batch norm are each worker's own until here.
    context.same_weights(model)
    metrics: dict[str, float] = {
        "epoch": epoch,
        "num_workers": context.world_size,
        "train_seconds": ended - started,
    }
    if after_epoch is not None:
        metrics |= _together(context, lambda: after_epoch(context, feed, model, epoch, result, state.carried), state)
        metrics["score_seconds"] = time.monotonic() - ended
    metrics |= _measured(fit, context, result, model, validation)
    # Copied: on a CPU the model's own tensors are those that the next epoch changes.
    weights = {name: _copied(tensor) for name, tensor in model.state_dict().items()}
    better = fit.keep_best and _is_best(metrics, state.history, fit.selected_by)
    return State(
        epoch,
        state.step + result.steps,
        weights,
        optimizer_tensors(optimizer, model),
        [*state.history, metrics],
        state.carried,
        epoch if better else state.best_epoch,
        weights if better else state.best,
    )


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _is_best(metrics: dict[str, float], history: list[dict[str, float]], name: str) -> bool:
    """Whether an epoch is ahead of all before it; of equals the earliest stays the best."""
    return name in metrics and all(metrics[name] > entry[name] for entry in history if name in entry)


def _together(context: Context, work: Callable[[], Any], state: State | None) -> Any:
    """Do this worker's part; if any worker refuses its input or result, all stop with that error.

    ``state`` is where the run could go on from. Other exceptions (a bug, a dead device) pass through and make Ray
    restart the worker group.
    """
    value, problem = None, None
    try:
        value = work()
    except ValueError as error:
        problem = str(error), isinstance(error, NotFiniteError)
    problems = [other for other in context.gather(problem) if other is not None]
    if problems:
        text, diverged = problems[0]
        raise HaltedError(text, state if state is not None and state.epoch else None, diverged=diverged)
    return value


def _validation_blocks(fit: Fit, context: Context) -> list[Rows]:
    """This worker's blocks of the validation split, cut alike for any number of workers; none without one."""
    dataset = open_dataset(fit.dataset)
    if not dataset.num_rows("val"):
        return []
    columns = [column.split(_VALIDATION_BLOCK) for column in read_split(dataset, "val")]
    return [Rows(*block) for block in zip(*columns, strict=True)][context.rank :: context.world_size]


def _measured(
    fit: Fit, context: Context, result: EpochResult, model: nn.Module, validation: list[Rows]
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


# --- state on disk ------------------------------------------------------------------------------


def optimizer_tensors(optimizer: torch.optim.SGD, model: nn.Module) -> dict[str, Tensor]:
    """Momentum by parameter name."""
    found = {}
    for name, parameter in model.named_parameters():
        momentum = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if momentum is not None:
            found[name] = momentum.detach().cpu().contiguous()
    return found


def load_optimizer(optimizer: torch.optim.SGD, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put momentum back."""
    for name, parameter in model.named_parameters():
        if name in tensors:
            momentum = torch.empty_like(parameter).copy_(tensors[name])
            optimizer.state[parameter]["momentum_buffer"] = momentum


def save_state(folder: str, state: State) -> None:
    """Write a state as safetensors and JSON: nothing that is loaded again can run code."""
    save_file(state.model, Path(folder) / LAST)
    save_file(state.optimizer, Path(folder) / "optimizer.safetensors")
    tensors = {name: value for name, value in state.carried.items() if isinstance(value, Tensor)}
    save_file(tensors, Path(folder) / "carried.safetensors")
    if state.best_epoch not in (0, state.epoch):
        save_file(state.best, Path(folder) / BEST)
    carried = {name: value for name, value in state.carried.items() if name not in tensors}
    content = {"epoch": state.epoch, "step": state.step, "history": state.history, "carried": carried,
               "best_epoch": state.best_epoch}  # fmt: skip
    (Path(folder) / "state.json").write_text(json.dumps(content))


def load_state(folder: str) -> State:
    """Read what ``save_state`` wrote."""
    content = json.loads((Path(folder) / "state.json").read_text())
    model, best_epoch = load_file(Path(folder) / LAST), content.get("best_epoch", 0)
    return State(
        content["epoch"],
        content["step"],
        model,
        load_file(Path(folder) / "optimizer.safetensors"),
        content["history"],
        content["carried"] | load_file(Path(folder) / "carried.safetensors"),
        best_epoch,
        load_file(Path(folder) / BEST) if best_epoch not in (0, content["epoch"]) else model if best_epoch else {},
    )


def write_model(folder: str, weights: dict[str, Tensor], name: str = LAST) -> bytes:
    """Write weights as a safetensors file; returns its content."""
    content = save(dict(sorted(weights.items())))
    paths.write_bytes(paths.join(folder, name), content)
    return content


def read_model(where: str, arguments: dict[str, Any]) -> nn.Module:
    """The model whose weights are in a file, in evaluation mode.

    Raises:
        EasyCoreError: if weights and configuration do not fit, or a user's model cannot be built here.
    """
    model = _build(arguments)
    try:
        model.load_state_dict(load(paths.read_bytes(where)))
    except (RuntimeError, ValueError) as error:
        raise EasyCoreError(f"{where} does not fit the model in its manifest: {str(error).splitlines()[0]}") from error
    return model.to(memory_format=torch.channels_last).eval()


# --- building a run -----------------------------------------------------------------------------


def model_arguments(recipe: SeededRecipeConfig, dataset: Dataset) -> dict[str, Any]:
    """Arguments of ``core.models.build_model`` for a recipe on a dataset.

    Raises:
        EasyCoreError: for a user's model that cannot be built; found out here, before any work.
    """
    arguments = {
        "name": recipe.model,
        "num_classes": dataset.num_classes,
        "image_shape": tuple(dataset.image_shape),
        "width": recipe.width if recipe.width is not None else default_width(recipe.model),
        "mean": tuple(dataset.mean),
        "std": tuple(dataset.std),
        "seed": recipe.seed,
    }
    if is_users(recipe.model):
        _build(arguments)
    return arguments


def _build(arguments: dict[str, Any]) -> nn.Module:
    try:
        return build_model(**arguments)
    except ValueError as error:
        raise EasyCoreError(str(error)) from error


def make_plan(
    recipe: SeededRecipeConfig,
    *,
    total_steps: int,
    training: str = "standard",
    beta: float = 0.0,
    eps: float = 0.0,
    norm: str = "linf",
    attack_steps: int = 1,
    attack_step_size: float | None = None,
) -> Plan:
    """A recipe and an objective, resolved into the loop's plan."""
    return Plan(
        training=training,
        beta=beta,
        eps=eps,
        norm=norm,
        attack_steps=attack_steps,
        attack_step_size=2.5 * eps / attack_steps if attack_step_size is None else attack_step_size,
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        schedule=recipe.schedule,
        warmup_steps=round(recipe.warmup_fraction * total_steps),
        total_steps=total_steps,
        augment=recipe.augment,
        crop_pad=recipe.crop_pad,
        precision=recipe.precision,
        seed=recipe.seed,
        milestones=recipe.milestones,
        # bf16 rounds a thousand times more coarsely than folding does; fp32 keeps the rounding of the plain network.
        fold=recipe.precision == "bf16" and not recipe.compile,
    )


def fit_here(fit: Fit, rows: Rows, context: Context, after_epoch: AfterEpoch | None = None) -> State:
    """Run in this process, on rows that are in memory."""
    feed = MemoryFeed(rows, num_batches=batches_per_epoch(fit.num_rows, 1, fit.batch_size), seed=fit.plan.seed)
    return run_epochs(fit, context, feed, after_epoch)


# --- on Ray Train -------------------------------------------------------------------------------


def fit_on_ray(
    fit: Fit,
    config: ComputeConfig,
    *,
    storage: str,
    name: str,
    label: str,
    after_epoch: AfterEpoch | None = None,
    on_metrics: Callable[[int, dict[str, float]], None] | None = None,
) -> State:
    """Run on Ray Train workers, going on from the last commit of the same ``storage`` and ``name``.

    Args:
        fit: the run.
        config: workers and their resources.
        storage: folder for checkpoints, reachable from every node.
        name: Ray Train's run name; the same pair resumes, so it must be unique to this run.
        label: what the progress line says.
        after_epoch: see ``AfterEpoch``; a function that can be pickled.
        on_metrics: called in this process with (epoch, metrics) as epochs are committed.

    Returns:
        The state after the last epoch.

    Raises:
        HaltedError: if the workers refused (bad values, divergence).
        EasyCoreError: if they were lost too often.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    demand = demand_of(config)
    dataset = open_dataset(fit.dataset)
    rows = ray_dataset(dataset, "train", fit.sample_ids)
    filesystem, root = paths.locate(storage)
    paths.make_dir(storage)
    resources = {"CPU": demand.cpus_per_worker}
    if config.gpus_per_worker:
        resources["GPU"] = config.gpus_per_worker
    with watching(label, fit.epochs * fit.num_rows, "images", on_metrics) as board, _quiet():

        def trainer() -> TorchTrainer:
            return TorchTrainer(
                _worker,
                train_loop_config={"fit": fit, "after_epoch": after_epoch, "board": board},
                torch_config=TorchConfig(timeout_s=_COLLECTIVE_TIMEOUT_SECONDS),
                scaling_config=ray.train.ScalingConfig(
                    num_workers=config.num_workers,  # (MIN, MAX) makes Ray Train go on with what there is
                    use_gpu=config.gpus_per_worker > 0,
                    resources_per_worker=resources,
                ),
                datasets={"train": rows},
                dataset_config=ExactDataConfig(fit.num_rows, dataset.shard_schema),
                run_config=ray.train.RunConfig(
                    name=name,
                    storage_path=root,
                    storage_filesystem=filesystem,
                    # A drained node (spot instances) is no failure of the run.
                    failure_config=ray.train.FailureConfig(
                        max_failures=config.max_failures, max_preemption_failures=-1
                    ),
                    checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
                    logging_config=ray.train.LoggingConfig(log_level="ERROR"),
                ),
            )

        result = _fit_to_the_end(trainer, config.max_failures, label)
    answer = result.return_value or {}
    if answer.get("problem"):
        raise HaltedError(answer["problem"], _last_state(result), diverged=answer["diverged"])
    state = _last_state(result)
    assert state is not None
    return state


def _last_state(result: Any) -> State | None:
    """What the run committed last."""
    if result.checkpoint is None:
        return None
    with result.checkpoint.as_directory() as folder:
        return load_state(folder)


def _fit_to_the_end(trainer: Callable[[], Any], max_failures: int, label: str) -> Any:
    """The result of a run; begins anew, from its last commit, where Ray Train's controller itself was lost.

    Ray Train replaces lost workers, but nobody replaces its controller, nor gives back what it had reserved.
    """
    import ray.train

    # Inside a trial of a sweep other trials reserve the same; there the sweep's next command goes on.
    alone = ray.get_runtime_context().get_actor_id() is None
    before = cluster.reservations()
    for lost in range(max_failures + 1 if alone else 1):
        try:
            return trainer().fit()
        except ray.train.TrainingFailedError as error:
            problem = f"workers failed {max_failures + 1} times, the last time with {_cause(error)}"
            cause: Exception = error
            break
        except ray.exceptions.RayActorError as error:
            problem = f"the training controller was lost {lost + 1} times"
            cause = error
            if alone:
                cluster.give_back(cluster.reservations() - before)
    raise EasyCoreError(f"{label}: {problem}; run the same command again to go on from the last epoch") from cause


def settle(fit: Fit, config: ComputeConfig, made: Claim) -> Fit:
    """Connect to Ray and make sure that it can ever hold the run, before any work; the run with its threads settled.

    Raises:
        EasyCoreError: see ``check_share`` and ``cluster.preflight``; a fresh claim is given back.
    """
    with giving_back(made):
        check_share(fit.num_rows, config.max_workers)
        cluster.connect()
        demand = demand_of(config)
        cluster.preflight(demand)
    threads = cluster.threads_per_worker(config.max_workers, config.threads_per_worker, demand.cpus_per_worker)
    return replace(fit, threads=threads)


def demand_of(config: ComputeConfig) -> cluster.Demand:
    """What a distributed run must at least be given."""
    return cluster.Demand(
        num_workers=config.min_workers,
        cpus_per_worker=cluster.cpus_per_worker(config.max_workers, config.cpus_per_worker, config.gpus_per_worker),
        gpus_per_worker=config.gpus_per_worker,
    )


def _worker(work: dict[str, Any]) -> dict[str, Any]:
    """What each Ray Train worker runs."""
    import ray.train

    fit: Fit = work["fit"]
    context = RayContext(work["board"])
    feed = open_feed(
        ray.train.get_dataset_shard("train"),
        open_dataset(fit.dataset),
        num_rows=fit.num_rows,
        world_size=context.world_size,
        rank=context.rank,
        batch_size=fit.batch_size,
        seed=fit.plan.seed,
        cache_gib=fit.cache_gib,
    )
    try:
        run_epochs(fit, context, feed, work["after_epoch"])
    except EasyCoreError as error:
        # Returned, not raised: Ray would start the workers again to fail in the same way.
        return {"problem": str(error), "diverged": isinstance(error, HaltedError) and error.diverged}
    return {}


def _cause(error: BaseException) -> str:
    """The first line that says why, from the innermost exception Ray wrapped."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    inner = next(iter(failures.values()))
    lines = [line for line in str(inner).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(inner).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray Train's own console output to errors; it stays in Ray's session logs."""
    before = os.environ.get("RAY_TRAIN_ENABLE_PRINT_PATCH")
    os.environ["RAY_TRAIN_ENABLE_PRINT_PATCH"] = "0"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("RAY_TRAIN_ENABLE_PRINT_PATCH", None)
        else:
            os.environ["RAY_TRAIN_ENABLE_PRINT_PATCH"] = before
