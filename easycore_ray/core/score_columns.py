"""Scores of many batches, gathered in a few large tensors."""

import numpy as np
import torch
from torch import Tensor

_FIRST_ROWS = 1024


class ScoreColumns:
    """Columns that grow by whole batches, on the devices where the first batch lies; nothing waits for a GPU.

    A small tensor kept from each batch would lie between the large ones that the next batches take, so that the C
    library finds ever less room for those: a process would grow with every batch.
    """

    def __init__(self) -> None:
        self._columns: dict[str, Tensor] = {}
        self._num_rows = 0

    def add(self, batch: dict[str, Tensor]) -> None:
        """Append the rows of a batch: the same names, dtypes and shapes of a row each time, every tensor (B, …)."""
        stop = self._num_rows + len(next(iter(batch.values())))
        for name, values in batch.items():
            self._columns[name] = _with_room(self._columns.get(name, values[:0]), self._num_rows, stop)
            self._columns[name][self._num_rows : stop] = values.detach()
        self._num_rows = stop

    def to_numpy(self) -> dict[str, np.ndarray]:
        """All rows by name, (N, …) each.

        Raises:
            ValueError: there are none.
        """
        if not self._columns:
            raise ValueError("there are no rows to score")
        return {name: values[: self._num_rows].cpu().numpy() for name, values in self._columns.items()}


def _with_room(column: Tensor, used: int, needed: int) -> Tensor:
    """The column, or a copy that is at least twice as long if it has fewer rows than are needed."""
    if len(column) >= needed:
        return column
    longer = torch.empty((max(needed, 2 * len(column), _FIRST_ROWS), *column.shape[1:]), dtype=column.dtype,
                         device=column.device)  # fmt: skip
    longer[:used] = column[:used]
    return longer
