"""Order statistics: the cut that censuses of partitions find is that of a full sort, whatever the keys."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from easycore_ray.core.lowest import lowest
from easycore_ray.core.order_statistics import find_cut, keep, take_census
from easycore_ray.core.selection import quotas_of_sizes

pytestmark = pytest.mark.slow

TINY = float(np.nextafter(0, 1))
AWKWARD = [0.0, -0.0, TINY, -TINY, 1.0, -1.0, 1 + 2**-52, 2.0**-1022, 1e308, -1e308, np.inf, -np.inf, 3.0, 4.0]
VALUES = st.sampled_from(AWKWARD) | st.floats(allow_nan=False)


class InMemory:
    """Keys in memory, in partitions, that answer a census as tasks would; notes each."""

    def __init__(self, keys, groups, lengths):
        parts = [slice(*bounds) for bounds in itertools.pairwise(np.cumsum([0, *lengths]))]
        self.keys = [keys[part] for part in parts]
        self.groups = [None if groups is None else groups[part] for part in parts]
        self.sizes = np.array([len(keys)]) if groups is None else np.bincount(groups, minlength=6)
        self.intervals, self.brought = [], []

    def census(self, interval):
        found = [
            take_census(keys, groups, interval, np.random.default_rng([interval.seed, number]))
            for number, (keys, groups) in enumerate(zip(self.keys, self.groups, strict=True))
        ]
        self.intervals.append(interval)
        self.brought.append(sum(len(part.keys) for part in found))
        assert len(self.intervals) < 200, "the search does not end"
        return found

    def quotas(self, k):
        return np.array([k]) if len(self.sizes) == 1 else quotas_of_sizes(self.sizes, k)

    def kept(self, k, limit):
        """Positions that the cut keeps."""
        share = min(1.0, limit / self.sizes.sum())
        cut = find_cut(self.census, lambda _: self.quotas(k), num_groups=len(self.sizes), share=share, limit=limit)
        parts = zip(self.keys, self.groups, cut.ties, strict=True)
        return np.flatnonzero(np.concatenate([keep(cut.value, ties.copy(), *part) for *part, ties in parts]))


def sorted_choice(keys, groups, quotas):
    """The same by sorting everything."""
    of = np.zeros(len(keys), int) if groups is None else groups
    chosen = [lowest(keys[of == group], np.flatnonzero(of == group), quota) for group, quota in enumerate(quotas)]
    return np.sort(np.concatenate(chosen))


@st.composite
def partitioned(draw):
    """Keys with many ties, groups of which some are empty, a cut into partitions, a budget."""
    pool = draw(st.lists(VALUES, min_size=1, max_size=6))
    keys = draw(st.lists(st.sampled_from(pool), min_size=1, max_size=60))
    groups = draw(st.none() | st.lists(st.integers(0, 4), min_size=len(keys), max_size=len(keys)))
    cuts = sorted(draw(st.lists(st.integers(0, len(keys)), max_size=4)))
    lengths = np.diff([0, *cuts, len(keys)]).tolist()
    return keys, groups, lengths, draw(st.integers(0, len(keys)))


@given(partitioned(), st.sampled_from([1, 5, 20, 1000]))
@example(([0.0, -0.0, 0.0], None, [1, 1, 1], 2), 1)
@example(([np.inf] * 4, [0, 2, 2, 0], [4], 3), 1)
def test_the_cut_is_that_of_a_full_sort(rows, limit):
    """For every budget, one group or several, however few keys may come together."""
    keys, groups, lengths, k = rows
    keys, groups = np.array(keys), None if groups is None else np.array(groups)
    memory = InMemory(keys, groups, lengths)
    assert memory.kept(k, limit).tolist() == sorted_choice(keys, groups, memory.quotas(k)).tolist()


def distributions(count=40_000):
    """Keys that are hard on one way or another to look for a cut."""
    rng = np.random.default_rng(0)
    normal = rng.normal(size=count)
    spike = np.where(rng.random(count) < 0.4, 0.25, rng.random(count))
    return {
        "normal": normal,
        "sorted": np.sort(normal),
        "sorted backwards": -np.sort(normal),
        "all equal": np.full(count, 0.1),
        "two values": rng.integers(0, 2, count) / 3,
        "few values": rng.integers(0, 7, count) / 4,
        "denormal": rng.integers(0, 5_000, count) * TINY,
        "a third infinite": rng.choice([-np.inf, 1.0, np.inf], count),
        "a spike": spike,
        "a spike and next to it": np.where(rng.random(count) < 0.01, np.nextafter(0.25, 1), spike),
        "powers": 10.0 ** rng.integers(-300, 300, count),
        "steps of the sample": np.where(np.arange(count) % 10, normal, 1e9),
    }


@pytest.mark.parametrize("name", distributions())
def test_any_distribution_is_cut_exactly_and_little_comes_together(name):
    """At ends, in the middle, in a spike; one group and ten; twice the limit is the most that is brought back."""
    keys = distributions()[name]
    classes = np.random.default_rng(1).integers(0, 6, len(keys))
    for groups, share in itertools.product([None, classes], [1e-4, 0.1, 0.3, 0.4, 0.5, 0.97, 1.0]):
        memory, k = InMemory(keys, groups, [10_000, 0, 25_000, 5_000]), int(share * len(keys))
        kept = memory.kept(k, 2_000)
        assert kept.tolist() == sorted_choice(keys, groups, memory.quotas(k)).tolist(), (groups is None, share)
        assert max(memory.brought) <= 4_000
        assert len(memory.intervals) <= 12


def test_a_sample_leaves_two_rounds_and_few_keys_one():
    """The usual case at any size: a sample of all, then the keys around the cut."""
    keys = np.random.default_rng(2).normal(size=1_000_000)
    large, small = InMemory(keys, None, [400_000, 600_000]), InMemory(keys[:1000], None, [400, 600])
    large.kept(500_000, 100_000)
    small.kept(500, 100_000)
    assert (len(large.intervals), len(small.intervals)) == (2, 1)


def test_a_sample_that_misleads_costs_a_round():
    """A guess that misses its cut says on which side it lies."""
    keys = np.random.default_rng(3).normal(size=40_000)
    for shift in (-5, 5):
        memory = InMemory(keys, None, [40_000])
        truth = memory.census

        def lie(interval, truth=truth, memory=memory, shift=shift):
            (found,) = truth(interval)
            if len(memory.intervals) == 1:
                found.keys[:] += shift
            return [found]

        memory.census = lie
        assert memory.kept(13_000, 4_000).tolist() == np.sort(np.argsort(keys)[:13_000]).tolist()
        assert 2 < len(memory.intervals) <= 6


def test_many_groups_have_a_cut_each():
    """More classes than keys in a sample."""
    rng = np.random.default_rng(4)
    keys, groups = rng.normal(size=30_000), rng.integers(0, 3_000, 30_000)
    memory = InMemory(keys, groups, [15_000, 15_000])
    assert memory.kept(9_000, 3_000).tolist() == sorted_choice(keys, groups, memory.quotas(9_000)).tolist()
