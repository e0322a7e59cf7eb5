"""How the rows of an epoch are shared by the workers: steps and nearly equal shares. Arithmetic only."""

import math
from collections.abc import Iterable

from easycore_ray.config.recipes import extra_batch_rows
from easycore_ray.config.stages import ScoreConfig, TrainConfig
from easycore_ray.core.selection import budget
from easycore_ray.storage.errors import EasyCoreError


def batches_per_epoch(num_rows: int, batch_size: int) -> int:
    """Optimizer steps in an epoch, whatever the number of workers: ``batch_size`` rows, over all of them, a step."""
    return math.ceil(num_rows / batch_size)


def steps_per_epoch(config: TrainConfig | ScoreConfig, num_rows: int) -> int:
    """Optimizer steps of one pass over so many samples; of a batch with extra rows only the others count."""
    return batches_per_epoch(num_rows, config.batch_size - extra_batch_rows(config))


def rows_per_epoch(config: TrainConfig | ScoreConfig, num_rows: int) -> int:
    """Rows that are trained on in one pass over so many samples, extra ones included."""
    extra = extra_batch_rows(config)
    return num_rows + -(-num_rows * extra // (config.batch_size - extra))


def describe_rows(config: TrainConfig | ScoreConfig, num_rows: int, extra_rows: int) -> str:
    """The samples of a run, for people: so many, and so many of the extra data."""
    text, batch_rows = f"{num_rows:,} samples", extra_batch_rows(config)
    if not batch_rows:
        return text
    extra = rows_per_epoch(config, num_rows) - num_rows
    return (
        f"{text} and {extra:,} rows an epoch of {extra_rows:,} extra samples ({batch_rows:,} in each batch of "
        f"{config.batch_size:,})"
    )


def training_steps(config: TrainConfig, num_rows: int) -> int:
    """Optimizer steps of a training run on this many samples, at least 1.

    Raises:
        EasyCoreError: scoring is charged with all of them.
    """
    counted = num_rows if config.steps_fraction is None else budget(num_rows, config.steps_fraction)
    found = config.steps or config.epochs * steps_per_epoch(config, counted)
    if config.charged_steps >= found:
        raise EasyCoreError(
            f"scoring is charged with {config.charged_steps:,} steps, and a training run has {found:,} in all: nothing "
            "is left to train with; raise the epochs or steps, share the scores among more models, or leave out "
            "--count-scoring"
        )
    return found - config.charged_steps


def check_share(num_rows: int, batch_size: int, workers: Iterable[int], *, extra_rows: int = 0) -> None:
    """Refuse data so small that a worker would be left without a row in some step.

    Args:
        num_rows: samples of an epoch.
        batch_size: samples of a step, over all workers.
        workers: every number of workers the run may have.
        extra_rows: of the samples of a step, those that are not of the epoch's.

    Raises:
        EasyCoreError: says how many workers the rows allow.
    """
    for world_size in workers:
        own = batch_size - extra_rows
        if not _fills_batches(num_rows, own, world_size):
            fewer = [count for count in range(world_size, 0, -1) if batch_size % count == 0]
            most = next(count for count in fewer if _fills_batches(num_rows, own, count))
            raise EasyCoreError(
                f"{num_rows} samples in batches of {own} cannot be shared by {world_size} workers: one would be "
                f"left without a row; lower --num-workers to {most} or raise --batch-size"
            )


def _fills_batches(num_rows: int, batch_size: int, world_size: int) -> bool:
    """Whether the smallest share has a row for each of its batches."""
    return num_rows // world_size >= batches_per_epoch(num_rows, batch_size)
