"""Images too large to be stored raw are stored as they came, and resized when they are read."""

import hashlib

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from easycore_ray.data.dataset import image_bytes_per_row, open_dataset
from easycore_ray.data.samples import read_split
from tests.image_sources import CLASSES, make, pixels, png

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """Photo-sized images of different shapes, viewed at 160 pixels: too large for raw storage."""
    root = tmp_path_factory.mktemp("encoded")
    for number in range(12):
        path = root / "source" / CLASSES[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(pixels(number, (170 + number, 200, 3))))
    make(str(root / "source"), root / "out", image_size=160, val_fraction=0.25, test_fraction=0.25)
    return open_dataset(str(root / "out")), root / "source"


class TestEncoded:
    def test_large_images_are_stored_as_they_came(self, encoded):
        """The file itself, whose hash the index has."""
        dataset, source = encoded
        shards = [pq.read_table(path) for path in dataset.shards("test")]
        stored = {row["sample_id"]: row["image"] for table in shards for row in table.to_pylist()}

        assert (dataset.layout.storage, dataset.image_shape) == ("encoded", (3, 160, 160))
        for row in dataset.index("test").to_pylist():
            content = (source / row["key"]).read_bytes()
            assert stored[row["sample_id"]] == content
            assert row["sha256"] == hashlib.sha256(content).hexdigest()

    def test_readers_resize_and_crop_as_pillow_does(self, encoded):
        """Shorter side to 160, then the centre; and the norm of the index."""
        dataset, source = encoded
        rows = read_split(dataset, "train")
        for row, image in zip(dataset.index().to_pylist(), rows.images, strict=True):
            original = Image.open(source / row["key"])
            width = 160 * original.width // original.height
            resized = original.resize((width, 160), Image.Resampling.BILINEAR)
            left = round((width - 160) / 2)
            expected = np.asarray(resized.crop((left, 0, left + 160, 160))).transpose(2, 0, 1)
            # torch, which resizes, and Pillow round halves differently.
            assert np.abs(image.numpy().astype(int) - expected).max() <= 1
            assert row["input_norm"] == pytest.approx(np.linalg.norm(image.numpy() / 255))

    def test_memory_is_counted_in_decoded_pixels(self, encoded):
        """What a cache of them will hold."""
        assert image_bytes_per_row(encoded[0]) == 3 * 160 * 160

    def test_small_views_of_large_images_are_stored_raw(self, encoded, tmp_path):
        """Resized once, at import."""
        make(str(encoded[1]), tmp_path / "out", image_size=32, val_fraction=0.25, test_fraction=0.25)

        dataset = open_dataset(str(tmp_path / "out"))
        assert (dataset.layout.storage, dataset.image_shape) == ("raw", (3, 32, 32))
