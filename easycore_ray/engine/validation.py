"""Validation after each epoch: blocks of the validation split, shared by the workers."""

import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from easycore_ray.core.passes import validate
from easycore_ray.data.dataset import Dataset, image_bytes_per_row, locate_samples, open_dataset
from easycore_ray.data.samples import Samples, read_split
from easycore_ray.engine.plan import Fit
from easycore_ray.engine.worker_group import Context

# Rows that are attacked together.
_BLOCK = 128
# Of blocks that are not kept, as many are read at a time as this holds.
_READ_BYTES = 64 * 2**20


class ValidationBlocks:
    """This worker's blocks of the validation split: rows that are stored together, cut alike for any number of workers.

    Workers take whole blocks, so that no outcome depends on how many they are. A share of at most ``fit.cache_gib``
    GiB of pixels is read once and kept; a larger one is read anew each time, some blocks at a time.
    """

    def __init__(self, fit: Fit, context: Context) -> None:
        self._fit, self._context, self._dataset = fit, context, open_dataset(fit.dataset)
        blocks = blocks_of_validation(self._dataset)
        first, last = (rank * len(blocks) // context.world_size for rank in (context.rank, context.rank + 1))
        self._ids = blocks[first:last]
        pixels = sum(map(len, self._ids)) * image_bytes_per_row(self._dataset)
        self._limit = fit.row_limit()
        self._kept = list(self._read()) if pixels <= fit.cache_gib * 2**30 else None

    def __iter__(self) -> Iterator[Samples]:
        """The blocks, each in the order of its ids."""
        return self._read() if self._kept is None else iter(self._kept)

    def _read(self) -> Iterator[Samples]:
        at_once = max(1, _READ_BYTES // (_BLOCK * image_bytes_per_row(self._dataset)))
        for start in range(0, len(self._ids), at_once):
            some = self._ids[start : start + at_once]
            rows = read_split(self._dataset, "val", np.concatenate(some))
            for ids in some:
                places = torch.searchsorted(rows.sample_ids, torch.from_numpy(ids))
                yield Samples(*(column[places] for column in rows))

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Accuracies over all workers' blocks, in [0, 1], and the seconds that took; nothing without a split."""
        started, fit, plan = time.monotonic(), self._fit, self._fit.plan
        mine = validate(model, self, eps=plan.eps, norm=plan.norm, steps=fit.val_attack_steps, seed=plan.seed,
                        limit=self._limit)  # fmt: skip
        parts = self._context.gather(mine)
        total = sum(part.num_rows for part in parts)
        if not total:
            return {}
        metrics = {"val_accuracy": sum(part.num_correct for part in parts) / total}
        if fit.val_attack_steps:
            metrics["val_robust_accuracy"] = sum(part.num_robust for part in parts) / total
        return metrics | {"val_seconds": time.monotonic() - started}


def blocks_of_validation(dataset: Dataset) -> list[np.ndarray]:
    """Ids of each block of the validation split: int64 (128,) or fewer, ascending; of rows stored side by side."""
    if not dataset.num_rows("val"):
        return []
    places = locate_samples(dataset, "val", None)
    stored = np.lexsort((places["row"].to_numpy(), places["shard"].to_numpy()))
    ids = places["sample_id"].to_numpy()[stored]
    return [np.sort(ids[start : start + _BLOCK]) for start in range(0, len(ids), _BLOCK)]
