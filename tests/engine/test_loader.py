"""Loaders: every row once in every epoch, the same number of batches for every worker, none of them empty."""

from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from easycore_ray.config.stages import TrainConfig
from easycore_ray.core.augment import augment
from easycore_ray.data import shards
from easycore_ray.data.dataset import locate_samples, open_dataset
from easycore_ray.data.samples import Samples, block_of_split, read_split
from easycore_ray.data.stream import place_rows, stream_rows
from easycore_ray.data.stream_order import Buffer
from easycore_ray.engine import loader as loader_module
from easycore_ray.engine.loader import SCORE_BATCH, MemoryLoader, StreamLoader, describe_streaming, rows_held
from easycore_ray.engine.pruning import Pruner
from easycore_ray.engine.segments import Segments
from easycore_ray.engine.shares import batches_per_epoch, check_share
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.training.train import make_training_fit
from tests.artifacts import make_image_dataset


def rows(ids):
    """Samples whose label and image follow from the id."""
    ids = torch.as_tensor(ids)
    return Samples(ids, ids.reshape(-1, 1, 1, 1).to(torch.uint8), ids % 7)


@st.composite
def situations(draw):
    """(rows, workers, rows per step over all workers) of a run that is not refused."""
    world = draw(st.integers(1, 9))
    batch_size = world * draw(st.integers(1, 40))
    num_rows = draw(st.integers(1, 400))
    assume(num_rows // world >= -(-num_rows // batch_size))
    check_share(num_rows, batch_size, [world])
    return num_rows, world, batch_size


# ---------------------------------------------------------------- shares


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
@pytest.mark.parametrize("some", [False, True])
def test_blocks_have_every_sample_once_and_lie_in_stored_order(tmp_path, workers, some):
    """Whatever the number of workers; sizes differ by one at most, and each block is a piece of what is stored."""
    dataset = open_dataset(make_image_dataset(tmp_path, [number % 3 for number in range(50)]).path)
    chosen = np.random.default_rng(0).permutation(50)[:31] if some else None
    blocks = [block_of_split(dataset, "train", chosen, rank, workers) for rank in range(workers)]
    places = locate_samples(dataset, "train", None)
    stored = places["sample_id"].to_numpy()[np.lexsort((places["row"].to_numpy(), places["shard"].to_numpy()))]
    wanted = stored if chosen is None else stored[np.isin(stored, chosen)]

    assert [set(block) for block in blocks] == [set(part) for part in split_evenly(wanted, workers)]
    assert all((np.diff(block) > 0).all() for block in blocks)
    assert max(map(len, blocks)) - min(map(len, blocks)) <= 1


def split_evenly(rows, count):
    """Consecutive parts that end at the whole number below their share."""
    return np.split(rows, [part * len(rows) // count for part in range(1, count)])


# ---------------------------------------------------------------- counts


@given(situations())
def test_no_worker_is_left_without_a_row_for_every_batch(situation):
    """And no worker takes more than its part of the batch."""
    num_rows, world, batch_size = situation
    segments = Segments(num_rows, batch_size, num_rows, world)
    sizes = [segments.batch_sizes(0, rank) for rank in range(world)]

    assert {len(found) for found in sizes} == {batches_per_epoch(num_rows, batch_size)}
    assert min(map(min, sizes)) >= 1
    assert max(map(max, sizes)) <= batch_size // world


@pytest.mark.parametrize(
    ("num_rows", "batch_size", "expected"), [(100, 10, 10), (101, 10, 11), (100, 100, 1), (102, 100, 2), (3, 128, 1)]
)
def test_batches_per_epoch(num_rows, batch_size, expected):
    """As many as all rows fill, the last one perhaps in part, whoever works on them."""
    assert batches_per_epoch(num_rows, batch_size) == expected


@pytest.mark.parametrize(
    ("num_rows", "batch_size", "world"), [(1, 1, 1), (4, 2, 2), (16, 4, 4), (961, 62, 31), (17, 16, 4)]
)
def test_enough_rows_are_shared(num_rows, batch_size, world):
    """Each has a row for every batch."""
    check_share(num_rows, batch_size, [world])


@pytest.mark.parametrize(
    ("num_rows", "batch_size", "workers", "refused", "allowed"),
    [(3, 2, [2], 2, 1), (15, 4, [4], 4, 2), (17, 4, [4], 4, 2), (99, 10, [10], 10, 5), (5, 4, range(2, 5), 3, 2)],
)
def test_too_few_rows_are_refused(num_rows, batch_size, workers, refused, allowed):
    """For every number of workers the run may have; the message says how many the rows allow, and they do."""
    words = (
        rf"{num_rows} samples in batches of {batch_size} .* {refused} workers: .* to {allowed} or raise --batch-size"
    )
    with pytest.raises(EasyCoreError, match=words):
        check_share(num_rows, batch_size, workers)
    check_share(num_rows, batch_size, [allowed])


# ---------------------------------------------------------------- memory


def loader(ids, batch_size, *, images=None, seed=1, rank=0):
    """One worker's loader; of a single segment if its images are not given."""
    own = rows(ids)
    segments = Segments(len(own.labels), batch_size, images or len(own.labels))
    return MemoryLoader(own, segments=segments, seed=seed, rank=rank)


def drawn(feed, epoch):
    """The ids of an epoch, batch by batch."""
    segments = range(feed.segments.count)
    return [batch.sample_ids.tolist() for segment in segments for batch in feed.shuffled(epoch, segment)]


def scored(feed):
    """The ids of a scoring pass, batch by batch."""
    return [batch.sample_ids.tolist() for segment in range(feed.segments.count) for batch in feed.ordered(segment)]


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 400))
def test_an_epoch_has_every_row_once_in_equal_batches(count, batch_size, images):
    """Whatever the segments: as many batches as one segment has, the same ones, of nearly equal sizes."""
    feed = loader(range(count), batch_size, images=images)
    batches = drawn(feed, 1)

    assert len(batches) == batches_per_epoch(count, batch_size)
    assert [feed.num_batches(segment) for segment in range(feed.segments.count)] == [
        len(list(feed.shuffled(1, segment))) for segment in range(feed.segments.count)
    ]
    assert max(map(len, batches)) - min(map(len, batches)) <= 1
    assert sorted(i for batch in batches for i in batch) == list(range(count))
    assert batches == drawn(loader(range(count), batch_size), 1)
    assert sorted(i for batch in scored(feed) for i in batch) == list(range(count))


def test_images_and_labels_stay_with_their_ids():
    """In training and in scoring order."""
    feed = loader([5, 3, 200, 8], 2)
    for batch in [*feed.shuffled(1, 0), *feed.ordered(0)]:
        assert batch.images.flatten().tolist() == batch.sample_ids.tolist()
        assert batch.labels.tolist() == [i % 7 for i in batch.sample_ids.tolist()]


def test_the_order_depends_on_seed_epoch_and_worker_only():
    """Not on the order in which rows were delivered; each of the three changes it."""
    ids = torch.arange(100)
    shuffled = ids[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    feed = loader(ids, 15, rank=2)
    order = drawn(feed, 3)

    assert drawn(loader(shuffled, 15, rank=2), 3) == order
    assert drawn(feed, 3) == order
    others = [drawn(feed, 4), drawn(loader(ids, 15, seed=2, rank=2), 3), drawn(loader(ids, 15, rank=3), 3)]
    assert all(other != order for other in others)


def test_segments_of_another_epoch_have_other_rows():
    """Which rows are in which segment is drawn anew each epoch; those of a scoring pass are fixed."""
    feed = loader(range(100), 10, images=30)
    first, second = ({*torch.cat([b.sample_ids for b in feed.shuffled(epoch, 0)]).tolist()} for epoch in (1, 2))

    assert len(first) == len(second) == 30
    assert len(first & second) < 20
    assert [batch.sample_ids.tolist() for batch in feed.ordered(1)] == [list(range(30, 60))]


@pytest.mark.parametrize("count", [1, SCORE_BATCH, 2 * SCORE_BATCH + 1])
def test_scoring_sees_every_row_by_id(count):
    """In batches that are not empty, the same ones every time."""
    ids = np.random.default_rng(0).permutation(count) * 2
    feed = loader(ids, count)
    batches = scored(feed)

    assert [i for batch in batches for i in batch] == sorted(ids.tolist())
    assert all(0 < len(batch) <= SCORE_BATCH for batch in batches)
    assert scored(feed) == batches


def test_rows_that_are_in_order_already_are_not_copied():
    """A cache takes its size once."""
    own = rows(range(20))
    kept = MemoryLoader(own, segments=Segments(20, 4, 20), seed=0)
    [batch] = kept.ordered(0)

    assert batch.images.untyped_storage().data_ptr() == own.images.untyped_storage().data_ptr()


# ---------------------------------------------------------------- streams


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """61 photographs, of which a worker has some."""
    return open_dataset(
        make_image_dataset(tmp_path_factory.mktemp("encoded"), [n % 3 for n in range(61)], encoded=True).path
    )


def stream(dataset, world=1, rank=0, *, batch_size=8, images=16, seed=1, ids=None, with_ids=False, **options):
    """One worker's loader."""
    own = place_rows(dataset, "train", ids, rank, world, with_ids=with_ids)
    segments = Segments(61 if ids is None else len(ids), batch_size, images, world)
    return StreamLoader(own, dataset, segments=segments, seed=seed, rank=rank, **options)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
class TestStreams:
    @pytest.mark.parametrize(("world", "batch_size", "some"), [(1, 8, False), (2, 8, True), (3, 9, False)])
    def test_all_workers_together_see_every_sample_once(self, encoded, world, batch_size, some):
        """In an epoch and in a scoring pass; in batches of the sizes that every worker knows of every other."""
        ids = np.random.default_rng(0).permutation(61)[:43] if some else None
        loaders = [stream(encoded, world, rank, batch_size=batch_size, ids=ids) for rank in range(world)]
        expected = list(range(61)) if ids is None else sorted(ids.tolist())

        for epoch in (1, 2):
            batches = [drawn(loader, epoch) for loader in loaders]
            assert sorted(i for worker in batches for batch in worker for i in batch) == expected
            for rank, found in enumerate(batches):
                segments = loaders[rank].segments
                sizes = [size for segment in range(segments.count) for size in segments.batch_sizes(segment, rank)]
                assert [len(batch) for batch in found] == sizes
        assert sorted(i for loader in loaders for batch in scored(loader) for i in batch) == expected

    def test_a_restart_at_any_segment_sees_the_same_batches(self, encoded):
        """Of training and of scoring, pixels included; an uninterrupted pass goes on in the background."""
        whole = stream(encoded, augment=True)
        for read in (lambda loader, segment: loader.shuffled(3, segment), StreamLoader.ordered):
            expected = [list(read(whole, segment)) for segment in range(whole.segments.count)]
            assert len(expected) == 4
            for segment in (3, 1):
                found = list(read(stream(encoded, augment=True), segment))
                assert all(
                    torch.equal(one, other)
                    for batch, again in zip(expected[segment], found, strict=True)
                    for one, other in zip(batch, again, strict=True)
                )

    def test_seed_epoch_and_rank_decide_the_order(self, encoded):
        """Each of them changes it."""
        orders = [drawn(stream(encoded, seed=seed), epoch) for seed, epoch in ((1, 1), (2, 1), (1, 2))]
        assert all(one != other for number, one in enumerate(orders) for other in orders[:number])

    def test_what_is_left_half_way_is_begun_anew(self, encoded):
        """A run that ends within a segment, and a segment asked for out of turn."""
        expected = drawn(stream(encoded), 1)
        loader = stream(encoded)
        batches = loader.shuffled(1, 0)
        next(batches)
        batches.close()
        list(loader.shuffled(2, 1))
        assert drawn(loader, 1) == expected

    def test_a_part_reads_its_rows_alone(self, encoded, monkeypatch):
        """Streamed as in memory: the same samples, whole, and no other is asked for."""
        asked, places = [], np.flatnonzero(np.random.default_rng(0).random(61) < 0.6)
        whole = stream(encoded, with_ids=True)
        chosen = np.sort(whole.sample_ids()[places])
        kept = MemoryLoader(read_split(encoded, "train"), segments=Segments(61, 8, 16), seed=1)
        assert sorted(whole.sample_ids().tolist()) == kept.sample_ids().tolist()

        def watched(rows, positions, *args, **options):
            asked.extend(zip(rows.shard[positions], rows.row[positions], strict=True))
            return stream_rows(rows, positions, *args, **options)

        monkeypatch.setattr(loader_module, "stream_rows", watched)
        segments = Segments(len(places), 8, 16, 1, (len(places),))
        found = {}
        for part in (whole.part(places, segments), kept.part(chosen, segments)):
            batches = [batch for segment in range(segments.count) for batch in part.shuffled(2, segment)]
            assert [len(batch.labels) for batch in batches] == [
                size for segment in range(segments.count) for size in segments.batch_sizes(segment, 0)
            ]
            columns = [torch.cat(column) for column in zip(*batches, strict=True)]
            found[type(part)] = [column[torch.argsort(columns[0])] for column in columns]
        assert all(map(torch.equal, *found.values()))
        assert found[MemoryLoader][0].tolist() == chosen.tolist()
        assert len(asked) == len(set(asked)) == len(places)

    def test_the_way_of_loading_does_not_change_which_samples_are_pruned(self, encoded):
        """Each worker of two: from the same losses the same samples with the same weights, in every epoch."""
        config = TrainConfig(out="o", dataset=encoded.path, batch_size=8, epochs=4, pruning="infobatch", num_workers=2)
        fit = make_training_fit(config, encoded, None)
        segments, losses = Segments(61, 8, 16, 2), torch.rand(61, generator=torch.Generator().manual_seed(0))
        for epoch in (2, 3):
            drawn_by = []
            for way in ("memory", "stream"):
                loaders = [
                    stream(encoded, 2, rank, with_ids=True)
                    if way == "stream"
                    else MemoryLoader(
                        read_split(encoded, "train", block_of_split(encoded, "train", None, rank, 2)),
                        segments=segments, seed=1, rank=rank,
                    )
                    for rank in range(2)
                ]  # fmt: skip
                blocks = [own.sample_ids() for own in loaders]
                drawn_by.append([])
                for rank, own in enumerate(loaders):
                    context = SimpleNamespace(rank=rank, gather=lambda _, blocks=blocks: blocks)
                    carried = {"sample_losses": losses.clone()}
                    pruned = Pruner(fit, context, own).begin(carried, epoch, 8)
                    ids = torch.tensor(sorted(number for batch in drawn(pruned.loader, epoch) for number in batch))
                    drawn_by[-1].append(list(zip(ids.tolist(), pruned.weigh(ids).tolist(), strict=True)))
            assert drawn_by[0] == drawn_by[1]
            assert 30 < sum(map(len, drawn_by[0])) < 61

    def test_streamed_rows_are_those_that_are_kept(self, encoded):
        """Pixels and labels of each sample; so its views are the same as well, which its id decides."""
        kept = MemoryLoader(read_split(encoded, "train"), segments=Segments(61, 8, 16), seed=1)
        found = {}
        for loader in (kept, stream(encoded)):
            batches = [batch for segment in range(4) for batch in loader.shuffled(1, segment)]
            columns = [torch.cat(column) for column in zip(*batches, strict=True)]
            columns[1] = augment(columns[1], columns[0], "crop-flip", seed=1, epoch=1, pad=1)
            order = torch.argsort(columns[0])
            found[type(loader)] = [column[order] for column in columns]
        assert all(map(torch.equal, *found.values()))

    def test_views_for_imagenet_change_from_epoch_to_epoch(self, encoded):
        """And scores see the centre."""
        loader = stream(encoded, augment=True, images=61)
        by_epoch = []
        for batches in (loader.shuffled(1, 0), loader.shuffled(2, 0), loader.ordered(0)):
            found = [torch.cat(column) for column in zip(*batches, strict=True)]
            by_epoch.append(found[1][torch.argsort(found[0])])
        assert (by_epoch[0] != by_epoch[1]).flatten(1).any(dim=1).sum() > 50
        assert torch.equal(by_epoch[2], read_split(encoded, "train").images)

    def test_damage_is_raised_where_batches_are_taken(self, tmp_path):
        """With shard and sample, after the batches before it."""
        dataset = open_dataset(make_image_dataset(tmp_path, [0] * 61, encoded=True).path)
        path = dataset.shards("train")[0]
        table = pq.read_table(path)
        images = [b"" if number == 5 else image for number, image in enumerate(table["image"].to_pylist())]
        shards.write_rows(path, dataset.layout, table.set_column(2, "image", [images]))
        with pytest.raises(Exception, match=rf"train-00000.*the image of sample_id {table['sample_id'][5]} cannot"):
            scored(stream(dataset))


def test_the_buffer_holds_two_batches_at_least_and_a_segment_at_most():
    """Between them, what mixing needs."""
    sizes = [rows_held(Segments(61, batch, images), Buffer(5, 44), 0) for batch, images in ((4, 61), (4, 16), (40, 61))]
    assert sizes == [44, 16, 61]


def test_what_streaming_takes_is_said(encoded):
    """The whole split: 61 rows in two shards, of 16 bytes as pixels; nothing of what is kept."""
    config = TrainConfig(dataset=encoded.path, out="o", model="cnn", epochs=1, batch_size=4, eps=0.1, cache_gib=0)
    streamed = make_training_fit(config, encoded, None)
    kept = make_training_fit(config.replace(cache_gib=1), encoded, None)

    assert "buffer holds about 44 of them, 0 MiB" in describe_streaming(streamed, 1)
    assert describe_streaming(kept, 1) is None
