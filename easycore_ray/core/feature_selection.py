"""Selection by features: which samples to keep, given where the network places each.

Takes penultimate features, float32 (N, D), and for some methods hardness; gives the chosen rows. Distances are
Euclidean. Rows are in the order of their ids, and ties go to the lower row, so a choice depends on neither order nor
partitions. NumPy only. Costs are of N samples, k kept, D features; see ``feature_cost``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

_Features: TypeAlias = NDArray[np.float32]
_Rows: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Features:
    """What a network's last linear layer takes and gives, of samples in the order of their ids."""

    values: NDArray[np.float32]
    """Penultimate features, (N, D)."""
    probabilities: NDArray[np.float32]
    """Softmax, (N, num_classes)."""

    def take(self, rows: _Rows) -> "Features":
        """Those of some rows, (n,) integers, in their order."""
        return Features(self.values[rows], self.probabilities[rows])

    def errors(self, labels: NDArray[np.integer]) -> NDArray[np.float32]:
        """Softmax - onehot of labels (N,), the gradient of the cross-entropy at the logits: (N, num_classes)."""
        found = self.probabilities.copy()
        found[np.arange(len(labels)), labels] -= 1.0
        return found


# Rows whose distances to all others are held at once.
_BLOCK_ROWS = 1024


def class_median_distances(features: _Features, labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """Distance of each sample to the median feature of its class, by which moderate coresets go; float64 (N,).

    After Xia et al. 2023, "Moderate Coreset": the median is taken of each feature on its own.

    Args:
        features: (N, D).
        labels: (N,).
    """
    found = np.empty(len(features))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        own = features[rows].astype(np.float64)
        found[rows] = np.linalg.norm(own - np.median(own, axis=0), axis=1)
    return found


def middle_by_rank(distances: NDArray[np.float64], k: int) -> _Rows:
    """The k rows in the middle of the order by distance, ascending: ranks floor((N - k) / 2) and on.

    Moderate coresets keep this window (Xia et al. 2023).

    Args:
        distances: (N,).
        k: 1 .. N.
    """
    first = (len(distances) - k) // 2
    return np.sort(np.argsort(distances, kind="stable")[first : first + k])


def k_center_greedy(features: _Features, k: int, first: int) -> _Rows:
    """The k rows of a farthest-first traversal, such that every row has one of them near; ascending.

    Each next row is the one farthest from those chosen (Gonzalez 1985; Sener & Savarese 2018), at most twice as far
    from the best possible cover. O(N · k · D).

    Args:
        features: (N, D).
        k: 1 .. N.
        first: row to begin with.
    """
    points = features.astype(np.float64)
    squares = np.einsum("ij,ij->i", points, points)
    nearest = np.full(len(points), np.inf)
    chosen = [first]
    while True:
        latest = chosen[-1]
        nearest = np.minimum(nearest, squares - 2 * (points @ points[latest]) + squares[latest])
        # Of equal points some stay; one that is chosen never comes again.
        nearest[latest] = -np.inf
        if len(chosen) == k:
            return np.sort(np.array(chosen, np.int64))
        chosen.append(int(np.argmax(nearest)))


def herding(features: _Features, k: int) -> _Rows:
    """Herding (Welling 2009): k rows whose mean feature stays near that of all, ascending.

    The t-th row is the one that brings the mean of the first t closest to the mean of all. O(N · k · D).

    Args:
        features: (N, D).
        k: 1 .. N.
    """
    points = features.astype(np.float64)
    mean, squares = points.mean(axis=0), np.einsum("ij,ij->i", points, points)
    left, total = np.ones(len(points), bool), np.zeros(points.shape[1])
    chosen = np.empty(k, np.int64)
    for place in range(k):
        wanted = (place + 1) * mean - total
        distances = np.where(left, squares - 2 * (points @ wanted), np.inf)
        chosen[place] = row = int(np.argmin(distances))
        left[row] = False
        total += points[row]
    return np.sort(chosen)


def nearest_neighbours(features: _Features, count: int) -> tuple[_Rows, NDArray[np.float64]]:
    """The nearest other rows of each row and their squared distances, (N, count) each, nearest first.

    Exact, a block of rows against all at a time: O(N² · D) time, O(N) memory beside the result.

    Args:
        features: (N, D).
        count: 1 .. N - 1.
    """
    points = features.astype(np.float64)
    squares = np.einsum("ij,ij->i", points, points)
    neighbours = np.empty((len(points), count), np.int64)
    distances = np.empty((len(points), count))
    for rows in _blocks(len(points)):
        found = squares[rows, None] - 2 * (points[rows] @ points.T) + squares
        found[np.arange(len(rows)), rows] = np.inf
        # Sorted in full only among the nearest: by distance, then row.
        near = np.argpartition(found, count - 1, axis=1)[:, :count]
        limit = np.take_along_axis(found, near, axis=1).max(axis=1)
        for place, row in enumerate(rows):
            candidates = np.flatnonzero(found[place] <= limit[place])
            order = candidates[np.argsort(found[place, candidates], kind="stable")][:count]
            neighbours[row], distances[row] = order, np.maximum(found[place, order], 0.0)
    return neighbours, distances


def _blocks(count: int) -> Iterator[_Rows]:
    for start in range(0, count, _BLOCK_ROWS):
        yield np.arange(start, min(start + _BLOCK_ROWS, count))


def message_passing(
    hardness: NDArray[np.float64], features: _Features, k: int, *, neighbours: int = 10, gamma: float = 1.0
) -> _Rows:
    """D2 pruning (Maharana et al. 2024, arXiv 2310.07931): k rows that are hard and unlike one another, ascending.

    On the graph of nearest neighbours, whose edges weigh exp(-gamma · d²): each row's hardness first gets those of its
    neighbours added, times their edges. Then the highest is chosen, k times, and after each choice its neighbours lose
    its value times their edges. O(N² · D + k · N).

    Args:
        hardness: (N,), at least 0, higher = harder.
        features: (N, D).
        k: 1 .. N.
        neighbours: of each row in the graph; fewer where there are fewer rows.
        gamma: how fast edges fall with the squared distance, of both steps.

    Raises:
        ValueError: a hardness below 0, which would turn the meaning of an edge.
    """
    if hardness.min(initial=0.0) < 0:
        raise ValueError(f"D2 spreads hardness that is at least 0, got {hardness.min():g}; choose another score")
    if len(features) == 1:
        return np.zeros(1, np.int64)
    near, distances = nearest_neighbours(features, min(neighbours, len(features) - 1))
    edges = np.exp(-gamma * distances)
    values = hardness + (edges * hardness[near]).sum(axis=1)
    chosen = np.empty(k, np.int64)
    for place in range(k):
        chosen[place] = row = int(np.argmax(values))
        values[near[row]] -= edges[row] * values[row]
        values[row] = -np.inf
    return np.sort(chosen)


def best_window(
    hardness: NDArray[np.float64],
    features: _Features,
    labels: NDArray[np.integer],
    k: int,
    *,
    windows: int = 20,
    ridge: float = 1.0,
) -> _Rows:
    """The window of k consecutive rows by hardness from which all others are told best: BWS, ascending.

    Best window selection (Choi et al. 2024, arXiv 2406.03057): for each window a ridge regression of one-hot labels on
    features, fitted on its rows; the window whose regression classifies the most of all rows right is kept, of equals
    the easiest. Windows begin at evenly spaced ranks from the easiest to the hardest k. O(windows · N · D²).

    Args:
        hardness: (N,), higher = harder.
        features: (N, D).
        labels: (N,) integers.
        k: 1 .. N.
        windows: number of them; fewer where N - k is smaller.
        ridge: weight of the squared coefficients against the sum of squared errors.
    """
    order = np.argsort(hardness, kind="stable")
    points = np.column_stack([features.astype(np.float64), np.ones(len(features))])
    classes, targets = np.unique(labels, return_inverse=True)
    onehot = np.eye(len(classes))[targets]
    starts = np.unique(np.linspace(0, len(order) - k, min(windows, len(order) - k + 1)).round().astype(np.int64))
    best, most = order[:k], -1
    for start in starts.tolist():
        rows = order[start : start + k]
        own = points[rows]
        weights = np.linalg.solve(own.T @ own + ridge * np.eye(points.shape[1]), own.T @ onehot[rows])
        right = int(((points @ weights).argmax(axis=1) == targets).sum())
        if right > most:
            best, most = rows, right
    return np.sort(best)
