"""How the rows of an epoch are shared by the workers: steps, equal shares, padding. Arithmetic only."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from easycore_ray.storage.errors import EasyCoreError


def batches_per_epoch(num_rows: int, batch_size: int) -> int:
    """Optimizer steps in an epoch, whatever the number of workers: ``batch_size`` rows, over all of them, a step."""
    return math.ceil(num_rows / batch_size)


def _padding(num_rows: int, world_size: int) -> int:
    """Rows that complete the dataset to equal shares."""
    return -num_rows % world_size


def check_share(num_rows: int, batch_size: int, workers: Iterable[int]) -> None:
    """Refuse data so small that a worker could be left without a row in some step.

    A worker whose share holds all the padding still needs a row for each batch.

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
                f"{num_rows} samples in batches of {batch_size} cannot be shared by {world_size} workers: one could be "
                f"left without a row; lower --num-workers to {most} or raise --batch-size"
            )


def _fills_batches(num_rows: int, batch_size: int, world_size: int) -> bool:
    """Whether the smallest share has a row for each of its batches."""
    least = math.ceil(num_rows / world_size) - _padding(num_rows, world_size)
    return least >= batches_per_epoch(num_rows, batch_size)


@dataclass(frozen=True)
class Share:
    """One worker's block of the rows of an epoch."""

    num_rows: int
    """Of all workers, without padding."""
    world_size: int
    rank: int

    @property
    def size(self) -> int:
        """Rows of this worker, padding included."""
        return math.ceil(self.num_rows / self.world_size)

    @property
    def padding(self) -> int:
        """Padding rows of all workers, any of which may be this worker's."""
        return _padding(self.num_rows, self.world_size)
