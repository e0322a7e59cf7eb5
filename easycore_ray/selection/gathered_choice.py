"""The choice of methods that must see all samples at once: three columns in this process, up to its memory."""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from easycore_ray.core.lowest import Ids
from easycore_ray.core.selection import choose
from easycore_ray.selection.partitions import Partition
from easycore_ray.storage.errors import EasyCoreError

if TYPE_CHECKING:
    from easycore_ray.selection.exact_cut import Selection

# Of a sample, with class balance: measured, see ``gather_limit``.
_GATHER_BYTES = 100


def choose_gathered(
    selection: "Selection", partitions: Sequence[Partition], second: NDArray[np.float64] | None = None
) -> list[Ids]:
    """What ``core.selection.choose`` keeps of each partition: (k_i,) int64, ascending.

    Args:
        selection: the method and its settings.
        partitions: all samples, in id order.
        second: (n,), their second score as stored, where the method reads two.

    Raises:
        EasyCoreError: there are more samples than ``gather_limit``.
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
    ids = choose(
        selection.method.name,
        sample_ids=np.concatenate([batch.sample_ids for batch in batches]),
        labels=np.concatenate([batch.labels for batch in batches if batch.labels is not None]),
        scores=np.concatenate([batch.scores for batch in batches if batch.scores is not None]) if needs_score else None,
        fraction=selection.fraction,
        score=selection.score,
        second=second,
        second_score=selection.second_score,
        balance="none" if selection.num_classes is None else "class",
        seed=selection.seed,
        **selection.options,
    )
    bounds = np.searchsorted(ids, [part.first_id for part in partitions] + [np.iinfo(np.int64).max])
    return [ids[low:high] for low, high in itertools.pairwise(bounds)]


def gather_limit() -> int:
    """Most samples that a method which sees all at once is given here: four fifths of the memory of this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    group = Path("/sys/fs/cgroup/memory.max")
    if group.exists() and (limit := group.read_text().strip()).isdigit():
        memory = min(memory, int(limit))
    return int(0.8 * memory) // _GATHER_BYTES
