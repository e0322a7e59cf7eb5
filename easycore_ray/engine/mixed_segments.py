"""The segments of an epoch whose batches hold extra rows: the share of each batch, and which pass its rows are of.

An epoch is one pass over the main rows. Extra rows come from an endless sequence of passes over the extra data, so
that epochs and passes end at different steps. Where a batch lies in that sequence is arithmetic of its epoch and
number. No torch, no Ray.
"""

from dataclasses import dataclass
from itertools import pairwise

from easycore_ray.engine.segments import Segments
from easycore_ray.engine.shares import batches_per_epoch


@dataclass(frozen=True)
class Deal:
    """Rows dealt to workers one by one, pass after pass: after any number of them all have equally many, to within one.

    Every worker owns a block, as ``Segments.rows_of_worker`` says, and has been dealt all of it at the end of a pass.
    Workers with a row more come first.
    """

    num_rows: int
    """Of a pass."""
    world_size: int

    def dealt(self, total: int, rank: int) -> int:
        """Rows of a worker among the first ``total`` of the sequence."""
        passes, rest = divmod(total, self.num_rows)
        few, num_larger = divmod(self.num_rows, self.world_size)
        start, stop = (worker * self.num_rows // self.world_size for worker in (rank, rank + 1))
        larger_before = start - rank * few
        larger = stop - start > few
        turn = larger_before if larger else num_larger + rank - larger_before
        return passes * (stop - start) + max(0, -(-(rest - turn) // self.world_size))


@dataclass(frozen=True, kw_only=True)
class MixedSegments(Segments):
    """Segments of an epoch over ``num_rows`` main rows with extra rows in each batch.

    ``batch_size`` and ``images`` count both kinds, and so do the global sizes; ``rows`` and ``batch_sizes`` are the
    main rows of a worker. A scoring pass has the segments of the main rows and then those of the extra rows.
    """

    extra_rows: int
    """Of the extra data."""
    extra_batch_rows: int
    """Extra rows of a global batch; fewer, by the same share, where the others are fewer."""

    @property
    def main_batch_rows(self) -> int:
        """Main rows of a global batch, at most."""
        return self.batch_size - self.extra_batch_rows

    @property
    def num_batches(self) -> int:
        """See ``Segments``."""
        return batches_per_epoch(self.num_rows, self.main_batch_rows)

    @property
    def extra_per_epoch(self) -> int:
        """Extra rows of an epoch, over all workers."""
        return self._extra_start(self.num_batches)

    @property
    def scored_segments(self) -> int:
        """See ``Segments``: of the main rows, then of the extra ones."""
        return self.count + self.scored_extra.count

    @property
    def scored_extra(self) -> Segments:
        """Of the extra rows in a scoring pass."""
        return Segments(self.extra_rows, self.batch_size, self.images, self.world_size)

    def rows(self, segment: int, rank: int) -> range:
        """See ``Segments``."""
        batches, deal = self.batches(segment), Deal(self.num_rows, self.world_size)
        return range(*(deal.dealt(self._main_start(batch), rank) for batch in (batches.start, batches.stop)))

    def batch_sizes(self, segment: int, rank: int) -> list[int]:
        """See ``Segments``."""
        deal = Deal(self.num_rows, self.world_size)
        starts = [deal.dealt(self._main_start(batch), rank) for batch in self._edges(segment)]
        return [stop - start for start, stop in pairwise(starts)]

    def global_batch_sizes(self, segment: int) -> list[int]:
        """See ``Segments``: rows of both kinds."""
        starts = [self._main_start(batch) + self._extra_start(batch) for batch in self._edges(segment)]
        return [stop - start for start, stop in pairwise(starts)]

    def scored_rows(self, segment: int) -> int:
        """See ``Segments``."""
        if segment >= self.count:
            return self.scored_extra.global_rows(segment - self.count)
        batches = self.batches(segment)
        return self._main_start(batches.stop) - self._main_start(batches.start)

    def passes(self, epoch: int, segment: int) -> list[range]:
        """For each batch of a segment the passes, from 1, that its extra rows are of, over all workers."""
        return [
            range(start // self.extra_rows + 1, (stop - 1) // self.extra_rows + 2) if stop > start else range(0)
            for start, stop in pairwise(self.extra_edges(epoch, segment))
        ]

    def extra_edges(self, epoch: int, segment: int) -> list[int]:
        """Extra rows of all epochs before each batch of a segment, and after its last one."""
        return [(epoch - 1) * self.extra_per_epoch + self._extra_start(batch) for batch in self._edges(segment)]

    def extra_span(self, epoch: int, segment: int) -> range:
        """Places of a segment's extra rows in the sequence of passes."""
        batches, before = self.batches(segment), (epoch - 1) * self.extra_per_epoch
        return range(before + self._extra_start(batches.start), before + self._extra_start(batches.stop))

    def rows_seen(self, steps: int) -> tuple[int, int]:
        """Main and extra rows of the first steps of a run."""
        epochs, batch = divmod(steps, self.num_batches)
        return (
            epochs * self.num_rows + self._main_start(batch),
            epochs * self.extra_per_epoch + self._extra_start(batch),
        )

    def _edges(self, segment: int) -> range:
        batches = self.batches(segment)
        return range(batches.start, batches.stop + 1)

    def _main_start(self, batch: int) -> int:
        """Main rows of an epoch before a batch."""
        return self._start(batch, self.num_rows)

    def _extra_start(self, batch: int) -> int:
        """Extra rows of an epoch before a batch: as many as the main rows before it ask for, to the next whole one."""
        return -(-self._main_start(batch) * self.extra_batch_rows // self.main_batch_rows)


@dataclass(frozen=True, kw_only=True)
class PassSegments(Segments):
    """A pass over the extra rows, cut where segments and batches of the epochs that it spans begin and end.

    A segment is what a segment of training takes of the pass, a batch what a batch takes of it over all workers: a
    worker may have no row of it.
    """

    mixed: MixedSegments
    number: int
    """Of the pass, from 1."""

    @classmethod
    def of(cls, mixed: MixedSegments, number: int) -> "PassSegments":
        """The pass of this number."""
        return cls(mixed.extra_rows, mixed.batch_size, mixed.images, mixed.world_size, mixed=mixed, number=number)

    @property
    def count(self) -> int:
        """See ``Segments``."""
        return self._last - self._first + 1

    def place(self, epoch: int, segment: int) -> int:
        """The segment of the pass that a segment of training takes, from 0."""
        return (epoch - 1) * self.mixed.count + segment - self._first

    def batches(self, segment: int) -> range:
        """See ``Segments``: numbers within the segment."""
        return range(len(self._bounds(segment)) - 1)

    def rows(self, segment: int, rank: int) -> range:
        """See ``Segments``."""
        span, deal = self.mixed.extra_span(*self._trained(segment)), Deal(self.num_rows, self.world_size)
        return range(*(deal.dealt(self._within(place), rank) for place in (span.start, span.stop)))

    def batch_sizes(self, segment: int, rank: int) -> list[int]:
        """See ``Segments``; some may be 0."""
        deal = Deal(self.num_rows, self.world_size)
        return [deal.dealt(stop, rank) - deal.dealt(start, rank) for start, stop in pairwise(self._bounds(segment))]

    def global_batch_sizes(self, segment: int) -> list[int]:
        """See ``Segments``."""
        return [stop - start for start, stop in pairwise(self._bounds(segment))]

    def _bounds(self, segment: int) -> list[int]:
        """Where batches that take rows of the pass begin and end in it."""
        return sorted({self._within(place) for place in self.mixed.extra_edges(*self._trained(segment))})

    def _within(self, place: int) -> int:
        return min(max(place - (self.number - 1) * self.num_rows, 0), self.num_rows)

    def _trained(self, segment: int) -> tuple[int, int]:
        """Epoch and segment of training that take a segment of the pass."""
        epochs, trained = divmod(self._first + segment, self.mixed.count)
        return epochs + 1, trained

    @property
    def _first(self) -> int:
        """The segment of training that takes the first row, over all epochs."""
        return self._taker((self.number - 1) * self.num_rows)

    @property
    def _last(self) -> int:
        return self._taker(self.number * self.num_rows - 1)

    def _taker(self, place: int) -> int:
        """The segment of training that takes the row at a place of the sequence of passes."""
        epoch = place // self.mixed.extra_per_epoch + 1
        segments = range(self.mixed.count)
        return (epoch - 1) * self.mixed.count + next(
            segment for segment in segments if self.mixed.extra_span(epoch, segment).stop > place
        )
