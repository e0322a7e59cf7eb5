"""Feeding: every row once in every epoch, the same number of batches for every worker, none of them empty."""

import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from easycore_ray.data.dataset import locate_samples, open_dataset
from easycore_ray.data.samples import Samples, block_of_split
from easycore_ray.engine.loader import PAD_ID, SCORE_BATCH, MemoryLoader, drop_padding, padding_rows, rebatch
from easycore_ray.engine.segments import Segments
from easycore_ray.engine.shares import batches_per_epoch, check_share
from easycore_ray.storage.errors import EasyCoreError
from tests.artifacts import make_image_dataset

RAW = pa.schema({"sample_id": pa.int64(), "label": pa.int32(), "image": pa.binary(4)})


def table(ids):
    """Rows of a shard whose label and image follow from the id; −1 is padding."""
    images = [np.int32(i).tobytes() for i in ids]
    return pa.table({"sample_id": ids, "label": [i % 7 for i in ids], "image": images}, schema=RAW)


def rows(ids):
    """The same as tensors."""
    ids = torch.as_tensor(ids)
    return Samples(ids, ids.reshape(-1, 1, 1, 1).to(torch.uint8), ids % 7)


@st.composite
def situations(draw):
    """(rows, workers, rows per step over all workers) of a run that is not refused."""
    world = draw(st.integers(1, 9))
    batch_size = world * draw(st.integers(1, 40))
    num_rows = draw(st.integers(1, 400))
    assume(-(-num_rows // world) - -num_rows % world >= -(-num_rows // batch_size))
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
    """Even one that holds all the padding; and no worker takes more than its part of the batch."""
    num_rows, world, batch_size = situation
    share, padding = -(-num_rows // world), -num_rows % world
    num_batches = batches_per_epoch(num_rows, batch_size)

    assert 1 <= num_batches <= share - padding
    assert math.ceil(share / num_batches) <= batch_size // world


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
    """Whole shares, and one that holds three rows of padding but still two of the data."""
    check_share(num_rows, batch_size, [world])


@pytest.mark.parametrize(
    ("num_rows", "batch_size", "workers", "refused", "allowed"),
    [(3, 2, [2], 2, 1), (15, 4, [4], 4, 2), (17, 4, [4], 4, 2), (99, 10, [10], 10, 5), (5, 12, range(2, 5), 4, 3)],
)
def test_too_few_rows_are_refused(num_rows, batch_size, workers, refused, allowed):
    """For every number of workers the run may have; the message says how many the rows allow, and they do."""
    words = (
        rf"{num_rows} samples in batches of {batch_size} .* {refused} workers: .* to {allowed} or raise --batch-size"
    )
    with pytest.raises(EasyCoreError, match=words):
        check_share(num_rows, batch_size, workers)
    check_share(num_rows, batch_size, [allowed])


# ---------------------------------------------------------------- streams


@given(situations(), st.data())
@settings(deadline=None)
def test_a_share_becomes_batches_of_real_rows(situation, data):
    """Exactly as many as every other worker has, none empty, each row once and in order, wherever padding lies."""
    num_rows, world, batch_size = situation
    share, most_padding = -(-num_rows // world), -num_rows % world
    num_batches = batches_per_epoch(num_rows, batch_size)
    padding = data.draw(st.integers(0, most_padding))
    at = data.draw(st.sets(st.integers(0, share - 1), min_size=padding, max_size=padding))
    ids = [PAD_ID if i in at else i for i in range(share)]
    cuts = sorted(data.draw(st.lists(st.integers(0, share), max_size=4)))
    tables = [table(ids[low:high]) for low, high in zip([0, *cuts], [*cuts, share], strict=True)]

    batches = list(rebatch(tables, share=share, padding=most_padding, num_batches=num_batches))
    sizes = [batch.num_rows for batch in batches]

    assert len(batches) == num_batches
    assert min(sizes) >= 1
    assert max(sizes) <= max(batch_size // world, math.ceil(share / num_batches))
    assert pa.concat_tables(batches).equals(table([i for i in ids if i != PAD_ID]))


@given(situations())
def test_batches_are_nearly_equal(situation):
    """Padding all at the end, as it is delivered: no batch has clearly less than half the rows of another."""
    num_rows, world, batch_size = situation
    share, padding = -(-num_rows // world), -num_rows % world
    assume(share >= 4 * padding)
    num_batches = batches_per_epoch(num_rows, batch_size)
    ids = [*range(share - padding), *[PAD_ID] * padding]
    sizes = [b.num_rows for b in rebatch([table(ids)], share=share, padding=padding, num_batches=num_batches)]

    assert 2 * min(sizes) + 1 >= max(sizes)


@given(st.integers(1, 200), st.data())
def test_a_share_without_padding_is_cut_evenly(share, data):
    """Sizes differ by at most one, as for rows kept in memory."""
    num_batches = data.draw(st.integers(1, share))
    batches = rebatch([table(range(share))], share=share, padding=0, num_batches=num_batches)
    sizes = [batch.num_rows for batch in batches]

    assert len(sizes) == num_batches
    assert max(sizes) - min(sizes) <= 1


def test_many_workers_with_small_batches_leave_none_empty():
    """64 workers, 32 rows a step each, 63 rows of padding in the last share: more padding than a batch is large."""
    num_rows, batch_size = 64 * 320 + 1, 64 * 32
    share, padding = 321, 63
    num_batches = batches_per_epoch(num_rows, batch_size)
    ids = [*range(share - padding), *[PAD_ID] * padding]
    sizes = [b.num_rows for b in rebatch([table(ids)], share=share, padding=padding, num_batches=num_batches)]

    assert len(sizes) == 11
    assert min(sizes) >= 14


def test_batches_leave_before_the_share_has_ended():
    """A share that does not fit in memory is never held: only the last few batches wait for its end."""
    pulled = []

    def stream():
        for start in range(0, 1000, 10):
            pulled.append(start)
            yield table(range(start, start + 10))

    held = []
    for sent, _ in enumerate(rebatch(stream(), share=1000, padding=3, num_batches=50), start=1):
        held.append(10 * len(pulled) - 20 * sent)
    assert max(held[:-3]) <= 30
    assert max(held) <= 60


@pytest.mark.parametrize(("n", "world", "batch_size"), [(1 + 2 * 8 * 3, 2, 16), (1 + 3 * 5 * 2, 3, 15), (65, 4, 64)])
def test_one_row_more_than_whole_batches_empties_none(n, world, batch_size):
    """N mod batch = 1 leaves one worker with all the padding and one row for the odd batch."""
    assert n % batch_size == 1
    share, padding = -(-n // world), -n % world
    num_batches = batches_per_epoch(n, batch_size)
    for real in (share, share - padding):
        ids = [*range(real), *[PAD_ID] * (share - real)]
        streamed = rebatch([table(ids)], share=share, padding=padding, num_batches=num_batches)
        assert min(batch.num_rows for batch in streamed) >= 1
    segments = Segments(n, batch_size, n, world)
    assert min(size for rank in range(world) for size in segments.batch_sizes(0, rank)) >= 1


# ---------------------------------------------------------------- padding


@pytest.mark.parametrize("image", [pa.binary(48), pa.binary()])
def test_padding_rows_have_the_schema_of_samples(image):
    """Raw images are black, encoded ones empty; the id is no sample's."""
    schema = pa.schema({"sample_id": pa.int64(), "label": pa.int32(), "image": image})
    padding = padding_rows(schema, 3)

    assert padding.schema == schema
    assert padding["sample_id"].to_pylist() == [PAD_ID] * 3
    assert padding["image"].to_pylist() == [bytes(48) if pa.types.is_fixed_size_binary(image) else b""] * 3


@given(st.lists(st.integers(-1, 5)))
def test_only_padding_is_dropped(ids):
    """What remains are the samples, in their order."""
    assert drop_padding(table(ids)).equals(table([i for i in ids if i != PAD_ID]))


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
