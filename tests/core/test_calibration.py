"""The expected calibration error: its definition row by row, exact values, and the same from any shards."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from easycore_ray.core.calibration import add_bins, calibration_bins, expected_calibration_error

ROWS = st.lists(st.tuples(st.floats(2**-13, 1, width=32), st.booleans()), min_size=1, max_size=60)


def by_definition(rows):
    """Bin by bin in exact arithmetic: share of the rows × |accuracy − mean confidence|."""
    found = Fraction(0)
    for number in range(15):
        low, high = Fraction(number, 15), Fraction(number + 1, 15)
        inside = [(Fraction(sure), right) for sure, right in rows if low < Fraction(sure) <= high]
        if inside:
            accuracy = Fraction(sum(right for _, right in inside), len(inside))
            confidence = sum(sure for sure, _ in inside) / len(inside)
            found += Fraction(len(inside), len(rows)) * abs(accuracy - confidence)
    return float(found)


def bins_of(rows):
    sure, right = zip(*rows, strict=True)
    return calibration_bins(np.array(sure, np.float32), np.array(right))


@given(ROWS)
def test_is_its_definition(rows):
    """To rounding, of any confidences."""
    assert expected_calibration_error(bins_of(rows)) == pytest.approx(by_definition(rows), abs=1e-9)


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        ([(1.0, True)] * 3, 0.0),  # sure and right
        ([(1.0, False)] * 3, 1.0),  # sure and wrong
        ([(0.75, True)] * 3 + [(0.75, False)], 0.0),  # right as often as it is sure
        ([(0.5, True), (0.5, True)], 0.5),  # right more often
        ([(0.75, True), (0.25, False)], 0.25),  # in two bins, where one would have hidden it: (1/4 + 1/4) / 2
    ],
)
def test_exact_values(rows, error):
    """Halves and quarters have no rounding."""
    assert expected_calibration_error(bins_of(rows)) == error


def test_a_bin_holds_its_upper_end():
    """1 is in the last, 0 in the first; a third, in float32 just above it, in the sixth."""
    found = [row[0] for row in bins_of([(1.0, True), (0.0, True), (float(np.float32(1 / 3)), True), (0.0625, True)])]

    assert np.flatnonzero(found).tolist() == [0, 5, 14]


@given(ROWS, st.integers(0, 60), st.randoms(use_true_random=False))
def test_shards_add_up_to_the_whole_in_any_order(rows, cut, random):
    """Exactly: counts and sums are integers."""
    mixed = random.sample(rows, len(rows))
    parts = [bins_of(part) for part in (mixed[:cut], mixed[cut:]) if part]

    assert add_bins(reversed(parts)) == bins_of(rows)


@pytest.mark.parametrize("sure", [[1.1], [-0.1], [float("nan")], [0.5, 0.5]])
def test_what_is_no_confidence_is_refused(sure):
    """Outside [0, 1], not a number, or of another length."""
    with pytest.raises(ValueError, match="must match and be in"):
        calibration_bins(np.array(sure), np.array([True]))


def test_nothing_has_no_error():
    """Not 0, which would mean perfect."""
    with pytest.raises(ValueError, match="0 predictions"):
        expected_calibration_error(add_bins([]))
