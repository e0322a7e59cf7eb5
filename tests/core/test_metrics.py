"""Accuracies, their uncertainty, and agreement."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from easycore_ray.core.metrics import accuracy, overlap, spearman, wilson_interval, worst_class_accuracy

NUMBERS = st.lists(st.tuples(st.integers(-3, 3), st.floats(-2, 2)), min_size=2, max_size=30)


def slow_ranks(values):
    """Average ranks by their definition."""
    return [sum(v < x for v in values) + (sum(v == x for v in values) + 1) / 2 for x in values]


def test_accuracy_is_the_share_of_correct():
    """Three of four are 0.75, from a list, an array or a tensor."""
    answers = [True, True, False, True]
    assert accuracy(answers) == accuracy(np.array(answers)) == accuracy(torch.tensor(answers)) == 0.75


def test_worst_class_is_the_lowest_class_accuracy():
    """Class 1 is right in one of three, class 2 does not occur."""
    correct, labels = [1, 1, 1, 0, 0, 1], [0, 0, 1, 1, 1, 3]
    assert worst_class_accuracy(correct, labels, 4) == pytest.approx(1 / 3)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), min_size=1))
def test_worst_class_is_never_above_the_accuracy(rows):
    """The worst class cannot beat the mean over classes."""
    correct, labels = zip(*rows, strict=True)
    assert worst_class_accuracy(correct, labels, 4) <= accuracy(correct) + 1e-12


@pytest.mark.parametrize(
    ("successes", "n", "interval"),
    [(0, 10, (0.0, 0.2775)), (5, 10, (0.2366, 0.7634)), (81, 263, (0.2553, 0.3662)), (10, 10, (0.7225, 1.0))],
)
def test_wilson_interval_gives_published_values(successes, n, interval):
    """Values from the literature (81 of 263: Newcombe 1998, method 3)."""
    assert wilson_interval(successes, n) == pytest.approx(interval, abs=5e-5)


@given(st.integers(1, 1000), st.data())
def test_wilson_interval_contains_the_share_and_grows_with_confidence(n, data):
    """The interval lies in [0, 1] around the observed share; 99 % is wider than 90 %."""
    successes = data.draw(st.integers(0, n))
    low, high = wilson_interval(successes, n, 0.9)
    wide_low, wide_high = wilson_interval(successes, n, 0.99)
    assert 0 <= wide_low <= low <= successes / n + 1e-12
    assert successes / n - 1e-12 <= high <= wide_high <= 1


@given(NUMBERS)
def test_spearman_is_the_correlation_of_average_ranks(rows):
    """Ties included, it equals numpy's correlation of ranks taken one by one."""
    a, b = zip(*rows, strict=True)
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert math.isnan(spearman(a, b))
    else:
        assert spearman(a, b) == pytest.approx(np.corrcoef(slow_ranks(a), slow_ranks(b))[0, 1], abs=1e-9)


def test_spearman_sees_order_alone():
    """Any rising function of a score correlates 1 with it, a falling one -1."""
    a = np.array([3.0, -1.0, 10.0, 2.0])
    assert spearman(a, np.exp(a)) == pytest.approx(1)
    assert spearman(a, -(a**3)) == pytest.approx(-1)


def test_overlap_counts_shared_ids_in_any_order():
    """Two of three ids are shared."""
    assert overlap([5, 1, 9], [9, 2, 5]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "call",
    [
        lambda: accuracy([]),
        lambda: worst_class_accuracy([True], [0, 1], 2),
        lambda: worst_class_accuracy([True], [2], 2),
        lambda: wilson_interval(3, 2),
        lambda: wilson_interval(0, 0),
        lambda: spearman([1.0, math.nan], [1, 2]),
        lambda: spearman([1], [1]),
        lambda: overlap([1, 2], [1]),
        lambda: overlap([], []),
    ],
)
def test_undefined_numbers_are_refused(call):
    """What has no value raises instead of giving one."""
    with pytest.raises(ValueError, match=r"not defined|must|need|NaN"):
        call()
