"""A function mapped over items as Ray tasks or actors: bounded in flight, resumable, with our own errors unwrapped.

Every loop of submit, wait and unwrap in the package is ``map_tasks``. What an item is, and its seed, is decided by the
caller before anything runs, so that results are the same on any number of workers and after any interruption.
"""

import io
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from easycore_ray.config.base import ComputeConfig
from easycore_ray.runtime.actors import LongLived, TaskResources, lost_too_often, run_on_actors
from easycore_ray.runtime.console import Progress, say
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Claim
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.storage.lease import Lease, check_seen, leases_of_job

# How long a command waits for the processes of tasks that it has cancelled; killing one takes milliseconds.
_CANCEL_SECONDS = 10.0
# Without an answer for so long, a driver looks whether nodes have died.
_LOOK_SECONDS = 5.0


@dataclass(frozen=True)
class KeptResults:
    """Results that are Arrow tables, each kept as a file until all are made, so that a killed job resumes.

    Attributes:
        claim: the claim they are made under; its nonce names their folder, so that no other attempt's are read.
        names: of the items' files, unique.
        fits: whether a table that was read can be the result of the item of this number; any can, without it. What
            cannot, or cannot be read, is made again.
    """

    claim: Claim
    names: Sequence[str] = ()
    fits: Callable[[int, pa.Table], bool] | None = None

    @property
    def folder(self) -> str:
        """Where the files lie; whoever has used the results deletes it."""
        return paths.join(self.claim.path, f"shards-{self.claim.nonce}")

    def read(self, number: int) -> pa.Table | None:
        """The result of an item that an earlier run finished, or None."""
        path = self._path(number)
        if not self.claim.resumed or not paths.exists(path):
            return None
        try:
            found = pq.read_table(pa.BufferReader(paths.read_bytes(path)))
        except (pa.ArrowException, OSError):
            return None
        return found if self.fits is None or self.fits(number, found) else None

    def write(self, number: int, table: pa.Table) -> None:
        """Keep the result of an item."""
        self.claim.check()
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        paths.write_bytes(self._path(number), buffer.getbuffer())

    def _path(self, number: int) -> str:
        return paths.join(self.folder, f"{self.names[number]}.parquet")


def worker_resources(config: ComputeConfig) -> TaskResources:
    """What a command's options on workers mean for its tasks: one task is one worker."""
    return TaskResources(
        cpus=config.cpus_per_worker or 1.0,
        gpus=config.gpus_per_worker,
        in_flight=config.max_workers,
        max_retries=config.max_failures,
    )


def map_tasks(
    function: Callable[..., Any] | LongLived,
    items: Iterable[tuple[Any, ...]],
    *,
    label: str,
    resources: TaskResources | None = None,
    rows: Sequence[int] = (),
    unit: str = "rows",
    kept: KeptResults | None = None,
) -> list[Any]:
    """``function(*item)`` of every item, in their order.

    Args:
        function: what a Ray task calls, or this process without ``resources``; idempotent, as it may run twice. One
            that is long-lived is called by Ray actors, each in a process of its own; a lost one is replaced.
        items: arguments of each call; object references among them are handed on. They are taken one by one, so that
            an iterator may give up what it holds as it goes.
        label: what is being done, in the progress line and in messages.
        resources: of a task; None calls the function in this process, one item after another.
        rows: size of each item, for a line of progress; empty shows none.
        unit: plural name of a row.
        kept: keeps the results, and resumes from those of an earlier run.

    Raises:
        EasyCoreError: one that the function raised, without the traceback of its task; or a task's process was lost
            more often than ``max_retries``. What still runs is cancelled.
    """
    items = list(items) if kept is not None else items
    found = {} if kept is None else _read_kept(kept, label)
    waiting = ((number, item) for number, item in enumerate(items) if number not in found)
    progress = Progress(label, sum(rows), unit) if len(rows) else None
    done = sum(int(rows[number]) for number in found) if len(rows) else 0
    if progress is not None:
        progress.update(done)
    finished = _start(function, waiting, resources, label)
    try:
        for number, result in finished:
            found[number] = result
            if kept is not None:
                kept.write(number, result)
            if progress is not None:
                done += int(rows[number])
                progress.update(done)
    finally:
        finished.close()
        if progress is not None:
            progress.close()
    return [found[number] for number in sorted(found)]


def _read_kept(kept: KeptResults, label: str) -> dict[int, Any]:
    read = {number: kept.read(number) for number in range(len(kept.names))}
    found = {number: table for number, table in read.items() if table is not None}
    if found:
        say(f"{label}: resuming, {len(found)} of {len(read)} shards exist already")
    return found


def _start(
    function: Callable[..., Any] | LongLived,
    waiting: Iterator[tuple[int, tuple[Any, ...]]],
    resources: TaskResources | None,
    label: str,
) -> Generator[tuple[int, Any]]:
    """Number and result of each item, as they are made; waits for a node with room for one."""
    if resources is not None:
        from easycore_ray.runtime import cluster  # imports Ray, which work in this process does not need

        cluster.await_place({"CPU": resources.cpus, "GPU": resources.gpus}, label)
    if not isinstance(function, LongLived):
        return _run_here(function, waiting) if resources is None else _run_on_ray(function, waiting, resources, label)
    if resources is None:
        return _run_here(function.make(*function.arguments), waiting)
    return run_on_actors(function, waiting, resources, label)


def _run_here(
    function: Callable[..., Any], waiting: Iterator[tuple[int, tuple[Any, ...]]]
) -> Generator[tuple[int, Any]]:
    for number, item in waiting:
        yield number, function(*item)


def _on_node(key: str, leases: list[Lease], function: Callable[..., Any], *item: Any) -> Any:
    """What a task runs: nothing where the job's own folders are not seen."""
    from easycore_ray.runtime.task_places import note_place

    note_place(key)
    check_seen(leases)
    return function(*item)


def _new_task(name: str, resources: TaskResources) -> Any:
    """``_on_node`` as a function of Ray's, another one each time."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    return ray.remote(
        name=name,
        num_cpus=resources.cpus,
        num_gpus=resources.gpus,
        max_retries=resources.max_retries,
        # A trial of a sweep reserves next to nothing for itself; without this its tasks would have to fit in there.
        scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=None),
    )(_on_node)


def _run_on_ray(
    function: Callable[..., Any], waiting: Iterator[tuple[int, tuple[Any, ...]]], resources: TaskResources, label: str
) -> Generator[tuple[int, Any]]:
    """Number and result of each item, in the order in which their tasks end."""
    import ray

    from easycore_ray.runtime.ray_errors import in_a_sentence
    from easycore_ray.runtime.task_places import Places

    leases, places = leases_of_job(), Places()
    task = _new_task(function.__name__, resources)
    running: dict[Any, tuple[str, int, tuple[Any, ...]]] = {}

    def submit(number: int, item: tuple[Any, ...]) -> None:
        key = places.new_key()
        running[task.remote(key, leases, function, *item)] = key, number, item

    try:
        while True:
            while resources.in_flight is None or len(running) < resources.in_flight:
                number, item = next(waiting, (-1, ()))
                if number < 0:
                    break
                submit(number, item)
            if not running:
                return
            done, _ = ray.wait(list(running), timeout=_LOOK_SECONDS)
            if done:
                key, number, _ = running.pop(done[0])
                places.forget(key)
                # Forgotten before it is handed on, so that the object store need not hold it any longer.
                yield number, ray.get(done[0])
                continue
            lost = places.lost(key for key, _, _ in running.values())
            if lost:
                # All tasks of one function wait where Ray has asked a node for a process, dead or not.
                task = _new_task(function.__name__, resources)
            for ref in [ref for ref, (key, _, _) in running.items() if key in lost]:
                key, number, item = running.pop(ref)
                places.forget(key)
                submit(number, item)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        raise EasyCoreError(lost_too_often(label, resources)) from error
    except ray.exceptions.RayError as error:
        raise in_a_sentence(error, label) from None
    finally:
        for ref in running:
            # With its process: a task that is interrupted in an import leaves modules half imported to the next one.
            ray.cancel(ref, force=True)
        # Until they are gone, they may still write where the caller cleans up.
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=_CANCEL_SECONDS, fetch_local=False)
