"""Epochs whose batches hold extra rows: shares, passes and sizes, against plain counting."""

from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from easycore_ray.engine.mixed_segments import Deal, MixedSegments, PassSegments


@st.composite
def runs(draw, most_rows=300):
    """Segments of a run whose workers all have a row for each batch."""
    world = draw(st.integers(1, 5))
    batch = draw(st.integers(2, 40))
    cut = draw(st.integers(1, most_rows)), batch, draw(st.integers(1, 400)), world
    segments = MixedSegments(
        *cut, extra_rows=draw(st.integers(1, most_rows)), extra_batch_rows=draw(st.integers(1, batch - 1))
    )
    assume(segments.num_rows // world >= segments.num_batches)
    return segments


def dealt_by_hand(num_rows, world, total):
    """Which worker has each row of the sequence: round after round, those with larger blocks first."""
    sizes = [(rank + 1) * num_rows // world - rank * num_rows // world for rank in range(world)]
    turns = sorted(range(world), key=lambda rank: (-sizes[rank], rank))
    one_pass = [turns[place % world] for place in range(num_rows)]
    return [one_pass[place % num_rows] for place in range(total)]


def total(sizes):
    """Of all workers, batch by batch."""
    return [sum(batch) for batch in zip(*sizes, strict=True)]


@given(st.integers(1, 40), st.integers(1, 7), st.integers(0, 200))
def test_rows_are_dealt_one_by_one(num_rows, world, total):
    """A worker's rows among the first so many are those counted by hand; of a whole pass it has its block."""
    owners, deal = dealt_by_hand(num_rows, world, total), Deal(num_rows, world)
    assert [deal.dealt(total, rank) for rank in range(world)] == [owners.count(rank) for rank in range(world)]
    blocks = [(rank + 1) * num_rows // world - rank * num_rows // world for rank in range(world)]
    assert [deal.dealt(num_rows, rank) for rank in range(world)] == blocks


@given(runs())
def test_every_batch_has_its_share_of_extra_rows(segments):
    """To within a row; every main row is in one batch, and each worker has one of them in each."""
    share = segments.extra_batch_rows / segments.main_batch_rows
    assert segments.num_batches == -(-segments.num_rows // segments.main_batch_rows)
    main_rows = extra_rows = 0
    for segment in range(segments.count):
        sizes = [segments.batch_sizes(segment, rank) for rank in range(segments.world_size)]
        assert [len(segments.rows(segment, rank)) for rank in range(segments.world_size)] == [*map(sum, sizes)]
        assert min(map(min, sizes)) >= 1
        main = total(sizes)
        extra = [both - own for both, own in zip(segments.global_batch_sizes(segment), main, strict=True)]
        assert max(max(step) - min(step) for step in zip(*sizes, strict=True)) <= 1
        assert all(abs(count - share * rows) < 1 for count, rows in zip(extra, main, strict=True))
        assert all(both <= segments.batch_size for both in segments.global_batch_sizes(segment))
        assert segments.scored_rows(segment) == sum(main)
        main_rows, extra_rows = main_rows + sum(main), extra_rows + sum(extra)
    assert main_rows == segments.num_rows
    assert 0 <= extra_rows - share * main_rows < 1
    assert extra_rows == segments.extra_per_epoch


@pytest.mark.parametrize("world", [1, 2, 4])
def test_whole_batches_are_of_the_size_that_was_asked_for(world):
    """70 % of 128 are 90 rows, also where the other 38 cannot be shared equally."""
    segments = MixedSegments(3800, 128, 65_536, world, extra_rows=1000, extra_batch_rows=90)
    assert segments.global_batch_sizes(0) == [128] * 100
    assert segments.rows_seen(250) == (250 * 38, 250 * 90)


@given(runs(most_rows=60), st.integers(1, 4))
def test_passes_are_taken_one_after_the_other(segments, epochs):
    """Row for row as by hand: each row of each worker's pass in turn, in the batch that it belongs to."""
    world, count = segments.world_size, segments.extra_per_epoch * epochs
    owners = dealt_by_hand(segments.extra_rows, world, count)
    place, cuts = 0, {}
    for epoch in range(1, epochs + 1):
        for segment in range(segments.count):
            main = total([segments.batch_sizes(segment, rank) for rank in range(world)])
            totals = segments.global_batch_sizes(segment)
            taken = [both - own for both, own in zip(totals, main, strict=True)]
            for size, passes in zip(taken, segments.passes(epoch, segment), strict=True):
                expected = sorted({at // segments.extra_rows + 1 for at in range(place, place + size)})
                assert list(passes) == expected
                for number in expected:
                    span = [at for at in range(place, place + size) if at // segments.extra_rows + 1 == number]
                    mine = [sum(owners[at] == rank for at in span) for rank in range(world)]
                    cuts.setdefault(number, {}).setdefault((epoch, segment), []).append(mine)
                place += size
    assert place == count
    for number, taken in cuts.items():
        cut = PassSegments.of(segments, number)
        assert [cut.rows_of_worker(rank) for rank in range(world)] == [
            Deal(segments.extra_rows, world).dealt(segments.extra_rows, rank) for rank in range(world)
        ]
        for (epoch, segment), batches in taken.items():
            at = cut.place(epoch, segment)
            assert 0 <= at < cut.count
            by_worker = [list(sizes) for sizes in zip(*batches, strict=True)]
            assert [cut.batch_sizes(at, rank) for rank in range(world)] == by_worker
            assert [len(cut.rows(at, rank)) for rank in range(world)] == [*map(sum, by_worker)]
            assert cut.global_batch_sizes(at) == total(by_worker)
        spans = [cut.rows(at, 0) for at in range(cut.count)]
        assert spans[0].start == 0
        assert all(before.stop == after.start for before, after in pairwise(spans))
        assert spans[-1].stop == cut.rows_of_worker(0)
