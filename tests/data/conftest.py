"""A source of sixty images in three classes, and the dataset made of it."""

import pytest

from easycore_ray.data.dataset import open_dataset
from tests.image_sources import make, write_folders


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """An image folder source."""
    return write_folders(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def dataset(folders, tmp_path_factory):
    """That source, imported."""
    out = tmp_path_factory.mktemp("made") / "dataset"
    make(folders, out)
    return open_dataset(str(out))
