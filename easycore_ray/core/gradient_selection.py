"""Selection by gradients of the last layer: rows that stand for all others (CRAIG), or whose sum matches theirs.

The gradient of a sample's cross-entropy at weights and bias of the last layer is the outer product of its error,
softmax - onehot, with (features, 1). Inner products of two are therefore (e · e') (1 + h · h'), and no gradient is ever
written down. Both methods need all pairs of the rows they are given, N² float64 numbers, so that they are run class by
class, as their authors do. Ties go to the lower row. NumPy; GradMatch takes non-negative least squares from SciPy.
"""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

_Floats: TypeAlias = NDArray[np.float64]
_Rows: TypeAlias = NDArray[np.int64]


def gradient_products(errors: NDArray[np.floating], features: NDArray[np.floating]) -> _Floats:
    """Inner products of the last layer's gradients of all pairs of rows, float64 (N, N).

    Args:
        errors: (N, num_classes), softmax - onehot.
        features: (N, D), what the last layer takes.
    """
    own, places = errors.astype(np.float64), features.astype(np.float64)
    return (own @ own.T) * (1.0 + places @ places.T)


def craig(products: _Floats, k: int) -> _Rows:
    """CRAIG (Mirzasoleiman et al. 2020, arXiv 1906.01827): k rows whose gradients are near those of all, ascending.

    Greedy maximisation of the facility location Σ_i max_{j chosen} (d_max - d_ij), d_ij the distance of two gradients:
    at least 1 - 1/e of the best. Lazy: a gain never grows, so that only the largest are computed again. The weights
    that the authors train with, how many rows each stands for, are not kept.

    Args:
        products: from ``gradient_products``.
        k: 1 .. N.
    """
    squares = np.diagonal(products)
    distances = np.sqrt(np.maximum(squares[:, None] - 2 * products + squares, 0.0))
    similarity = distances.max() - distances
    covered = np.zeros(len(products))
    gains = similarity.sum(axis=0)
    fresh = np.zeros(len(gains), np.int64)
    chosen: list[int] = []
    while len(chosen) < k:
        row = int(np.argmax(gains))
        if fresh[row] < len(chosen):
            gains[row], fresh[row] = np.maximum(similarity[:, row] - covered, 0.0).sum(), len(chosen)
            continue
        chosen.append(row)
        covered = np.maximum(covered, similarity[:, row])
        gains[row] = -np.inf
    return np.sort(np.array(chosen, np.int64))


def gradmatch(products: _Floats, k: int, *, ridge: float = 1.0) -> tuple[_Rows, _Floats]:
    """GradMatch (Killamsetty et al. 2021, arXiv 2103.00123): rows whose weighted sum matches the sum of all gradients.

    Orthogonal matching pursuit: the row whose gradient goes most with what is left is added, and weights w >= 0 of all
    chosen rows are found anew that minimise ‖Σ w_j g_j - Σ_i g_i‖² + ridge · ‖w‖², until k are chosen.

    Args:
        products: from ``gradient_products``.
        k: 1 .. N.
        ridge: weight of the squared weights.

    Returns:
        The k rows, ascending, and their weights, float64 (k,). Training does not use the weights.
    """
    wanted = products.sum(axis=1)
    left, chosen, weights = wanted.copy(), np.empty(0, np.int64), np.empty(0)
    while len(chosen) < k:
        left[chosen] = -np.inf
        chosen = np.append(chosen, np.argmax(left))
        own = products[np.ix_(chosen, chosen)] + ridge * np.eye(len(chosen))
        weights = _non_negative(own, wanted[chosen])
        left = wanted - products[:, chosen] @ weights
    order = np.argsort(chosen)
    return chosen[order], weights[order]


def _non_negative(matrix: _Floats, target: _Floats) -> _Floats:
    """The w >= 0 that minimises w · matrix · w / 2 - target · w, of a positive definite matrix."""
    factor = np.linalg.cholesky(matrix)
    found = np.asarray(np.linalg.solve(matrix, target), np.float64)
    if found.min() >= 0:
        return found
    from scipy.optimize import nnls

    # The same function up to a constant: ‖Lᵀ w - L⁻¹ target‖² / 2.
    return np.asarray(nnls(factor.T, np.linalg.solve(factor, target))[0], np.float64)
