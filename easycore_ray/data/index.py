"""The index of a dataset: every sample's id, origin, content hash and place, without its image.

Takes and gives Arrow tables of ``INDEX_SCHEMA``, in the order train, val, test and by ``sample_id`` within each.
Whatever can be known of a dataset without its images is read from this one file.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from easycore_ray.data.ingest.splits import SPLITS
from easycore_ray.storage import paths

INDEX_FILE = "index.parquet"
INDEX_SCHEMA = pa.schema(
    {
        "split": pa.string(),
        "sample_id": pa.int64(),
        # Path of the image in the source, unique within the split.
        "key": pa.string(),
        "label": pa.int32(),
        # Of the image as it is stored, in hex.
        "sha256": pa.string(),
        # L2 norm of the pixels, in [0, 1] units, of the view that is trained on.
        "input_norm": pa.float64(),
        # Number of the shard within the split, and the row in it.
        "shard": pa.int32(),
        "row": pa.int32(),
    }
)


_ROW_GROUP_ROWS = 1 << 17
_GROUPS_AT_ONCE = 16


class Span(NamedTuple):
    """Samples of a split that lie together in the index: first and last id (inclusive), and how many."""

    first_id: int
    last_id: int
    rows: int


def write_index(index: pa.Table, folder: str) -> None:
    """Write the index of a dataset; a row group holds ids of one split, in order, so that an id range is read alone.

    Args:
        index: of ``INDEX_SCHEMA`` (sample_id int64, label int32 and others), each split sorted by ``sample_id``.
        folder: of the dataset.
    """
    write_index_parts(((split, select_split(index, split)) for split in SPLITS), folder)


def write_index_parts(parts: Iterable[tuple[str, pa.Table]], folder: str) -> str:
    """The same for an index that comes in parts, of which no more than a row group is held.

    Args:
        parts: split and rows (``INDEX_SCHEMA``), in the order of the index; a part is of one split.
        folder: of the dataset.

    Returns:
        The dataset's fingerprint, see ``dataset_fingerprint``.
    """
    digest = hashlib.sha256()
    with (
        paths.staged(paths.join(folder, INDEX_FILE)) as local,
        pq.ParquetWriter(local, INDEX_SCHEMA, compression="zstd") as writer,
    ):
        for _, tables in itertools.groupby(parts, key=lambda part: part[0]):
            held = INDEX_SCHEMA.empty_table()
            for _, table in tables:
                digest.update(_records(table))
                held = pa.concat_tables([held, table])
                while len(held) >= _ROW_GROUP_ROWS:
                    writer.write_table(held.slice(0, _ROW_GROUP_ROWS), row_group_size=_ROW_GROUP_ROWS)
                    held = held.slice(_ROW_GROUP_ROWS)
            if len(held):
                writer.write_table(held, row_group_size=_ROW_GROUP_ROWS)
    return digest.hexdigest()


def read_index(folder: str, split: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a split, sorted by ``sample_id``; numbers in one piece each, which takes no more than their bytes.

    Args:
        folder: of the dataset.
        split: train, val or test.
        columns: names in ``INDEX_SCHEMA`` (sample_id int64, label int32 and others); all if None. Others are not read.

    Raises:
        EasyCoreError: the file is missing or damaged.
    """
    schema = _schema_of(columns)
    with _open_index(folder) as file:
        groups = _groups_of(file.metadata, split)
        parts = _parts(file, [group.number for group in groups], schema.names)
        return _collect(parts, schema, sum(group.rows for group in groups))


def read_index_range(folder: str, split: str, first_id: int, last_id: int, columns: Sequence[str]) -> pa.Table:
    """Some columns of the samples with first_id <= sample_id <= last_id, sorted by ``sample_id``; reads little else.

    An index with one row group per split, of an earlier version, is read whole in these columns.

    Args:
        folder: of the dataset.
        split: train, val or test.
        first_id: lowest int64 id.
        last_id: highest id, inclusive.
        columns: names in ``INDEX_SCHEMA``.

    Raises:
        EasyCoreError: the file is missing or damaged.
    """
    schema = _schema_of(columns)
    found = []
    with _open_index(folder) as file:
        there = _groups_of(file.metadata, split)
        groups = [group.number for group in there if group.last_id >= first_id and group.first_id <= last_id]
        for part in _parts(file, groups, _with_ids(columns)):
            ids = part["sample_id"].to_numpy()
            start, stop = np.searchsorted(ids, first_id), np.searchsorted(ids, last_id, "right")
            found.append(part.slice(start, stop - start).select(schema.names))
    return pa.concat_tables([schema.empty_table(), *found])


def read_index_rows(folder: str, split: str, sample_ids: np.ndarray, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of these samples, sorted by ``sample_id``; ids that are not there are left out.

    Only the row groups that hold some of them are read, in these columns.

    Args:
        folder: of the dataset.
        split: train, val or test.
        sample_ids: integers (n,), in any order.
        columns: names in ``INDEX_SCHEMA``; all if None.

    Returns:
        At most n rows.

    Raises:
        EasyCoreError: the file is missing or damaged.
    """
    schema, wanted = _schema_of(columns), np.asarray(sample_ids, np.int64)
    if not (wanted[1:] > wanted[:-1]).all():
        wanted = np.unique(wanted)
    with _open_index(folder) as file:
        groups = [
            group.number
            for group in _groups_of(file.metadata, split)
            if np.searchsorted(wanted, group.first_id) < np.searchsorted(wanted, group.last_id, "right")
        ]
        parts = _parts(file, groups, _with_ids(schema.names))
        return _collect((_rows_of(part, wanted) for part in parts), schema, len(wanted))


def _rows_of(part: pa.Table, wanted: NDArray[np.int64]) -> pa.Table:
    """The rows with these ids, both ascending."""
    part = part.combine_chunks()  # Arrow takes rows from one chunk many times as fast as from several
    ids = part["sample_id"].to_numpy()
    mine = wanted[np.searchsorted(wanted, ids[0]) : np.searchsorted(wanted, ids[-1], "right")]
    at = np.searchsorted(ids, mine)
    return part.take(pa.array(at[ids[at] == mine]))


def _collect(parts: Iterable[pa.Table], schema: pa.Schema, most: int) -> pa.Table:
    """At most so many rows as one table; numbers are written to where they stay, a part at a time."""
    numeric = [field.name for field in schema if not pa.types.is_string(field.type)]
    values = {name: np.empty(most, schema.field(name).type.to_pandas_dtype()) for name in numeric}
    texts: dict[str, list[pa.Array]] = {field.name: [] for field in schema if field.name not in values}
    done = 0
    for part in parts:
        for name, column in values.items():
            column[done : done + len(part)] = part[name].to_numpy()
        for name, chunks in texts.items():
            chunks += part[name].chunks
        done += len(part)
    columns = {name: pa.chunked_array([pa.array(column[:done])]) for name, column in values.items()}
    columns |= {name: pa.chunked_array(chunks, pa.string()) for name, chunks in texts.items()}
    return pa.table([columns[name] for name in schema.names], schema=schema)


class _Group(NamedTuple):
    """A row group of the index: its number, first and last id (inclusive), and how many rows."""

    number: int
    first_id: int
    last_id: int
    rows: int


@contextmanager
def _open_index(folder: str) -> Iterator[pq.ParquetFile]:
    path = paths.join(folder, INDEX_FILE)
    with (
        paths.damage_named(path),
        paths.open_input(path) as stream,
        pq.ParquetFile(stream, pre_buffer=paths.is_remote(path)) as file,
    ):
        yield file


def _schema_of(columns: Sequence[str] | None) -> pa.Schema:
    return INDEX_SCHEMA if columns is None else pa.schema([INDEX_SCHEMA.field(name) for name in columns])


def _with_ids(columns: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(["sample_id", *columns]))


def _groups_of(metadata: pq.FileMetaData, split: str) -> list[_Group]:
    """The row groups of a split, in id order; each holds one split alone."""
    found = []
    at = [INDEX_SCHEMA.get_field_index(name) for name in ("split", "sample_id")]
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        splits, ids = (group.column(column).statistics for column in at)
        if splits is None or ids is None:
            raise pa.ArrowInvalid("a row group has no statistics of its ids")
        if splits.min == split:
            found.append(_Group(number, ids.min, ids.max, group.num_rows))
    return found


def _parts(file: pq.ParquetFile, groups: Sequence[int], columns: Sequence[str]) -> Iterator[pa.Table]:
    """Row groups a few at a time: what is read is bounded, and so is the number of requests to an object store."""
    for start in range(0, len(groups), _GROUPS_AT_ONCE):
        yield file.read_row_groups(groups[start : start + _GROUPS_AT_ONCE], columns=list(columns))


def index_spans(folder: str, split: str, most_rows: int) -> list[Span]:
    """The split in id order, cut where row groups end, into spans of about ``most_rows`` samples."""
    with _open_index(folder) as file:
        groups = _groups_of(file.metadata, split)
    found: list[Span] = []
    for group in groups:
        span = Span(group.first_id, group.last_id, group.rows)
        if found and found[-1].rows + span.rows <= most_rows:
            last = found.pop()
            span = Span(last.first_id, span.last_id, last.rows + span.rows)
        found.append(span)
    return found


def select_split(index: pa.Table, split: str) -> pa.Table:
    """The rows of one split; the schema stays."""
    return index.filter(pc.equal(index["split"], split))


def dataset_fingerprint(index: pa.Table) -> str:
    """Hash (hex) of the content: sha256 over (label, sha256 of the image) in index order.

    Each label is 4 bytes, little endian, followed by the 32 bytes of the image's hash.
    """
    digest = hashlib.sha256()
    for start in range(0, index.num_rows, _ROW_GROUP_ROWS):
        digest.update(_records(index.slice(start, _ROW_GROUP_ROWS)))
    return digest.hexdigest()


def _records(index: pa.Table) -> bytes:
    records = np.empty(index.num_rows, [("label", "<i4"), ("sha256", "V32")])
    records["label"] = index["label"].to_numpy()
    records["sha256"] = np.frombuffer(bytes.fromhex("".join(index["sha256"].to_pylist())), "V32")
    return records.tobytes()


def shard_details(index: pa.Table, sizes: dict[str, list[int]], num_classes: int) -> dict[str, list[dict[str, object]]]:
    """What the manifest says of every shard: file, rows, bytes and class histogram, by split.

    Args:
        index: of the whole dataset.
        sizes: bytes of the shards, by split.
        num_classes: length of each histogram.
    """
    found: dict[str, list[dict[str, object]]] = {}
    for split in SPLITS:
        part = select_split(index, split)
        shard, label = part["shard"].to_numpy(), part["label"].to_numpy()
        found[split] = describe_shards(split, shard, label, sizes[split], num_classes)
    return found


def describe_shards(
    split: str, shard: NDArray[np.integer], label: NDArray[np.integer], sizes: list[int], num_classes: int
) -> list[dict[str, object]]:
    """What the manifest says of the shards of one split.

    Args:
        split: train, val or test.
        shard: (n,), number of the shard that each sample lies in.
        label: (n,), of each sample.
        sizes: bytes of the shards.
        num_classes: length of each histogram.
    """
    histograms = np.zeros((len(sizes), num_classes), np.int64)
    np.add.at(histograms, (shard, label), 1)
    return [
        {
            "path": shard_path(split, number),
            "rows": int(histogram.sum()),
            "bytes": size,
            "class_histogram": histogram.tolist(),
        }
        for number, (histogram, size) in enumerate(zip(histograms, sizes, strict=True))
    ]


def shard_path(split: str, number: int) -> str:
    """Path of a shard within the dataset's folder."""
    return f"shards/{split}-{number:05d}.parquet"
