"""The k lowest of many numbers in one process.

The order is total, by (key, sample_id), with −0.0 equal to 0.0 and NaN refused, so that every way to compute a choice
gives the same one.
"""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Ids: TypeAlias = NDArray[np.int64]


def lowest(keys: NDArray, sample_ids: NDArray[np.integer], k: int) -> Ids:
    """The k ids with the lowest (key, id), sorted by id; time linear in N but for sorting the result.

    Args:
        keys: (N,) numbers; infinities are fine.
        sample_ids: (N,), unique, in any order.
        k: 0 .. N.

    Raises:
        ValueError: a NaN key, named with its first ids, or k outside 0 .. N.
    """
    ids = np.asarray(sample_ids, dtype=np.int64)
    if not 0 <= k <= len(ids):
        raise ValueError(f"k must be in 0 .. {len(ids)} (the number of samples), got {k}")
    refuse_nan(keys, ids)
    if k == 0:
        return np.empty(0, dtype=np.int64)
    bound = np.partition(keys, k - 1)[k - 1]
    keep = keys < bound
    tied = np.flatnonzero(keys == bound)
    still_needed = k - np.count_nonzero(keep)
    keep[tied[np.argsort(ids[tied], kind="stable")[:still_needed]]] = True
    return np.sort(ids[keep], kind="stable")  # linear where the ids come sorted


def refuse_nan(scores: NDArray, sample_ids: Ids) -> None:
    """Refuse NaN scores: they have no rank.

    Args:
        scores: (N,) numbers.
        sample_ids: (N,).

    Raises:
        ValueError: how many there are, and the first ids.
    """
    missing = np.isnan(scores)
    if missing.any():
        raise ValueError(nan_problem(int(missing.sum()), len(scores), np.sort(sample_ids[missing])[:5].tolist()))


def nan_problem(count: int, total: int, first_ids: list[int]) -> str:
    """The message about NaN scores."""
    return f"{count} of {total} scores are NaN (first ids: {first_ids}); score those samples again or leave them out"
