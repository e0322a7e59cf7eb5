"""The feature table: penultimate features and softmax of every scored sample, at the final weights.

Written beside the score table, in the same exact pass, by ``score --record features``; its parts become part of the
run with the same commits. Parquet, one row per sample, sorted by id within a part.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from easycore_ray.core.feature_selection import Features
from easycore_ray.scoring.score_table import ScorePart, id_checksum, store_part
from easycore_ray.scoring.vector_columns import from_column, to_column
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Artifact, content_folder, open_artifact
from easycore_ray.storage.errors import EasyCoreError

FEATURE_TABLE = "features"
"""Folder, in that of a scoring run, of its feature table."""

_COLUMNS = ("features", "probabilities")
_DTYPE = "<f2"
# Rows that are decoded at a time.
_BATCH_ROWS = 1 << 16


def feature_schema(num_features: int, num_classes: int) -> pa.Schema:
    """Of every part: id, label, and two vectors of float16 as bytes, whose numbers the metadata name."""
    sizes = dict(zip(_COLUMNS, (num_features, num_classes), strict=True))
    vectors = [
        pa.field(name, pa.binary(2 * size), nullable=False, metadata={"dtype": "float16", "shape": str(size)})
        for name, size in sizes.items()
    ]
    return pa.schema(
        [pa.field("sample_id", pa.int64(), nullable=False), pa.field("label", pa.int32(), nullable=False), *vectors]
    )


def write_feature_part(
    table: str, columns: Mapping[str, np.ndarray], *, epoch: int, rank: int, attempt: str, segment: int
) -> ScorePart:
    """Write one worker's rows of a segment; the part exists whole or not at all.

    Args:
        table: folder of the feature table.
        columns: ``sample_id`` and ``label`` integers (n,), ``features`` float16 (n, D), ``probabilities`` float16
            (n, num_classes), in any order of rows.
        epoch: under which the pass is recorded.
        rank: the worker that writes.
        attempt: unique for every start of the worker group.
        segment: of the epoch.

    Raises:
        EasyCoreError: a feature does not fit half precision, naming the first ids.
    """
    order = np.argsort(columns["sample_id"], kind="stable")
    ids = np.asarray(columns["sample_id"])[order]
    values = {name: np.asarray(columns[name][order], dtype=_DTYPE) for name in _COLUMNS}
    bad = ~np.isfinite(values["features"]).all(axis=1)
    if bad.any():
        raise EasyCoreError(
            f"features of {bad.sum():,} samples are beyond half precision, ± 65,504 (first sample_ids: "
            f"{', '.join(map(str, ids[bad][:5].tolist()))}); score without --record features"
        )
    schema = feature_schema(*(values[name].shape[1] for name in _COLUMNS))
    vectors = [to_column(values[name]) for name in _COLUMNS]
    labels = pa.array(np.asarray(columns["label"])[order].astype(np.int32))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table([pa.array(ids), labels, *vectors], schema=schema), sink, compression="NONE",
                   use_dictionary=False, write_statistics=["sample_id"], write_page_checksum=True)  # fmt: skip
    return store_part(table, sink.getvalue(), ids, epoch=epoch, rank=rank, attempt=attempt, segment=segment)


def open_features(run: str, needed_by: str) -> Artifact:
    """The feature table of a scoring run.

    Args:
        run: folder of the run.
        needed_by: what asks for it, for the error.

    Raises:
        EasyCoreError: the run has none, or one of another run.
    """
    run = content_folder(paths.absolute(run))
    folder = paths.join(run, FEATURE_TABLE)
    if not paths.exists(paths.join(folder, "manifest.json")):
        raise EasyCoreError(
            f"{needed_by} needs the features of the samples, and {run} has none; score with --record features"
        )
    found, table = open_artifact(folder, "feature_table"), open_artifact(paths.join(run, "table"), "score_table")
    if found.manifest["identity"] != table.manifest["identity"]:
        raise EasyCoreError(f"{folder} holds features of another run than {table.path}; score anew with --overwrite")
    return found


def feature_parts(table: Artifact) -> list[ScorePart]:
    """Its parts, by first id."""
    return sorted((ScorePart.from_dict(entry) for entry in table.manifest["parts"]), key=lambda part: part.first_id)


def read_feature_part(table: Artifact, part: ScorePart) -> pa.Table:
    """Rows of a part, whole and unharmed.

    Raises:
        EasyCoreError: it is missing or damaged, or holds other samples.
    """
    where = paths.join(table.path, part.path)
    content = paths.read_bytes(where)
    if hashlib.sha256(content).hexdigest() != part.sha256:
        raise EasyCoreError(f"{where} is damaged: its checksum is not that of the manifest")
    rows = pq.read_table(pa.BufferReader(content))
    expected = feature_schema(table.manifest["num_features"], table.manifest["num_classes"])
    if not rows.schema.equals(expected):
        raise EasyCoreError(f"{where} has another schema than its table: {rows.schema.names}")
    ids = rows["sample_id"].to_numpy()
    if len(ids) != part.rows or id_checksum(ids) != part.id_checksum or (np.diff(ids) <= 0).any():
        raise EasyCoreError(f"{where} holds other samples than the manifest says")
    return rows


def read_features(table: Artifact) -> tuple[np.ndarray, Features]:
    """Ids of all samples, int64 (N,), ascending, and their features in that order.

    Takes 4 bytes a number: N · (D + num_classes) of them.

    Raises:
        EasyCoreError: see ``read_feature_part``; or a sample is missing or there twice.
    """
    count, manifest = table.manifest["counts"]["samples"], table.manifest
    ids = np.empty(count, np.int64)
    vectors = {name: np.empty((count, manifest[size]), np.float32)
               for name, size in zip(_COLUMNS, ("num_features", "num_classes"), strict=True)}  # fmt: skip
    parts, at = feature_parts(table), 0
    if sum(part.rows for part in parts) != count:
        raise EasyCoreError(f"{table.path}: its parts have other rows than its {count:,} samples; it is damaged")
    for part in parts:
        for batch in read_feature_part(table, part).to_batches(max_chunksize=_BATCH_ROWS):
            stop = at + batch.num_rows
            ids[at:stop] = batch["sample_id"].to_numpy()
            for name, values in vectors.items():
                values[at:stop] = from_column(batch[name], _DTYPE)
            at = stop
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    if (np.diff(ids) == 0).any():
        raise EasyCoreError(f"{table.path} holds a sample twice; it is damaged")
    return ids, Features(*(vectors[name][order] for name in _COLUMNS))


def read_features_between(table: Artifact, low: int, high: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids, int64 (n,), and features, float64 (n, D), of the samples low .. high - 1, some at a time.

    Raises:
        EasyCoreError: see ``read_feature_part``.
    """
    for part in feature_parts(table):
        if part.rows and part.first_id < high and low <= part.last_id:
            for batch in read_feature_part(table, part).to_batches(max_chunksize=_BATCH_ROWS):
                ids = batch["sample_id"].to_numpy()
                rows = slice(*np.searchsorted(ids, [low, high]))
                yield ids[rows], from_column(batch["features"], _DTYPE)[rows].astype(np.float64)


def describe_features(parts: Iterable[ScorePart], folder: str) -> dict[str, Any]:
    """What a manifest says of the vectors: ``num_features`` and ``num_classes``, as the first part has them."""
    first = next(iter(parts))
    schema = pq.read_schema(pa.BufferReader(paths.read_bytes(paths.join(folder, first.path))))
    sizes = [int(schema.field(name).metadata[b"shape"]) for name in _COLUMNS]
    return dict(zip(("num_features", "num_classes"), sizes, strict=True))
