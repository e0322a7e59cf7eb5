"""Checkpoints: weights as safetensors, described by the manifest; written, read and opened as models."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from easycore_ray.core.models import files_of
from easycore_ray.core.names import is_user_model
from easycore_ray.engine.checkpoint_files import LAST, weights_files
from easycore_ray.engine.plan import build
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import GENERATIONS, Artifact, open_artifact
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.storage.hashes import content_hash

_WHY_MISSING = {
    "best": "no epoch was chosen, since its dataset has no validation split (or it is of an older release); "
    "pass --weights last, or train on a dataset prepared with --val-fraction",
    "averaged": "it was trained without --ema; pass --weights last, or train with --ema 0.995",
}


class Checkpoint(Artifact):
    """A trained model: weights as safetensors, and what builds the network."""

    def load_model(self, weights: str = "last") -> nn.Module:
        """The model on the CPU, in evaluation mode.

        Takes float32 pixels in [0, 1] of shape (batch, channels, height, width), which it normalises itself; gives
        logits of shape (batch, classes).

        Args:
            weights: ``last``, those after the last epoch, ``best``, after the epoch that validation chose, or
                ``averaged`` over the steps.

        Raises:
            EasyCoreError: the weights are damaged or not there.
        """
        _, model = open_checkpoint(self.path, weights)
        return model

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the logits."""
        return self.manifest["classes"]


def write_model(folder: str, weights: dict[str, Tensor], name: str = LAST) -> bytes:
    """Write weights, of whatever shapes, as a safetensors file; returns its content."""
    content = save(dict(sorted(weights.items())))
    paths.write_bytes(paths.join(folder, name), content)
    return content


def read_model(where: str, content: bytes, arguments: dict[str, Any]) -> nn.Module:
    """The model of these weights, in evaluation mode.

    Args:
        where: name of the file, for errors.
        content: of the safetensors file.
        arguments: of the network, see ``models.build_model``.

    Raises:
        EasyCoreError: if weights and configuration do not fit, or a user's model cannot be built here.
    """
    model = build(arguments)
    try:
        model.load_state_dict(load(content))
    except (RuntimeError, ValueError, SafetensorError) as error:
        raise EasyCoreError(f"{where} does not fit the model in its manifest: {str(error).splitlines()[0]}") from error
    return model.to(memory_format=torch.channels_last).eval()


def _refuse_code_inside(folder: str, arguments: dict[str, Any]) -> None:
    """Refuse a checkpoint that brings the code of its model along: what is loaded runs none of its own."""
    name, root = arguments["name"], Path(folder).resolve()
    if paths.is_remote(folder) or not is_user_model(name):
        return
    # The files of one that replaced another lie in a generation, within the folder that is the checkpoint.
    root = root.parent if root.name.startswith(GENERATIONS) else root
    inside = [file for file in files_of(name) if root in Path(file).resolve().parents]
    if inside:
        raise EasyCoreError(
            f"{folder} names the model {name}, whose code {inside[0]} lies in the checkpoint itself; a checkpoint is "
            "data and runs no code of its own: read that code, move it elsewhere, and put it on PYTHONPATH"
        )


def load_initial(model: nn.Module, initial: Artifact) -> None:
    """Give a network the last weights and running statistics of a checkpoint, which it was checked to be like.

    Raises:
        EasyCoreError: the checkpoint is gone or damaged, or another since the run was planned.
    """
    found, trained = open_checkpoint(initial.path)
    if found.fingerprint != initial.fingerprint:
        raise EasyCoreError(
            f"{initial.path} is another checkpoint than when the run began; pass --init-from that one, or another --out"
        )
    model.load_state_dict(trained.state_dict())


def open_checkpoint(path: str, weights: str = "last") -> tuple[Checkpoint, nn.Module]:
    """A finished checkpoint and its model, in evaluation mode on the CPU.

    Args:
        path: its folder.
        weights: ``last``, those after the last epoch, ``best``, after the epoch that validation chose, or ``averaged``.

    Raises:
        EasyCoreError: if it is missing, unfinished or damaged, there are no such weights, or the code of its model lies
            in it.
    """
    artifact = open_artifact(path, "checkpoint")
    files = weights_files(artifact.manifest)
    if weights not in files:
        raise EasyCoreError(f"{artifact.path} has no {weights} weights: {_WHY_MISSING[weights]}")
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in artifact.manifest["model"].items()}
    contents = {name: paths.read_bytes(paths.join(artifact.path, name)) for name in dict.fromkeys(files.values())}
    if content_hash(*contents.values()) != artifact.fingerprint:
        where = paths.join(artifact.path, " and ".join(contents))
        raise EasyCoreError(
            f"{where}: not the fingerprint in the manifest, these are other weights; copy or train them again"
        )
    _refuse_code_inside(artifact.path, arguments)
    name = files[weights]
    model = read_model(paths.join(artifact.path, name), contents[name], arguments)
    return Checkpoint(artifact.path, artifact.manifest), model
