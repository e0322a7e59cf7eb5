"""Calibration: whether a model is right as often as it is sure.

Counts go into bins of integers, which add up to the same whatever the order and however rows are cut into shards.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

BINS = 15
"""Of equal width over (0, 1], as in Guo et al. 2017."""
_UNITS = 2**40  # of a confidence: exact for float32 from 2**-16 on, and their sums are integers

Bins = list[list[int]]
"""For each of ``BINS`` bins: predictions, right ones, sum of the confidences in units of 2**-40."""


def calibration_bins(confidence: NDArray, correct: NDArray) -> Bins:
    """Predictions counted by their confidence; bin m of M holds those in ((m - 1) / M, m / M].

    Args:
        confidence: float (N,) in [0, 1], the largest probability of each prediction.
        correct: bool (N,), whether it is right.

    Raises:
        ValueError: lengths that differ, or a confidence outside [0, 1] (NaN included).
    """
    sure, right = np.asarray(confidence, np.float64), np.asarray(correct, bool)
    if sure.shape != right.shape or not ((sure >= 0) & (sure <= 1)).all():
        raise ValueError(f"confidence and correct must match and be in [0, 1], got shapes {sure.shape}, {right.shape}")
    place = np.clip(np.ceil(sure * BINS).astype(np.int64) - 1, 0, BINS - 1)
    units = np.rint(sure * _UNITS).astype(np.int64)
    return [[int((place == number).sum()), int(right[place == number].sum()), int(units[place == number].sum())]
            for number in range(BINS)]  # fmt: skip


def add_bins(parts: Iterable[Sequence[Sequence[int]]]) -> Bins:
    """The bins of all rows from those of their parts; the order does not matter."""
    found = [[0, 0, 0] for _ in range(BINS)]
    for part in parts:
        found = [[a + b for a, b in zip(*pair, strict=True)] for pair in zip(found, part, strict=True)]
    return found


def expected_calibration_error(bins: Sequence[Sequence[int]]) -> float:
    """ECE: mean distance of accuracy and confidence over the bins, weighted by their predictions; in [0, 1].

    Naeini et al. 2015 (AAAI), in the form of Guo et al. 2017 (arXiv 1706.04599), equation 3, with 15 bins of equal
    width as there.

    Raises:
        ValueError: there are no predictions.
    """
    total = sum(count for count, _, _ in bins)
    if total == 0:
        raise ValueError("the calibration of 0 predictions is not defined")
    return sum(abs(right * _UNITS - units) for _, right, units in bins) / (total * _UNITS)
