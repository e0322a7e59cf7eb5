"""When is AIGN known well enough? Its change from one scored epoch to the next, on a fixed sample of the ids.

The mean over epochs stabilizes long before training ends. What matters for a coreset is which samples are among the
easiest, so that is what is compared: the easiest fraction, and the ranks, by the mean up to the epoch before and by the
mean up to this one. The sample is chosen by a hash of the id: the same whatever the workers, order or restarts.
"""

import numpy as np
from numpy.typing import NDArray

from easycore_ray.core.hashing import mix64
from easycore_ray.core.metrics import overlap, spearman
from easycore_ray.core.selection import lowest

MOST_SAMPLES = 100_000


def in_sample(sample_ids: NDArray[np.integer], population: int, most: int = MOST_SAMPLES) -> NDArray[np.bool_]:
    """Which ids belong to the fixed sample of the scored samples: all of them, or about ``most``.

    Args:
        sample_ids: int64 (N,), any of the scored samples, in any order.
        population: number of scored samples.
        most: expected size of the sample where there are more.

    Returns:
        bool (N,).
    """
    if population <= most:
        return np.ones(len(sample_ids), bool)
    return mix64(sample_ids) < np.uint64(most / population * 2**64)


def stability(
    sample_ids: NDArray[np.int64],
    before: NDArray[np.float64],
    now: NDArray[np.float64],
    fraction: float = 0.5,
) -> dict[str, float]:
    """How much of the easiest fraction, and of the order, one more scored epoch leaves in place.

    Args:
        sample_ids: (N,), unique.
        before: (N,) AIGN up to the scored epoch before.
        now: (N,) AIGN up to this one.
        fraction: share of the samples that counts as easiest, in (0, 1].

    Returns:
        ``easiest_overlap`` in [0, 1] (two random halves share 0.5) and ``rank_correlation`` (Spearman) in [-1, 1];
        nothing for fewer than two samples, or where all scores are equal.
    """
    k = int(fraction * len(sample_ids) + 0.5)
    if len(sample_ids) < 2 or k < 1 or np.ptp(before) == 0 or np.ptp(now) == 0:
        return {}
    return {
        "easiest_overlap": overlap(lowest(before, sample_ids, k), lowest(now, sample_ids, k)),
        "rank_correlation": spearman(before, now),
    }
