"""Differences over seeds: intervals against tables of the t distribution, Holm's correction by hand."""

import statistics

import numpy as np
import pytest
from scipy import stats

from easycore_ray.core.paired_differences import holm_adjusted, paired_difference, survives_holm, t_reach


def with_moments(mean, std, count):
    """Numbers with this mean and sample standard deviation."""
    raw = [float(place) for place in range(count)]
    return [mean + std * (value - statistics.fmean(raw)) / statistics.stdev(raw) for value in raw]


@pytest.mark.parametrize(
    ("mean", "std", "count", "reach"),
    # Two-sided 95 % quantiles of a printed table: 12.706, 4.303, 2.776, 2.262 for 1, 2, 4 and 9 degrees of freedom.
    [(1.0, 0.5, 2, 12.706 * 0.5 / 2**0.5), (3.3, 0.4, 3, 4.303 * 0.4 / 3**0.5), (2.7, 2.1, 5, 2.776 * 2.1 / 5**0.5),
     (-1.0, 2.0, 10, 2.262 * 2.0 / 10**0.5)],
)  # fmt: skip
def test_intervals_are_those_of_the_table(mean, std, count, reach):
    """Mean ± quantile · standard error."""
    found = paired_difference(with_moments(mean, std, count))
    assert (found.count, found.mean, found.std) == (count, pytest.approx(mean), pytest.approx(std))
    assert found.interval == pytest.approx((mean - reach, mean + reach), abs=1e-3)


def test_five_seeds_of_two_point_seven():
    """+2.7 ± 2.1, in all five seeds, is [+0.1, +5.3] and p = 0.045."""
    found = paired_difference(with_moments(2.7, 2.1, 5))
    assert [round(end, 1) for end in found.interval] == [0.1, 5.3]
    assert found.p_value == pytest.approx(0.0453, abs=1e-3)


def test_p_values_are_those_of_the_table():
    """At the quantile itself it is 5 %, on either side; where an interval ends at 0, 5 % as well."""
    for sign in (1, -1):
        found = paired_difference(with_moments(sign * 2.7764451 / 5**0.5, 1.0, 5))
        assert found.p_value == pytest.approx(0.05, abs=1e-6)
        assert min(map(abs, found.interval)) == pytest.approx(0, abs=1e-6)


def test_one_seed_has_no_interval():
    """Nor a spread; it proves nothing."""
    found = paired_difference([3.0])
    assert (found.count, found.ahead, found.std, found.interval, found.p_value) == (1, 1, None, None, 1.0)
    with pytest.raises(ValueError, match="at least one seed"):
        paired_difference([])


def test_equal_differences_have_no_interval():
    """One image of a thousand in each of five seeds is no certainty; rounding is no spread."""
    found = paired_difference([100 * (a - b) for a, b in [(0.43, 0.429), (0.33, 0.329), (0.2, 0.199)]])
    assert (found.interval, found.p_value, found.ahead) == (None, 1.0, 3)
    assert paired_difference([0.0, 100 * (0.3 - 0.1 - 0.2)]).ahead == 0


def test_holm_by_hand():
    """0.01 ≤ 0.05/4 and 0.013 ≤ 0.05/3 survive; 0.03 > 0.05/2 does not, nor does 0.04, which is below 0.05/1."""
    assert survives_holm([0.04, 0.01, 0.03, 0.013]) == [False, True, False, True]
    assert survives_holm([0.05]) == [True]
    assert survives_holm([0.026, 0.026]) == [False, False]
    assert survives_holm([0.02, 0.04]) == [True, True]
    assert survives_holm([]) == []


@pytest.mark.parametrize("count", [2, 3, 5, 20])
def test_differences_are_those_of_scipys_paired_t_test(count):
    """Mean, interval and p-value of ``scipy.stats.ttest_rel`` on the accuracies themselves."""
    draws = np.random.default_rng(count)
    mine, other = draws.normal(25.0, 1.0, count), draws.normal(24.0, 1.0, count)
    found, oracle = paired_difference((mine - other).tolist()), stats.ttest_rel(mine, other)
    ends = oracle.confidence_interval(0.95)

    assert found.mean == pytest.approx((mine - other).mean())
    assert found.p_value == pytest.approx(oracle.pvalue, rel=1e-9)
    assert found.interval == pytest.approx((ends.low, ends.high), rel=1e-9)


def test_reach_is_a_quantile():
    """Three seeds have 2 degrees of freedom: 4.303 standard errors; for the clearest of eight arms 12.590."""
    assert t_reach(3) == pytest.approx(4.303, abs=1e-3)
    for count, comparisons in ((3, 8), (5, 20)):
        assert t_reach(count, comparisons) == pytest.approx(stats.t.ppf(1 - 0.025 / comparisons, count - 1))
    assert t_reach(3, 8) == pytest.approx(12.59, abs=0.01)


def test_holm_adjusted_by_hand():
    """In rising order 0.01 · 4, 0.013 · 3 = 0.039, which may not be below 0.04, 0.03 · 2, and 0.04 · 1, as 0.06."""
    assert holm_adjusted([0.04, 0.01, 0.03, 0.013]) == pytest.approx([0.06, 0.04, 0.06, 0.04])
    assert holm_adjusted([0.6, 0.7]) == [1.0, 1.0]
    assert holm_adjusted([0.3]) == [0.3]
    assert holm_adjusted([]) == []
