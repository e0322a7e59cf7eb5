"""Progress of work in other processes, reported to the driver through a Ray actor."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from easycore_ray.runtime.console import Progress


class _Board:
    """Holds the last report of remote work (a Ray actor, so any worker can reach it)."""

    def __init__(self) -> None:
        self._last: tuple[float, str] = (0.0, "")

        self._metrics: dict[int, dict[str, float]] = {}

    def post(self, done: float, note: str) -> None:
        self._last = (done, note)

    def post_metrics(self, epoch: int, metrics: dict[str, float]) -> None:
        self._metrics[epoch] = metrics

    def read(self) -> tuple[tuple[float, str], dict[int, dict[str, float]]]:
        """The last report, and the metrics posted since the last reading."""
        metrics, self._metrics = self._metrics, {}
        return self._last, metrics


@contextmanager
def watching(
    label: str, total: float, unit: str, on_metrics: Callable[[int, dict[str, float]], None] | None = None
) -> Iterator[Any]:
    """Show progress of remote work while the body runs.

    Args:
        label: what is being done.
        total: how many units make it whole.
        unit: plural name of a unit.
        on_metrics: called in this process with (epoch, metrics) as they are posted.

    Yields:
        A handle for the workers: ``handle.post.remote(done, note)`` and
        ``handle.post_metrics.remote(epoch, metrics)``.
    """
    board = ray.remote(num_cpus=0)(_Board).remote()
    stop = threading.Event()
    line = Progress(label, total, unit)

    def poll_once() -> None:
        try:
            (done, note), metrics = ray.get(board.read.remote(), timeout=5)
        except Exception:
            # Watching must never fail the work; the next round tries again.
            return
        if done > 0:
            line.update(done, note)
        for epoch in sorted(metrics):
            if on_metrics is not None:
                on_metrics(epoch, metrics[epoch])

    def poll() -> None:
        while not stop.wait(0.5):
            poll_once()
        poll_once()

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield board
    finally:
        stop.set()
        thread.join()
        line.close()
        ray.kill(board)
