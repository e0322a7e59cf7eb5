"""Changes of a source in an object store, by what the store says of its objects; no Ray."""

import pytest

from easycore_ray.config.stages import PrepareConfig
from easycore_ray.data.ingest.changes import check_unchanged, write_source_files
from easycore_ray.data.ingest.sources import list_source
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Artifact
from easycore_ray.storage.errors import EasyCoreError
from tests.object_store import environment, running_store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store():
    with running_store("pictures") as running:
        yield running


@pytest.fixture
def source(store, monkeypatch, request):
    """A folder of four objects in the store."""
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    for name, value in environment(store.url).items():
        monkeypatch.setenv(name, value)
    root = f"s3://pictures/{request.node.name}"
    for number in range(4):
        paths.write_bytes(f"{root}/{'ab'[number % 2]}/{number}.png", b"12%d" % number)
    return root


@pytest.fixture
def record(source, tmp_path):
    """What an import of that folder keeps."""
    kept = write_source_files(list_source(source).files, str(tmp_path))
    assert (kept["files"], kept["bytes"]) == (4, 12)
    return Artifact(str(tmp_path), {"source_files": kept, "names_from": "the folders"})


def test_the_same_content_uploaded_again_is_no_change(source, record):
    """Its time is another, its etag is not."""
    config = PrepareConfig(out="o", source=source)
    check_unchanged(config, record)
    before = {file.path: file.modified for file in paths.entries(source)}
    while {file.path: file.modified for file in paths.entries(source)} == before:
        paths.write_bytes(f"{source}/a/0.png", b"120")

    check_unchanged(config, record)


def test_other_content_of_the_same_size_is_a_change(source, record):
    """Even within a second, which is as exact as the store's times are."""
    paths.write_bytes(f"{source}/a/0.png", b"999")
    paths.write_bytes(f"{source}/a/8.png", b"128")
    paths.delete_file(f"{source}/b/1.png")

    with pytest.raises(EasyCoreError, match="1 new, 1 gone and 1 changed files"):
        check_unchanged(PrepareConfig(out="o", source=source), record)
