"""The state of a training run: what a commit holds, and its files (safetensors and JSON, no pickle)."""

import hashlib
import io
import json
import tempfile
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from easycore_ray.core.sgd import SGD
from easycore_ray.engine.checkpoint_files import AVERAGED, BEST, LAST
from easycore_ray.storage.errors import EasyCoreError

VAL_LOSSES = "val_losses"
"""What a run that records scores carries: after each epoch, each class's mean cross-entropy on the validation split."""


@dataclass
class EpochProgress:
    """How far the epoch under way has come, over all workers: the same on each of them."""

    epoch: int
    """0: the scoring pass before the first one."""
    world_size: int
    """Workers whose shares it is made of; another number of workers cannot go on with it."""
    segments: int = 0
    """Segments done since the last whole epoch, of training and of scoring passes."""
    trained: int = 0
    """Segments trained."""
    scored: int = 0
    """Segments of the exact scoring pass that are done."""
    steps: int = 0
    loss_sum: float = 0.0
    num_correct: int = 0
    num_rows: int = 0
    train_seconds: float = 0.0
    wait_seconds: float = 0.0
    """Of ``train_seconds``, waiting for data."""
    score_seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    """Of scores that are complete already."""


@dataclass
class State:
    """Everything needed to resume at the end of an epoch or, with ``progress``, of a segment.

    ``model`` and ``optimizer`` hold tensors on the CPU by parameter or buffer name, of its shape and dtype.
    """

    epoch: int
    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    history: list[dict[str, float]] = field(default_factory=list)
    """Metrics of every epoch so far."""
    carried: dict[str, Any] = field(default_factory=dict)
    """The caller's: JSON content, e.g. the cumulative list of score parts, and tensors."""
    best_epoch: int = 0
    """The epoch that did best in validation; 0 if none is chosen."""
    best: dict[str, Tensor] = field(default_factory=dict)
    """Weights after ``best_epoch``; those of ``model`` if it is the last one and whole."""
    progress: EpochProgress | None = None
    """Of the epoch after ``epoch``; None at the end of an epoch."""
    whole: str = ""
    """Name of the Ray Train checkpoint of the state after ``epoch``, this one or an earlier one; empty if there is
    none."""
    averaged: dict[str, Tensor] = field(default_factory=dict)
    """Averaged weights, see ``core.averaging``; empty where there are none, or not yet."""

    @property
    def steps(self) -> int:
        """Optimizer steps so far."""
        return self.step + (self.progress.steps if self.progress is not None else 0)


class HaltedError(EasyCoreError):
    """The run diverged: loss or weights were not finite, which no retry mends."""

    def __init__(self, problem: str, state: State | None) -> None:
        super().__init__(problem)
        self.state = state
        """The state after the last whole epoch; None if no epoch was completed."""


def optimizer_tensors(optimizer: SGD, model: nn.Module) -> dict[str, Tensor]:
    """Momentum buffers by parameter name, each of its parameter's shape and dtype, on the CPU."""
    found = {}
    for name, parameter in model.named_parameters():
        momentum = optimizer.momentum_buffers.get(parameter)
        if momentum is not None:
            found[name] = momentum.detach().cpu().contiguous()
    return found


def load_optimizer(optimizer: SGD, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Restore the momentum buffers that ``optimizer_tensors`` returned.

    Args:
        optimizer: of the model, changed in place.
        model: gives the names, shapes and dtypes.
        tensors: by parameter name; parameters that are not named are left alone.
    """
    for name, parameter in model.named_parameters():
        if name in tensors:
            optimizer.momentum_buffers[parameter] = torch.empty_like(parameter.detach()).copy_(tensors[name])


def save_state(folder: str, state: State) -> None:
    """Write a state as safetensors and JSON: nothing that is loaded again can run code."""
    save_file(state.model, Path(folder) / LAST)
    save_file(state.optimizer, Path(folder) / "optimizer.safetensors")
    tensors = {name: value for name, value in state.carried.items() if isinstance(value, Tensor)}
    save_file(tensors, Path(folder) / "carried.safetensors")
    if _keeps_best_apart(state.best_epoch, state.epoch, state.progress is not None):
        save_file(state.best, Path(folder) / BEST)
    if state.averaged:
        save_file(state.averaged, Path(folder) / AVERAGED)
    carried = {name: value for name, value in state.carried.items() if name not in tensors}
    content = {"epoch": state.epoch, "step": state.step, "history": state.history, "carried": carried,
               "best_epoch": state.best_epoch, "whole": state.whole, "sha256": _hashes(folder),
               "progress": None if state.progress is None else asdict(state.progress)}  # fmt: skip
    (Path(folder) / "state.json").write_text(json.dumps(content))


def load_state(folder: str, where: str | None = None) -> State:
    """Read what ``save_state`` wrote; ``where`` it comes from, for errors, if not from there.

    Raises:
        EasyCoreError: a file is missing, damaged, or another than was written.
    """
    try:
        content = json.loads((Path(folder) / "state.json").read_text())
        known = content.get("sha256")  # states of older releases have none
        if known is not None:
            found = _hashes(folder)
            names = sorted(name for name in known | found if known.get(name) != found.get(name))
            if names:
                raise EasyCoreError(f"not as written: {', '.join(names)}")
        return _read_state(folder, content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        why = str(error) or type(error).__name__
        raise EasyCoreError(
            f"the training state in {where or folder} is damaged ({why}); pass --overwrite to begin again"
        ) from error


def _read_state(folder: str, content: dict[str, Any]) -> State:
    model, best_epoch = load_file(Path(folder) / LAST), content.get("best_epoch", 0)
    progress = content.get("progress")
    apart = _keeps_best_apart(best_epoch, content["epoch"], progress is not None)
    return State(
        content["epoch"],
        content["step"],
        model,
        load_file(Path(folder) / "optimizer.safetensors"),
        content["history"],
        content["carried"] | load_file(Path(folder) / "carried.safetensors"),
        best_epoch,
        load_file(Path(folder) / BEST) if apart else model if best_epoch else {},
        None if progress is None else EpochProgress(**progress),
        content.get("whole", ""),
        load_file(Path(folder) / AVERAGED) if (Path(folder) / AVERAGED).exists() else {},
    )


def _keeps_best_apart(best_epoch: int, epoch: int, under_way: bool) -> bool:
    """Whether the weights of the best epoch are others than the model's."""
    return best_epoch != 0 and (best_epoch != epoch or under_way)


def pack_state(state: State) -> bytes:
    """The files of ``save_state`` in one, an uncompressed zip archive, so that a single write commits them."""
    buffer = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        save_state(folder, state)
        with zipfile.ZipFile(buffer, "w") as archive:
            for path in sorted(Path(folder).iterdir()):
                archive.write(path, path.name)
    return buffer.getvalue()


def unpack_state(content: bytes, where: str) -> State:
    """Read what ``pack_state`` gave.

    Args:
        content: all of it.
        where: it comes from, for errors.

    Raises:
        EasyCoreError: it is damaged.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                archive.extractall(folder)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise EasyCoreError(
                f"the training state in {where} is damaged ({error}); pass --overwrite to begin again"
            ) from error
        return load_state(folder, where)


def _hashes(folder: str) -> dict[str, str]:
    """The sha256 (hex) of each file of tensors in a folder, by name."""
    found = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        with path.open("rb") as stream:
            found[path.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found
