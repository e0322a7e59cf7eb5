"""Common corruptions of images at five severities, made on the fly.

Takes uint8 images and gives uint8 images of the same shape, computed on the CPU. Five of the corruptions of Hendrycks
and Dietterich 2019 (arXiv 1903.12261), with the numbers of their code (github.com/hendrycks/robustness): those of
``make_cifar_c.py`` for images below 64 pixels, those of ``make_imagenet_c.py`` from there on. They are not bit for
bit the files of CIFAR-10-C, whose noise is drawn from another stream.
"""

import io
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from easycore_ray.core.names import SEVERITIES
from easycore_ray.core.seeding import generator

Levels = dict[str, tuple[float, ...]]
_LARGE = 64  # pixels of the shorter side from which the numbers of ImageNet-C hold
_NOISE: Levels = {"small": (0.04, 0.06, 0.08, 0.09, 0.10), "large": (0.08, 0.12, 0.18, 0.26, 0.38)}
_SIGMA: Levels = {"small": (0.4, 0.6, 0.7, 0.8, 1.0), "large": (1.0, 2.0, 3.0, 4.0, 6.0)}
_QUALITY: Levels = {"small": (80, 65, 58, 50, 40), "large": (25, 18, 15, 10, 7)}
_CONTRAST: Levels = {"small": (0.75, 0.5, 0.4, 0.3, 0.15), "large": (0.4, 0.3, 0.2, 0.1, 0.05)}
_BRIGHTER: Levels = {"small": (0.05, 0.1, 0.15, 0.2, 0.3), "large": (0.1, 0.2, 0.3, 0.4, 0.5)}


def corrupt(name: str, severity: int, images: Tensor, sample_ids: Tensor, seed: int) -> Tensor:
    """Images corrupted in one way; an image's result depends on itself, its id and the seed alone.

    Args:
        name: one of ``names.CORRUPTION_NAMES``.
        severity: 1 (mild) .. 5.
        images: uint8 (B, C, H, W) on the CPU; 1 or 3 channels for jpeg_compression.
        sample_ids: int64 (B,), by which noise is drawn: the same at every severity, stronger or weaker.
        seed: of the noise.

    Returns:
        Like ``images``. Fractions of a level are cut off, as in the original.

    Raises:
        ValueError: an unknown name or severity.
    """
    if name not in CORRUPTIONS or severity not in SEVERITIES:
        raise ValueError(f"no corruption {name!r} of severity {severity}; names are {', '.join(CORRUPTIONS)}")
    if len(images) == 0:
        return images
    function, levels = CORRUPTIONS[name]
    level = levels["large" if min(images.shape[2:]) >= _LARGE else "small"][severity - 1]
    if function is _compressed:
        return _compressed(images, level)
    pixels = images.double() / 255
    found = _noisy(pixels, level, sample_ids, seed) if function is _noisy else function(pixels, level)
    # Exact integers must not fall to the level below by rounding.
    return (found.clamp(0, 1) * 255 + 1e-6).floor().to(torch.uint8)


def _noisy(pixels: Tensor, scale: float, sample_ids: Tensor, seed: int) -> Tensor:
    """Plus N(0, scale²), independent of other images."""
    noise = [torch.randn(pixels.shape[1:], generator=generator("corrupt", seed, int(at))) for at in sample_ids]
    return pixels + scale * torch.stack(noise)


def _blurred(pixels: Tensor, sigma: float) -> Tensor:
    """Convolved with a Gaussian, cut at 4 sigma, edges repeated outwards: the defaults of scikit-image."""
    radius = int(4 * sigma + 0.5)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=pixels.dtype) / sigma) ** 2)
    kernel /= kernel.sum()
    planes = pixels.flatten(0, 1)[:, None]
    planes = F.conv2d(F.pad(planes, (radius, radius, 0, 0), mode="replicate"), kernel[None, None, None, :])
    planes = F.conv2d(F.pad(planes, (0, 0, radius, radius), mode="replicate"), kernel[None, None, :, None])
    return planes.reshape(pixels.shape)


def _compressed(images: Tensor, quality: float) -> Tensor:
    """As JPEG of this quality, and back."""
    return torch.stack([_through_jpeg(image, int(quality)) for image in images])


def _through_jpeg(image: Tensor, quality: int) -> Tensor:
    file = io.BytesIO()
    rows = image.permute(1, 2, 0).numpy()
    Image.fromarray(rows.squeeze(2) if rows.shape[2] == 1 else rows).save(file, "JPEG", quality=quality)
    with Image.open(file) as found:
        return torch.from_numpy(np.array(found).reshape(rows.shape)).permute(2, 0, 1)


def _flattened(pixels: Tensor, factor: float) -> Tensor:
    """Nearer to each channel's mean."""
    means = pixels.mean(dim=(2, 3), keepdim=True)
    return (pixels - means) * factor + means


def _brightened(pixels: Tensor, amount: float) -> Tensor:
    """With a higher V of HSV, at the same hue and saturation: all channels times the same, black to gray."""
    value = pixels.amax(dim=1, keepdim=True)
    brighter = (value + amount).clamp(max=1.0)
    return torch.where(value > 0, pixels * (brighter / value.clamp(min=math.ulp(1.0))), brighter)


CORRUPTIONS: dict[str, tuple[Callable[..., Tensor], Levels]] = {
    "gaussian_noise": (_noisy, _NOISE),
    "gaussian_blur": (_blurred, _SIGMA),
    "jpeg_compression": (_compressed, _QUALITY),
    "contrast": (_flattened, _CONTRAST),
    "brightness": (_brightened, _BRIGHTER),
}
"""Function and levels of each corruption, by name."""
