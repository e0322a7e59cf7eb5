"""Files of weights that others trained: ``.pt``, ``.pth`` and ``.safetensors``, read as data that runs no code."""

import io
import re
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from easycore_ray.core.models import Normalise
from easycore_ray.core.state_dicts import AdoptedWeights, adopt, unwrap
from easycore_ray.engine.plan import build
from easycore_ray.storage.errors import EasyCoreError

# Largest difference between two normalisations that are the same, rounded otherwise.
_SAME_NORM = 1e-3


def read_weights(where: str, content: bytes, arguments: dict[str, Any], normalise: str) -> nn.Module:
    """The model of a file of weights, in evaluation mode on the CPU.

    Args:
        where: name of the file.
        content: of the file: safetensors, or what ``torch.save`` wrote. Pickled code in it is never run.
        arguments: of the network, see ``models.build_model``.
        normalise: ``file`` for the mean and std that the file brings, else the name of those in ``arguments``.

    Raises:
        EasyCoreError: the file holds no weights, or code, or they do not fit the network, or bring another
            normalisation.
    """
    model = build(arguments)
    network: Any = model.network
    try:
        adopted = adopt(unwrap(_read_tensors(where, content)), arguments["name"], network)
    except ValueError as error:
        raise error if isinstance(error, EasyCoreError) else EasyCoreError(f"{where} {error}") from error
    network.load_state_dict(adopted.tensors)
    model.normalise = _choose_norm(where, adopted, arguments, normalise)
    return model.to(memory_format=torch.channels_last).eval()


def _read_tensors(where: str, content: bytes) -> Any:
    """What the file holds; a reader of tensors alone, which knows no other objects."""
    try:
        if where.endswith(".safetensors"):
            return load(content)
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise EasyCoreError(f"{where} is no safetensors file ({error}); it may be damaged") from error
    except Exception as error:  # of many kinds, by what the bytes happen to be
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code is not None:
            raise EasyCoreError(
                f"{where} holds pickled objects ({code[1]}), not tensors alone, and reading them would run code: "
                "refused; where you trust the file, load it there and save torch.save(model.state_dict(), FILE)"
            ) from error
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EasyCoreError(
            f"{where} is no file of weights ({first[:200]}); pass what torch.save wrote, or a .safetensors file"
        ) from error


def _choose_norm(where: str, adopted: AdoptedWeights, arguments: dict[str, Any], normalise: str) -> Normalise:
    """The normalisation that was asked for, which must be that of the file where it brings one."""
    mean, std = arguments["mean"], arguments["std"]
    if normalise == "file":
        if adopted.norm is None:
            raise EasyCoreError(
                f"{where} brings no mean and std; pass another --normalise: the one it was trained with, or none"
            )
        mean, std = adopted.norm
    elif adopted.norm is not None and not _same_norm(adopted.norm, (mean, std)):
        theirs = " and ".join(" ".join(f"{value:.4g}" for value in values) for values in adopted.norm)
        raise EasyCoreError(
            f"{where} brings a normalisation of its own (mean and std {theirs}), not {normalise}; pass --normalise file"
        )
    if len(mean) != arguments["image_shape"][0]:
        raise EasyCoreError(
            f"{where} normalises {len(mean)} channels, the images have {arguments['image_shape'][0]}; pass its dataset"
        )
    return Normalise(mean, std)


def _same_norm(first: Any, second: Any) -> bool:
    pairs = [pair for one, other in zip(first, second, strict=True) for pair in zip(one, other, strict=False)]
    same_length = all(len(one) == len(other) for one, other in zip(first, second, strict=True))
    return same_length and all(abs(one - other) <= _SAME_NORM for one, other in pairs)
