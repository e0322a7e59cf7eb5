"""Columns read where they lie: what the decoder gives, or nothing at all."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from easycore_ray.scoring.plain_pages import LARGE_PAGES, DamagedPageError, MappedColumns

PLAIN = {"id": "DELTA_BINARY_PACKED", "single": "PLAIN", "double": "PLAIN", "optional": "PLAIN", "truth": "PLAIN"}


def table(count):
    """Ids, floats of both widths, doubles that might be null, truth values."""
    rng = np.random.default_rng(count)
    double = rng.normal(size=count)
    kinds = [pa.int64(), pa.float32(), pa.float64(), pa.float64(), pa.bool_()]
    schema = pa.schema(
        [pa.field(name, kind, nullable=name == "optional") for name, kind in zip(PLAIN, kinds, strict=True)]
    )
    columns = [np.arange(count) * 3, double.astype(np.float32), double, -double, double > 0]
    return pa.table([pa.array(column) for column in columns], schema=schema)


def write(path, rows, **changes):
    """As our tables are written, but for what is given."""
    options = {"compression": "NONE", "use_dictionary": False, "column_encoding": PLAIN, "write_page_checksum": True}
    pq.write_table(rows, path, **{**options, **LARGE_PAGES, **changes})


def read(path, name, group=0, **options):
    """One column of a row group, and what the decoder gives for it."""
    with pa.memory_map(str(path)) as source, pq.ParquetFile(source) as file:
        return MappedColumns(source, file, **options).values(group, name), file.read_row_group(group, [name])[name]


@pytest.mark.parametrize("name", ["single", "double", "optional", "truth"])
@pytest.mark.parametrize("check", [False, True])
@given(st.integers(1, 3_000), st.sampled_from([1, 7, 1000]), st.booleans())
@settings(max_examples=20, deadline=None)
def test_values_are_those_of_the_decoder(tmp_path_factory, name, check, count, group_rows, one_page):
    """In every row group, whether it is one page or several."""
    path = tmp_path_factory.mktemp("pages") / "a.parquet"
    small = {} if one_page else {"data_page_size": 64, "max_rows_per_page": 50}
    write(path, table(count), row_group_size=group_rows, **small)

    for group in {0, (count - 1) // group_rows}:
        values, decoded = read(path, name, group, check=check)
        assert values is not None
        assert values.tolist() == decoded.to_pylist()


def test_one_page_is_not_copied(tmp_path):
    """A view of the mapped file."""
    write(tmp_path / "a.parquet", table(1_000))
    values, _ = read(tmp_path / "a.parquet", "single")

    assert values.base is not None
    assert not values.flags.owndata


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("id", {}),
        ("single", {"compression": "ZSTD"}),
        ("single", {"use_dictionary": True, "column_encoding": None}),
        ("single", {"column_encoding": PLAIN | {"single": "BYTE_STREAM_SPLIT"}}),
        ("single", {"data_page_version": "2.0"}),
        ("truth", {"column_encoding": PLAIN | {"truth": "RLE"}}),
    ],
)
def test_what_is_not_plain_is_left_to_the_decoder(tmp_path, name, changes):
    """Deltas, compression, dictionaries, split streams, pages of the other version."""
    write(tmp_path / "a.parquet", table(500), **changes)

    assert read(tmp_path / "a.parquet", name)[0] is None


@pytest.mark.parametrize("missing", [[0], [499], list(range(500)), [3, 4, 400]])
def test_nulls_are_left_to_the_decoder(tmp_path, missing):
    """Whichever values are missing."""
    rows = table(500)
    values = [None if at in missing else value for at, value in enumerate(rows["optional"].to_pylist())]
    write(tmp_path / "a.parquet", rows.set_column(3, rows.schema.field(3), [pa.array(values, pa.float64())]))

    assert read(tmp_path / "a.parquet", "optional")[0] is None


def test_a_flipped_bit_is_found_where_pages_are_checked(tmp_path):
    """Anywhere in the values; unchecked it is another number, as for the decoder."""
    path = tmp_path / "a.parquet"
    write(path, table(500))
    content = bytearray(path.read_bytes())
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(1)
    content[chunk.data_page_offset + chunk.total_compressed_size - 700] ^= 1
    path.write_bytes(content)

    with pytest.raises(DamagedPageError, match="does not have the checksum"):
        read(path, "single", check=True)
    values, decoded = read(path, "single")
    assert values.tolist() == decoded.to_pylist()


@example(at=14, byte=1)  # bytes where the number of values is expected
@given(at=st.integers(0, 40), byte=st.integers(0, 255))
@settings(max_examples=150, deadline=None)
def test_a_damaged_header_never_gives_other_values(tmp_path_factory, at, byte):
    """Whatever a byte of a page header becomes: the right values, an error, or nothing and so the decoder's word."""
    path = tmp_path_factory.mktemp("pages") / "a.parquet"
    write(path, table(500))
    content = bytearray(path.read_bytes())
    expected = read(path, "single")[0].tolist()
    offset = pq.ParquetFile(path).metadata.row_group(0).column(1).data_page_offset
    header = content[offset : offset + 41]
    length = 500 * 4
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(1).total_compressed_size
    if at >= chunk - length or header[at] == byte:
        return
    content[offset + at] = byte
    path.write_bytes(content)
    try:
        with pa.memory_map(str(path)) as source, pq.ParquetFile(source) as file:
            values = MappedColumns(source, file, check=True).values(0, "single")
    except DamagedPageError:
        return
    assert values is None or values.tolist() == expected
