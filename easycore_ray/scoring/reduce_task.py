"""One range of ids: its rows of the score table become rows of the hardness table.

Parts are sorted by id, so a task reads only its own block of each, and its memory is set by the range,
not by the table. Sums are float64 in epoch order: the result depends neither on the order of parts nor on
how many workers wrote them. It also proves that every sample has exactly one row per epoch. Runs in Ray
tasks; loads neither Ray nor PyTorch, for which a task would wait longer than it works.
"""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa

from easycore_ray.core.trajectory import RunFacts, TrajectoryScore
from easycore_ray.core.trajectory_scores import RunningNorm
from easycore_ray.scoring.feature_table import open_features, read_features_between
from easycore_ray.scoring.hardness_table import schema_of, write_hardness
from easycore_ray.scoring.score_reader import (
    Rows,
    ScoreTable,
    population,
    read_range,
    read_samples,
    training_of,
    verify_part,
)
from easycore_ray.scoring.score_table import FLOAT_SCORES, ScorePart
from easycore_ray.scoring.trajectories import Trajectories, exact_sum, trajectory_scores
from easycore_ray.storage import paths
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.storage.read_ahead import read_ahead

_FLOATS = {"aign": "grad_norm", "el2n": "el2n", "loss": "loss", "aum": "margin", "adv_loss": "adv_loss"}


@dataclass(frozen=True)
class Plan:
    """What the tasks of a reduction share; each is given its number only."""

    table: ScoreTable
    epochs: tuple[int, ...]
    out: str
    ranges: tuple[tuple[int, int], ...]
    """First id and one past the last id of each task, ascending."""
    verified: tuple[tuple[ScorePart, ...], ...]
    """Parts whose checksum each task compares; every part that is used is among them once."""
    only: tuple[str, ...] | None
    """Scores that are wanted if not all are; then the checksums of the pages that are read are compared, not those of
    whole parts."""
    run: RunFacts
    """What trajectory scores must know of the scoring run."""

    @property
    def scored(self) -> tuple[int, ...]:
        """Epochs that are averaged over."""
        return tuple(epoch for epoch in self.epochs if epoch > 0)

    @property
    def means(self) -> tuple[str, ...]:
        """Scores that are means over epochs."""
        return tuple(name for name in _FLOATS if name in self.schema.names)

    @cached_property
    def schema(self) -> pa.Schema:
        """Of the hardness table."""
        return schema_of(self.only, attacked=training_of(self.table.artifact) != "standard")

    @property
    def history(self) -> bool:
        """Whether what was learned and forgotten is counted."""
        return "forgetting_events" in self.schema.names

    @property
    def attacks(self) -> bool:
        """Whether it is counted how often the attacked image was misclassified."""
        return "problematic" in self.schema.names


def make_plan(
    table: ScoreTable,
    epochs: tuple[int, ...],
    out: str,
    num_ranges: int,
    only: Collection[str] | None = None,
    run: RunFacts | None = None,
) -> Plan:
    """Cut the ids of the scored samples into ranges of equal width.

    Args:
        table: the score table.
        epochs: epochs to read, ascending; 0 for the control.
        out: folder of the hardness table.
        num_ranges: about how many.
        only: scores that are wanted; all if None. The table has no columns for the others.
        run: of trajectory scores among them, with what those need.

    Raises:
        EasyCoreError: if the scored samples are not the manifest's, or parts reach beyond it.
    """
    first, last, count = population(table.path)
    expected = table.artifact.manifest["counts"]["samples"]
    if count != expected:
        raise EasyCoreError(f"{table.path}: {count:,} of {expected:,} samples are known; the table is damaged")
    parts = [part for epoch in epochs for part in table.of_epoch(epoch)]
    for part in parts:
        if part.rows and not first <= part.first_id <= part.last_id <= last:
            stray = part.first_id if part.first_id < first else part.last_id
            raise EasyCoreError(
                f"{paths.join(table.path, part.path)} holds the foreign sample_id {stray}, the table's go from {first} "
                f"to {last}; the table is damaged"
            )
    width = -(-(last + 1 - first) // num_ranges)
    ranges = tuple((low, min(low + width, last + 1)) for low in range(first, last + 1, width))
    verified = _share_out(parts, ranges) if only is None else ((),) * len(ranges)
    run = run or RunFacts(count=len([epoch for epoch in epochs if epoch > 0]))
    return Plan(table, epochs, out, ranges, verified, None if only is None else tuple(only), run)


def _share_out(parts: list[ScorePart], ranges: tuple[tuple[int, int], ...]) -> tuple[tuple[ScorePart, ...], ...]:
    """Give every part to one of the ranges it has rows in, so that all hash about as many bytes."""
    shares: list[list[ScorePart]] = [[] for _ in ranges]
    loads = [0] * len(ranges)
    low, width = ranges[0][0], ranges[0][1] - ranges[0][0]
    for part in parts:
        homes = range((part.first_id - low) // width, (part.last_id - low) // width + 1) if part.rows else range(1)
        home = min(homes, key=loads.__getitem__)
        shares[home].append(part)
        loads[home] += part.num_bytes
    return tuple(map(tuple, shares))


def reduce_range(plan: Plan, number: int) -> dict[str, Any]:
    """Reduce one range of ids and write its file; idempotent, so it may run twice."""
    rows = Range(plan, number, trajectory_scores(plan.only)).reduce()
    return write_hardness(plan.out, number, rows, count=len(plan.ranges))


def sum_range(plan: Plan, number: int) -> int:
    """Sum over the samples of a range of their ``RunningNorm``: see ``trajectories.exact_sum``."""
    part = Range(plan, number, (RunningNorm(),))
    part.add_all()
    (values,) = part.trajectories().values()
    return exact_sum(values)


class Range:
    """Reduction of one id range, epoch by epoch.

    A worker keeps its share of the samples from epoch to epoch, so parts list the same ids in the same order
    again and again. Sums are therefore kept in the order in which the last epoch's rows came (``_ids``), and
    as long as they come in that order again, adding them is contiguous. Where they do not (first epoch, other
    number of workers), they find their places through a table, and their order is the new one. The first epoch's
    order is taken over before anything is added.
    """

    def __init__(self, plan: Plan, number: int, trajectories: Sequence[TrajectoryScore] = ()) -> None:
        self._plan = plan
        self._trajectories = Trajectories(trajectories, plan.scored, plan.run)
        self._floats = {name: _FLOATS[name] for name in plan.means}
        control = ["grad_norm"] if 0 in plan.epochs else []
        outcomes = ["correct"] * plan.history + ["adv_correct"] * plan.attacks
        self._columns = list(
            dict.fromkeys(["sample_id", *self._floats.values(), *self._trajectories.columns, *control, *outcomes])
        )
        self._check_pages = plan.only is not None
        self._table = plan.table
        self._low, self._high = plan.ranges[number]
        self._num_scores = len(plan.scored)
        self._unverified = set(plan.verified[number])
        samples = read_samples(plan.table.path, self._low, self._high, ["sample_id"])
        self._ids = samples["sample_id"].to_numpy()
        _check_increasing(self._ids, paths.join(plan.table.path, "the list of samples"))
        size = len(self._ids)
        self._gaps = size < self._high - self._low
        self._places: np.ndarray | None = None
        self._state: dict[str, np.ndarray] = {name: np.zeros(size) for name in plan.means}
        if control:
            self._state["aign_epoch0"] = np.zeros(size, np.float32)
        if plan.history:
            self._state["forgetting_events"] = np.zeros(size, np.int32)
            self._state["first_learned_epoch"] = np.full(size, -1, np.int32)
            self._state["correct"] = np.zeros(size, bool)
        if plan.attacks:
            self._state["problematic"] = np.zeros(size, np.int32)
        self._state |= self._trajectories.begin(size)

    def reduce(self) -> pa.Table:
        """The range's rows of the hardness table, sorted by id: means float64, counts int32.

        Raises:
            EasyCoreError: a row is missing, doubled, foreign, damaged or not finite.
        """
        self.add_all()
        return self._rows()

    def add_all(self) -> None:
        """Add up all epochs and make sure that nothing is missing, doubled, foreign, damaged or not finite."""
        for epoch, parts in itertools.groupby(self._read(self._plan.epochs), key=lambda found: found[0]):
            self._add_epoch(epoch, (rows for _, part in parts for rows in part))
        # Parts that no range reads: those of workers without rows.
        for part in self._unverified:
            verify_part(self._table.path, part)
        if not all(np.isfinite(self._state[name]).all() for name in self._floats):
            self._refuse_non_finite(self._plan.epochs)

    def _read(self, epochs: Sequence[int]) -> Iterator[tuple[int, Iterable[Rows]]]:
        """Epoch and rows in this range of each part, epoch by epoch; each part's in id order.

        Parts of an object store are fetched ahead, many at a time: one after the other, each would cost the time of
        its requests.
        """
        parts = [(epoch, part) for epoch in epochs for part in self._table.of_epoch(epoch)]
        if not paths.is_remote(self._table.path):
            for epoch, part in parts:
                yield epoch, self._rows_of(part)
            return
        reads: Iterator[tuple[int, Callable[[], list[Rows]]]] = (
            (part.num_bytes, partial(list, self._rows_of(part))) for _, part in parts
        )
        for (epoch, _), rows in zip(parts, read_ahead(reads), strict=True):
            yield epoch, rows

    def _rows_of(self, part: ScorePart) -> Iterator[Rows]:
        verify = part in self._unverified and part.rows > 0
        for rows in read_range(
            self._table.path, part, self._low, self._high, self._columns,
            schema=self._table.schema, verify=verify, check_pages=self._check_pages,
        ):  # fmt: skip
            _check_increasing(rows.columns["sample_id"], part.path)
            yield rows
        if verify:
            self._unverified.remove(part)

    def _add_epoch(self, epoch: int, batches: Iterable[Rows]) -> None:
        """Add the rows of an epoch."""
        filled = 0
        first = epoch == self._plan.epochs[0]
        order: list[np.ndarray] = []
        seen: np.ndarray | None = None
        for rows in batches:
            ids = rows.columns["sample_id"]
            at: slice | np.ndarray = slice(filled, filled + len(ids))
            if seen is None and (first or not np.array_equal(ids, self._ids[at])):
                seen = np.zeros(len(self._ids), bool)
                seen[:filled] = True
                order = [self._ids[:filled]]
            if seen is not None:
                found = self._find(epoch, ids)
                self._mark(epoch, seen, found, ids)
                order.append(ids)
                # Sums of the first epoch are kept as its rows come, from the start.
                at = at if first else found
            self._add_rows(epoch, at, rows.columns)
            filled += len(ids)
        if filled < len(self._ids):
            seen = np.arange(len(self._ids)) < filled if seen is None else seen
            gone = np.sort(self._ids[~seen])
            raise EasyCoreError(
                f"epoch {epoch}: {len(gone):,} samples have no row (first sample_id: {gone[0]}); the table is damaged"
            )
        if first:
            self._ids, self._places = np.concatenate([self._ids[:0], *order]), None
            self._trajectories.set_known(self._state, {"label": self._labels, "feature_squares": self._feature_squares})
        elif seen is not None:
            self._reorder(np.concatenate(order))

    def _find(self, epoch: int, ids: np.ndarray) -> np.ndarray:
        """Places of these ids in the present order."""
        if not self._gaps and epoch == self._plan.epochs[0]:
            # Still ascending, and every id of the range is there.
            return ids - self._low
        if self._places is None:
            self._places = np.full(self._high - self._low, -1, np.int32)
            self._places[self._ids - self._low] = np.arange(len(self._ids), dtype=np.int32)
        at = self._places[ids - self._low]
        if len(at) and at.min() < 0:
            raise EasyCoreError(
                f"epoch {epoch}: sample_id {ids[at < 0][0]} is foreign: it is not in the list of samples; "
                "the table is damaged"
            )
        return at

    def _mark(self, epoch: int, seen: np.ndarray, at: np.ndarray, ids: np.ndarray) -> None:
        if seen[at].any():
            raise EasyCoreError(
                f"epoch {epoch}: sample_id {ids[seen[at]][0]} has more than one row; the table is damaged"
            )
        seen[at] = True

    def _reorder(self, ids: np.ndarray) -> None:
        """Bring what was added up to this epoch into the order of these ids."""
        assert self._places is not None
        at = self._places[ids - self._low]
        for name in self._state:
            self._state[name] = self._state[name][at]
        self._ids, self._places = ids, None

    def _add_rows(self, epoch: int, at: slice | np.ndarray, rows: dict[str, np.ndarray]) -> None:
        # Views where rows come in the order of the sums, copies where they do not.
        block = {name: self._state[name][at] for name in self._state}
        if epoch == 0:
            if not all(np.isfinite(rows[name]).all() for name in {"grad_norm", *self._floats.values()}):
                self._refuse_non_finite((0,))
            block["aign_epoch0"][:] = rows["grad_norm"]
        else:
            # Whether scores are finite shows in their sums.
            for name, source in self._floats.items():
                block[name] += rows[source]
            if self._plan.history:
                _add_history(block, rows["correct"], epoch)
            if self._plan.attacks:
                block["problematic"] += ~rows["adv_correct"]
            self._trajectories.add(block, rows, epoch)
        if not isinstance(at, slice):
            for name, values in block.items():
                self._state[name][at] = values

    def _ranks(self) -> np.ndarray:
        """Which place each of the range's samples has by ascending id; a table of the range is faster than sorting."""
        at = self._ids - self._low
        if not self._gaps:
            return at
        there = np.zeros(self._high - self._low, bool)
        there[at] = True
        return (np.cumsum(there, dtype=np.int32) - 1)[at]

    def _refuse_non_finite(self, epochs: tuple[int, ...]) -> None:
        """Read the scores again and name the first epoch and the ids whose are not finite."""
        for epoch in epochs:
            bad: dict[str, list[int]] = {name: [] for name in self._columns if name in FLOAT_SCORES}
            for rows in (rows for _, part in self._read((epoch,)) for rows in part):
                for name, ids in bad.items():
                    ids += rows.columns["sample_id"][~np.isfinite(rows.columns[name])].tolist()
            for name, ids in bad.items():
                if ids:
                    raise EasyCoreError(
                        f"epoch {epoch}: {name} is not finite for {len(ids):,} samples (first sample_ids: "
                        f"{', '.join(map(str, sorted(ids)[:5]))}); the scoring run has diverged"
                    )

    def trajectories(self) -> dict[str, np.ndarray]:
        """The trajectory scores, float64 (n,), in the present order, by their text; once, after ``add_all``.

        Raises:
            EasyCoreError: a value that they are made of is not finite.
        """
        found = self._trajectories.finish(self._state)
        if not all(np.isfinite(values).all() for values in found.values()):
            self._refuse_non_finite(self._plan.scored)
        return found

    def _labels(self) -> np.ndarray:
        """Labels int32 (n,) in the present order."""
        labels = read_samples(self._table.path, self._low, self._high, ["sample_id", "label"])["label"].to_numpy()
        return labels[self._ranks()]

    def _feature_squares(self) -> np.ndarray:
        """Squared norms of features, float64 (n,), in the present order."""
        table = open_features(self._table.path.rpartition("/")[0], "score grand")
        found = np.full(len(self._ids), np.nan)
        ranks = self._ranks()
        at = np.empty(len(ranks), np.int64)
        at[ranks] = np.arange(len(ranks))
        ascending = self._ids[at]
        for ids, features in read_features_between(table, self._low, self._high):
            found[at[np.searchsorted(ascending, ids)]] = np.einsum("ij,ij->i", features, features)
        return found

    def _rows(self) -> pa.Table:
        schema = self._plan.schema
        known = [name for name in ("sample_id", "label", "input_norm") if name in schema.names]
        samples = read_samples(self._table.path, self._low, self._high, known)
        ranks = self._ranks()
        columns: dict[str, Any] = {name: samples[name] for name in known}
        if "num_scores" in schema.names:
            columns["num_scores"] = np.full(len(ranks), self._num_scores, np.int32)
        self._state |= self.trajectories()
        # Each column gives up its sums before the next is made: that is the peak of memory.
        for name in list(self._state):
            sums = self._state.pop(name)
            if name in schema.names:
                if name in self._plan.means:
                    sums /= self._num_scores
                columns[name] = np.empty_like(sums)
                columns[name][ranks] = sums
        # The control, if it was not scored.
        return pa.table(
            [columns[spec.name] if spec.name in columns else pa.nulls(len(ranks), spec.type) for spec in schema],
            schema=schema,
        )


def _add_history(block: dict[str, np.ndarray], correct: np.ndarray, epoch: int) -> None:
    """Count what was forgotten in this epoch, and note what was learned for the first time."""
    first = block["first_learned_epoch"]
    block["forgetting_events"] += block["correct"] > correct
    block["correct"][:] = correct
    np.copyto(first, epoch, where=(first < 0) & correct)


def _check_increasing(ids: np.ndarray, name: str) -> None:
    if not (ids[1:] > ids[:-1]).all():
        raise EasyCoreError(f"{name} is not sorted by sample_id, or holds one twice; it is damaged")
