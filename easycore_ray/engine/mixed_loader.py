"""The data loader of a training worker whose batches hold extra rows beside the main ones.

Main rows come from a loader as in any run. Each pass over the extra rows is an epoch of another loader, shuffled by its
number, whose segments and batches are what training takes of it.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import torch

from easycore_ray.data.samples import Samples
from easycore_ray.engine.mixed_segments import MixedSegments, PassSegments
from easycore_ray.engine.segments import Segments

# Ids of extra rows in a batch: apart from those of main rows, and another one in each pass, so that a row which comes
# twice in an epoch has two views. Room for 2**40 extra rows and 2**21 passes.
_EXTRA_IDS = 1 << 61
_IDS_OF_A_PASS = 1 << 40


class BatchSource(Protocol):
    """BatchSource of one kind of a worker: the batches of a ``loader.Loader``."""

    def shuffled(self, epoch: int, segment: int) -> Iterator[Samples]:
        """See ``loader.Loader``."""
        ...

    def ordered(self, segment: int) -> Iterator[Samples]:
        """See ``loader.Loader``."""
        ...


class MixedLoader:
    """Batches of main rows, each with its share of extra rows after them; see ``loader.Loader``.

    Args:
        main: the worker's main rows.
        open_extra: opens the worker's extra rows, cut into segments.
        labels: int64 (C,), the main label of each extra label.
        segments: of an epoch.
    """

    def __init__(
        self,
        main: BatchSource,
        open_extra: Callable[[Segments], BatchSource],
        labels: torch.Tensor,
        segments: MixedSegments,
    ) -> None:
        self.segments: Segments = segments
        self._mixed = segments
        self._main, self._open_extra, self._labels = main, open_extra, labels
        self._scored = open_extra(segments.scored_extra)
        self._passes: dict[int, tuple[PassSegments, BatchSource]] = {}

    def num_batches(self, segment: int) -> int:
        """See ``loader.Loader``."""
        return len(self.segments.batches(segment))

    def shuffled(self, epoch: int, segment: int) -> Iterator[Samples]:
        """See ``loader.Loader``.

        Extra rows have ids of their own in a batch, by sample and pass: views are drawn by (seed, epoch, pass,
        sample_id).
        """
        taken: dict[int, Iterator[Samples]] = {}
        for rows, passes in zip(self._main.shuffled(epoch, segment), self._mixed.passes(epoch, segment), strict=True):
            parts = [rows]
            for number in passes:
                if number not in taken:
                    taken[number] = self._take(number, epoch, segment)
                parts.append(self._as_main(next(taken[number]), number))
            yield Samples(*(torch.cat(column) for column in zip(*parts, strict=True)))
        for batches in taken.values():
            # A loader that is not asked for the end takes its pass for broken off, and begins to read anew.
            assert next(batches, None) is None

    def ordered(self, segment: int) -> Iterator[Samples]:
        """See ``loader.Loader``: segments of the main rows, then those of the extra rows under their own ids."""
        if segment < self.segments.count:
            yield from self._main.ordered(segment)
            return
        for rows in self._scored.ordered(segment - self.segments.count):
            yield rows._replace(labels=self._labels[rows.labels])

    def _take(self, number: int, epoch: int, segment: int) -> Iterator[Samples]:
        """The batches that a segment takes of a pass."""
        if number not in self._passes:
            cut = PassSegments.of(self._mixed, number)
            self._passes = {other: kept for other, kept in self._passes.items() if other == number - 1}
            self._passes[number] = cut, self._open_extra(cut)
        cut, rows = self._passes[number]
        return rows.shuffled(number, cut.place(epoch, segment))

    def _as_main(self, rows: Samples, number: int) -> Samples:
        ids = rows.sample_ids + (_EXTRA_IDS + number * _IDS_OF_A_PASS)
        return Samples(ids, rows.images, self._labels[rows.labels])
