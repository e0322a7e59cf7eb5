"""Ray Train's trainer, without those of its helpers that a run of ours has no use for."""

import os
from typing import Any

from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from easycore_ray.runtime.cluster import OWN_RAY


class _ContextOfData(DatasetsCallback):
    """Gives the driver's settings of Ray Data to the workers, which stream their rows themselves.

    Ray Train would also start a process that hands them datasets, of which there are none.
    """

    def before_init_train_context(self, workers: Any) -> dict[str, Any]:
        """Hand nothing over."""
        return {}


class Trainer(DataParallelTrainer):
    """Trains a function on a group of workers; without datasets.

    Ray Train starts a process beside each run that frees its workers' place should the controller be lost. It asks
    Ray's dashboard, which a Ray that a command of ours has started does not have: it would ask whatever cluster was
    last started on this machine, and when that is gone the end of every run waits for 12 s.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = [callback for callback in super()._create_default_callbacks() if not _is_useless(callback)]
        return [*callbacks, _ContextOfData(self.train_run_context, {})]


def _is_useless(callback: Any) -> bool:
    return isinstance(callback, DatasetsCallback) or (
        OWN_RAY in os.environ and isinstance(callback, PlacementGroupCleanerCallback)
    )
