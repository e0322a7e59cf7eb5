"""Order statistics: the k lowest of many numbers, in one process or without ever bringing them together.

Takes float64 keys with sample ids, gives ids or the value at which to cut. An order is total, by (key, sample_id),
with −0.0 equal to 0.0 and NaN refused, so that every way to compute a choice gives the same one.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Ids: TypeAlias = NDArray[np.int64]
Keys: TypeAlias = NDArray[np.uint64]
Values: TypeAlias = NDArray[np.float64]

LIMIT = 1 << 22
"""Most keys that are brought together to find a cut."""
SAMPLE = 1 << 20
"""About how many keys are looked at to guess a cut."""

_MOST_BITS, _MOST_CELLS_BITS = 18, 22
# Of a guess: a cut lies farther off once in two million times if the sample is a random one.
_STANDARD_ERRORS = 5


def lowest(keys: NDArray, sample_ids: NDArray[np.integer], k: int) -> Ids:
    """The k ids with the lowest (key, id), sorted by id; time linear in N but for sorting the result.

    Args:
        keys: (N,) numbers; infinities are fine.
        sample_ids: (N,), unique, in any order.
        k: 0 .. N.

    Raises:
        ValueError: a NaN key, named with its first ids, or k outside 0 .. N.
    """
    ids = np.asarray(sample_ids, dtype=np.int64)
    if not 0 <= k <= len(ids):
        raise ValueError(f"k must be in 0 .. {len(ids)} (the number of samples), got {k}")
    refuse_nan(keys, ids)
    if k == 0:
        return np.empty(0, dtype=np.int64)
    bound = np.partition(keys, k - 1)[k - 1]
    keep = keys < bound
    tied = np.flatnonzero(keys == bound)
    still_needed = k - np.count_nonzero(keep)
    keep[tied[np.argsort(ids[tied], kind="stable")[:still_needed]]] = True
    return np.sort(ids[keep], kind="stable")  # linear where the ids come sorted


def refuse_nan(scores: NDArray, sample_ids: Ids) -> None:
    """Refuse NaN scores: they have no rank.

    Raises:
        ValueError: how many there are, and the first ids.
    """
    missing = np.isnan(scores)
    if missing.any():
        raise ValueError(nan_problem(int(missing.sum()), len(scores), np.sort(sample_ids[missing])[:5].tolist()))


def nan_problem(count: int, total: int, first_ids: list[int]) -> str:
    """What is said of NaN scores."""
    return f"{count} of {total} scores are NaN (first ids: {first_ids}); score those samples again or leave them out"


def sort_keys(values: NDArray[np.float64]) -> Keys:
    """Unsigned integers in the order of the values; equal exactly where the values are (−0.0 is 0.0)."""
    bits = (values + 0.0).view(np.uint64)
    # Negative numbers: all bits flipped, so that larger magnitudes come first. Others: above all negative ones.
    flip = bits.view(np.int64) >> 63
    flip |= np.int64(-(2**63))
    bits ^= flip.view(np.uint64)
    return bits


def key_values(keys: Keys) -> Values:
    """The values of sort keys."""
    flip = (~keys).view(np.int64) >> 63
    flip |= np.int64(-(2**63))
    return (keys ^ flip.view(np.uint64)).view(np.float64)


@dataclass(frozen=True)
class Interval:
    """The keys of each group among which its cut lies: those whose first ``64 - shift`` bits are ``prefix``.

    Attributes:
        prefix: uint64 (groups,).
        shift: bits that are still open; 64 is all keys.
        bits: how many of them the next count tells apart.
        open: bool (groups,): False where nothing is kept, so that nothing need be looked at.
    """

    prefix: Keys
    shift: int
    bits: int
    open: NDArray[np.bool_]

    def members(self, keys: Keys, groups: NDArray | None) -> NDArray[np.bool_] | None:
        """Which keys lie in the interval of their group (None: all of them); no groups is one group."""
        if groups is None:
            return None if self.shift == 64 else (keys >> np.uint64(self.shift)) == self.prefix[0]
        inside = self.open[groups]
        return inside if self.shift == 64 else inside & ((keys >> np.uint64(self.shift)) == self.prefix[groups])

    @property
    def num_cells(self) -> int:
        """Cells of all groups together."""
        return len(self.prefix) << self.bits

    def cells(self, keys: Keys, groups: NDArray | None) -> Ids:
        """The cell, 0 .. num_cells − 1, of each key that lies in the interval."""
        inside = self.members(keys, groups)
        if inside is not None:
            keys, groups = keys[inside], None if groups is None else groups[inside]
        bits = keys >> np.uint64(self.shift - self.bits)
        if self.shift < 64:
            bits &= np.uint64((1 << self.bits) - 1)
        cells: Ids = bits.view(np.int64)
        if groups is not None:
            cells += groups.astype(np.int64) << self.bits
        return cells


@dataclass(frozen=True)
class Cut:
    """Where each group is cut: what is below ``value`` is kept, and the first ``ties`` of what is equal to it.

    Attributes:
        value: float64 (groups,).
        ties: int64 (stretches, groups): how many equal values each stretch of samples, in id order, keeps.
    """

    value: Values
    ties: Ids


@dataclass(frozen=True)
class Passes:
    """What is asked of the values, wherever they are.

    Attributes:
        sample: of every so many values one: groups and values.
        between: for every stretch of samples, its number, the groups and values that are at least the first and at
            most the second of two bounds (each of its group), and (groups,) how many lie below the first.
        count: how many lie in each cell of an interval, (num_cells,).
        collect: for every stretch of samples, its number and the groups and values inside an interval.
        ties: (stretches, groups) how many equal the given value of their group.
    """

    sample: Callable[[int], tuple[NDArray, Values]]
    between: Callable[[Values, Values], Iterable[tuple[int, NDArray, Values, Ids]]]
    count: Callable[[Interval], Ids]
    collect: Callable[[Interval], Iterable[tuple[int, NDArray, Values]]]
    ties: Callable[[Values], Ids]


def find_cut(sizes: Ids, quotas: Ids, num_stretches: int, passes: Passes, *, limit: int = LIMIT) -> Cut:
    """The cut that keeps the ``quotas[g]`` lowest values of each group.

    A sample tells about where it lies; one pass counts what is below and brings those around it together. Where
    they would be too many, or the cut is not among them, it is found by radix selection.

    Args:
        sizes: (groups,) values in each group.
        quotas: (groups,), each 0 .. its size.
        num_stretches: how many stretches they lie in.
        passes: how to ask for them.
        limit: most candidates to bring together.
    """
    quotas, sizes = np.asarray(quotas, np.int64), np.asarray(sizes, np.int64)
    found = _by_sample(sizes, quotas, num_stretches, passes, limit) if sizes[quotas > 0].sum() > limit else None
    value, ties, below = _by_radix(sizes, quotas, num_stretches, passes, limit) if found is None else found
    value = np.where(quotas > 0, value, -np.inf)
    # Ties go to the lower ids, and stretches are in id order: each keeps what those before it have left over.
    before = np.cumsum(ties, axis=0) - ties
    return Cut(value, np.clip(np.where(quotas > 0, quotas - below, 0) - before, 0, ties))


def _by_sample(
    sizes: Ids, quotas: Ids, num_stretches: int, passes: Passes, limit: int
) -> tuple[Values, Ids, Ids] | None:
    """As ``_among_candidates``, of those around the cuts of a sample; None if they are too many or miss a cut."""
    step = -(-int(sizes.sum()) // SAMPLE)
    groups, values = passes.sample(step)
    # A group that keeps nothing asks for nothing: nothing lies between its bounds.
    low, high, expected = np.full(len(sizes), np.inf), np.full(len(sizes), -np.inf), 0.0
    for group in np.flatnonzero(quotas > 0):
        mine = np.sort(values if len(sizes) == 1 else values[groups == group])
        share = quotas[group] / sizes[group]
        place, off = share * len(mine), _STANDARD_ERRORS * np.sqrt(len(mine) * share * (1 - share)) + 1
        first, last = int(place - off), int(np.ceil(place + off))
        low[group] = mine[first] if first >= 0 else -np.inf
        high[group] = mine[last] if last < len(mine) else np.inf
        count = np.searchsorted(mine, high[group], "right") - np.searchsorted(mine, low[group])
        expected += (count + 1) / (len(mine) + 1) * sizes[group]
    # Equal values cannot be told apart by bounds: they would all come along.
    if expected > limit / 2:
        return None
    collected, below = [], np.zeros(len(sizes), np.int64)
    for number, groups, values, lower in passes.between(low, high):
        collected.append((number, groups, values))
        below += lower
    inside = sum((np.bincount(groups, minlength=len(sizes)) for _, groups, _ in collected), np.zeros_like(below))
    missed = (quotas > 0) & ((below >= quotas) | (below + inside < quotas))
    return None if missed.any() else _among_candidates(collected, num_stretches, quotas, below)


def _by_radix(sizes: Ids, quotas: Ids, num_stretches: int, passes: Passes, limit: int) -> tuple[Values, Ids, Ids]:
    """As ``_among_candidates``, whatever the keys are.

    Each pass counts the keys by their next bits and goes on in the one cell that holds the cut, until the
    candidates are few enough to look at or all bits are known.
    """
    groups = len(quotas)
    below, inside = np.zeros(groups, np.int64), sizes
    # No more cells than keys, and as many as fit in memory at most.
    most = min(_MOST_BITS, _MOST_CELLS_BITS - (groups - 1).bit_length(), int(inside.max(initial=0)).bit_length())
    most = max(most, 4)
    interval = Interval(np.zeros(groups, np.uint64), 64, most, quotas > 0)
    while interval.shift and inside[interval.open].sum() > limit:
        counts = passes.count(interval).reshape(groups, -1)
        ends = below[:, None] + np.cumsum(counts, axis=1)
        cell = np.minimum((ends < quotas[:, None]).sum(axis=1), counts.shape[1] - 1)
        inside = np.take_along_axis(counts, cell[:, None], axis=1)[:, 0]
        below = np.take_along_axis(ends, cell[:, None], axis=1)[:, 0] - inside
        shift = interval.shift - interval.bits
        prefix = (interval.prefix << np.uint64(interval.bits)) | cell.astype(np.uint64)
        interval = Interval(prefix, shift, min(most, shift), interval.open)
    if not interval.shift:
        value = key_values(interval.prefix)
        return value, passes.ties(value), below
    return _among_candidates(passes.collect(interval), num_stretches, quotas, below)


def _among_candidates(
    collected: Iterable[tuple[int, NDArray, Values]], num_stretches: int, quotas: Ids, below: Ids
) -> tuple[Values, Ids, Ids]:
    """The value of each group's cut, how often it occurs in each stretch, and how many lie below it."""
    parts = list(collected)
    stretch = np.concatenate([np.full(len(values), number) for number, _, values in parts])
    groups = np.concatenate([group.astype(np.int64) for _, group, _ in parts])
    values = np.concatenate([values for _, _, values in parts])
    by_group = values[np.argsort(groups, kind="stable")]
    ends = np.cumsum(np.bincount(groups, minlength=len(quotas)))
    starts = np.concatenate([[0], ends[:-1]])
    value, below = np.zeros(len(quotas)), below.copy()
    for group in np.flatnonzero(quotas > 0):
        mine = np.sort(by_group[starts[group] : ends[group]])
        value[group] = mine[quotas[group] - below[group] - 1]
        below[group] += np.searchsorted(mine, value[group])
    tied = values == value[groups]
    ties = np.zeros((num_stretches, len(quotas)), np.int64)
    np.add.at(ties, (stretch[tied], groups[tied]), 1)
    return value, ties, below


def keep(cut_value: Values, ties_left: Ids, values: Values, groups: NDArray | None) -> NDArray[np.bool_]:
    """Which of the next values (in id order) are kept; takes what it keeps of ``ties_left`` (groups,), in place."""
    value = cut_value[0] if groups is None else cut_value[groups]
    kept = values < value
    if not ties_left.any():
        return kept
    tied = np.flatnonzero(values == value)
    of = np.zeros(len(tied), np.int64) if groups is None else groups[tied].astype(np.int64)
    order = np.argsort(of, kind="stable")
    counts = np.bincount(of, minlength=len(ties_left))
    place = np.arange(len(tied)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept[tied[order[place < ties_left[of[order]]]]] = True
    ties_left -= np.minimum(counts, ties_left)
    return kept
