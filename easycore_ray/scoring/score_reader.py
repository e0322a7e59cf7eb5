"""Reading score tables: listed parts only, checked as they are read."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from easycore_ray.scoring.score_table import (
    _HASH_BYTES,
    _REMOTE_HASH_BYTES,
    _ROW_GROUP_ROWS,
    _SAMPLES,
    SAMPLES_SCHEMA,
    SCORE_SCHEMA,
    ScorePart,
    score_schema,
)
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Artifact, open_artifact
from easycore_ray.storage.errors import EasyCoreError

_SMALL_BYTES = 1 << 20


def read_samples(
    table: str, low: int | None = None, high: int | None = None, columns: list[str] | None = None
) -> pa.Table:
    """The scored samples, sorted by id: sample_id int64, label int32, input_norm float32.

    Args:
        table: folder of the table.
        low: first id wanted; from the first if left out.
        high: one past the last id wanted; to the last if left out.
        columns: those wanted, ``sample_id`` among them; all if left out.

    Raises:
        EasyCoreError: if the file is missing or damaged.
    """
    low, high = -(2**63) if low is None else low, 2**63 - 1 if high is None else high
    schema = SAMPLES_SCHEMA if columns is None else pa.schema([SAMPLES_SCHEMA.field(name) for name in columns])
    with _open_samples(table) as file:
        groups = _wanted_groups(file, low, high)
        return pa.Table.from_batches(_read_groups(file, groups, low, high, schema.names), schema=schema)


def population(table: str) -> tuple[int, int, int]:
    """First id, last id and number of the scored samples, from the footer of their file alone.

    Raises:
        EasyCoreError: if the file is missing, damaged or empty.
    """
    with _open_samples(table) as file:
        if file.metadata.num_rows == 0:
            raise EasyCoreError(f"{paths.join(table, _SAMPLES)} holds no samples; the table is damaged")
        span = _span(file)
        if span is None:
            raise EasyCoreError(f"{paths.join(table, _SAMPLES)} has no statistics of its ids; the table is damaged")
        return *span, file.metadata.num_rows


def _open_samples(table: str) -> pq.ParquetFile:
    where = paths.join(table, _SAMPLES)
    file = _parquet(_open_source(where, "belongs to the table"), where)
    if not file.schema_arrow.equals(SAMPLES_SCHEMA):
        raise EasyCoreError(f"{where} has another schema than the samples of a table: {file.schema_arrow.names}")
    return file


@dataclass(frozen=True)
class ScoreTable:
    """A finished score table and the parts it consists of."""

    artifact: Artifact
    parts: tuple[ScorePart, ...]

    @property
    def path(self) -> str:
        """Folder of the table."""
        return self.artifact.path

    @property
    def schema(self) -> pa.Schema:
        """Of all its parts."""
        recorded = self.artifact.manifest["config"].get("record", ())
        return score_schema(attacked=training_of(self.artifact) != "standard", kd="kd" in recorded)

    def epochs(self) -> list[int]:
        """Scored epochs, ascending; 0 is the control at initial weights."""
        return sorted({part.epoch for part in self.parts})

    def of_epoch(self, epoch: int) -> list[ScorePart]:
        """The parts of one epoch, by first id."""
        return self._by_epoch.get(epoch, [])

    @cached_property
    def _by_epoch(self) -> dict[int, list[ScorePart]]:
        found: dict[int, list[ScorePart]] = {}
        for part in sorted(self.parts, key=lambda part: part.first_id):
            found.setdefault(part.epoch, []).append(part)
        return found


def input_space_of(table: Artifact) -> str:
    """Inputs that the gradients of a score or hardness table are taken with respect to: ``pixel`` or ``normalised``.

    Tables of releases that had no choice are of pixels.
    """
    manifest = table.manifest
    return str(manifest.get("input_space") or manifest["config"].get("input_space", "pixel"))


def training_of(table: Artifact) -> str:
    """What the network of a score or hardness table was trained for; ``standard`` where releases had no choice."""
    manifest = table.manifest
    return str(manifest.get("training") or manifest["config"].get("training", "standard"))


def val_losses_of(table: ScoreTable, epochs: Sequence[int]) -> NDArray[np.float64]:
    """Mean validation loss, in nats, of each class after each of some scored epochs.

    Returns:
        float64 (number of epochs, number of classes).

    Raises:
        EasyCoreError: it was not recorded, or a class has no validation samples.
    """
    recorded = table.artifact.manifest.get("val_losses")
    if not recorded:
        raise EasyCoreError(
            f"{table.path} holds no validation losses; they need a dataset with a validation split (prepare "
            "--val-fraction above 0), and a scoring run of this release"
        )
    # The exact pass after the last epoch is named after an epoch more, and has the same weights.
    found = np.array([recorded[min(epoch, len(recorded)) - 1] for epoch in epochs], np.float64)
    empty = np.flatnonzero(np.isnan(found).any(axis=0))
    if len(empty):
        raise EasyCoreError(
            f"{table.path}: class {empty[0]} has no validation samples, and so no validation loss; prepare the dataset "
            "with a larger --val-fraction"
        )
    return found


def open_table(path: str) -> ScoreTable:
    """Open a finished score table (the ``table`` folder of a scoring run).

    Raises:
        EasyCoreError: if it is missing, still being written, of another kind or of a newer format.
    """
    artifact = open_artifact(path, "score_table")
    return ScoreTable(artifact, tuple(ScorePart.from_dict(entry) for entry in artifact.manifest["parts"]))


@dataclass(frozen=True)
class Rows:
    """Rows of a part in id order: read-only arrays (n,) by column, with the dtypes of the table's schema."""

    columns: dict[str, NDArray]

    def __len__(self) -> int:
        return len(self.columns["sample_id"])

    def to_batch(self) -> pa.RecordBatch:
        """The same rows for Arrow."""
        known = score_schema(attacked=True, kd=True)
        schema = pa.schema([known.field(name) for name in self.columns])
        # Arrow wants aligned numbers; those in a file need not be.
        return pa.record_batch([pa.array(np.require(own, None, "A")) for own in self.columns.values()], schema=schema)


def read_range(
    table: str,
    part: ScorePart,
    low: int,
    high: int,
    columns: list[str],
    *,
    schema: pa.Schema = SCORE_SCHEMA,
    verify: bool = False,
    check_pages: bool = False,
) -> Iterator[Rows]:
    """Rows of a part with ``low <= sample_id < high``, in id order, some at a time.

    Only the footer and the row groups that hold such rows are loaded, of remote objects as of local files; small
    objects are fetched whole, in one request.

    Args:
        table: folder of the table.
        part: a listed part.
        low: first id wanted.
        high: one past the last id wanted.
        columns: columns to read; ``sample_id`` must be among them.
        schema: of the table, see ``ScoreTable``; a part with another is refused.
        verify: also compare the whole file with the checksum in the manifest.
        check_pages: also compare the pages that are read with their own checksums, which costs less and sees less.

    Raises:
        EasyCoreError: if the part is missing, torn, or not the one that was committed.
    """
    if part.rows == 0 or part.last_id < low or part.first_id >= high:
        return
    where = paths.join(table, part.path)
    whole = verify and low <= part.first_id and part.last_id < high
    if paths.is_remote(where) and (whole or part.num_bytes <= _SMALL_BYTES):
        # All of it is wanted anyway, or comes as fast as its footer alone: fetched once.
        content = _read_or_raise(where, lambda: paths.read_bytes(where))
        if verify:
            check_sum(where, part, hashlib.sha256(content).hexdigest())
        source = pa.BufferReader(content)
    else:
        if verify:
            verify_part(table, part)
        source = _open_source(where)
    with _parquet(source, where, check_pages=check_pages) as file:
        _check_part(file, where, part, schema)
        groups = _wanted_groups(file, low, high)
        try:
            for batch in _read_groups(file, groups, low, high, columns):
                yield Rows({name: batch.column(name).to_numpy(zero_copy_only=False) for name in columns})
        except (OSError, pa.ArrowInvalid) as error:
            raise EasyCoreError(f"{where} cannot be read ({error}); it is damaged") from error


def verify_part(table: str, part: ScorePart) -> None:
    """Compare a part with the checksum in the manifest; in small pieces, whatever its size.

    Raises:
        EasyCoreError: if it is missing, torn, or not the one that was committed.
    """
    where = paths.join(table, part.path)
    filesystem, inner = paths.locate(where)
    piece = bytearray(_REMOTE_HASH_BYTES if paths.is_remote(where) else _HASH_BYTES)
    digest = hashlib.sha256()
    with _read_or_raise(where, lambda: filesystem.open_input_stream(inner, compression=None)) as stream:
        while count := stream.readinto(piece):
            digest.update(memoryview(piece)[:count])
    check_sum(where, part, digest.hexdigest())


def check_sum(where: str, part: ScorePart, found: str) -> None:
    """Refuse content that is not what was listed.

    Raises:
        EasyCoreError: names the file.
    """
    if found != part.sha256:
        raise EasyCoreError(f"{where} does not have the checksum in the manifest; it was damaged or replaced")


def _read_or_raise(where: str, read: Callable[[], Any], why: str = "is listed in the manifest") -> Any:
    try:
        return read()
    except (OSError, pa.ArrowInvalid) as error:
        raise EasyCoreError(f"{where} {why} but cannot be read: {error}") from error


def _open_source(where: str, why: str = "is listed in the manifest") -> Any:
    """A seekable source that loads what is requested: pages of a local file, ranges of an object."""
    if not paths.is_remote(where):
        return _read_or_raise(where, lambda: pa.memory_map(where), why)
    filesystem, inner = paths.locate(where)
    return _read_or_raise(where, lambda: filesystem.open_input_file(inner), why)


def _parquet(source: Any, where: str, *, check_pages: bool = False) -> pq.ParquetFile:
    try:
        # Of a remote file, all columns of all wanted groups are fetched in a few large requests.
        return pq.ParquetFile(source, pre_buffer=paths.is_remote(where), page_checksum_verification=check_pages)
    except (OSError, pa.ArrowInvalid) as error:
        raise EasyCoreError(f"{where} is not a whole Parquet file ({error}); it is damaged") from error


def _span(file: pq.ParquetFile) -> tuple[int, int] | None:
    """First and last id of a file with rows, by the statistics of its groups; None without statistics."""
    first, last = (file.metadata.row_group(group).column(0).statistics for group in (0, file.num_row_groups - 1))
    return None if first is None or last is None else (first.min, last.max)


def _wanted_groups(file: pq.ParquetFile, low: int, high: int) -> list[int]:
    """The row groups of a file sorted by id that may hold rows with ``low <= sample_id < high``."""
    wanted = []
    for group in range(file.num_row_groups):
        stats = file.metadata.row_group(group).column(0).statistics
        if stats is None or (stats.max >= low and stats.min < high):
            wanted.append(group)
    return wanted


def _read_groups(
    file: pq.ParquetFile, groups: list[int], low: int, high: int, columns: list[str]
) -> Iterator[pa.RecordBatch]:
    """Rows with ``low <= sample_id < high`` of these row groups."""
    if not groups:
        return
    # One thread: a task works on the CPU it has reserved.
    for batch in file.iter_batches(_ROW_GROUP_ROWS, row_groups=groups, columns=columns, use_threads=False):
        start, stop = np.searchsorted(batch.column("sample_id").to_numpy(), [low, high])
        if stop > start:
            yield batch.slice(start, stop - start)


def _check_part(file: pq.ParquetFile, where: str, part: ScorePart, schema: pa.Schema) -> None:
    if file.schema_arrow != schema:
        raise EasyCoreError(f"{where} has another schema than the parts of its table: {file.schema_arrow.names}")
    if file.metadata.num_rows != part.rows:
        raise EasyCoreError(
            f"{where} has {file.metadata.num_rows:,} rows, the manifest lists {part.rows:,}; it is damaged"
        )
    span = _span(file)
    if span != (part.first_id, part.last_id):
        held = f"ids {span[0]} to {span[1]}" if span else "no statistics of its ids"
        raise EasyCoreError(f"{where} has {held}, the manifest lists {part.first_id} to {part.last_id}; it is damaged")
