"""Tar archives that are damaged, cut, zero-filled, or several in one file: read whole or refused, never in part."""

import gzip
import io
import random
import tarfile

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from easycore_ray.data.ingest import readers

pytestmark = pytest.mark.slow

SAMPLES = 12


def png(seed, size=8):
    """A random picture as a PNG file."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def files(first=0, count=SAMPLES, folder=""):
    """(name, content) of the members of so many samples."""
    return [
        (f"{folder}{number:04d}.{suffix}", content)
        for number in range(first, first + count)
        for suffix, content in (("png", png(number)), ("cls", str(number % 3).encode()))
    ]


def pack(members, form=tarfile.GNU_FORMAT, mode="w"):
    """A tar archive of (name, content)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


WHOLE = pack(files())


def read(tmp_path, content, name="train.tar"):
    """What the import learns of a shard: its good keys, its bad samples by key, and how the file is damaged."""
    (tmp_path / name).write_bytes(content)
    rows = pa.concat_tables(readers.check(0, readers.Tar(str(tmp_path), name), None)).to_pylist()
    damaged = [row["problem"] for row in rows if row["row"] == readers.DAMAGED]
    good = [row["key"] for row in rows if not row["problem"]]
    bad = {row["key"]: row["problem"] for row in rows if row["problem"] and row["row"] != readers.DAMAGED}
    return good, bad, damaged


def keys(*numbers):
    return [f"{number:04d}" for number in numbers]


def refused(tmp_path, content, match, name="train.tar"):
    """The file is refused: by name, with what was found."""
    _, _, damaged = read(tmp_path, content, name)
    assert len(damaged) == 1
    assert str(tmp_path / name) in damaged[0]
    assert match in damaged[0]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_whole_archives_of_every_format_are_read(tmp_path, form, mode):
    """Long names and those beyond ASCII are in headers of their own in two of them."""
    folder = "" if form == tarfile.USTAR_FORMAT else "ärger/" + 12 * "long folder/"

    good, bad, damaged = read(tmp_path, pack(files(folder=folder), form, mode))

    assert (good, bad, damaged) == ([folder + key for key in keys(*range(SAMPLES))], {}, [])


@pytest.mark.parametrize("padding", [1024, 10240, 64 * 512, 2048 * 512], ids=str)
def test_usual_paddings_are_read(tmp_path, padding):
    """Two blocks of zeros and nothing more, tar's 10 KiB, and larger blocking factors."""
    bare = WHOLE.rstrip(b"\0")
    bare += bytes(-len(bare) % 512 + 1024)
    content = bare if padding == 1024 else bare + bytes(-len(bare) % padding)

    assert read(tmp_path, content) == (keys(*range(SAMPLES)), {}, [])


def test_an_archive_of_nothing_has_no_samples(tmp_path):
    """As a writer makes it that had nothing left for its last shard."""
    assert read(tmp_path, pack([])) == ([], {}, [])


def test_one_flipped_bit_of_any_header_is_noticed(tmp_path):
    """The checksum covers the header; tarfile takes a wrong one for the end of the archive."""
    rng = random.Random(0)
    headers = [block for block in range(0, len(WHOLE), 512) if WHOLE[block + 257 : block + 262] == b"ustar"]
    assert len(headers) == 2 * SAMPLES
    for header in headers[1:]:
        damaged = bytearray(WHOLE)
        # Of the bits that mean anything: numbers are written with a blank or a zero at their end, either will do.
        damaged[header + rng.randrange(100)] ^= 1 << rng.randrange(8)

        refused(tmp_path, bytes(damaged), f"no tar header at byte {header:,}")


def test_a_cut_anywhere_is_noticed(tmp_path):
    """Between two members as well, and inside the zeros at the end unless all that a whole archive needs is there."""
    end = len(WHOLE.rstrip(b"\0")) // 512 * 512 + 512
    for cut in [*range(0, end + 1024, 333), *range(0, end + 1, 512)]:
        refused(tmp_path, WHOLE[:cut], "it ends")


def test_zeros_in_place_of_data_are_noticed(tmp_path):
    """A download that was interrupted and left a file of the full size."""
    content = pack(files(count=40))
    for start in range(512, len(content) - 16 * 1024, 512):
        filled = content[:start] + bytes(len(content) - start)

        _, bad, damaged = read(tmp_path, filled)
        assert damaged or bad, start
    refused(tmp_path, content[: 20 * 512] + bytes(len(content) - 20 * 512), "bytes of zeros")


def test_a_lone_block_of_zeros_is_noticed(tmp_path):
    """An archive ends with two."""
    refused(tmp_path, WHOLE[:2048] + bytes(512) + WHOLE[2048:], "a single block of zeros")


def test_what_is_behind_the_end_is_noticed(tmp_path):
    """Only zeros, or another archive, may be there."""
    refused(tmp_path, WHOLE + b"rubbish" * 100, "no tar header")
    refused(tmp_path, WHOLE + b"rub", "it ends inside a block")


@pytest.mark.parametrize("pad", [True, False], ids=["padded", "bare"])
@pytest.mark.parametrize("packed", [False, True], ids=["tar", "gzip"])
def test_archives_that_follow_one_another_are_all_read(tmp_path, pad, packed):
    """As ``cat`` joins them; with gzip each is a gzip member of its own."""
    parts = [pack(files(first, 4)) for first in (0, 4, 8)]
    if not pad:
        parts = [part.rstrip(b"\0") for part in parts]
        parts = [part + bytes(-len(part) % 512 + 1024) for part in parts]
    content = b"".join(gzip.compress(part) if packed else part for part in parts)

    assert read(tmp_path, content) == (keys(*range(12)), {}, [])


def test_samples_of_joined_archives_may_have_equal_keys(tmp_path):
    """Every archive counts from 0; where they lie tells them apart."""
    (tmp_path / "0.tar").write_bytes(pack(files(count=2)) + pack(files(count=2)))

    rows = pa.concat_tables(readers.check(0, readers.Tar(str(tmp_path), "0.tar"), None)).to_pylist()

    assert [row["where"] for row in rows] == [
        "0.tar/0000",
        "0.tar/0001",
        "0.tar[archive 2]/0000",
        "0.tar[archive 2]/0001",
    ]
    assert [row["archive"] for row in rows] == [0, 0, 1, 1]


def test_gzip_is_checked_to_its_end(tmp_path):
    """CRC, length, and what is behind the last member."""
    content = gzip.compress(WHOLE)
    for place in range(-8, 0):
        damaged = bytearray(content)
        damaged[place] ^= 1
        _, _, found = read(tmp_path, bytes(damaged))
        assert found, place
    for cut in range(1, len(content), 97):
        assert read(tmp_path, content[:-cut])[2], cut
    refused(tmp_path, content + b"rubbish", "Not a gzipped file")
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 16
    refused(tmp_path, bytes(damaged), "cannot be read")


def test_a_repeated_member_makes_its_sample_bad(tmp_path):
    """Either may be the right one; the other samples are good."""
    members = files(count=3)

    good, bad, damaged = read(tmp_path, pack([*members[:3], members[2], *members[3:]]))

    assert (good, damaged) == (keys(0, 2), [])
    assert bad == {"0001": ".png is there more than once"}


def test_a_sample_that_comes_again_is_bad(tmp_path):
    """As ``tar --append`` leaves it: the second one is reported, the first is what it was."""
    good, bad, damaged = read(tmp_path, pack([*files(count=3), *files(count=1)]))

    assert (good, damaged) == (keys(0, 1, 2), [])
    assert "other members of this name lie further ahead" in bad["0000"]


def test_links_are_no_images(tmp_path):
    """A packed folder of hard links holds its first file only."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in [("0000.png", png(0)), ("0000.cls", b"0"), ("0001.cls", b"0")]:
        (folder / name).write_bytes(content)
    (folder / "0001.png").hardlink_to(folder / "0000.png")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(folder, "")

    good, bad, damaged = read(tmp_path, buffer.getvalue())

    assert (good, damaged) == (keys(0), [])
    assert bad == {"0001": "0001.png is a hard link"}


def test_names_of_other_encodings_are_refused(tmp_path):
    """They could not be written as keys."""
    name = "stra\udcdfe"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as tar:
        tar.addfile(tarfile.TarInfo(f"{name}.png"))

    refused(tmp_path, buffer.getvalue(), r"the name b'stra\xdfe.png' is not UTF-8")


def test_dots_in_keys_get_the_rule_and_the_members(tmp_path):
    """WebDataset's key ends at the first dot, so that all of these are one sample."""
    members = [(f"img.{name}", content) for name, content in files(count=20)]

    _, bad, _ = read(tmp_path, pack(members))

    assert list(bad) == ["img"]
    assert "0 images among its 40 members, .0000.png, .0000.cls" in bad["img"]
    assert "first dot of the file name" in bad["img"]
