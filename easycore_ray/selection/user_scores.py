"""Scores from a user's own file, joined to the samples by sample_id or by key."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from easycore_ray.data.index import read_index
from easycore_ray.selection.partitions import Partition
from easycore_ray.storage import paths
from easycore_ray.storage.errors import EasyCoreError

_NEEDED = "it needs sample_id and score, or key and score"


def with_user_scores(partitions: Sequence[Partition], path: str, dataset: str | None = None) -> list[Partition]:
    """The same samples with a user's scores.

    The file is read whole, 16 bytes of memory a row and more while sorting; by key, the dataset's index as well.

    Args:
        partitions: of the samples.
        path: Parquet file with ``score`` float64 and ``sample_id`` int64, ``key`` string or both, in any order. Rows of
            the dataset's training samples that are in no partition are passed over, by key those of other splits too.
        dataset: folder of the dataset that the samples belong to; needed for keys.

    Raises:
        EasyCoreError: the file is no such Parquet, names a sample twice or lacks one, or names one that the dataset
            does not have.
    """
    ids, scores = _read_user_scores(path, dataset)
    used = np.zeros(len(ids), bool)
    found: list[Partition] = []
    missing: list[NDArray[np.int64]] = []
    for partition in partitions:
        wanted = np.concatenate([batch.sample_ids for batch in partition.batches(labels=False, scores=False)])
        at = np.minimum(np.searchsorted(ids, wanted), max(len(ids) - 1, 0))
        known = ids[at] == wanted if len(ids) else np.zeros(len(wanted), bool)
        used[at[known]] = True
        missing.append(wanted[~known])
        found.append(replace(partition, score=None, user_scores=scores[at] if len(ids) else None))
    _refuse_unknown_ids(ids[~used], path, dataset, sum(partition.rows for partition in partitions))
    lacking = np.concatenate(missing)
    if len(lacking):
        raise EasyCoreError(f"{path} lacks scores of {len(lacking):,} samples (first sample_id: {lacking[0]})")
    return found


def _refuse_unknown_ids(ids: NDArray[np.int64], path: str, dataset: str | None, total: int) -> None:
    """Refuse ids that are no training sample: those of a file that counts otherwise all mean other samples."""
    if not len(ids):
        return
    if dataset is not None:
        # The samples may be a part of the dataset's, those of a scoring run of a coreset.
        train = read_index(dataset, "train", ["sample_id"])["sample_id"].to_numpy()
        ids, total = ids[~np.isin(ids, train)], len(train)
    if len(ids):
        of = "" if dataset is None else f" of {dataset}"
        raise EasyCoreError(
            f"{path} has scores of {len(ids):,} ids that are no training sample{of} (first: {ids[0]}); sample_id "
            f"counts the {total:,} training samples from 0 in the order of the source, without those held out for "
            "validation and testing; pass these alone, or the columns key (path in the source) and score"
        )


def _read_user_scores(path: str, dataset: str | None) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ids, ascending, and their scores; NaN where the score is null."""
    try:
        table = pq.read_table(pa.BufferReader(paths.read_bytes(path)))
    except pa.ArrowInvalid as error:
        raise EasyCoreError(f"{path} is not a Parquet file ({error}); {_NEEDED}") from error
    names = [name for name in ("sample_id", "key") if name in table.column_names]
    if "score" not in table.column_names or not names:
        raise EasyCoreError(f"{path} has columns {table.column_names}; {_NEEDED}")
    table = _cast(table, names, path)
    if dataset is not None and "key" in names:
        table = _by_key(table, path, dataset) if names == ["key"] else _check_keys(table, path, dataset)
    elif names == ["key"]:
        raise EasyCoreError(f"{path} has keys and no sample_id; keys need the dataset, pass --dataset")
    ids, scores = table["sample_id"].to_numpy(), table["score"].to_numpy()
    if not (ids[1:] > ids[:-1]).all():
        order = np.argsort(ids, kind="stable")
        ids, scores = ids[order], scores[order]
    if (ids[1:] == ids[:-1]).any():
        raise EasyCoreError(f"{path} has more than one score for some sample_id; it needs exactly one each")
    return ids, scores


def _cast(table: pa.Table, names: Sequence[str], path: str) -> pa.Table:
    """The columns that are needed, in their types."""
    kinds = {"sample_id": pa.int64(), "key": pa.string()}
    fields = [pa.field(name, kinds[name], nullable=name == "key" and len(names) > 1) for name in names]
    try:
        return table.select([*names, "score"]).cast(pa.schema([*fields, pa.field("score", pa.float64())]))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        needed = " and ".join({"sample_id": "whole numbers in sample_id", "key": "text in key"}[name] for name in names)
        raise EasyCoreError(
            f"{path} needs {needed} and numbers in score, ids and keys without nulls: {error}"
        ) from error


def _by_key(table: pa.Table, path: str, dataset: str) -> pa.Table:
    """The rows of training samples, with their ids."""
    keys = table["key"].combine_chunks()
    if len(pc.unique(keys)) < len(keys):
        raise EasyCoreError(f"{path} has more than one score for some key; it needs exactly one each")
    train = read_index(dataset, "train", ["sample_id", "key"])
    others = pa.concat_tables([read_index(dataset, split, ["key"]) for split in ("val", "test")])[
        "key"
    ].combine_chunks()
    at = pc.index_in(keys, value_set=train["key"].combine_chunks())
    elsewhere = pc.is_in(keys, value_set=others)
    both = keys.filter(pc.and_(pc.is_valid(at), elsewhere))
    if len(both):
        raise EasyCoreError(
            f"{path} has keys, {both[0].as_py()} the first, that stand for samples in more than one split of "
            f"{dataset}; pass sample_id in place of key"
        )
    nowhere = keys.filter(pc.and_(pc.is_null(at), pc.invert(elsewhere)))
    if len(nowhere):
        raise EasyCoreError(
            f"{path} has {len(nowhere):,} keys that are not in {dataset} (first: {nowhere[0].as_py()}); its keys look "
            f"like {train['key'][0].as_py()}"
        )
    known = pc.is_valid(at)
    ids = train["sample_id"].combine_chunks().take(at.filter(known))
    return pa.table({"sample_id": ids, "score": table["score"].filter(known)})


def _check_keys(table: pa.Table, path: str, dataset: str) -> pa.Table:
    """Refuse ids whose keys are others in the dataset: they are those of another import."""
    train = read_index(dataset, "train", ["sample_id", "key"])
    at = pc.index_in(table["sample_id"].combine_chunks(), value_set=train["sample_id"].combine_chunks())
    theirs = table["key"].combine_chunks()
    differ = pc.fill_null(pc.not_equal(train["key"].combine_chunks().take(at), theirs), False)
    wrong = table["sample_id"].filter(differ)
    if len(wrong):
        raise EasyCoreError(
            f"{path} has for {len(wrong):,} of {len(theirs):,} samples other keys than {dataset} (first: sample_id "
            f"{wrong[0].as_py()}); its ids are those of another import: pass key and score alone"
        )
    return table
