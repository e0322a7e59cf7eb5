"""Order statistics: the cut that passes over stretches find is that of a full sort, whatever the numbers."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from easycore_ray.core import order_statistics
from easycore_ray.core.order_statistics import find_cut, keep, key_values, lowest, sort_keys
from easycore_ray.core.selection import quotas_of_sizes

TINY = float(np.nextafter(0, 1))
AWKWARD = [0.0, -0.0, TINY, -TINY, 1.0, -1.0, 1 + 2**-52, 2.0**-1022, 1e308, -1e308, np.inf, -np.inf, 3.0, 4.0]
VALUES = st.sampled_from(AWKWARD) | st.floats(allow_nan=False)


@given(st.lists(VALUES, min_size=2, max_size=30))
def test_sort_keys_are_in_the_order_of_the_values(values):
    """Every pair compares as the numbers do; equal keys mean equal numbers."""
    values = np.array(values)
    keys = sort_keys(values)
    assert keys.dtype == np.uint64
    np.testing.assert_array_equal(keys[:, None] < keys, values[:, None] < values)
    np.testing.assert_array_equal(keys[:, None] == keys, values[:, None] == values)
    np.testing.assert_array_equal(key_values(keys), values)


def test_sort_keys_leave_the_values_alone():
    """They may be a mapped file."""
    values = np.array([1.0, -2.0])
    values.flags.writeable = False
    assert sort_keys(values).tolist() == sort_keys(np.array([1.0, -2.0])).tolist()


class Stretches:
    """Keys in memory that answer the passes as tasks would; counts what is asked."""

    def __init__(self, values, groups, lengths):
        parts = [slice(*bounds) for bounds in itertools.pairwise(np.cumsum([0, *lengths]))]
        self.values = [values[part] for part in parts]
        self.groups = [None if groups is None else groups[part] for part in parts]
        self.asked = []

    def _each(self, name):
        self.asked.append(name)
        return zip(self.values, self.groups, strict=True)

    def sample(self, step):
        chosen = [(values[::step], None if of is None else of[::step]) for values, of in self._each("sample")]
        of = [np.zeros(len(values), int) if of is None else of for values, of in chosen]
        return np.concatenate(of), np.concatenate([values for values, _ in chosen])

    def between(self, low, high):
        for number, (values, groups) in reversed(list(enumerate(self._each("between")))):  # tasks end in any order
            of = np.zeros(len(values), int) if groups is None else groups
            inside = (values >= low[of]) & (values <= high[of])
            yield number, of[inside], values[inside], np.bincount(of[values < low[of]], minlength=len(low))

    def count(self, interval):
        cells = [interval.cells(sort_keys(values), groups) for values, groups in self._each("count")]
        return np.bincount(np.concatenate(cells), minlength=interval.num_cells)

    def collect(self, interval):
        for number, (values, groups) in reversed(list(enumerate(self._each("collect")))):  # tasks end in any order
            inside = interval.members(sort_keys(values), groups)
            mine = np.zeros(len(values), np.int32) if groups is None else groups
            yield (number, mine, values) if inside is None else (number, mine[inside], values[inside])

    def ties(self, value):
        rows = []
        for values, groups in self._each("ties"):
            of = np.zeros(len(values), int) if groups is None else groups
            rows.append(np.bincount(of[values == value[of]], minlength=len(value)))
        return np.stack(rows)

    def kept(self, sizes, quotas, limit):
        """Positions that the cut keeps."""
        passes = order_statistics.Passes(self.sample, self.between, self.count, self.collect, self.ties)
        cut = find_cut(sizes, quotas, len(self.values), passes, limit=limit)
        kept = [
            keep(cut.value, ties.copy(), values, groups)
            for values, groups, ties in zip(self.values, self.groups, cut.ties, strict=True)
        ]
        return np.flatnonzero(np.concatenate(kept))


@st.composite
def populations(draw):
    """Values with many ties, groups of which some are empty, a cut into stretches, a budget."""
    pool = draw(st.lists(VALUES, min_size=1, max_size=6))
    values = draw(st.lists(st.sampled_from(pool), min_size=1, max_size=60))
    groups = draw(st.none() | st.lists(st.integers(0, 4), min_size=len(values), max_size=len(values)))
    cuts = sorted(draw(st.lists(st.integers(0, len(values)), max_size=4)))
    lengths = np.diff([0, *cuts, len(values)]).tolist()
    return values, groups, lengths, draw(st.integers(0, len(values)))


@given(populations(), st.sampled_from([0, 1, 5, 20, 1000]), st.sampled_from([1, 7, 20, 1000]))
@example(([0.0, -0.0, 0.0], None, [1, 1, 1], 2), 0, 1)
@example(([np.inf] * 4, [0, 2, 2, 0], [4], 3), 0, 1)
def test_the_cut_is_that_of_a_full_sort(population, limit, sample):
    """For every budget, one group or several, wherever a sample points and however far the radix goes."""
    values, groups, lengths, k = population
    values = np.array(values)
    if groups is None:
        sizes, quotas, of = np.array([len(values)]), np.array([k]), np.zeros(len(values), int)
    else:
        groups = of = np.array(groups)
        sizes = np.bincount(of, minlength=6)
        quotas = quotas_of_sizes(sizes, k)
    expected = [lowest(values[of == group], np.flatnonzero(of == group), quota) for group, quota in enumerate(quotas)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order_statistics, "SAMPLE", sample)
        kept = Stretches(values, groups, lengths).kept(sizes, quotas, limit)

    assert kept.tolist() == np.sort(np.concatenate(expected)).tolist()


@pytest.mark.parametrize("classes", [1, 10])
def test_a_sample_spares_the_counting(monkeypatch, classes):
    """Keys in any order are cut by a sample and one pass; where it misleads, by counts, and the cut is the same."""
    rng = np.random.default_rng(0)
    values, of = rng.normal(size=40_000), rng.integers(0, classes, 40_000)
    monkeypatch.setattr(order_statistics, "SAMPLE", 4_000)
    sizes = np.bincount(of)
    quotas = quotas_of_sizes(sizes, 13_000)
    expected = np.sort(np.concatenate([np.flatnonzero(of == group)[np.argsort(values[of == group])[:quota]]
                                       for group, quota in enumerate(quotas)]))  # fmt: skip
    sampled = Stretches(values, of if classes > 1 else None, [10_000] * 4)
    misled = Stretches(values, of if classes > 1 else None, [10_000] * 4)
    misled.sample = lambda _: (np.repeat(np.arange(classes), 400), rng.normal(9, 1, 400 * classes))

    assert sampled.kept(sizes, quotas, 30_000).tolist() == expected.tolist()
    assert set(sampled.asked) == {"sample", "between"}
    assert misled.kept(sizes, quotas, 30_000).tolist() == expected.tolist()
    assert {"between", "count", "collect"} <= set(misled.asked)


def test_candidates_beyond_the_limit_are_never_brought_together():
    """Distinct values go by counts until few are left; equal ones to the last bit."""
    values = np.random.default_rng(0).normal(size=20_000)
    distinct = Stretches(values, None, [5_000] * 4)
    collected = []
    collect = distinct.collect
    distinct.collect = lambda interval: (collected.append(part) or part for part in collect(interval))
    distinct.between = None  # too few may come together for a guess from a sample
    kept = distinct.kept(np.array([20_000]), np.array([7_000]), 500)
    equal = Stretches(np.ones(20_000), None, [5_000] * 4)

    assert kept.tolist() == np.sort(np.argsort(values)[:7_000]).tolist()
    assert 0 < sum(len(keys) for _, _, keys in collected) <= 500
    assert equal.kept(np.array([20_000]), np.array([7_000]), 500).tolist() == list(range(7_000))
    assert "collect" not in equal.asked


@pytest.mark.parametrize("groups", [1, 10, 1000, 20_000])
def test_the_cells_of_a_count_stay_in_memory(groups):
    """Class-balanced choice among many classes counts fewer bits at a time."""
    widths = []

    def nothing(step):
        return np.zeros(0, np.int32), np.zeros(0)

    def count(interval):
        widths.append(interval.num_cells)
        raise StopIteration

    with pytest.raises(StopIteration):
        find_cut(
            np.full(groups, 10**9),
            np.full(groups, 5),
            1,
            order_statistics.Passes(nothing, None, count, None, None),
            limit=0,
        )
    assert widths[0] <= 1 << 23
