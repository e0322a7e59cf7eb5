"""Rows of a Parquet file, a few at a time, and trusted only as far as the file's own footer and checksums agree.

A row group may be as large as its file: its images are read in batches. Imported by Ray workers, so no torch in here.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from easycore_ray.storage import paths
from easycore_ray.storage.errors import EasyCoreError

_BATCH_BYTES = 16 * 1024 * 1024
_BATCH_ROWS = 1000
# Of a remote file, row groups up to the first size are fetched in few requests, larger ones in pieces of the second.
_WHOLE_BYTES = 256 * 1024 * 1024
_PIECE_BYTES = 8 * 1024 * 1024


def read_row_groups(
    path: str, groups: Sequence[int], image_column: str, label_column: str
) -> Iterator[tuple[Any, Any]]:
    """Image and label of all rows of some row groups, in order.

    Raises:
        EasyCoreError: the file is damaged. Rows before that have been given already.
    """
    with paths.open_input(path) as stream:
        file = None
        for group in groups:
            try:
                # One footer for all groups.
                file = file or _open(stream, groups, is_remote=paths.is_remote(path))
                for batch in _read_batches(file, group, image_column, label_column):
                    yield from zip(batch[image_column].to_pylist(), batch[label_column].to_pylist(), strict=True)
            except (OSError, pa.ArrowException, ValueError) as error:
                raise EasyCoreError(f"{path} cannot be read (row group {group}): {error}") from error


def _open(stream: pa.NativeFile, groups: Sequence[int], *, is_remote: bool) -> pq.ParquetFile:
    metadata = pq.read_metadata(stream)
    largest = max(metadata.row_group(group).total_byte_size for group in groups)
    # Of a remote file only the ranges of both columns are fetched. Checksums of pages are looked at if there are any.
    return pq.ParquetFile(
        stream,
        metadata=metadata,
        pre_buffer=is_remote and largest <= _WHOLE_BYTES,
        buffer_size=_PIECE_BYTES if is_remote and largest > _WHOLE_BYTES else 0,
        page_checksum_verification=True,
    )


def _read_batches(file: pq.ParquetFile, group: int, image_column: str, label_column: str) -> Iterator[pa.RecordBatch]:
    metadata = file.metadata.row_group(group)
    _check_labels(metadata, file.read_row_group(group, columns=[label_column])[label_column], label_column)
    row_bytes = metadata.total_byte_size / max(metadata.num_rows, 1)
    step = max(1, min(_BATCH_ROWS, int(_BATCH_BYTES / max(row_bytes, 1))))
    count = 0
    for batch in file.iter_batches(step, row_groups=[group], columns=[image_column, label_column]):
        batch.validate(full=True)
        count += batch.num_rows
        yield batch
    if count != metadata.num_rows:
        raise ValueError(f"it has {count:,} rows, its footer says {metadata.num_rows:,}")


def _check_labels(metadata: pq.RowGroupMetaData, labels: pa.ChunkedArray, label_column: str) -> None:
    """Raises ValueError where labels are not what the file's own footer says of them."""
    if len(labels) != metadata.num_rows:
        raise ValueError(f"it has {len(labels):,} rows, its footer says {metadata.num_rows:,}")
    columns = (metadata.column(number) for number in range(metadata.num_columns))
    found = next((column.statistics for column in columns if column.path_in_schema == label_column), None)
    if found is None:
        return
    if found.has_null_count and found.null_count != labels.null_count:
        raise ValueError(f"{labels.null_count:,} labels are missing, its footer says {found.null_count:,}")
    if found.has_min_max and pa.types.is_integer(labels.type) and labels.null_count < len(labels):
        least, most = pc.min_max(labels).values()
        if least.as_py() < found.min or most.as_py() > found.max:
            raise ValueError(f"labels {least} .. {most} are beyond the footer's {found.min} .. {found.max}")
