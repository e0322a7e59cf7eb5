"""From an encoded image to the pixels a model sees.

Takes bytes (or a Pillow image), gives uint8 pixels (channels, height, width) and the sums that means and norms are
made of. A single function, ``view``, turns images into pixels, at import and when encoded shards are read, so that
what is trained on is what was checked.
"""

import io
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

# Up to this size pixels are stored as they are: reading them costs less than decoding.
MAX_RAW_BYTES = 64 * 1024

# No EPS or PDF among them: Pillow hands those to an external interpreter.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
_GREY_MODES = ("1", "L", "LA")
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


class Measured(NamedTuple):
    """A checked image: what is stored of it, and its sums.

    Attributes:
        channels: 1 for greyscale, else 3.
        height: of the view, in pixels.
        width: of the view, in pixels.
        pixels: the view as raw bytes in (channels, height, width) order, or None if too large for raw storage.
        encoded: the file as it came (PNG if it came as pixels), or None if raw storage is certain.
        sums: int64 (3,), sum of pixel values 0..255 per channel; greyscale counts as three equal channels.
        squares: int64 (3,), the same of squared pixel values.
    """

    channels: int
    height: int
    width: int
    pixels: bytes | None
    encoded: bytes | None
    sums: NDArray[np.int64]
    squares: NDArray[np.int64]


def decode(content: bytes) -> Image.Image:
    """The image in the bytes of a file, fully loaded.

    Raises:
        ValueError: the bytes are no whole image of a supported format, or have more than 8 bits per channel.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
        image.load()
    except Exception as error:  # Pillow's decoders raise whatever their parsing meets
        reason = (
            str(error) if str(error) and "BytesIO" not in str(error) else "not a JPEG, PNG, WebP, BMP, GIF, PPM or TIFF"
        )
        raise ValueError(f"corrupt image ({reason})") from error
    if image.mode in _DEEP_MODES:
        raise ValueError(f"image of mode {image.mode}, more than 8 bits per channel; convert it to 8 bits")
    return image


def view(image: Image.Image, image_size: int | None, channels: int | None = None) -> Pixels:
    """The pixels of an image as they are trained on: uint8 (channels, height, width), contiguous.

    With ``image_size`` the shorter side is resized to it (bilinear, antialiased) and the centre square
    cropped, rounded as torchvision's ``Resize`` and ``CenterCrop`` do. Transparency and EXIF orientation are
    ignored.

    Args:
        image: 8 bits per channel.
        image_size: pixels, or None to keep the size.
        channels: 1 or 3; by default 1 for greyscale images and 3 for all others.
    """
    grey = image.mode in _GREY_MODES if channels is None else channels == 1
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    wanted = "L" if grey else "RGB"
    # Converted first: palettes cannot be interpolated.
    image = image if image.mode == wanted else image.convert(wanted)
    values = np.asarray(image if image_size is None else _fit(image, image_size))
    return values[None].copy() if grey else np.ascontiguousarray(values.transpose(2, 0, 1))


def _fit(image: Image.Image, image_size: int) -> Image.Image:
    """Shorter side resized to ``image_size``, centre cropped."""
    width, height = image.size
    shorter = min(width, height)
    width, height = image_size * width // shorter, image_size * height // shorter
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - image_size) / 2), round((height - image_size) / 2)
    return image.crop((left, top, left + image_size, top + image_size))


def measure(source: bytes | Image.Image, image_size: int | None) -> Measured:
    """Check one image and take what the dataset needs of it.

    Returns:
        See ``Measured``: pixels are uint8 in (channels, height, width) order.

    Raises:
        ValueError: see ``decode``.
    """
    image = decode(source) if isinstance(source, bytes) else source
    pixels = view(image, image_size)
    channels, height, width = pixels.shape
    values = pixels.reshape(channels, -1).astype(np.int64)
    # A dataset of small images is stored raw even if its other images turn out to have three channels.
    certainly_raw = 3 * height * width <= MAX_RAW_BYTES
    return Measured(
        channels,
        height,
        width,
        pixels.tobytes() if pixels.nbytes <= MAX_RAW_BYTES else None,
        None if certainly_raw else _encoded(source),
        values.sum(axis=1).repeat(3 // channels),
        (values * values).sum(axis=1).repeat(3 // channels),
    )


def _encoded(source: bytes | Image.Image) -> bytes:
    if isinstance(source, bytes):
        return source
    buffer = io.BytesIO()
    source.save(buffer, format="PNG")
    return buffer.getvalue()
