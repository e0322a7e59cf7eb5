"""Selection by last-layer gradients, against slow versions on the gradients themselves."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from easycore_ray.core.gradient_selection import craig, gradient_products, gradmatch


@pytest.fixture(params=[0, 1, 2])
def gradients(request):
    """Gradients of 30 rows at a layer of 3 classes and 4 features, by autograd, and their inner products."""
    torch.manual_seed(request.param)
    layer = torch.nn.Linear(4, 3).double()
    inputs, labels = torch.randn(30, 4, dtype=torch.double), torch.randint(3, (30,))
    rows = []
    for row in range(30):
        layer.zero_grad()
        cross_entropy(layer(inputs[row : row + 1]), labels[row : row + 1]).backward()
        rows.append(torch.cat([layer.weight.grad.flatten(), layer.bias.grad]).numpy())
    errors = layer(inputs).softmax(1) - torch.nn.functional.one_hot(labels, 3)
    return np.stack(rows), gradient_products(errors.detach().numpy(), inputs.numpy())


def test_products_are_those_of_the_gradients(gradients):
    rows, products = gradients
    np.testing.assert_allclose(products, rows @ rows.T, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("k", [1, 8, 30])
def test_craig_is_the_plain_greedy_choice(gradients, k):
    rows, products = gradients
    distances = np.linalg.norm(rows[:, None] - rows, axis=2)
    similarity = distances.max() - distances
    chosen = []
    for _ in range(k):
        left = [row for row in range(30) if row not in chosen]
        chosen.append(max(left, key=lambda row: similarity[:, [*chosen, row]].max(axis=1).sum()))
    assert craig(products, k).tolist() == sorted(chosen)


@pytest.mark.parametrize("k", [1, 6, 30])
def test_gradmatch_is_orthogonal_matching_pursuit(gradients, k):
    rows, products = gradients
    wanted, chosen = rows.sum(axis=0), []
    residual = wanted
    for _ in range(k):
        left = [row for row in range(30) if row not in chosen]
        chosen.append(max(left, key=lambda row: float(rows[row] @ residual)))
        weights = _projected_gradient(rows[chosen], wanted)
        residual = wanted - weights @ rows[chosen]
    found, own = gradmatch(products, k)
    assert found.tolist() == sorted(chosen)
    np.testing.assert_allclose(own, weights[np.argsort(chosen)], atol=1e-6)


def _projected_gradient(rows, wanted, ridge=1.0):
    """Non-negative ridge regression by many small steps."""
    matrix, target = rows @ rows.T + ridge * np.eye(len(rows)), rows @ wanted
    weights, step = np.zeros(len(rows)), 1 / np.linalg.eigvalsh(matrix).max()
    for _ in range(4_000):
        weights = np.maximum(weights - step * (matrix @ weights - target), 0)
    return weights


def test_gradmatch_finds_weights_that_match_better_than_a_random_choice(gradients):
    rows, products = gradients
    found, weights = gradmatch(products, 10)
    assert (weights >= 0).all()
    ours = np.linalg.norm(weights @ rows[found] - rows.sum(axis=0))
    for seed in range(5):
        other = np.random.default_rng(seed).permutation(30)[:10]
        assert ours <= np.linalg.norm(
            _projected_gradient(rows[other], rows.sum(axis=0)) @ rows[other] - rows.sum(axis=0)
        )
