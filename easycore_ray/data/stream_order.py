"""The order in which a worker's rows are read, and in which they leave its shuffle buffer. Arithmetic only.

Rows are read in blocks, each a row group of a shard. Blocks are permuted anew in every epoch; the rows of a segment,
which is a stretch of that order, then leave through a buffer that keeps the rows of many blocks. Which rows are in
which batch is known before any is read, and does not depend on how they arrive.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from easycore_ray.core.seeding import numpy_rng

# Enough for the mixing of a segment's first rows.
_START_BLOCKS = 32


def cut_blocks(shard: NDArray[np.integer], row: NDArray[np.integer], group_rows: Sequence[int]) -> NDArray[np.int64]:
    """Where blocks begin and end: rows of one row group belong together.

    Args:
        shard: integers (n,), number of the shard of each row, ascending.
        row: integers (n,), position in its shard, ascending within a shard.
        group_rows: rows of a row group, for each shard.

    Returns:
        int64 (blocks + 1,), the first 0 and the last n.
    """
    group = row // np.asarray(group_rows, np.int64)[shard]
    new = np.flatnonzero((np.diff(shard) != 0) | (np.diff(group) != 0)) + 1
    return np.concatenate([[0], new, [len(row)]] if len(row) else [[0]]).astype(np.int64)


def permute_blocks(blocks: NDArray[np.int64], seed: int, epoch: int, rank: int) -> NDArray[np.int64]:
    """Positions of a worker's rows in the order of an epoch, block by block: int64 (n,).

    Args:
        blocks: int64 (blocks + 1,), from ``cut_blocks``.
        seed: of the run.
        epoch: from 1.
        rank: of the worker.
    """
    order = numpy_rng("blocks", seed, epoch, rank).permutation(len(blocks) - 1)
    sizes = np.diff(blocks)[order]
    # A row's position is its number in the new order, moved by how far its block has moved.
    moved = blocks[:-1][order] - (np.cumsum(sizes) - sizes)
    return np.arange(blocks[-1]) + np.repeat(moved, sizes)


class Buffer(NamedTuple):
    """Size of a worker's shuffle buffer, in rows."""

    start: int
    """When the first batch of a segment is drawn from it."""
    full: int


def size_buffer(num_rows: int, block_rows: float, world_size: int) -> Buffer:
    """The shuffle buffer of each worker.

    Two rows of one block stay near each other, so they share batches more often than others do. With a buffer of
    sqrt(N · b) rows over all workers, of N rows in blocks of b, two rows that share a batch share one in the next
    epoch at most 1.5 times as often as after a full shuffle. A segment starts with fewer rows, so as not to wait.

    Args:
        num_rows: of all workers.
        block_rows: rows of a block, on average.
        world_size: number of workers.
    """
    full = math.ceil(math.sqrt(num_rows * block_rows) / world_size)
    return Buffer(min(full, math.ceil(_START_BLOCKS * block_rows)), full)


def shuffle_batches(
    sizes: Sequence[int], buffer: Buffer, rng: np.random.Generator
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Draw the batches of a segment from a buffer that rows enter in order.

    While the buffer is not full, two rows enter for each that leaves. It never has less than two batches.

    Args:
        sizes: of the batches, in rows; their sum is the number of rows of the segment.
        buffer: its size.
        rng: draws which rows leave.

    Yields:
        How many of the segment's rows must have entered for this batch, and positions int64 (B,) in the segment of
        those that leave.
    """
    total, least = sum(sizes), max(buffer.start, 2 * max(sizes, default=0))
    held = np.empty(0, np.int64)
    entered = left = 0
    for size in sizes:
        upto = min(total, left + min(max(buffer.full, least), least + left))
        held = np.concatenate([held, np.arange(entered, upto)])
        entered, left = upto, left + size
        chosen = rng.choice(len(held), size, replace=False)
        yield entered, held[chosen]
        held = np.delete(held, chosen)
