"""Validation after each epoch: blocks of the validation split, shared by the workers."""

import time

from torch import nn

from easycore_ray.core.loop import validate
from easycore_ray.data.dataset import open_dataset
from easycore_ray.data.samples import Samples, read_split
from easycore_ray.engine.plan import Fit
from easycore_ray.engine.worker_group import Context

# Rows of the validation split that are attacked together; workers take whole blocks, so that no outcome depends on
# how many they are.
_BLOCK = 128


class ValidationBlocks:
    """This worker's blocks of the validation split, cut alike for any number of workers."""

    def __init__(self, fit: Fit, context: Context) -> None:
        self._fit, self._context = fit, context
        dataset = open_dataset(fit.dataset)
        self._blocks: list[Samples] = []
        if dataset.num_rows("val"):
            columns = [column.split(_BLOCK) for column in read_split(dataset, "val")]
            blocks = [Samples(*block) for block in zip(*columns, strict=True)]
            self._blocks = blocks[context.rank :: context.world_size]

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Accuracies over all workers' blocks, in [0, 1], and the seconds that took; nothing without a split."""
        started, fit, plan = time.monotonic(), self._fit, self._fit.plan
        mine = validate(model, self._blocks, eps=plan.eps, norm=plan.norm, steps=fit.val_attack_steps, seed=plan.seed)
        parts = self._context.gather(mine)
        total = sum(part.num_rows for part in parts)
        if not total:
            return {}
        metrics = {"val_accuracy": sum(part.num_correct for part in parts) / total}
        if fit.val_attack_steps:
            metrics["val_robust_accuracy"] = sum(part.num_robust for part in parts) / total
        return metrics | {"val_seconds": time.monotonic() - started}
