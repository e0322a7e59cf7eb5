"""What scores say of the data itself: suspect labels, equal images, and classes that a global cut would starve."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from easycore_ray.core.lowest import Ids, refuse_nan
from easycore_ray.core.selection import budget, quotas_of_sizes


@dataclass(frozen=True)
class ClassShares:
    """What a global cut keeps of each class, int64 (num_classes,) each."""

    sizes: Ids
    """Samples of the class."""
    quotas: Ids
    """How many a cut of the same size that is balanced by class keeps, see ``quotas_of_sizes``."""
    kept: Ids
    """How many the global cut keeps."""

    @property
    def ratios(self) -> NDArray[np.float64]:
        """Kept samples as a multiple of the quota, float64 (num_classes,); NaN where the quota is 0."""
        return np.where(self.quotas > 0, self.kept / np.maximum(self.quotas, 1), np.nan)

    def starved(self, least: float) -> Ids:
        """Labels of the classes that get less than this share of their quota, int64 (m,), most starved first."""
        labels = np.flatnonzero(self.ratios < least)
        return labels[np.argsort(self.ratios[labels], kind="stable")]


def places_of_hardest(hardness: NDArray[np.float64], sample_ids: Ids, count: int) -> Ids:
    """Where the hardest samples are, hardest first, ties by id: int64 (count,), whatever the order of the rows.

    Label errors are found there: a network fits what the other samples of the class have in common first, so that a
    wrong label keeps a negative margin (AUM, Pleiss et al. 2020) and a high loss (CSL, Ravikumar et al. 2025) for most
    of the training.

    Args:
        hardness: (N,), higher is harder.
        sample_ids: (N,), unique.
        count: 0 .. N.

    Raises:
        ValueError: a NaN among the scores, or a count out of range.
    """
    refuse_nan(hardness, sample_ids)
    if not 0 <= count <= len(hardness):
        raise ValueError(f"count must be in 0 .. {len(hardness)} (the number of samples), got {count}")
    if count == 0:
        return np.empty(0, np.int64)
    # The few that can be among them are sorted, not all.
    bound = np.partition(hardness, len(hardness) - count)[len(hardness) - count]
    at = np.flatnonzero(hardness >= bound)
    return at[np.lexsort((sample_ids[at], -hardness[at]))][:count]


def class_shares(
    hardness: NDArray[np.float64], sample_ids: Ids, labels: NDArray[np.integer], num_classes: int, fraction: float
) -> ClassShares:
    """What is kept of each class where the easiest of all samples are, ties by id.

    Args:
        hardness: (N,), higher is harder.
        sample_ids: (N,), unique.
        labels: (N,) in 0 .. num_classes − 1.
        num_classes: classes of the dataset.
        fraction: share of the samples that the cut keeps, in (0, 1].

    Raises:
        ValueError: a NaN among the scores, or a fraction that keeps nothing.
    """
    k = budget(len(hardness), fraction)
    sizes = np.bincount(labels, minlength=num_classes)
    kept = np.bincount(labels[places_of_hardest(-hardness, sample_ids, k)], minlength=num_classes)
    return ClassShares(sizes, quotas_of_sizes(sizes, k), kept)


def separability(hardness: NDArray[np.float64], labels: NDArray[np.integer]) -> float:
    """How far the classes lie apart in difficulty: η² of the ranks, in [0, 1].

    The share of the ranks' variance that lies between the classes: 0 where all are equally hard, near 1 where one
    class follows the other. About (classes − 1) / (N − 1) is chance. Ranks, ties averaged, because a cut goes by the
    order alone.

    Args:
        hardness: (N,), not NaN.
        labels: (N,), at least 0.
    """
    _, inverse, counts = np.unique(hardness, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse.reshape(-1)] - (len(hardness) + 1) / 2
    sizes = np.bincount(labels)
    means = np.bincount(labels, weights=ranks) / np.maximum(sizes, 1)
    total = float(np.sum(ranks**2))
    return float(np.sum(sizes * means**2)) / total if total > 0 else 0.0


def first_equals(keys: NDArray) -> Ids:
    """For every row the place of the first row with an equal key, −1 where no other row has it: int64 (N,).

    Args:
        keys: (N,), of any type that can be sorted.
    """
    found = np.full(len(keys), -1, np.int64)
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.append(True, keys[order][1:] != keys[order][:-1])) if len(keys) else order
    sizes = np.diff(np.append(starts, len(keys)))
    firsts = np.repeat(order[starts], sizes)
    several = np.repeat(sizes > 1, sizes)
    found[order[several]] = firsts[several]
    return found
