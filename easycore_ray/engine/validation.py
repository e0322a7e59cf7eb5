"""Validation after each epoch: blocks of the validation split, shared by the workers."""

import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from easycore_ray.core.passes import validate
from easycore_ray.data.dataset import (
    Dataset,
    image_bytes_per_row,
    locate_samples,
    open_dataset,
    part_in_stored_order,
)
from easycore_ray.data.samples import Samples, read_split
from easycore_ray.data.stream import place_rows, stream_rows
from easycore_ray.engine.plan import Fit
from easycore_ray.engine.worker_group import Context

# Rows that are attacked together.
_BLOCK = 128


def keeps_validation(dataset: Dataset, world_size: int, cache_gib: float) -> bool:
    """Whether each worker keeps its blocks of the validation split: at most ``cache_gib`` GiB of uint8 pixels."""
    blocks = -(-dataset.num_rows("val") // _BLOCK)
    rows = min(-(-blocks // world_size) * _BLOCK, dataset.num_rows("val"))
    return rows * image_bytes_per_row(dataset) <= cache_gib * 2**30


class ValidationBlocks:
    """This worker's blocks of the validation split: rows that are stored together, cut alike for any number of workers.

    Workers take whole blocks, so that no outcome depends on how many they are. A share that fits ``fit.cache_gib`` is
    read once and kept; larger ones are streamed each time.
    """

    def __init__(self, fit: Fit, context: Context) -> None:
        self._fit, self._context, self._dataset = fit, context, open_dataset(fit.dataset)
        self._limit = fit.row_limit()
        num_rows = self._dataset.num_rows("val")
        blocks = -(-num_rows // _BLOCK)
        first, last = (rank * blocks // context.world_size for rank in (context.rank, context.rank + 1))
        self._positions = np.arange(first * _BLOCK, min(last * _BLOCK, num_rows))
        """Of this worker's rows, as they are stored."""
        keeps = keeps_validation(self._dataset, context.world_size, fit.cache_gib)
        self._kept = self._read() if keeps else None

    def __iter__(self) -> Iterator[Samples]:
        """The blocks, each in stored order."""
        return self._stream() if self._kept is None else iter(self._kept)

    def _read(self) -> list[Samples]:
        if not len(self._positions):
            return []
        places = locate_samples(self._dataset, "val", None)
        stored = places["sample_id"].to_numpy()[part_in_stored_order(places, 0, 1)]
        ids = torch.from_numpy(stored[self._positions])
        rows = read_split(self._dataset, "val", ids.numpy())
        order = torch.searchsorted(rows.sample_ids, ids)
        columns = [column[order].split(_BLOCK) for column in rows]
        return [Samples(*block) for block in zip(*columns, strict=True)]

    def _stream(self) -> Iterator[Samples]:
        """Cut what arrives in pieces of any size."""
        if not len(self._positions):
            return
        rows, layout = place_rows(self._dataset, "val", None), self._dataset.layout
        held: list[Samples] = []
        for piece in stream_rows(rows, self._positions, layout, streams=self._context.world_size):
            # Copied, because the memory of the object store may not be written.
            ids, images, labels = (torch.from_numpy(column.copy()) for column in piece)
            held.append(Samples(ids, images, labels.long()))
            while sum(len(part.labels) for part in held) >= _BLOCK:
                joined = _join(held)
                yield Samples(*(column[:_BLOCK] for column in joined))
                held = [Samples(*(column[_BLOCK:] for column in joined))]
        if len((rest := _join(held)).labels):
            yield rest

    def measure(self, model: nn.Module) -> tuple[dict[str, float], list[float | None]]:
        """Accuracies over all workers' blocks, in [0, 1], and the seconds that took; nothing without a split.

        Also the mean cross-entropy of each class, in nats; None for a class without validation samples.
        """
        started, fit, plan = time.monotonic(), self._fit, self._fit.plan
        watched = plan.training == "nfgsm" and fit.val_attack_steps > 0
        mine = validate(model, self, eps=plan.eps, norm=plan.norm, steps=fit.val_attack_steps, seed=plan.seed,
                        with_fgsm=watched, limit=self._limit)  # fmt: skip
        parts = self._context.gather(mine)
        total = sum(part.num_rows for part in parts)
        if not total:
            return {}, []
        metrics = {"val_accuracy": sum(part.num_correct for part in parts) / total}
        if fit.val_attack_steps:
            metrics["val_robust_accuracy"] = sum(part.num_robust for part in parts) / total
        if watched:
            metrics["val_fgsm_accuracy"] = sum(part.num_fgsm for part in parts) / total
        sums = np.sum([part.losses for part in parts if part.losses], axis=0)
        rows = np.sum([part.class_rows for part in parts if part.losses], axis=0)
        losses = [float(loss / count) if count else None for loss, count in zip(sums, rows, strict=True)]
        return metrics | {"val_seconds": time.monotonic() - started}, losses


def _join(parts: list[Samples]) -> Samples:
    return Samples(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
