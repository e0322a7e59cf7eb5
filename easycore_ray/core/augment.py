"""Training-time augmentation of whole batches of small images, on the device that holds them.

Takes uint8 or float batches (B, C, H, W) and gives views of the same type. Crop and flip are one gather with a
computed index (measured faster than windows by ``unfold``, groups by offset, or a loop over images). What is drawn for
a sample depends on the seed, the epoch and its id alone: not on its batch, its worker or its device.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from easycore_ray.core.hashing import uniform_draws
from easycore_ray.core.seeding import derive_seed

# "imagenet" needs the whole photograph, so it is applied where images are decoded: data.views.random_view.
AUGMENTATIONS = ("none", "crop", "crop-flip", "imagenet")


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """The values on the device, of the same shape and dtype; copied asynchronously from pinned memory for a GPU."""
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()  # a GPU fetches by itself from such memory only
    return values.to(device, non_blocking=True)


def to_float(images_uint8: Tensor) -> Tensor:
    """The images as float32 pixels in [0, 1]: value / 255.

    Args:
        images_uint8: uint8, of any shape, usually (B, C, H, W); the result has the same.

    Raises:
        ValueError: the images are not uint8 (floats may already have been divided).
    """
    if images_uint8.dtype != torch.uint8:
        raise ValueError(f"to_float takes uint8 images in 0 .. 255, got {images_uint8.dtype}")
    return images_uint8.to(torch.float32).div_(255.0)


def augment(
    images: Tensor, sample_ids: Tensor, kind: str, *, seed: int, epoch: int, pad: int = 4, reflect: bool = False
) -> Tensor:
    """A random view of each image, drawn for its sample in this epoch.

    "crop" moves each image by up to ``pad`` pixels in each direction and fills with 0; "crop-flip" also mirrors half of
    them left to right. This is the CIFAR recipe of the TRADES and MadryLab code.

    Args:
        images: (B, C, H, W) of any type.
        sample_ids: int64 (B,), on the CPU.
        kind: one of AUGMENTATIONS; "none" gives ``images`` itself, and so does "imagenet", applied before.
        seed: of the run.
        epoch: from 1.
        pad: largest shift in pixels.
        reflect: fill with the image mirrored at its edge instead, the edge itself not repeated, as the code of DeepCore
            and of Bag of Tricks for AT does. The shifts drawn are the same.

    Returns:
        Like ``images``: shape, type and device.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in AUGMENTATIONS:
        raise ValueError(f"augmentation must be one of {', '.join(AUGMENTATIONS)}, got {kind!r}")
    if kind in ("none", "imagenet"):
        return images
    batch, channels, height, width = images.shape
    top, left, flip = to_device(_draw_crops(sample_ids, kind, seed, epoch, pad), images.device).unsqueeze(-1)
    rows = top + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = left + torch.where(flip.bool(), width - 1 - columns, columns)
    if reflect:
        rows, columns, stride = _reflect(rows - pad, height), _reflect(columns - pad, width), width
        filled = images.flatten(2)
    else:
        filled, stride = F.pad(images, (pad, pad, pad, pad)).flatten(2), width + 2 * pad
    index = (rows.unsqueeze(2) * stride + columns.unsqueeze(1)).view(batch, 1, height * width)
    return filled.gather(2, index.expand(-1, channels, -1)).view(batch, channels, height, width)


def _reflect(places: Tensor, size: int) -> Tensor:
    """Places on an axis, of any shape, brought into 0 .. size - 1 by reflection at both ends, as often as it takes."""
    period = max(2 * (size - 1), 1)
    places = places.remainder(period)
    return torch.minimum(places, period - places)


def _draw_crops(sample_ids: Tensor, kind: str, seed: int, epoch: int, pad: int) -> Tensor:
    """Top and left edge of each crop, in 0 .. 2 × pad, and whether it is mirrored: int64 (3, B)."""
    choices = {"top": 2 * pad + 1, "left": 2 * pad + 1, "flip": 2 if kind == "crop-flip" else 1}
    ids = sample_ids.numpy()
    draws = [
        count * torch.from_numpy(uniform_draws(derive_seed("augment", name, seed, epoch), ids))
        for name, count in choices.items()
    ]
    return torch.stack(draws).long()
