"""The segments of an epoch: which global batches belong to each, and how many rows of them every worker has.

An epoch has the same global batches whatever the number of workers. Its segments are whole numbers of them; only ends
of segments commit. Every worker owns an equal block of the rows, cut into as many batches as there are global ones, of
sizes that differ by at most one, none empty. All of it is arithmetic, so that every worker knows the size of every
batch of every other. Where an epoch has only some of the rows, the blocks are what is left of the equal ones.
No torch, no Ray.
"""

from collections import Counter
from dataclasses import dataclass

from easycore_ray.engine.shares import batches_per_epoch


@dataclass(frozen=True)
class Segments:
    """How the rows of an epoch are cut into segments and batches, and shared by workers."""

    num_rows: int
    """Rows of all workers in an epoch."""
    batch_size: int
    """Rows of a global batch, at most."""
    images: int
    """Rows of a segment, up to the next whole batch; the last segment has the rest."""
    world_size: int = 1
    blocks: tuple[int, ...] | None = None
    """Rows of each worker, which add up to ``num_rows``; None: equal blocks. Of unequal ones a global batch may have a
    row for each worker but one more than ``batch_size``."""

    @property
    def num_batches(self) -> int:
        """Batches of an epoch, the same on every worker."""
        return batches_per_epoch(self.num_rows, self.batch_size)

    @property
    def batches_per_segment(self) -> int:
        """Batches of each segment but the last, which has this many or fewer."""
        return -(-self.images // self.batch_size)

    @property
    def count(self) -> int:
        """Segments of an epoch, at least one."""
        return -(-self.num_batches // self.batches_per_segment)

    def batches(self, segment: int) -> range:
        """Numbers, within the epoch, of a segment's batches."""
        first = segment * self.batches_per_segment
        return range(first, min(first + self.batches_per_segment, self.num_batches))

    def rows_of_worker(self, rank: int) -> int:
        """Rows of a worker's block; those of two workers differ by at most one, unless ``blocks`` says otherwise."""
        if self.blocks is not None:
            return self.blocks[rank]
        return (rank + 1) * self.num_rows // self.world_size - rank * self.num_rows // self.world_size

    def rows(self, segment: int, rank: int) -> range:
        """Places of a segment's rows in a worker's order of its own rows, from 0."""
        batches, count = self.batches(segment), self.rows_of_worker(rank)
        return range(self._start(batches.start, count), self._start(batches.stop, count))

    def batch_sizes(self, segment: int, rank: int) -> list[int]:
        """Rows of each of a worker's batches of a segment."""
        count = self.rows_of_worker(rank)
        return [self._start(batch + 1, count) - self._start(batch, count) for batch in self.batches(segment)]

    def global_batch_sizes(self, segment: int) -> list[int]:
        """Rows of each batch of a segment over all workers."""
        # Equal blocks have one of two sizes.
        workers = Counter(self.rows_of_worker(rank) for rank in range(self.world_size))
        return [
            sum(number * (self._start(batch + 1, rows) - self._start(batch, rows)) for rows, number in workers.items())
            for batch in self.batches(segment)
        ]

    def global_rows(self, segment: int) -> int:
        """Rows of a segment over all workers."""
        return sum(self.global_batch_sizes(segment))

    @property
    def scored_segments(self) -> int:
        """Segments of a pass that scores rows at fixed weights."""
        return self.count

    def scored_rows(self, segment: int) -> int:
        """Rows of a segment of such a pass over all workers."""
        return self.global_rows(segment)

    def _start(self, batch: int, rows: int) -> int:
        """Where a batch begins in a block of so many rows; the first batches have one more where they are uneven."""
        least, more = divmod(rows, self.num_batches)
        return batch * least + min(batch, more)
