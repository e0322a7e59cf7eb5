"""Trends with hardness: deciles that do not depend on row order, honest intervals, planted cases of each outcome."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from easycore_ray.core.metrics import spearman
from easycore_ray.core.seeding import numpy_rng
from easycore_ray.core.trend_test import (
    DECILES,
    DOES_NOT_HOLD,
    HOLDS,
    INCONCLUSIVE,
    DecileMean,
    bootstrap_interval,
    deciles,
    draw_from_deciles,
    groups,
    reversal,
    trend,
)

pytestmark = pytest.mark.slow


def rng(seed=0):
    return np.random.default_rng(seed)


def population(count=1000, seed=0):
    """Hardness, and the decile of each sample."""
    hard = rng(seed).gamma(2.0, 1.0, count)
    return hard, deciles(hard, np.arange(count))


# ---------------------------------------------------------------- deciles


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, np.inf]), min_size=10, max_size=60), st.randoms())
def test_deciles_are_equal_parts_in_order_whatever_the_order_of_rows(values, random):
    """Sizes differ by one at most, none is harder than the next, ties go by id: as a slow sort says."""
    hard, ids = np.array(values), np.arange(len(values)) * 7 + 3
    found = deciles(hard, ids)
    ranked = sorted(range(len(values)), key=lambda at: (hard[at], ids[at]))
    expected = {ids[at]: place * 10 // len(values) + 1 for place, at in enumerate(ranked)}
    rows = list(range(len(values)))
    random.shuffle(rows)

    assert found.tolist() == [expected[number] for number in ids]
    assert deciles(hard[rows], ids[rows]).tolist() == found[rows].tolist()
    sizes = np.bincount(found, minlength=DECILES + 1)[1:]
    assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize(
    ("values", "words"), [([1.0] * 9, "at least 10 samples, got 9"), ([1.0] * 11 + [np.nan], "not a number")]
)
def test_deciles_that_cannot_be_are_refused(values, words):
    """Too few samples, or a score that is none."""
    with pytest.raises(ValueError, match=words):
        deciles(np.array(values), np.arange(len(values)))


def test_a_draw_takes_equally_many_of_each_decile():
    """Sorted, without repeats, the same for a seed whatever the order of rows; all if there are no more."""
    _, decile = population(1003)
    ids = rng(1).permutation(5000)[:1003]
    found = draw_from_deciles(decile, ids, 105, 3)
    order = rng(2).permutation(1003)

    assert np.all(np.diff(found) > 0)
    assert np.bincount(decile[np.isin(ids, found)])[1:].tolist() == [11] * 5 + [10] * 5
    assert np.array_equal(draw_from_deciles(decile[order], ids[order], 105, 3), found)
    assert not np.array_equal(draw_from_deciles(decile, ids, 105, 4), found)
    assert np.array_equal(draw_from_deciles(decile, ids, 2000, 3), np.sort(ids))


# ---------------------------------------------------------------- intervals


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Of 95 % intervals of 60 draws from a normal pair with Spearman 0.48, nearly all hold it; and it is not slack."""
    truth = 6 / np.pi * np.arcsin(0.5 / 2)
    hits, widths = 0, []
    for seed in range(60):
        first = rng(seed).normal(size=100)
        second = 0.5 * first + np.sqrt(0.75) * rng(seed + 1000).normal(size=100)
        low, high = bootstrap_interval(first, second, resamples=100)
        hits += low <= truth <= high
        widths.append(high - low)

    assert hits >= 52
    assert np.mean(widths) < 0.4


def test_the_interval_is_that_of_a_plain_bootstrap():
    """Drawing rows and ranking each draw anew, with many ties, gives the same two numbers."""
    first, second = rng(1).integers(0, 8, 60).astype(float), rng(2).random(60) < 0.4
    draws = numpy_rng("bootstrap", 7)
    found = []
    for _ in range(50):
        rows = draws.integers(0, 60, 60)
        found.append(spearman(first[rows], second[rows]))

    expected = np.percentile(found, (2.5, 97.5))
    assert bootstrap_interval(first, second.astype(float), seed=7, resamples=50) == pytest.approx(tuple(expected))


def test_the_interval_is_the_same_for_a_seed():
    """Numbers in a report can be had again."""
    hard, _ = population(100)
    values = rng(3).random(100)
    assert bootstrap_interval(hard, values, seed=1) == bootstrap_interval(hard, values, seed=1)
    assert bootstrap_interval(hard, values, seed=1) != bootstrap_interval(hard, values, seed=2)


# ---------------------------------------------------------------- outcomes


@pytest.mark.parametrize("rises", [True, False])
def test_a_planted_trend_holds_and_its_opposite_does_not(rises):
    """A success that becomes likelier with hardness; claimed in its direction and against it."""
    hard, decile = population()
    values = rng(1).random(1000) < (decile if rises else 11 - decile) / 11

    assert trend(hard, values, decile, rises=rises).outcome == HOLDS
    assert trend(hard, values, decile, rises=not rises).outcome == DOES_NOT_HOLD


def test_no_relation_does_not_hold_with_many_rows_and_cannot_be_told_with_few():
    """Five thousand rows rule out more than a negligible correlation, sixty do not, forty are not looked at."""
    for count, outcome in ((5000, DOES_NOT_HOLD), (60, INCONCLUSIVE), (40, INCONCLUSIVE)):
        hard, decile = population(count)
        found = trend(hard, rng(5).random(count), decile)
        assert found.outcome == outcome, found
    assert "only 40 samples" in found.reason


def test_a_rise_that_turns_back_does_not_hold():
    """Correlated over all, but the hardest decile is the safest: not a steady trend, and it says where."""
    hard, decile = population(2000)
    values = rng(1).random(2000) < np.where(decile == 10, 0.05, decile / 11)
    found = trend(hard, values, decile)

    assert found.rank_correlation > 0.1
    assert found.outcome == DOES_NOT_HOLD
    assert found.reversal[1] == 10
    assert "decile 10 contradicts" in found.reason


def test_noise_between_deciles_is_no_reversal():
    """In a hundred draws of a true weak trend, contradictions are found about as often as allowed."""
    count = 0
    for seed in range(100):
        hard, decile = population(500, seed)
        count += trend_reverses(hard, rng(seed + 500).random(500) < 0.3 + 0.04 * decile, decile)
    assert count <= 5


def trend_reverses(hard, values, decile):
    return reversal(groups(np.asarray(values, float), decile)) is not None


def test_a_clear_reversal_is_named_and_deciles_without_rows_are_passed_over():
    """The pair that falls most in units of its error; nothing where means rise."""
    found = [DecileMean(1, 50, 0.2, 0.05), DecileMean(2, 50, 0.9, 0.05), DecileMean(7, 50, 0.3, 0.05)]
    assert reversal(found) == (2, 7)
    assert reversal(found[:2]) is None
    assert reversal(found[:1]) is None
    assert [group.decile for group in groups(np.ones(4), np.array([3, 3, 9, 9]))] == [3, 9]


def test_a_negligible_trend_is_not_said_to_hold():
    """With enough rows any correlation differs from 0; below 0.1 it is no finding."""
    hard, decile = population(4000)
    ranks = np.argsort(np.argsort(hard)) / len(hard)
    values = 0.045 * (ranks - 0.5) / ranks.std() + rng(2).normal(size=len(hard))
    found = trend(hard, values, decile)

    assert 0 < found.interval[0] < found.interval[1] < 0.1
    assert found.outcome == DOES_NOT_HOLD


@pytest.mark.parametrize(
    ("hard", "values", "words"),
    [
        (np.arange(100.0), np.ones(100), "the same for all samples"),
        (np.ones(100), np.arange(100.0), "equally hard"),
        (np.empty(0), np.empty(0), "only 0 samples"),
    ],
)
def test_nothing_to_compare_cannot_be_told(hard, values, words):
    """Constant columns and empty ones."""
    found = trend(hard, values, np.arange(len(hard)) // 10 + 1)
    assert (found.outcome, found.rank_correlation) == (INCONCLUSIVE, None)
    assert words in found.reason


def test_infinite_values_rank_last():
    """A sample that no attack fools is farther than all others: the correlation is that of ranks."""
    hard, decile = population(300)
    values = np.where(decile <= 2, np.inf, 1.0 / hard)
    found = trend(hard, values, decile, rises=False)

    assert found.outcome == HOLDS
    assert found.rank_correlation == spearman(hard, np.where(np.isinf(values), 1e9, values))
