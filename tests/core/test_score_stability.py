"""How much one more scored epoch changes AIGN, on a fixed sample of the ids."""

import numpy as np
import pytest

from easycore_ray.core.hashing import mix64
from easycore_ray.core.score_stability import in_sample, stability


def test_mix64_is_splitmix64():
    """The first outputs of the reference generator (state advanced by its constant each time), seed 0."""
    golden = 0x9E3779B97F4A7C15
    states = np.array([(golden * step) % 2**64 for step in range(3)], np.uint64)

    assert [int(value) for value in mix64(states)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_a_small_population_is_its_own_sample():
    """Up to the limit every id is followed."""
    assert in_sample(np.arange(100_000), 100_000).all()


def test_the_sample_is_of_the_size_asked_for_and_the_same_in_any_part():
    """About ``most`` ids, chosen by the id alone: parts of the population choose what the whole chooses."""
    ids = np.arange(1_000_000)
    whole = in_sample(ids, len(ids), most=10_000)

    assert 9_500 < whole.sum() < 10_500
    shuffled = np.random.default_rng(0).permutation(ids)
    for part in np.array_split(shuffled, 7):
        np.testing.assert_array_equal(in_sample(part, len(ids), most=10_000), whole[part])


def test_equal_scores_are_perfectly_stable():
    """Nothing changed: overlap and correlation are 1; a monotone change moves no rank either."""
    scores = np.random.default_rng(0).random(1000)

    assert stability(np.arange(1000), scores, scores) == {"easiest_overlap": 1.0, "rank_correlation": pytest.approx(1)}
    assert stability(np.arange(1000), scores, scores**3)["easiest_overlap"] == 1.0


def test_reversed_scores_share_no_easiest_sample():
    """The opposite order: overlap 0, correlation -1."""
    found = stability(np.arange(1000), np.arange(1000.0), -np.arange(1000.0))

    assert found == {"easiest_overlap": 0.0, "rank_correlation": pytest.approx(-1)}


def test_unrelated_scores_overlap_by_the_fraction():
    """Two random fifths share a fifth."""
    rng = np.random.default_rng(0)
    found = stability(np.arange(100_000), rng.random(100_000), rng.random(100_000), fraction=0.2)

    assert found["easiest_overlap"] == pytest.approx(0.2, abs=0.01)
    assert found["rank_correlation"] == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize("scores", [np.array([1.0]), np.ones(10)])
def test_what_has_no_order_has_no_stability(scores):
    """One sample, or equal scores, say nothing."""
    assert stability(np.arange(len(scores)), scores, scores) == {}
