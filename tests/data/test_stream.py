"""Streams of Ray Data tasks: rows in the order given, decoded as readers do, damage named."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from easycore_ray.data import shards, stream, views
from easycore_ray.data.dataset import open_dataset
from easycore_ray.data.samples import block_of_split, read_split
from tests.artifacts import make_image_dataset

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

COUNT = 333


@pytest.fixture(scope="module", params=["raw", "encoded"])
def dataset(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return open_dataset(
        make_image_dataset(folder, [n % 3 for n in range(COUNT)], encoded=request.param == "encoded").path
    )


def joined(pieces):
    """Ids, images and labels of a stream."""
    return [np.concatenate(column) for column in zip(*pieces, strict=True)]


@pytest.mark.parametrize("part", [(0, 1), (1, 3)])
def test_rows_come_in_the_order_given_and_look_as_they_are_read(dataset, part):
    """Of the whole split, or of one worker's part of some samples; forwards, backwards and at random."""
    chosen = None if part == (0, 1) else np.arange(0, COUNT, 2)
    rows = stream.place_rows(dataset, "train", chosen, *part)
    expected = read_split(dataset, "train", block_of_split(dataset, "train", chosen, *part))
    count = len(rows.row)
    natural, _, _ = joined(stream.stream_rows(rows, np.arange(count), dataset.layout))
    for order in (np.arange(count)[::-1], np.random.default_rng(0).permutation(count)):
        ids, images, labels = joined(stream.stream_rows(rows, order, dataset.layout))
        assert np.array_equal(ids, natural[order])
        at = np.searchsorted(expected.sample_ids.numpy(), ids)
        assert np.array_equal(images, expected.images.numpy()[at])
        assert np.array_equal(labels, expected.labels.numpy()[at])


def test_views_for_training_are_drawn_by_seed_epoch_and_id(dataset):
    """Whatever rows come with them."""
    rows = stream.place_rows(dataset, "train", None)
    for order in (np.arange(COUNT), np.array([200, 3, 77])):
        ids, images, _ = joined(
            stream.stream_rows(rows, order, dataset.layout, augmentation=stream.Augmentation(4, epoch=2))
        )
        draws = views.view_draws(4, 2, ids)
        for path in dataset.shards("train"):
            table = shards.read_rows(path)
            mine = np.isin(ids, table["sample_id"].to_numpy())
            at = [table["sample_id"].to_pylist().index(sample_id) for sample_id in ids[mine]]
            expected = shards.pixels(table.take(at), dataset.layout, path, draws[mine])
            assert np.array_equal(images[mine], expected)


@pytest.mark.parametrize("rows_of_block", [1, 7, COUNT, 10 * COUNT])
def test_blocks_of_a_task_hold_all_its_rows(dataset, rows_of_block):
    """Full ones and one of what is left, across shards and row groups."""
    rows = stream.place_rows(dataset, "train", None)
    order = np.random.default_rng(2).permutation(COUNT)
    tasks = pa.Table.from_pylist(stream._cut_tasks(rows, order, dataset.layout, 1 << 20)[:3])
    size = rows_of_block * dataset.layout.image_bytes
    blocks = list(stream.read_and_decode(tasks, dataset.layout, None, size))
    wanted = list(stream.read_and_decode(tasks, dataset.layout, None, 1 << 30))
    in_tasks = [len(task) for task in wanted]
    assert [len(block) for block in blocks] == [
        min(rows_of_block, count - start) for count in in_tasks for start in range(0, count, rows_of_block)
    ]
    assert pa.concat_tables(blocks).combine_chunks().equals(pa.concat_tables(wanted).combine_chunks())
    ids, images, _ = joined(stream.stream_rows(rows, order[: sum(in_tasks)], dataset.layout))
    found = pa.concat_tables(blocks)
    assert found["sample_id"].to_pylist() == ids.tolist()
    assert found["image"].to_pylist() == [image.tobytes() for image in images]


def test_more_tasks_than_ray_data_is_given_at_once(dataset, monkeypatch):
    """The rest follows in order."""
    monkeypatch.setattr(stream, "_TASKS_AT_ONCE", 5)
    rows = stream.place_rows(dataset, "train", None)
    order = np.random.default_rng(1).permutation(COUNT)
    assert len(stream._cut_tasks(rows, order, dataset.layout, 1 << 20)) > 10
    ids, _, _ = joined(stream.stream_rows(rows, order, dataset.layout))
    everything, _, _ = joined(stream.stream_rows(rows, np.arange(COUNT), dataset.layout))
    assert np.array_equal(ids, everything[order])


def test_no_rows_give_no_stream(dataset):
    """Not even a Ray dataset."""
    rows = stream.place_rows(dataset, "train", None)
    assert list(stream.stream_rows(rows, np.array([], int), dataset.layout)) == []


def test_an_image_that_does_not_decode_names_shard_and_sample(tmp_path):
    """In the middle of a stream; nothing black comes instead."""
    dataset = open_dataset(make_image_dataset(tmp_path, [0] * 40, encoded=True).path)
    path = dataset.shards("train")[1]
    table = pq.read_table(path)
    images = table["image"].to_pylist()
    images[7] = images[7][:-40]
    shards.write_rows(path, dataset.layout, table.set_column(2, "image", [images]))
    rows = stream.place_rows(dataset, "train", None)
    with pytest.raises(ray.exceptions.RayTaskError) as failure:
        list(stream.stream_rows(rows, np.arange(40), dataset.layout))
    sample_id = table["sample_id"][7].as_py()
    assert f"{path}: the image of sample_id {sample_id} cannot be decoded" in str(failure.value.cause)


def test_a_shard_that_is_gone_is_named(tmp_path):
    """As other readers name it."""
    dataset = open_dataset(make_image_dataset(tmp_path, [0] * 40).path)
    rows = stream.place_rows(dataset, "train", None)
    Path(dataset.shards("train")[0]).unlink()
    with pytest.raises(ray.exceptions.RayTaskError, match=r"does not exist|No such file|missing"):
        list(stream.stream_rows(rows, np.arange(40), dataset.layout))


@pytest.mark.soak
@pytest.mark.timeout(90)
def test_a_stream_that_nobody_reads_keeps_no_cpu_from_another(tmp_path):
    """A worker that waits for another one's gradients, while that one waits for its images."""
    dataset = open_dataset(make_image_dataset(tmp_path, [n % 3 for n in range(COUNT)], encoded=True).path)
    # A mebibyte each, so that the streams are larger than the object store.
    large = dataset.layout._replace(image_shape=(1, 1024, 1024), image_size=1024, resize_size=None)
    rows = stream.place_rows(dataset, "train", None)
    waiting = [stream.stream_rows(rows, np.arange(COUNT), large, streams=3) for _ in range(2)]
    for pieces in waiting:
        next(pieces)

    ids, _, _ = zip(*stream.stream_rows(rows, np.arange(COUNT // 2), large, streams=3), strict=True)
    assert sum(map(len, ids)) == COUNT // 2
    for pieces in waiting:
        for _ in pieces:
            pass


def test_stored_pixels_are_streamed_as_they_are(tmp_path):
    """Whatever size they were cut from: no view is made of them again."""
    dataset = open_dataset(make_image_dataset(tmp_path, [n % 3 for n in range(COUNT)]).path)
    layout = dataset.layout._replace(image_size=4, resize_size=5)
    rows = stream.place_rows(dataset, "train", None)
    ids, images, _ = joined(stream.stream_rows(rows, np.arange(COUNT), layout))
    expected = read_split(dataset, "train", None)
    assert np.array_equal(images, expected.images.numpy()[np.searchsorted(expected.sample_ids.numpy(), ids)])
