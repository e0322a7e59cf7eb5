"""The samples a coreset is chosen from, as partitions in id order that are read a batch at a time.

A partition is a file of a hardness table or a span of a dataset's index, with a score of the table, a user's own or
none. Memory is set by the batch, not by the table. pyarrow and numpy only, because tasks read them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from easycore_ray.data import index as dataset_index
from easycore_ray.scoring.hardness_table import columns_of, hardness_column, not_recorded
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Artifact
from easycore_ray.storage.errors import EasyCoreError

_SPAN_ROWS = 4_000_000
# Rows that are worked on at a time: few enough to stay in a processor's cache from one step to the next.
_BATCH_ROWS = 1 << 16
SAMPLED_GROUPS = 4
"""One row group in so many is read for a sample."""


@dataclass(frozen=True)
class Batch:
    """Some consecutive samples.

    Attributes:
        sample_ids: int64 (n,), ascending.
        labels: (n,) integers, or None if not requested.
        scores: float64 (n,) as stored, or None if not requested.
    """

    sample_ids: NDArray[np.int64]
    labels: NDArray[np.integer] | None
    scores: NDArray[np.float64] | None

    def take(self, at: slice | NDArray[np.integer]) -> "Batch":
        """The rows at some positions: a slice, integers (m,) or a bool mask (n,)."""
        labels = None if self.labels is None else self.labels[at]
        return Batch(self.sample_ids[at], labels, None if self.scores is None else self.scores[at])

    def cut(self) -> Iterator["Batch"]:
        """The rows, 65,536 at a time."""
        for start in range(0, len(self.sample_ids), _BATCH_ROWS):
            yield self.take(slice(start, start + _BATCH_ROWS))


@dataclass(frozen=True)
class Partition:
    """Consecutive samples, sorted by id.

    Attributes:
        number: place among the partitions.
        rows: how many samples.
        first_id: lowest id.
        last_id: highest id.
        source: path of the file, or the dataset's folder.
        from_index: whether ``source`` is a dataset.
        score: column that is the score, or None.
        user_scores: float64 (rows,), scores of a user instead; NaN where there is none.
        left_out: int64 (n,), ascending, samples of the source that are passed over; ``rows`` is without them.
    """

    number: int
    rows: int
    first_id: int
    last_id: int
    source: str
    from_index: bool
    score: str | None = None
    user_scores: NDArray[np.float64] | None = None
    left_out: NDArray[np.int64] | None = None

    @property
    def can_be_sampled(self) -> bool:
        """Whether a part of it can be read alone, by ``sampled_batches``."""
        return self.score is not None and self.user_scores is None

    def sampled_batches(self, rng: np.random.Generator) -> Iterator[Batch]:
        """Ids and scores of a quarter of the row groups of a file, drawn at random; as of ``batches``."""
        for stored in self._file_rows(labels=False, scores=True, rng=rng):
            yield from self._remaining(stored).cut()

    def batches(self, *, labels: bool, scores: bool) -> Iterator[Batch]:
        """The rows in id order, 65,536 at a time: ids int64, labels integers, scores float64, each (n,).

        Args:
            labels: whether to read labels.
            scores: whether to read scores.

        Raises:
            EasyCoreError: a file is missing, damaged, or does not hold the score.
        """
        done = 0
        for stored in self._index_rows(labels) if self.from_index else self._file_rows(labels, scores):
            stored = self._remaining(stored)
            count = len(stored.sample_ids)
            if scores and self.user_scores is not None:
                stored = replace(stored, scores=self.user_scores[done : done + count])
            yield from stored.cut()
            done += count
        if done != self.rows:
            out = 0 if self.left_out is None else len(self.left_out)
            listed = f"has {done + out:,} rows, {self.rows + out:,} are listed"
            raise EasyCoreError(f"{self.source} {listed}; it is damaged")

    def _remaining(self, stored: Batch) -> Batch:
        """The rows that are not left out."""
        if self.left_out is None or not len(stored.sample_ids):
            return stored
        low, high = np.searchsorted(self.left_out, stored.sample_ids[[0, -1]] + [0, 1])
        if low == high:
            return stored
        stays = np.isin(stored.sample_ids, self.left_out[low:high], assume_unique=True, invert=True)
        return stored.take(np.flatnonzero(stays))

    def _index_rows(self, labels: bool) -> Iterator[Batch]:
        columns = ["sample_id"] + ["label"] * labels
        rows = dataset_index.read_index_range(self.source, "train", self.first_id, self.last_id, columns)
        yield Batch(rows["sample_id"].to_numpy(), rows["label"].to_numpy() if labels else None, None)

    def _file_rows(self, labels: bool, scores: bool, rng: np.random.Generator | None = None) -> Iterator[Batch]:
        """A batch for each row group; with ``rng`` for a few of them, drawn at random."""
        of_score = list(columns_of(self.score)) if scores and self.score is not None else []
        try:
            filesystem, inner = paths.locate(self.source)
            stream = filesystem.open_input_file(inner) if paths.is_remote(self.source) else pa.memory_map(inner)
            with stream, pq.ParquetFile(stream) as file:
                if not set(of_score) <= set(file.schema_arrow.names):
                    raise EasyCoreError(not_recorded(self.score or ""))
                groups = range(file.num_row_groups)
                for group in groups if rng is None else _draw(groups, rng):
                    ids = _unbroken_ids(file, group)
                    columns = ["sample_id"] * (ids is None) + ["label"] * labels + of_score
                    rows = file.read_row_group(group, columns=columns, use_threads=False)
                    yield Batch(
                        rows["sample_id"].to_numpy() if ids is None else ids,
                        rows["label"].to_numpy() if labels else None,
                        hardness_column(rows, self.score).to_numpy() if of_score and self.score else None,
                    )
        except (OSError, pa.ArrowInvalid, KeyError) as error:
            if isinstance(error, EasyCoreError):
                raise
            raise EasyCoreError(f"{self.source} is listed in the manifest but cannot be read: {error}") from error


def _unbroken_ids(file: pq.ParquetFile, group: int) -> NDArray[np.int64] | None:
    """The ids of a row group, undecoded, if its statistics say that none is left out between first and last."""
    metadata = file.metadata.row_group(group)
    span = metadata.column(file.schema_arrow.get_field_index("sample_id")).statistics
    if span is None or not span.has_min_max or span.max - span.min + 1 != metadata.num_rows:
        return None
    return np.arange(span.min, span.max + 1)


def _draw(groups: range, rng: np.random.Generator) -> list[int]:
    """A quarter of the row groups, in order."""
    return sorted(rng.choice(groups, -(-len(groups) // SAMPLED_GROUPS), replace=False).tolist())


def hardness_partitions(hardness: Artifact, score: str | None) -> list[Partition]:
    """The samples of a hardness table, file by file."""
    entries = [entry for entry in hardness.manifest["files"] if entry["rows"]]
    return [
        Partition(number, entry["rows"], entry["first_id"], entry["last_id"],
                  paths.join(hardness.path, entry["path"]), from_index=False, score=score)
        for number, entry in enumerate(entries)
    ]  # fmt: skip


def dataset_partitions(folder: str) -> list[Partition]:
    """The training samples of a dataset, from its index; they have no score."""
    spans = dataset_index.index_spans(folder, "train", _SPAN_ROWS)
    return [
        Partition(number, span.rows, span.first_id, span.last_id, folder, from_index=True)
        for number, span in enumerate(spans)
    ]
