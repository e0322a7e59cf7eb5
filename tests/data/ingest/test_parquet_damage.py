"""Damaged Parquet files: what the format has the means to tell is told, by an error that names the file."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from easycore_ray.data.ingest import readers, sources
from easycore_ray.storage.errors import EasyCoreError

LABELS = [0, 1, 2, 0, 1, 2]


def write(path, **options):
    """Six images and labels as plain, uncompressed pages."""
    buffer = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(buffer, "PNG")
    images = [{"bytes": buffer.getvalue(), "path": f"{row}.png"} for row in range(len(LABELS))]
    table = pa.table({"image": images, "label": LABELS})
    pq.write_table(table, path, use_dictionary=False, compression="none", **options)


def change(path, at, byte):
    """Put another byte into a file."""
    content = bytearray(path.read_bytes())
    content[at] = byte
    path.write_bytes(content)


def last_label(path):
    """Where the last of the labels begins: int64, little endian, at the end of its column's only page."""
    column = pq.ParquetFile(path).metadata.row_group(0).column(2)
    assert column.path_in_schema == "label"
    return column.data_page_offset + column.total_compressed_size - 8


def problems(path):
    """What is wrong with the rows of a file without class names."""
    [piece] = sources.list_source(str(path)).pieces["train"]
    rows = pa.concat_tables(readers.check(0, piece, None))
    return [problem for problem in rows["problem"].to_pylist() if problem]


def test_checksums_of_pages_are_looked_at(tmp_path):
    """Another label that is as good as the right one, where the writer has put checksums."""
    path = tmp_path / "0.parquet"
    write(path, write_page_checksum=True)
    assert problems(path) == []
    change(path, last_label(path), 1)

    [problem] = problems(path)

    assert f"{path} cannot be read (row group 0)" in problem
    assert "crc" in problem.lower()


def test_labels_beyond_the_statistics_are_damage(tmp_path):
    """A file without checksums says in its footer between which labels all of them lie."""
    path = tmp_path / "0.parquet"
    write(path)
    change(path, last_label(path), 3)

    [problem] = problems(path)

    assert f"{path} cannot be read (row group 0): labels 0 .. 3 are beyond the footer's 0 .. 2" in problem


def test_keys_that_are_no_utf8_are_damage(tmp_path):
    """Not a traceback."""
    path = tmp_path / "0.parquet"
    write(path)
    change(path, path.read_bytes().index(b"3.png"), 0xFF)

    [problem] = problems(path)

    assert f"{path} cannot be read (row group 0)" in problem
    assert "UTF8" in problem


def test_names_of_columns_that_are_no_utf8_are_damage(tmp_path):
    """Seen when the file is listed."""
    path = tmp_path / "0.parquet"
    write(path)
    content = path.read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    change(path, content.index(b"label", footer), 0xFF)

    with pytest.raises(EasyCoreError, match=r"0\.parquet cannot be read as Parquet"):
        sources.list_source(str(path))
