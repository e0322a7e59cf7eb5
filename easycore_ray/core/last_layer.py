"""The last linear layer of a network: what it takes (penultimate features), and the softmax of what it gives.

Recorded for rows that pass through the network anyway, in half precision: methods that go by features or by gradients
of the last layer need no more than that.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from easycore_ray.core.attacks import frozen_eval
from easycore_ray.core.losses import at_least_float32

FEATURE_FIELDS = ("features", "probabilities")


def last_linear(model: nn.Module) -> nn.Linear:
    """The linear layer that was defined last.

    Raises:
        ValueError: there is none.
    """
    found = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not found:
        raise ValueError("the network has no linear layer, so that there are no penultimate features")
    return found[-1]


@contextmanager
def record_last_layer(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Inside the block each forward pass replaces what the block is given, by FEATURE_FIELDS.

    ``features`` float16 (B, D) is what the last linear layer takes, ``probabilities`` float16 (B, num_classes) the
    softmax of its logits. Both are detached.
    """
    found: dict[str, Tensor] = {}

    def note(_: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        found["features"] = inputs[0].detach().half()
        found["probabilities"] = at_least_float32(logits.detach()).softmax(dim=-1).half()

    handle = last_linear(model).register_forward_hook(note)
    try:
        yield found
    finally:
        handle.remove()


@contextmanager
def record_softmax(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Inside the block each forward pass replaces ``softmax``, float32 (B, num_classes), detached, of its logits."""
    found: dict[str, Tensor] = {}

    def note(_: nn.Module, __: tuple[Tensor, ...], logits: Tensor) -> None:
        found["softmax"] = at_least_float32(logits.detach()).softmax(dim=-1).float()

    handle = model.register_forward_hook(note)
    try:
        yield found
    finally:
        handle.remove()


RECORDINGS = {"features": record_last_layer, "kd": record_softmax}
"""What an exact pass can record besides scores."""


@torch.no_grad()
def check_last_layer(model: nn.Module, image_shape: tuple[int, ...]) -> tuple[int, int]:
    """Make sure that a network ends in its last linear layer.

    Args:
        model: returns logits; left as it was.
        image_shape: (C, H, W) that it takes.

    Returns:
        Numbers of features and of classes.

    Raises:
        ValueError: its logits are not what that layer gives, or that layer takes more than a row of numbers.
    """
    device = next(model.parameters()).device
    images = torch.linspace(0, 1, 2, device=device).view(2, 1, 1, 1).expand(2, *image_shape)
    with frozen_eval(model), record_last_layer(model) as found:
        logits = model(images)
    if not found or found["features"].dim() != 2:
        raise ValueError("the network's last linear layer takes no penultimate features, (B, D)")
    if not torch.equal(at_least_float32(logits).softmax(dim=-1).half(), found["probabilities"]):
        raise ValueError("the network's logits are not what its last linear layer gives, so that it has no features")
    return found["features"].shape[1], logits.shape[1]
