"""Staging: checked images on the storage of the dataset, sorted by where they will lie.

The first half of an external sort. A task reads and checks a piece of the source and writes what is usable of it to
files sorted by ``placement_hash``; it gives back what the driver decides by, some 50 bytes a sample and no image. The
second half is ``shard_writer``, which reads a range of that hash from every file.

A staging file is a row of Arrow IPC messages, one for each batch of rows; where each begins, and its first hash, is
kept beside it, so that a range of hashes is a range of bytes. A second file has what only the index needs, in source
order.

Imported by Ray workers, so no torch in here.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from easycore_ray.core.hashing import mix64
from easycore_ray.core.seeding import derive_seed
from easycore_ray.data.ingest import readers
from easycore_ray.data.ingest.measuring import Viewing
from easycore_ray.storage import paths

# What the driver holds of every usable sample, in source order.
SAMPLE_SCHEMA = pa.schema({
    "hash": pa.uint64(),
    "label": pa.int32(),
    "content": pa.binary(16),
    # Hash of the key: whether a split has one twice is found without its keys.
    "key_hash": pa.uint64(),
    "piece": pa.int32(),
    "archive": pa.int32(),
    "rotated": pa.bool_(),
    "several": pa.bool_(),
})  # fmt: skip
BAD_SCHEMA = pa.schema({
    "row": pa.int64(), "key": pa.string(), "where": pa.string(), "problem": pa.string(),
})  # fmt: skip
STAGED_SCHEMA = pa.schema({
    "hash": pa.uint64(),
    "label": pa.int32(),
    "sums": pa.list_(pa.int64(), 3),
    "squares": pa.list_(pa.int64(), 3),
    "pixels": pa.large_binary(),
    "encoded": pa.large_binary(),
})  # fmt: skip
_INDEX_COLUMNS = [
    "key", "where", "label", "squares", "channels", "sha256_pixels", "sha256_encoded", "sha256_tripled",
]  # fmt: skip

# Of a batch in a staging file: what a shard reads too much of each file, at most twice.
_BATCH_BYTES = 512 * 1024


class Checking(NamedTuple):
    """How the images of a source are checked, and the seed of their places.

    Attributes:
        classes: names in label order, or None if the source does not know them.
        viewing: what is made of each image.
        seed: of the placement.
    """

    classes: list[str] | None
    viewing: Viewing
    seed: int


class StagedPart(NamedTuple):
    """A staging file, and what the driver needs of its rows.

    Attributes:
        path: of the file; ``path + ".rows"`` is the one with what the index needs.
        piece: number of the piece that its rows come from.
        num_rows: usable rows.
        samples: ``SAMPLE_SCHEMA`` of the usable rows in source order, as an Arrow IPC stream.
        bad: ``BAD_SCHEMA`` of the others, likewise.
        first_hashes: of each batch, as uint64 bytes.
        offsets: bytes in the file at which each batch begins, and the last one ends, as int64 bytes.
        sizes: (height, width, where) of the first usable row, and of the first of another size.
        channels: most channels of a row.
        encoded_bytes: of all rows' images as files.
    """

    # Bytes, and no arrays: Ray would leave arrays in the object store for as long as they are used.
    path: str
    piece: int
    num_rows: int
    samples: bytes
    bad: bytes
    first_hashes: bytes
    offsets: bytes
    sizes: list[tuple[int, int, str]]
    channels: int
    encoded_bytes: int

    def batches_of(self, first: np.uint64, last: np.uint64) -> tuple[int, int]:
        """Where the batches lie that may hold hashes in [first, last]: start and end in the file, in bytes."""
        hashes, offsets = np.frombuffer(self.first_hashes, np.uint64), np.frombuffer(self.offsets, np.int64)
        start = max(0, int(np.searchsorted(hashes, first, side="right")) - 1)
        stop = int(np.searchsorted(hashes, last, side="right"))
        return int(offsets[start]), int(offsets[max(start, stop)])


def placement_hash(seed: int, piece: int, rows: NDArray[np.integer]) -> NDArray[np.uint64]:
    """What the rows of a dataset are sorted by: uint64 (n,), no two alike, as if drawn at random.

    Args:
        seed: of the placement.
        piece: number of the piece, below 2**32.
        rows: (n,), numbers of the samples in the piece, below 2**32.
    """
    # Distinct numbers stay distinct: each step of mix64 can be undone.
    return mix64(((np.uint64(piece) << np.uint64(32)) | rows.astype(np.uint64)) ^ np.uint64(derive_seed("place", seed)))


def stage_piece(folder: str, number: int, piece: readers.Piece, checking: Checking) -> list[StagedPart]:
    """Check a piece and write its usable rows to staging files: one for each table of ``readers.check``.

    Args:
        folder: to write to.
        number: of the piece.
        piece: what to read.
        checking: how to check it.
    """
    tables = readers.check(number, piece, checking.classes, checking.viewing)
    return [
        _stage(table, paths.join(folder, f"{number:06d}-{part:05d}"), number, checking.seed)
        for part, table in enumerate(tables)
    ]


def _stage(table: pa.Table, path: str, piece: int, seed: int) -> StagedPart:
    is_bad = pc.is_valid(table["problem"])
    bad = table.filter(is_bad)
    # Filtering copies all images.
    good = table.filter(pc.invert(is_bad)).combine_chunks() if len(bad) else table
    hashes = placement_hash(seed, piece, good["row"].to_numpy())
    firsts, offsets = np.empty(0, np.uint64), np.zeros(1, np.int64)
    if len(good):
        firsts, offsets = _write_sorted(path, good, hashes)
        paths.write_bytes(path + ".rows", _to_ipc(good.select(_INDEX_COLUMNS)))
    heights, widths = good["height"].to_numpy(), good["width"].to_numpy()
    other = np.flatnonzero((heights != heights[:1]) | (widths != widths[:1]))[:1]
    shown = [row for row in (0, *other.tolist()) if row < len(good)]
    return StagedPart(
        path,
        piece,
        len(good),
        _to_ipc(_samples(good, hashes)),
        _to_ipc(bad.select(BAD_SCHEMA.names)),
        firsts.tobytes(),
        offsets.tobytes(),
        [(int(heights[row]), int(widths[row]), good["where"][row].as_py()) for row in shown],
        pc.max(good["channels"]).as_py() or 0,
        pc.sum(pc.binary_length(good["encoded"])).as_py() or 0,
    )


def _samples(good: pa.Table, hashes: NDArray[np.uint64]) -> pa.Table:
    keys = [hashlib.blake2b(key.encode(), digest_size=8).digest() for key in good["key"].to_pylist()]
    columns = {
        "hash": hashes,
        "label": good["label"].cast(pa.int32()),
        "key_hash": np.frombuffer(b"".join(keys), np.uint64),
        **{name: good[name] for name in ("content", "piece", "archive", "rotated", "several")},
    }
    return pa.table({name: columns[name] for name in SAMPLE_SCHEMA.names}, schema=SAMPLE_SCHEMA)


def _write_sorted(
    path: str, good: pa.Table, hashes: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Write rows sorted by hash; the first hash of each batch, and where each begins and the last one ends."""
    order = np.argsort(hashes)
    table = good.select(["label", "sums", "squares", "pixels", "encoded"])
    table = table.set_column(0, "label", table["label"].cast(pa.int32())).add_column(0, "hash", pa.array(hashes))
    step = max(1, _BATCH_BYTES * len(good) // max(table.nbytes, 1))
    starts = range(0, len(order), step)
    offsets = []
    with paths.staged(path) as local, pa.OSFile(local, "wb") as sink:
        for start in starts:
            offsets.append(sink.tell())
            # A batch at a time, so that no second copy of the images is in memory.
            [batch] = table.take(pa.array(order[start : start + step])).combine_chunks().to_batches()
            sink.write(batch.serialize())
        offsets.append(sink.tell())
    return hashes[order[list(starts)]], np.array(offsets, np.int64)


def _to_ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def from_ipc(content: bytes | pa.Buffer) -> pa.Table:
    """The table of an Arrow IPC stream, without a copy."""
    return pa.ipc.open_stream(content).read_all()


def read_batches(content: pa.Buffer) -> Iterator[pa.RecordBatch]:
    """The batches of ``STAGED_SCHEMA`` in a range of bytes of a staging file (see ``StagedPart.batches_of``)."""
    stream = pa.BufferReader(content)
    while stream.tell() < content.size:
        yield pa.ipc.read_record_batch(pa.ipc.read_message(stream), STAGED_SCHEMA)


def concat_samples(parts: Sequence[StagedPart]) -> pa.Table:
    """``SAMPLE_SCHEMA`` of all parts, in source order."""
    return pa.concat_tables([SAMPLE_SCHEMA.empty_table(), *(from_ipc(part.samples) for part in parts)]).combine_chunks()


def concat_bad(parts: Sequence[StagedPart]) -> pa.Table:
    """``BAD_SCHEMA`` of all parts, in source order."""
    return pa.concat_tables([BAD_SCHEMA.empty_table(), *(from_ipc(part.bad) for part in parts)])
