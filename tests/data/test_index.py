"""The index is read by column and by range: what is not wanted is not fetched."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from easycore_ray.data.dataset import draw_ids, locate_samples, open_dataset
from easycore_ray.data.index import INDEX_SCHEMA, read_index, read_index_range, read_index_rows
from easycore_ray.storage import paths
from tests.artifacts import make_dataset

ROWS = 20_000


class CountingFile:
    """A file that counts the bytes that are read from it."""

    def __init__(self, path, counts):
        self._file, self._counts = Path(path).open("rb"), counts  # noqa: SIM115  (closed by pyarrow)

    def read(self, size=-1):
        """Of the file."""
        content = self._file.read(size)
        self._counts.append(len(content))
        return content

    def __getattr__(self, name):
        """Of the file."""
        return getattr(self._file, name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dataset of 20,000 samples in 100 row groups; ids are the even numbers."""
    made = tmp_path_factory.mktemp("index") / "d"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("easycore_ray.data.index._ROW_GROUP_ROWS", 200)
        make_dataset(made, [number % 7 for number in range(ROWS)], ids=[2 * number for number in range(ROWS)])
    assert pq.ParquetFile(made / "index.parquet").num_row_groups == 100
    return str(made)


@pytest.fixture
def bytes_read(monkeypatch):
    """Sizes of the reads of Parquet files, as they are made."""
    counts = []
    monkeypatch.setattr(paths, "open_input", lambda path: pa.PythonFile(CountingFile(path, counts), "r"))
    return counts


def column_bytes(folder, *columns):
    """Stored bytes of some columns."""
    metadata = pq.ParquetFile(f"{folder}/index.parquet").metadata
    at = [INDEX_SCHEMA.get_field_index(name) for name in columns]
    return sum(
        metadata.row_group(group).column(column).total_compressed_size
        for group in range(metadata.num_row_groups)
        for column in at
    )


def footer_bytes(folder):
    """What every reader needs first; pyarrow fetches the last 64 KiB, and then all of a footer that is longer."""
    return (1 << 16) + pq.ParquetFile(f"{folder}/index.parquet").metadata.serialized_size


def test_places_of_few_samples_are_read_from_their_row_groups_alone(folder, bytes_read):
    """250 of 20,000 ids that lie together: footer, and four columns of two or three row groups of a hundred."""
    ids = np.arange(8000, 8500, 2)

    places = locate_samples(open_dataset(folder), "train", ids)

    assert places["sample_id"].to_pylist() == ids.tolist()
    assert sum(bytes_read) <= footer_bytes(folder) + 0.03 * column_bytes(folder, "sample_id", "label", "shard", "row")


def test_a_draw_fetches_two_columns(folder, bytes_read):
    """Footer, ids and labels."""
    drawn = draw_ids(open_dataset(folder), "train", 700, seed=0)

    assert np.bincount(drawn // 2 % 7).tolist() == [100] * 7
    assert sum(bytes_read) <= footer_bytes(folder) + column_bytes(folder, "sample_id", "label")


@pytest.mark.parametrize("ids", [[0], [39_998, 4, 400, 2], [399, 400], [], list(range(0, 40_000, 334))])
def test_chosen_rows_are_those_of_the_whole(folder, ids):
    """In id order, in any columns; ids that are not there are left out."""
    whole = read_index(folder, "train")
    expected = whole.take(pa.array([sample_id // 2 for sample_id in sorted(ids) if sample_id % 2 == 0], pa.int64()))

    assert read_index_rows(folder, "train", np.array(ids, np.int64)).to_pydict() == expected.to_pydict()
    keys = read_index_rows(folder, "train", np.array(ids, np.int64), ["key"])
    assert keys.to_pydict() == expected.select(["key"]).to_pydict()
    assert len(read_index_rows(folder, "val", np.array(ids, np.int64))) == 0


def test_columns_are_read_alone_and_as_they_are_asked_for(folder, bytes_read):
    """Numbers in one piece, of the type of the schema."""
    rows = read_index(folder, "train", ["label", "input_norm"])

    assert rows.schema.equals(pa.schema([INDEX_SCHEMA.field(name) for name in ("label", "input_norm")]))
    assert [column.num_chunks for column in rows.columns] == [1, 1]
    assert rows["label"].to_pylist() == [number % 7 for number in range(ROWS)]
    assert sum(bytes_read) <= footer_bytes(folder) + column_bytes(folder, "label", "input_norm")
    assert read_index(folder, "test", ["key"]).schema.names == ["key"]


def test_a_range_fetches_its_row_groups(folder, bytes_read):
    """Footer, ids and the column wanted of two row groups at most."""
    rows = read_index_range(folder, "train", 1000, 1100, ["key"])

    assert rows["key"].to_pylist() == [f"{number % 7}/{2 * number}.png" for number in range(500, 551)]
    assert sum(bytes_read) <= footer_bytes(folder) + 0.021 * column_bytes(folder, "sample_id", "key")
