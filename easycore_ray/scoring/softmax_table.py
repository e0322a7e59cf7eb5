"""The softmax of every sample at the last scored epoch, with which that of the next one is compared.

``score --record kd`` records ``kd_prev`` in this way. Parts are written beside the score table's and named by the
commits, so that a run that was killed compares with the same numbers; only the last epoch's are kept.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from easycore_ray.scoring.score_table import ScorePart, store_part
from easycore_ray.scoring.vector_columns import from_column, to_column
from easycore_ray.storage import paths
from easycore_ray.storage.errors import EasyCoreError

SOFTMAX = "softmax"
"""Folder, in that of a scoring run that is under way, of the parts."""
MOST_BYTES = 1 << 30
"""Of the softmax of all samples: a worker may have to read all of it for each of its segments."""
_EPS = 1e-8
_DTYPE = "<f4"


def change(now: NDArray[np.floating], before: NDArray[np.floating]) -> NDArray[np.float32]:
    """TDDS's change of a prediction, the sum over classes of abs(p (log p - log q)), float32 (n,).

    Zhang et al. 2024, arXiv 2311.13613; 1e-8 is added inside the logarithms, as there.

    Args:
        now: p, softmax (n, num_classes).
        before: q, the same of the scored epoch before.
    """
    p, q = now.astype(np.float64), before.astype(np.float64)
    return np.abs(p * (np.log(p + _EPS) - np.log(q + _EPS))).sum(axis=1).astype(np.float32)


def check_size(num_rows: int, num_classes: int) -> None:
    """Refuse a run whose softmax is too large to be kept from epoch to epoch.

    Raises:
        EasyCoreError: says how large it is, and what is allowed.
    """
    size = 4 * num_rows * num_classes
    if size > MOST_BYTES:
        raise EasyCoreError(
            f"record kd keeps the softmax of every sample from epoch to epoch, {size / 2**30:,.1f} GiB for "
            f"{num_rows:,} samples of {num_classes:,} classes; at most {MOST_BYTES / 2**30:g} GiB are allowed; score a "
            "--coreset of them"
        )


def write_softmax(
    folder: str, columns: Mapping[str, np.ndarray], *, epoch: int, rank: int, attempt: str, segment: int
) -> ScorePart:
    """Write one worker's rows of a segment; the part exists whole or not at all.

    Args:
        folder: of the parts.
        columns: ``sample_id`` int64 (n,), ``softmax`` float32 (n, num_classes), in any order of rows.
        epoch: that they are recorded under.
        rank: the worker that writes.
        attempt: unique for every start of the worker group.
        segment: of the epoch.
    """
    order = np.argsort(columns["sample_id"], kind="stable")
    ids = np.asarray(columns["sample_id"])[order]
    rows = to_column(np.asarray(columns["softmax"][order], dtype=_DTYPE))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"sample_id": ids, "softmax": rows}), sink, compression="NONE", use_dictionary=False)
    return store_part(folder, sink.getvalue(), ids, epoch=epoch, rank=rank, attempt=attempt, segment=segment)


def read_softmax(folder: str, parts: Sequence[ScorePart], sample_ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Softmax of these samples in their order, (n, num_classes).

    Args:
        folder: of the parts.
        parts: of the scored epoch before, those most likely to hold them first.
        sample_ids: int64 (n,), each in one of the parts.

    Raises:
        EasyCoreError: a part is missing or damaged, or a sample is in none.
    """
    order = np.argsort(sample_ids, kind="stable")
    wanted, filled = sample_ids[order], np.zeros(len(sample_ids), bool)
    found: NDArray[np.float32] | None = None
    for part in parts:
        if filled.all() and found is not None:
            break
        if part.rows == 0:
            continue
        ids, values = _read(folder, part)
        found = np.empty((len(wanted), values.shape[1]), np.float32) if found is None else found
        at = np.minimum(np.searchsorted(wanted, ids), max(len(wanted) - 1, 0))
        mine = wanted[at] == ids if len(wanted) else np.zeros(len(ids), bool)
        found[order[at[mine]]] = values[mine]
        filled[at[mine]] = True
    if found is None or not filled.all():
        raise EasyCoreError(
            f"{folder} lacks the softmax of {(~filled).sum():,} samples; pass --overwrite to begin again"
        )
    return found


def _read(folder: str, part: ScorePart) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    where = paths.join(folder, part.path)
    try:
        content = paths.read_bytes(where)
    except EasyCoreError as error:
        raise EasyCoreError(f"{error}; pass --overwrite to begin again") from error
    if hashlib.sha256(content).hexdigest() != part.sha256:
        raise EasyCoreError(f"{where} is damaged; pass --overwrite to begin again")
    rows = pq.read_table(pa.BufferReader(content))
    return rows["sample_id"].to_numpy(), from_column(rows["softmax"].combine_chunks(), _DTYPE)


def likely_first(parts: Iterable[Mapping[str, Any]], rank: int, segment: int) -> list[ScorePart]:
    """Parts as a state carries them, the one of this worker and segment first: rows rarely change their place."""
    found = [ScorePart.from_dict(entry) for entry in parts]
    return sorted(found, key=lambda part: (part.segment != segment, part.rank != rank))
