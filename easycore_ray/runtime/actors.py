"""Long-lived Ray actors that take item after item, and what every task or actor reserves.

Used by ``runtime.tasks`` alone. An actor is given its next item when it is done with one, never while it waits for a
place in the cluster; one whose process is lost is replaced, and its item done again.
"""

import itertools
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.storage.lease import Lease, check_seen, leases_of_job

_Item = tuple[int, tuple[Any, ...]]
# Between two looks at which actors have a place in the cluster.
_LOOK_SECONDS = 2.0


@dataclass(frozen=True)
class TaskResources:
    """What a task reserves, and how often it is tried again.

    Attributes:
        cpus: CPUs of a task.
        gpus: GPUs of a task.
        in_flight: most tasks that are submitted and not yet done; None is no bound. Of long-lived processes: their
            number, one without a bound.
        max_retries: times a task is run again whose process was lost.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    in_flight: int | None = None
    max_retries: int = 5


@dataclass(frozen=True)
class LongLived:
    """A function that a process makes once and then calls for item after item: what it loads is loaded once.

    Attributes:
        make: gives the function.
        arguments: of ``make``; object references among them are handed on.
    """

    make: Callable[..., Callable[..., Any]]
    arguments: tuple[Any, ...] = ()


def lost_too_often(label: str, resources: TaskResources) -> str:
    """What is said where processes are lost again and again."""
    return (
        f"{label}: the process of a task was lost {resources.max_retries + 1} times (for want of memory?); "
        "run the same command again, with more memory for each task or fewer at a time"
    )


class _Actor:
    """Makes a function once and calls it."""

    def prepare(self, leases: list[Lease], make: Callable[..., Callable[..., Any]], *arguments: Any) -> None:
        """Make it; not in the constructor, whose errors Ray reports without their type."""
        check_seen(leases)
        self._function = make(*arguments)

    def call(self, *item: Any) -> Any:
        """Call it."""
        return self._function(*item)


class _Pool:
    """Actors at work: what each is doing, by the reference of its result.

    Args:
        work: what they make and call.
        resources: of each.
        label: what is being done, for messages.
    """

    def __init__(self, work: LongLived, resources: TaskResources, label: str) -> None:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        from easycore_ray.runtime.room import Awaited

        self._work, self._awaited = work, Awaited(label)
        self._resources = {"CPU": float(resources.cpus), "GPU": float(resources.gpus)}
        self._kind = ray.remote(
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
            max_restarts=0,
            # A trial of a sweep reserves next to nothing for itself; without this they would have to fit in there.
            scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=None),
        )(_Actor)
        self._running: dict[Any, tuple[Any, _Item | None]] = {}
        # Of each actor that waits for its place in the cluster: what is done once its process runs.
        self._unplaced: list[Any] = []

    @property
    def at_work(self) -> bool:
        """Whether any actor has an item; others wait for a place in the cluster."""
        return any(item is not None for _, item in self._running.values())

    def start(self) -> None:
        """Start an actor; it is given an item once it has a place and is prepared."""
        actor = self._kind.remote()
        self._unplaced.append(actor.__ray_ready__.remote())
        self._running[actor.prepare.remote(leases_of_job(), self._work.make, *self._work.arguments)] = (actor, None)

    def give(self, actor: Any, item: _Item) -> None:
        """Give an actor its next item."""
        self._running[actor.call.remote(*item[1])] = (actor, item)

    def next(self) -> tuple[Any, Any, _Item | None]:
        """Wait for one that is done: the reference of its result, the actor, and the item, None if it was prepared.

        Says when some have no place in the cluster for long.
        """
        import ray

        done: list[Any] = []
        while not done:
            done, _ = ray.wait(list(self._running), timeout=_LOOK_SECONDS)
            if self._unplaced:
                _, self._unplaced = ray.wait(self._unplaced, num_returns=len(self._unplaced), timeout=0)
            placed = len(self._running) - len(self._unplaced)
            self._awaited.see([self._resources] * len(self._unplaced), placed)
        return done[0], *self._running.pop(done[0])

    @staticmethod
    def stop(actor: Any) -> None:
        """End an actor's process."""
        import ray

        ray.kill(actor)

    def stop_all(self) -> None:
        """End what still runs."""
        for actor, _ in self._running.values():
            self.stop(actor)


def run_on_actors(
    work: LongLived, waiting: Iterator[_Item], resources: TaskResources, label: str
) -> Generator[tuple[int, Any]]:
    """Number and result of each item, in the order in which they are done.

    Args:
        work: what every actor makes and calls.
        waiting: items with their numbers.
        resources: of each actor, how many there are, and how often an item is tried again whose actor was lost.
        label: what is being done, for messages.

    Raises:
        EasyCoreError: one that the function raised; or an actor was lost too often.
    """
    import ray

    from easycore_ray.runtime.ray_errors import in_a_sentence, lacks_package

    lost = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError, ray.exceptions.ObjectLostError)
    first = list(itertools.islice(waiting, resources.in_flight or 1))
    items, losses = _Queue(itertools.chain(first, waiting)), dict[int, int]()
    pool = _Pool(work, resources, label)
    for _ in first:
        pool.start()
    try:
        while items.left or pool.at_work:
            reference, actor, item = pool.next()
            try:
                result = ray.get(reference)
            except lost as error:
                pool.stop(actor)
                if lacks_package(error):
                    raise
                number = -1 if item is None else item[0]
                losses[number] = losses.get(number, 0) + 1
                if losses[number] > resources.max_retries:
                    raise EasyCoreError(lost_too_often(label, resources)) from error
                if item is not None:
                    items.put_back(item)
                pool.start()
                continue
            following = items.take()
            if following is None:
                pool.stop(actor)  # what it reserves is free for others
            else:
                pool.give(actor, following)
            if item is not None:
                yield item[0], result
    except ray.exceptions.RayError as error:
        raise in_a_sentence(error, label) from None
    finally:
        pool.stop_all()


class _Queue:
    """Items that nobody is working on: the next of an iterator, or one that was put back."""

    def __init__(self, waiting: Iterator[_Item]) -> None:
        self._waiting = waiting
        self._next: list[_Item] = list(itertools.islice(waiting, 1))

    @property
    def left(self) -> bool:
        """Whether there are any."""
        return bool(self._next)

    def take(self) -> _Item | None:
        """The next, or None."""
        if not self._next:
            return None
        item = self._next.pop()
        if not self._next:
            self._next = list(itertools.islice(self._waiting, 1))
        return item

    def put_back(self, item: _Item) -> None:
        """Have it done again, before the others."""
        self._next.append(item)
