"""From a stored image to the pixels a model sees: one view for scores and evaluation, one drawn anew for training.

Takes the bytes of an image file, or stored pixels, and gives uint8 pixels (channels, height, width). Import and all
readers call the same function, so that what is trained on is what was checked.

JPEG files are decoded by libjpeg-turbo through simplejpeg. Images at least twice as large as needed are reduced to
1/2, 3/8, 1/4 or 1/8 while they are decoded. Pillow decodes all other files, and JPEG files that break the standard;
which of the two decodes a file depends on the file alone. Both, and torch's resizing of uint8 images, compute in
integers: the pixels are the same on every processor.
"""

import math
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from easycore_ray.core.hashing import uniform_draws
from easycore_ray.core.seeding import derive_seed
from easycore_ray.data import images
from easycore_ray.data.images import Exif, Pixels

# Recorded with a dataset. Version 1, release 0.2 and before: Pillow alone, as ``images.view`` has it.
VIEW_VERSION = 2

# Reductions by less than half cost more in the decoder than they save in resizing.
_LEAST_FACTOR = 2
_TRIES = 10
_SCALE = (0.08, 1.0)
_RATIO = (3 / 4, 4 / 3)
# Area and ratio of each try, then top, left and flip.
DRAWS_PER_VIEW = 2 * _TRIES + 3
# What brings an image of this EXIF orientation upright: whether axes are exchanged, then rows and columns reversed.
_TURNS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


class Crop(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


class _Jpeg(NamedTuple):
    """A JPEG file that libjpeg-turbo can decode, not decoded yet."""

    content: bytes
    height: int
    """Upright, as is the width."""
    width: int
    channels: int
    turn: tuple[bool, bool, bool] | None


def center_view(
    content: bytes | Pixels,
    image_size: int | None,
    resize_size: int | None = None,
    *,
    exif: Exif = "rotate",
    channels: int | None = None,
) -> Pixels:
    """The view for scores, evaluation and import: shorter side resized, centre square cropped.

    Resized with antialiasing (bilinear), rounded as torchvision's ``Resize`` and ``CenterCrop`` do. Transparency is
    ignored.

    Args:
        content: of an image file, or uint8 pixels (channels, height, width).
        image_size: side of the square in pixels, or None to keep the whole image as it is.
        resize_size: what the shorter side is resized to, at least ``image_size``, which is the default.
        exif: see ``images.decode``.
        channels: 1 or 3; by default 1 for greyscale images and 3 for all others.

    Returns:
        uint8 (channels, height, width), contiguous.

    Raises:
        ValueError: see ``images.decode``.
    """
    source = _open(content, exif, channels)
    height, width = _size(source)
    if image_size is None:
        return _channels_first(_decode(source, height, width, exif))
    shorter, side = min(height, width), resize_size or image_size
    size = side * height // shorter, side * width // shorter
    resized = _resize(_decode(source, side, side, exif), size)
    top, left = (round((length - image_size) / 2) for length in size)
    return _channels_first(resized[top : top + image_size, left : left + image_size])


def random_view(
    content: bytes | Pixels,
    size: tuple[int, int],
    draws: NDArray[np.float64],
    *,
    exif: Exif = "rotate",
    channels: int | None = None,
) -> Pixels:
    """The view for training on photographs: a random part resized to ``size``, mirrored every other time.

    Area and ratio of the part are those of torchvision's ``RandomResizedCrop`` with its defaults, as in the recipes
    for ImageNet. Large images are reduced while they are decoded, as far as the part stays larger than the view.

    Args:
        content: of an image file, or uint8 pixels (channels, height, width).
        size: height and width of the view in pixels.
        draws: float64 (23,) in [0, 1), of ``view_draws``.
        exif: see ``images.decode``.
        channels: see ``center_view``.

    Returns:
        uint8 (channels, height, width), contiguous.

    Raises:
        ValueError: see ``images.decode``.
    """
    source = _open(content, exif, channels)
    full_height, full_width = _size(source)
    crop = random_crop(full_height, full_width, draws)
    least_height = math.ceil(full_height * size[0] / crop.height)
    least_width = math.ceil(full_width * size[1] / crop.width)
    pixels = _decode(source, least_height, least_width, exif)
    height, width = pixels.shape[:2]
    top, bottom = (at * height // full_height for at in (crop.top, crop.top + crop.height))
    left, right = (at * width // full_width for at in (crop.left, crop.left + crop.width))
    view = _resize(pixels[top : max(bottom, top + 1), left : max(right, left + 1)], size)
    return _channels_first(view[:, ::-1] if draws[-1] < 0.5 else view)


def view_draws(seed: int, epoch: int, sample_ids: NDArray[np.integer]) -> NDArray[np.float64]:
    """What ``random_view`` draws for samples in an epoch; depends on seed, epoch and a sample's own id alone.

    Args:
        seed: of the run.
        epoch: from 1.
        sample_ids: integers (n,).

    Returns:
        float64 (n, ``DRAWS_PER_VIEW``) in [0, 1).
    """
    seeds = [derive_seed("view", seed, epoch, number) for number in range(DRAWS_PER_VIEW)]
    return np.stack([uniform_draws(seed, sample_ids) for seed in seeds], axis=1)


def random_crop(height: int, width: int, draws: NDArray[np.float64]) -> Crop:
    """Part of an image with 8 to 100 % of its area and a ratio of 3:4 to 4:3, as ``RandomResizedCrop`` draws it.

    The first of 10 tries that fits; else the largest centred part whose ratio is allowed.

    Args:
        height: of the image in pixels.
        width: likewise.
        draws: float64 (23,) in [0, 1), of ``view_draws``.
    """
    low, high = (math.log(ratio) for ratio in _RATIO)
    for number in range(_TRIES):
        area = height * width * (_SCALE[0] + (_SCALE[1] - _SCALE[0]) * draws[2 * number])
        ratio = math.exp(low + (high - low) * draws[2 * number + 1])
        rows, columns = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < rows <= height and 0 < columns <= width:
            top, left = int(draws[-3] * (height - rows + 1)), int(draws[-2] * (width - columns + 1))
            return Crop(top, left, rows, columns)
    columns = min(width, round(height * _RATIO[1]))
    rows = min(height, round(width / _RATIO[0]))
    return Crop((height - rows) // 2, (width - columns) // 2, rows, columns)


def _open(content: bytes | Pixels, exif: Exif, channels: int | None) -> "_Jpeg | Pixels":
    """A JPEG file of which the header is read, or the pixels (height, width, channels) of anything else."""
    if isinstance(content, bytes):
        return _read_header(content, exif, channels) or _decode_with_pillow(content, exif, channels)
    return content.transpose(1, 2, 0)


def _read_header(content: bytes, exif: Exif, channels: int | None) -> _Jpeg | None:
    """What the header of a JPEG file says; None if Pillow has to look at the file."""
    if not content.startswith(b"\xff\xd8"):
        return None
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(content)
        turn = _TURNS.get(images.stored_orientation(content)) if exif == "rotate" else None
    except (ValueError, OSError, SyntaxError):
        return None
    if colour not in ("Gray", "YCbCr", "RGB"):
        return None
    height, width = (width, height) if turn and turn[0] else (height, width)
    return _Jpeg(content, height, width, channels or (1 if colour == "Gray" else 3), turn)


def _size(source: "_Jpeg | Pixels") -> tuple[int, int]:
    return (source.height, source.width) if isinstance(source, _Jpeg) else source.shape[:2]


def _decode(source: "_Jpeg | Pixels", least_height: int, least_width: int, exif: Exif) -> Pixels:
    """Pixels (height, width, channels), upright; reduced, if at all, to no less than the given size."""
    if not isinstance(source, _Jpeg):
        return source
    if source.turn and source.turn[0]:
        least_height, least_width = least_width, least_height
    try:
        pixels = simplejpeg.decode_jpeg(
            source.content,
            "GRAY" if source.channels == 1 else "RGB",
            min_height=least_height,
            min_width=least_width,
            min_factor=_LEAST_FACTOR,
        )
    except ValueError:
        # A damaged file, or one that breaks the standard in a way that Pillow bears with.
        return _decode_with_pillow(source.content, exif, source.channels)
    return pixels if source.turn is None else _turned(pixels, source.turn)


def _turned(pixels: Pixels, turn: tuple[bool, bool, bool]) -> Pixels:
    exchange, rows, columns = turn
    upright = pixels.transpose(1, 0, 2) if exchange else pixels
    return np.ascontiguousarray(upright[:: -1 if rows else 1, :: -1 if columns else 1])


def _decode_with_pillow(content: bytes, exif: Exif, channels: int | None) -> Pixels:
    return images.view(images.decode(content, exif).image, None, channels).transpose(1, 2, 0)


def _resize(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Bilinear with antialiasing, (height, width, channels) to the same of another size."""
    if pixels.shape[:2] == size:
        return pixels
    # Imported here: what only reads stored pixels need not wait a second for it.
    import torch
    import torch.nn.functional as F

    # torch warns of memory that it may not write; such pixels are copied.
    batch = torch.from_numpy(np.require(pixels, requirements="W")).permute(2, 0, 1).unsqueeze(0)
    return F.interpolate(batch, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()


def _channels_first(pixels: Pixels) -> Pixels:
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
