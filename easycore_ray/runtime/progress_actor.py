"""Progress of work in other processes, reported to the driver through a Ray actor."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from easycore_ray.runtime.console import Progress
from easycore_ray.runtime.reservations import pending_bundles
from easycore_ray.runtime.room import Awaited

# How often the driver asks, and how long it waits for an answer (s).
_POLL_SECONDS, _ANSWER_SECONDS = 0.5, 5.0
# How often it looks what is not granted.
_LOOK_SECONDS = 10.0


class _ProgressActor:
    """Keeps the last report of remote work and the metrics of its epochs."""

    def __init__(self) -> None:
        self._last: tuple[float, str] = (0.0, "")
        self._metrics: dict[int, dict[str, float]] = {}

    def post(self, done: float, note: str) -> None:
        self._last = (done, note)

    def post_metrics(self, epoch: int, metrics: dict[str, float]) -> None:
        self._metrics[epoch] = metrics

    def read(self, since: int) -> tuple[tuple[float, str], dict[int, dict[str, float]]]:
        """The last report, and the metrics of epochs after ``since``; reading changes nothing."""
        return self._last, {epoch: metrics for epoch, metrics in self._metrics.items() if epoch > since}


def start_progress_actor() -> Any:
    """A progress actor on this driver's node; Ray makes it anew, under the same handle, if its process dies."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)(_ProgressActor).remote()


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
        ``handle.post_metrics.remote(epoch, metrics)``; epochs are posted in ascending order.
    """
    actor = start_progress_actor()
    stop = threading.Event()
    line = Progress(label, total, unit)
    since = -1

    def poll_once() -> None:
        nonlocal since
        try:
            (done, note), metrics = ray.get(actor.read.remote(since), timeout=_ANSWER_SECONDS)
        except Exception:
            # Watching must never fail the work; the next round asks again.
            return
        if done > 0:
            line.update(done, note)
        for epoch in sorted(metrics):
            if on_metrics is not None:
                on_metrics(epoch, metrics[epoch])
            since = epoch

    def poll() -> None:
        awaited, looked = Awaited(label), time.monotonic()
        while not stop.wait(_POLL_SECONDS):
            poll_once()
            if time.monotonic() - looked >= _LOOK_SECONDS:
                looked = time.monotonic()
                # Watching must never fail the work.
                with suppress(Exception):
                    awaited.see(pending_bundles())
        poll_once()

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield actor
    finally:
        stop.set()
        thread.join()
        line.close()
        ray.kill(actor)
