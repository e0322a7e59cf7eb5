"""Columns of Parquet files that are mapped into memory, read where they lie: no decoder, no copy.

Takes a mapped file and its metadata, gives views of the values of a column chunk that is plain and uncompressed, as
ours are; of anything else it gives None, and the caller decodes. The one decision: whatever looks odd is left to the
decoder, which knows all of Parquet and names what is damaged. A column of floats is then read at memory speed.
"""

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

LARGE_PAGES: dict[str, Any] = {"data_page_size": 1 << 30, "max_rows_per_page": 1 << 30}
"""Of a Parquet writer: one page for each column of a row group, so that its values lie together."""

Bytes = NDArray[np.uint8]
_DTYPES: dict[str, np.dtype[Any]] = {"FLOAT": np.dtype("<f4"), "DOUBLE": np.dtype("<f8"), "BOOLEAN": np.dtype(bool)}
# More than our page headers take; one that is longer is left to the decoder.
_HEADER_BYTES = 256
_DATA_PAGE, _PLAIN, _RLE = 0, 0, 3


class DamagedPageError(ValueError):
    """A page does not have the checksum in its header."""


class MappedColumns:
    """The columns of one Parquet file in local memory.

    Args:
        source: the whole file, mapped.
        file: the same, opened.
        check: compare the checksum of every page that is read, where the file has some.
    """

    def __init__(self, source: pa.MemoryMappedFile, file: pq.ParquetFile, *, check: bool = False) -> None:
        source.seek(0)
        self._content: Bytes = np.frombuffer(source.read_buffer(), np.uint8)
        self._metadata = file.metadata
        self._check = check
        schema = file.schema
        self._columns = {schema.column(at).name: (at, schema.column(at)) for at in range(len(schema))}

    def raw(self, group: int, name: str) -> Bytes | None:
        """The bytes of a column chunk, page headers included; None if the metadata makes no sense."""
        chunk = self._metadata.row_group(group).column(self._columns[name][0])
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        stop = start + chunk.total_compressed_size
        return self._content[start:stop] if 0 < start < stop <= len(self._content) else None

    def values(self, group: int, name: str) -> NDArray | None:
        """The values of a column chunk without nulls, maybe not aligned; None if it has to be decoded.

        Raises:
            DamagedPageError: a page does not have the checksum in its header.
        """
        at, spec = self._columns[name]
        chunk = self._metadata.row_group(group).column(at)
        raw = self.raw(group, name)
        dtype = _DTYPES.get(chunk.physical_type)
        if raw is None or dtype is None or chunk.compression != "UNCOMPRESSED" or chunk.has_dictionary_page:
            return None
        if spec.max_repetition_level or spec.max_definition_level > 1:
            return None
        found = []
        for page in _pages(raw, check=self._check):
            values = None if page is None else _plain(*page, dtype, optional=spec.max_definition_level == 1)
            if values is None:
                return None
            found.append(values)
        if sum(map(len, found)) != chunk.num_values:
            return None
        return found[0] if len(found) == 1 else np.concatenate(found)


def _pages(raw: Bytes, *, check: bool) -> Iterator[tuple[int, Bytes] | None]:
    """Number of values and content of each page; None, and no more, at one that is not plain data."""
    at = 0
    while at < len(raw):
        try:
            header, length = _struct(raw[at : at + _HEADER_BYTES].tobytes(), 0)
            kind, size, stored, data = header[1], header[2], header[3], header[5]
            count, encoding, levels = data[1], data[2], data[3]
            if not all(isinstance(field, int) for field in (kind, size, stored, count, encoding, levels)):
                raise TypeError("a number is something else")
        except (IndexError, KeyError, TypeError, ValueError):
            yield None
            return
        start = at + length
        at = start + stored
        if (kind, encoding, levels) != (_DATA_PAGE, _PLAIN, _RLE) or size != stored or stored < 0 or at > len(raw):
            yield None
            return
        content = raw[start:at]
        if check and 4 in header and zlib.crc32(content.data) != header[4] % 2**32:
            raise DamagedPageError("a page does not have the checksum in its header")
        yield count, content


def _plain(count: int, content: Bytes, dtype: np.dtype[Any], *, optional: bool) -> NDArray | None:
    """The values of one page; None if some are null or the size is not theirs."""
    if optional:
        # Which values are there: a length, then one run of ``count`` times 1 where all are.
        run = _varint_bytes(count << 1) + b"\x01"
        levels = len(run).to_bytes(4, "little") + run
        if content[: len(levels)].tobytes() != levels:
            return None
        content = content[len(levels) :]
    if dtype.kind == "b":
        bits = np.unpackbits(content, count=count, bitorder="little") if len(content) == -(-count // 8) else None
        return None if bits is None else bits.view(bool)
    return content.view(dtype) if len(content) == count * dtype.itemsize else None


# ---------------------------------------------------------------- Thrift's compact protocol, as far as headers use it


def _struct(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    """The fields of a struct by number, and the place after it.

    Raises:
        ValueError: a field of a type that our headers do not have.
        IndexError: the data end within it.
    """
    fields: dict[int, Any] = {}
    number = 0
    while head := data[at]:
        at += 1
        kind = head & 15
        if head >> 4:
            number += head >> 4
        else:
            number, at = _integer(data, at)
        if kind in (1, 2):
            fields[number] = kind == 1
        elif kind in (5, 6):
            fields[number], at = _integer(data, at)
        elif kind == 8:
            length, at = _varint(data, at)
            fields[number], at = data[at : at + length], at + length
        elif kind == 12:
            fields[number], at = _struct(data, at)
        else:
            raise ValueError(f"type {kind}")
    return fields, at + 1


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def _integer(data: bytes, at: int) -> tuple[int, int]:
    """A signed integer: its sign is the lowest bit."""
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _varint_bytes(value: int) -> bytes:
    found = bytearray()
    while value >= 128:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
