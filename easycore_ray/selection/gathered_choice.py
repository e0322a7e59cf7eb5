"""The choice of methods that must see all samples at once: three columns in this process, up to its memory."""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from easycore_ray.core.feature_selection import Features
from easycore_ray.core.lowest import Ids
from easycore_ray.core.selection import budget, choose, quotas_of_sizes
from easycore_ray.selection.partitions import Partition
from easycore_ray.storage.errors import EasyCoreError

if TYPE_CHECKING:
    from easycore_ray.selection.exact_cut import Selection

# Of a sample, with class balance: measured, see ``gather_limit``.
_GATHER_BYTES = 100
# Of methods with a cost: assumed, of two cores with AVX2. More would better be run on part of the data.
_OPERATIONS_PER_SECOND = 2e10
_MOST_HOURS = 24


def choose_gathered(
    selection: "Selection",
    partitions: Sequence[Partition],
    second: NDArray[np.float64] | None = None,
    features: Features | None = None,
) -> list[Ids]:
    """What ``core.selection.choose`` keeps of each partition: (k_i,) int64, ascending.

    Args:
        selection: the method and its settings.
        partitions: all samples, in id order.
        second: (n,), their second score as stored, where the method reads two.
        features: of the samples, in the same order, where the method goes by them.

    Raises:
        EasyCoreError: there are more samples than ``gather_limit``, or it would take too long or too much memory.
    """
    total, most = sum(partition.rows for partition in partitions), gather_limit()
    if total > most:
        raise EasyCoreError(
            f"method {selection.method.name} sees all samples at once, and {total:,} are more than the {most:,} this "
            "machine has memory for; run it on a larger one, or choose a method that goes sample by sample, "
            "such as easiest or random"
        )
    needs_score = selection.method.needs_score
    batches = [batch for part in partitions for batch in part.batches(labels=True, scores=needs_score)]
    labels = np.concatenate([batch.labels for batch in batches if batch.labels is not None])
    if features is not None:
        check_cost(selection, labels, features.values.shape[1])
    ids = choose(
        selection.method.name,
        sample_ids=np.concatenate([batch.sample_ids for batch in batches]),
        labels=labels,
        scores=np.concatenate([batch.scores for batch in batches if batch.scores is not None]) if needs_score else None,
        fraction=selection.fraction,
        score=selection.score,
        second=second,
        second_score=selection.second_score,
        features=features,
        balance="none" if selection.num_classes is None else "class",
        seed=selection.seed,
        **selection.options,
    )
    bounds = np.searchsorted(ids, [part.first_id for part in partitions] + [np.iinfo(np.int64).max])
    return [ids[low:high] for low, high in itertools.pairwise(bounds)]


def check_cost(selection: "Selection", labels: NDArray[np.integer], size: int) -> None:
    """Refuse a choice that would take more than a day or the memory of this machine, naming both.

    Args:
        selection: the method and its settings.
        labels: (n,), of all samples.
        size: number of features.

    Raises:
        EasyCoreError: says what it would take, and what takes less.
    """
    if selection.method.cost is None:
        return
    k = budget(len(labels), selection.fraction)
    groups = [(len(labels), k)]
    if selection.num_classes is not None:
        sizes = np.bincount(labels, minlength=selection.num_classes)
        groups = list(zip(sizes.tolist(), quotas_of_sizes(sizes, k).tolist(), strict=True))
    costs = [selection.method.cost(count, quota, size) for count, quota in groups]
    hours = sum(cost.operations for cost in costs) / _OPERATIONS_PER_SECOND / 3600
    needed, memory = max(cost.memory for cost in costs), usable_memory()
    if hours > _MOST_HOURS or needed > memory:
        less = "a smaller --fraction or dataset" if selection.num_classes is not None else "--balance class"
        raise EasyCoreError(
            f"method {selection.method.name} would take about {hours:,.1f} h and {needed / 2**30:,.1f} GiB for "
            f"{len(labels):,} samples of {size:,} features; at most {_MOST_HOURS} h and the {memory / 2**30:,.1f} GiB "
            f"of this machine are allowed; {less} takes less"
        )


def gather_limit() -> int:
    """Most samples that a method which sees all at once is given here."""
    return usable_memory() // _GATHER_BYTES


def usable_memory() -> int:
    """Four fifths of the memory of this machine, in bytes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    group = Path("/sys/fs/cgroup/memory.max")
    if group.exists() and (limit := group.read_text().strip()).isdigit():
        memory = min(memory, int(limit))
    return int(0.8 * memory)
