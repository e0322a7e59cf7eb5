"""A hardness table in a few numbers: quantiles of every score, and the easiest and hardest samples.

One pass, file by file, so that memory is that of one file and not of the table. Above ``EXACT_ROWS`` samples,
quantiles are those of a fixed part of the samples, chosen by the hash of their ids: the same part for every score,
every run and every division into files. Minimum, maximum and the extremes are always exact. No Ray.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from easycore_ray.core.hashing import mix64
from easycore_ray.core.selection import HIGHER_IS_HARDER, is_higher_harder
from easycore_ray.core.trajectory_scores import is_trajectory_score
from easycore_ray.scoring.hardness_table import columns_of, not_recorded, read_hardness_file
from easycore_ray.storage.artifact import Artifact
from easycore_ray.storage.errors import EasyCoreError

EXACT_ROWS = 5_000_000
SAMPLED_ROWS = 1_000_000
QUANTILES = (0.01, 0.10, 0.25, 0.50, 0.75, 0.90, 0.99)


class NotRecordedError(EasyCoreError):
    """The score was not recorded; the table itself is sound."""


@dataclass(frozen=True)
class Extremes:
    """Samples from one end of the ranking, arrays (n,), the most extreme first; ties by id."""

    sample_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    values: NDArray[np.float64]
    """The score, in its own direction."""


@dataclass(frozen=True)
class ScoreSummary:
    """A hardness table in a few numbers; quantiles are float64, in the units of each score."""

    rows: int
    sampled_rows: int
    """Rows the quantiles are taken from; ``rows`` if they are exact."""
    quantiles: dict[str, list[float]]
    """By score: minimum, ``QUANTILES``, maximum. A score the run did not record is left out."""
    easiest: Extremes
    hardest: Extremes


def usual_score(hardness: Artifact) -> str:
    """What easiest and hardest go by if nothing else is said: ``aign``, or the first score a table was made for."""
    only = hardness.manifest.get("only")
    return "aign" if not only or "aign" in only else str(only[0])


def summarise_scores(hardness: Artifact, *, score: str = "aign", count: int = 10) -> ScoreSummary:
    """Read a hardness table once.

    Args:
        hardness: the table.
        score: what easiest and hardest go by.
        count: samples at each end; fewer if there are no more.

    Raises:
        NotRecordedError: if the run did not record ``score``.
        EasyCoreError: if a file is missing or damaged.
    """
    total = hardness.manifest["counts"]["samples"]
    trajectories = filter(is_trajectory_score, hardness.manifest.get("only") or ())
    names = list(dict.fromkeys([*HIGHER_IS_HARDER, *trajectories, score]))
    chosen: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
    ends: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    missing: set[str] = set()
    best = {True: _none(), False: _none()}
    columns = sorted({"sample_id", "label", *(column for name in names for column in columns_of(name))})
    for entry in hardness.manifest["files"]:
        table = read_hardness_file(hardness.path, entry, columns)
        ids = table["sample_id"].to_numpy()
        keep = slice(None) if total <= EXACT_ROWS else _sampled(ids, total)
        for name in names:
            values = _values(table, name)
            if values is None:
                missing.add(name)
            elif len(values):
                chosen[name].append(values[keep])
                ends[name].append((float(values.min()), float(values.max())))
        if score in missing:
            raise NotRecordedError(not_recorded(score))
        values = _values(table, score)
        assert values is not None
        mine = Extremes(ids, table["label"].to_numpy().astype(np.int64), values)
        for hard in best:
            best[hard] = _extreme(_joined(best[hard], mine), score, count, hardest=hard)
    there = [name for name in names if name not in missing and chosen[name]]
    return ScoreSummary(
        rows=total,
        sampled_rows=sum(map(len, chosen[score])),
        quantiles={name: _quantiles(np.concatenate(chosen[name]), ends[name]) for name in there},
        easiest=best[False],
        hardest=best[True],
    )


def _values(table: pa.Table, score: str) -> NDArray[np.float64] | None:
    """A score of every row, or None if the run did not record it."""
    if any(table[name].null_count for name in columns_of(score)):
        return None
    if score != "forgetting":
        return np.asarray(table[score].to_numpy(), np.float64)
    # As in selection: what was never learned ranks above what was forgotten every time.
    events, first, epochs = (table[name].to_numpy() for name in columns_of(score))
    return np.where(first < 0, epochs + 1.0, events)


def _sampled(ids: NDArray[np.int64], total: int) -> NDArray[np.bool_]:
    """Rows that stand for all: those whose id hashes low."""
    return mix64(ids) < np.uint64(int(2**64 * (SAMPLED_ROWS / total)))


def _quantiles(values: NDArray[np.float64], ends: list[tuple[float, float]]) -> list[float]:
    inner = np.quantile(values, QUANTILES).tolist() if len(values) else [float("nan")] * len(QUANTILES)
    return [min(low for low, _ in ends), *inner, max(high for _, high in ends)]


def _none() -> Extremes:
    return Extremes(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float64))


def _joined(first: Extremes, second: Extremes) -> Extremes:
    """Both; as files come in id order, equal scores stay in id order."""
    pairs: Any = zip(vars(first).values(), vars(second).values(), strict=True)
    return Extremes(*(np.concatenate(pair) for pair in pairs))


def _extreme(rows: Extremes, score: str, count: int, *, hardest: bool) -> Extremes:
    """The first ``count`` rows by rank, ties by id."""
    rank = -rows.values if is_higher_harder(score) == hardest else rows.values
    count = min(count, len(rank))
    if count == 0:
        return _none()
    near = np.flatnonzero(rank <= np.partition(rank, count - 1)[count - 1])
    near = near[np.lexsort((rows.sample_ids[near], rank[near]))][:count]
    return Extremes(rows.sample_ids[near], rows.labels[near], rows.values[near])
