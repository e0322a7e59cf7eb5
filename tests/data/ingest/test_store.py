"""What is stored of images: pixels, files, or smaller files; and what passes through Ray's object store."""

import hashlib
import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from easycore_ray.config.base import FieldsError
from easycore_ray.config.stages import PrepareConfig
from easycore_ray.data import views
from easycore_ray.data.dataset import open_dataset
from easycore_ray.data.ingest import disk
from easycore_ray.data.ingest.measuring import Viewing, measure
from easycore_ray.data.samples import read_split
from easycore_ray.storage.errors import EasyCoreError
from tests.benchmarks.bench_import import store_stats
from tests.image_sources import make

# (height, width), mode and format of each image of the source below.
KINDS = [
    ((90, 120), "RGB", "JPEG"), ((200, 150), "RGB", "JPEG"), ((300, 400), "L", "JPEG"), ((64, 300), "RGB", "PNG"),
    ((500, 380), "RGB", "PNG"), ((150, 150), "P", "PNG"), ((260, 260), "RGBA", "PNG"), ((130, 100), "CMYK", "JPEG"),
]  # fmt: skip
SIZE = 70  # of the views: 80 is 8/7 of it


def photo(number, shape, mode):
    """A smooth random picture."""
    small = np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(small).resize(shape[::-1], Image.Resampling.BICUBIC).convert(mode)


def saved(number):
    """The file of an image of the source."""
    shape, mode, form = KINDS[number % len(KINDS)]
    buffer = io.BytesIO()
    image = photo(number, shape, mode)
    exif = Image.Exif()
    exif[0x0112] = 6 if number % 3 == 0 else 1
    image.save(buffer, form, exif=exif, **({"quality": 98} if form == "JPEG" else {}))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Two classes of images of all kinds."""
    root = tmp_path_factory.mktemp("kinds")
    for number in range(2 * len(KINDS)):
        path = root / "ab"[number % 2] / f"{number:02d}.img.{KINDS[number % len(KINDS)][2].lower()}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(saved(number))
    return root


def stored_by_key(dataset):
    """The stored bytes of every image of a dataset without held-out splits."""
    tables = [pq.read_table(path) for path in dataset.shards("train")]
    by_id = {row["sample_id"]: row["image"] for table in tables for row in table.to_pylist()}
    return {row["key"]: (by_id[row["sample_id"]], row) for row in dataset.index().to_pylist()}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("resize_size", [None, 76])
@pytest.mark.parametrize("store", ["auto", "pixels", "encoded", "resized"])
def test_every_way_of_storing_measures_what_readers_give(source, tmp_path, store, resize_size):
    """Norm, hash, mean and deviation are those of the pixels and files that are read later."""
    fields = {"image_size": SIZE, "store": store, "resize_size": resize_size, "shard_mib": 0.05}
    make(str(source), tmp_path / "out", val_fraction=0, test_fraction=0, **fields)

    dataset = open_dataset(str(tmp_path / "out"))
    images = read_split(dataset, "train").images.numpy()
    stored = stored_by_key(dataset)
    assert (dataset.layout.image_size, dataset.layout.resize_size) == (SIZE, resize_size)
    assert dataset.layout.storage == ("raw" if store in ("auto", "pixels") else "encoded")
    assert len(stored) == len(images) == 2 * len(KINDS)
    for key, (content, row) in stored.items():
        assert row["sha256"] == hashlib.sha256(content).hexdigest()
        assert row["input_norm"] == pytest.approx(np.linalg.norm(images[row["sample_id"]] / 255))
        came = (source / key).read_bytes()
        if store == "encoded":
            assert content == came
        elif store == "resized":
            assert len(content) <= len(came)
        else:
            expected = views.center_view(came, SIZE, resize_size, channels=3)
            assert content == expected.tobytes()
    assert dataset.mean == pytest.approx((images / 255).mean((0, 2, 3)).tolist())
    assert dataset.std == pytest.approx((images / 255).std((0, 2, 3)).tolist())


@pytest.mark.parametrize("number", range(len(KINDS)))
def test_resized_files_are_smaller_and_never_enlarged(number):
    """Shorter side 80, upright, where that takes fewer bytes; else the file as it came."""
    came = saved(number)
    found = measure(came, Viewing(SIZE, store="resized"))

    before, after = Image.open(io.BytesIO(came)), Image.open(io.BytesIO(found.encoded))
    if found.encoded == came:
        smaller = measure(came, Viewing(SIZE, store="resized"))
        assert min(before.size) <= 80 or len(smaller.encoded) == len(came)
    else:
        assert len(found.encoded) < len(came)
        assert after.format == "JPEG"
        assert min(after.size) == 80
        upright = before.size[::-1] if found.rotated else before.size
        assert after.size[0] / after.size[1] == pytest.approx(upright[0] / upright[1], rel=0.02)
        assert after.getexif().get(0x0112) is None
    assert sum(measure(saved(kind), Viewing(SIZE, store="resized")).encoded != saved(kind) for kind in range(8)) >= 4


def test_resized_pixels_are_close_to_those_of_the_file():
    """JPEG of quality 95: a few grey levels."""
    came = saved(1)
    kept = measure(came, Viewing(SIZE, store="resized")).encoded

    difference = views.center_view(kept, SIZE).astype(int) - views.center_view(came, SIZE)

    assert kept != came
    assert np.abs(difference).mean() < 4


@pytest.mark.parametrize("store", ["auto", "encoded", "resized"])
@pytest.mark.parametrize("cut", [0.3, 0.9, 0.999])
def test_files_that_end_early_are_bad_samples(store, cut):
    """However they are stored, and however the decoder would fill the rest in."""
    content = saved(1)

    with pytest.raises(ValueError, match="corrupt image"):
        measure(content[: int(cut * len(content))], Viewing(SIZE, store=store))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"store": "resized"}, "store resized needs an image_size"),
        ({"resize_size": 9}, "resize_size goes with image_size"),
        ({"resize_size": 9, "image_size": 10}, "resize_size must be at least image_size 10, got 9"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, message):
    """In a sentence."""
    with pytest.raises(FieldsError, match=message) as raised:
        PrepareConfig(out="o", **fields)
    assert len(raised.value.problems) == 1


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("store", ["pixels", "encoded"])
def test_no_image_passes_through_the_object_store(tmp_path, store):
    """What Ray counts grows by less than a hundredth of the source."""
    for number in range(120):
        path = tmp_path / "source" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (256, 256, 3), np.uint8)
        Image.fromarray(noise).save(path)
    before = store_stats()

    make(str(tmp_path / "source"), tmp_path / "out", store=store, shard_mib=2)

    after = store_stats()
    size = sum(path.stat().st_size for path in (tmp_path / "source").rglob("*.png"))
    assert size > 20 * 2**20
    assert after.cumulative_created_bytes - before.cumulative_created_bytes < size / 100
    assert after.spilled_bytes_total == before.spilled_bytes_total


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(("free", "said"), [(10_000, True), (10**12, False)])
def test_a_disk_that_is_too_small_is_said_before_work(source, tmp_path, capsys, monkeypatch, free, said):
    """In one line with both sizes."""
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: disk.shutil._ntuple_diskusage(10**12, 0, free))

    with pytest.raises(EasyCoreError, match="differ in size"):
        make(str(source), tmp_path / "out")

    assert ("has 0.0 GiB free, and this import writes about 0.0 GiB" in capsys.readouterr().err) == said
