"""The data loader of a training worker: its share of the rows, shuffled for training and in order for scoring.

Every row reaches exactly one worker in every epoch, and every worker has the same number of batches, none of them
empty. A share that fits in memory is read once, by its worker, and kept; a larger one is streamed, read and decoded
ahead by tasks of Ray Data. Which rows are in which batch is arithmetic in both cases, the same after any restart.
"""

import contextlib
import copy
import queue
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from easycore_ray.core.seeding import derive_seed, generator, numpy_rng
from easycore_ray.data.dataset import Dataset, open_dataset
from easycore_ray.data.samples import Samples, block_of_split, read_split
from easycore_ray.data.shards import rows_per_group
from easycore_ray.data.stream import Augmentation, StoredRows, StreamedRows, place_rows, stream_rows
from easycore_ray.data.stream_order import Buffer, cut_blocks, permute_blocks, shuffle_batches, size_buffer
from easycore_ray.engine.mixed_loader import MixedLoader
from easycore_ray.engine.mixed_segments import MixedSegments
from easycore_ray.engine.plan import Fit
from easycore_ray.engine.run_identity import keeps_extra_rows, keeps_rows
from easycore_ray.engine.segments import Segments
from easycore_ray.runtime import cluster

# Rows per forward pass where no gradient of the weights is needed; changes a score by rounding only.
SCORE_BATCH = 256
# Batches made ready while the worker computes.
_BATCHES_AHEAD = 2
_STOP_SECONDS = 0.2


class Loader(Protocol):
    """One worker's rows, in batches: ids int64 (B,), images uint8 (B, C, H, W), labels int64 (B,)."""

    segments: Segments

    def num_batches(self, segment: int) -> int:
        """Training batches of a segment, the same on every worker."""
        ...

    def shuffled(self, epoch: int, segment: int) -> Iterator[Samples]:
        """The ``num_batches`` training batches of a segment; which rows, depends on (seed, epoch, segment, rank) only.

        Over all segments of an epoch, each of the worker's rows comes once.

        Args:
            epoch: from 1.
            segment: from 0.
        """
        ...

    def ordered(self, segment: int) -> Iterator[Samples]:
        """The rows of a segment of a scoring pass in a fixed order, the same in every epoch, in batches of any size."""
        ...


class PrunableLoader(Loader, Protocol):
    """A loader whose epochs may leave rows out."""

    def sample_ids(self) -> NDArray[np.int64]:
        """Ids of the worker's rows, (n,), in the loader's own order."""
        ...

    def part(self, places: NDArray[np.int64], segments: Segments) -> "PrunableLoader":
        """A loader of some of the worker's rows, which reads no others.

        Args:
            places: int64 (m,), ascending, in ``sample_ids``.
            segments: of an epoch of those rows, of all workers.
        """
        ...


class MemoryLoader:
    """Rows kept in memory; each epoch is a fresh permutation, cut into segments and nearly equal batches.

    Args:
        rows: the worker's, in any order.
        segments: of an epoch.
        seed: of the order.
        rank: of the worker.
    """

    def __init__(self, rows: Samples, *, segments: Segments, seed: int, rank: int = 0) -> None:
        # In id order, so that a share is the same however it was delivered; not copied if it is already.
        if not bool((rows.sample_ids[1:] > rows.sample_ids[:-1]).all()):
            order = torch.argsort(rows.sample_ids)
            rows = Samples(*(column[order] for column in rows))
        self._rows = rows
        self._chosen: Tensor | None = None
        """Places int64 (m,) of the rows that are used; None: all."""
        self.segments, self._seed, self._rank = segments, seed, rank
        assert len(rows.sample_ids) == segments.rows_of_worker(rank)

    def sample_ids(self) -> NDArray[np.int64]:
        """See ``PrunableLoader``: (n,), ascending."""
        ids = self._rows.sample_ids
        return (ids if self._chosen is None else ids[self._chosen]).numpy()

    def part(self, places: NDArray[np.int64], segments: Segments) -> Self:
        """See ``PrunableLoader``, which says the shapes; the images are not copied."""
        found, chosen = copy.copy(self), torch.from_numpy(places)
        found._chosen, found.segments = chosen if self._chosen is None else self._chosen[chosen], segments
        assert len(places) == segments.rows_of_worker(self._rank)
        return found

    def num_batches(self, segment: int) -> int:
        """See ``Loader``."""
        return len(self.segments.batches(segment))

    def shuffled(self, epoch: int, segment: int) -> Iterator[Samples]:
        """See ``Loader``."""
        count = self.segments.rows_of_worker(self._rank)
        order = torch.randperm(count, generator=generator("order", self._seed, epoch, self._rank))
        order = order if self._chosen is None else self._chosen[order]
        places = self.segments.rows(segment, self._rank)
        for chosen in order[places.start : places.stop].split(self.segments.batch_sizes(segment, self._rank)):
            yield Samples(*(column[chosen] for column in self._rows))

    def ordered(self, segment: int) -> Iterator[Samples]:
        """See ``Loader``."""
        places = self.segments.rows(segment, self._rank)
        for start in range(places.start, places.stop, SCORE_BATCH):
            yield Samples(*(column[start : min(start + SCORE_BATCH, places.stop)] for column in self._rows))


class StreamLoader:
    """Rows streamed from their shards, decoded by Ray Data and shuffled here.

    A pass goes on in the background from segment to segment, so that the first batches of the next are ready when the
    work between two is done.

    Args:
        rows: the worker's, in stored order.
        dataset: they belong to.
        segments: of an epoch.
        seed: of order and augmentation.
        rank: of the worker.
        augment: draw the views of training batches while images are decoded.
        pin: put batches in memory from which a GPU fetches by itself.
        streams: of each worker that are read at the same time.
    """

    def __init__(
        self,
        rows: StoredRows,
        dataset: Dataset,
        *,
        segments: Segments,
        seed: int,
        rank: int = 0,
        augment: bool = False,
        pin: bool = False,
        streams: int = 1,
    ) -> None:
        self.segments = segments
        self._rows = rows
        self._of_rows = partial(StreamLoader, dataset=dataset, seed=seed, rank=rank, augment=augment, pin=pin,
                                streams=streams)  # fmt: skip
        self._source = _Source(rows, dataset, segments, seed, rank, augment=augment, pin=pin, streams=streams)
        self._ahead: _Ahead | None = None
        self._next: tuple[int, int] | None = None
        assert len(rows.row) == segments.rows_of_worker(rank)

    def sample_ids(self) -> NDArray[np.int64]:
        """See ``PrunableLoader``: (n,), in stored order; ``place_rows`` must have been asked for them."""
        assert self._rows.sample_ids is not None
        return self._rows.sample_ids

    def part(self, places: NDArray[np.int64], segments: Segments) -> "StreamLoader":
        """See ``PrunableLoader``, which says the shapes."""
        rows = self._rows._replace(
            shard=self._rows.shard[places], row=self._rows.row[places], sample_ids=self.sample_ids()[places]
        )
        return self._of_rows(rows, segments=segments)

    def num_batches(self, segment: int) -> int:
        """See ``Loader``."""
        return len(self.segments.batches(segment))

    def shuffled(self, epoch: int, segment: int) -> Iterator[Samples]:
        """See ``Loader``."""
        yield from self._segment(epoch, segment, self.num_batches(segment))

    def ordered(self, segment: int) -> Iterator[Samples]:
        """See ``Loader``."""
        rows = len(self.segments.rows(segment, self._source.rank))
        yield from self._segment(_SCORING, segment, -(-rows // SCORE_BATCH))

    def _segment(self, epoch: int, segment: int, count: int) -> Iterator[Samples]:
        """The batches of a segment, from the pass under way if it has come to it."""
        if self._ahead is None or self._next != (epoch, segment):
            self.close()
            self._ahead = _Ahead(self._source.batches(epoch, segment), _BATCHES_AHEAD)
        self._next, done = None, False
        try:
            yield from islice(self._ahead, count)
            done = True
        finally:
            self._next = (epoch, segment + 1)
            if not done or segment + 1 == self.segments.count:
                self.close()

    def close(self) -> None:
        """Stop what is under way."""
        if self._ahead is not None:
            self._ahead.close()
        self._ahead = self._next = None

    def __del__(self) -> None:
        self.close()


_SCORING = 0
"""In the place of an epoch: the scoring pass, in stored order."""


class _Source:
    """Makes the batches of a pass; see ``StreamLoader``."""

    def __init__(
        self,
        rows: StoredRows,
        dataset: Dataset,
        segments: Segments,
        seed: int,
        rank: int,
        *,
        augment: bool,
        pin: bool,
        streams: int = 1,
    ) -> None:
        self.rank = rank
        self._rows, self._layout, self._segments, self._seed = rows, dataset.layout, segments, seed
        self._augment, self._pin, self._streams = augment, pin, streams * segments.world_size
        self._blocks = cut_blocks(rows.shard, rows.row, rows.group_rows)
        block_rows = len(rows.row) / max(len(self._blocks) - 1, 1)
        self._buffer = size_buffer(segments.num_rows, block_rows, segments.world_size)

    def batches(self, epoch: int, segment: int) -> Iterator[Samples]:
        """Batches of the segments that are left of a pass, from this one on."""
        training = epoch != _SCORING
        order = permute_blocks(self._blocks, self._seed, epoch, self.rank) if training else np.arange(self._blocks[-1])
        left = range(segment, self._segments.count)
        places = [self._segments.rows(number, self.rank) for number in left]
        stream = _Pieces(
            stream_rows(
                self._rows,
                order[places[0].start : places[-1].stop],
                self._layout,
                augmentation=Augmentation(self._seed, epoch) if training and self._augment else None,
                streams=self._streams,
            )
        )
        pool = _Pool(
            self._layout.image_shape, rows_held(self._segments, self._buffer, self.rank) if training else SCORE_BATCH
        )
        for number, segment_rows in zip(left, places, strict=True):
            plan = self._shuffled(epoch, number) if training else _in_order(len(segment_rows))
            pool.start(len(segment_rows))
            for entered, leaving in plan:
                while pool.entered < entered:
                    pool.enter(stream.take(entered - pool.entered))
                yield pool.leave(leaving, self._pin)

    def _shuffled(self, epoch: int, segment: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
        rng = numpy_rng("buffer", self._seed, epoch, segment, self.rank)
        return shuffle_batches(self._segments.batch_sizes(segment, self.rank), self._buffer, rng)


def rows_held(segments: Segments, buffer: Buffer, rank: int) -> int:
    """Rows of a worker's shuffle buffer: it never holds less than two batches, nor more than a segment."""
    sizes = [segments.batch_sizes(segment, rank) for segment in range(segments.count)]
    largest = max((size for batches in sizes for size in batches), default=0)
    return min(max(buffer.full, buffer.start, 2 * largest), max(map(sum, sizes)))


def _in_order(count: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    for start in range(0, count, SCORE_BATCH):
        stop = min(start + SCORE_BATCH, count)
        yield stop, np.arange(start, stop)


class _Pieces:
    """Rows of a stream, handed out in pieces of at most some size."""

    def __init__(self, stream: Iterator[StreamedRows]) -> None:
        self._stream = stream
        self._held: StreamedRows | None = None

    def take(self, most: int) -> StreamedRows:
        """The next rows, at least one and at most so many."""
        rows = next(self._stream) if self._held is None else self._held
        self._held = _part(rows, slice(most, None)) if len(rows.labels) > most else None
        return _part(rows, slice(most))


def _part(rows: StreamedRows, span: slice) -> StreamedRows:
    return StreamedRows(rows.sample_ids[span], rows.images[span], rows.labels[span])


class _Pool:
    """The shuffle buffer: rows of a segment enter in order and leave by their positions in it.

    Args:
        image_shape: (channels, height, width).
        capacity: rows that it holds at most.
    """

    def __init__(self, image_shape: tuple[int, int, int], capacity: int) -> None:
        self._images = _empty((capacity, *image_shape))
        self._free = np.arange(capacity)
        """Places of rows; the first ``_num_free`` are free."""
        self._num_free = capacity

    def start(self, num_rows: int) -> None:
        """Begin a segment of so many rows; those of the last one have left."""
        self.entered = 0
        self._place, self._ids, self._labels = (np.empty(num_rows, np.int64) for _ in range(3))

    def enter(self, rows: StreamedRows) -> None:
        """Keep the next rows of the segment."""
        count = len(rows.labels)
        self._num_free -= count
        places = self._free[self._num_free : self._num_free + count].copy()
        span = slice(self.entered, self.entered + count)
        self._place[span], self._ids[span], self._labels[span] = places, rows.sample_ids, rows.labels
        self._images.numpy()[places] = rows.images
        self.entered += count

    def leave(self, positions: NDArray[np.int64], pin: bool) -> Samples:
        """The rows at these positions of the segment, int64 (B,), in memory of their own."""
        places = self._place[positions]
        images = _empty((len(places), *self._images.shape[1:]), pin)
        torch.index_select(self._images, 0, torch.from_numpy(places), out=images)
        self._free[self._num_free : self._num_free + len(places)] = places
        self._num_free += len(places)
        return Samples(torch.from_numpy(self._ids[positions]), images, torch.from_numpy(self._labels[positions]))


def _empty(shape: tuple[int, ...], pin: bool = False) -> Tensor:
    """Memory for images. NumPy asks for huge pages; the system takes longer to give small ones than to fill them."""
    if pin:
        return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
    return torch.from_numpy(np.empty(shape, np.uint8))


class _Ahead:
    """Iterates over what a thread makes ready meanwhile.

    Args:
        items: iterated in the thread; what it raises is raised here.
        depth: items that are ready at most.
    """

    def __init__(self, items: Iterator[Samples], depth: int) -> None:
        self._ready: queue.Queue[Any] = queue.Queue(depth)
        self._stop = threading.Event()
        threading.Thread(target=_fill, args=(items, self._ready, self._stop), daemon=True).start()

    def __iter__(self) -> Iterator[Samples]:
        return self

    def __next__(self) -> Samples:
        item = self._ready.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Let the thread end, without waiting for it."""
        self._stop.set()
        with contextlib.suppress(queue.Empty):
            while True:
                self._ready.get_nowait()


def _fill(items: Iterator[Samples], ready: queue.Queue[Any], stop: threading.Event) -> None:
    """Put items, and last what ended them, where ``_Ahead`` takes them from."""
    try:
        for item in items:
            _put(ready, item, stop)
            if stop.is_set():
                return
        end: BaseException = StopIteration()
    except BaseException as error:
        end = error
    _put(ready, end, stop)


def _put(ready: queue.Queue[Any], item: Any, stop: threading.Event) -> None:
    while not stop.is_set():
        with contextlib.suppress(queue.Full):
            ready.put(item, timeout=_STOP_SECONDS)
            return


def describe_streaming(fit: Fit, workers: int) -> str | None:
    """What streaming costs each of so many workers, for people; None if they keep their rows."""
    found = []
    keeps, keeps_extra = rows_in_memory(fit, workers)
    if not keeps:
        found.append(f"images are streamed; {_describe_buffer(open_dataset(fit.dataset), fit.segments(workers))}")
    if not keeps_extra:
        assert fit.extra is not None
        # As large as for passes of their own.
        segments = Segments(fit.extra.num_rows, fit.extra.batch_rows, fit.segment_images, workers)
        found.append(f"extra images are streamed; {_describe_buffer(open_dataset(fit.extra.dataset), segments)}")
    return "; ".join(found) or None


def _describe_buffer(dataset: Dataset, segments: Segments) -> str:
    rows = max(entry["rows"] for entry in dataset.manifest["shards"]["train"])
    group = max(rows_per_group(entry["rows"], entry["bytes"]) for entry in dataset.manifest["shards"]["train"])
    # Of a coreset fewer rows of each row group are wanted.
    wanted = max(1.0, min(group, rows) * segments.num_rows / max(dataset.num_rows("train"), 1))
    held = rows_held(segments, size_buffer(segments.num_rows, wanted, segments.world_size), rank=0)
    size = held * dataset.layout.image_bytes / 2**20
    return f"each worker's shuffle buffer holds about {held:,} of them, {size:,.0f} MiB"


def rows_in_memory(fit: Fit, workers: int) -> tuple[bool, bool]:
    """Whether each of so many workers keeps its rows, and its extra rows; True where it has none."""
    dataset, cache = open_dataset(fit.dataset), (workers, fit.cache_gib, fit.plan.augment)
    keeps = keeps_rows(dataset, fit.num_rows, *cache)
    if fit.extra is None:
        return keeps, True
    extra = open_dataset(fit.extra.dataset)
    return keeps, keeps_extra_rows(dataset, fit.num_rows, extra, fit.extra.num_rows, *cache)


def open_loader(fit: Fit, rank: int = 0, world_size: int = 1, *, rows: Samples | None = None) -> Loader:
    """A worker's loader: in memory if its share takes at most ``fit.cache_gib`` GiB of uint8 pixels, else streamed.

    A share that is kept is read from the shards themselves, so that Ray Data has nothing to start.

    Args:
        fit: the run.
        rank: of the worker.
        world_size: number of workers.
        rows: of the worker, where they are in memory already; without extra rows.
    """
    segments, seed = fit.segments(world_size), fit.plan.seed
    keeps, keeps_extra = (True, True) if rows is not None and fit.extra is None else rows_in_memory(fit, world_size)
    how: dict[str, Any] = {"rank": rank, "world_size": world_size, "augment": fit.plan.augment == "imagenet",
                           "with_ids": fit.prune_ratio is not None}  # fmt: skip
    how["streams"] = max(1, (not keeps) + (not keeps_extra))
    if rows is not None:
        main: Loader = MemoryLoader(rows, segments=segments, seed=seed, rank=rank)
    else:
        main = _opener(open_dataset(fit.dataset), fit.read_sample_ids(), keeps=keeps, **how)(segments, seed)
    if not isinstance(segments, MixedSegments):
        return main
    assert fit.extra is not None
    open_rows = _opener(open_dataset(fit.extra.dataset), fit.read_extra_ids(), keeps=keeps_extra, **how)
    # Passes over two datasets of one size are no more alike than two epochs.
    extra_seed = derive_seed("extra", seed)
    return MixedLoader(main, lambda cut: open_rows(cut, extra_seed), torch.tensor(fit.extra.labels), segments)


def _opener(
    dataset: Dataset,
    sample_ids: NDArray[np.integer] | None,
    *,
    rank: int,
    world_size: int,
    keeps: bool,
    augment: bool,
    streams: int,
    with_ids: bool = False,
) -> Callable[[Segments, int], Loader]:
    """Reads or locates a worker's share once; gives the loader of any segments of it, and a seed."""
    own = (dataset, "train", sample_ids, rank, world_size)
    if keeps:
        rows = read_split(dataset, "train", block_of_split(*own))
        return lambda segments, seed: MemoryLoader(rows, segments=segments, seed=seed, rank=rank)
    cluster.connect()
    # Ids are asked for by what prunes epochs, which goes without extra rows.
    places, pin = place_rows(*own, with_ids=with_ids), torch.cuda.is_available()
    return lambda segments, seed: StreamLoader(
        places, dataset, segments=segments, seed=seed, rank=rank, augment=augment, pin=pin, streams=streams
    )
