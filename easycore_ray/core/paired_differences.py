"""What a few seeds tell of a difference: its mean with a t-interval, and which of many differences survive.

Two ways of training that share a seed share images, weights at the start and the order of batches, so that their
difference within a seed varies less than either. Takes such differences as plain numbers.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE_LEVEL = 0.95
"""Of intervals; Holm's correction holds the chance of any false finding at 1 minus this."""
# Differences closer than this, in the unit they come in, are the same number computed twice.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class PairedDifference:
    """The mean of differences within a seed, and how well it is known."""

    count: int
    """Number of seeds."""
    ahead: int
    """Seeds in which the difference is above 0."""
    mean: float
    """In the unit of the differences."""
    std: float | None
    """Sample standard deviation over seeds; None for a single seed."""
    interval: tuple[float, float] | None
    """95 % t-interval of the mean; None for a single seed, and where all differences are equal."""
    p_value: float
    """Of the two-sided t-test that the mean is 0, in [0, 1]; 1 where there is no interval."""


def paired_difference(differences: Sequence[float]) -> PairedDifference:
    """Mean, spread, 95 % interval and p-value of differences within a seed.

    The interval is mean ± t(0.975, n - 1) · std / √n and the p-value that of t = mean · √n / std on n - 1 degrees of
    freedom (Student 1908). Both take the differences for independent draws from a normal distribution. Equal
    differences have no interval: a handful of seeds that agree by the granularity of an accuracy prove no certainty.

    Args:
        differences: one for each seed, at least one; finite.

    Raises:
        ValueError: there are none.
    """
    if not differences:
        raise ValueError("a difference needs at least one seed")
    count, mean = len(differences), statistics.fmean(differences)
    ahead = sum(value > _ROUNDING for value in differences)
    std = statistics.stdev(differences) if count > 1 else None
    if std is None or std <= _ROUNDING:
        return PairedDifference(count, ahead, mean, std, None, 1.0)
    from scipy.special import stdtr  # the t distribution

    error = std / math.sqrt(count)
    reach = t_reach(count) * error
    p_value = 2 * float(stdtr(count - 1, -abs(mean) / error))
    return PairedDifference(count, ahead, mean, std, (mean - reach, mean + reach), p_value)


def t_reach(count: int, comparisons: int = 1) -> float:
    """How many standard errors from 0 a mean over seeds must be to be a finding, two-sided, at 5 %.

    The quantile of the t distribution at 1 - 0.025 / comparisons on count - 1 degrees of freedom: with one comparison
    half the width of a 95 % interval, with several what Holm's correction asks of the clearest of them.

    Args:
        count: seeds, at least 2.
        comparisons: at least 1.
    """
    from scipy.special import stdtrit  # quantiles of the t distribution

    return float(stdtrit(count - 1, 1 - (1 - CONFIDENCE_LEVEL) / 2 / comparisons))


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """P-values of several comparisons, corrected for their number (Holm 1979).

    Of m p-values in rising order the i-th is multiplied by m - i + 1, and none is below one before it; at most 1. Those
    of at most 0.05 survive.

    Args:
        p_values: one for each comparison, in [0, 1].

    Returns:
        For each, in the order given, the corrected one, in [0, 1].
    """
    found = [1.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        found[place] = highest
    return found


def survives_holm(p_values: Sequence[float]) -> list[bool]:
    """Which of several comparisons are findings when all of them are looked at: see ``holm_adjusted``.

    The smallest of m p-values must not exceed 0.05 / m, the next 0.05 / (m - 1) and so on; the first that does ends the
    list. The chance that any of the survivors is false is then at most 5 %, however the comparisons depend on each
    other.

    Args:
        p_values: one for each comparison, in [0, 1].

    Returns:
        For each, in the order given, whether it survives.
    """
    return [p_value <= 1 - CONFIDENCE_LEVEL for p_value in holm_adjusted(p_values)]
