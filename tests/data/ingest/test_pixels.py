"""From files of every kind to pixels: depth, orientation, palettes, frames, checksums, and the memory it takes."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageOps

from easycore_ray.data import images, shards
from easycore_ray.data.ingest import builtin_sources, readers
from easycore_ray.data.ingest.measuring import Viewing, measure
from easycore_ray.data.ingest.remarks import count_remarks, describe_remarks

ORIENTATION = 0x0112


def picture(width=12, height=8, seed=0):
    """A random RGB image."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def saved(image, form, **options):
    """The image as a file of this format."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def turned(orientation, form="JPEG", image=None):
    """A file whose metadata name this orientation."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return saved(image or picture(), form, exif=exif.tobytes())


def deep_png(colour_type, channels, bits=16):
    """A PNG file of 16 bits per channel, 4 x 4 pixels; colour types are those of the PNG specification."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + bytes(range(4 * channels * bits // 8)) for _ in range(4))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, bits, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def deep_tiff(channels):
    """An uncompressed TIFF file of 16 bits per channel, 4 x 4 pixels, little endian."""
    bits_at, pixels_at = 8, 8 + 2 * channels
    size = 4 * 4 * channels * 2
    tags = [
        (256, 3, 1, 4), (257, 3, 1, 4), (258, 3, channels, bits_at if channels > 2 else 16), (259, 3, 1, 1),
        (262, 3, 1, 2 if channels > 1 else 1), (273, 4, 1, pixels_at), (277, 3, 1, channels), (278, 3, 1, 4),
        (279, 4, 1, size),
    ]  # fmt: skip
    table = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return struct.pack("<2sHI", b"II", 42, pixels_at + size) + struct.pack("<H", 16) * channels + bytes(size) + table


def deep_jpeg():
    """The header of a JPEG file of 12 bits."""
    content = bytearray(saved(picture(), "JPEG"))
    frame = content.index(b"\xff\xc0")
    content[frame + 4] = 12
    return bytes(content)


DEEP = {
    "png grey": deep_png(0, 1),
    "png grey and alpha": deep_png(4, 2),
    "png rgb": deep_png(2, 3),
    "png rgba": deep_png(6, 4),
    "tiff grey": deep_tiff(1),
    "tiff rgb": deep_tiff(3),
    "tiff 32 bits": saved(Image.new("I", (4, 4)), "TIFF"),
    "tiff floats": saved(Image.new("F", (4, 4)), "TIFF"),
    "jpeg 12 bits": deep_jpeg(),
    "ppm rgb": b"P6 4 4 65535\n" + bytes(96),
    "ppm plain": b"P3 2 1 1023\n0 1023 0 5 5 5\n",
    "pgm": b"P5 4 4 4095\n" + bytes(32),
    "pfm": b"Pf 4 4 -1.0\n" + bytes(64),
}


class TestDepth:
    @pytest.mark.parametrize("kind", DEEP)
    def test_more_than_8_bits_are_refused(self, kind):
        """Pillow would clip, or drop the lower half without a word."""
        with pytest.raises(ValueError, match="more than 8 bits per channel; convert"):
            measure(DEEP[kind])

    @pytest.mark.parametrize("bits", [1, 2, 4, 8])
    def test_fewer_bits_are_read(self, bits):
        """Scaled to 0..255."""
        assert measure(deep_png(0, 1, bits)).channels == 1

    @pytest.mark.parametrize("form", ["PPM", "TIFF", "BMP", "WEBP", "GIF"])
    def test_8_bits_of_other_formats_are_read(self, form):
        """As ever."""
        assert measure(saved(picture(), form)).width == 12

    @pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
    def test_arrays_of_other_dtypes_are_refused(self, dtype):
        """What a built-in source gives is checked like a file."""
        piece = readers.Arrays("made", 0, (np.zeros((4, 4), np.uint8), np.zeros((4, 4), dtype)), (0, 0))

        [table] = readers.check(0, piece, None)

        assert "8 bits per channel" in table["problem"].to_pylist()[1]
        assert table["problem"].to_pylist()[0] is None

    def test_arrays_of_other_shapes_are_refused(self):
        """Channels come last, and there are three."""
        with pytest.raises(ValueError, match=r"shape \(3, 4, 4\)"):
            measure(np.zeros((3, 4, 4), np.uint8))

    def test_images_of_libraries_are_refused_by_mode_and_by_file(self, tmp_path):
        """A file of 16 bits that is not loaded yet has the mode RGB."""
        (tmp_path / "deep.png").write_bytes(DEEP["png rgb"])
        for image in (Image.open(tmp_path / "deep.png"), Image.new("I;16", (4, 4)), Image.new("F", (4, 4))):
            with pytest.raises(ValueError, match="more than 8 bits"):
                images.take_over(image)


class TestPalettes:
    def test_torchvision_pictures_keep_their_palette(self, monkeypatch):
        """Indices into a palette are no grey values."""
        colours = picture().quantize(16)

        class Pets:
            classes = ("cat",)

            def __init__(self, root, download):
                assert download

            def __getitem__(self, row):
                return [(colours, 0), (np.asarray(picture()), 0)][row]

        monkeypatch.setattr(builtin_sources, "_dataset_class", lambda _: (Pets, {"train": {}}))
        [piece] = builtin_sources.torchvision_source("Pets").pieces["train"]

        [table] = readers.check(0, piece, ["cat"])

        expected = [np.asarray(colours.convert("RGB")), np.asarray(picture())]
        assert table["pixels"].to_pylist() == [pixels.transpose(2, 0, 1).tobytes() for pixels in expected]

    @pytest.mark.parametrize("mode", ["P", "CMYK", "RGBA", "LA"])
    def test_large_pictures_in_memory_are_stored_as_png(self, mode):
        """What is decoded later is what was measured."""
        image = picture(200, 200).convert("RGB" if mode == "P" else mode)
        image = image.quantize(64) if mode == "P" else image

        found = measure(image)

        stored = images.view(images.decode(found.encoded).image, None, found.channels)
        assert (stored == images.view(image, None)).all()


class TestOrientation:
    @pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_images_are_brought_upright(self, form, orientation):
        """As Pillow's own function does it."""
        content = turned(orientation, form)

        found = images.decode(content)

        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
        assert (np.asarray(found.image) == np.asarray(expected)).all()
        assert found.image.size == ((12, 8) if orientation < 5 else (8, 12))
        assert found.rotated == (orientation > 1)

    @pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
    def test_the_orientation_can_be_ignored(self, form):
        """Pixels as they are stored."""
        found = images.decode(turned(6, form), "ignore")

        plain = Image.open(io.BytesIO(turned(1, form)))
        assert (np.asarray(found.image) == np.asarray(plain)).all()
        assert not found.rotated

    @pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
    def test_unreadable_metadata_are_no_orientation(self):
        """The pixels are whole."""
        content = saved(picture(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\xff\xff rubbish")

        assert not images.decode(content).rotated

    def test_sums_and_size_are_those_of_the_upright_image(self):
        """The import works on what is trained on."""
        found = measure(turned(6, "PNG"))

        upright = np.asarray(picture().transpose(Image.Transpose.ROTATE_270)).transpose(2, 0, 1)
        assert (found.height, found.width, found.rotated) == (12, 8, True)
        assert found.pixels == upright.tobytes()
        assert found.sums.tolist() == upright.sum((1, 2), dtype=int).tolist()

    def test_pictures_of_libraries_are_brought_upright(self):
        """Their metadata come with them."""
        image = images.take_over(Image.open(io.BytesIO(turned(6))))

        assert measure(image).rotated
        assert not measure(image, Viewing(exif="ignore")).rotated

    @pytest.mark.parametrize("exif", ["rotate", "ignore"])
    def test_encoded_images_are_turned_when_they_are_read(self, exif):
        """By the setting of their dataset, in the one function that decodes."""
        image = picture(200, 160)
        shape = (3, 200, 160) if exif == "rotate" else (3, 160, 200)
        layout = shards.Layout("encoded", shape, None, exif)

        [found] = shards.pixels(pa.table({"image": [turned(8, "PNG", image)]}), layout)

        expected = image.transpose(Image.Transpose.ROTATE_90) if exif == "rotate" else image
        assert (found == np.asarray(expected).transpose(2, 0, 1)).all()


class TestFrames:
    @pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
    def test_the_first_of_several_frames_is_taken_and_said(self, form):
        """Animations and pages."""
        frames = [picture(seed=seed) for seed in range(3)]
        options = {"lossless": True} if form == "WEBP" else {"quality": 95} if form == "MPO" else {}

        several = saved(frames[0], form, save_all=True, append_images=frames[1:], **options)
        single = saved(frames[0], "JPEG" if form == "MPO" else form, **options)

        assert images.decode(several).several
        assert not images.decode(single).several
        first = images.view(images.decode(several).image, None)
        assert (first == images.view(images.decode(single).image, None)).all()

    def test_what_was_done_is_counted_and_said(self, tmp_path):
        """Of the samples that are imported."""
        files = {"a.jpg": turned(6), "b.jpg": turned(1), "c.gif": saved(picture(), "GIF", save_all=True,
                 append_images=[picture(seed=1)])}  # fmt: skip
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
        piece = readers.Files(str(tmp_path), tuple((name, "x") for name in files))

        counts = count_remarks(pa.concat_tables(readers.check(0, piece, ["x"])))

        assert counts == {"rotated": 1, "several_frames": 1, "joined_archives": 0}
        assert describe_remarks(counts) == [
            "1 turned upright by EXIF", "1 with several frames or pages, of which the first was taken",
        ]  # fmt: skip


def test_every_bit_of_a_png_file_counts():
    """A flipped one is noticed by the checksums, those of the pixels too, or lies behind all that matters."""
    content = saved(picture(), "PNG")
    whole = measure(content).pixels
    unnoticed = 0
    for bit in np.random.default_rng(0).choice(8 * len(content), 400, replace=False):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << (bit % 8)
        piece = readers.Arrays("made", 0, (bytes(damaged),), (0,))
        [row] = next(readers.check(0, piece, None)).to_pylist()
        assert row["problem"] or row["pixels"] == whole
        unnoticed += not row["problem"]
    assert unnoticed < 40  # length and checksum of the empty last chunk


_MEMORY = """
import sys
from PIL import Image
from easycore_ray.data.ingest.measuring import measure

content = open(sys.argv[1], "rb").read()
def peak():
    [line] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024

measure(Image.new("RGB", (9, 9)))
before = peak()
found = measure(content)
print((peak() - before) / (found.height * found.width * 3), found.rotated)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak of a process there")
@pytest.mark.parametrize(
    ("mode", "megapixels", "form", "options"),
    [
        ("RGB", 36, "JPEG", {}),
        ("RGB", 12, "JPEG", {"progressive": True}),
        ("CMYK", 12, "JPEG", {}),
        ("RGBA", 12, "PNG", {"compress_level": 1}),
        ("P", 12, "PNG", {"compress_level": 1}),
        ("L", 12, "PNG", {"compress_level": 1}),
    ],
    ids=str,
)
def test_checking_an_image_takes_little_more_than_its_pixels(tmp_path, mode, megapixels, form, options):
    """At most 4 x width x height x 3 bytes beyond the pixels, in a process of its own; turned, which is the worst."""
    side = int((megapixels * 1e6) ** 0.5)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, len(Image.new(mode, (1, 1)).getbands())), np.uint8)
    tile = Image.frombytes(mode, (64, 64), noise.tobytes())
    image = Image.new(mode, (side, side))
    for left in range(0, side, 64):
        image.paste(tile, (left, 0))
    for top in range(64, side, 64):
        image.paste(image.crop((0, 0, side, 64)), (0, top))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image.save(tmp_path / "image", form, exif=exif.tobytes(), **options)

    done = subprocess.run(
        [sys.executable, "-c", _MEMORY, str(tmp_path / "image")], capture_output=True, text=True, check=True
    )

    multiple, rotated = done.stdout.split()
    print(f"{mode} {form} {options}: {float(multiple):.2f} x its pixels")
    assert float(multiple) <= 4 + 1
    assert rotated == "True"
