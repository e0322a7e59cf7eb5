"""Files of a coreset: its rows in Parquet, and for use elsewhere ids as NumPy and source keys as text."""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from easycore_ray.data import index as dataset_index
from easycore_ray.selection.partitions import Batch
from easycore_ray.storage import paths
from easycore_ray.storage.errors import EasyCoreError

_ROW_GROUP_ROWS = 1 << 20

CORESET_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.int64(), nullable=False),
        pa.field("score", pa.float64()),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("key", pa.string()),
    ]
)
"""Rows of a coreset. Score is null for methods that use none."""


def write_coreset_rows(batches: Iterable[Batch], path: str, index: str | None) -> dict[str, Any] | None:
    """Write kept rows as one file, and say what is in it; None, and no file, if there are none.

    Ids and labels are stored as deltas and scores plain, uncompressed: they are written and read at memory speed.

    Args:
        batches: rows in id order, with labels.
        path: of the file.
        index: dataset whose index knows the source keys; None leaves the column out.

    Returns:
        ``path`` (its last part), ``rows, first_id, last_id, sha256`` and ``class_histogram``.
    """
    groups = _merge(batches, _ROW_GROUP_ROWS)
    head = next(groups, None)
    if head is None:
        return None
    schema = CORESET_SCHEMA if index is not None else pa.schema([s for s in CORESET_SCHEMA if s.name != "key"])
    rows, histogram, last = 0, np.zeros(0, np.int64), head[0]
    with paths.staged(path) as local, ThreadPoolExecutor(1) as aside:
        flushed = []
        with _writer(local, schema) as writer:
            for group in itertools.chain([head], groups):
                table = _table(group, schema, index)
                writer.write_table(table, row_group_size=_ROW_GROUP_ROWS)
                # The disk works while the next rows are made, and the last while all are hashed.
                flushed.append(aside.submit(paths.flush, local))
                counts = [np.bincount(batch.labels) for batch in group if batch.labels is not None]
                histogram = _sum_padded([histogram, *counts])
                rows, last = rows + table.num_rows, group[-1]
        with Path(local).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        for flush in flushed:
            flush.result()
    return {
        "path": path.rsplit("/", 1)[-1],
        "rows": rows,
        "first_id": int(head[0].sample_ids[0]),
        "last_id": int(last.sample_ids[-1]),
        "sha256": digest,
        "class_histogram": histogram.tolist(),
    }


def _writer(local: str, schema: pa.Schema) -> pq.ParquetWriter:
    delta = {"sample_id": "DELTA_BINARY_PACKED", "label": "DELTA_BINARY_PACKED", "score": "PLAIN"}
    compression = dict.fromkeys(delta, "NONE") | {"key": "zstd"}
    return pq.ParquetWriter(
        local,
        schema,
        use_dictionary=False,
        column_encoding=delta,
        compression={name: compression[name] for name in schema.names},
        write_statistics=["sample_id"],
        # Pages of half a MiB, which stay in a processor's cache while they are made.
        max_rows_per_page=1 << 16,
    )


def _merge(batches: Iterable[Batch], rows: int) -> Iterator[list[Batch]]:
    """The same batches, so many together as have at least ``rows``, but for the last; none is empty."""
    held: list[Batch] = []
    count = 0
    for batch in batches:
        if len(batch.sample_ids):
            held.append(batch)
            count += len(batch.sample_ids)
        if count >= rows:
            yield held
            held, count = [], 0
    if held:
        yield held


def _table(batches: Sequence[Batch], schema: pa.Schema, index: str | None) -> pa.Table:
    """Rows of a coreset, with their source keys if there is an index to look in; nothing is copied."""
    ids = pa.chunked_array([pa.array(batch.sample_ids) for batch in batches])
    scores = [pa.array(batch.scores) for batch in batches if batch.scores is not None]
    columns: dict[str, Any] = {
        "sample_id": ids,
        "score": pa.chunked_array(scores) if scores else pa.nulls(len(ids), pa.float64()),
        "label": pa.chunked_array([pa.array(batch.labels) for batch in batches]),
    }
    if index is not None:
        columns["key"] = _source_keys(index, ids.to_numpy())
    return pa.table(columns, schema=schema)


def _source_keys(index: str, ids: NDArray[np.int64]) -> pa.ChunkedArray:
    rows = dataset_index.read_index_range(index, "train", int(ids[0]), int(ids[-1]), ["sample_id", "key"])
    known = rows["sample_id"].to_numpy()
    at = np.minimum(np.searchsorted(known, ids), max(len(known) - 1, 0))
    if not len(known) or not np.array_equal(known[at], ids):
        raise EasyCoreError(f"{index} lacks some of the chosen samples; do dataset and scores belong together?")
    return rows["key"].take(at)


def _sum_padded(counts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Sum of counts of different lengths."""
    size = max(map(len, counts))
    return np.sum([np.pad(count, (0, size - len(count))) for count in counts], axis=0)


def write_exports(out: str, files: Sequence[dict[str, Any]]) -> str:
    """Write ``sample_ids.npy`` (int64 (k,), ascending) and ``keys.txt``, a block of rows at a time.

    Args:
        out: folder of the coreset.
        files: entries of the manifest, in id order.

    Returns:
        Hash (hex) of the ids.
    """
    count = sum(entry["rows"] for entry in files)
    # As ``content_hash`` of all ids would be.
    digest = hashlib.sha256((8 * count).to_bytes(8, "little"))
    header = {"descr": "<i8", "fortran_order": False, "shape": (count,)}
    with (
        paths.staged(paths.join(out, "sample_ids.npy")) as ids_file,
        paths.staged(paths.join(out, "keys.txt")) as keys_file,
        Path(ids_file).open("wb") as ids_out,
        Path(keys_file).open("wb") as keys_out,
    ):
        np.lib.format.write_array_header_1_0(ids_out, header)
        for ids, keys in _ids_and_keys(out, files):
            content = ids.astype("<i8", copy=False).tobytes()
            digest.update(content)
            ids_out.write(content)
            keys_out.write(("\n".join(keys.to_pylist()) + "\n").encode())
        ids_out.flush()
        keys_out.flush()
    return digest.hexdigest()


def _ids_and_keys(out: str, files: Sequence[dict[str, Any]]) -> Iterator[tuple[NDArray[np.int64], pa.ChunkedArray]]:
    for entry in files:
        filesystem, inner = paths.locate(paths.join(out, entry["path"]))
        with filesystem.open_input_file(inner) as stream, pq.ParquetFile(stream) as file:
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group, columns=["sample_id", "key"])
                yield rows["sample_id"].to_numpy(), rows["key"]
