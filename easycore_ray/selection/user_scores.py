"""Scores from a user's own file, joined to the samples by sample_id."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from easycore_ray.selection.partitions import Partition
from easycore_ray.storage import paths
from easycore_ray.storage.errors import EasyCoreError

_USER_SCHEMA = pa.schema([pa.field("sample_id", pa.int64(), nullable=False), pa.field("score", pa.float64())])


def with_user_scores(partitions: Sequence[Partition], path: str) -> list[Partition]:
    """The same samples with a user's scores.

    The file is read whole, 16 bytes of memory a row and more while sorting.

    Args:
        partitions: of the samples.
        path: Parquet file with ``sample_id`` int64 and ``score`` float64, in any order.

    Raises:
        EasyCoreError: the file is no Parquet of sample_id and score, names an id twice, or lacks one.
    """
    ids, scores = _read_user_scores(path)
    found: list[Partition] = []
    missing: list[NDArray[np.int64]] = []
    for partition in partitions:
        wanted = np.concatenate([batch.sample_ids for batch in partition.batches(labels=False, scores=False)])
        at = np.minimum(np.searchsorted(ids, wanted), max(len(ids) - 1, 0))
        known = ids[at] == wanted if len(ids) else np.zeros(len(wanted), bool)
        missing.append(wanted[~known])
        found.append(replace(partition, score=None, user_scores=scores[at] if len(ids) else None))
    lacking = np.concatenate(missing)
    if len(lacking):
        raise EasyCoreError(f"{path} lacks scores of {len(lacking):,} samples (first sample_id: {lacking[0]})")
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
