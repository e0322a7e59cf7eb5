"""How many rows go through a network at once: a default by the size of images, halved where a device has no room.

Attacks, scores and validation treat every row by itself, so that a batch may be cut anywhere: results differ by
rounding only.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

# 64 color images of 224 × 224 pixels in bytes: with their gradients they take 6 GB in a ResNet-50.
_BATCH_BYTES = 64 * 3 * 224 * 224
_MOST_ROWS = 256


def default_rows(image_bytes: int) -> int:
    """Rows of a batch without gradients of the weights: 256, and a power of two below it for large images.

    Args:
        image_bytes: of one image as uint8: 3,072 for 32 × 32 pixels in color (256 rows), 150,528 for 224 × 224 (64).
    """
    fitting = max(1, _BATCH_BYTES // max(image_bytes, 1))
    return min(_MOST_ROWS, 1 << (fitting.bit_length() - 1))


class RowLimit:
    """Most rows that go through a network at once; it stays halved once a device had no memory for as many.

    Attributes:
        rows: the limit.
        message: what was said when it was halved; empty while it was not.
    """

    def __init__(self, rows: int) -> None:
        """Begin with a limit of at least 1."""
        if rows < 1:
            raise ValueError(f"rows must be at least 1, got {rows}")
        self.rows, self.message = rows, ""

    def fitting(self, function: Callable[[int], Result], rows: int) -> Result:
        """``function(rows at once)`` for as many as there is memory for: ``rows``, or the limit if that is less.

        Args:
            function: run again with half as many rows where the device runs out of memory, so idempotent.
            rows: most that are wanted, at least 1.

        Raises:
            torch.OutOfMemoryError: there is not enough memory for a single row.
        """
        while True:
            at_once = min(self.rows, rows)
            try:
                return function(at_once)
            except torch.OutOfMemoryError:
                if at_once == 1:
                    raise
            # Not within the handler: the error holds the tensors of the pass that failed.
            self._halve(at_once)

    def map(self, function: Callable[..., Result], *columns: Tensor) -> list[Result]:
        """Results of ``function(*columns)`` of consecutive rows, as many at a time as there is memory for.

        Args:
            function: takes as many tensors as there are columns, each of the same rows.
            columns: tensors (N, …).

        Returns:
            One result for each piece, in order; one for no rows.
        """
        total = len(columns[0])
        found: list[Result] = []
        done = 0
        while done < total or not found:
            count, result = self.fitting(partial(_apply, function, columns, done), max(total - done, 1))
            found.append(result)
            done += count
        return found

    def _halve(self, failed: int) -> None:
        self.rows = failed // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not self.message:
            self.message = (
                f"the device has no memory for {failed} images at a time; half as many are taken, and half of those "
                "if need be"
            )
            warnings.warn(self.message, RuntimeWarning, stacklevel=4)


def _apply(function: Callable[..., Result], columns: tuple[Tensor, ...], start: int, count: int) -> tuple[int, Result]:
    return count, function(*(column[start : start + count] for column in columns))
