"""Epochs on a part of the samples, in a run on any number of workers: see ``core.pruning``.

Every worker keeps its own block of the rows, and knows the losses of all samples, so that all decide alike. The losses
are part of every commit, one for each sample in the order of ids, whichever worker has it; within an epoch its weights
are as well. Whoever resumes decides as an uninterrupted run does, also on another number of workers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from easycore_ray.core.loop import EpochResult
from easycore_ray.core.pruning import infobatch_weights, last_pruned_step
from easycore_ray.engine.loader import Loader, PrunableLoader
from easycore_ray.engine.plan import Fit
from easycore_ray.engine.segments import Segments
from easycore_ray.engine.shares import batches_per_epoch
from easycore_ray.engine.worker_group import Context

_LOSSES, _WEIGHTS = "sample_losses", "sample_weights"


@dataclass(frozen=True)
class PrunedEpoch:
    """What an epoch trains on."""

    loader: Loader
    """Of this worker's rows that are kept."""
    weigh: Callable[[Tensor], Tensor] | None
    """Weights, float32 (B,), of the samples with these ids (B,); None where all are kept."""
    last_step: int
    """Steps of the run after which it ends, if it has not before."""


class Pruner:
    """Chooses the samples of each epoch and keeps what they lost. All workers call its methods together.

    Its state is in ``carried``, which is committed with the weights and is the same on all workers.

    Args:
        fit: the run.
        context: its workers.
        loader: of all of this worker's rows.
    """

    def __init__(self, fit: Fit, context: Context, loader: PrunableLoader) -> None:
        blocks: list[NDArray[np.int64]] = context.gather(loader.sample_ids())
        self._fit, self._rank, self._loader = fit, context.rank, loader
        self._ids = np.sort(np.concatenate(blocks))
        self._blocks = [np.searchsorted(self._ids, block) for block in blocks]

    def begin(self, carried: dict[str, Any], epoch: int, step: int) -> PrunedEpoch:
        """Choose the samples of an epoch, or go on with those that were chosen.

        Args:
            carried: see above.
            epoch: from 1.
            step: optimizer steps before the epoch.
        """
        total = self._fit.plan.total_steps
        if _WEIGHTS not in carried:
            carried.setdefault(_LOSSES, torch.full((len(self._ids),), torch.nan))
            carried[_WEIGHTS] = torch.from_numpy(self._choose(carried[_LOSSES].numpy(), epoch, step))
        weights = carried[_WEIGHTS]
        if bool((weights == 1).all()):
            return PrunedEpoch(self._loader, None, total)
        kept = [np.flatnonzero(weights.numpy()[block]) for block in self._blocks]
        loader = self._loader.part(kept[self._rank], self._segments([len(places) for places in kept]))
        return PrunedEpoch(loader, lambda ids: weights[self._places(ids.numpy())], last_pruned_step(total))

    def _choose(self, losses: NDArray[np.float32], epoch: int, step: int) -> NDArray[np.float32]:
        """Weights float32 (n,) of all samples.

        Where some worker would have less than two rows in some batch, all samples are kept.
        """
        everything = np.ones(len(losses), np.float32)
        if step >= last_pruned_step(self._fit.plan.total_steps):
            return everything
        assert self._fit.prune_ratio is not None
        weights = infobatch_weights(losses, self._ids, ratio=self._fit.prune_ratio, seed=self._fit.plan.seed,
                                    epoch=epoch)  # fmt: skip
        counts = [int(np.count_nonzero(weights[block])) for block in self._blocks]
        # Of a single small image, batch norm may have one value for each channel, which it refuses.
        return weights if min(counts) >= 2 * batches_per_epoch(sum(counts), self._fit.batch_size) else everything

    def _segments(self, counts: Sequence[int]) -> Segments:
        fit = self._fit
        return Segments(sum(counts), fit.batch_size, fit.segment_images, len(counts), tuple(counts))

    def _places(self, sample_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self._ids, sample_ids)

    def record(self, carried: dict[str, Any], results: Sequence[EpochResult]) -> None:
        """Keep the losses of a segment: ``results`` are those of all workers."""
        for result in results:
            assert result.row_losses is not None
            places = self._places(result.row_losses["sample_id"])
            carried[_LOSSES].numpy()[places] = result.row_losses["loss"]

    def end(self, carried: dict[str, Any]) -> dict[str, float]:
        """Forget what the epoch was made of; its metrics: ``kept_samples``, of all workers."""
        return {"kept_samples": float(torch.count_nonzero(carried.pop(_WEIGHTS)))}
