"""Shard files: what is written is what is read, whichever rows are asked for; no Ray."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easycore_ray.data import shards
from easycore_ray.data.ingest import readers
from easycore_ray.data.shards import Layout

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


@settings(max_examples=30)
@given(chosen=st.lists(st.integers(0, 2499), max_size=20))
def test_chosen_rows_are_those_of_the_whole(shard, chosen):
    """Row groups in between need not be read; positions still count from the start of the file."""
    path, rows = shard
    positions = np.array(chosen, np.int32)

    assert shards.read_rows(path, positions).equals(rows.take(pa.array(positions)))


def test_a_shard_of_several_is_their_chosen_rows_in_order(shard, tmp_path):
    """As a subset is written."""
    path, rows = shard
    layout = RAW if pa.types.is_fixed_size_binary(rows.schema.field("image").type) else ENCODED
    out = str(tmp_path / "out.parquet")

    shards.copy_rows(out, layout, [(path, np.array([2400, 2499])), (path, np.array([7, 1000]))])

    assert shards.read_rows(out)["sample_id"].to_pylist() == [7200, 7497, 21, 3000]


def test_row_groups_of_large_images_have_few_rows(tmp_path):
    """A reader of one row should not have to read a hundred megabytes."""
    path = str(tmp_path / "0.parquet")
    large = pa.table({"sample_id": range(12), "label": [0] * 12, "image": [bytes(2**20)] * 12}, schema=ENCODED.schema)

    shards.write_rows(path, ENCODED, large)

    metadata = pq.ParquetFile(path).metadata
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [3, 3, 3, 3]


@settings(max_examples=30)
@given(order=st.permutations(range(8)), shards_of=st.lists(st.integers(0, 2), min_size=8, max_size=8))
def test_scattered_rows_meet_again_in_their_shard(tmp_path_factory, order, shards_of):
    """Whatever block they come from, each row lies in its shard at its position, and only there."""
    folder = tmp_path_factory.mktemp("scatter")
    pixels = [bytes([row] * 6) for row in range(8)]
    blocks = [
        pa.Table.from_pylist([{"pixels": pixels[row]} for row in rows], schema=readers.CHECKED_SCHEMA)
        for rows in ([0, 1, 2], [3, 4], [5, 6, 7])
    ]
    places, start = [], 0
    positions = {row: [r for r in order if shards_of[r] == shards_of[row]].index(row) for row in range(8)}
    for block in blocks:
        rows = range(start, start + len(block))
        start += len(block)
        columns = {
            "offset": range(len(block)),
            "shard": [shards_of[row] for row in rows],
            "row": pa.array([positions[row] for row in rows], pa.int32()),
            "sample_id": rows,
            "label": pa.array([0] * len(block), pa.int32()),
        }
        places.append(pa.table({name: pa.array(values) for name, values in columns.items()}))

    parts = [
        shards.scatter(places[:2], RAW, 3, *blocks[:2]),
        shards.scatter(places[2:], RAW, 3, *blocks[2:]),
    ]

    for number in range(3):
        path = str(folder / f"{number}.parquet")
        shards.write_dealt_shard(path, RAW, *(part[number] for part in parts))
        expected = [row for row in order if shards_of[row] == number]
        found = shards.read_rows(path)
        assert found["sample_id"].to_pylist() == expected
        assert found["image"].to_pylist() == [pixels[row] for row in expected]


def test_pixels_of_raw_rows_are_a_view():
    """Reading raw images copies nothing."""
    rows = table(50, RAW)
    column = rows["image"].chunk(0)

    view = shards.pixels(rows.slice(10, 5), RAW)

    assert view.shape == (5, 1, 2, 3)
    assert view.tobytes() == b"".join(column.slice(10, 5).to_pylist())
    assert np.shares_memory(view, np.frombuffer(column.buffers()[1], np.uint8))


def test_workers_need_no_torch():
    """A Ray worker that only reads and writes shards starts seconds faster without it."""
    code = "import sys, easycore_ray.data.ingest.readers, easycore_ray.data.shards; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
