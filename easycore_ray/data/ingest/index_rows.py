"""The index of a dataset from what was staged: keys, hashes and norms in source order, joined with places.

Reads one staged part after the other, so that this process never holds all keys.
"""

from collections.abc import Collection, Iterator, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from easycore_ray.data.index import INDEX_SCHEMA
from easycore_ray.data.ingest.splits import SPLITS, Placement
from easycore_ray.data.ingest.staging import StagedPart, from_ipc
from easycore_ray.data.shards import Layout
from easycore_ray.storage import paths
from easycore_ray.storage.read_ahead import read_ahead

# Files that are read at the same time: a store answers each request after milliseconds of waiting.
_AHEAD = 16


def index_rows(
    parts: Sequence[StagedPart], placed: Placement, layout: Layout, unnamed: Collection[int]
) -> Iterator[tuple[str, pa.Table]]:
    """Split and rows (``index.INDEX_SCHEMA``) of each part, train before val before test, by id in each.

    Args:
        parts: of the source, in source order.
        placed: where their rows go.
        layout: of the dataset.
        unnamed: pieces whose keys do not tell samples apart: file and row stand for them.
    """
    for split, name in enumerate(SPLITS):
        reads = ((0, partial(_read_rows, place)) for place in _parts_of_split(parts, placed, split))
        for part, rows, table in read_ahead(reads, _AHEAD):
            columns = {
                "split": pa.array(np.full(len(rows), name, object), pa.string()),
                "sample_id": placed.sample_id[rows],
                "key": table["where" if part.piece in unnamed else "key"],
                "label": table["label"].cast(pa.int32()),
                "sha256": _to_hex(_stored_hash(table, layout)),
                "input_norm": _norms(table["squares"], layout),
                "shard": placed.shard[rows],
                "row": placed.row[rows],
            }
            yield name, pa.table(columns, schema=INDEX_SCHEMA)


def read_keys(parts: Sequence[StagedPart], rows: NDArray[np.integer]) -> list[str]:
    """Keys of some rows.

    Args:
        parts: of the source, in source order.
        rows: integers (n,), positions among the usable rows of all parts, in any order.
    """
    stops = np.cumsum([part.num_rows for part in parts])
    part_of_row = np.searchsorted(stops, rows, side="right")
    found = np.empty(len(rows), object)
    for number in np.unique(part_of_row).tolist():
        here = np.flatnonzero(part_of_row == number)
        part, start = parts[number], int(stops[number]) - parts[number].num_rows
        found[here] = _read(part).column("key").take(pa.array(rows[here] - start)).to_pylist()
    return found.tolist()


def _parts_of_split(
    parts: Sequence[StagedPart], placed: Placement, split: int
) -> Iterator[tuple[StagedPart, int, NDArray[np.integer]]]:
    """The parts that have rows of a split: where a part begins, and the positions of these rows in it."""
    start = 0
    for part in parts:
        rows = np.flatnonzero(placed.split[start : start + part.num_rows] == split)
        if len(rows):
            yield part, start, rows
        start += part.num_rows


def _read_rows(
    place: tuple[StagedPart, int, NDArray[np.integer]],
) -> tuple[StagedPart, NDArray[np.integer], pa.Table]:
    part, start, rows = place
    return part, start + rows, _read(part).take(pa.array(rows)).combine_chunks()


def _read(part: StagedPart) -> pa.Table:
    path = part.path + ".rows"
    with paths.damage_named(path), paths.open_input(path) as stream:
        return from_ipc(stream.read_buffer())


def _stored_hash(table: pa.Table, layout: Layout) -> pa.ChunkedArray:
    """Hash of each image as it is stored."""
    if layout.storage == "encoded":
        return table["sha256_encoded"]
    is_tripled = pc.and_(pc.equal(table["channels"], 1), layout.image_shape[0] == 3)
    return pc.if_else(is_tripled, table["sha256_tripled"], table["sha256_pixels"])


def _to_hex(hashes: pa.ChunkedArray) -> pa.Array:
    """Bytes as text."""
    text = b"".join(hashes.to_pylist()).hex()
    width = hashes.type.byte_width * 2
    return pa.array([text[start : start + width] for start in range(0, len(text), width)], pa.string())


def _norms(squares: pa.ChunkedArray, layout: Layout) -> NDArray[np.float64]:
    sums = squares.combine_chunks().flatten().to_numpy().reshape(-1, 3)[:, : layout.image_shape[0]].sum(axis=1)
    return np.sqrt(sums) / 255
