"""Selection by features, against slow versions that look at every candidate."""

import itertools

import numpy as np
import pytest
import torch

from easycore_ray.core.feature_selection import (
    best_window,
    class_median_distances,
    herding,
    k_center_greedy,
    message_passing,
    middle_by_rank,
    nearest_neighbours,
)


@pytest.fixture(params=[0, 1])
def rows(request):
    """Features (40, 5), labels and hardness."""
    rng = np.random.default_rng(request.param)
    return rng.normal(size=(40, 5)).astype(np.float32), rng.integers(0, 3, 40), rng.gamma(1.0, 1.0, 40)


def distance(a, b):
    return float(np.linalg.norm(a.astype(float) - b.astype(float)))


def test_moderate_goes_by_the_class_median_and_keeps_the_middle_ranks(rows):
    features, labels, _ = rows
    slow = []
    for row, label in zip(features, labels, strict=True):
        same = sorted_columns = np.sort(features[labels == label].astype(float), axis=0)
        half = len(same) // 2
        median = sorted_columns[half] if len(same) % 2 else (sorted_columns[half - 1] + sorted_columns[half]) / 2
        slow.append(float(np.linalg.norm(row - median)))
    found = class_median_distances(features, labels)
    np.testing.assert_allclose(found, slow, rtol=1e-12)
    order = sorted(range(40), key=lambda row: (slow[row], row))
    assert middle_by_rank(found, 10).tolist() == sorted(order[15:25])
    assert middle_by_rank(found, 40).tolist() == list(range(40))


@pytest.mark.parametrize("k", [1, 7, 40])
def test_k_center_takes_the_farthest_each_time(rows, k):
    features, _, _ = rows
    chosen = [3]
    while len(chosen) < k:
        left = [row for row in range(40) if row not in chosen]
        chosen.append(max(left, key=lambda row: min(distance(features[row], features[other]) for other in chosen)))
    assert k_center_greedy(features, k, first=3).tolist() == sorted(chosen)


def test_k_center_covers_at_most_twice_as_far_as_the_best_cover():
    features = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)

    def reach(chosen):
        return max(min(distance(row, features[other]) for other in chosen) for row in features)

    best = min(reach(chosen) for chosen in itertools.combinations(range(9), 3))
    assert reach(k_center_greedy(features, 3, first=0)) <= 2 * best + 1e-9


def test_k_center_keeps_k_of_equal_points():
    assert k_center_greedy(np.ones((6, 2), np.float32), 4, first=2).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("k", [1, 7, 40])
def test_herding_keeps_the_mean(rows, k):
    features, _, _ = rows
    points, chosen = features.astype(float), []
    for _ in range(k):
        left = [row for row in range(40) if row not in chosen]
        # The mean of those chosen so far and the candidate, against the mean of all.
        chosen.append(min(left, key=lambda row: np.linalg.norm(points[[*chosen, row]].mean(0) - points.mean(0))))
    assert herding(features, k).tolist() == sorted(chosen)


def test_neighbours_are_the_nearest(rows, monkeypatch):
    features, _, _ = rows
    whole = nearest_neighbours(features, 6)
    for row in range(40):
        others = sorted((distance(features[row], features[other]), other) for other in range(40) if other != row)
        assert whole[0][row].tolist() == [other for _, other in others[:6]]
        np.testing.assert_allclose(whole[1][row], [d**2 for d, _ in others[:6]], rtol=1e-9, atol=1e-9)
    monkeypatch.setattr("easycore_ray.core.feature_selection._BLOCK_ROWS", 7)
    assert np.array_equal(nearest_neighbours(features, 6)[0], whole[0])


@pytest.mark.parametrize(("k", "neighbours", "gamma"), [(12, 4, 0.3), (40, 39, 1.0)])
def test_d2_passes_messages_forward_and_back(rows, k, neighbours, gamma):
    features, _, hardness = rows
    edge = np.zeros((40, 40))
    for row in range(40):
        near = sorted((distance(features[row], features[other]), other) for other in range(40) if other != row)
        for length, other in near[:neighbours]:
            edge[row, other] = np.exp(-gamma * length**2)
    values = {row: hardness[row] + sum(edge[row, other] * hardness[other] for other in range(40)) for row in range(40)}
    chosen = []
    for _ in range(k):
        row = max(values, key=values.__getitem__)
        value = values.pop(row)
        chosen.append(row)
        for other in values:
            values[other] -= edge[row, other] * value
    assert message_passing(hardness, features, k, neighbours=neighbours, gamma=gamma).tolist() == sorted(chosen)


def test_d2_without_edges_keeps_the_hardest(rows):
    features, _, hardness = rows
    assert message_passing(hardness, features, 9, gamma=1e6).tolist() == np.sort(np.argsort(-hardness)[:9]).tolist()
    with pytest.raises(ValueError, match="at least 0, got -1"):
        message_passing(hardness - hardness.min() - 1, features, 9)


def test_bws_keeps_the_window_that_tells_the_most(rows):
    features, labels, hardness = rows
    order = sorted(range(40), key=lambda row: (hardness[row], row))
    points = torch.cat([torch.from_numpy(features).double(), torch.ones(40, 1, dtype=torch.double)], 1)
    onehot = torch.nn.functional.one_hot(torch.from_numpy(labels), 3).double()

    def right(window):
        # Ridge regression as least squares with rows added for the penalty.
        own = torch.cat([points[window], torch.eye(6, dtype=torch.double)])
        weights = torch.linalg.lstsq(own, torch.cat([onehot[window], torch.zeros(6, 3, dtype=torch.double)])).solution
        return int(((points @ weights).argmax(1) == torch.from_numpy(labels)).sum())

    every = [order[start : start + 15] for start in range(26)]
    assert best_window(hardness, features, labels, 15, windows=26).tolist() == sorted(max(every, key=right))
    assert best_window(hardness, features, labels, 40).tolist() == list(range(40))
