"""The selection methods: which samples are kept, given how hard each is.

Takes hardness (higher = harder), gives ids or what to order by. A method is one decorated function and nothing else;
command lines, sweeps, help and the contract tests read the registry.

Most methods need one number per sample and keep the samples where it is lowest: decorate
``f(scores, uniform) -> keys`` with ``ranking_method``. It is called with some of the samples at a
time, so such a method works on any number of them. A method that must see all samples at once is
``f(scores, sample_ids, labels, k, *, uniform) -> ids``, decorated with ``selection_method``; it runs in one process.
Further keyword-only parameters, with annotation and default, are the method's own options.
"""

# ruff: noqa: ARG001  (every method has the same signature, whatever it reads of it)

import inspect
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from easycore_ray.core.lowest import Ids, lowest

# A key above all others; twice as much is finite.
_LAST = 1e300

Scores: TypeAlias = NDArray[np.float64]
SelectionFunction: TypeAlias = Callable[..., Any]


@dataclass(frozen=True)
class Option:
    """An option of one method: its type, from the annotation, and its default."""

    kind: Any
    default: Any

    def parse(self, text: str) -> Any:
        """The value a command line gives: ``20``, ``0.5``, ``true``, words, or numbers with commas for a tuple.

        Raises:
            ValueError: the text is not of this type.
        """
        if self.kind is bool:
            if text.lower() not in ("true", "false"):
                raise ValueError("true or false")
            return text.lower() == "true"
        if typing.get_origin(self.kind) is tuple:
            kinds = typing.get_args(self.kind)
            parts = text.split(",")
            if len(parts) != len(kinds):
                raise ValueError(f"{len(kinds)} values with commas between")
            return tuple(kind(part) for kind, part in zip(kinds, parts, strict=True))
        return self.kind(text)


@dataclass(frozen=True)
class Cost:
    """What a choice among n samples takes in one process, about."""

    operations: float
    """Multiplications and additions."""
    memory: float
    """Bytes."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A selection method as registered.

    Attributes:
        name: as given on the command line.
        function: see the module's text. Scores are float64 with higher = harder (None if not needed).
        ranks: whether the function gives keys of which the lowest are kept; else it gives the ids themselves.
        needs_score: whether it reads scores.
        default_score: the score it is usually run with.
        second_score: another score that it reads as well, ``second``; "" where it may be given one, None where not.
        bound: whether its name stands for its usual score as well, so that it goes by no other.
        draws: whether it draws at random, so that another seed gives another coreset.
        keeps_all: whether it makes sense with fraction 1 only.
        needs_features: whether it reads penultimate features, ``features``.
        cost: what it takes for n samples, k kept, of ``size`` features, where that is more than some passes over them.
        options: its own options by name.
        doc: first line of its docstring.
    """

    name: str
    function: SelectionFunction
    ranks: bool
    needs_score: bool
    default_score: str | None
    second_score: str | None = None
    bound: bool = False
    draws: bool
    keeps_all: bool = False
    needs_features: bool = False
    cost: Callable[[int, int, int], Cost] | None = None
    options: Mapping[str, Option] = field(default_factory=dict)
    doc: str

    def check_budget(self, k: int, num_samples: int) -> None:
        """Refuse a budget that the method cannot mean.

        Raises:
            ValueError: the method keeps all samples, and k is less.
        """
        if self.keeps_all and k != num_samples:
            raise ValueError(f"method {self.name!r} keeps all {num_samples} samples, not {k}; use fraction 1")

    def known(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options with defaults filled in.

        Raises:
            ValueError: the method has no option of a name; lists those it has.
        """
        for name in options:
            if name not in self.options:
                mine = ", ".join(self.options) or "none"
                raise ValueError(f"method {self.name!r} has no option {name!r}; its options are: {mine}")
        return {name: option.default for name, option in self.options.items()} | dict(options)


METHODS: dict[str, Method] = {}

# Keywords that are no options.
_GIVEN = ("uniform", "second", "features")


def ranking_method(
    name: str, *, default_score: str | None = None, bound: bool = False, draws: bool = False, keeps_all: bool = False
) -> Callable[[SelectionFunction], SelectionFunction]:
    """A decorator that registers ``f(scores, uniform) -> keys``: the samples with the lowest keys are kept.

    ``scores`` (n,) float64, higher = harder, are those of any of the samples, None without ``default_score``.
    ``uniform`` (n,) are one random number in [0, 1) each, by seed and sample_id, if the method ``draws``, else None. A
    key, float64 and not NaN, may depend on the sample's own two numbers only. Ties go to the lower id. A smaller
    coreset is part of a larger one.

    Raises:
        ValueError: the name is taken.
    """
    return _register(name, ranks=True, default_score=default_score, bound=bound, draws=draws, keeps_all=keeps_all)


def selection_method(
    name: str,
    *,
    default_score: str | None = None,
    second_score: str | None = None,
    bound: bool = False,
    draws: bool = False,
    features: bool = False,
    cost: Callable[[int, int, int], Cost] | None = None,
) -> Callable[[SelectionFunction], SelectionFunction]:
    """A decorator that registers ``f(scores, sample_ids, labels, k, *, uniform) -> k of the ids, sorted``.

    All N rows (of a class, with class balance) arrive at once, sorted by id: about 100 bytes of memory a sample.
    ``scores`` float64 (N,), higher = harder; ``sample_ids`` int64 (N,); ``labels`` integers (N,); ``uniform`` as for
    ``ranking_method``; with ``second_score`` also ``second``, like ``scores``, or None where none is given; with
    ``features`` also ``features``, a ``feature_selection.Features`` of the rows. The result is int64 (k,). What takes
    more than some passes over the rows says so by ``cost(n, k, number of features)``.

    Raises:
        ValueError: the name is taken.
    """
    return _register(
        name, ranks=False, default_score=default_score, second_score=second_score, bound=bound, draws=draws,
        features=features, cost=cost,
    )  # fmt: skip


def describe(methods: Mapping[str, Method] = METHODS) -> str:
    """What each method does, as one text: its name and the first line of its docstring."""
    texts = (f"{method.name}: {_lower_first(method.doc)}" for method in methods.values())
    return " ".join(texts).replace("``", "")


def markdown_table(methods: Mapping[str, Method] = METHODS) -> str:
    """The methods as a table: name, what is kept, usual score, own options, whether it draws, where it runs."""
    lines = ["| method | keeps | score | own options | drawn | runs |", "| --- | --- | --- | --- | --- | --- |"]
    for method in methods.values():
        options = ", ".join(f"`{name}` ({option.default})" for name, option in method.options.items())
        score = f"any, usually `{method.default_score}`" if method.needs_score else ""
        score = f"`{method.default_score}`" if method.bound else score
        score = ", ".join(filter(None, [score, "features" if method.needs_features else ""]))
        drawn = "by seed" if method.draws else ""
        runs = "file by file" if method.ranks else "in one process"
        lines.append(f"| `{method.name}` | {method.doc} | {score} | {options} | {drawn} | {runs} |")
    return "\n".join(lines)


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _register(
    name: str,
    *,
    ranks: bool,
    default_score: str | None,
    bound: bool,
    draws: bool,
    second_score: str | None = None,
    keeps_all: bool = False,
    features: bool = False,
    cost: Callable[[int, int, int], Cost] | None = None,
) -> Callable[[SelectionFunction], SelectionFunction]:
    if name in METHODS:
        raise ValueError(f"a selection method named {name!r} exists already")

    def register(function: SelectionFunction) -> SelectionFunction:
        kinds = typing.get_type_hints(function)
        keywords = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        METHODS[name] = Method(
            name=name,
            function=function,
            ranks=ranks,
            needs_score=default_score is not None,
            default_score=default_score,
            second_score=second_score,
            bound=bound,
            draws=draws,
            keeps_all=keeps_all,
            needs_features=features,
            cost=cost,
            options={p.name: Option(kinds[p.name], p.default) for p in keywords if p.name not in _GIVEN},
            doc=(function.__doc__ or "").strip().split("\n")[0],
        )
        return function

    return register


# EasyCore (arXiv 2510.11018). Its name stands for the score as well: see ``selection``.
@ranking_method("easycore", default_score="aign", bound=True)
def easycore(scores: Scores, uniform: None) -> Scores:
    """The samples of the lowest average input gradient norm."""
    return scores


@ranking_method("easiest", default_score="aign")
def easiest(scores: Scores, uniform: None) -> Scores:
    """The samples of the lowest hardness."""
    return scores


@ranking_method("hardest", default_score="aign")
def hardest(scores: Scores, uniform: None) -> Scores:
    """The samples of the highest hardness."""
    return -scores


@selection_method("middle", default_score="aign")
def middle(scores: Scores, sample_ids: Ids, labels: NDArray, k: int, *, uniform: None) -> Ids:
    """The samples whose hardness is closest to the median.

    Ranked by |score - median|. Moderate coresets (Xia et al. 2023) rank by the distance of a sample's features to the
    median ones of its class instead: this is not that method.

    Args:
        scores: float64 (N,), higher = harder, finite.
        sample_ids: int64 (N,), sorted.
        labels: not read.
        k: budget, 1 .. N.
        uniform: not used.

    Raises:
        ValueError: a score is infinite or NaN.
    """
    _require_finite(scores, sample_ids, "middle")
    return lowest(np.abs(scores - np.median(scores)), sample_ids, k)


@selection_method("band", default_score="aign", draws=True)
def in_band(
    scores: Scores,
    sample_ids: Ids,
    labels: NDArray,
    k: int,
    *,
    uniform: Scores,
    band: tuple[float, float] = (0.25, 0.75),
) -> Ids:
    """A uniform draw from the samples between two quantiles of hardness.

    Args:
        scores: higher = harder.
        sample_ids: sorted.
        labels: not read.
        k: budget.
        uniform: (N,) random numbers for the draw.
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
    return lowest(uniform[np.isin(sample_ids, members, assume_unique=True)], members, k)


@selection_method("stratified", default_score="aum", second_score="", draws=True)
def stratified(
    scores: Scores,
    sample_ids: Ids,
    labels: NDArray,
    k: int,
    *,
    uniform: Scores,
    second: Scores | None = None,
    cutoff: float = 0.0,
    strata: int = 50,
) -> Ids:
    """Evenly over the range of hardness, without the hardest ``cutoff`` share (CCS).

    Coverage-centric coreset selection (Zheng et al. 2023, arXiv 2210.15809): drop the hardest, often mislabelled;
    cut the range of the remaining scores into strata of equal width; share the budget evenly among them,
    small strata giving all they have; draw at random inside each. Outliers leave most strata empty, so mind
    the cut-off.

    Args:
        scores: higher = harder, finite.
        sample_ids: sorted.
        labels: not read.
        k: budget.
        uniform: (N,) random numbers for the draw inside a stratum.
        second: what the hardest are dropped by, higher = harder; by ``scores`` if None. The authors drop by AUM
            whatever they stratify by.
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
    dropped_by = scores if second is None else second
    left = np.isin(sample_ids, lowest(dropped_by, sample_ids, num_left), assume_unique=True)
    stratum = np.full(len(sample_ids), -1)
    stratum[left] = _equal_width_bins(scores[left], strata)
    parts = []
    sizes = np.bincount(stratum[left], minlength=strata)
    for index, quota in enumerate(fill_evenly(sizes, k)):
        rows = stratum == index
        parts.append(lowest(uniform[rows], sample_ids[rows], quota))
    return np.sort(np.concatenate(parts))


@selection_method("dual_beta", default_score="dual", second_score="confidence", bound=True, draws=True)
def dual_beta(
    scores: Scores,
    sample_ids: Ids,
    labels: NDArray,
    k: int,
    *,
    uniform: Scores,
    second: Scores,
    exponent: float = 4.0,
) -> Ids:
    """A draw that prefers uncertain samples, and easier ones the fewer are kept (DUAL with Beta sampling).

    Cho et al. 2025, arXiv 2502.06905: without replacement, each sample weighs its DUAL score times the density at its
    confidence of a Beta distribution with b = 15 (1 - m) (1 - r ** exponent) and a = 16 - b, m the mean confidence of
    the ten samples of the highest DUAL score and r the share that is pruned. Keys -log(u) / weight give such a draw
    (Efraimidis & Spirakis 2006).

    Args:
        scores: DUAL, at least 0.
        sample_ids: sorted.
        labels: not read.
        k: budget.
        uniform: (N,) random numbers for the draw.
        second: minus the confidence, the mean probability of the label over the same epochs, in [-1, 0].
        exponent: 4 for CIFAR-100 by the authors.
    """
    from scipy.stats import beta

    confidence = -second
    highest = np.argsort(-scores, kind="stable")[:10]
    pruned = 1.0 - k / len(scores)
    b = max(15.0 * (1.0 - confidence[highest].mean()) * (1.0 - pruned**exponent), 1e-6)
    # A density may be infinite at 0 and 1.
    weights = scores * beta.pdf(np.clip(confidence, 1e-7, 1.0 - 1e-7), 16.0 - b, b)
    with np.errstate(divide="ignore", over="ignore"):
        keys = np.minimum(-np.log1p(-uniform) / weights, _LAST)
    return lowest(np.where(weights > 0, keys, _LAST * (1.0 + uniform)), sample_ids, k)


@ranking_method("random", draws=True)
def random(scores: None, uniform: Scores) -> Scores:
    """A uniform draw; with one seed a smaller fraction is part of a larger one."""
    return uniform


@ranking_method("full", keeps_all=True)
def full(scores: None, uniform: None) -> float:
    """All samples; the row every comparison needs."""
    return 0.0


def fill_evenly(sizes: Ids, k: int) -> list[int]:
    """Number of samples to take from each bin: as even as the sizes allow, exactly k in all.

    The budget rule of CCS (Zheng et al. 2023, arXiv 2210.15809).

    Args:
        sizes: int64 (bins,), samples in each bin.
        k: 0 .. sum of sizes.
    """
    quotas = [0] * len(sizes)
    for position, index in enumerate(np.argsort(sizes, kind="stable").tolist()):
        quotas[index] = min(int(sizes[index]), k // (len(sizes) - position))
        k -= quotas[index]
    return quotas


def _require_finite(scores: Scores, sample_ids: Ids, name: str) -> None:
    """Refuses infinite or NaN scores where distances between scores matter, not their order alone."""
    bad = ~np.isfinite(scores)
    if bad.any():
        raise ValueError(
            f"method {name!r} needs finite scores, {bad.sum()} of {len(scores)} are not "
            f"(first ids: {np.sort(sample_ids[bad])[:5].tolist()})"
        )


def _equal_width_bins(values: Scores, num_bins: int) -> Ids:
    """Index in 0 .. num_bins - 1 of the equal-width bin of each value; all 0 where the values are equal."""
    low, high = values.min(), values.max()
    if low == high:
        return np.zeros(len(values), dtype=np.int64)
    # The maximum belongs to the last bin. (Scaling the range by a factor fails below 0.)
    return np.minimum(((values - low) / (high - low) * num_bins).astype(np.int64), num_bins - 1)
