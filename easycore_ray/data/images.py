"""Reading and checking encoded images.

Takes bytes (or a Pillow image), gives Pillow images and uint8 pixels (channels, height, width), by Pillow alone. See
``views`` for what is trained on.
"""

import io
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin

Pixels = NDArray[np.uint8]
Exif = Literal["rotate", "ignore"]
Store = Literal["auto", "pixels", "encoded", "resized"]
"""What is kept of an image: see ``PrepareConfig.store``."""
Picture = bytes | Image.Image | NDArray[Any]

# Up to this size pixels are stored as they are: reading them costs less than decoding.
MAX_RAW_BYTES = 64 * 1024

# No EPS or PDF among them: Pillow hands those to an external interpreter.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
GREY_MODES = ("1", "L", "LA", "La")
# All of Pillow's modes of 8 bits per channel; the others have more.
_MODES = (*GREY_MODES, "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
# What brings an image of this EXIF orientation (2..8) upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ROWS_PER_BAND = 256
_START_OF_SCAN = 0xDA


class Decoded(NamedTuple):
    """The first image of a file.

    Attributes:
        image: fully loaded, 8 bits per channel, upright if that was wanted.
        rotated: True if it was turned or mirrored to be upright.
        several: True if the file has more frames or pages.
    """

    image: Image.Image
    rotated: bool = False
    several: bool = False


def read_jpeg_header(content: bytes, exif: Exif) -> Decoded:
    """A JPEG file that is opened and not decoded: its image is what Pillow knows of it, not loaded and not upright.

    Raises:
        ValueError: it is no JPEG file, or has more than 8 bits per channel.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=("JPEG",))
        several = getattr(image, "n_frames", 1) > 1
    except Exception as error:  # as in decode
        raise ValueError(_why_not(content, str(error))) from error
    return Decoded(image, exif == "rotate" and _orientation(image) in _UPRIGHT, several)


def decode(content: bytes, exif: Exif = "rotate") -> Decoded:
    """The image in the bytes of a file, fully loaded.

    TIFF files are always brought upright: there the orientation belongs to the format.

    Args:
        content: of the file.
        exif: ``rotate`` brings the image upright by the orientation in its metadata, ``ignore`` leaves it as stored.

    Raises:
        ValueError: the bytes are no whole image of a supported format, or have more than 8 bits per channel.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
        bits = _bits_per_channel(image, content)
        # Looked up before loading, which turns TIFF files; counting frames afterwards would unload a GIF.
        turned = _orientation(image) in _UPRIGHT if image.format == "TIFF" else False
        several = getattr(image, "n_frames", 1) > 1
        image.load()
    except Exception as error:  # Pillow's decoders raise whatever their parsing meets
        raise ValueError(_why_not(content, str(error))) from error
    return upright(image, exif, bits, turned, several)


def upright(image: Image.Image, exif: Exif, bits: int = 8, turned: bool = False, several: bool = False) -> Decoded:
    """A loaded image, brought upright if that is wanted and not done.

    Raises:
        ValueError: it has more than 8 bits per channel.
    """
    if bits > 8 or image.mode not in _MODES:
        raise ValueError(_too_deep(f"{bits} bits" if bits > 8 else f"mode {image.mode}"))
    if exif == "rotate" and not turned and (how := _UPRIGHT.get(_orientation(image))) is not None:
        return Decoded(image.transpose(how), True, several)
    return Decoded(image, turned, several)


def _bits_per_channel(image: Image.Image, content: bytes) -> int:
    """Bits of a channel in the file; Pillow gives some images of 16 bits as 8, without a word."""
    if image.format == "PNG":
        return content[24]  # in the header chunk, which comes first
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return max(np.atleast_1d(image.tag_v2.get(ExifTags.Base.BitsPerSample, 1)).tolist())
    if image.format == "PPM" and isinstance(image, ImageFile.ImageFile):
        arguments = image.tile[0].args
        largest = arguments[1] if isinstance(arguments, tuple) and len(arguments) == 2 else 255
        return int(largest).bit_length()
    return 8


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1..8; 1 as well if the metadata cannot be read."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # metadata is no reason to refuse an image
        return 1


def stored_orientation(content: bytes) -> int:
    """EXIF orientation of a JPEG file, 1..8; the image itself is not decoded.

    Raises:
        OSError, SyntaxError, ValueError: what Pillow meets in a damaged header.
    """
    header = content[: _header_bytes(content)]
    if b"Exif" not in header and b"rientation" not in header:
        return 1  # neither EXIF nor XMP says anything; Pillow takes a tenth of the time of decoding to find out
    return _orientation(Image.open(io.BytesIO(content), formats=("JPEG",)))


def _header_bytes(content: bytes) -> int:
    """Where the first scan of a JPEG file begins; all of the file if its segments do not follow each other."""
    return next((at for at, marker in _segments(content) if marker == _START_OF_SCAN), len(content))


def _too_deep(found: str) -> str:
    return f"image of {found}, more than 8 bits per channel; convert it to 8 bits"


def _why_not(content: bytes, message: str) -> str:
    """What is wrong with a file that Pillow does not open."""
    if content.startswith(b"\xff\xd8") and (bits := _jpeg_bits(content)) > 8:
        return _too_deep(f"{bits} bits")
    reason = message if message and "BytesIO" not in message else "not a JPEG, PNG, WebP, BMP, GIF, PPM or TIFF"
    return f"corrupt image ({reason})"


def _jpeg_bits(content: bytes) -> int:
    """Sample precision in the frame header of a JPEG file; 8 if there is none."""
    for at, marker in _segments(content):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return content[at + 4]
    return 8


def _segments(content: bytes) -> Iterator[tuple[int, int]]:
    """Where each segment of a JPEG file begins, and its marker, up to a gap between them (ITU-T T.81, B.1.1)."""
    at = 2
    while at + 4 < len(content) and content[at] == 0xFF:
        yield at, content[at + 1]
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")


def take_over(image: Any) -> Image.Image | NDArray[Any]:
    """A picture that a library gives, in a form that ``measure`` takes and that needs no file any more.

    Palette and metadata of Pillow's images are kept; all else becomes an array of whatever shape it has.

    Raises:
        ValueError: it has more than 8 bits per channel.
    """
    if not isinstance(image, Image.Image):
        return np.asarray(image)
    # What is not loaded yet says how its file stores a channel, e.g. RGB;16B, where its mode says RGB.
    stored = [str(tile.args) for tile in getattr(image, "tile", [])]
    if image.mode not in _MODES or any(";16" in arguments for arguments in stored):
        raise ValueError(_too_deep(f"mode {image.mode}, stored as {stored[0]}" if stored else f"mode {image.mode}"))
    return image.copy()


def view(image: Image.Image, image_size: int | None, channels: int | None = None) -> Pixels:
    """The pixels of an image as they are trained on: uint8 (channels, height, width), contiguous.

    With ``image_size`` the shorter side is resized to it (bilinear, antialiased) and the centre square
    cropped, rounded as torchvision's ``Resize`` and ``CenterCrop`` do. Transparency is ignored.

    Args:
        image: 8 bits per channel.
        image_size: pixels, or None to keep the size.
        channels: 1 or 3; by default 1 for greyscale images and 3 for all others.
    """
    grey = image.mode in GREY_MODES if channels is None else channels == 1
    wanted = "L" if grey else "RGB"
    if image_size is not None:
        # Converted first: palettes cannot be interpolated.
        image = _fit(to_mode(image, wanted), image_size)
    width, height = image.size
    pixels = np.empty((1 if grey else 3, height, width), np.uint8)
    # By bands, so that no second copy of a large image is in memory.
    for top in range(0, height, _ROWS_PER_BAND):
        bottom = min(height, top + _ROWS_PER_BAND)
        band = image if bottom - top == height else image.crop((0, top, width, bottom))
        values = np.asarray(to_mode(band, wanted))
        pixels[:, top:bottom] = values[None] if grey else values.transpose(2, 0, 1)
    return pixels


def to_mode(image: Image.Image, wanted: str) -> Image.Image:
    """An image in the mode L or RGB; transparency is ignored."""
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == wanted else image.convert(wanted)


def _fit(image: Image.Image, image_size: int) -> Image.Image:
    """Shorter side resized to ``image_size``, centre cropped."""
    width, height = image.size
    shorter = min(width, height)
    width, height = image_size * width // shorter, image_size * height // shorter
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - image_size) / 2), round((height - image_size) / 2)
    return image.crop((left, top, left + image_size, top + image_size))
