"""The score table: one row per (sample, scored epoch), in Parquet parts that are counted exactly once.

Workers write parts under names that are never used twice and hand their descriptors to the training
checkpoint; once the run is complete the list is frozen into ``manifest.json``. Readers see listed
parts only, so a part left behind by a lost worker changes nothing. pyarrow only, no Ray.
"""

import dataclasses
import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from easycore_ray import paths
from easycore_ray.core.hashing import mix64
from easycore_ray.errors import EasyCoreError
from easycore_ray.manifest import Artifact, content_hash, open_artifact

SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.int64(), nullable=False),
        pa.field("epoch", pa.int32(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("grad_norm", pa.float32(), nullable=False),
        pa.field("loss", pa.float32(), nullable=False),
        pa.field("margin", pa.float32(), nullable=False),
        pa.field("el2n", pa.float32(), nullable=False),
        pa.field("correct", pa.bool_(), nullable=False),
    ]
)
SAMPLES_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.int64(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("input_norm", pa.float32(), nullable=False),
    ]
)

# Part of the contract with the reducer: sorted ids shrink to a byte or two as deltas, a constant
# epoch to nothing, and plain floats are read at memory speed (they would hardly compress).
_ENCODINGS = {
    "sample_id": "DELTA_BINARY_PACKED",
    "epoch": "DELTA_BINARY_PACKED",
    "label": "DELTA_BINARY_PACKED",
    "grad_norm": "PLAIN",
    "loss": "PLAIN",
    "margin": "PLAIN",
    "el2n": "PLAIN",
    "correct": "PLAIN",
}
_ROW_GROUP_ROWS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Part:
    """Descriptor of one written part: what a checkpoint and the manifest keep of it."""

    path: str
    """Relative to the table's folder."""
    epoch: int
    rank: int
    rows: int
    num_bytes: int
    first_id: int
    last_id: int
    id_checksum: int
    sha256: str

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Part":
        """The part a manifest entry describes."""
        return cls(**content)

    def to_dict(self) -> dict[str, Any]:
        """The entry of a manifest."""
        return dataclasses.asdict(self)


def id_checksum(sample_ids: np.ndarray) -> int:
    """Order-free checksum of a set of ids: the sum of their splitmix64 hashes, modulo 2**64.

    Equal for any division of the same ids into parts (their checksums add up), different, but for a
    chance of 2**-64, when an id is missing, doubled or foreign.
    """
    return int(np.sum(mix64(sample_ids), dtype=np.uint64))


def write_part(table: str, columns: Mapping[str, np.ndarray], *, epoch: int, rank: int, attempt: str) -> Part:
    """Write one worker's rows of one epoch; the part exists whole or not at all.

    Args:
        table: folder of the score table.
        columns: ``sample_id``, ``label`` and the score fields, equal lengths, any order of rows.
        epoch: completed training epochs (0: initial weights).
        rank: the worker that writes.
        attempt: unique for every start of the worker group, so that no name is used twice.

    Raises:
        EasyCoreError: if a gradient norm or loss is not finite (the run has diverged), naming the
            epoch and the first ids.
    """
    order = np.argsort(columns["sample_id"], kind="stable")
    ids = np.asarray(columns["sample_id"])[order]
    _refuse_non_finite(columns, epoch)
    arrays = [
        np.full(len(ids), epoch) if name == "epoch" else np.asarray(columns[name])[order] for name in SCHEMA.names
    ]
    rows = pa.table(
        [pa.array(array).cast(spec.type) for array, spec in zip(arrays, SCHEMA, strict=True)], schema=SCHEMA
    )
    content = _encode(rows)
    path = f"epoch={epoch:05d}/part-{attempt}-r{rank:05d}.parquet"
    paths.write_bytes(paths.join(table, path), content)
    return Part(
        path=path,
        epoch=epoch,
        rank=rank,
        rows=len(ids),
        num_bytes=len(content),
        first_id=int(ids[0]) if len(ids) else -1,
        last_id=int(ids[-1]) if len(ids) else -1,
        id_checksum=id_checksum(ids),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def _refuse_non_finite(columns: Mapping[str, np.ndarray], epoch: int) -> None:
    for name in ("grad_norm", "loss", "margin", "el2n"):
        bad = ~np.isfinite(columns[name])
        if bad.any():
            ids = sorted(np.asarray(columns["sample_id"])[bad].tolist())
            raise EasyCoreError(
                f"epoch {epoch}: {name} is not finite for {len(ids)} samples (first sample_ids: "
                f"{', '.join(map(str, ids[:5]))}); the run has diverged, lower --lr or check these images"
            )


def _encode(rows: pa.Table) -> memoryview:
    buffer = io.BytesIO()
    pq.write_table(
        rows,
        buffer,
        compression="NONE",
        use_dictionary=False,
        column_encoding=_ENCODINGS,
        write_statistics=["sample_id"],
        row_group_size=_ROW_GROUP_ROWS,
    )
    return buffer.getbuffer()


def check_coverage(parts: Iterable[Part], *, epoch: int, num_samples: int, checksum: int) -> None:
    """Make sure that the parts of an epoch hold every sample exactly once.

    Args:
        parts: descriptors from all workers.
        epoch: the epoch they belong to.
        num_samples: size of the scored population.
        checksum: ``id_checksum`` of the scored population.

    Raises:
        EasyCoreError: if rows are missing or doubled. It would be a bug of ours or of the data feed;
            nothing of the epoch is committed.
    """
    mine = [part for part in parts if part.epoch == epoch]
    rows = sum(part.rows for part in mine)
    if rows != num_samples:
        raise EasyCoreError(
            f"epoch {epoch}: {rows:,} of {num_samples:,} samples were scored; the epoch is not committed"
        )
    if sum(part.id_checksum for part in mine) % 2**64 != checksum:
        raise EasyCoreError(f"epoch {epoch}: some samples were scored twice and others not; the epoch is not committed")


def fingerprint(parts: Iterable[Part]) -> str:
    """Hash (hex) of a table's content, independent of part names and of the attempts that wrote them."""
    ordered = sorted(parts, key=lambda part: (part.epoch, part.first_id, part.rank))
    return content_hash(*(f"{part.epoch} {part.rows} {part.sha256}" for part in ordered))


def write_samples(table: str, samples: pa.Table) -> None:
    """Write what is known of each scored sample beforehand (``SAMPLES_SCHEMA``, sorted by id)."""
    buffer = io.BytesIO()
    pq.write_table(samples.select(SAMPLES_SCHEMA.names).cast(SAMPLES_SCHEMA), buffer, compression="zstd")
    paths.write_bytes(paths.join(table, "samples.parquet"), buffer.getbuffer())


def read_samples(table: str) -> pa.Table:
    """The scored population: ``sample_id, label, input_norm``, sorted by id."""
    return pq.read_table(pa.BufferReader(paths.read_bytes(paths.join(table, "samples.parquet"))), schema=SAMPLES_SCHEMA)


@dataclass(frozen=True)
class ScoreTable:
    """A finished score table and the parts it consists of."""

    artifact: Artifact
    parts: tuple[Part, ...]

    @property
    def path(self) -> str:
        """Folder of the table."""
        return self.artifact.path

    def epochs(self) -> list[int]:
        """Scored epochs, ascending; 0 is the control at initial weights."""
        return sorted({part.epoch for part in self.parts})

    def of_epoch(self, epoch: int) -> list[Part]:
        """The parts of one epoch, by first id."""
        return sorted((part for part in self.parts if part.epoch == epoch), key=lambda part: part.first_id)


def open_table(path: str) -> ScoreTable:
    """Open a finished score table (the ``table`` folder of a scoring run).

    Raises:
        EasyCoreError: if it is missing, still being written, of another kind or of a newer format.
    """
    artifact = open_artifact(path, "score_table")
    return ScoreTable(artifact, tuple(Part.from_dict(entry) for entry in artifact.manifest["parts"]))


def read_range(
    table: str, part: Part, low: int, high: int, columns: list[str], *, verify: bool = False
) -> Iterator[pa.RecordBatch]:
    """Rows of a part with ``low <= sample_id < high``, in id order, a row group at a time.

    Args:
        table: folder of the table.
        part: a listed part.
        low: first id wanted.
        high: one past the last id wanted.
        columns: columns to read; ``sample_id`` must be among them.
        verify: also compare the whole file with the checksum in the manifest.

    Raises:
        EasyCoreError: if the part is missing, torn, or not the one that was committed.
    """
    if part.rows == 0 or part.last_id < low or part.first_id >= high:
        return
    where = paths.join(table, part.path)
    source = _open_part(where, part, verify=verify)
    try:
        file = pq.ParquetFile(source)
    except (OSError, pa.ArrowInvalid) as error:
        raise EasyCoreError(f"{where} is not a whole Parquet file ({error}); it is damaged") from error
    _check_part(file, where, part)
    for group in range(file.num_row_groups):
        stats = file.metadata.row_group(group).column(0).statistics
        if stats is not None and (stats.max < low or stats.min >= high):
            continue
        for batch in file.iter_batches(_ROW_GROUP_ROWS, row_groups=[group], columns=columns, use_threads=False):
            ids = batch.column("sample_id").to_numpy()
            start, stop = np.searchsorted(ids, [low, high])
            if stop > start:
                yield batch.slice(start, stop - start)


def _open_part(where: str, part: Part, *, verify: bool) -> Any:
    """A seekable source: a memory map for local files, so that only what is read is loaded."""
    try:
        source = pa.BufferReader(paths.read_bytes(where)) if paths.is_remote(where) else pa.memory_map(where)
    except (OSError, pa.ArrowInvalid) as error:
        raise EasyCoreError(f"{where} is listed in the manifest but cannot be read: {error}") from error
    if verify:
        if hashlib.sha256(source.read_buffer()).hexdigest() != part.sha256:
            raise EasyCoreError(f"{where} does not have the checksum in the manifest; it was damaged or replaced")
        source.seek(0)
    return source


def _check_part(file: pq.ParquetFile, where: str, part: Part) -> None:
    if file.schema_arrow != SCHEMA:
        raise EasyCoreError(f"{where} has another schema than a score table part: {file.schema_arrow.names}")
    if file.metadata.num_rows != part.rows:
        raise EasyCoreError(
            f"{where} has {file.metadata.num_rows:,} rows, the manifest lists {part.rows:,}; it is damaged"
        )
