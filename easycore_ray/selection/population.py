"""The samples a coreset is chosen from, as stretches in id order that are read one by one.

They come from the files of a hardness table or from the index of a dataset, with a score of the table, a user's own
or none. The one decision: a stretch is read a batch at a time, so that memory is set by the batch, not by the table.
pyarrow and numpy only, because tasks read them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from easycore_ray.data.index import index_spans, read_index_range
from easycore_ray.scoring.hardness_table import COLUMNS_OF_SCORE, NOT_RECORDED, hardness_column
from easycore_ray.scoring.plain_pages import MappedColumns
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Artifact
from easycore_ray.storage.errors import EasyCoreError

_USER_SCHEMA = pa.schema([pa.field("sample_id", pa.int64(), nullable=False), pa.field("score", pa.float64())])


_SPAN_ROWS = 4_000_000


# Rows that are worked on at a time: few enough to stay in a processor's cache from one step to the next.
_BATCH_ROWS = 1 << 16


@dataclass(frozen=True)
class Batch:
    """Some consecutive rows; what was not asked for is None."""

    rows: int
    sample_ids: NDArray[np.int64] | None = None
    labels: NDArray[np.integer] | None = None
    scores: NDArray[np.float64] | None = None

    def every(self, step: int) -> "Batch":
        """Every ``step``-th row, from the first."""
        return self._part(slice(None, None, step), -(-self.rows // step))

    def cut(self, most: int) -> Iterator["Batch"]:
        """The same rows, ``most`` at a time."""
        for low in range(0, self.rows, most):
            yield self._part(slice(low, low + most), min(most, self.rows - low))

    def _part(self, at: slice, rows: int) -> "Batch":
        return Batch(
            rows,
            None if self.sample_ids is None else self.sample_ids[at],
            None if self.labels is None else self.labels[at],
            None if self.scores is None else self.scores[at],
        )


@dataclass(frozen=True)
class Stretch:
    """Consecutive samples, sorted by id: a file of a hardness table, or a span of a dataset's index.

    Attributes:
        number: place among the stretches.
        rows: how many samples.
        first_id: lowest id.
        last_id: highest id.
        source: path of the file, or the dataset's folder.
        from_index: whether ``source`` is a dataset.
        score: column that is the score, or None.
        given: (rows,) scores of a user instead.
    """

    number: int
    rows: int
    first_id: int
    last_id: int
    source: str
    from_index: bool
    score: str | None = None
    given: NDArray[np.float64] | None = None

    def batches(self, *, ids: bool = False, labels: bool = False, scores: bool = False) -> Iterator[Batch]:
        """The rows in order, with what is asked for.

        Raises:
            EasyCoreError: a file is missing, damaged, or does not hold the score.
        """
        done = 0
        for whole in self._groups(ids, labels, scores):
            yield from whole.cut(_BATCH_ROWS)
            done += whole.rows
        if done != self.rows:
            raise EasyCoreError(f"{self.source} has {done:,} rows, {self.rows:,} are listed; it is damaged")

    def _groups(self, ids: bool, labels: bool, scores: bool) -> Iterator[Batch]:
        """The rows as they are stored, many at a time."""
        columns = ["sample_id"] * ids + ["label"] * labels
        if self.from_index:
            # Without a column a table would not know its rows.
            rows = read_index_range(self.source, "train", self.first_id, self.last_id, columns or ["sample_id"])
            yield _batch(rows, rows.num_rows, self.given if scores else None)
            return
        try:
            filesystem, inner = paths.locate(self.source)
            stream = filesystem.open_input_file(inner) if paths.is_remote(self.source) else pa.memory_map(inner)
            with stream, pq.ParquetFile(stream) as file:
                mapped = MappedColumns(stream, file) if isinstance(stream, pa.MemoryMappedFile) else None
                done = 0
                for group in range(file.num_row_groups):
                    count = file.metadata.row_group(group).num_rows
                    given = self.given[done : done + count] if scores and self.given is not None else None
                    yield self._group(file, mapped, group, columns, given, scores and self.given is None)
                    done += count
        except (OSError, pa.ArrowInvalid, KeyError) as error:
            if isinstance(error, EasyCoreError):
                raise
            raise EasyCoreError(f"{self.source} is listed in the manifest but cannot be read: {error}") from error

    def _group(
        self,
        file: pq.ParquetFile,
        mapped: MappedColumns | None,
        group: int,
        columns: list[str],
        given: NDArray[np.float64] | None,
        scores: bool,
    ) -> Batch:
        """One row group; plain scores stay where they lie."""
        count = file.metadata.row_group(group).num_rows
        own = COLUMNS_OF_SCORE[self.score] if scores and self.score is not None else ()
        if not set(own) <= set(file.schema_arrow.names):
            raise EasyCoreError(NOT_RECORDED.format(score=self.score))
        if mapped is not None and len(own) == 1:
            found = mapped.values(group, own[0])
            if found is not None and found.dtype == np.float64:
                given, own = found, ()
        ids = _unbroken(file, group) if "sample_id" in columns else None
        names = [name for name in (*columns, *own) if name != "sample_id" or ids is None]
        rows = file.read_row_group(group, columns=names, use_threads=False) if names else None
        if own:
            assert self.score is not None
            given = hardness_column(rows, self.score).to_numpy()
        return _batch(rows, count, given, ids)


def of_hardness(hardness: Artifact, score: str | None) -> list[Stretch]:
    """The samples of a hardness table, file by file."""
    entries = [entry for entry in hardness.manifest["files"] if entry["rows"]]
    return [
        Stretch(number, entry["rows"], entry["first_id"], entry["last_id"], paths.join(hardness.path, entry["path"]),
                from_index=False, score=score)
        for number, entry in enumerate(entries)
    ]  # fmt: skip


def of_dataset(folder: str) -> list[Stretch]:
    """The training samples of a dataset, from its index; they have no score."""
    spans = index_spans(folder, "train", _SPAN_ROWS)
    return [
        Stretch(number, span.rows, span.first_id, span.last_id, folder, from_index=True)
        for number, span in enumerate(spans)
    ]


def with_user_scores(stretches: Sequence[Stretch], path: str) -> list[Stretch]:
    """The same samples with a user's scores; the file is read whole, 16 bytes of memory a row and more while sorting.

    Raises:
        EasyCoreError: the file is no Parquet of sample_id and score, names an id twice, or lacks one.
    """
    ids, scores = _read_user_scores(path)
    found, missing, first = [], 0, None
    for stretch in stretches:
        wanted = np.concatenate([_ids(batch) for batch in stretch.batches(ids=True)])
        at = np.searchsorted(ids, wanted)
        there = ids[np.minimum(at, len(ids) - 1)] == wanted if len(ids) else np.zeros(len(wanted), bool)
        if not there.all():
            missing += int((~there).sum())
            first = wanted[~there][0] if first is None else first
        else:
            found.append(_replace(stretch, scores[at]))
    if missing:
        raise EasyCoreError(f"{path} lacks scores of {missing:,} samples (first sample_id: {first})")
    return found


def _read_user_scores(path: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ids, ascending, and their scores; NaN where the score is null."""
    try:
        table = pq.read_table(pa.BufferReader(paths.read_bytes(path)))
    except pa.ArrowInvalid as error:
        raise EasyCoreError(f"{path} is not a Parquet file ({error}); it needs columns sample_id and score") from error
    if not {"sample_id", "score"} <= set(table.column_names):
        raise EasyCoreError(f"{path} has columns {table.column_names}; it needs sample_id and score")
    try:
        table = table.select(["sample_id", "score"]).cast(_USER_SCHEMA)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise EasyCoreError(f"{path} needs whole numbers in sample_id and numbers in score: {error}") from error
    ids, scores = table["sample_id"].to_numpy(), table["score"].to_numpy()
    if not (ids[1:] > ids[:-1]).all():
        order = np.argsort(ids, kind="stable")
        ids, scores = ids[order], scores[order]
    if (ids[1:] == ids[:-1]).any():
        raise EasyCoreError(f"{path} has more than one score for some sample_id; it needs exactly one each")
    return ids, scores


def _unbroken(file: pq.ParquetFile, group: int) -> NDArray[np.int64] | None:
    """The ids of a row group, undecoded, if the first and the last say that none is left out between them."""
    metadata = file.metadata.row_group(group)
    span = metadata.column(file.schema_arrow.get_field_index("sample_id")).statistics
    if span is None or not span.has_min_max or span.max - span.min + 1 != metadata.num_rows:
        return None
    return np.arange(span.min, span.max + 1)


def _batch(
    rows: pa.Table | None, count: int, scores: NDArray[np.float64] | None, ids: NDArray[np.int64] | None = None
) -> Batch:
    there = {} if rows is None else {name: rows[name] for name in rows.column_names}
    if "sample_id" in there:
        ids = there["sample_id"].to_numpy()
    return Batch(count, ids, there["label"].to_numpy() if "label" in there else None, scores)


def _ids(batch: Batch) -> NDArray[np.int64]:
    assert batch.sample_ids is not None
    return batch.sample_ids


def _replace(stretch: Stretch, given: NDArray[np.float64]) -> Stretch:
    fields: dict[str, Any] = {**vars(stretch), "score": None, "given": given}
    return Stretch(**fields)
