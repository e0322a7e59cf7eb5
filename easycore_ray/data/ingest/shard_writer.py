"""The second half of an import's external sort: shards, each made of a range of hashes of every staging file.

Takes staged parts and the place of every row, writes the shards as plain Ray tasks. Rows go from file to file; a task
holds about twice the images of its shard, this process none.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from easycore_ray.data import shards
from easycore_ray.data.index import shard_path
from easycore_ray.data.ingest.splits import Placement
from easycore_ray.data.ingest.staging import StagedPart, read_batches
from easycore_ray.data.shards import Layout
from easycore_ray.runtime.tasks import TaskResources, map_tasks
from easycore_ray.storage import paths
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.storage.read_ahead import read_ahead

# Arguments of a task are some 16 bytes a row; more tasks than run at once need not hold theirs.
_IN_FLIGHT = 64
# Ranges of remote staging files that are fetched at the same time.
_AHEAD = 4
_COLUMNS = ["label", "image", "sums", "squares"]


class WrittenShard(NamedTuple):
    """Bytes of a shard's file; sums and sums of squares of its pixels, by channel."""

    num_bytes: int
    sums: list[int]
    squares: list[int]


def write_shards(
    parts: Sequence[StagedPart], hashes: NDArray[np.uint64], placed: Placement, *, layout: Layout, out: str
) -> list[WrittenShard]:
    """Write all shards below ``out``.

    Args:
        parts: of the source.
        hashes: uint64 (N,), of the rows of all parts in their order.
        placed: where they go.
        layout: of the dataset.
        out: folder of the dataset.

    Returns:
        The result of each shard, in order of ``placed.names``.
    """
    ends = np.cumsum([part.num_rows for part in parts])

    def items() -> Iterator[tuple[object, ...]]:
        for name, rows in zip(placed.names, placed.rows_of_shards(), strict=True):
            sources = list(_sources(parts, np.searchsorted(ends, rows, side="right"), hashes[rows]))
            yield paths.join(out, shard_path(*name)), layout, sources, hashes[rows], placed.sample_id[rows]

    counts = [len(rows) for rows in placed.rows_of_shards()]
    resources = TaskResources(in_flight=_IN_FLIGHT)
    return map_tasks(write_shard, items(), label="write", resources=resources, rows=counts, unit="images")


def _sources(
    parts: Sequence[StagedPart], part_of_row: NDArray[np.integer], hashes: NDArray[np.uint64]
) -> Iterator[tuple[str, int, int]]:
    """For each part that has rows of a shard: its file, and start and end of the bytes they lie in."""
    order = np.argsort(part_of_row, kind="stable")
    numbers, starts = np.unique(part_of_row[order], return_index=True)
    for number, rows in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
        yield parts[number].path, *parts[number].batches_of(hashes[rows[0]], hashes[rows[-1]])


def write_shard(
    path: str,
    layout: Layout,
    sources: Sequence[tuple[str, int, int]],
    hashes: NDArray[np.uint64],
    sample_ids: NDArray[np.int64],
) -> WrittenShard:
    """Write the rows of these hashes to one shard.

    Args:
        path: of the shard.
        layout: of the dataset.
        sources: staging files, and start and end of the bytes to read of each.
        hashes: uint64 (n,), ascending: of the rows, in the order in which they will lie.
        sample_ids: int64 (n,), of the rows.

    Raises:
        EasyCoreError: a staging file is gone, damaged or lacks a row.
    """
    form = "pixels" if layout.storage == "raw" else "encoded"
    tables: list[pa.Table] = []
    positions = [np.empty(0, np.intp)]
    for content in _fetch_all(sources):
        for batch in read_batches(content):
            found = batch["hash"].to_numpy()
            at = np.minimum(np.searchsorted(hashes, found), len(hashes) - 1)
            wanted = hashes[at] == found
            if wanted.any():
                chosen = pa.table([batch[name] for name in ("label", form, "sums", "squares")], names=_COLUMNS)
                tables.append(chosen.filter(pa.array(wanted)))
                positions.append(at[wanted])
    at = np.concatenate(positions)
    if len(at) != len(hashes) or sum(table["image"].null_count for table in tables):
        raise EasyCoreError(f"{path} cannot be written: its rows are not all in the staging files; run again")
    table = pa.concat_tables(tables).combine_chunks()
    tables.clear()
    sums, squares = (table[name].combine_chunks().flatten().to_numpy().reshape(-1, 3) for name in ("sums", "squares"))
    rows = pa.table([pa.array(sample_ids[at]), table["label"], table["image"]], names=shards.COLUMNS)
    size = shards.write_rows(path, layout, rows, np.argsort(at))
    return WrittenShard(size, sums.sum(axis=0).tolist(), squares.sum(axis=0).tolist())


def _fetch_all(sources: Sequence[tuple[str, int, int]]) -> Iterator[pa.Buffer]:
    """The bytes of each source: local files are mapped, of remote ones the next are fetched meanwhile."""
    if not paths.is_remote(sources[0][0]):
        return map(_fetch, sources)
    return read_ahead(((stop - start, partial(_fetch, (path, start, stop))) for path, start, stop in sources), _AHEAD)


def _fetch(source: tuple[str, int, int]) -> pa.Buffer:
    path, start, stop = source
    with paths.damage_named(path), paths.open_input(path) as stream:
        stream.seek(start)
        return stream.read_buffer(stop - start)
