"""Order of a stream: blocks permuted, rows shuffled in a buffer; every row once, mixed almost as by a full shuffle."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from easycore_ray.core.seeding import numpy_rng
from easycore_ray.data.stream_order import Buffer, cut_blocks, permute_blocks, shuffle_batches, size_buffer
from easycore_ray.engine.segments import Segments


def batches(sizes, buffer, seed=0):
    return list(shuffle_batches(sizes, Buffer(*buffer), np.random.default_rng(seed)))


def test_blocks_are_the_rows_of_a_row_group_in_one_shard():
    """Shards with row groups of 3 and of 2 rows, of which some rows are wanted."""
    shard, row = np.array([0, 0, 0, 0, 0, 1, 1, 2, 2]), np.array([0, 2, 3, 7, 8, 0, 1, 1, 2])
    assert cut_blocks(shard, row, [3, 3, 2]).tolist() == [0, 2, 3, 5, 7, 8, 9]
    assert cut_blocks(np.array([], int), np.array([], int), [3]).tolist() == [0]


@given(st.lists(st.integers(1, 5), max_size=30), st.integers(0, 5), st.integers(1, 3), st.integers(0, 3))
def test_an_order_has_every_block_once_and_whole(sizes, seed, epoch, rank):
    """In an order that seed, epoch and rank decide."""
    blocks = np.cumsum([0, *sizes])
    order = permute_blocks(blocks, seed, epoch, rank)
    assert sorted(order.tolist()) == list(range(sum(sizes)))
    starts = {int(start): int(stop) for start, stop in itertools.pairwise(blocks)}
    at = 0
    while at < len(order):
        stop = starts.pop(int(order[at]))
        assert order[at : at + stop - order[at]].tolist() == list(range(order[at], stop))
        at += stop - order[at]
    assert not starts
    assert np.array_equal(order, permute_blocks(blocks, seed, epoch, rank))


def test_seed_epoch_and_rank_each_change_the_order():
    """Of 50 blocks."""
    blocks = np.arange(0, 501, 10)
    orders = [permute_blocks(blocks, *where).tolist() for where in ((0, 1, 0), (1, 1, 0), (0, 2, 0), (0, 1, 1))]
    assert all(one != other for number, one in enumerate(orders) for other in orders[:number])


@given(st.lists(st.integers(1, 9), max_size=40), st.integers(1, 60), st.integers(1, 60), st.integers(0, 3))
def test_every_row_leaves_once_and_after_it_has_entered(sizes, start, full, seed):
    """In batches of the sizes wanted; the buffer holds no more than it may."""
    left, held = [], 0
    for size, (entered, positions) in zip(sizes, batches(sizes, (min(start, full), full), seed), strict=True):
        assert len(positions) == size
        assert positions.max() < entered <= sum(sizes)
        held = max(held, entered - len(left))
        left += positions.tolist()
    assert sorted(left) == list(range(sum(sizes)))
    assert held <= max(full, 2 * max(sizes, default=0))


def test_the_first_batch_waits_for_few_rows_and_the_buffer_fills_up():
    """Two rows enter for each that leaves."""
    entered = [number for number, _ in batches([10] * 30, (40, 100))]
    assert entered == [40, 60, 80, 100, 120, 140, 160, *range(170, 301, 10), *[300] * 9]


def batch_of_each_row(segments, block_rows, epoch):
    """The batch that each row of each worker's share is in."""
    buffer = size_buffer(segments.num_rows, block_rows, segments.world_size)
    found = []
    for rank in range(segments.world_size):
        rows = segments.rows_of_worker(rank)
        order = permute_blocks(cut_blocks(np.zeros(rows, int), np.arange(rows), [block_rows]), 0, epoch, rank)
        batch_of_row = np.empty(rows, np.int64)
        for segment in range(segments.count):
            mine = order[slice(*(segments.rows(segment, rank).start, segments.rows(segment, rank).stop))]
            draws = shuffle_batches(
                segments.batch_sizes(segment, rank), buffer, numpy_rng("buffer", 0, epoch, segment, rank)
            )
            for batch, (_, positions) in zip(segments.batches(segment), draws, strict=True):
                batch_of_row[mine[positions]] = batch
        found.append(batch_of_row)
    return np.concatenate(found)


def pairs(groups):
    """Pairs of rows that share a group."""
    counts = np.unique(groups, return_counts=True)[1].astype(float)
    return (counts * (counts - 1) / 2).sum()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("block_rows", "workers", "batch_size"), [(16, 1, 256), (16, 8, 1024), (333, 1, 256), (333, 8, 512), (1000, 3, 256)]
)
def test_a_stream_mixes_almost_as_a_full_shuffle_does(block_rows, workers, batch_size):
    """Of a million rows: pairs that share a batch share one in the next epoch at most 1.5 times as often; all pairs."""
    segments = Segments(1_000_000, batch_size, 65_536, workers)
    first, second = (batch_of_each_row(segments, block_rows, epoch) for epoch in (1, 2))
    again = pairs(first * segments.num_batches + second) / pairs(first)
    shuffled = pairs(second) / pairs(np.zeros(1_000_000, int))
    assert again / shuffled <= 1.5


def test_rows_that_only_pass_through_blocks_do_not_mix():
    """The measure tells: without a buffer, rows of a block share a batch in every epoch."""
    segments = Segments(100_000, 100, 100_000)
    blocks = cut_blocks(np.zeros(100_000, int), np.arange(100_000), [50])
    orders = [permute_blocks(blocks, 0, epoch, 0) for epoch in (1, 2)]
    first, second = (np.argsort(order) // 100 for order in orders)
    assert pairs(first * segments.num_batches + second) / pairs(first) > 100 * pairs(second) / pairs(np.zeros(100_000))
