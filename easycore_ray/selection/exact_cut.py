"""The choice of a coreset from any number of samples, file by file: the same as ``core.selection.choose``.

Takes partitions of the samples and a method, gives a rule for each that says which of its rows are kept, and writes
them. For methods that rank, ``core.order_statistics.find_cut`` asks the partitions, a Ray task for each, for a census
of an interval until the value at which to cut is known; rows never come together. Few samples are chosen in this
process, without Ray. For methods that must see all samples at once see ``gathered_choice``.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from easycore_ray.core.feature_selection import Features
from easycore_ray.core.lowest import Ids, nan_problem
from easycore_ray.core.order_statistics import (
    LIMIT,
    Census,
    Cut,
    Interval,
    Values,
    add_up,
    find_cut,
    keep,
    take_census,
)
from easycore_ray.core.selection import budget, quotas_of_sizes, ranking_keys, turned
from easycore_ray.core.selection_methods import Method
from easycore_ray.selection.coreset_files import write_coreset_rows
from easycore_ray.selection.gathered_choice import choose_gathered
from easycore_ray.selection.partitions import SAMPLED_GROUPS, Batch, Partition
from easycore_ray.storage import paths
from easycore_ray.storage.errors import EasyCoreError

# Up to this many samples are done before a Ray task has started.
_SMALL_ROWS = 4_000_000
# A task costs Ray about as much as a census of some million rows, so each is given several partitions.
_TASKS_PER_CPU = 4


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What is chosen: a method, and all that decides its choice.

    Attributes:
        method: as registered.
        fraction: share of the samples that is kept, in (0, 1].
        score: name of the score, for its direction ("user": higher is harder); None if the method needs none.
        second_score: name of the second score, where the method reads two.
        num_classes: number of classes if each gets its share of the samples kept, else None.
        seed: of methods that draw.
        options: the method's own.
    """

    method: Method
    fraction: float
    score: str | None = None
    second_score: str | None = None
    num_classes: int | None = None
    seed: int = 0
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Rule:
    """Which rows of one partition are kept.

    Attributes:
        value: float64 (groups,), keys below it are kept; see ``Cut``.
        ties: int64 (groups,), how many keys equal to it are kept, lowest ids first.
        ids: int64 (k,), the ids themselves, sorted, where there is no cut.
    """

    value: Values
    ties: Ids
    ids: Ids | None = None


@dataclass(frozen=True)
class Choice:
    """A rule for every partition, and how many samples they keep."""

    selection: Selection
    partitions: Sequence[Partition]
    rules: Sequence[Rule]
    kept: int
    total: int


def decide(
    selection: Selection,
    partitions: Sequence[Partition],
    *,
    second: NDArray[np.float64] | None = None,
    features: Features | None = None,
    limit: int = LIMIT,
) -> Choice:
    """Find out what is kept: exactly ``budget(N, fraction)`` samples, those ``choose`` keeps.

    Args:
        selection: the method and its settings.
        partitions: all samples, in id order.
        second: (n,), the second score of all of them as stored, where the method reads two.
        features: of all of them, where the method goes by them.
        limit: about how many keys to bring together at a time.

    Raises:
        EasyCoreError: a score is missing, the samples do not fit in memory for a method that needs them all.
        ValueError: a score is NaN, or the budget cannot be met.
    """
    total = sum(partition.rows for partition in partitions)
    k = budget(total, selection.fraction)
    selection.method.check_budget(k, total)
    if selection.method.ranks:
        cut = _cut_of(selection, partitions, k, limit)
        rules = [Rule(cut.value, ties) for ties in cut.ties]
    else:
        nothing = np.zeros(1, np.int64)
        chosen = choose_gathered(selection, partitions, second, features)
        rules = [Rule(nothing.astype(np.float64), nothing, ids) for ids in chosen]
    return Choice(selection, partitions, rules, k, total)


def write_choice(choice: Choice, folder: str, index: str | None) -> list[dict[str, Any]]:
    """Write the kept rows, a file for each partition that has some; the entries that list them, in id order.

    An entry has ``path`` (within the folder above), ``rows, first_id, last_id, sha256`` and ``class_histogram``.

    Args:
        choice: what to keep.
        folder: to write into.
        index: dataset whose index knows the source keys; None leaves the column out.
    """
    name = folder.rstrip("/").rsplit("/", 1)[-1]
    own = [
        (rule, paths.join(folder, f"coreset-{number:05d}.parquet"), index) for number, rule in enumerate(choice.rules)
    ]
    entries = [entry for entry in _map(write_kept, choice.selection, choice.partitions, own) if entry is not None]
    kept = sum(entry["rows"] for entry in entries)
    if kept != choice.kept:
        raise EasyCoreError(f"{kept:,} samples were written, {choice.kept:,} chosen; did the scores change meanwhile?")
    return [{**entry, "path": f"{name}/{entry['path']}"} for entry in entries]


def _cut_of(selection: Selection, partitions: Sequence[Partition], k: int, limit: int) -> Cut:
    """The cut of a method that ranks, by censuses of all partitions."""
    total = sum(partition.rows for partition in partitions)

    def census(interval: Interval) -> list[Census]:
        counted = _map(census_of, selection, partitions, [(interval,)] * len(partitions))
        bad = [ids for ids, _ in counted if len(ids)]
        if bad:
            raise ValueError(nan_problem(sum(map(len, bad)), total, np.concatenate(bad)[:5].tolist()))
        return [found for _, found in counted]

    def quotas_of(sizes: Ids) -> Ids:
        return np.array([k]) if selection.num_classes is None else quotas_of_sizes(sizes, k)

    share = min(1.0, limit / total)
    return find_cut(census, quotas_of, num_groups=selection.num_classes or 1, share=share, limit=limit)


def _map(
    function: Callable[..., Any],
    selection: Selection,
    partitions: Sequence[Partition],
    own: Sequence[tuple[Any, ...]],
) -> list[Any]:
    """``function(partition, selection, *own)`` of every partition: Ray tasks, or here for few samples."""
    from easycore_ray.runtime.tasks import TaskResources, map_tasks

    calls = [(partition, selection, *args) for partition, args in zip(partitions, own, strict=True)]
    if len(partitions) == 1 or sum(partition.rows for partition in partitions) <= _SMALL_ROWS:
        return map_tasks(function, calls, label="select")
    from easycore_ray.runtime import cluster

    cluster.connect()
    num_tasks = min(len(calls), max(1, int(_TASKS_PER_CPU * cluster.capacity().tasks)))
    chunks = [calls[number::num_tasks] for number in range(num_tasks)]
    found = map_tasks(_call_each, ((function, chunk) for chunk in chunks), label="select", resources=TaskResources())
    return [found[number % num_tasks][number // num_tasks] for number in range(len(calls))]


def _call_each(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    return [function(*call) for call in calls]


# ---------------------------------------------------------------- what a task does with one partition


def census_of(partition: Partition, selection: Selection, interval: Interval) -> tuple[Ids, Census]:
    """The ids whose score is NaN, (m,) int64, and if there are none what the partition has in an interval.

    The first census is of all keys. Without classes their count is known: for a share of them a part of the file is
    read, and NaN is left to the next. Where scores go with the place in a file, it will look in the wrong place.
    """
    rng = np.random.default_rng([interval.seed, partition.number])
    first = interval.seed == 0 and interval.share < 1
    if first and selection.num_classes is None and partition.can_be_sampled:
        denser = replace(interval, share=min(1.0, interval.share * SAMPLED_GROUPS))
        _, sample = _census(partition.sampled_batches(rng), selection, denser, rng)
        return np.zeros(0, np.int64), replace(sample, inside=np.array([partition.rows]))
    return _census(_stored_batches(partition, selection), selection, interval, rng)


def _census(
    batches: Iterable[Batch], selection: Selection, interval: Interval, rng: np.random.Generator
) -> tuple[Ids, Census]:
    found: list[Census] = []
    bad: list[Ids] = []
    for batch, keys in _with_keys(batches, selection):
        if keys is None:
            assert batch.scores is not None
            bad.append(batch.sample_ids[np.isnan(batch.scores)])
        elif not bad:
            found.append(take_census(keys, _groups(batch, selection), interval, rng))
    return np.concatenate(bad) if bad else np.zeros(0, np.int64), add_up(found, len(interval.low))


def write_kept(
    partition: Partition, selection: Selection, rule: Rule, path: str, index: str | None
) -> dict[str, Any] | None:
    """Write the rows that a rule keeps as one file; None if there are none. Idempotent, so it may run twice."""
    return write_coreset_rows(kept_rows(partition, selection, rule), path, index)


def kept_rows(partition: Partition, selection: Selection, rule: Rule) -> Iterator[Batch]:
    """The rows of a partition that a rule keeps, in id order: (n,) ids int64, labels integers, scores float64.

    Args:
        partition: to read.
        selection: method, score and options.
        rule: of this partition.
    """
    if rule.ids is not None:
        for batch in partition.batches(labels=True, scores=True):
            low, high = np.searchsorted(rule.ids, batch.sample_ids[[0, -1]] + [0, 1])
            yield batch.take(np.searchsorted(batch.sample_ids, rule.ids[low:high]))
        return
    ties = rule.ties.copy()
    for batch, keys in _with_keys(_stored_batches(partition, selection, labels=True), selection):
        assert keys is not None
        # Places once, then a gather for each column: several times as fast as a mask for each.
        yield batch.take(np.flatnonzero(keep(rule.value, ties, keys, _groups(batch, selection))))


def _stored_batches(partition: Partition, selection: Selection, *, labels: bool = False) -> Iterator[Batch]:
    """All rows of a partition, with what a selection needs of them."""
    return partition.batches(labels=labels or selection.num_classes is not None, scores=selection.method.needs_score)


def _with_keys(batches: Iterable[Batch], selection: Selection) -> Iterator[tuple[Batch, Values | None]]:
    """Batches with their keys to rank by; None if a score is NaN."""
    method = selection.method
    turn = method.needs_score and turned(method, selection.score)
    for batch in batches:
        if batch.scores is not None and np.isnan(batch.scores.min(initial=np.inf)):
            yield batch, None
            continue
        hardness = -batch.scores if turn and batch.scores is not None else batch.scores
        try:
            keys = ranking_keys(method, hardness, batch.sample_ids, seed=selection.seed, options=selection.options)
        except ValueError as error:
            raise EasyCoreError(str(error)) from error
        yield batch, keys


def _groups(batch: Batch, selection: Selection) -> NDArray | None:
    """The class of each row where each class has a cut of its own."""
    if selection.num_classes is None or batch.labels is None:
        return None
    if len(batch.labels) and not 0 <= batch.labels.min() <= batch.labels.max() < selection.num_classes:
        raise EasyCoreError(
            f"labels must be 0 .. {selection.num_classes - 1}, the dataset's classes; the table has "
            f"{batch.labels.min()} .. {batch.labels.max()}; it is damaged"
        )
    return batch.labels
