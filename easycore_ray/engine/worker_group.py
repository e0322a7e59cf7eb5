"""What the workers of a run share: gather, all-reduce, commit; one process or the workers of Ray Train."""

import math
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from easycore_ray.engine.run_history import commit_name
from easycore_ray.engine.state import State, load_state, pack_state, save_state, unpack_state
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Claim

# Workers report their progress at most this often.
_POST_SECONDS = 0.2


class Context(Protocol):
    """The workers a run is on, as seen from one of them."""

    rank: int
    world_size: int
    device: torch.device
    attempt: str
    """Unique for every start of the worker group."""

    def restore(self, whole: bool = False) -> State | None:
        """The last committed state, or the last at the end of an epoch (``whole``); None if there is none."""
        ...

    def commit(self, state: State) -> None:
        """Make a state the one to resume from; called by all workers, at the ends of segments."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Every worker's value, by rank; called by all workers."""
        ...

    def combine(self, tensors: list[Tensor]) -> None:
        """Add up tensors of any shapes over all workers, in place."""
        ...

    def same(self, tensors: Iterable[Tensor]) -> None:
        """Give every worker rank 0's values, in place; as many tensors of equal shapes on each."""
        ...

    def post(self, done: float, note: str) -> None:
        """Report how many rows are done."""
        ...


class LocalContext:
    """One worker: this process.

    Args:
        device: ``cpu`` or ``cuda``.
        on_epoch: called with the metrics of every epoch.
        commit_file: where the state after the last epoch is kept, to resume from, and beside it one within an epoch
            (``segment_file``); nothing is kept if left out.
        check: called before each commit; what it raises ends the run.
    """

    rank, world_size = 0, 1

    def __init__(
        self,
        device: str = "cpu",
        on_epoch: Callable[[dict[str, float]], None] | None = None,
        commit_file: str | None = None,
        check: Callable[[], None] | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.attempt = uuid.uuid4().hex[:12]
        self._on_epoch, self._commit_file, self._check = on_epoch, commit_file, check

    def restore(self, whole: bool = False) -> State | None:
        """See ``Context``."""
        if self._commit_file is None:
            return None
        state, later = _read_file(self._commit_file), _read_file(segment_file(self._commit_file))
        if later is not None and later.epoch == (0 if state is None else state.epoch) and not whole:
            return later
        return state

    def commit(self, state: State) -> None:
        """See ``Context``: a file appears whole, in the place of the one before; states within epochs have another."""
        if self._check is not None:
            self._check()
        if self._commit_file is not None and state.progress is not None:
            paths.write_bytes(segment_file(self._commit_file), pack_state(state))
        elif self._commit_file is not None:
            paths.write_bytes(self._commit_file, pack_state(state))
            paths.delete_file(segment_file(self._commit_file))
        if self._on_epoch is not None and state.progress is None:
            self._on_epoch(state.history[-1])

    def gather(self, value: Any) -> list[Any]:
        """See ``Context``."""
        return [value]

    def combine(self, tensors: list[Tensor]) -> None:
        """See ``Context``."""

    def same(self, tensors: Iterable[Tensor]) -> None:
        """See ``Context``."""

    def post(self, done: float, note: str) -> None:
        """See ``Context``."""


def segment_file(commit_file: str) -> str:
    """Where a run in one process keeps a state within an epoch, beside the one after the last whole epoch."""
    return commit_file.removesuffix(".zip") + ".segments.zip"


def _read_file(file: str) -> State | None:
    return unpack_state(paths.read_bytes(file), file) if paths.exists(file) else None


WHOLE_EPOCHS = "whole_epochs"
"""Metric of each commit by which Ray Train chooses those to keep: epochs done, −1 within an epoch."""


def read_checkpoint(checkpoint: Any, *, whole: bool = False) -> State | None:
    """The state in a Ray Train checkpoint or, with ``whole``, the one at the end of the epoch before it.

    Raises:
        EasyCoreError: it is damaged.
    """
    import ray.train

    with checkpoint.as_directory() as folder:
        state = load_state(folder)
    if not whole or state.progress is None:
        return state
    if not state.whole:
        return None
    beside = f"{checkpoint.path.rpartition('/')[0]}/{state.whole}"
    return read_checkpoint(ray.train.Checkpoint(beside, checkpoint.filesystem))


class RayContext:
    """One of the workers Ray Train started."""

    def __init__(self, progress_actor: Any, claim: Claim | None = None) -> None:
        import ray.train
        import ray.train.collective
        import ray.train.torch

        info = ray.train.get_context()
        self.rank, self.world_size = info.get_world_rank(), info.get_world_size()
        self.device = ray.train.torch.get_device()
        attempt = uuid.uuid4().hex[:12] if self.rank == 0 else None
        self.attempt = ray.train.collective.broadcast_from_rank_zero(attempt)
        self._progress_actor, self._claim = progress_actor, claim
        self._whole = ""
        self._news: tuple[float, str] | None = None
        self._posted = -math.inf

    def restore(self, whole: bool = False) -> State | None:
        """See ``Context``."""
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        state = None if checkpoint is None else read_checkpoint(checkpoint, whole=whole)
        self._whole = "" if state is None else state.whole
        return state

    def commit(self, state: State) -> None:
        """See ``Context``: the checkpoint's registration by the Train controller is the commit point."""
        import ray.train

        if self.rank == 0 and self._claim is not None:
            self._claim.check()
        # Attempts never share a directory, so a half-uploaded older one cannot mix with this one.
        done, metrics = state.progress is None, {WHOLE_EPOCHS: -1.0}
        segments = None if state.progress is None else state.progress.segments
        name = commit_name(state.epoch, segments, self.attempt)
        if done:
            self._whole, metrics = name, {**state.history[-1], WHOLE_EPOCHS: float(state.epoch)}
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if self.rank == 0:
                save_state(folder, replace(state, whole=self._whole))
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=name)
        # The controller registers a moment later; whoever is lost from here on, this is not done again.
        ray.train.get_all_reported_checkpoints(ray.train.CheckpointConsistencyMode.COMMITTED)
        if self.rank == 0:
            self._send()
            if done:
                self._progress_actor.post_metrics.remote(state.epoch, state.history[-1])

    def gather(self, value: Any) -> list[Any]:
        """See ``Context``."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def combine(self, tensors: list[Tensor]) -> None:
        """See ``Context``.

        One all-reduce over one flat buffer in a fixed layout. DDP regroups its buckets after the first
        step of a process, so with three or more workers a restarted run would round differently from an
        uninterrupted one. Nothing of it is read here: the device need not have come this far.
        """
        if self.world_size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        torch.distributed.all_reduce(flat)
        pieces = flat.split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(tensors, [piece.view(t.shape) for piece, t in zip(pieces, tensors, strict=True)])

    def same(self, tensors: Iterable[Tensor]) -> None:
        """See ``Context``."""
        if self.world_size > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor, src=0)

    def post(self, done: float, note: str) -> None:
        """See ``Context``."""
        self._news = (done, note)
        # A call to an actor in every step would cost quick steps dearly; an epoch's last news go with its commit.
        if self.rank == 0 and time.monotonic() - self._posted >= _POST_SECONDS:
            self._send()

    def _send(self) -> None:
        if self._news is not None:
            self._progress_actor.post.remote(*self._news)
            self._news, self._posted = None, time.monotonic()
