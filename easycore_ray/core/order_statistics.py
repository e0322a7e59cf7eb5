"""Order statistics of numbers in partitions that never come together: where to cut them so that the k lowest are left.

The cut of (key, sample_id) is the one that ``core.lowest`` makes in one process. Keys are float64; groups are the
classes of a class-balanced choice, or one group of all.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from easycore_ray.core.lowest import Ids

Values: TypeAlias = NDArray[np.float64]

LIMIT = 1 << 20
"""About how many keys are brought together at a time to find a cut."""

# Of a guess: a cut lies farther off once in two million times if the sample is a random one.
_STANDARD_ERRORS = 5


@dataclass(frozen=True)
class Interval:
    """Where the cut of each group is looked for: the keys ``low <= key <= high``.

    Attributes:
        low: float64 (groups,).
        high: float64 (groups,). Equal to ``low`` where the value of the cut is known and its ties are counted.
        share: of the keys inside, the part to return, drawn at random; 1.0 for all of them.
        seed: of that draw; 0 in the first census, which is of all keys.
    """

    low: Values
    high: Values
    share: float
    seed: int


@dataclass(frozen=True)
class Census:
    """What one partition, or one batch of it, has in an interval.

    Attributes:
        below: int64 (groups,), how many keys lie below ``low``.
        inside: int64 (groups,), how many lie between ``low`` and ``high``.
        keys: float64 (m,), the share of those inside; none of groups with ``low == high``.
        groups: (m,), their groups.
    """

    below: Ids
    inside: Ids
    keys: Values
    groups: NDArray[np.integer]


@dataclass(frozen=True)
class Cut:
    """Where each group is cut: keys below ``value`` are kept, and of those equal to it the first by id.

    Attributes:
        value: float64 (groups,).
        ties: int64 (partitions, groups): how many equal keys each partition, in id order, keeps.
    """

    value: Values
    ties: Ids


def take_census(keys: Values, groups: NDArray | None, interval: Interval, rng: np.random.Generator) -> Census:
    """Count the keys of a batch in an interval, and draw a share of those inside.

    Args:
        keys: float64 (n,), no NaN.
        groups: (n,) integers in 0 .. groups − 1; None if there is one group.
        interval: which keys to count.
        rng: for the draw.
    """
    low, high = (bound[0 if groups is None else groups] for bound in (interval.low, interval.high))
    below, inside = keys < low, (keys >= low) & (keys <= high)
    wanted = inside & (low < high)
    if interval.share < 1:
        # Rows are drawn before looking at them: those of them that are wanted are a share of those that are.
        drawn = rng.integers(len(keys), size=rng.binomial(len(keys), interval.share))
        chosen = drawn[wanted[drawn]]
    else:
        chosen = np.flatnonzero(wanted)
    found = np.zeros(len(chosen), np.int32) if groups is None else groups[chosen]
    size = len(interval.low)
    return Census(_count(below, groups, size), _count(inside, groups, size), keys[chosen], found)


def add_up(parts: Sequence[Census], num_groups: int) -> Census:
    """The census of several batches together.

    Args:
        parts: one census each; counts are int64 (num_groups,).
        num_groups: classes, or 1 without class balance.
    """
    if not parts:
        nothing = np.zeros(num_groups, np.int64)
        return Census(nothing, nothing, np.zeros(0), np.zeros(0, np.int32))
    keys, groups = np.concatenate([part.keys for part in parts]), np.concatenate([part.groups for part in parts])
    return Census(_total(parts, "below"), _total(parts, "inside"), keys, groups)


def _count(chosen: NDArray[np.bool_], groups: NDArray | None, num_groups: int) -> Ids:
    if groups is None:
        return np.array([np.count_nonzero(chosen)])
    return np.bincount(groups[chosen], minlength=num_groups)


def find_cut(
    census: Callable[[Interval], Sequence[Census]],
    quotas_of: Callable[[Ids], Ids],
    *,
    num_groups: int,
    share: float,
    limit: int = LIMIT,
) -> Cut:
    """The cut that keeps the lowest keys of each group, exactly as many as its quota.

    The first census looks at all keys: it counts the groups, and its sample says about where each cut lies. The next
    one counts around the guess. A guess that holds its cut is narrowed again, one that does not leaves the cut on a
    known side; where equal keys rule, the guess is one value. Once few keys are left inside, all are brought together.
    Each round halves what is open or takes a value out of it, so it ends for any keys, mostly with the second.

    Args:
        census: what each partition has in an interval, partitions in id order.
        quotas_of: quotas (groups,), each 0 .. its size, of the sizes (groups,).
        num_groups: number of groups.
        share: of all keys, what the first census returns; 1.0 where they are few enough.
        limit: most keys to bring together at a time, about.
    """
    low, high = np.full(num_groups, -np.inf), np.full(num_groups, np.inf)
    found = census(Interval(low, high, share, 0))
    # Each cut lies in start .. stop; so many keys are below start, and so many are at most stop.
    start, stop, before, until = low, high, _total(found, "below"), _total(found, "inside")
    quotas = quotas_of(until)
    for seed in itertools.count(1):
        below = _total(found, "below")
        upto = below + _total(found, "inside")
        early, late = below >= quotas, upto < quotas
        hit = ~early & ~late
        if share == 1 and (hit | (quotas == 0)).all():
            break
        with np.errstate(over="ignore"):  # the value after the largest finite one is infinity
            next_low, next_high = np.nextafter(high, np.inf), np.nextafter(low, -np.inf)
        start, before = np.select([hit, late], [low, next_low], start), np.select([hit, late], [below, upto], before)
        stop, until = np.select([hit, early], [high, next_high], stop), np.select([hit, early], [upto, below], until)
        low, high = np.where(quotas > 0, start, np.inf), np.where(quotas > 0, stop, -np.inf)
        remaining = np.where(low < high, until - before, 0.0)
        for group, sample in enumerate(_by_group(found, num_groups)):
            if hit[group] and low[group] < high[group] and len(sample):
                place = (quotas[group] - before[group]) / remaining[group]
                low[group], high[group], inside = _narrow(sample, place, low[group], high[group])
                remaining[group] *= inside
        share = 1.0 if remaining.sum() <= limit / 2 else limit / 2 / remaining.sum()
        found = census(Interval(low, high, share, seed))
    return _cut_at(found, quotas, low, high, below)


def _total(found: Sequence[Census], name: str) -> Ids:
    return np.sum([getattr(part, name) for part in found], axis=0)


def _narrow(sample: Values, place: float, low: float, high: float) -> tuple[float, float, float]:
    """Bounds that hold a quantile in all likelihood, and the share of the keys that lies between them.

    Args:
        sample: float64 (m,), sorted, of the keys in low .. high; m >= 1.
        place: of the quantile, in (0, 1].
        low: lowest possible value.
        high: highest possible value.
    """
    count = len(sample)
    spread = _STANDARD_ERRORS * np.sqrt(count * place * (1 - place)) + 1
    first, last = int(np.floor(place * count - spread)), int(np.ceil(place * count + spread))
    lower = sample[first] if first >= 0 else low
    upper = sample[last] if last < count else high
    between = np.searchsorted(sample, upper, "right") - np.searchsorted(sample, lower)
    inside = (between + 1) / (count + 1)
    if inside <= 0.5 and lower < upper:
        return lower, upper, inside
    # Equal keys, or too few to separate: one value, whose keys are counted and not returned.
    value = sample[min(int(place * count), count - 1)]
    return value, value, 0.0


def _by_group(found: Sequence[Census], num_groups: int) -> list[Values]:
    """The keys brought back, sorted within each group."""
    keys, groups = np.concatenate([part.keys for part in found]), np.concatenate([part.groups for part in found])
    ends = np.cumsum(np.bincount(groups, minlength=num_groups))
    return [np.sort(part) for part in np.split(keys[np.argsort(groups, kind="stable")], ends[:-1])]


def _cut_at(found: Sequence[Census], quotas: Ids, low: Values, high: Values, below: Ids) -> Cut:
    """The cut, once every key inside an interval of more than one value is here."""
    known = low == high
    value, less = np.where(quotas > 0, low, -np.inf), below.copy()
    for group, keys in enumerate(_by_group(found, len(quotas))):
        if quotas[group] > 0 and not known[group]:
            value[group] = keys[quotas[group] - below[group] - 1]
            less[group] += np.searchsorted(keys, value[group])
    ties = np.stack([
        np.where(known, part.inside, _count(part.keys == value[part.groups], part.groups, len(quotas)))
        for part in found
    ])  # fmt: skip
    # Ties go to the lower ids, and partitions are in id order: each keeps what those before it have left over.
    before = np.cumsum(ties, axis=0) - ties
    return Cut(value, np.clip(np.where(quotas > 0, quotas - less, 0) - before, 0, ties))


def keep(value: Values, ties_left: Ids, keys: Values, groups: NDArray | None) -> NDArray[np.bool_]:
    """Which of the next keys (in id order) a cut keeps; takes what it keeps of ``ties_left`` (groups,), in place."""
    bound = value[0 if groups is None else groups]
    kept = keys < bound
    if not ties_left.any():
        return kept
    tied = np.flatnonzero(keys == bound)
    of = np.zeros(len(tied), np.int64) if groups is None else groups[tied].astype(np.int64)
    order = np.argsort(of, kind="stable")
    counts = np.bincount(of, minlength=len(ties_left))
    place = np.arange(len(tied)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept[tied[order[place < ties_left[of[order]]]]] = True
    ties_left -= np.minimum(counts, ties_left)
    return kept
