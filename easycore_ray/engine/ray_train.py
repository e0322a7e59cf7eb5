"""A training run on Ray Train workers, resumed from its last commit."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from easycore_ray.config.base import ComputeConfig, ResourceConfig
from easycore_ray.data.dataset import Dataset, open_dataset
from easycore_ray.data.stream import takes_cpus
from easycore_ray.engine.failures import describe_error, first_failure
from easycore_ray.engine.loader import describe_streaming, open_loader
from easycore_ray.engine.plan import Fit
from easycore_ray.engine.run import Recorder, run_epochs
from easycore_ray.engine.run_history import check_committed_states, train_run_name
from easycore_ray.engine.run_identity import keeps_extra_rows, keeps_rows
from easycore_ray.engine.shares import check_share
from easycore_ray.engine.state import HaltedError, State
from easycore_ray.engine.validation import keeps_validation
from easycore_ray.engine.worker_group import WHOLE_EPOCHS, RayContext, read_checkpoint
from easycore_ray.runtime import cluster
from easycore_ray.runtime.console import say
from easycore_ray.runtime.devices import check_device
from easycore_ray.runtime.interrupts import interruptible
from easycore_ray.runtime.progress_actor import watching
from easycore_ray.runtime.reservations import give_back, reservations
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Claim, giving_back
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.storage.lease import check_seen
from easycore_ray.tracking.mlflow import Tracker
from easycore_ray.tracking.runs import TrackedRun


def fit_on_ray(
    fit: Fit,
    config: ComputeConfig,
    *,
    storage: str,
    name: str,
    label: str,
    recorder: Recorder | None = None,
    on_metrics: Callable[[int, dict[str, float]], None] | None = None,
    made: Claim | None = None,
) -> State:
    """Run on Ray Train workers, resuming from the last commit of the same ``storage`` and ``name``.

    Args:
        fit: the run.
        config: workers and their resources.
        storage: folder for checkpoints, reachable from every node.
        name: Ray Train's run name; the same pair resumes, so it must be unique to this run.
        label: what the progress line says.
        recorder: see ``Recorder``; a function that can be pickled.
        on_metrics: called in this process with (epoch, metrics) as epochs are committed.
        made: the claim of the run's artifact, checked before each commit.

    Returns:
        The state after the last epoch.

    Raises:
        HaltedError: training diverged.
        EasyCoreError: a worker raised what another attempt would raise again, or workers were lost too often.
    """
    paths.make_dir(storage)
    check_committed_states(paths.join(storage, name))
    with watching(label, fit.progress_total, fit.progress_unit, on_metrics) as actor, _quiet():
        work = {"fit": fit, "recorder": recorder, "progress_actor": actor, "claim": made, "device": config.device}
        make_trainer = _trainer_factory(work, config, storage, name)
        result = _fit_with_retries(make_trainer, config.max_failures, label)
    answer = result.return_value or {}
    if answer.get("problem"):
        raise HaltedError(answer["problem"], _last_state(result))
    state = _last_state(result)
    assert state is not None
    if len(devices := state.carried.get("devices", [])) > 1:
        say(
            f"warning: {label} ran on {' and '.join(devices)}: the result may differ in rounding from that of one model"
        )
    return state


def fit_tracked(
    fit: Fit,
    config: ComputeConfig,
    made: Claim,
    run: TrackedRun,
    tracker: Tracker,
    *,
    label: str,
    recorder: Recorder | None = None,
) -> State:
    """Run on Ray Train workers under a claim, each epoch's metrics sent to MLflow; see ``fit_on_ray``.

    Args:
        fit: the run.
        config: workers and their resources.
        made: the claim of its artifact, in whose folder it commits.
        run: its MLflow run.
        tracker: where that goes.
        label: ``score`` or ``train``.
        recorder: see ``Recorder``; a function that can be pickled.
    """
    tracker.send(run)
    return fit_on_ray(
        fit,
        config,
        storage=paths.join(made.path, "commits"),
        name=train_run_name(label, {"identity": made.identity, "nonce": made.nonce}),
        label=label,
        recorder=recorder,
        on_metrics=lambda epoch, metrics: tracker.send(replace(run, points={epoch: metrics})),
        made=made,
    )


def _trainer_factory(work: dict[str, Any], config: ComputeConfig, storage: str, name: str) -> Callable[[], Any]:
    """Makes the trainer of a run: anew for each attempt."""
    import ray.train

    from easycore_ray.engine.collectives import Collectives
    from easycore_ray.engine.trainer import Trainer

    fit: Fit = work["fit"]
    filesystem, root = paths.locate(storage)
    decodes = _decodes(fit, config)
    resources = {"CPU": demand_of(config, config.num_workers, decodes=decodes).cpus_per_worker}
    if config.gpus_per_worker:
        resources["GPU"] = config.gpus_per_worker

    def make_trainer() -> Trainer:
        return Trainer(
            # Bound, not passed as its configuration, which the controller would read, and import torch for.
            partial(_worker, work),
            backend_config=Collectives(),
            scaling_config=ray.train.ScalingConfig(
                num_workers=config.num_workers,  # (MIN, MAX) makes Ray Train continue with the workers there are
                use_gpu=config.gpus_per_worker > 0,
                resources_per_worker=resources,
            ),
            run_config=ray.train.RunConfig(
                name=name,
                storage_path=root,
                storage_filesystem=filesystem,
                # A drained node (spot instances) is no failure of the run; of others ``_fit_with_retries`` decides.
                failure_config=ray.train.FailureConfig(max_failures=0, max_preemption_failures=-1),
                # The newest is kept as well, whatever it is.
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2, checkpoint_score_attribute=WHOLE_EPOCHS),
                logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            ),
        )

    return make_trainer


def _last_state(result: Any) -> State | None:
    """What the run committed at the end of its last whole epoch."""
    return None if result.checkpoint is None else read_checkpoint(result.checkpoint, whole=True)


def _fit_with_retries(make_trainer: Callable[[], Any], max_failures: int, label: str) -> Any:
    """The result of a run; begins anew, from its last commit, where workers or Ray Train's controller were lost.

    What a worker raises of itself it would raise again, so that ends the run at once, with its own message. Nobody
    replaces the controller, nor gives back what it had reserved.
    """
    import ray.train

    # Inside a trial of a sweep other trials reserve the same; there the sweep's next command resumes.
    alone = ray.get_runtime_context().get_actor_id() is None
    before = reservations()
    for failures in range(1, max_failures + 2):
        try:
            return interruptible(make_trainer().fit)
        except ray.train.TrainingFailedError as error:
            failure, cause = first_failure(error), error
            if failure.repeats:
                raise EasyCoreError(f"{label}: {failure.text}") from error
            problem = f"workers failed {_times(failures)}, the last time with {failure.text}"
        except ray.exceptions.RayActorError as error:
            problem, cause = f"the training controller was lost {_times(failures)}", error
            if not alone:
                break
            give_back(reservations() - before)
    raise EasyCoreError(f"{label}: {problem}; run the same command again to go on from the last commit") from cause


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def check_resources(fit: Fit, config: ComputeConfig, made: Claim, label: str) -> None:
    """Connect to Ray and wait until it has room for the run, before any work; say what is idle or streamed.

    Args:
        fit: the run.
        config: workers and their resources.
        made: the claim of its artifact.
        label: ``score`` or ``train``.

    Raises:
        EasyCoreError: see ``check_share`` and ``cluster.preflight``; a fresh claim is given back.
    """
    with giving_back(made):
        workers = range(config.min_workers, config.max_workers + 1)
        extra_rows = 0 if fit.extra is None else fit.extra.batch_rows
        check_share(fit.num_rows, fit.batch_size, workers, extra_rows=extra_rows)
        if fit.extra is not None:
            check_share(fit.extra.num_rows, fit.batch_size, workers)
        cluster.connect()
        demand = demand_of(config, config.num_workers, decodes=_decodes(fit, config))
        cluster.preflight(demand, label)
    if fit.extra is not None:
        say(f"{label}: {fit.extra.describe(fit.batch_size)}")
    if (words := describe_streaming(fit, config.max_workers)) is not None:
        say(words)
    if fit.prune_ratio is not None and fit.cuda_graphs and config.gpus_per_worker:
        say(f"{label}: pruned epochs are computed without a CUDA graph, since the sizes of their batches change")
    idle = int(demand.cpus_per_worker)
    if config.threads < idle and not config.gpus_per_worker and config.threads_per_worker is None:
        say(f"each worker has {idle} CPUs and uses one of them; --threads-per-worker {idle} uses all, as another run")


def _decodes(fit: Fit, config: ComputeConfig) -> bool:
    """Whether tasks beside the workers decode images while they train, with any number of workers it may have."""
    dataset, augment = open_dataset(fit.dataset), fit.plan.augment
    workers = range(config.min_workers, config.max_workers + 1)
    if any(decodes_beside(dataset, fit.num_rows, count, fit.cache_gib, augment) for count in workers):
        return True
    if fit.extra is None:
        return False
    extra = open_dataset(fit.extra.dataset), fit.extra.num_rows
    return any(decodes_extra(dataset, fit.num_rows, *extra, count, fit.cache_gib, augment) for count in workers)


def decodes_extra(
    dataset: Dataset, num_rows: int, extra: Dataset, extra_rows: int, workers: int, cache_gib: float, augment: str
) -> bool:
    """Whether so many workers need CPUs beside them for extra rows; arguments as of ``keeps_extra_rows``."""
    kept = keeps_extra_rows(dataset, num_rows, extra, extra_rows, workers, cache_gib, augment)
    return not kept and takes_cpus(extra.layout, augment == "imagenet")


def decodes_beside(dataset: Dataset, num_rows: int, workers: int, cache_gib: float, augment: str) -> bool:
    """Whether so many workers need CPUs beside them, to decode what they stream; arguments as of ``keeps_rows``."""
    kept = keeps_rows(dataset, num_rows, workers, cache_gib, augment)
    kept_val = keeps_validation(dataset, workers, cache_gib)
    return (not kept and takes_cpus(dataset.layout, augment == "imagenet")) or (
        not kept_val and takes_cpus(dataset.layout, False)
    )


def demand_of(config: ResourceConfig, num_workers: int | tuple[int, int], *, decodes: bool = False) -> cluster.Demand:
    """What a distributed run must at least be given.

    Args:
        config: resources of a worker.
        num_workers: or fewest and most.
        decodes: whether images are decoded beside the workers.

    Raises:
        EasyCoreError: workers would share a GPU.
    """
    least, most = num_workers if isinstance(num_workers, tuple) else (num_workers, num_workers)
    if most > 1 and 0 < config.gpus_per_worker <= 0.5:
        raise EasyCoreError(
            f"{most} workers with {config.gpus_per_worker:g} GPUs each would share one, over which NCCL cannot sum "
            "gradients; pass --gpus-per-worker 1, or a single worker"
        )
    there = cluster.capacity(config.most) if config.cpus_per_worker is None else None
    return cluster.Demand(
        num_workers=least,
        cpus_per_worker=cluster.cpus_per_worker(
            most, config.cpus_per_worker, config.gpus_per_worker, decodes=decodes, there=there
        ),
        gpus_per_worker=config.gpus_per_worker,
        decodes=decodes,
        most=config.most,
    )


def _worker(work: dict[str, Any]) -> dict[str, Any]:
    """What each Ray Train worker runs."""
    fit: Fit = work["fit"]
    try:
        check_seen([work["claim"].lease] if work["claim"] else [])
        check_device(work["device"])
        context = RayContext(work["progress_actor"], work["claim"])
        loader = open_loader(fit, context.rank, context.world_size)
        run_epochs(fit, context, loader, work["recorder"])
    except HaltedError as error:
        # All workers are here, so the run may end well, with its last commit.
        return {"problem": str(error)}
    except Exception as error:
        # This worker's own: raised, so that Ray Train ends those that wait for it.
        raise describe_error(error) from error
    return {}


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
