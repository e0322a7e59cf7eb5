"""Scores of extra rows: a second table in the same run, committed with the first by the same training states."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from easycore_ray.engine.extra_data import EXTRA_CORESET, EXTRA_DATASET, own_labels
from easycore_ray.engine.run import Recorder
from easycore_ray.engine.worker_group import Context
from easycore_ray.scoring.score_table import CARRIED_EXTRA
from easycore_ray.storage.artifact import Artifact


@dataclass(frozen=True)
class MixedRecorder:
    """Records main and extra rows in tables of their own; see ``engine.run.Recorder``. For exact passes alone."""

    main: Recorder
    extra: Recorder
    main_segments: int
    """Segments of a pass that hold main rows; those after them hold extra rows."""
    labels: tuple[int, ...]
    """See ``ExtraData.labels``; in its table a row has the label that its own dataset gives it."""

    def records_steps(self, epoch: int) -> bool:
        """See ``Recorder``: never, since not every extra row is trained on in an epoch."""
        return False

    def exact_pass(self, epoch: int, carried: dict[str, Any]) -> int | None:
        """See ``Recorder``."""
        return self.main.exact_pass(epoch, carried)

    def also_records(self, epoch: int) -> tuple[str, ...]:
        """See ``Recorder``."""
        return self.main.also_records(epoch)

    def record(
        self,
        context: Context,
        columns: dict[str, np.ndarray],
        *,
        epoch: int,
        segment: int,
        rows: int,
        carried: dict[str, Any],
    ) -> None:
        """See ``Recorder``."""
        if segment < self.main_segments:
            self.main.record(context, columns, epoch=epoch, segment=segment, rows=rows, carried=carried)
            return
        columns = columns | {"label": own_labels(columns["label"], self.labels)}
        with _of_extra(carried) as own:
            self.extra.record(
                context, columns, epoch=epoch, segment=segment - self.main_segments, rows=rows, carried=own
            )

    def complete(self, context: Context, epoch: int, carried: dict[str, Any]) -> dict[str, float]:
        """See ``Recorder``: metrics of the extra rows are called ``extra_…``."""
        metrics = self.main.complete(context, epoch, carried)
        with _of_extra(carried) as own:
            found = self.extra.complete(context, epoch, own)
        return metrics | {f"extra_{name}": value for name, value in found.items()}


@contextmanager
def _of_extra(carried: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What is carried of the extra rows, under its plain names; put back afterwards."""
    names = [name for name in carried if name.startswith(CARRIED_EXTRA)]
    own = {name.removeprefix(CARRIED_EXTRA): carried.pop(name) for name in names}
    yield own
    carried.update({CARRIED_EXTRA + name: value for name, value in own.items()})


def extra_history(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """Metrics of every epoch with those of the extra rows' scores in the place of the main rows'."""
    found = []
    for entry in history:
        own = {name.removeprefix("extra_"): value for name, value in entry.items() if name.startswith("extra_")}
        found.append({name: value for name, value in entry.items() if not name.startswith("extra_")} | own)
    return found


def extra_parents(parents: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """Parents of the extra rows' tables, by role: ``dataset`` and ``coreset`` are theirs, the others ``main_…``."""
    roles = {EXTRA_DATASET: "dataset", EXTRA_CORESET: "coreset", "dataset": "main_dataset", "coreset": "main_coreset"}
    return {roles.get(role, role): parent for role, parent in parents.items()}
