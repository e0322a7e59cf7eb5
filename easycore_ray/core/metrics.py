"""Numbers for result rows: accuracies with their uncertainty, agreement of scores and of coresets.

Takes numpy arrays (or CPU tensors) and gives plain floats.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # a dry run computes without torch
    from torch import Tensor

ArrayLike: TypeAlias = "NDArray | Tensor | Sequence"


def accuracy(correct: ArrayLike) -> float:
    """Share of True in ``correct``, in [0, 1].

    Raises:
        ValueError: ``correct`` is empty.
    """
    answers = np.asarray(correct, dtype=bool)
    if answers.size == 0:
        raise ValueError("the accuracy of 0 predictions is not defined")
    return float(answers.mean())


def worst_class_accuracy(correct: ArrayLike, labels: ArrayLike, num_classes: int) -> float:
    """Lowest accuracy over the classes that occur in ``labels``, in [0, 1].

    Args:
        correct: bool (N,).
        labels: integers (N,) in 0 .. num_classes - 1.
        num_classes: classes of the model; those without a sample do not count.

    Raises:
        ValueError: empty input, lengths that differ, or a label out of range.
    """
    answers, classes = np.asarray(correct, dtype=bool), np.asarray(labels)
    if answers.size == 0 or answers.shape != classes.shape:
        raise ValueError(f"correct and labels must match, not empty; got {answers.shape} and {classes.shape}")
    if classes.min() < 0 or classes.max() >= num_classes:
        raise ValueError(f"labels must be in 0 .. {num_classes - 1}, got {classes.min()} .. {classes.max()}")
    totals = np.bincount(classes, minlength=num_classes)
    hits = np.bincount(classes[answers], minlength=num_classes)
    present = totals > 0
    return float((hits[present] / totals[present]).min())


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Lower and upper end of the Wilson score interval for a proportion, within [0, 1].

    Unlike the normal approximation it stays sensible at 0 and n successes, where robust accuracies often are
    (Wilson 1927, J. Am. Stat. Assoc. 22).

    Raises:
        ValueError: n < 1, successes outside 0 .. n, or confidence outside (0, 1).
    """
    if n < 1 or not 0 <= successes <= n or not 0 < confidence < 1:
        raise ValueError(f"need 0 <= successes <= n, n >= 1, 0 < confidence < 1; got {successes}, {n}, {confidence}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / n
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # The ends are exact where nothing or everything succeeds; rounding alone would miss 0 and 1.
    low = 0.0 if successes == 0 else max(0.0, (centre - spread) / scale)
    high = 1.0 if successes == n else min(1.0, (centre + spread) / scale)
    return low, high


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman's rank correlation in [-1, 1], ties given their average rank; NaN where one side is constant.

    Args:
        a: (N,) numbers, N >= 2.
        b: (N,) numbers.

    Raises:
        ValueError: lengths that differ, fewer than 2 values, or a NaN.
    """
    first, second = np.asarray(a), np.asarray(b)
    if first.ndim != 1 or first.shape != second.shape or first.size < 2:
        raise ValueError(f"spearman needs two arrays of one length >= 2, got {first.shape} and {second.shape}")
    if np.isnan(first).any() or np.isnan(second).any():
        raise ValueError("spearman got a NaN; drop those rows from both arrays first")
    x, y = average_ranks(first), average_ranks(second)
    x, y = x - x.mean(), y - y.mean()
    spread = math.sqrt(float(x @ x)) * math.sqrt(float(y @ y))
    return float(x @ y) / spread if spread > 0 else math.nan


def overlap(ids_a: ArrayLike, ids_b: ArrayLike) -> float:
    """Share of the ids of one coreset that the other holds too, in [0, 1].

    Two random coresets of fraction f overlap by about f, so compare against that, not against 0.

    Args:
        ids_a: unique sample ids.
        ids_b: as many unique sample ids.

    Raises:
        ValueError: sizes that differ, or none.
    """
    first, second = np.asarray(ids_a), np.asarray(ids_b)
    if first.size != second.size or first.size == 0:
        raise ValueError(f"overlap needs two coresets of one size >= 1, got {first.size} and {second.size} ids")
    return np.intersect1d(first, second).size / first.size


def average_ranks(values: NDArray) -> NDArray[np.float64]:
    """Rank of each value, counted from 1; equal values share the mean of the ranks they take up.

    Args:
        values: (N,) numbers without NaN.

    Returns:
        float64 (N,), in 1 .. N.
    """
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(sizes) - (sizes - 1) / 2.0)[group]
