"""The index of a dataset: every sample's id, origin, content hash and place, without its image.

Takes and gives Arrow tables of ``INDEX_SCHEMA``, in the order train, val, test and by ``sample_id`` within each.
Whatever can be known of a dataset without its images is read from this one file.
"""

import hashlib
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

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
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, INDEX_SCHEMA, compression="zstd") as writer:
        for split in SPLITS:
            part = select_split(index, split)
            if part.num_rows:
                writer.write_table(part, row_group_size=_ROW_GROUP_ROWS)
    paths.write_bytes(paths.join(folder, INDEX_FILE), sink.getvalue())


def read_index(folder: str, split: str) -> pa.Table:
    """The rows of a split, of ``INDEX_SCHEMA`` (sample_id int64, label int32 and others), sorted by ``sample_id``.

    Raises:
        EasyCoreError: the file is missing or damaged.
    """
    path = paths.join(folder, INDEX_FILE)
    with paths.damage_named(path), paths.open_input(path) as stream:
        return pq.read_table(stream, filters=[("split", "==", split)], pre_buffer=paths.is_remote(path))


def read_index_range(folder: str, split: str, first_id: int, last_id: int, columns: list[str]) -> pa.Table:
    """Some columns of the samples with first_id <= sample_id <= last_id, sorted by ``sample_id``; reads little else.

    An index with one row group per split, of an earlier version, is read whole in these columns.

    Args:
        folder: of the dataset.
        split: train, val or test.
        first_id: lowest int64 id.
        last_id: highest id, inclusive.
        columns: names in ``INDEX_SCHEMA``.
    """
    filesystem, inner = paths.locate(paths.join(folder, INDEX_FILE))
    wanted = [("split", "==", split), ("sample_id", ">=", first_id), ("sample_id", "<=", last_id)]
    with paths.damage_named(paths.join(folder, INDEX_FILE)):
        return pq.read_table(inner, filesystem=filesystem, filters=wanted, columns=columns)


def index_spans(folder: str, split: str, most_rows: int) -> list[Span]:
    """The split in id order, cut where row groups end, into spans of about ``most_rows`` samples."""
    filesystem, inner = paths.locate(paths.join(folder, INDEX_FILE))
    with paths.damage_named(paths.join(folder, INDEX_FILE)), filesystem.open_input_file(inner) as stream:
        metadata = pq.ParquetFile(stream).metadata
    found: list[Span] = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        splits, ids = (group.column(INDEX_SCHEMA.get_field_index(name)).statistics for name in ("split", "sample_id"))
        if splits.min != split:
            continue
        span = Span(ids.min, ids.max, group.num_rows)
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
    records = np.empty(index.num_rows, [("label", "<i4"), ("sha256", "V32")])
    records["label"] = index["label"].to_numpy()
    hashes = bytes.fromhex("".join(index["sha256"].to_pylist()))
    records["sha256"] = np.frombuffer(hashes, "V32")
    return hashlib.sha256(records.tobytes()).hexdigest()


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
        histograms = np.zeros((len(sizes[split]), num_classes), np.int64)
        np.add.at(histograms, (shard, label), 1)
        found[split] = [
            {
                "path": shard_path(split, number),
                "rows": int(histogram.sum()),
                "bytes": size,
                "class_histogram": histogram.tolist(),
            }
            for number, (histogram, size) in enumerate(zip(histograms, sizes[split], strict=True))
        ]
    return found


def shard_path(split: str, number: int) -> str:
    """Path of a shard within the dataset's folder."""
    return f"shards/{split}-{number:05d}.parquet"


def read_index_rows(folder: str, split: str, sample_ids: np.ndarray) -> pa.Table:
    """The rows of these samples, sorted by ``sample_id``; ids that are not there are left out.

    Args:
        folder: of the dataset.
        split: train, val or test.
        sample_ids: integers (n,), in any order.

    Returns:
        At most n rows of ``INDEX_SCHEMA``.
    """
    import pyarrow.dataset as ds  # imports pandas where it is installed, 0.3 s

    filesystem, inner = paths.locate(paths.join(folder, INDEX_FILE))
    wanted = (pc.field("split") == split) & pc.field("sample_id").isin(pa.array(np.sort(sample_ids)))
    # A batch at a time, so that a large index is never in memory whole.
    return ds.dataset(inner, filesystem=filesystem, format="parquet").to_table(filter=wanted).sort_by("sample_id")
