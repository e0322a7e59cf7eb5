"""Datasets of some samples of another one."""

from pathlib import Path

import numpy as np
import pytest

from easycore_ray.data.dataset import open_dataset
from easycore_ray.data.materialize import materialize
from easycore_ray.data.samples import read_split
from easycore_ray.storage.errors import EasyCoreError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


@pytest.fixture(scope="module")
def subset(dataset, tmp_path_factory):
    """20 of 43 training samples, asked for out of order."""
    ids = np.random.default_rng(0).permutation(43)[:20]
    artifact = materialize(dataset, ids, str(tmp_path_factory.mktemp("subset") / "out"))
    return open_dataset(artifact.path), np.sort(ids)


class TestMaterialize:
    def test_samples_keep_their_ids_labels_and_pixels(self, dataset, subset):
        """Sorted, not dense."""
        found, ids = subset
        rows, expected = read_split(found, "train"), read_split(dataset, "train", ids)

        assert rows.sample_ids.tolist() == ids.tolist()
        assert all((column == right).all() for column, right in zip(rows, expected, strict=True))
        assert [shard["rows"] for shard in found.manifest["shards"]["train"]] == [10, 10]

    def test_val_and_test_come_along(self, dataset, subset):
        """To the byte."""
        found, _ = subset

        for split in ("val", "test"):
            assert found.index(split).equals(dataset.index(split))
            for path, original in zip(found.shards(split), dataset.shards(split), strict=True):
                assert Path(path).read_bytes() == Path(original).read_bytes()

    def test_models_see_the_same_pixels_as_with_the_parent(self, dataset, subset):
        """Normalisation is the parent's; the content, and so the fingerprint, is not."""
        found, _ = subset

        assert (found.mean, found.std, found.classes) == (dataset.mean, dataset.std, dataset.classes)
        assert found.fingerprint != dataset.fingerprint
        assert found.manifest["parents"]["dataset"]["fingerprint"] == dataset.fingerprint

    def test_the_same_samples_are_not_written_twice_and_others_are_refused(self, dataset, subset):
        """Identity is the parent and the ids."""
        found, ids = subset

        assert materialize(dataset, ids[::-1], found.path).manifest == found.manifest
        with pytest.raises(EasyCoreError, match="another configuration or input"):
            materialize(dataset, ids[1:], found.path)
