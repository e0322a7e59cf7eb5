"""The model that is attacked: a checkpoint of ours, or a file of weights that others trained; no torch until loaded."""

from typing import TYPE_CHECKING, Any

from easycore_ray.config.evaluation import EvaluateConfig
from easycore_ray.core.names import NORMALISATIONS, default_width
from easycore_ray.data.dataset import Dataset
from easycore_ray.evaluation.threats import check_fits
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Artifact, open_artifact
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.storage.hashes import content_hash

if TYPE_CHECKING:
    from torch import nn

WEIGHTS_FILE = "weights_file"
"""Kind, and role among the parents, of a file of weights."""


def open_attacked(config: EvaluateConfig, dataset: Dataset) -> dict[str, Artifact]:
    """What is attacked, by its role among the parents: ``checkpoint`` or ``weights_file``; its weights are not read.

    A file of weights is known by the hash of its bytes; what builds its network is in the manifest made up for it.

    Raises:
        EasyCoreError: it is missing, or made for other images or classes than the dataset's.
    """
    if config.checkpoint is not None:
        checkpoint = open_artifact(config.checkpoint, "checkpoint")
        check_fits(checkpoint, dataset)
        return {"checkpoint": checkpoint}
    assert config.weights_file is not None
    path = paths.absolute(config.weights_file)
    if not paths.exists(path) or paths.is_dir(path):
        state = "is a folder" if paths.is_dir(path) else "does not exist"
        raise EasyCoreError(f"--weights-file {path} {state}; pass a .pt, .pth or .safetensors file")
    manifest = {
        "kind": WEIGHTS_FILE,
        "fingerprint": content_hash(paths.read_bytes(path)),
        "model": _network_of(config, dataset),
    }
    return {WEIGHTS_FILE: Artifact(path, manifest)}


def load_attacked(config: EvaluateConfig, attacked: Artifact) -> "nn.Module":
    """The model, in evaluation mode on the CPU: pixels in [0, 1] (B, C, H, W) to logits (B, num_classes).

    Args:
        config: of the evaluation.
        attacked: from ``open_attacked``.

    Raises:
        EasyCoreError: its weights are damaged, hold code, do not fit the network, or are not there.
    """
    if attacked.kind != WEIGHTS_FILE:
        from easycore_ray.engine.checkpoint import open_checkpoint

        return open_checkpoint(attacked.path, config.weights)[1]
    from easycore_ray.engine.weights_file import read_weights

    content = paths.read_bytes(attacked.path)
    if content_hash(content) != attacked.fingerprint:
        raise EasyCoreError(f"{attacked.path} was changed while it was read; run the evaluation again")
    assert config.normalise is not None
    return read_weights(attacked.path, content, attacked.manifest["model"], config.normalise)


def _network_of(config: EvaluateConfig, dataset: Dataset) -> dict[str, Any]:
    """Arguments of ``core.models.build_model`` for weights of others on a dataset."""
    assert config.model is not None
    assert config.normalise is not None
    mean, std = _norm_of(config.normalise, dataset)
    return {
        "name": config.model,
        "num_classes": dataset.num_classes,
        "image_shape": tuple(dataset.image_shape),
        "width": config.width if config.width is not None else default_width(config.model),
        "mean": mean,
        "std": std,
    }


def _norm_of(name: str, dataset: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std per channel; for ``file`` those that the file replaces."""
    channels = dataset.image_shape[0]
    if name == "dataset":
        return tuple(dataset.mean), tuple(dataset.std)
    mean, std = NORMALISATIONS["none" if name == "file" else name]
    if len(mean) == 1:
        return mean * channels, std * channels
    if len(mean) != channels:
        raise EasyCoreError(
            f"normalise {name} is for images of {len(mean)} channels, {dataset.path} has {channels}; pass --normalise "
            "none, half, dataset or file"
        )
    return mean, std
