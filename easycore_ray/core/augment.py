"""Training-time augmentation of whole batches of small images, on the device that holds them.

Takes uint8 or float batches (B, C, H, W) and gives views of the same type. Crop and flip are one gather with a
computed index (measured faster than windows by ``unfold``, groups by offset, or a loop over images), and the random
draws come from a CPU generator, so that every device sees the same views.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

AUGMENTATIONS = ("none", "crop", "crop-flip")


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


def augment(images: Tensor, kind: str, *, generator: torch.Generator, pad: int = 4) -> Tensor:
    """A random view of each image, drawn independently per image.

    "crop" moves each image by up to ``pad`` pixels in each direction and fills with 0; "crop-flip" also
    mirrors half of them left to right. This is the CIFAR recipe of the TRADES and MadryLab code (zero, not
    reflect, padding).

    Args:
        images: (B, C, H, W) of any type.
        kind: one of AUGMENTATIONS; "none" gives ``images`` itself and draws nothing.
        generator: a CPU generator.
        pad: largest shift in pixels.

    Returns:
        Like ``images``: shape, type and device.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in AUGMENTATIONS:
        raise ValueError(f"augmentation must be one of {', '.join(AUGMENTATIONS)}, got {kind!r}")
    if kind == "none":
        return images
    batch, channels, height, width = images.shape
    shifts = torch.randint(0, 2 * pad + 1, (2, batch), generator=generator)
    flips = torch.randint(0, 2, (1, batch), generator=generator)
    if kind == "crop":
        flips = torch.zeros_like(flips)
    top, left, flip = torch.cat([shifts, flips]).to(images.device).unsqueeze(-1)
    rows = top + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = left + torch.where(flip.bool(), width - 1 - columns, columns)
    index = (rows.unsqueeze(2) * (width + 2 * pad) + columns.unsqueeze(1)).view(batch, 1, height * width)
    padded = F.pad(images, (pad, pad, pad, pad)).flatten(2)
    return padded.gather(2, index.expand(-1, channels, -1)).view(batch, channels, height, width)
