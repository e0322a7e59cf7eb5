"""Measuring an image at import: whether it is whole, what is stored of it, and the sums that means are made of.

The pixels that are measured are those that readers will give: of what is stored, by the same function
(``views.center_view``).

Imported by Ray workers, so no torch in here; it is loaded once an image has to be resized.
"""

import hashlib
import io
import math
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from easycore_ray.data import images, views

StoredAs = Literal["auto", "pixels", "encoded", "resized"]
"""What is kept of an image: see ``PrepareConfig.store``."""

# Resized images keep a margin around what a view crops: 256 pixels for 224, as is usual for ImageNet.
_RESIZED_SIDE = 8 / 7
_RESIZED_QUALITY = 95


class Viewing(NamedTuple):
    """How an image becomes the pixels that are trained on, and what is stored of it.

    Attributes:
        image_size: see ``views.center_view``.
        exif: see ``images.decode``.
        store: what will be stored; ``resized`` needs ``image_size``.
        resize_size: see ``views.center_view``.
    """

    image_size: int | None = None
    exif: images.Exif = "rotate"
    store: StoredAs = "auto"
    resize_size: int | None = None


DEFAULT_VIEWING = Viewing()


class Measured(NamedTuple):
    """A checked image: what is stored of it, and its sums.

    Attributes:
        channels: 1 for greyscale, else 3.
        height: of the view, in pixels.
        width: of the view, in pixels.
        pixels: the view as raw bytes in (channels, height, width) order, or None if it will not be stored raw.
        encoded: the file to store (as it came, PNG if it came as pixels, or a smaller JPEG), or None if raw storage
            is certain.
        content: hash by which copies are found, 16 bytes: of the view's pixels where they are few or stored, else of
            the file as it came.
        sums: int64 (3,), sum of pixel values 0..255 per channel; greyscale counts as three equal channels.
        squares: int64 (3,), the same of squared pixel values.
        rotated: see ``images.Decoded``.
        several: see ``images.Decoded``.
    """

    channels: int
    height: int
    width: int
    pixels: bytes | None
    encoded: bytes | None
    content: bytes
    sums: NDArray[np.int64]
    squares: NDArray[np.int64]
    rotated: bool
    several: bool


def measure(source: images.Picture, viewing: Viewing = DEFAULT_VIEWING) -> Measured:
    """Check one image and take what the dataset needs of it.

    Args:
        source: content of a file, an image of Pillow, or pixels uint8 (height, width) or (height, width, 3).
        viewing: what is wanted.

    Returns:
        See ``Measured``: pixels are uint8 in (channels, height, width) order.

    Raises:
        ValueError: see ``images.decode``; a PNG file is refused as well if one of its checksums is wrong.
    """
    found = _open(source, viewing.exif)
    smaller = _shrink(source, found.image, viewing) if viewing.store == "resized" else None
    pixels = _view(source if smaller is None else smaller, found.image, viewing)
    channels, height, width = pixels.shape
    store, values = viewing.store, pixels.reshape(channels, -1)
    # A dataset of small images is stored raw even if its other images turn out to have three channels.
    certainly_raw = store == "pixels" or (store == "auto" and 3 * height * width <= images.MAX_RAW_BYTES)
    maybe_raw = store == "pixels" or (store == "auto" and pixels.nbytes <= images.MAX_RAW_BYTES)
    by_pixels = maybe_raw or pixels.nbytes <= images.MAX_RAW_BYTES
    came = b"" if certainly_raw else source if isinstance(source, bytes) else _png(found.image)
    return Measured(
        channels,
        height,
        width,
        pixels.tobytes() if maybe_raw else None,
        None if certainly_raw else smaller or came,
        hashlib.blake2b(pixels.data if by_pixels else came, digest_size=16).digest(),
        values.sum(axis=1, dtype=np.int64).repeat(3 // channels),
        # Summed without an array of squares, which would be eight times the image.
        np.einsum("cn,cn->c", values, values, dtype=np.int64).repeat(3 // channels),
        found.rotated,
        found.several,
    )


def _open(source: images.Picture, exif: images.Exif) -> images.Decoded:
    """The image, checked as far as that takes no decoding of JPEG files, which ``_view`` does."""
    if not isinstance(source, bytes):
        return _from_memory(source, exif)
    return images.read_jpeg_header(source, exif) if _is_jpeg(source) else _check_file(source, exif)


def _is_jpeg(source: images.Picture) -> bool:
    return isinstance(source, bytes) and source.startswith(b"\xff\xd8")


def _view(source: images.Picture, image: Image.Image, viewing: Viewing) -> images.Pixels:
    """The pixels that readers will give: of a JPEG file, or of an image that is decoded."""
    content = source if isinstance(source, bytes) and _is_jpeg(source) else images.view(image, None)
    return views.center_view(content, viewing.image_size, viewing.resize_size, exif=viewing.exif)


def _shrink(source: images.Picture, image: Image.Image, viewing: Viewing) -> bytes | None:
    """A JPEG whose shorter side is 8/7 of the image size; None where the image, or its file, is no larger."""
    assert viewing.image_size is not None
    side = max(math.ceil(viewing.image_size * _RESIZED_SIDE), viewing.resize_size or 0)
    if min(image.size) <= side:
        return None
    if isinstance(source, bytes) and _is_jpeg(source):
        image = images.decode(source, viewing.exif).image
    width, height = image.size
    shorter = min(image.size)
    image = images.to_mode(image, "L" if image.mode in images.GREY_MODES else "RGB")
    image = image.resize((side * width // shorter, side * height // shorter), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=_RESIZED_QUALITY)
    found = buffer.getvalue()
    return found if not isinstance(source, bytes) or len(found) < len(source) else None


def _check_file(content: bytes, exif: images.Exif) -> images.Decoded:
    found = images.decode(content, exif)
    if content.startswith(b"\x89PNG"):
        try:
            # Loading checks the header chunks only.
            Image.open(io.BytesIO(content), formats=("PNG",)).verify()
        except Exception as error:
            raise ValueError(f"corrupt image ({error})") from error
    return found


def _from_memory(values: Image.Image | NDArray[Any], exif: images.Exif) -> images.Decoded:
    if isinstance(values, Image.Image):
        return images.upright(values, exif)
    if values.dtype != np.uint8:
        raise ValueError(f"image of dtype {values.dtype}; allowed is uint8, 8 bits per channel; convert it to 8 bits")
    if values.ndim != 2 and not (values.ndim == 3 and values.shape[2] == 3):
        raise ValueError(f"image of shape {values.shape}; allowed are (height, width) and (height, width, 3)")
    return images.Decoded(Image.fromarray(values))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    # PNG has no CMYK, and metadata would turn the image a second time.
    image = image if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA") else image.convert("RGB")
    image.save(buffer, format="PNG", exif=None)
    return buffer.getvalue()
