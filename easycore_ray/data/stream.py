"""Rows of a dataset as a stream: read and decoded by tasks of Ray Data, in an order that is given.

Every worker streams its own rows, from its own tasks, so that there is nobody to hand rows out. Tasks that decode take
a CPU each, wherever the cluster has one; those that only read take none, since training workers may hold them all.
"""

import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray
import ray.data
from numpy.typing import NDArray
from ray.data import ExecutionResources
from ray.util.annotations import RayDeprecationWarning
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from easycore_ray.data import shards, views
from easycore_ray.data.dataset import Dataset, locate_samples, part_in_stored_order
from easycore_ray.data.shards import Layout
from easycore_ray.storage import paths
from easycore_ray.storage.read_ahead import read_ahead

# Uint8 pixels of an output block, less where the object store is small. A task has several: starting one costs as much
# as decoding some ten images.
_BLOCK_BYTES = 16 << 20
_BLOCKS_PER_TASK = 6
# A share of few rows is still read by several tasks at a time.
_LEAST_TASKS = 16
# Ray Data is given a task's rows as one object each, which takes a millisecond; more tasks are given later.
_TASKS_AT_ONCE = 256
# Tasks of a stream that decode or wait for a CPU: as many as its share of CPUs and two, or this many if that is more,
# if their blocks fit into half of its object store.
_LEAST_WAITING, _ENOUGH_WAITING = 2, 10
# Tasks at a time that reserve no CPU.
_READERS = 4
# Of the cluster's object stores, for the streams of all workers together.
_STORE_SHARE = 0.5
_MOST_STORE_BYTES = 8 << 30
# Blocks of remote shards that a task fetches at the same time.
_FETCHES = 16


class StoredRows(NamedTuple):
    """Where rows lie, in stored order."""

    paths: list[str]
    """Of all shards of the split."""
    shard: NDArray[np.int32]
    """(n,), ascending."""
    row: NDArray[np.int32]
    """(n,), position in the shard, ascending within a shard."""
    group_rows: list[int]
    """Rows of a row group, for each shard."""
    sample_ids: NDArray[np.int64] | None = None
    """(n,), where they were asked for."""


class StreamedRows(NamedTuple):
    """Some rows of a stream, in memory that may not be written."""

    sample_ids: NDArray[np.int64]
    """(n,)."""
    images: NDArray[np.uint8]
    """(n, channels, height, width)."""
    labels: NDArray[np.int32]
    """(n,)."""


class Augmentation(NamedTuple):
    """Draws of the views for training, see ``views.view_draws``."""

    seed: int
    epoch: int


def place_rows(
    dataset: Dataset,
    split: str,
    sample_ids: NDArray[np.integer] | None,
    number: int = 0,
    count: int = 1,
    *,
    with_ids: bool = False,
) -> StoredRows:
    """Where the rows of ``samples.block_of_split`` lie; arguments and errors as there.

    Args:
        dataset: where to look.
        split: train, val or test.
        sample_ids: integers (N,), unique, in any order; all of the split if None.
        number: of the part, 0 .. count − 1.
        count: of parts.
        with_ids: also say which samples they are of.
    """
    places = locate_samples(dataset, split, sample_ids, ["shard", "row", *["sample_id"] * with_ids])
    chosen = part_in_stored_order(places, number, count)
    shard, row = places["shard"].to_numpy()[chosen], places["row"].to_numpy()[chosen]
    group_rows = [shards.rows_per_group(entry["rows"], entry["bytes"]) for entry in dataset.manifest["shards"][split]]
    ids = places["sample_id"].to_numpy()[chosen] if with_ids else None
    return StoredRows(dataset.shards(split), shard, row, group_rows, ids)


def stream_rows(
    rows: StoredRows,
    positions: NDArray[np.integer],
    layout: Layout,
    *,
    augmentation: Augmentation | None = None,
    streams: int = 1,
) -> Iterator[StreamedRows]:
    """The rows at these positions, in this order, decoded ahead by Ray Data tasks.

    Args:
        rows: where they lie.
        positions: integers (n,) in ``rows``.
        layout: of the dataset.
        augmentation: draws of the views for training; centre views without.
        streams: that are read at the same time, which share the object store.

    Yields:
        Pieces of any size, in memory of the object store.

    Raises:
        EasyCoreError: a shard is missing or damaged, or an image cannot be decoded; names them.
    """
    store = ray.cluster_resources().get("object_store_memory", 0.0) * _STORE_SHARE / streams
    store = min(store, _MOST_STORE_BYTES)
    block_bytes = min(_BLOCK_BYTES, int(store / 2 / _LEAST_WAITING / _BLOCKS_PER_TASK))
    block_bytes = max(block_bytes, layout.image_bytes)
    tasks = _cut_tasks(rows, positions, layout, block_bytes)
    arguments = {"layout": layout, "augmentation": augmentation, "block_bytes": block_bytes}
    cpus = 1 if takes_cpus(layout, augmentation is not None) else 0
    parts = [tasks[start : start + _TASKS_AT_ONCE] for start in range(0, len(tasks), _TASKS_AT_ONCE)]
    data = _ray_data(parts[0], arguments, cpus, store, streams) if parts else None
    for number in range(len(parts)):
        assert data is not None
        tables = iter(data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2))
        first = next(tables)
        # Prepared while the tasks of this one run.
        data = _ray_data(parts[number + 1], arguments, cpus, store, streams) if number + 1 < len(parts) else None
        yield from _to_rows(first, layout)
        for table in tables:
            yield from _to_rows(table, layout)


def takes_cpus(layout: Layout, augments: bool) -> bool:
    """Whether a stream needs a CPU that nobody has reserved: for decoding, or to draw views for training."""
    return layout.storage != "raw" or augments


def _cut_tasks(
    rows: StoredRows, positions: NDArray[np.integer], layout: Layout, block_bytes: int
) -> list[dict[str, Any]]:
    """Paths and row positions that a task reads, in order."""
    size = max(1, min(_BLOCKS_PER_TASK * block_bytes // layout.image_bytes, -(-len(positions) // _LEAST_TASKS)))
    tasks = []
    for start in range(0, len(positions), size):
        chosen = positions[start : start + size]
        shard, row = rows.shard[chosen], rows.row[chosen]
        group = row // np.asarray(rows.group_rows)[shard]
        ends = np.flatnonzero((np.diff(shard) != 0) | (np.diff(group) != 0)) + 1
        pieces = np.split(np.arange(len(chosen)), ends)
        tasks.append({
            "paths": [rows.paths[shard[piece[0]]] for piece in pieces],
            "rows": [row[piece].astype(np.int32).tobytes() for piece in pieces],
        })  # fmt: skip
    return tasks


def _ray_data(
    tasks: list[dict[str, Any]], arguments: dict[str, Any], cpus: int, store: float, streams: int
) -> ray.data.Dataset:
    """A Ray dataset of these tasks, not started."""
    block_bytes = arguments["block_bytes"]
    # Ray Data notices the end of a task up to 0.2 s late and submits no more tasks than there are CPUs. It is told that
    # they take none, so that some wait in Ray itself, for any CPU that becomes free. There the first is served first
    # only among tasks of equal demands, and Ray Data would ask for the memory that it sees them take.
    wanted = max(_ENOUGH_WAITING, int(ray.cluster_resources().get("CPU", 0.0) / streams) + 2)
    waiting = max(_LEAST_WAITING, min(wanted, int(store / 2 / (_BLOCKS_PER_TASK * block_bytes))))
    # What reserves no CPU could run on a head that has none to give; it reads where its rows are used.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    place = "SPREAD" if cpus else here
    items = ray.data.from_items(tasks, override_num_blocks=len(tasks))
    with warnings.catch_warnings():
        # Deprecated, to go with Ray 2.64; nothing else takes its place yet.
        warnings.filterwarnings("ignore", message=".*ray_remote_args_fn", category=RayDeprecationWarning)
        data = items.map_batches(
            read_and_decode,
            batch_size=None,
            batch_format="pyarrow",
            fn_kwargs=arguments,
            num_cpus=0,
            ray_remote_args_fn=partial(dict, num_cpus=cpus, memory=block_bytes, scheduling_strategy=place),
            concurrency=min(waiting if cpus else _READERS, len(tasks)),
        )
    context = data.context
    context.enable_progress_bars = context.enable_operator_progress_bars = False
    # Blocks leave a task as soon as they have this size, and no task waits for a reader of its blocks: it would keep a
    # CPU from the stream of a worker for which that reader waits.
    context.target_max_block_size = block_bytes
    context._max_num_blocks_in_streaming_gen_buffer = _BLOCKS_PER_TASK + 1
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=store)
    return data


def read_and_decode(
    tasks: pa.Table, layout: Layout, augmentation: Augmentation | None, block_bytes: int
) -> Iterator[pa.Table]:
    """Read and decode the rows of tasks, for ``ray.data``: sample_id int64, label int32, image as uint8 pixels.

    Args:
        tasks: ``paths`` of shards and ``rows``, for each the row positions as int32 bytes.
        layout: of the dataset.
        augmentation: see ``stream_rows``.
        block_bytes: pixels of a block.
    """
    size = -(-block_bytes // layout.image_bytes)
    for task in tasks.to_pylist():
        pieces = [(path, np.frombuffer(rows, np.int32)) for path, rows in zip(task["paths"], task["rows"], strict=True)]
        block = _Block(layout, size)
        for (path, _), table in zip(pieces, _read_pieces(pieces), strict=True):
            while len(table):
                part, table = table.slice(0, block.room), table.slice(block.room)
                block.add(part, path, augmentation)
                if not block.room:
                    yield block.table()
                    block = _Block(layout, size)
        if len(block):
            yield block.table()


class _Block:
    """Decoded rows of an output block.

    Args:
        layout: of the dataset.
        capacity: rows that it takes.
    """

    def __init__(self, layout: Layout, capacity: int) -> None:
        self._layout = layout
        self._images = np.empty((capacity, *layout.image_shape), np.uint8)
        self._rows: list[pa.Table] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def room(self) -> int:
        """Rows that it still takes."""
        return len(self._images) - self._count

    def add(self, table: pa.Table, path: str, augmentation: Augmentation | None) -> None:
        """Decode these rows of a shard."""
        draws = None
        if augmentation is not None:
            draws = views.view_draws(augmentation.seed, augmentation.epoch, table["sample_id"].to_numpy())
        stop = self._count + len(table)
        shards.pixels(table, self._layout, path, draws, out=self._images[self._count : stop])
        self._rows.append(table.drop_columns("image"))
        self._count = stop

    def table(self) -> pa.Table:
        """All rows, with uint8 pixels as their images."""
        rows, pixels = pa.concat_tables(self._rows).combine_chunks(), pa.py_buffer(self._images[: self._count])
        kind = pa.binary(self._layout.image_bytes)
        return rows.append_column("image", pa.FixedSizeBinaryArray.from_buffers(kind, len(rows), [None, pixels]))


def _read_pieces(pieces: list[tuple[str, NDArray[np.int32]]]) -> Iterator[pa.Table]:
    if not paths.is_remote(pieces[0][0]):
        yield from (shards.read_rows(*piece) for piece in pieces)
        return
    yield from read_ahead(((0, partial(shards.read_rows, *piece)) for piece in pieces), _FETCHES)


def _to_rows(table: pa.Table, layout: Layout) -> Iterator[StreamedRows]:
    """The chunks of a table of decoded rows, not copied."""
    for batch in table.to_batches():
        size = layout.image_bytes
        image = batch["image"]
        images = np.frombuffer(image.buffers()[1], np.uint8, len(batch) * size, image.offset * size)
        yield StreamedRows(
            batch["sample_id"].to_numpy(), images.reshape(len(batch), *layout.image_shape), batch["label"].to_numpy()
        )
