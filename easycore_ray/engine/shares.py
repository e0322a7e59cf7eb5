"""How the rows of an epoch are shared by the workers: steps and nearly equal shares. Arithmetic only."""

import math
from collections.abc import Iterable

from easycore_ray.config.stages import TrainConfig
from easycore_ray.core.selection import budget
from easycore_ray.storage.errors import EasyCoreError


def batches_per_epoch(num_rows: int, batch_size: int) -> int:
    """Optimizer steps in an epoch, whatever the number of workers: ``batch_size`` rows, over all of them, a step."""
    return math.ceil(num_rows / batch_size)


def training_steps(config: TrainConfig, num_rows: int) -> int:
    """Optimizer steps of a training run on this many samples, at least 1.

    Raises:
        EasyCoreError: scoring is charged with all of them.
    """
    counted = num_rows if config.steps_fraction is None else budget(num_rows, config.steps_fraction)
    found = config.steps or config.epochs * batches_per_epoch(counted, config.batch_size)
    if config.charged_steps >= found:
        raise EasyCoreError(
            f"scoring is charged with {config.charged_steps:,} steps, and a training run has {found:,} in all: nothing "
            "is left to train with; raise the epochs or steps, share the scores among more models, or leave out "
            "--count-scoring"
        )
    return found - config.charged_steps


def check_share(num_rows: int, batch_size: int, workers: Iterable[int]) -> None:
    """Refuse data so small that a worker would be left without a row in some step.

    Args:
        num_rows: samples of an epoch.
        batch_size: samples of a step, over all workers.
        workers: every number of workers the run may have.

    Raises:
        EasyCoreError: says how many workers the rows allow.
    """
    for world_size in workers:
        if not _fills_batches(num_rows, batch_size, world_size):
            fewer = [count for count in range(world_size, 0, -1) if batch_size % count == 0]
            most = next(count for count in fewer if _fills_batches(num_rows, batch_size, count))
            raise EasyCoreError(
                f"{num_rows} samples in batches of {batch_size} cannot be shared by {world_size} workers: one would be "
                f"left without a row; lower --num-workers to {most} or raise --batch-size"
            )


def _fills_batches(num_rows: int, batch_size: int, world_size: int) -> bool:
    """Whether the smallest share has a row for each of its batches."""
    return num_rows // world_size >= batches_per_epoch(num_rows, batch_size)
