"""The score table: one row per (sample, scored epoch), in Parquet parts that are counted exactly once.

Workers write parts under names that are never used twice and hand their descriptors to the training
checkpoint; once the run is complete the list is frozen into ``manifest.json``. Readers see listed
parts only, so a part left behind by a lost worker changes nothing. pyarrow only, no Ray.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from easycore_ray import paths
from easycore_ray.core.hashing import mix64
from easycore_ray.errors import EasyCoreError
from easycore_ray.manifest import Artifact, content_hash, open_artifact
from easycore_ray.plain_pages import LARGE_PAGES, DamagedPageError, MappedColumns

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

# Part of the contract with the reducer: sorted ids shrink to a bit or two as deltas, a constant epoch to
# nothing, and plain floats are read at memory speed. Bytes a row, and ns to decode and
# to hash one (tests/benchmarks/bench_reduce.py --encodings, one core): these 18.2, 4.5, 9.2; all in zstd 16.5, 40, 8;
# floats as split byte streams 18.2, 6.4, 11, and in zstd 15.9, 40, 16; plain ids 25.6, 3.9, 21; run-length correct
# 18.2, 4.7, 10. A tenth fewer bytes would make reading three times as slow. Every page carries its own checksum, for
# readers of some columns, to whom the checksum of the whole part would cost more than the reading.
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
# What a reader of a range of ids loads at least. Smaller groups fit short ranges better, but every task reads
# the footers of all parts, which grow with the number of groups.
_ROW_GROUP_ROWS = 1 << 18
_SAMPLES = "samples.parquet"
_SAMPLES_ENCODINGS = {"sample_id": "DELTA_BINARY_PACKED", "label": "DELTA_BINARY_PACKED", "input_norm": "PLAIN"}
_HASH_BYTES = 1 << 20
_REMOTE_HASH_BYTES = 8 << 20


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
        num_bytes=content.size,
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


def _encode(rows: pa.Table, encodings: dict[str, str] = _ENCODINGS) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    pq.write_table(
        rows,
        sink,
        compression="NONE",
        use_dictionary=False,
        column_encoding=encodings,
        write_statistics=["sample_id"],
        row_group_size=_ROW_GROUP_ROWS,
        write_page_checksum=True,
        **LARGE_PAGES,
    )
    return sink.getvalue()


def scored_epochs(trained: int, *, epochs: int, every: int, score_pass: str) -> list[int]:
    """The epochs that a whole table has rows of, ascending.

    The initial weights, the last epoch and every so many before it; for ``fused+eval`` also ``trained + 1``, in whose
    name the final weights are scored exactly.

    Args:
        trained: epochs that were trained; fewer than ``epochs`` if the run ended because its scores had settled.
        epochs: epochs that were planned, from which ``every`` counts back.
        every: see ``ScoreConfig.score_every``.
        score_pass: see ``ScoreConfig``.
    """
    found = [epoch for epoch in range(epochs, 0, -every) if epoch <= trained]
    return [0, *reversed(found), *([trained + 1] if score_pass == "fused+eval" else [])]


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
    rows = samples.select(SAMPLES_SCHEMA.names).cast(SAMPLES_SCHEMA)
    paths.write_bytes(paths.join(table, _SAMPLES), _encode(rows, _SAMPLES_ENCODINGS))


def read_samples(
    table: str, low: int | None = None, high: int | None = None, columns: list[str] | None = None
) -> pa.Table:
    """The scored population: ``sample_id, label, input_norm``, sorted by id.

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


@dataclass(frozen=True)
class Rows:
    """Some rows of a part, in id order: arrays by column, to be read only."""

    columns: dict[str, NDArray]
    repeated: bool = False
    """These and all rows before them are known to have the ids that came in their places the last time, without looking
    at each (see ``Repeats``)."""

    def __len__(self) -> int:
        return len(self.columns["sample_id"])

    def to_batch(self) -> pa.RecordBatch:
        """The same rows for Arrow."""
        schema = pa.schema([SCHEMA.field(name) for name in self.columns])
        # Arrow wants aligned numbers; those in a file need not be.
        return pa.record_batch([pa.array(np.require(own, None, "A")) for own in self.columns.values()], schema=schema)


@dataclass
class Repeats:
    """Ids of the row groups read for the last epoch, in the order they were read in.

    A worker keeps its samples from epoch to epoch, so the same ids are stored again and again. Where their bytes are
    those of the last epoch they are not decoded another time. Call ``start`` before each epoch.
    """

    unbroken: bool = False
    """Whether every row group of this epoch so far is the last epoch's. One that is not may have had rows of a range
    and have none now, or the other way round: those after it then have other places, though they are the same."""
    _known: list[tuple[NDArray[np.uint8], NDArray[np.int64]]] = field(default_factory=list)
    _next: int = 0

    def start(self) -> None:
        """A new epoch: its first row group is compared with the first of the last one."""
        del self._known[self._next :]
        self._next = 0
        self.unbroken = True

    def look_up(self, raw: NDArray[np.uint8] | None) -> NDArray[np.int64] | None:
        """The ids these bytes hold, if they did so the last time; None are bytes that cannot be had."""
        if raw is not None and self._next < len(self._known) and np.array_equal(self._known[self._next][0], raw):
            self._next += 1
            return self._known[self._next - 1][1]
        self.unbroken = False
        return None

    def learn(self, raw: NDArray[np.uint8], ids: NDArray[np.int64]) -> None:
        """What these bytes hold."""
        self._known[self._next : self._next + 1] = [(raw, ids)]
        self._next += 1


def read_range(
    table: str,
    part: Part,
    low: int,
    high: int,
    columns: list[str],
    *,
    verify: bool = False,
    check_pages: bool = False,
    repeats: Repeats | None = None,
) -> Iterator[Rows]:
    """Rows of a part with ``low <= sample_id < high``, in id order, some at a time.

    Only the footer and the row groups that hold such rows are loaded, of remote objects as of local files.

    Args:
        table: folder of the table.
        part: a listed part.
        low: first id wanted.
        high: one past the last id wanted.
        columns: columns to read; ``sample_id`` must be among them.
        verify: also compare the whole file with the checksum in the manifest.
        check_pages: also compare the pages that are read with their own checksums, which costs less and sees less.
        repeats: ids of the epoch before; those of this one are noted there.

    Raises:
        EasyCoreError: if the part is missing, torn, or not the one that was committed.
    """
    if part.rows == 0 or part.last_id < low or part.first_id >= high:
        return
    where = paths.join(table, part.path)
    if verify and paths.is_remote(where) and low <= part.first_id and part.last_id < high:
        # All of it is wanted anyway: fetched once.
        content = _listed(where, lambda: paths.read_bytes(where))
        _check_sum(where, part, hashlib.sha256(content).hexdigest())
        source = pa.BufferReader(content)
    else:
        if verify:
            verify_part(table, part)
        source = _open_source(where)
    with _parquet(source, where, check_pages=check_pages) as file:
        _check_part(file, where, part)
        mapped = MappedColumns(source, file, check=check_pages) if isinstance(source, pa.MemoryMappedFile) else None
        groups = _wanted_groups(file, low, high)
        try:
            if mapped is None:
                for batch in _read_groups(file, groups, low, high, columns):
                    yield Rows({name: batch.column(name).to_numpy(zero_copy_only=False) for name in columns})
            else:
                for group in groups:
                    yield from _read_mapped(file, mapped, group, low, high, columns, repeats or Repeats())
        except (OSError, pa.ArrowInvalid, DamagedPageError) as error:
            raise EasyCoreError(f"{where} cannot be read ({error}); it is damaged") from error


def verify_part(table: str, part: Part) -> None:
    """Compare a part with the checksum in the manifest; in small pieces, whatever its size.

    Raises:
        EasyCoreError: if it is missing, torn, or not the one that was committed.
    """
    where = paths.join(table, part.path)
    filesystem, inner = paths.locate(where)
    piece = bytearray(_REMOTE_HASH_BYTES if paths.is_remote(where) else _HASH_BYTES)
    digest = hashlib.sha256()
    with _listed(where, lambda: filesystem.open_input_stream(inner, compression=None)) as stream:
        while count := stream.readinto(piece):
            digest.update(memoryview(piece)[:count])
    _check_sum(where, part, digest.hexdigest())


def _check_sum(where: str, part: Part, found: str) -> None:
    if found != part.sha256:
        raise EasyCoreError(f"{where} does not have the checksum in the manifest; it was damaged or replaced")


def _listed(where: str, read: Callable[[], Any], why: str = "is listed in the manifest") -> Any:
    try:
        return read()
    except (OSError, pa.ArrowInvalid) as error:
        raise EasyCoreError(f"{where} {why} but cannot be read: {error}") from error


def _open_source(where: str, why: str = "is listed in the manifest") -> Any:
    """A seekable source that loads what is asked for: pages of a local file, ranges of an object."""
    if not paths.is_remote(where):
        return _listed(where, lambda: pa.memory_map(where), why)
    filesystem, inner = paths.locate(where)
    return _listed(where, lambda: filesystem.open_input_file(inner), why)


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


def _read_mapped(
    file: pq.ParquetFile,
    mapped: MappedColumns,
    group: int,
    low: int,
    high: int,
    columns: list[str],
    repeats: Repeats,
) -> Iterator[Rows]:
    """Rows with ``low <= sample_id < high`` of a row group: what can be read where it lies is not decoded."""
    views = {name: mapped.values(group, name) for name in columns if name != "sample_id"}
    found = {name: values for name, values in views.items() if values is not None}
    raw = mapped.raw(group, "sample_id")
    ids = repeats.look_up(raw)
    if ids is not None:
        found["sample_id"] = ids
    if missing := [name for name in columns if name not in found]:
        rows = file.read_row_group(group, columns=missing, use_threads=False)
        found |= {name: rows[name].to_numpy() for name in missing}
    if raw is not None and ids is None:
        repeats.learn(raw, found["sample_id"])
    start, stop = np.searchsorted(found["sample_id"], [low, high])
    if stop > start:
        yield Rows({name: found[name][start:stop] for name in columns}, repeats.unbroken)


def _check_part(file: pq.ParquetFile, where: str, part: Part) -> None:
    if file.schema_arrow != SCHEMA:
        raise EasyCoreError(f"{where} has another schema than a score table part: {file.schema_arrow.names}")
    if file.metadata.num_rows != part.rows:
        raise EasyCoreError(
            f"{where} has {file.metadata.num_rows:,} rows, the manifest lists {part.rows:,}; it is damaged"
        )
    span = _span(file)
    if span != (part.first_id, part.last_id):
        held = f"ids {span[0]} to {span[1]}" if span else "no statistics of its ids"
        raise EasyCoreError(f"{where} has {held}, the manifest lists {part.first_id} to {part.last_id}; it is damaged")
