"""The arithmetic of segments: batches, rows and sizes that every worker knows of every other."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from easycore_ray.engine.segments import Segments


@st.composite
def runs(draw):
    """Segments of a run whose workers all have a row for each batch."""
    world = draw(st.integers(1, 9))
    segments = Segments(draw(st.integers(1, 2000)), world * draw(st.integers(1, 40)), draw(st.integers(1, 2500)), world)
    assume(segments.num_rows // world >= segments.num_batches)
    return segments


@given(runs())
def test_every_row_of_every_worker_is_in_one_segment(segments):
    """Segments are whole numbers of batches that follow one another, and so are each worker's rows."""
    numbers = [number for segment in range(segments.count) for number in segments.batches(segment)]
    assert numbers == list(range(-(-segments.num_rows // segments.batch_size)))
    assert all(len(segments.batches(segment)) > 0 for segment in range(segments.count))
    assert len({len(segments.batches(segment)) for segment in range(segments.count - 1)}) <= 1
    owned = [segments.rows_of_worker(rank) for rank in range(segments.world_size)]
    assert sum(owned) == segments.num_rows
    assert max(owned) - min(owned) <= 1
    for rank, rows in enumerate(owned):
        places = [place for segment in range(segments.count) for place in segments.rows(segment, rank)]
        assert places == list(range(rows))


@given(runs())
def test_batches_are_equal_to_within_one_row_and_known_to_all(segments):
    """No worker has an empty batch, nor one of more than its part; sizes over all workers add up."""
    for segment in range(segments.count):
        sizes = [segments.batch_sizes(segment, rank) for rank in range(segments.world_size)]
        flat = [size for worker in sizes for size in worker]
        assert min(flat) >= 1
        assert max(flat) - min(flat) <= 1
        assert max(flat) <= segments.batch_size // segments.world_size
        assert [len(segments.rows(segment, rank)) for rank in range(segments.world_size)] == [*map(sum, sizes)]
        assert segments.global_batch_sizes(segment) == [sum(step) for step in zip(*sizes, strict=True)]
        assert segments.global_rows(segment) == sum(flat)
        assert max(segments.global_batch_sizes(segment)) <= segments.batch_size


@given(st.lists(st.integers(20, 400), min_size=1, max_size=5), st.integers(1, 20), st.integers(1, 500))
def test_unequal_blocks_have_as_many_batches_each(blocks, share, images):
    """Every row of every worker once, no batch empty, of sizes that differ by one within a worker."""
    segments = Segments(sum(blocks), share * len(blocks), images, len(blocks), tuple(blocks))
    assume(min(blocks) >= segments.num_batches)
    assert segments.num_batches == -(-sum(blocks) // (share * len(blocks)))
    for rank, count in enumerate(blocks):
        places = [place for segment in range(segments.count) for place in segments.rows(segment, rank)]
        sizes = [size for segment in range(segments.count) for size in segments.batch_sizes(segment, rank)]
        assert places == list(range(count))
        assert (sum(sizes), len(sizes)) == (count, segments.num_batches)
        assert max(sizes) - min(sizes) <= 1 <= min(sizes)
    for segment in range(segments.count):
        workers = [segments.batch_sizes(segment, rank) for rank in range(len(blocks))]
        assert segments.global_batch_sizes(segment) == [sum(step) for step in zip(*workers, strict=True)]
        assert max(segments.global_batch_sizes(segment)) < segments.batch_size + len(blocks)


@pytest.mark.parametrize(("images", "batches"), [(65_536, [391]), (12_800, [100, 100, 100, 91]), (1, [1] * 391)])
def test_the_last_segment_has_the_rest(images, batches):
    """Of CIFAR-10's 50,000 images in batches of 128; by default they are one segment."""
    segments = Segments(50_000, 128, images)
    assert [len(segments.batches(segment)) for segment in range(segments.count)] == batches
