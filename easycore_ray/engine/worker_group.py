"""What the workers of a run share: gather, all-reduce, commit; one process or the workers of Ray Train."""

import math
import tempfile
import time
import uuid
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

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

    def restore(self) -> State | None:
        """The last committed state, if there is one."""
        ...

    def commit(self, state: State) -> None:
        """Make a state the one to resume from; called by all workers, at epoch boundaries."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Every worker's value, by rank; called by all workers."""
        ...

    def combine(self, gradients: list[Tensor], count: int) -> int:
        """Add up gradients in place, of any shapes, and row counts over all workers; returns the global count."""
        ...

    def same_weights(self, model: nn.Module) -> None:
        """Give every worker rank 0's weights and buffers."""
        ...

    def post(self, done: float, note: str) -> None:
        """Report how many rows are done."""
        ...


class LocalContext:
    """One worker: this process.

    Args:
        device: ``cpu`` or ``cuda``.
        on_epoch: called with the metrics of every epoch.
        commit_file: where the state after the last epoch is kept, to resume from; nothing is kept if left out.
    """

    rank, world_size = 0, 1

    def __init__(
        self,
        device: str = "cpu",
        on_epoch: Callable[[dict[str, float]], None] | None = None,
        commit_file: str | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.attempt = uuid.uuid4().hex[:12]
        self._on_epoch, self._commit_file = on_epoch, commit_file

    def restore(self) -> State | None:
        """See ``Context``."""
        if self._commit_file is None or not paths.exists(self._commit_file):
            return None
        return unpack_state(paths.read_bytes(self._commit_file), self._commit_file)

    def commit(self, state: State) -> None:
        """See ``Context``: the file appears whole, in the place of the one before."""
        if self._commit_file is not None:
            paths.write_bytes(self._commit_file, pack_state(state))
        if self._on_epoch is not None:
            self._on_epoch(state.history[-1])

    def gather(self, value: Any) -> list[Any]:
        """See ``Context``."""
        return [value]

    def combine(self, gradients: list[Tensor], count: int) -> int:
        """See ``Context``."""
        del gradients
        return count

    def same_weights(self, model: nn.Module) -> None:
        """See ``Context``."""

    def post(self, done: float, note: str) -> None:
        """See ``Context``."""


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
        self._news: tuple[float, str] | None = None
        self._posted = -math.inf

    def restore(self) -> State | None:
        """See ``Context``."""
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as folder:
            return load_state(folder)

    def commit(self, state: State) -> None:
        """See ``Context``: the checkpoint's registration by the Train controller is the commit point."""
        import ray.train

        if self.rank == 0 and self._claim is not None:
            self._claim.check()
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if self.rank == 0:
                save_state(folder, state)
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            # Attempts never share a directory, so a half-uploaded older one cannot mix with this one.
            name = f"epoch-{state.epoch:05d}-{self.attempt}"
            ray.train.report(state.history[-1], checkpoint=checkpoint, checkpoint_dir_name=name)
        # The controller registers a moment later; whoever is lost from here on, this epoch is not done again.
        ray.train.get_all_reported_checkpoints(ray.train.CheckpointConsistencyMode.COMMITTED)
        if self.rank == 0:
            self._send()
            self._progress_actor.post_metrics.remote(state.epoch, state.history[-1])

    def gather(self, value: Any) -> list[Any]:
        """See ``Context``."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def combine(self, gradients: list[Tensor], count: int) -> int:
        """See ``Context``.

        One all-reduce over one flat buffer in a fixed layout. DDP regroups its buckets after the first
        step of a process, so with three or more workers a restarted run would round differently from an
        uninterrupted one.
        """
        if self.world_size == 1:
            return count
        counts = torch.tensor([float(count)], device=self.device)
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients] + [counts])
        torch.distributed.all_reduce(flat)
        pieces = flat[:-1].split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [piece.view(g.shape) for piece, g in zip(pieces, gradients, strict=True)])
        return int(flat[-1])

    def same_weights(self, model: nn.Module) -> None:
        """See ``Context``."""
        if self.world_size > 1:
            for tensor in model.state_dict().values():
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
