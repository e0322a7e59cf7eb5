"""Selection methods that go by features and gradients of a network's last layer: see ``selection_methods``.

Each is a thin layer over ``feature_selection`` or ``gradient_selection``. They take ``features``, of ``score --record
features``, and say what they cost: a class of 5,000 samples is soon done, a million at once may not be. With class
balance each runs on one class at a time, as most of their authors do. Of N samples, in the order of their ids, each
takes scores (N,), higher = harder, or None, labels (N,), the budget k, 1 .. N, and the features; gives k ids.
"""

# ruff: noqa: ARG001, ARG005  (every method has the same signature, whatever it reads of it)

import numpy as np
from numpy.typing import NDArray

from easycore_ray.core import feature_selection, gradient_selection
from easycore_ray.core.feature_selection import Features
from easycore_ray.core.lowest import Ids
from easycore_ray.core.selection_methods import Cost, Scores, selection_method


@selection_method("moderate", features=True)
def _moderate(scores: None, sample_ids: Ids, labels: NDArray, k: int, *, uniform: None, features: Features) -> Ids:
    """The samples in the middle by distance to the median feature of their class (moderate coresets).

    Xia et al. 2023, "Moderate Coreset": a window of ranks about the median of the distances.
    """
    distances = feature_selection.class_median_distances(features.values, labels)
    return sample_ids[feature_selection.middle_by_rank(distances, k)]


@selection_method("k_center", features=True, cost=lambda n, k, size: Cost(2.0 * n * k * size, 8.0 * n * size))
def _k_center(scores: None, sample_ids: Ids, labels: NDArray, k: int, *, uniform: None, features: Features) -> Ids:
    """Samples such that every other is near one of them, in features (k-center greedy).

    Sener & Savarese 2018, arXiv 1708.00489. Begins with the sample nearest to the mean feature; of equals the lower id.
    """
    places = features.values.astype(np.float64)
    first = int(np.argmin(((places - places.mean(axis=0)) ** 2).sum(axis=1)))
    return sample_ids[feature_selection.k_center_greedy(features.values, k, first)]


@selection_method("herding", features=True, cost=lambda n, k, size: Cost(2.0 * n * k * size, 8.0 * n * size))
def _herding(scores: None, sample_ids: Ids, labels: NDArray, k: int, *, uniform: None, features: Features) -> Ids:
    """Samples whose mean feature is that of all (herding).

    Welling 2009; in coresets as in Rebuffi et al. 2017, iCaRL.
    """
    return sample_ids[feature_selection.herding(features.values, k)]


@selection_method(
    "d2", default_score="el2n", features=True,
    cost=lambda n, k, size: Cost(2.0 * n * n * size + 2.0 * n * k, 8.0 * n * (size + 2 * 1024)),
)  # fmt: skip
def _d2(
    scores: Scores,
    sample_ids: Ids,
    labels: NDArray,
    k: int,
    *,
    uniform: None,
    features: Features,
    neighbours: int = 10,
    gamma: float = 1.0,
) -> Ids:
    """Hard samples that are unlike one another, by messages between neighbours in features (D2).

    Maharana et al. 2024, arXiv 2310.07931. Features are scaled to unit length, so that one gamma suits networks of any
    width. Scores that go below 0 are shifted, so that the easiest has 0.

    Options:
        neighbours: of each sample in the graph.
        gamma: how fast edges fall with the squared distance.
    """
    lengths = np.linalg.norm(features.values, axis=1, keepdims=True)
    places = features.values / np.maximum(lengths, np.finfo(np.float32).tiny)
    hardness = scores - min(scores.min(), 0.0)
    return sample_ids[feature_selection.message_passing(hardness, places, k, neighbours=neighbours, gamma=gamma)]


@selection_method(
    "bws", default_score="el2n", features=True,
    cost=lambda n, k, size: Cost(20 * 2.0 * (k * size**2 + size**3 + n * size), 8.0 * n * (size + 10)),
)  # fmt: skip
def _bws(
    scores: Scores,
    sample_ids: Ids,
    labels: NDArray,
    k: int,
    *,
    uniform: None,
    features: Features,
    windows: int = 20,
    ridge: float = 1.0,
) -> Ids:
    """The window of hardness from which a ridge regression on features tells all samples best (BWS).

    Choi et al. 2024, arXiv 2406.03057.

    Options:
        windows: how many are compared, from the easiest to the hardest.
        ridge: weight of the squared coefficients.
    """
    return sample_ids[feature_selection.best_window(scores, features.values, labels, k, windows=windows, ridge=ridge)]


@selection_method("craig", features=True, cost=lambda n, k, size: Cost(4.0 * n * n * size, 4 * 8.0 * n * n))
def _craig(scores: None, sample_ids: Ids, labels: NDArray, k: int, *, uniform: None, features: Features) -> Ids:
    """Samples whose last-layer gradients are near those of all others (CRAIG).

    Mirzasoleiman et al. 2020, arXiv 1906.01827; within classes with class balance, as its authors do.
    """
    return sample_ids[gradient_selection.craig(_products(features, labels), k)]


@selection_method(
    "gradmatch", features=True,
    cost=lambda n, k, size: Cost(4.0 * n * n * size + k**4 / 6.0 + 2.0 * n * k * k, 4 * 8.0 * n * n),
)  # fmt: skip
def _gradmatch(
    scores: None,
    sample_ids: Ids,
    labels: NDArray,
    k: int,
    *,
    uniform: None,
    features: Features,
    ridge: float = 1.0,
) -> Ids:
    """Samples whose weighted last-layer gradients add up to those of all (GradMatch).

    Killamsetty et al. 2021, arXiv 2103.00123; training does not use the weights.

    Options:
        ridge: weight of the squared weights.
    """
    return sample_ids[gradient_selection.gradmatch(_products(features, labels), k, ridge=ridge)[0]]


def _products(features: Features, labels: NDArray) -> NDArray[np.float64]:
    return gradient_selection.gradient_products(features.errors(labels), features.values)
