"""Views of stored images: torchvision's geometry and numbers, the same for import, readers and training."""

import io
import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import RandomResizedCrop, v2

from easycore_ray.data import images, shards, views
from easycore_ray.storage.errors import EasyCoreError


def photograph(width, height, *, mode="RGB", seed=0):
    """A smooth picture, so that neighbouring pixels say something about each other."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(noise).filter(ImageFilter.GaussianBlur(3)).convert(mode)


def stored(image, form="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def decoded(content):
    """Pixels of a file (channels, height, width), by Pillow."""
    image = Image.open(io.BytesIO(content))
    return np.asarray(image).reshape(image.height, image.width, -1).transpose(2, 0, 1)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize(("width", "height"), [(75, 50), (50, 75), (64, 64), (33, 47), (40, 300), (90, 61)])
@pytest.mark.parametrize(("resize", "crop"), [(None, 32), (37, 32), (32, 31)])
def test_centre_view_is_torchvisions_resize_and_crop(form, width, height, resize, crop):
    """Its size, its place and its pixels, whichever side is shorter."""
    content = stored(photograph(width, height), form)
    expected = v2.Compose([v2.Resize(resize or crop, antialias=True), v2.CenterCrop(crop)])(
        torch.from_numpy(decoded(content).copy())
    )
    if min(width, height) >= 2 * (resize or crop) and form == "JPEG":
        pytest.skip("reduced while it is decoded; see below")
    assert np.array_equal(views.center_view(content, crop, resize), expected.numpy())


def test_large_jpegs_reduced_while_decoded_look_the_same():
    """A mean difference of a level or two from the whole image resized, in every orientation of the paper."""
    for size in ((400, 290), (290, 400), (1200, 900)):
        content = stored(photograph(*size), quality=95)
        found = views.center_view(content, 64, 73).astype(int)
        whole = views.center_view(decoded(content), 64, 73).astype(int)
        assert found.shape == (3, 64, 64)
        assert 0 < np.abs(found - whole).mean() < 2


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("channels", [None, 1, 3])
def test_every_colour_space_gives_the_channels_wanted(mode, channels):
    """Greyscale files have one channel unless three are wanted."""
    found = views.center_view(stored(photograph(40, 30, mode=mode)), 20, channels=channels)
    assert found.shape == (channels or (1 if mode == "L" else 3), 20, 20)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous


@pytest.mark.parametrize("size", [(40, 30), (400, 300)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_that_of_pillow(orientation, size):
    """All eight of them, whether the image is reduced or not; the same turn before or after decoding."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = photograph(*size)
    upright = Image.open(io.BytesIO(stored(image, quality=95, exif=exif)))
    how = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}.get(orientation)
    expected = image if how is None else image.transpose(Image.Transpose(how))

    found = views.center_view(stored(upright, quality=95, exif=exif), 24).astype(int)
    assert np.abs(found - views.center_view(stored(expected, "PNG"), 24)).mean() < 3
    ignored = views.center_view(stored(image, quality=95, exif=exif), 24, exif="ignore")
    assert np.array_equal(ignored, views.center_view(stored(image, quality=95), 24))


@pytest.mark.parametrize("said", [{}, {"exif": b"Exif"}, {"xmp": b'<x tiff:Orientation="6"/>'}, {"comment": b"Exif"}])
def test_orientation_is_what_pillow_finds_in_any_metadata(said):
    """None, EXIF that is damaged, XMP, and a comment that only looks like it."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 16)).save(buffer, "JPEG", **said)
    with Image.open(io.BytesIO(buffer.getvalue())) as image:
        wanted = image.getexif().get(0x0112, 1)
    assert images.stored_orientation(buffer.getvalue()) == wanted == (6 if "xmp" in said else 1)


def test_orientation_is_found_behind_metadata_that_look_like_the_image():
    """A profile may contain the bytes with which the first scan begins; bytes between segments hide nothing either."""
    buffer = io.BytesIO()
    said = {"icc_profile": b"\xff\xda" * 20, "xmp": b'<x tiff:Orientation="6"/>'}
    Image.new("RGB", (8, 16)).save(buffer, "JPEG", **said)
    content = buffer.getvalue()
    # Pillow writes XMP first.
    at, xmp = 2, content[content.index(b"http") - 4 :]
    while content[at + 4 : at + 8] != b"http":
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    length = 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    behind = content[:at] + content[at + length :]
    table = behind.index(b"\xff\xdb")
    for between in (b"", b"\x00\x00"):
        moved = behind[:table] + between + xmp[:length] + behind[table:]
        with Image.open(io.BytesIO(moved)) as image:
            assert image.getexif().get(0x0112) == 6
        assert images.stored_orientation(moved) == 6


def test_pixels_and_files_without_loss_give_the_same_views():
    """What is stored as pixels is seen as what is stored as PNG."""
    content = stored(photograph(70, 50), "PNG")
    draws = views.view_draws(0, 1, np.arange(1))[0]
    for view in (
        lambda image: views.center_view(image, 32, 36),
        lambda image: views.random_view(image, (32, 32), draws),
    ):
        assert np.array_equal(view(content), view(decoded(content)))


def test_a_file_that_libjpeg_warns_of_is_left_to_pillow():
    """Bytes between two markers break the standard; Pillow reads past them."""
    content = stored(photograph(64, 48))
    at = content.index(b"\xff\xdb")
    odd = content[:at] + b"\0\0\0" + content[at:]
    assert np.array_equal(views.center_view(odd, 32), views.center_view(stored(Image.open(io.BytesIO(odd)), "PNG"), 32))


@pytest.mark.parametrize("cut", [0, 3, 100, -700])
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_file_that_ends_early_is_refused(cut, form):
    """Never taken for a picture of which the rest is grey."""
    content = stored(photograph(64, 48), form)[:cut]
    for look in (lambda: views.center_view(content, 32), lambda: views.random_view(content, (32, 32), DRAWS[0])):
        with pytest.raises(ValueError, match="corrupt image"):
            look()


DRAWS = views.view_draws(seed=7, epoch=3, sample_ids=np.arange(20_000))


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(375, 500), (64, 64), (100, 20), (20, 100), (1, 1)])
def test_random_crops_are_distributed_as_torchvisions(height, width):
    """Area, ratio and place, drawn for many samples; with sides so unequal that it falls back to the centre as well."""
    ours = np.array([views.random_crop(height, width, draws) for draws in DRAWS])
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(len(DRAWS))])
    for column in range(4):
        deciles = [np.quantile(values[:, column], np.linspace(0, 1, 11)) for values in (ours, theirs)]
        assert np.abs(deciles[0] - deciles[1]).max() <= 1 + 0.03 * max(height, width)
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()


def test_training_views_are_crops_resized_and_mirrored_half_the_time():
    """Equal to cropping, resizing and flipping with torchvision."""
    content = stored(photograph(90, 61))
    image = torch.from_numpy(decoded(content).copy())
    flipped = 0
    for draws in DRAWS[:50]:
        top, left, height, width = views.random_crop(61, 90, draws)
        expected = v2.functional.resized_crop(image, top, left, height, width, [32, 40], antialias=True)
        flipped += draws[-1] < 0.5
        expected = expected.flip(2) if draws[-1] < 0.5 else expected
        assert np.array_equal(views.random_view(content, (32, 40), draws), expected.numpy())
    assert 10 < flipped < 40


def test_training_views_of_large_files_are_those_of_the_whole_image():
    """Reduced while it is decoded, by no more than the part allows."""
    content = stored(photograph(1000, 800), quality=95)
    whole = decoded(content)
    differences = [
        np.abs(
            views.random_view(content, (64, 64), draws).astype(int) - views.random_view(whole, (64, 64), draws)
        ).mean()
        for draws in DRAWS[:40]
    ]
    assert max(differences) < 6
    assert sum(difference > 0 for difference in differences) > 20


def test_draws_depend_on_seed_epoch_and_id_alone():
    """Not on the other samples or their order, and uniform."""
    ids = np.array([5, 900_000_000_000, 3])
    together = views.view_draws(1, 2, ids)
    for row, sample_id in enumerate(ids):
        assert np.array_equal(views.view_draws(1, 2, np.array([sample_id]))[0], together[row])
    others = views.view_draws(2, 2, ids), views.view_draws(1, 3, ids)
    assert not any((other == together).any() for other in others)
    many = views.view_draws(1, 2, np.arange(50_000))
    assert np.abs(many.mean(axis=0) - 0.5).max() < 0.01
    assert np.abs(np.corrcoef(many.T) - np.eye(views.DRAWS_PER_VIEW)).max() < 0.03
    assert math.isclose(many.std(), 12**-0.5, rel_tol=0.01)


ENCODED = shards.Layout("encoded", (3, 32, 32), 32, "rotate", 36, views.VIEW_VERSION)


def rows_of(*contents):
    return pa.table({"sample_id": [70 + row for row in range(len(contents))], "image": pa.array(contents, pa.binary())})


@pytest.mark.parametrize("bad", [b"", b"\xff\xd8\xff", stored(photograph(64, 48))[:-300]])
@pytest.mark.parametrize("layout", [ENCODED, ENCODED._replace(view=1)])
def test_damage_names_shard_and_sample(bad, layout):
    """Empty ones as well: no picture is black because its bytes are gone."""
    rows = rows_of(stored(photograph(64, 48)), bad)
    for draws in (None, DRAWS[:2]):
        with pytest.raises(
            EasyCoreError, match=r"^out/train-00003.parquet: the image of sample_id 71 cannot be decoded"
        ):
            shards.pixels(rows, layout, "out/train-00003.parquet", draws)


def test_readers_give_the_views_of_their_layout():
    """Of both versions, and drawn ones."""
    contents = [stored(photograph(64, 48, seed=seed)) for seed in range(3)]
    rows = rows_of(*contents)
    expected = np.stack([views.center_view(content, 32, 36) for content in contents])
    assert np.array_equal(shards.pixels(rows, ENCODED), expected)
    assert np.array_equal(shards.pixels(rows.slice(1), ENCODED), expected[1:])
    drawn = [views.random_view(content, (32, 32), draws) for content, draws in zip(contents, DRAWS[:3], strict=True)]
    assert np.array_equal(shards.pixels(rows, ENCODED, draws=DRAWS[:3]), np.stack(drawn))
    old = shards.pixels(rows, ENCODED._replace(view=1, resize_size=None)).astype(int)
    assert np.abs(old - np.stack([views.center_view(content, 32) for content in contents])).max() <= 1
