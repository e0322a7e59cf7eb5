"""Imports into an object store: the same files as on a disk, and nothing of the staging stays; no Ray."""

from functools import partial

import pytest

from easycore_ray.config.stages import PrepareConfig
from easycore_ray.data.ingest import pipeline, readers, shard_writer
from easycore_ray.data.ingest.sources import list_configured
from easycore_ray.storage import paths
from tests.image_sources import write_folders
from tests.killed_import import run_here
from tests.object_store import environment, running_store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store():
    with running_store("datasets") as running:
        yield running


def test_a_dataset_in_a_store_is_that_on_a_disk(store, tmp_path, monkeypatch):
    """From several staging files, of which ranges are fetched."""
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    for name, value in environment(store.url).items():
        monkeypatch.setenv(name, value)
    for module in (pipeline, shard_writer):
        monkeypatch.setattr(module, "map_tasks", partial(run_here, module.map_tasks))
    monkeypatch.setattr(readers, "ROWS_PER_TABLE", 7)
    source = write_folders(tmp_path / "source")
    config = PrepareConfig(source=source, out="o", shard_mib=15 * 108 / 2**20)
    places = [f"{tmp_path}/out", "s3://datasets/out"]

    made = [pipeline.import_source(list_configured(config), config, place) for place in places]

    found = [{path.removeprefix(place): paths.read_bytes(path) for path in paths.list_files(place)} for place in places]
    assert made[0] == made[1]
    assert found[0] == found[1]
    assert len(found[0]) > 5
    assert not [name for name in found[0] if "staging" in name]


def test_what_a_killed_import_left_in_a_store_is_cleared(store, monkeypatch):
    """All but what says who is writing."""
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    for name, value in environment(store.url).items():
        monkeypatch.setenv(name, value)
    place = "s3://datasets/killed"
    for name in ("staging-0123abcd/000000-00000", "shards/train-00000.parquet", "index.parquet", "run.json"):
        paths.write_bytes(paths.join(place, name), b"content")

    pipeline.clear_remains(place)

    assert paths.list_files(place) == [f"{place}/run.json"]
