"""Which samples to keep: a registry of selection methods over per-sample hardness.

Takes sample ids, labels, a fraction and (for most methods) one score per sample; gives the chosen ids,
sorted. ``choose`` is the way in. It sorts the rows by id and turns every score so that higher is harder; a
method sees nothing else. So the one decision, that a coreset depends on ids and seeds and never on row
order, is made once.

To add a method, decorate a function ``f(scores, sample_ids, labels, k, *, rng)``; ``choose`` hands on its own
options (cutoff, band) to the functions that name them.
"""

# ruff: noqa: ARG001  (every method has the same signature, whatever it reads of it)

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from easycore_ray.core.seeding import numpy_rng

Ids: TypeAlias = NDArray[np.int64]
SelectionFunction: TypeAlias = Callable[..., Ids]

HIGHER_IS_HARDER = {
    "aign": True,
    "el2n": True,
    "loss": True,
    "forgetting": True,
    "aum": False,
    "input_norm": True,
    "aign_epoch0": True,
}
"""Which end of each score is hard. A score that is not listed (a user's own) counts as higher = harder."""

BALANCES = ("none", "class")


@dataclass(frozen=True, kw_only=True)
class Method:
    """A selection method as registered.

    Attributes:
        name: as given on the command line.
        function: ``f(scores, sample_ids, labels, k, *, rng, ...options)`` to k of the ids, sorted. Rows
            arrive sorted by id, scores as float64 with higher = harder (None if not needed).
        needs_score: whether it reads scores.
        default_score: the score it is usually run with.
        draws: whether it draws at random, so that another seed gives another coreset.
        options: names of its own keyword options.
        doc: first line of its docstring.
    """

    name: str
    function: SelectionFunction
    needs_score: bool
    default_score: str | None
    draws: bool
    options: tuple[str, ...]
    doc: str


METHODS: dict[str, Method] = {}


def selection_method(
    name: str, *, default_score: str | None = None, draws: bool = False
) -> Callable[[SelectionFunction], SelectionFunction]:
    """A decorator that registers a selection function; one with a default score needs scores.

    Raises:
        ValueError: the name is taken.
    """
    if name in METHODS:
        raise ValueError(f"a selection method named {name!r} exists already")

    def register(function: SelectionFunction) -> SelectionFunction:
        keywords = inspect.signature(function).parameters.values()
        METHODS[name] = Method(
            name=name,
            function=function,
            needs_score=default_score is not None,
            default_score=default_score,
            draws=draws,
            options=tuple(k.name for k in keywords if k.kind is k.KEYWORD_ONLY and k.name != "rng"),
            doc=(function.__doc__ or "").strip().split("\n")[0],
        )
        return function

    return register


def choose(
    method: str,
    *,
    sample_ids: NDArray[np.integer],
    labels: NDArray[np.integer],
    fraction: float,
    scores: NDArray | None = None,
    score: str | None = None,
    balance: str = "none",
    seed: int = 0,
    cutoff: float = 0.0,
    band: tuple[float, float] = (0.25, 0.75),
) -> Ids:
    """The coreset: exactly ``budget(N, fraction)`` of the ids, sorted, whatever the order of the rows.

    Args:
        method: a key of METHODS.
        sample_ids: (N,), unique.
        labels: (N,), in the same order.
        fraction: share of the samples that is kept, in (0, 1].
        scores: (N,) as stored, not turned; needed by methods that rank. NaN is refused.
        score: what the scores are, a key of HIGHER_IS_HARDER; the method's usual score if not given.
        balance: "none" ranks all samples together; "class" runs the method within each class on its share.
        seed: of methods that draw.
        cutoff: option of "stratified".
        band: option of "band".

    Raises:
        ValueError: an unknown method or balance, scores that are missing or not usable, ids that repeat, or a
            budget that cannot be met.
    """
    chosen = _look_up(method, balance=balance, score=score)
    ids, classes, hardness = _sorted_rows(chosen, sample_ids, labels, scores=scores, score=score)
    k = budget(len(ids), fraction)
    known_options = {"cutoff": cutoff, "band": band}
    options = {name: known_options[name] for name in chosen.options if name in known_options}
    if balance == "none":
        return chosen.function(hardness, ids, classes, k, rng=numpy_rng("select", method, seed), **options)
    parts = []
    for label, (rows, quota) in _shares(classes, k).items():
        part = None if hardness is None else hardness[rows]
        rng = numpy_rng("select", method, seed, label)
        parts.append(chosen.function(part, ids[rows], classes[rows], quota, rng=rng, **options))
    return np.sort(np.concatenate(parts))


def budget(num_samples: int, fraction: float) -> int:
    """How many samples to keep: floor(fraction · N + 0.5).

    Raises:
        ValueError: a fraction outside (0, 1], or one so small that nothing would be kept.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is the share kept, in (0, 1], got {fraction}; to drop 30% of the data pass 0.7")
    k = math.floor(fraction * num_samples + 0.5)
    if k == 0:
        raise ValueError(f"fraction {fraction} of {num_samples} samples keeps none; pass a larger fraction")
    return k


def class_quotas(labels: NDArray[np.integer], k: int) -> dict[int, int]:
    """How many of the k samples each class gets: its share of the data, by largest remainder.

    The total is exactly k, no class gets more than it has, and ties go to the lower class index.

    Args:
        labels: (N,).
        k: 0 .. N.

    Raises:
        ValueError: k is outside 0 .. N.
    """
    if not 0 <= k <= len(labels):
        raise ValueError(f"k must be in 0 .. {len(labels)} (the number of samples), got {k}")
    classes, sizes = np.unique(labels, return_counts=True)
    quotas, remainders = np.divmod(sizes * k, max(len(labels), 1))
    most_deserving = np.argsort(-remainders, kind="stable")[: k - quotas.sum()]
    quotas[most_deserving] += 1
    return dict(zip(classes.tolist(), quotas.tolist(), strict=True))


def lowest(scores: NDArray, sample_ids: NDArray[np.integer], k: int) -> Ids:
    """The k ids with the lowest (score, id), sorted by id; time linear in N but for sorting the result.

    Args:
        scores: (N,) numbers; infinities are fine.
        sample_ids: (N,), unique, in any order.
        k: 0 .. N.

    Raises:
        ValueError: a NaN score, named with its first ids, or k outside 0 .. N.
    """
    ids = np.asarray(sample_ids, dtype=np.int64)
    if not 0 <= k <= len(ids):
        raise ValueError(f"k must be in 0 .. {len(ids)} (the number of samples), got {k}")
    _refuse_nan(scores, ids)
    if k == 0:
        return np.empty(0, dtype=np.int64)
    bound = np.partition(scores, k - 1)[k - 1]
    keep = scores < bound
    tied = np.flatnonzero(scores == bound)
    still_needed = k - np.count_nonzero(keep)
    keep[tied[np.argsort(ids[tied], kind="stable")[:still_needed]]] = True
    return np.sort(ids[keep], kind="stable")  # linear where the ids come sorted


@selection_method("full")
def full(scores: NDArray | None, sample_ids: Ids, labels: NDArray, k: int, *, rng: Generator) -> Ids:
    """All samples; the row every comparison needs."""
    if k != len(sample_ids):
        raise ValueError(f"method 'full' keeps all {len(sample_ids)} samples, not {k}; use fraction 1")
    return np.sort(sample_ids)


@selection_method("random", draws=True)
def random(scores: NDArray | None, sample_ids: Ids, labels: NDArray, k: int, *, rng: Generator) -> Ids:
    """A uniform draw; with one seed a smaller fraction is part of a larger one."""
    return lowest(rng.random(len(sample_ids)), sample_ids, k)


@selection_method("easiest", default_score="aign")
def easiest(scores: NDArray, sample_ids: Ids, labels: NDArray, k: int, *, rng: Generator) -> Ids:
    """The k samples of the lowest hardness."""
    return lowest(scores, sample_ids, k)


# EasyCore (arXiv 2510.11018) keeps the lowest average input gradient norm: "easiest" by "aign".
selection_method("easycore", default_score="aign")(easiest)


@selection_method("hardest", default_score="aign")
def hardest(scores: NDArray, sample_ids: Ids, labels: NDArray, k: int, *, rng: Generator) -> Ids:
    """The k samples of the highest hardness."""
    return lowest(-scores, sample_ids, k)


@selection_method("middle", default_score="aign")
def middle(scores: NDArray, sample_ids: Ids, labels: NDArray, k: int, *, rng: Generator) -> Ids:
    """The k samples whose hardness is closest to the median."""
    _require_finite(scores, sample_ids, "middle")
    return lowest(np.abs(scores - np.median(scores)), sample_ids, k)


@selection_method("stratified", default_score="aum", draws=True)
def stratified(
    scores: NDArray,
    sample_ids: Ids,
    labels: NDArray,
    k: int,
    *,
    rng: Generator,
    cutoff: float = 0.0,
    strata: int = 50,
) -> Ids:
    """Evenly over the range of hardness, without the hardest ``cutoff`` share (CCS).

    Coverage-centric coreset selection (Zheng et al. 2023): drop the hardest, which are often mislabelled;
    cut the range of the remaining scores into strata of equal width; share the budget evenly among them,
    small strata giving all they have; draw at random inside each. Outliers leave most strata empty, so mind
    the cut-off.

    Args:
        scores: higher = harder, finite.
        sample_ids: sorted.
        labels: not read.
        k: budget.
        rng: for the draw inside a stratum.
        cutoff: share in [0, 1); the authors use 0.2 to 0.3 when they prune 80 to 90 %.
        strata: number of strata.
    """
    _require_finite(scores, sample_ids, "stratified")
    if not 0 <= cutoff < 1 or strata < 1:
        raise ValueError(f"cutoff must be in [0, 1) and strata at least 1, got {cutoff} and {strata}")
    num_left = len(sample_ids) - math.floor(cutoff * len(sample_ids) + 0.5)
    if num_left < k:
        raise ValueError(
            f"cutoff {cutoff} leaves {num_left} of {len(sample_ids)} samples, fewer than the budget of {k}; "
            "lower the cutoff or the fraction"
        )
    keys = rng.random(len(sample_ids))  # drawn for all rows: a draw does not move when the cut-off does
    left = np.isin(sample_ids, lowest(scores, sample_ids, num_left), assume_unique=True)
    stratum = np.full(len(sample_ids), -1)
    stratum[left] = _equal_width_bins(scores[left], strata)
    parts = []
    sizes = np.bincount(stratum[left], minlength=strata)
    for index, quota in enumerate(_fill_evenly(sizes, k)):
        rows = stratum == index
        parts.append(lowest(keys[rows], sample_ids[rows], quota))
    return np.sort(np.concatenate(parts))


@selection_method("band", default_score="aign", draws=True)
def in_band(
    scores: NDArray,
    sample_ids: Ids,
    labels: NDArray,
    k: int,
    *,
    rng: Generator,
    band: tuple[float, float],
) -> Ids:
    """A uniform draw from the samples between two quantiles of hardness.

    Args:
        scores: higher = harder.
        sample_ids: sorted.
        labels: not read.
        k: budget.
        rng: for the draw.
        band: (low, high) quantiles, 0 <= low < high <= 1; (0, 0.5) is the easier half. Its ends are rounded
            outwards, so that a band as wide as the fraction always holds enough.
    """
    low, high = band
    if not 0 <= low < high <= 1:
        raise ValueError(f"band must be two quantiles with 0 <= low < high <= 1, got {band}")
    first, last = math.floor(low * len(sample_ids)), math.ceil(high * len(sample_ids))
    if last - first < k:
        raise ValueError(
            f"band {low} .. {high} holds {last - first} samples, fewer than the budget of {k}; "
            "widen the band or lower the fraction"
        )
    easier = lowest(scores, sample_ids, first)
    members = np.setdiff1d(lowest(scores, sample_ids, last), easier, assume_unique=True)
    keys = rng.random(len(sample_ids))
    return lowest(keys[np.isin(sample_ids, members, assume_unique=True)], members, k)


def _look_up(name: str, *, balance: str, score: str | None) -> Method:
    """The method of this name, once what it is combined with makes sense."""
    if name not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {name!r}")
    if balance not in BALANCES:
        raise ValueError(f"balance must be one of {', '.join(BALANCES)}, got {balance!r}")
    if name == "easycore" and score not in (None, "aign"):
        raise ValueError(f"method 'easycore' ranks by 'aign', got score {score!r}; for others use 'easiest'")
    return METHODS[name]


def _sorted_rows(
    chosen: Method, sample_ids: NDArray, labels: NDArray, *, scores: NDArray | None, score: str | None
) -> tuple[Ids, NDArray, NDArray[np.float64] | None]:
    """Ids, labels and hardness (None if the method needs none) in the order of the ids."""
    ids, classes = np.asarray(sample_ids, dtype=np.int64), np.asarray(labels)
    if chosen.needs_score and scores is None:
        raise ValueError(f"method {chosen.name!r} needs scores, usually {chosen.default_score!r}; pass them")
    values = np.asarray(scores, dtype=np.float64) if chosen.needs_score else None
    if len(classes) != len(ids) or (values is not None and len(values) != len(ids)):
        lengths = [len(rows) for rows in (ids, classes, values) if rows is not None]
        raise ValueError(f"sample_ids, labels and scores must have one length, got {lengths}")
    if not (ids[1:] > ids[:-1]).all():
        order = np.argsort(ids, kind="stable")
        ids, classes = ids[order], classes[order]
        values = None if values is None else values[order]
    repeated = ids[1:][ids[1:] == ids[:-1]]
    if len(repeated):
        raise ValueError(f"sample_ids must be unique, {len(repeated)} repeat (first: {repeated[0]})")
    if values is not None:
        _refuse_nan(values, ids)
        if not HIGHER_IS_HARDER.get(score or chosen.default_score or "", True):
            values = -values
    return ids, classes, values


def _shares(classes: NDArray, k: int) -> dict[int, tuple[NDArray, int]]:
    """Rows and quota of each class that gets any of the k samples; one sort instead of a pass per class."""
    quotas = class_quotas(classes, k)
    order = np.argsort(classes, kind="stable")
    ends = np.searchsorted(classes[order], list(quotas), side="right")
    groups = np.split(order, ends[:-1])
    return {label: (rows, quota) for (label, quota), rows in zip(quotas.items(), groups, strict=True) if quota > 0}


def _refuse_nan(scores: NDArray, sample_ids: Ids) -> None:
    """Refuses NaN scores: they have no rank."""
    missing = np.isnan(scores)
    if missing.any():
        raise ValueError(
            f"{missing.sum()} of {len(scores)} scores are NaN (first ids: "
            f"{np.sort(sample_ids[missing])[:5].tolist()}); score those samples again or leave them out"
        )


def _require_finite(scores: NDArray, sample_ids: NDArray, name: str) -> None:
    """Refuses infinite or NaN scores where distances between scores matter, not their order alone."""
    bad = ~np.isfinite(scores)
    if bad.any():
        raise ValueError(
            f"method {name!r} needs finite scores, {bad.sum()} of {len(scores)} are not "
            f"(first ids: {np.sort(sample_ids[bad])[:5].tolist()})"
        )


def _equal_width_bins(values: NDArray, num_bins: int) -> Ids:
    """Index in 0 .. num_bins - 1 of the equal-width bin of each value; all 0 where the values are equal."""
    low, high = values.min(), values.max()
    if low == high:
        return np.zeros(len(values), dtype=np.int64)
    # The maximum belongs to the last bin. (Stretching the range by a factor fails below 0.)
    return np.minimum(((values - low) / (high - low) * num_bins).astype(np.int64), num_bins - 1)


def _fill_evenly(sizes: Ids, k: int) -> list[int]:
    """How many to take from each bin: as even as sizes allow, exactly k in all (k <= the sum of sizes)."""
    quotas = [0] * len(sizes)
    for position, index in enumerate(np.argsort(sizes, kind="stable").tolist()):
        quotas[index] = min(int(sizes[index]), k // (len(sizes) - position))
        k -= quotas[index]
    return quotas
