"""Which samples to keep: a method, a budget, and one choice whatever the order of the rows.

Takes sample ids, labels, a fraction and (for most methods) one score per sample; gives the chosen ids,
sorted. ``choose`` does it for rows in memory. It sorts them by id and turns every score so that higher is harder; a
method sees nothing else. A coreset therefore depends on ids and seeds, never on row order.
``easycore_ray.selection.exact_cut`` makes the same choice file by file.

The methods themselves are in ``selection_methods``: a new one is one function there.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from easycore_ray.core import feature_methods as feature_methods  # registers them
from easycore_ray.core.feature_selection import Features
from easycore_ray.core.hashing import uniform_draws
from easycore_ray.core.lowest import Ids, lowest, refuse_nan
from easycore_ray.core.seeding import derive_seed
from easycore_ray.core.selection_methods import METHODS, Method, ranking_method, selection_method
from easycore_ray.core.trajectory_scores import is_trajectory_score, parse_trajectory_score

__all__ = [
    "BALANCES",
    "HIGHER_IS_HARDER",
    "METHODS",
    "Method",
    "budget",
    "choose",
    "class_quotas",
    "draws_of",
    "is_higher_harder",
    "look_up",
    "lowest",
    "quotas_of_sizes",
    "ranking_keys",
    "ranking_method",
    "selection_method",
    "turned",
]

HIGHER_IS_HARDER = {
    "aign": True,
    "el2n": True,
    "loss": True,
    "forgetting": True,
    "aum": False,
    "input_norm": True,
    "aign_epoch0": True,
    "adv_loss": True,
    "problematic": True,
}
"""Which end of each score of a hardness table is hard; see ``is_higher_harder`` for others."""

ADVERSARIAL_SCORES = ("adv_loss", "problematic")
"""Those that only scoring in adversarial training gives."""

BALANCES = ("none", "class")
_COUNTED_LABELS = 1 << 20


def choose(
    method: str,
    *,
    sample_ids: NDArray[np.integer],
    labels: NDArray[np.integer],
    fraction: float,
    scores: NDArray | None = None,
    score: str | None = None,
    second: NDArray | None = None,
    second_score: str | None = None,
    features: Features | None = None,
    balance: str = "none",
    seed: int = 0,
    **options: Any,
) -> Ids:
    """The coreset: exactly ``budget(N, fraction)`` of the ids, sorted, whatever the order of the rows.

    Args:
        method: a key of METHODS.
        sample_ids: (N,), unique.
        labels: (N,), in the same order.
        fraction: share of the samples that is kept, in (0, 1].
        scores: (N,) as stored, not turned; needed by methods that rank. NaN is refused.
        score: what the scores are, see ``is_higher_harder``; the method's usual score if not given.
        second: (N,) as stored, for methods that read two scores.
        second_score: what those are; the method's usual second score if not given.
        features: of the samples, in the same order, for methods that go by them.
        balance: "none" ranks all samples together; "class" runs the method within each class on its share.
        seed: of methods that draw.
        options: the method's own.

    Raises:
        ValueError: an unknown method, option or balance, scores that are missing or not usable, ids that repeat,
            or a budget that cannot be met.
    """
    chosen = look_up(method, balance=balance, score=score)
    options = chosen.known(options)
    ids, classes, hardness = _sorted_rows(chosen, sample_ids, labels, scores=scores, score=score)
    also = _sorted_second(chosen, sample_ids, second, second_score)
    places = _sorted_features(chosen, sample_ids, features)
    k = budget(len(ids), fraction)
    chosen.check_budget(k, len(ids))
    if balance == "none":
        return _kept(chosen, (hardness, ids, classes, also, places), k, seed=seed, options=options)
    parts = []
    for rows, quota in _shares(classes, k):
        own, other = (None if values is None else values[rows] for values in (hardness, also))
        group = (own, ids[rows], classes[rows], other, None if places is None else places.take(rows))
        parts.append(_kept(chosen, group, quota, seed=seed, options=options))
    return np.sort(np.concatenate(parts))


def budget(num_samples: int, fraction: float) -> int:
    """How many samples to keep: floor(fraction · N + 0.5).

    Raises:
        ValueError: a fraction outside (0, 1], or one so small that nothing would be kept.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is the share kept, in (0, 1], got {fraction}; to drop 30% of the data pass 0.7")
    k = int(np.floor(fraction * num_samples + 0.5))
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
    counts: Counter[int] = Counter()
    # A piece at a time: numpy counts by sorting a copy, which 100 million labels are too many for.
    for start in range(0, len(labels), _COUNTED_LABELS):
        classes, sizes = np.unique(labels[start : start + _COUNTED_LABELS], return_counts=True)
        counts.update(dict(zip(classes.tolist(), sizes.tolist(), strict=True)))
    ascending = sorted(counts)
    quotas = quotas_of_sizes(np.array([counts[label] for label in ascending], np.int64), k)
    return dict(zip(ascending, quotas.tolist(), strict=True))


def quotas_of_sizes(sizes: NDArray[np.integer], k: int) -> Ids:
    """``class_quotas`` from the number of samples in each class; an empty class gets none.

    Args:
        sizes: integers (num_classes,), at least 0.
        k: samples to keep, 0 .. sum of sizes.

    Returns:
        int64 (num_classes,), its sum is k.

    Raises:
        ValueError: k is outside 0 .. N.
    """
    total = int(np.sum(sizes))
    if not 0 <= k <= total:
        raise ValueError(f"k must be in 0 .. {total} (the number of samples), got {k}")
    quotas, remainders = np.divmod(np.asarray(sizes, np.int64) * k, max(total, 1))
    most_deserving = np.argsort(-remainders, kind="stable")[: k - quotas.sum()]
    quotas[most_deserving] += 1
    return quotas


def look_up(name: str, *, balance: str = "none", score: str | None = None) -> Method:
    """The method of this name, once what it is combined with makes sense.

    Raises:
        ValueError: an unknown method or balance, or a score the method does not go by.
    """
    if name not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {name!r}")
    if balance not in BALANCES:
        raise ValueError(f"balance must be one of {', '.join(BALANCES)}, got {balance!r}")
    method = METHODS[name]
    if method.bound and score is not None and score.partition(":")[0] != method.default_score:
        raise ValueError(
            f"method {name!r} goes by {method.default_score!r}, got score {score!r}; for others use 'easiest'"
        )
    return method


def is_higher_harder(score: str) -> bool:
    """Whether higher values of a score are harder; so they are for one that is not known, a user's own."""
    if is_trajectory_score(score):
        return parse_trajectory_score(score).HIGHER_IS_HARDER
    return HIGHER_IS_HARDER.get(score, True)


def turned(method: Method, score: str | None) -> bool:
    """Whether a score changes its sign so that higher is harder."""
    return not is_higher_harder(score or method.default_score or "")


def draws_of(method: Method, seed: int, sample_ids: Ids) -> NDArray[np.float64] | None:
    """The random numbers of a method: they depend on (method, seed, sample_id) alone.

    Args:
        method: as registered.
        seed: of the selection.
        sample_ids: int64 (n,), any of the samples.

    Returns:
        float64 (n,) in [0, 1); None if the method draws none.
    """
    return uniform_draws(derive_seed("select", method.name, seed), sample_ids) if method.draws else None


def ranking_keys(
    method: Method, hardness: NDArray | None, sample_ids: Ids, *, seed: int, options: Mapping[str, Any]
) -> NDArray[np.float64]:
    """What a method that ranks orders by: float64 (n,), the lowest are kept.

    Args:
        method: as registered.
        hardness: (n,) scores, higher = harder, of any of the samples; None if the method needs none.
        sample_ids: (n,).
        seed: of its draws.
        options: the method's own.

    Raises:
        ValueError: a key is NaN.
    """
    keys = np.asarray(method.function(hardness, draws_of(method, seed, sample_ids), **options), np.float64)
    if keys is not hardness and np.isnan(keys.min(initial=np.inf)):
        raise ValueError(f"method {method.name!r} gave a key that is NaN; it can rank no such sample")
    return keys if keys.shape == sample_ids.shape else np.broadcast_to(keys, sample_ids.shape)


def _kept(
    method: Method,
    rows: tuple[NDArray | None, Ids, NDArray, NDArray | None, Features | None],
    k: int,
    *,
    seed: int,
    options: Mapping[str, Any],
) -> Ids:
    """What the method keeps of one group of samples: hardness, ids, labels, the second hardness and features."""
    hardness, ids, labels, also, places = rows
    if not method.ranks:
        options = options if method.second_score is None else {**options, "second": also}
        options = {**options, "features": places} if method.needs_features else options
        return method.function(hardness, ids, labels, k, uniform=draws_of(method, seed, ids), **options)
    return lowest(ranking_keys(method, hardness, ids, seed=seed, options=options), ids, k)


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
        refuse_nan(values, ids)
        if turned(chosen, score):
            values = -values
    return ids, classes, values


def _sorted_second(
    chosen: Method, sample_ids: NDArray, second: NDArray | None, score: str | None
) -> NDArray[np.float64] | None:
    """The second hardness in the order of the ids; None if the method needs none and is given none."""
    if second is None:
        if chosen.second_score:
            raise ValueError(f"method {chosen.name!r} needs a second score, usually {chosen.second_score!r}; pass it")
        return None
    if chosen.second_score is None:
        raise ValueError(f"method {chosen.name!r} reads no second score; leave it out")
    if len(second) != len(sample_ids):
        raise ValueError(f"sample_ids and second must have one length, got {len(sample_ids)} and {len(second)}")
    ids, values = np.asarray(sample_ids, np.int64), np.asarray(second, np.float64)
    values = values[np.argsort(ids, kind="stable")]
    refuse_nan(values, np.sort(ids))
    return values if is_higher_harder(score or chosen.second_score) else -values


def _sorted_features(chosen: Method, sample_ids: NDArray, features: Features | None) -> Features | None:
    """Features in the order of the ids; None if the method needs none."""
    if not chosen.needs_features:
        return None
    if features is None:
        raise ValueError(f"method {chosen.name!r} needs features; pass them")
    if len(features.values) != len(sample_ids) or len(features.probabilities) != len(sample_ids):
        raise ValueError(
            f"sample_ids and features must have one length, got {len(sample_ids)} and {len(features.values)}"
        )
    bad = np.asarray(~np.isfinite(features.values).all(axis=1))
    if bad.any():
        first = np.sort(np.asarray(sample_ids)[bad])[:5].tolist()
        raise ValueError(f"features of {bad.sum()} of {len(bad)} samples are not finite (first ids: {first})")
    order = np.argsort(np.asarray(sample_ids, np.int64), kind="stable")
    return features.take(order)


def _shares(classes: NDArray, k: int) -> list[tuple[NDArray, int]]:
    """Rows and quota of each class that gets any of the k samples; one sort instead of a pass per class."""
    quotas = class_quotas(classes, k)
    order = np.argsort(classes, kind="stable")
    ends = np.searchsorted(classes[order], list(quotas), side="right")
    groups = np.split(order, ends[:-1])
    return [(rows, quota) for quota, rows in zip(quotas.values(), groups, strict=True) if quota > 0]
