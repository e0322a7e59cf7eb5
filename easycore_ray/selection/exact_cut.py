"""The choice of a coreset from any number of samples, file by file: the same as ``core.selection.choose``.

Takes stretches of samples and a method, gives a rule that says of every row whether it is kept, and writes the kept
rows. For methods that rank, a few passes over the stretches find the value at which to cut: each pass brings back
counts, never rows, and one Ray task works on one stretch. Few samples are chosen in this process, without Ray.
Methods that must see all samples at once gather three columns here, up to the memory of this machine.
"""

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from easycore_ray.core import order_statistics
from easycore_ray.core.order_statistics import Ids, Interval, Values
from easycore_ray.core.seeding import numpy_rng
from easycore_ray.core.selection import budget, choose, quotas_of_sizes, turned
from easycore_ray.core.selection_methods import Method
from easycore_ray.data.index import read_index_range
from easycore_ray.selection.population import Batch, Stretch
from easycore_ray.storage import paths
from easycore_ray.storage.errors import EasyCoreError

# Up to this many samples are done before a Ray task has started.
_SMALL_ROWS = 4_000_000
# Of a method that sees all samples at once, with class balance: measured, see ``gather_limit``.
_GATHER_BYTES = 100
_ROW_GROUP_ROWS = 1 << 20
_COUNT_ROWS = 1 << 20

SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.int64(), nullable=False),
        pa.field("score", pa.float64()),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("key", pa.string()),
    ]
)
"""Rows of a coreset. Score is null for methods that use none."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What is chosen: a method, and all that decides its choice.

    Attributes:
        method: as registered.
        fraction: share of the samples that is kept, in (0, 1].
        score: name of the score, for its direction ("user": higher is harder); None if the method needs none.
        balance: "none" or "class".
        seed: of methods that draw.
        options: the method's own.
    """

    method: Method
    fraction: float
    score: str | None = None
    balance: str = "none"
    seed: int = 0
    options: Mapping[str, Any]

    @property
    def by_class(self) -> bool:
        """Whether each class is a group of its own."""
        return self.balance == "class"


@dataclass(frozen=True)
class Rule:
    """Which rows of one stretch are kept: those below a cut, or some ids.

    Attributes:
        selection: what is ranked by.
        before: (groups,) rows of each group in the stretches before this one.
        value: float64 (groups,), see ``order.Cut``.
        ties: (groups,) equal values to keep.
        ids: the ids themselves, sorted, where there is no cut.
    """

    selection: Selection
    before: Ids
    value: Values
    ties: Ids
    ids: Ids | None = None


@dataclass(frozen=True)
class Choice:
    """A rule for every stretch, and how many samples they keep."""

    stretches: Sequence[Stretch]
    rules: Sequence[Rule]
    kept: int
    total: int


def decide(selection: Selection, stretches: Sequence[Stretch], *, limit: int = order_statistics.LIMIT) -> Choice:
    """Find out what is kept: exactly ``budget(N, fraction)`` samples, those ``choose`` keeps.

    Args:
        selection: the method and its settings.
        stretches: all samples, in id order.
        limit: most candidates for a cut to bring together.

    Raises:
        EasyCoreError: a score is missing, the samples do not fit in memory for a method that needs them all.
        ValueError: a score is NaN, or the budget cannot be met.
    """
    total = sum(stretch.rows for stretch in stretches)
    k = budget(total, selection.fraction)
    selection.method.check_budget(k, total)
    tasks = Tasks(stretches)
    if not selection.method.ranks:
        return Choice(stretches, _gathered(selection, stretches, total), k, total)
    sizes = np.array([[stretch.rows] for stretch in stretches])
    if selection.by_class:
        counts = [count for _, count in sorted(tasks.each(count_labels), key=lambda pair: pair[0])]
        sizes = np.stack([np.pad(count, (0, max(map(len, counts)) - len(count))) for count in counts])
    before = np.cumsum(sizes, axis=0) - sizes
    quotas = quotas_of_sizes(sizes.sum(axis=0), k) if selection.by_class else np.array([k])
    if selection.method.keeps_all:
        cut = order_statistics.Cut(np.full(sizes.shape[1], np.inf), sizes)
    else:
        passes = _passes(tasks, selection, before)
        cut = order_statistics.find_cut(sizes.sum(axis=0), quotas, len(stretches), passes, limit=limit)
    rules = [Rule(selection, *row) for row in zip(before, [cut.value] * len(before), cut.ties, strict=True)]
    return Choice(stretches, rules, k, total)


def write(choice: Choice, folder: str, index: str | None) -> list[dict[str, Any]]:
    """Write the kept rows, a file for each stretch that has some; the entries that list them, in id order.

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
    found = dict(Tasks(choice.stretches).each(write_kept, own=own))
    entries = [found[number] for number in sorted(found) if found[number] is not None]
    kept = sum(entry["rows"] for entry in entries)
    if kept != choice.kept:
        raise EasyCoreError(f"{kept:,} samples were written, {choice.kept:,} chosen; did the scores change meanwhile?")
    return [{**entry, "path": f"{name}/{entry['path']}"} for entry in entries]


class Tasks:
    """Calls of one function for every stretch: Ray tasks, or in this process where there are few samples."""

    def __init__(self, stretches: Sequence[Stretch]) -> None:
        self._stretches = stretches
        small = sum(stretch.rows for stretch in stretches) <= _SMALL_ROWS
        self._here = small or len(stretches) == 1
        self._sent: list[Any] = []

    def each(
        self, function: Callable[..., Any], *shared: Any, own: Sequence[tuple[Any, ...]] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """``(number, function(stretch, *shared, *own[number]))`` of every stretch, in any order."""
        own = own or [()] * len(self._stretches)
        if self._here:
            for number, stretch in enumerate(self._stretches):
                yield number, function(stretch, *shared, *own[number])
            return
        yield from self._on_ray(function, shared, own)

    def _on_ray(
        self, function: Callable[..., Any], shared: tuple[Any, ...], own: Sequence[tuple[Any, ...]]
    ) -> Iterator[tuple[int, Any]]:
        import ray

        from easycore_ray.runtime import cluster

        cluster.connect()
        self._sent = self._sent or [ray.put(stretch) for stretch in self._stretches]
        task = ray.remote(max_retries=5)(function)
        shared = tuple(ray.put(value) for value in shared)
        waiting = iter(range(len(self._sent)))
        # Not all at once: what they bring back would lie about until it is looked at.
        most = max(8, 4 * int(cluster.capacity()[0].get("CPU", 1)))
        running: dict[Any, int] = {}
        while True:
            while len(running) < most and (number := next(waiting, None)) is not None:
                running[task.remote(self._sent[number], *shared, *own[number])] = number
            if not running:
                return
            done, _ = ray.wait(list(running))
            number = running.pop(done[0])
            try:
                yield number, ray.get(done[0])
            except ray.exceptions.RayTaskError as error:
                # Our own sentence, without the task's traceback around it.
                if isinstance(error.cause, ValueError):
                    raise error.cause from None
                raise


def _passes(tasks: Tasks, selection: Selection, before: Ids) -> order_statistics.Passes:
    """How to ask for the values of all stretches."""
    own = [(row,) for row in before]

    def answers(function: Callable[..., Any], request: Any) -> Iterator[tuple[int, Any]]:
        for number, answer in tasks.each(function, selection, request, own=own):
            if answer is None:
                _refuse_nan(tasks, selection, own)
            yield number, answer

    def sample(step: int) -> tuple[NDArray, Values]:
        found = [answer for _, answer in answers(sample_values, step)]
        return np.concatenate([groups for groups, _ in found]), np.concatenate([values for _, values in found])

    def between(low: Values, high: Values) -> Iterator[tuple[int, NDArray, Values, Ids]]:
        for number, answer in answers(values_between, (low, high)):
            yield number, *answer

    def count(interval: Interval) -> Ids:
        return sum(answer for _, answer in answers(count_cells, interval))

    def collect(interval: Interval) -> Iterator[tuple[int, NDArray, Values]]:
        for number, (groups, values) in answers(collect_values, interval):
            yield number, groups, values

    def ties(value: Values) -> Ids:
        return np.stack([answer for _, answer in sorted(answers(count_ties, value), key=lambda pair: pair[0])])

    return order_statistics.Passes(sample, between, count, collect, ties)


def _refuse_nan(tasks: Tasks, selection: Selection, own: Sequence[tuple[Any, ...]]) -> None:
    found = dict(tasks.each(find_nan, selection, own=own))
    count = sum(found[number][0] for number in found)
    total = sum(found[number][2] for number in found)
    first = [sample_id for number in sorted(found) for sample_id in found[number][1]][:5]
    raise ValueError(order_statistics.nan_problem(count, total, first))


# ---------------------------------------------------------------- what a task does with one stretch


def count_labels(stretch: Stretch) -> Ids:
    """Samples of each class: (highest label + 1,)."""
    counts = np.zeros(0, np.int64)
    for batch in stretch.batches(labels=True):
        labels = _there(batch.labels)
        if batch.rows and labels.min() < 0:
            raise EasyCoreError(f"{stretch.source} has a label below 0 ({labels.min()}); it is damaged")
        counts = _added(counts, np.bincount(labels))
    return counts


def sample_values(stretch: Stretch, selection: Selection, step: int, before: Ids) -> tuple[NDArray, Values] | None:
    """Groups and values of every ``step``-th row or so; None if one of their scores is NaN."""
    found: list[tuple[NDArray, Values]] = []
    for _, groups, values in _keyed(stretch, selection, before, step=step):
        if values is None:
            return None
        found.append((_of_one(groups, values), values))
    return np.concatenate([groups for groups, _ in found]), np.concatenate([values for _, values in found])


def values_between(
    stretch: Stretch, selection: Selection, bounds: tuple[Values, Values], before: Ids
) -> tuple[NDArray, Values, Ids] | None:
    """Groups and values from one bound to the other, and how many values lie below; None if a score is NaN."""
    low, high = bounds
    below = np.zeros(len(low), np.int64)
    found: list[tuple[NDArray, Values]] = []
    for _, groups, values in _keyed(stretch, selection, before):
        if values is None:
            return None
        first = low[0] if groups is None else low[groups]
        lower = values < first
        if groups is None:
            below += np.count_nonzero(lower)
        else:
            below += np.bincount(groups[lower], minlength=len(low))
        at = np.flatnonzero((values <= (high[0] if groups is None else high[groups])) & (values >= first))
        groups = None if groups is None else groups[at]
        found.append((_of_one(groups, values[at]), values[at]))
    return np.concatenate([groups for groups, _ in found]), np.concatenate([values for _, values in found]), below


def _of_one(groups: NDArray | None, values: Values) -> NDArray:
    """The groups, where there is one as well."""
    return np.zeros(len(values), np.int32) if groups is None else groups


def count_cells(stretch: Stretch, selection: Selection, interval: Interval, before: Ids) -> Ids | None:
    """How many values of a stretch lie in each cell of an interval; None if a score is NaN."""
    counts = np.zeros(interval.num_cells, np.int64)
    held: list[Ids] = []
    # Counted many rows at a time: each count goes through all cells, of which there may be more than rows in a batch.
    for _, groups, values in _keyed(stretch, selection, before):
        if values is None:
            return None
        held.append(interval.cells(order_statistics.sort_keys(values), groups))
        if sum(map(len, held)) >= _COUNT_ROWS:
            counts += np.bincount(np.concatenate(held), minlength=len(counts))
            held = []
    return counts + np.bincount(np.concatenate(held), minlength=len(counts)) if held else counts


def collect_values(
    stretch: Stretch, selection: Selection, interval: Interval, before: Ids
) -> tuple[NDArray, Values] | None:
    """Groups and values inside an interval; None if a score is NaN."""
    found: list[tuple[NDArray, Values]] = []
    for _, groups, values in _keyed(stretch, selection, before):
        if values is None:
            return None
        inside = interval.members(order_statistics.sort_keys(values), groups)
        if inside is not None:
            values, groups = values[inside], None if groups is None else groups[inside]
        found.append((_of_one(groups, values), values))
    if not found:
        return np.zeros(0, np.int32), np.zeros(0)
    return np.concatenate([groups for groups, _ in found]), np.concatenate([values for _, values in found])


def count_ties(stretch: Stretch, selection: Selection, value: Values, before: Ids) -> Ids:
    """How many values of each group equal its value: (groups,)."""
    counts = np.zeros(len(value), np.int64)
    for _, groups, values in _keyed(stretch, selection, before):
        if groups is None:
            counts += np.count_nonzero(values == value[0])
        else:
            counts += np.bincount(groups[values == value[groups]], minlength=len(value))
    return counts


def find_nan(stretch: Stretch, selection: Selection, before: Ids) -> tuple[int, list[int], int]:
    """How many scores are NaN, the first ids, and how many scores there are."""
    count = 0
    first: list[int] = []
    for batch, _, values in _keyed(stretch, selection, before, ids=True):
        if values is None:
            bad = np.isnan(_there(batch.scores))
            count += int(np.count_nonzero(bad))
            first += _there(batch.sample_ids)[bad].tolist()[: 5 - len(first)]
    return count, first, stretch.rows


def kept_rows(stretch: Stretch, rule: Rule) -> Iterator[Batch]:
    """The rows of a stretch that a rule keeps, with ids, labels and the score as it is stored."""
    if rule.ids is not None:
        for batch in stretch.batches(ids=True, labels=True, scores=True):
            yield _only(batch, _named(batch, rule.ids))
        return
    ties = rule.ties.copy()
    for batch, groups, values in _keyed(stretch, rule.selection, rule.before, ids=True, labels=True):
        assert values is not None
        yield _only(batch, order_statistics.keep(rule.value, ties, values, groups))


def write_kept(stretch: Stretch, rule: Rule, path: str, index: str | None) -> dict[str, Any] | None:
    """Write the rows that a rule keeps as one file; None if there are none. Idempotent, so it may run twice.

    Ids and labels are stored as deltas and scores plain, uncompressed: they are written and read at memory speed.
    """
    batches = _merged(kept_rows(stretch, rule), _ROW_GROUP_ROWS)
    head = next(batches, None)
    if head is None:
        return None
    schema = SCHEMA if index is not None else pa.schema([field for field in SCHEMA if field.name != "key"])
    rows, histogram = 0, np.zeros(0, np.int64)
    with paths.staged(path) as local, ThreadPoolExecutor(1) as aside:
        flushed = []
        with _writer(local, schema) as writer:
            for some in itertools.chain([head], batches):
                table = _table(some, schema, index)
                writer.write_table(table, row_group_size=_ROW_GROUP_ROWS)
                # The disk works while the next rows are made, and the last while all are hashed.
                flushed.append(aside.submit(paths.flush, local))
                for batch in some:
                    histogram = _added(histogram, np.bincount(_there(batch.labels)))
                rows, last = rows + table.num_rows, int(_there(some[-1].sample_ids)[-1])
        with Path(local).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        for flush in flushed:
            flush.result()
    return {
        "path": path.rsplit("/", 1)[-1],
        "rows": rows,
        "first_id": int(_there(head[0].sample_ids)[0]),
        "last_id": last,
        "sha256": digest,
        "class_histogram": histogram.tolist(),
    }


def _writer(local: str, schema: pa.Schema) -> pq.ParquetWriter:
    delta = {"sample_id": "DELTA_BINARY_PACKED", "label": "DELTA_BINARY_PACKED", "score": "PLAIN"}
    compression = dict.fromkeys(delta, "NONE") | {"key": "zstd"}
    names = set(schema.names)
    return pq.ParquetWriter(
        local,
        schema,
        use_dictionary=False,
        column_encoding={name: encoding for name, encoding in delta.items() if name in names},
        compression={name: codec for name, codec in compression.items() if name in names},
        write_statistics=["sample_id"],
        # Pages of half a MiB, which stay in a processor's cache while they are made.
        max_rows_per_page=1 << 16,
    )


def _keyed(
    stretch: Stretch, selection: Selection, before: Ids, *, ids: bool = False, labels: bool = False, step: int = 1
) -> Iterator[tuple[Batch, NDArray | None, Values | None]]:
    """Batches of a stretch with their groups (None: one group) and keys to order by (None: a score is NaN).

    With ``step``, of every so many rows one.
    """
    method = selection.method
    turn = -1.0 if method.needs_score and turned(method, selection.score) else 1.0
    draws = _Draws(selection, before) if method.draws else None
    for batch in stretch.batches(ids=ids, labels=labels or selection.by_class, scores=method.needs_score):
        groups = batch.labels if selection.by_class else None
        uniform = None if draws is None else draws.take(batch.rows, groups)
        if step > 1:
            batch = batch.every(step)
            groups = None if groups is None else groups[::step]
            uniform = None if uniform is None else uniform[::step]
        if method.needs_score and np.isnan(_there(batch.scores).min(initial=np.inf)):
            yield batch, groups, None
            continue
        hardness = batch.scores if turn > 0 or batch.scores is None else -batch.scores
        keys = np.asarray(method.function(hardness, uniform, **selection.options), np.float64)
        if keys is not batch.scores and np.isnan(keys.min(initial=np.inf)):
            raise ValueError(f"method {method.name!r} gave a key that is NaN; it can rank no such sample")
        yield batch, groups, keys if keys.shape == (batch.rows,) else np.broadcast_to(keys, batch.rows)


class _Draws:
    """The random numbers of a stretch's rows, in order: those that ``choose`` draws for the same rows."""

    def __init__(self, selection: Selection, before: Ids) -> None:
        self._name = ("select", selection.method.name, selection.seed)
        self._before = before
        self._streams: dict[int, np.random.Generator] = {}

    def take(self, rows: int, groups: NDArray | None) -> NDArray[np.float64]:
        """One number for each of the next rows, from the stream of its class or the one of all."""
        if groups is None:
            return self._stream(None).random(rows)
        counts = np.bincount(groups)
        small = groups.astype(np.uint16) if len(counts) <= 1 << 16 else groups  # sorted in linear time
        by_class = np.argsort(small, kind="stable")
        present = np.flatnonzero(counts)
        found = np.empty(rows)
        found[by_class] = np.concatenate([self._stream(label).random(counts[label]) for label in present.tolist()])
        return found

    def _stream(self, label: int | None) -> np.random.Generator:
        group = 0 if label is None else label
        if group not in self._streams:
            rng = numpy_rng(*self._name, *([] if label is None else [label]))
            rng.bit_generator.advance(int(self._before[group]))  # type: ignore[attr-defined]  # one step a number
            self._streams[group] = rng
        return self._streams[group]


# ---------------------------------------------------------------- methods that see all samples at once


def _gathered(selection: Selection, stretches: Sequence[Stretch], total: int) -> list[Rule]:
    """The choice of a method that needs all samples, made in this process."""
    most = gather_limit()
    if total > most:
        raise EasyCoreError(
            f"method {selection.method.name} sees all samples at once, and {total:,} are more than the {most:,} this "
            "machine has memory for; run it on a larger one, or choose a method that goes sample by sample, "
            "such as easiest or random"
        )
    batches = [batch for stretch in stretches for batch in stretch.batches(ids=True, labels=True, scores=True)]
    ids = choose(
        selection.method.name,
        sample_ids=np.concatenate([_there(batch.sample_ids) for batch in batches]),
        labels=np.concatenate([_there(batch.labels) for batch in batches]),
        scores=np.concatenate([_there(batch.scores) for batch in batches]) if selection.method.needs_score else None,
        fraction=selection.fraction,
        score=selection.score,
        balance=selection.balance,
        seed=selection.seed,
        **selection.options,
    )
    nothing = np.zeros(1, np.int64)
    bounds = np.searchsorted(ids, [stretch.first_id for stretch in stretches] + [np.iinfo(np.int64).max])
    return [
        Rule(selection, nothing, nothing.astype(np.float64), nothing, ids[low:high])
        for low, high in itertools.pairwise(bounds)
    ]


def gather_limit() -> int:
    """Most samples that a method which sees all at once is given here: four fifths of the memory of this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    group = Path("/sys/fs/cgroup/memory.max")
    if group.exists() and (limit := group.read_text().strip()).isdigit():
        memory = min(memory, int(limit))
    return int(0.8 * memory) // _GATHER_BYTES


# ---------------------------------------------------------------- rows


def _there(values: NDArray | None) -> NDArray:
    """A column that was asked for."""
    assert values is not None
    return values


def _added(counts: Ids, more: Ids) -> Ids:
    """Sum of two counts of different length."""
    longer, shorter = (counts, more) if len(counts) >= len(more) else (more, counts)
    longer = longer.copy()
    longer[: len(shorter)] += shorter
    return longer


def _named(batch: Batch, ids: Ids) -> NDArray[np.bool_]:
    """Which rows have one of the ids; both are sorted."""
    mine = _there(batch.sample_ids)
    low, high = np.searchsorted(ids, mine[[0, -1]] + [0, 1]) if batch.rows else (0, 0)
    kept = np.zeros(batch.rows, bool)
    kept[np.searchsorted(mine, ids[low:high])] = True
    return kept


def _only(batch: Batch, kept: NDArray[np.bool_]) -> Batch:
    # Positions once, then a gather for each column: several times as fast as a mask for each.
    at = np.flatnonzero(kept)
    scores = None if batch.scores is None else batch.scores.take(at)
    return Batch(len(at), _there(batch.sample_ids).take(at), _there(batch.labels).take(at), scores)


def _merged(batches: Iterator[Batch], rows: int) -> Iterator[list[Batch]]:
    """The same batches, so many together as have at least ``rows``, but for the last; none is empty."""
    held: list[Batch] = []
    count = 0
    for batch in batches:
        if batch.rows:
            held.append(batch)
            count += batch.rows
        if count >= rows:
            yield held
            held, count = [], 0
    if held:
        yield held


def _table(batches: Sequence[Batch], schema: pa.Schema, index: str | None) -> pa.Table:
    """Rows of a coreset, with their source keys if there is an index to look in; nothing is copied."""
    columns: dict[str, Any] = {
        "sample_id": _chunked([batch.sample_ids for batch in batches]),
        "score": _chunked([batch.scores for batch in batches]),
        "label": _chunked([batch.labels for batch in batches]),
    }
    if columns["score"] is None:
        columns["score"] = pa.nulls(len(columns["sample_id"]), pa.float64())
    if index is not None:
        columns["key"] = _keys(index, columns["sample_id"].to_numpy())
    return pa.table(columns, schema=schema)


def _chunked(parts: Sequence[NDArray | None]) -> pa.ChunkedArray | None:
    arrays = [pa.array(part) for part in parts if part is not None]
    return pa.chunked_array(arrays) if arrays else None


def _keys(index: str, ids: Ids) -> pa.ChunkedArray:
    rows = read_index_range(index, "train", int(ids[0]), int(ids[-1]), ["sample_id", "key"])
    there = rows["sample_id"].to_numpy()
    at = np.minimum(np.searchsorted(there, ids), max(len(there) - 1, 0))
    if not len(there) or not np.array_equal(there[at], ids):
        raise EasyCoreError(f"{index} lacks some of the chosen samples; do dataset and scores belong together?")
    return rows["key"].take(at)
