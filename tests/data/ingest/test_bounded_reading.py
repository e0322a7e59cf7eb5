"""However large a file or row group is, a piece is read a little at a time; no Ray."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from easycore_ray.data.ingest import readers
from tests.image_sources import pixels

pytestmark = pytest.mark.slow

MIB = 2**20


def test_a_row_group_is_never_held_whole(tmp_path):
    """A file of one row group of 200 MB takes some 16 MB at a time."""
    noise = np.random.default_rng(0).bytes(2 * MIB)
    table = pa.table({"image": pa.array([noise] * 100, pa.binary()), "label": [0] * 100})
    pq.write_table(table, tmp_path / "0.parquet", compression="none", use_dictionary=False)
    del table
    piece = readers.RowGroups(str(tmp_path), "0.parquet", (0,), 0, "image", "label", 100)
    before = pa.total_allocated_bytes()

    most, rows = 0, 0
    for sample in piece.samples():
        rows += 1
        most = max(most, pa.total_allocated_bytes() - before)
        assert sample.image == noise

    assert rows == 100
    assert most < 60 * MIB


def test_few_files_are_read_ahead(tmp_path):
    """While the first of 60 files of 2 MB is worked on, a few others are in memory."""
    for number in range(60):
        (tmp_path / f"{number:02d}.jpg").write_bytes(bytes(2 * MIB))
    piece = readers.Files(str(tmp_path), tuple((f"{number:02d}.jpg", "a") for number in range(60)))
    tracemalloc.start()
    before = pa.total_allocated_bytes()

    samples = piece.samples()
    first = next(samples)
    held = [first, *(sample.where for sample in samples)]
    most = tracemalloc.get_traced_memory()[1] + pa.total_allocated_bytes() - before
    tracemalloc.stop()

    assert len(held) == 60
    assert most < 60 * MIB


def test_a_task_holds_no_more_than_a_table(tmp_path):
    """Tables of checked images end at their limit of bytes."""
    images = tuple(pixels(number, (700, 700, 3)) for number in range(60))
    piece = readers.Arrays("made", 0, images, (0,) * 60)

    sizes = [table.nbytes for table in readers.check(0, piece, None)]

    assert len(sizes) > 1
    assert max(sizes) < readers.BYTES_PER_TABLE + 2 * MIB
