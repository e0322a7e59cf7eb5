"""Samples that are left out before a coreset is chosen: those an audit found, or a list of the user's own."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from easycore_ray.core.lowest import Ids
from easycore_ray.data.dataset import Dataset
from easycore_ray.data.index import read_index_rows
from easycore_ray.selection.partitions import Partition
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Artifact, open_artifact
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.storage.hashes import content_hash

FINDINGS = "findings.parquet"
"""Of an audit: a row for each finding."""
_NEEDED = "it needs whole numbers in a column sample_id, without nulls"


@dataclass(frozen=True)
class Exclusion:
    """Samples to leave out.

    Attributes:
        path: the file or audit they were read from.
        ids: int64 (n,), ascending; training samples of the dataset, not all of them among those to choose from.
        audit: the audit, where they come from one.
    """

    path: str
    ids: Ids
    audit: Artifact | None

    @property
    def fingerprint(self) -> str:
        """Hash (hex) of the ids: equal ids leave equal samples, whatever file they stand in."""
        return content_hash(self.ids.astype("<i8").tobytes())


def read_exclusion(path: str, kinds: Sequence[str], dataset: Dataset) -> Exclusion:
    """Read the samples to leave out. The file is read whole.

    Args:
        path: folder of an audit, or a Parquet file with ``sample_id``; where it has ``key`` as well, keys must be those
            of the dataset.
        kinds: kinds of findings, of the column ``kind``; none means all rows.
        dataset: that the samples belong to.

    Raises:
        EasyCoreError: it is missing, no such file, of another dataset, or names ids that are no training sample.
    """
    path = paths.absolute(path)
    audit = open_artifact(path, "audit") if paths.is_dir(path) else None
    if audit is not None and (theirs := audit.manifest["parents"]["dataset"])["fingerprint"] != dataset.fingerprint:
        raise EasyCoreError(
            f"{path} is an audit of {theirs['path']} (fingerprint {theirs['fingerprint'][:12]}), not of {dataset.path} "
            f"({dataset.fingerprint[:12]}); audit scores of this dataset"
        )
    file = path if audit is None else paths.join(audit.path, FINDINGS)
    table = _read(file)
    if kinds:
        if "kind" not in table.column_names:
            raise EasyCoreError(f"{file} has columns {table.column_names}; exclude_kind needs a column kind in it")
        table = table.filter(pc.is_in(table["kind"], value_set=pa.array(kinds, pa.string())))
    ids = np.unique(table["sample_id"].to_numpy())
    known = read_index_rows(dataset.path, "train", ids, ["sample_id", "key"])
    if len(known) < len(ids):
        unknown = np.setdiff1d(ids, known["sample_id"].to_numpy(), assume_unique=True)
        raise EasyCoreError(
            f"{file} names {len(unknown):,} ids that are no training sample of {dataset.path} (first: {unknown[0]}); "
            "pass findings of this dataset"
        )
    if "key" in table.column_names:
        _check_keys(table, known, file, dataset)
    return Exclusion(path, ids, audit)


def _read(file: str) -> pa.Table:
    """The columns that count, in their types."""
    try:
        table = pq.read_table(pa.BufferReader(paths.read_bytes(file)))
    except pa.ArrowInvalid as error:
        raise EasyCoreError(f"{file} is not a Parquet file ({error}); {_NEEDED}") from error
    if "sample_id" not in table.column_names:
        raise EasyCoreError(f"{file} has columns {table.column_names}; {_NEEDED}")
    kind = table.schema.field("sample_id").type
    if not pa.types.is_integer(kind) or table["sample_id"].null_count:
        raise EasyCoreError(f"{file} has {table['sample_id'].null_count:,} nulls and type {kind}; {_NEEDED}")
    types = {"sample_id": pa.int64(), "key": pa.string(), "kind": pa.string()}
    names = [name for name in types if name in table.column_names]
    try:
        return table.select(names).cast(pa.schema([(name, types[name]) for name in names]))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise EasyCoreError(f"{file} needs whole numbers in sample_id and text in key and kind: {error}") from error


def _check_keys(table: pa.Table, known: pa.Table, file: str, dataset: Dataset) -> None:
    """Refuse ids whose keys are others in the dataset: they are those of another import."""
    at = pc.index_in(table["sample_id"].combine_chunks(), value_set=known["sample_id"].combine_chunks())
    ours = known["key"].combine_chunks().take(at)
    wrong = table["sample_id"].filter(pc.fill_null(pc.not_equal(ours, table["key"].combine_chunks()), False))
    if len(wrong):
        raise EasyCoreError(
            f"{file} has for {len(wrong):,} of {len(table):,} rows other keys than {dataset.path} (first: sample_id "
            f"{wrong[0].as_py()}); its ids are those of another import: audit scores of this dataset"
        )


def without_samples(partitions: Sequence[Partition], ids: Ids) -> list[Partition]:
    """The partitions without some samples; those that have no others are left out.

    Args:
        partitions: all samples, in id order.
        ids: int64 (n,), ascending; those that are in no partition are passed over.
    """
    left: list[Partition] = []
    for partition in partitions:
        low, high = np.searchsorted(ids, [partition.first_id, partition.last_id + 1])
        mine = ids[low:high]
        if len(mine) and partition.last_id - partition.first_id + 1 > partition.rows:
            there = [batch.sample_ids for batch in partition.batches(labels=False, scores=False)]
            mine = mine[np.isin(mine, np.concatenate(there), assume_unique=True)]
        if len(mine) < partition.rows:
            left.append(replace(partition, number=len(left), rows=partition.rows - len(mine), left_out=mine))
    return left
