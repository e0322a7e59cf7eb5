"""The data loader of a training worker: its share of the rows, shuffled for training and in order for scoring.

Every row reaches exactly one worker in every epoch, and every worker has the same number of batches,
none of them empty. Ray Train splits a dataset into equal shares and drops the rest (up to
world_size − 1 rows, others each epoch), so padding rows with ``sample_id = −1`` complete it and leave
here, before any model sees them. A share that fits in memory is read once, by its worker, and kept; a
larger one is streamed from Ray Data twice an epoch.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import ray.data
import ray.train
import torch

from easycore_ray.core.seeding import derive_seed, generator
from easycore_ray.data.dataset import Dataset, open_dataset
from easycore_ray.data.samples import Samples, block_of_split, read_split, table_to_samples
from easycore_ray.engine.plan import Fit
from easycore_ray.engine.run_identity import fits_cache
from easycore_ray.engine.segments import Segments
from easycore_ray.engine.shares import Share, _padding

# Rows per forward pass where no gradient of the weights is needed; changes a score by rounding only.
SCORE_BATCH = 256
PAD_ID = -1


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


class MemoryLoader:
    """Rows kept in memory; each epoch is a fresh permutation, cut into segments and nearly equal batches.

    Args:
        rows: the worker's, in any order.
        segments: of an epoch.
        seed: of the order.
        rank: of the worker.
    """

    def __init__(self, rows: Samples, *, segments: Segments, seed: int, rank: int = 0) -> None:
        # In id order, so that a share is the same however it was delivered.
        order = torch.argsort(rows.sample_ids)
        self._rows = Samples(*(column[order] for column in rows))
        self.segments, self._seed, self._rank = segments, seed, rank
        assert len(order) == segments.rows_of_worker(rank)

    def num_batches(self, segment: int) -> int:
        """See ``Loader``."""
        return len(self.segments.batches(segment))

    def shuffled(self, epoch: int, segment: int) -> Iterator[Samples]:
        """See ``Loader``."""
        count = len(self._rows.sample_ids)
        order = torch.randperm(count, generator=generator("order", self._seed, epoch, self._rank))
        places = self.segments.rows(segment, self._rank)
        for chosen in order[places.start : places.stop].split(self.segments.batch_sizes(segment, self._rank)):
            yield Samples(*(column[chosen] for column in self._rows))

    def ordered(self, segment: int) -> Iterator[Samples]:
        """See ``Loader``."""
        places = self.segments.rows(segment, self._rank)
        for start in range(places.start, places.stop, SCORE_BATCH):
            yield Samples(*(column[start : min(start + SCORE_BATCH, places.stop)] for column in self._rows))


class StreamLoader:
    """Rows streamed from this worker's share of a Ray dataset, padding included; its epochs have one segment."""

    def __init__(
        self, shard: ray.data.DataIterator, dataset: Dataset, share: Share, *, segments: Segments, seed: int
    ) -> None:
        self._shard, self._dataset, self._share = shard, dataset, share
        self.segments, self._seed = segments, seed
        self._batch_rows = math.ceil(share.size / segments.num_batches)

    def num_batches(self, segment: int) -> int:
        """See ``Loader``."""
        return len(self.segments.batches(segment))

    def shuffled(self, epoch: int, segment: int) -> Iterator[Samples]:
        """See ``Loader``; shuffles within a buffer, as rows were placed in shards at random."""
        assert segment == 0
        tables = self._shard.iter_batches(
            batch_format="pyarrow",
            batch_size=self._batch_rows,
            # Smaller buffers give short batches mid-stream.
            local_shuffle_buffer_size=max(4096, 2 * self._batch_rows),
            local_shuffle_seed=derive_seed("order", self._seed, epoch, self._share.rank) % 2**31,
        )
        share = self._share
        batches = rebatch(tables, share=share.size, padding=share.padding, num_batches=self.segments.num_batches)
        for table in batches:
            yield table_to_samples(table, self._dataset)

    def ordered(self, segment: int) -> Iterator[Samples]:
        """See ``Loader``."""
        assert segment == 0
        for table in self._shard.iter_batches(batch_format="pyarrow", batch_size=SCORE_BATCH):
            real = drop_padding(table)
            if real.num_rows:
                yield table_to_samples(real, self._dataset)


def drop_padding(table: pa.Table) -> pa.Table:
    """The rows that are samples: those with a ``sample_id`` other than −1."""
    real = table["sample_id"].to_numpy() != PAD_ID
    return table if real.all() else table.filter(pa.array(real))


def rebatch(tables: Iterable[pa.Table], *, share: int, padding: int, num_batches: int) -> Iterator[pa.Table]:
    """Cut a share into exactly ``num_batches`` batches of real rows, none of them empty.

    Args:
        tables: the share in pieces of any size.
        share: rows of the share, padding included.
        padding: most padding rows that may be among them, wherever they lie; at least ``num_batches``
            rows of the share are real.
        num_batches: batches wanted.

    Yields:
        The share cut evenly. The last few batches, more of them the more padding there may be, wait for
        the end and divide what is left, so that none has fewer than half the rows of the others.
    """
    number = np.arange(1, num_batches + 1)
    ends = number * share // num_batches
    fewest = min((share - padding) // num_batches, (share // num_batches + 1) // 2)
    early = np.count_nonzero(share - padding - ends >= (num_batches - number) * fewest)
    sizes = np.diff(ends, prepend=0)[: min(early, num_batches - 1)].tolist()
    held: list[pa.Table] = []
    sent = 0
    for table in tables:
        held.append(drop_padding(table))
        while sent < len(sizes) and sum(part.num_rows for part in held) >= sizes[sent]:
            whole = pa.concat_tables(held)
            yield whole.slice(0, sizes[sent])
            held, sent = [whole.slice(sizes[sent])], sent + 1
    if not held:
        return
    rest = pa.concat_tables(held)
    for at in np.array_split(np.arange(rest.num_rows), num_batches - sent):
        yield rest.slice(int(at[0]), len(at)) if len(at) else rest.slice(0, 0)


class ExactDataConfig(ray.train.DataConfig):
    """Splits a dataset over the workers without losing or doubling a row, in the same order every time.

    It sees the world size at every (re)start of the worker group, so it holds for elastic runs too.
    """

    def __init__(self, num_rows: int, schema: pa.Schema) -> None:
        options = ray.data.ExecutionOptions(preserve_order=True)
        super().__init__(datasets_to_split="all", execution_options=options)
        self._num_rows, self._schema = num_rows, schema

    def configure(self, datasets: dict[str, Any], world_size: int, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        """Complete each dataset to a multiple of the world size, then split it equally."""
        padding = _padding(self._num_rows, world_size)
        if padding:
            pad = ray.data.from_blocks([padding_rows(self._schema, padding)])
            datasets = {name: dataset.union(pad) for name, dataset in datasets.items()}
        return super().configure(datasets, world_size, *args, **kwargs)


def padding_rows(schema: pa.Schema, count: int) -> pa.Table:
    """Rows that only make shares equal: ``sample_id`` −1 (int64), label 0, a black image.

    Args:
        schema: of the dataset's rows.
        count: number of rows, at least 0.
    """
    image = schema.field("image").type
    content = bytes(image.byte_width) if pa.types.is_fixed_size_binary(image) else b""
    columns = {"sample_id": [PAD_ID] * count, "label": [0] * count, "image": [content] * count}
    return pa.table(columns, schema=schema)


def open_loader(fit: Fit, share: Share) -> Loader:
    """This worker's loader: in memory if its share takes at most ``fit.cache_gib`` GiB of uint8 pixels, else streamed.

    A share that is kept is read from the shards themselves, so that Ray Data has nothing to start.
    """
    dataset, seed = open_dataset(fit.dataset), fit.plan.seed
    if not fits_cache(share, dataset, fit.cache_gib):
        whole = Segments(share.num_rows, fit.batch_size, share.num_rows, share.world_size)
        return StreamLoader(ray.train.get_dataset_shard("train"), dataset, share, segments=whole, seed=seed)
    segments = Segments(share.num_rows, fit.batch_size, fit.segment_images, share.world_size)
    ids = block_of_split(dataset, "train", fit.read_sample_ids(), share.rank, share.world_size)
    return MemoryLoader(read_split(dataset, "train", ids), segments=segments, seed=seed, rank=share.rank)
