"""Workers of a run as threads of this process, that die at any moment and leave what they committed.

A run is a list of events on each worker: batches fetched, values gathered, commits begun, half written and made. One
worker dies at an event, and with it the group, as under Ray Train; the next group goes on from the last commit that is
registered. Time stands still but for the batches of rank 0, which take a minute each, so that it is known exactly which
ends of segments commit and how much work is done again.
"""

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch

from easycore_ray.core.models import build_model
from easycore_ray.engine import run
from easycore_ray.engine.loader import open_loader
from easycore_ray.engine.state import load_state, save_state

MINUTE = 60.0


class KilledError(BaseException):
    """The end of a process: nothing in the loop may catch it."""


class Group:
    """What the workers of one attempt share.

    Args:
        folder: where commits go; the file ``registered`` names the newest, as Ray Train's record does.
        world_size: number of workers.
        kill: the rank that dies, and before which of its events, from 0; nobody if left out.
    """

    def __init__(self, folder, world_size, kill=None):
        self.folder, self.world_size, self.kill = Path(folder), world_size, kill
        self.folder.mkdir(parents=True, exist_ok=True)
        self.attempt = f"{len(list(self.folder.glob('attempt-*'))):012x}"
        (self.folder / f"attempt-{self.attempt}").touch()
        self.barrier, self.building = threading.Barrier(world_size), threading.Lock()
        self.slots = [None] * world_size
        self.states = {}
        self.events = [0] * world_size
        self.names = []
        """Events of rank 0."""
        self.seconds = 0.0
        registered = self.folder / "registered"
        begun = self.folder / registered.read_text() / "batches" if registered.exists() else None
        self.resumed_at = self.batches = int(begun.read_text()) if begun else 0
        """Batches of rank 0 since the beginning of the run: done before this attempt, and now."""

    def event(self, rank, name):
        """Something is about to happen on a worker."""
        if self.kill == (rank, self.events[rank]):
            raise KilledError(name)
        self.events[rank] += 1
        if rank == 0:
            self.names.append(name)
            self.batches += name[0] == "batch"
            self.seconds += MINUTE * (name[0] == "batch")

    def run(self, fit, recorder=None):
        """The last state of a run to its end, on rank 0.

        Raises:
            KilledError: the worker died.
        """
        errors = []

        def work(rank):
            try:
                context = GroupContext(self, rank)
                self.states[rank] = run.run_epochs(
                    fit, context, WatchedLoader(open_loader(fit, rank, self.world_size), context), recorder
                )
            except threading.BrokenBarrierError:
                pass  # a peer has died
            except BaseException as error:
                errors.append(error)
                self.barrier.abort()

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(self.world_size)]
        before = run.time, run.build_model
        run.time = SimpleNamespace(monotonic=lambda: self.seconds)
        run.build_model = self._build_model
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            run.time, run.build_model = before
        for error in errors:
            raise error
        return self.states[0]

    def _build_model(self, **arguments):
        """One after the other: initial weights are drawn from the generator of the process."""
        with self.building:
            return build_model(**arguments)


class GroupContext:
    """One of the workers; see ``worker_group.Context``."""

    device = torch.device("cpu")

    def __init__(self, group, rank):
        self.group, self.rank, self.world_size, self.attempt = group, rank, group.world_size, group.attempt
        self.record = group.folder / "registered"

    def restore(self, whole=False):
        if not self.record.exists():
            return None
        state = load_state(str(self.group.folder / self.record.read_text()))
        if not whole or state.progress is None:
            return state
        return load_state(str(self.group.folder / state.whole)) if state.whole else None

    def commit(self, state):
        self.group.event(self.rank, ("commit",))
        if self.rank == 0:
            self.write(state)
        self.group.barrier.wait()
        self.group.event(self.rank, ("committed",))

    def write(self, state):
        within = "" if state.progress is None else f"-{state.progress.segments}"
        target = self.group.folder / f"epoch-{state.epoch}{within}-{self.attempt}"
        target.mkdir()
        earlier = load_state(str(self.group.folder / self.record.read_text())).whole if self.record.exists() else ""
        (target / "batches").write_text(str(self.group.batches))
        save_state(str(target), replace(state, whole=earlier if within else target.name))
        weights = target / "model.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(whole[: len(whole) // 2])
        self.group.event(self.rank, ("half a commit",))
        weights.write_bytes(whole)
        self.record.write_text(target.name)

    def gather(self, value):
        self.group.event(self.rank, ("gather",))
        self.group.slots[self.rank] = value
        self.group.barrier.wait()
        values = list(self.group.slots)
        self.group.barrier.wait()
        return values

    def combine(self, tensors):
        everyone = self._exchange([tensor.clone() for tensor in tensors])
        for at, tensor in enumerate(tensors):
            tensor.copy_(sum(theirs[at] for theirs in everyone))

    def same(self, tensors):
        tensors = list(tensors)
        first = self._exchange([tensor.clone() for tensor in tensors])[0]
        for tensor, value in zip(tensors, first, strict=True):
            tensor.copy_(value)

    def post(self, done, note):
        pass

    def _exchange(self, value):
        self.group.slots[self.rank] = value
        self.group.barrier.wait()
        values = list(self.group.slots)
        self.group.barrier.wait()
        return values


class WatchedLoader:
    """Each batch that a loader gives is an event."""

    def __init__(self, loader, context):
        self.loader, self.context, self.segments = loader, context, loader.segments

    def sample_ids(self):
        return self.loader.sample_ids()

    def part(self, places, segments):
        return WatchedLoader(self.loader.part(places, segments), self.context)

    def shuffled(self, epoch, segment):
        return self.watch(self.loader.shuffled(epoch, segment), ("trained", epoch, segment))

    def ordered(self, segment):
        return self.watch(self.loader.ordered(segment), ("scored", segment))

    def watch(self, batches, what):
        for number, batch in enumerate(batches):
            self.context.group.event(self.context.rank, ("batch", *what, number))
            yield batch
