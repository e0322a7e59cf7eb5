"""Shard files: what is written is what is read, whichever rows are asked for; no Ray."""

import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easycore_ray.data import shards
from easycore_ray.data.ingest import readers, shard_writer, staging
from easycore_ray.data.ingest.measuring import DEFAULT_VIEWING
from easycore_ray.data.shards import Layout
from easycore_ray.storage.errors import EasyCoreError

RAW = Layout("raw", (1, 2, 3), None)
ENCODED = Layout("encoded", (3, 200, 200), None)


def table(rows, layout):
    """Rows whose image bytes are their sample id."""
    size = 6 if layout.storage == "raw" else 11
    columns = {
        "sample_id": np.arange(rows) * 3,
        "label": np.arange(rows) % 7,
        "image": [str(row).rjust(size).encode() for row in range(rows)],
    }
    return pa.table(columns, schema=layout.schema)


@pytest.fixture(scope="module", params=[RAW, ENCODED], ids=["raw", "encoded"])
def shard(request, tmp_path_factory):
    """A shard of 2,500 rows, so of three row groups: its path and rows."""
    path = str(tmp_path_factory.mktemp("shard") / "0.parquet")
    rows = table(2500, request.param)
    shards.write_rows(path, request.param, rows)
    assert pq.ParquetFile(path).num_row_groups == 3
    return path, rows


def test_all_rows_are_read_as_written(shard):
    """To the bit, without the file's metadata."""
    path, rows = shard

    assert shards.read_rows(path).equals(rows, check_metadata=True)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 9),
    shards_of=st.lists(st.integers(0, 2), min_size=8, max_size=8),
    batch_bytes=st.sampled_from([1, 1 << 20]),
)
def test_staged_rows_meet_again_in_their_shard(tmp_path_factory, seed, shards_of, batch_bytes):
    """Whatever piece they come from, each row lies in its shard at its position, and only there."""
    folder = tmp_path_factory.mktemp("staged")
    checking = staging.Checking(None, DEFAULT_VIEWING, seed)
    values = [np.full((2, 3), row, np.uint8) for row in range(8)]
    parts = []
    with mock.patch.object(staging, "_BATCH_BYTES", batch_bytes):
        for number, rows in enumerate(([0, 1, 2], [3, 4], [5, 6, 7])):
            piece = readers.Arrays("made", 0, tuple(values[row] for row in rows), tuple(rows))
            parts += staging.stage_piece(str(folder), number, piece, checking)
    hashes = staging.concat_samples(parts)["hash"].to_numpy()

    for number in range(3):
        members = np.flatnonzero(np.array(shards_of) == number)
        if not len(members):
            continue
        rows = members[np.argsort(hashes[members])]
        path = str(folder / f"{number}.parquet")
        sources = [(part.path, *part.batches_of(hashes[rows[0]], hashes[rows[-1]])) for part in parts]
        written = shard_writer.write_shard(path, RAW, sources, hashes[rows], 10 * rows)
        found = shards.read_rows(path)
        assert found["sample_id"].to_pylist() == (10 * rows).tolist()
        assert found["label"].to_pylist() == rows.tolist()
        assert found["image"].to_pylist() == [bytes([row] * 6) for row in rows]
        assert written.sums[0] == 6 * rows.sum()
        assert written.squares[0] == 6 * (rows**2).sum()


def test_a_row_that_is_not_staged_is_an_error(tmp_path):
    """A shard never has fewer rows than were counted."""
    piece = readers.Arrays("made", 0, (np.zeros((2, 3), np.uint8),), (0,))
    [part] = staging.stage_piece(str(tmp_path), 0, piece, staging.Checking(None, DEFAULT_VIEWING, 0))
    hashes = np.sort(staging.placement_hash(0, 0, np.arange(2)))
    sources = [(part.path, *part.batches_of(hashes[0], hashes[1]))]

    with pytest.raises(EasyCoreError, match="not all in the staging files"):
        shard_writer.write_shard(str(tmp_path / "0.parquet"), RAW, sources, hashes, np.arange(2))

    assert not (tmp_path / "0.parquet").exists()


def test_pixels_of_raw_rows_are_a_view():
    """Reading raw images copies nothing."""
    rows = table(50, RAW)
    column = rows["image"].chunk(0)

    view = shards.pixels(rows.slice(10, 5), RAW)

    assert view.shape == (5, 1, 2, 3)
    assert view.tobytes() == b"".join(column.slice(10, 5).to_pylist())
    assert np.shares_memory(view, np.frombuffer(column.buffers()[1], np.uint8))


@pytest.mark.slow
def test_workers_need_no_torch():
    """A Ray worker that only reads, decodes and writes shards starts seconds faster without it."""
    code = "import sys, easycore_ray.data.ingest.readers, easycore_ray.data.stream; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
