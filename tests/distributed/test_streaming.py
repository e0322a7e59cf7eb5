"""Runs that stream encoded images: decoded beside the workers, the same everywhere, stopped by damage."""

import time

import pyarrow.parquet as pq
import pytest
import ray
import torch

from easycore_ray import train
from easycore_ray.config.stages import TrainConfig
from easycore_ray.data import shards
from easycore_ray.data.dataset import open_dataset
from easycore_ray.engine.checkpoint import open_checkpoint
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.training.train import make_training_fit, train_here
from tests.artifacts import make_image_dataset

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

COUNT = 90


@pytest.fixture
def dataset(tmp_path):
    labels = [number % 2 for number in range(COUNT)]
    return open_dataset(make_image_dataset(tmp_path / "data", labels, encoded=True).path)


def settings(dataset, out, **changes):
    return dict(
        dataset=dataset.path, out=str(out), model="cnn", width=2, epochs=2, batch_size=16, segment_images=50,
        augment="imagenet", eps=0.03, tracking_uri="none", threads_per_worker=1, num_workers=1, cpus_per_worker=0.5,
    ) | changes  # fmt: skip


def weights(path):
    """All numbers of a checkpoint's last model."""
    _, model = open_checkpoint(path, "last")
    return torch.cat([value.flatten().float() for value in model.state_dict().values()])


def test_a_streamed_run_is_the_same_in_this_process(dataset, tmp_path):
    """Weights of a worker of Ray Train, and of this process, which streams as well."""
    run = train(**settings(dataset, tmp_path / "run"))
    config = TrainConfig(**settings(dataset, tmp_path / "here"))
    state = train_here(make_training_fit(config, dataset, None), None)

    assert torch.equal(torch.cat([value.flatten().float() for value in state.model.values()]), weights(run.path))


@pytest.mark.soak
def test_damage_in_mid_epoch_names_shard_and_sample_and_stops_all_workers(dataset, tmp_path):
    """Two workers, one of which meets it; the other does not wait for it, and what they reserved is free again."""
    path = dataset.shards("train")[1]
    table = pq.read_table(path)
    images = table["image"].to_pylist()
    images[31] = images[31][:-50]
    shards.write_rows(path, dataset.layout, table.set_column(2, "image", [images]))

    started = time.monotonic()
    words = rf"{path}: the image of sample_id {table['sample_id'][31]} cannot be decoded"
    with pytest.raises(EasyCoreError, match=words):
        train(**settings(dataset, tmp_path / "out", num_workers=2, augment="crop", cache_gib=0))
    assert time.monotonic() - started < 120
    while ray.available_resources().get("CPU", 0) < ray.cluster_resources()["CPU"]:
        assert time.monotonic() - started < 150
        time.sleep(0.2)


def test_workers_that_leave_no_cpu_for_decoding_are_refused(dataset, tmp_path):
    """Before any work: their first batch would never come."""
    with pytest.raises(EasyCoreError, match="none is left to decode images"):
        train(**settings(dataset, tmp_path / "out", cpus_per_worker=3.0))
    assert not (tmp_path / "out" / "manifest.json").exists()
