"""Does a quantity rise with hardness? Deciles by hardness, a rank correlation with its interval, and a rule.

Takes numpy arrays and gives plain numbers. A trend *holds* only if the whole interval of the rank correlation points
that way, is not negligible, and no harder decile contradicts an easier one beyond noise; where the data are too few to
confirm or deny it, the outcome is *inconclusive*.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from easycore_ray.core.metrics import ArrayLike, average_ranks, spearman
from easycore_ray.core.seeding import numpy_rng

HOLDS, DOES_NOT_HOLD, INCONCLUSIVE = "holds", "does not hold", "inconclusive"
OUTCOMES = (HOLDS, DOES_NOT_HOLD, INCONCLUSIVE)

DECILES = 10
NEGLIGIBLE = 0.1  # rank correlations below explain less than 1 % of the variance of ranks
CONFIDENCE = 0.95
LEAST_ROWS = 50  # five for each decile; below, no interval is worth its name
RESAMPLES = 1000


@dataclass(frozen=True)
class DecileMean:
    """Rows of one decile (1 .. 10): how many, their mean, and the standard error of the mean."""

    decile: int
    count: int
    mean: float
    error: float


@dataclass(frozen=True)
class Trend:
    """How a quantity varies with hardness."""

    outcome: str
    """One of ``OUTCOMES``, for the claim that it rises (or falls, see ``trend``)."""
    count: int
    rank_correlation: float | None
    """Spearman's, over rows; None where it is not defined."""
    interval: tuple[float, float] | None
    """95 % bootstrap interval of it."""
    reversal: tuple[int, int] | None
    """Easier and harder decile (1 .. 10) that contradict the claim most beyond noise, if any do."""
    reason: str
    """Why the outcome is what it is, as the end of a sentence."""


def deciles(hardness: NDArray[np.float64], sample_ids: NDArray[np.integer]) -> NDArray[np.int64]:
    """The decile of each sample by hardness: 1 (easiest) .. 10, ties by id.

    Deciles differ by at most one sample in size.

    Args:
        hardness: (N,) higher is harder; infinities are fine.
        sample_ids: (N,), unique.

    Raises:
        ValueError: a NaN, or fewer than ten samples.
    """
    count = len(hardness)
    if count < DECILES:
        raise ValueError(f"deciles need at least {DECILES} samples, got {count}")
    if np.isnan(hardness).any():
        raise ValueError(f"{int(np.isnan(hardness).sum()):,} samples have a score that is not a number")
    found = np.empty(count, np.int64)
    found[np.lexsort((sample_ids, hardness))] = np.arange(count) * DECILES // count + 1
    return found


def draw_from_deciles(
    decile: NDArray[np.integer], sample_ids: NDArray[np.integer], num_samples: int, seed: int
) -> NDArray[np.int64]:
    """A seeded draw with equally many samples of every decile; the remainder goes to the lowest deciles.

    Args:
        decile: integers (N,), 1 .. 10.
        sample_ids: integers (N,), unique, in the same order.
        num_samples: size of the draw, at least 0.
        seed: of the draw.

    Returns:
        int64 (num_samples,), sorted; all ids if there are no more.
    """
    ids = np.asarray(sample_ids, np.int64)
    if num_samples >= len(ids):
        return np.sort(ids)
    drawn = []
    for number in range(1, DECILES + 1):
        mine = np.sort(ids[decile == number])
        quota = num_samples // DECILES + (number <= num_samples % DECILES)
        drawn.append(numpy_rng("deciles", seed, number).choice(mine, min(quota, len(mine)), replace=False))
    return np.sort(np.concatenate(drawn))


def trend(
    hardness: ArrayLike,
    values: ArrayLike,
    decile: ArrayLike,
    *,
    rises: bool = True,
    seed: int = 0,
) -> Trend:
    """Test the claim that ``values`` rise (or fall) with hardness.

    Holds: the rank correlation is at least ``NEGLIGIBLE``, its interval lies wholly on the claimed side, and no
    harder decile contradicts an easier one beyond noise (mean ranks, all pairs, Bonferroni). Does not hold: the
    interval leaves no room for more than a negligible correlation in the claimed direction, or deciles contradict.
    Inconclusive: anything else, fewer than ``LEAST_ROWS`` rows, or values that are all equal.

    Args:
        hardness: (N,) higher is harder.
        values: (N,) numbers, bools or infinities; no NaN.
        decile: (N,) 1 .. 10.
        rises: the direction that is claimed.
        seed: of the bootstrap.
    """
    hard, measured, group = np.asarray(hardness, np.float64), np.asarray(values, np.float64), np.asarray(decile)
    count = len(hard)
    if count < LEAST_ROWS:
        return Trend(INCONCLUSIVE, count, None, None, None, f"only {count} samples, at least {LEAST_ROWS} are needed")
    if (measured == measured[0]).all() or (hard == hard[0]).all():
        what = "it is the same for all samples" if (measured == measured[0]).all() else "all samples are equally hard"
        return Trend(INCONCLUSIVE, count, None, None, None, what)
    sign = 1.0 if rises else -1.0
    found = spearman(hard, measured)
    low, high = bootstrap_interval(hard, measured, seed=seed)
    claimed = sorted((sign * low, sign * high))
    against = reversal(groups(average_ranks(sign * measured), group))
    where = "" if against is None else f"decile {against[1]} contradicts decile {against[0]}"
    if claimed[1] < NEGLIGIBLE:
        outcome, reason = DOES_NOT_HOLD, "no more than a negligible correlation that way"
    elif against is not None:
        outcome, reason = DOES_NOT_HOLD, f"not a steady trend: {where}"
    elif claimed[0] > 0 and sign * found >= NEGLIGIBLE:
        outcome, reason = HOLDS, "the whole interval is on that side, and no decile contradicts another"
    else:
        outcome, reason = INCONCLUSIVE, "the interval allows of a negligible correlation and of more"
    return Trend(outcome, count, found, (low, high), against, reason)


def bootstrap_interval(
    first: NDArray[np.float64], second: NDArray[np.float64], *, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """95 % percentile interval of Spearman's correlation over rows drawn with replacement (Efron 1979).

    Ranks of a resample are computed without sorting it: equal values are numbered once, and the number of draws of each
    gives its rank. Resamples in which one side is constant are left out.

    Args:
        first: float64 (N,) without NaN.
        second: float64 (N,) without NaN.
        seed: of the resamples.
        resamples: number of them, at least 1.

    Returns:
        Lower and upper end, in [-1, 1]; (-1, 1) if every resample was constant on one side.
    """
    rng = numpy_rng("bootstrap", seed)
    count, sides = len(first), [np.unique(values, return_inverse=True)[1] for values in (first, second)]
    found = []
    for _ in range(resamples):
        times = np.bincount(rng.integers(0, count, count), minlength=count).astype(np.float64)
        x, y = (_centred_ranks(numbers, times) for numbers in sides)
        spread = math.sqrt(float(times @ (x * x))) * math.sqrt(float(times @ (y * y)))
        if spread > 0:
            found.append(float(times @ (x * y)) / spread)
    if not found:
        return -1.0, 1.0
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(found, (tail, 100 - tail))
    return float(low), float(high)


def _centred_ranks(numbers: NDArray[np.integer], times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average rank, less the mean of all, of each row in a sample that holds it so many times."""
    sizes = np.bincount(numbers, weights=times)
    ranks = np.cumsum(sizes) - (sizes - 1) / 2
    return ranks[numbers] - (times.sum() + 1) / 2


def groups(values: NDArray[np.float64], decile: NDArray[np.integer]) -> list[DecileMean]:
    """Count, mean and its standard error in each decile that has rows.

    Args:
        values: float64 (N,).
        decile: integers (N,), 1 .. 10.
    """
    found = []
    for number in range(1, DECILES + 1):
        mine = values[decile == number]
        if not len(mine):
            continue
        # A decile that is all alike has a spread, too: that of one value more that is unlike (rule of succession).
        spread = max(float(mine.std()), float(np.ptp(values)) * math.sqrt(len(mine) + 1) / (len(mine) + 2))
        found.append(DecileMean(number, len(mine), float(mine.mean()), spread / math.sqrt(len(mine))))
    return found


def reversal(found: Sequence[DecileMean]) -> tuple[int, int] | None:
    """The easier and the harder decile whose means fall most beyond noise; None if no pair does.

    A difference counts beyond the two-sided 95 % normal quantile, divided among all pairs (Bonferroni).

    Args:
        found: at most one entry per decile, ascending, as from ``groups``.
    """
    pairs = [(easy, hard) for at, easy in enumerate(found) for hard in found[at + 1 :]]
    if not pairs:
        return None
    limit = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2 / len(pairs))
    falls = {
        (easy.decile, hard.decile): (easy.mean - hard.mean) / max(math.hypot(easy.error, hard.error), 1e-12)
        for easy, hard in pairs
    }
    worst = max(falls, key=lambda pair: falls[pair])
    return worst if falls[worst] > limit else None
