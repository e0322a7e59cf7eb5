"""export(): a trained model as one file for use elsewhere: weights, a PyTorch program, or ONNX.

Every format takes float32 pixels in [0, 1] of shape (batch, channels, height, width) and gives logits (batch,
classes): the normalisation is inside. Programs are compared with the model before the file appears.
"""

import contextlib
import io
import json
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from easycore_ray.config.base import verb
from easycore_ray.config.inspection import ExportConfig
from easycore_ray.core.seeding import generator
from easycore_ray.engine.checkpoint import Checkpoint, open_checkpoint
from easycore_ray.inspection.plans import plan_export
from easycore_ray.runtime.console import say
from easycore_ray.storage import paths
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.storage.provenance import versions

TOLERANCE = 1e-4
"""Largest difference of a logit from the model's own, absolute and relative."""
# Sizes of the batches that programs are compared on; the first is the one they are traced with.
_BATCHES = (2, 1, 5)


@verb(ExportConfig, gives=str, plan=plan_export)
def export(config: ExportConfig) -> str:
    """Write a trained model into one file.

    ``weights`` is a safetensors file: the tensors of the state dict, the normalisation among them, and as metadata
    what builds the network (``model``, JSON), ``classes`` (JSON) and where it comes from. ``pt2`` is loaded with
    ``torch.export.load(file).module()``, ``onnx`` with onnxruntime (input ``pixels``, output ``logits``).

    Returns:
        Path of the file.

    Raises:
        EasyCoreError: no checkpoint, no such weights, a file that is there, a package that is missing, a network that
            cannot be traced, or a program whose logits differ from the model's.
    """
    out = paths.absolute(config.out)
    if paths.is_dir(out):
        raise EasyCoreError(f"{out} is a folder; --out of an export must be a file")
    if paths.exists(out) and not config.overwrite:
        raise EasyCoreError(f"{out} is there already; choose another --out, or pass --overwrite to replace it")
    checkpoint, model = open_checkpoint(config.checkpoint, config.weights)
    # Channels last is for speed here; elsewhere the plain layout is expected.
    model = model.to(memory_format=torch.contiguous_format)
    if config.format == "weights":
        content = _weights(checkpoint, model, config.weights)
    else:
        content = {"pt2": _program, "onnx": _onnx}[config.format](model, checkpoint)
    paths.write_bytes(out, content)
    say(f"export: {config.weights} weights as {config.format}, {len(content) / 2**20:,.1f} MiB → {out}")
    return out


def _weights(checkpoint: Checkpoint, model: nn.Module, which: str) -> bytes:
    """The state dict as safetensors, with metadata."""
    manifest = checkpoint.manifest
    metadata = {
        "model": json.dumps(manifest["model"]),
        "classes": json.dumps(manifest["classes"]),
        "inputs": "float32 pixels in [0, 1], (batch, channels, height, width)",
        "weights": which,
        "checkpoint": checkpoint.fingerprint,
        "easycore-ray": versions().get("easycore-ray", ""),
    }
    return save({name: tensor.contiguous() for name, tensor in sorted(model.state_dict().items())}, metadata)


def _program(model: nn.Module, checkpoint: Checkpoint) -> bytes:
    """A ``torch.export`` program that takes batches of any size."""
    example = _pixels(checkpoint, _BATCHES[0])
    batch = torch.export.Dim("batch", min=1)
    with _traced("torch.export"):
        program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    _compare(model, lambda pixels: loaded(pixels), checkpoint)
    return buffer.getvalue()


def _onnx(model: nn.Module, checkpoint: Checkpoint) -> bytes:
    """An ONNX model that takes batches of any size: ``pixels`` → ``logits``."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (the exporter's own message does not say how to get it)
    except ImportError as error:
        raise EasyCoreError(
            f"format onnx needs the package {error.name}; pip install 'easycore-ray[export]'"
        ) from error
    example = _pixels(checkpoint, _BATCHES[0])
    with _traced("the ONNX exporter"):
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            input_names=["pixels"],
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    _compare(model, lambda pixels: torch.from_numpy(session.run(["logits"], {"pixels": pixels.numpy()})[0]), checkpoint)
    return content


@contextlib.contextmanager
def _traced(by: str) -> Iterator[None]:
    """Say in one line why a network, usually a user's, cannot be traced."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own internals
            yield
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EasyCoreError(f"{by} cannot trace this network: {first}; export --format weights instead") from error


def _pixels(checkpoint: Checkpoint, batch: int) -> Tensor:
    """Random images of the checkpoint's shape, the same every time."""
    shape: Any = checkpoint.manifest["model"]["image_shape"]
    return torch.rand((batch, *shape), generator=generator("export", batch))


@torch.no_grad()
def _compare(model: nn.Module, other: Callable[[Tensor], Tensor], checkpoint: Checkpoint) -> None:
    """Refuse a program whose logits are not the model's, on batches of several sizes."""
    for batch in _BATCHES:
        pixels = _pixels(checkpoint, batch)
        expected, found = model(pixels), other(pixels)
        same = found.shape == expected.shape
        # Written so that what is not a number is refused.
        if not same or not bool(((found - expected).abs() <= TOLERANCE * (1 + expected.abs())).all()):
            apart = f" by up to {float((found - expected).abs().max()):.2g}" if same else ""
            raise EasyCoreError(
                f"the exported program's logits differ from the model's{apart} on a batch of {batch}; "
                "nothing was written, export --format weights instead"
            )
