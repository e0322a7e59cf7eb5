"""Shards: Parquet files of samples in placement order, written and read on any worker.

Takes rows, gives files, and the other way round. Small images lie in the file as they lie in
memory (``fixed_size_binary``, uint8, channels first), which reads some 15 times faster than lists or tensors in
Parquet; larger ones stay encoded.

Imported by Ray workers, so no torch in here.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from easycore_ray.data import images, views
from easycore_ray.storage import paths
from easycore_ray.storage.errors import EasyCoreError

COLUMNS = ["sample_id", "label", "image"]
# Of a row group: what a reader of a few rows, or of a shuffled stream, reads at once.
_GROUP_BYTES = 1024 * 1024
_GROUP_ROWS = 1000


class Layout(NamedTuple):
    """How a dataset stores its images."""

    storage: str
    """``raw`` or ``encoded``."""
    image_shape: tuple[int, int, int]
    """(channels, height, width) of the view that is trained on."""
    image_size: int | None
    """See ``views.center_view``; applies when encoded images are read."""
    exif: images.Exif = "ignore"
    """See ``images.decode``; likewise. Datasets of release 0.2 and before ignored the orientation."""
    resize_size: int | None = None
    """See ``views.center_view``; likewise."""
    view: int = 1
    """Version of the function that makes pixels of encoded images, see ``views.VIEW_VERSION``."""

    @property
    def image_bytes(self) -> int:
        """Bytes of one image as uint8 pixels."""
        channels, height, width = self.image_shape
        return channels * height * width

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema of the rows, without the metadata that the files carry."""
        image = pa.binary(self.image_bytes) if self.storage == "raw" else pa.binary()
        return pa.schema({"sample_id": pa.int64(), "label": pa.int32(), "image": image})

    @property
    def file_schema(self) -> pa.Schema:
        """The same with the image's shape in its field, so that a file explains itself."""
        channels, height, width = self.image_shape
        shape = {"shape": f"[{channels}, {height}, {width}]", "dtype": "uint8", "storage": self.storage}
        return self.schema.set(2, self.schema.field("image").with_metadata(shape))


def write_rows(path: str, layout: Layout, table: pa.Table, order: NDArray[np.integer] | None = None) -> int:
    """Write a shard of these rows; the file appears whole.

    Args:
        path: of the shard.
        layout: of the dataset.
        table: sample_id int64, label int32, image binary (raw uint8 pixels in C, H, W order, or an encoded file). Raw
            images of one channel in a large_binary column are tripled where the dataset has three.
        order: integers (n,), positions of the rows in the order in which they are written; as they come if None.

    Returns:
        Size of the file in bytes.
    """
    count = len(table) if order is None else len(order)
    group_rows = rows_per_group(len(table), table.nbytes)
    with paths.staged(path) as local:
        # Pixels and JPEGs hardly compress, and statistics of images serve no one.
        with pq.ParquetWriter(
            local, layout.file_schema, compression="none", use_dictionary=False, write_statistics=["sample_id"]
        ) as writer:
            for start in range(0, count, group_rows):
                # A group at a time, so that no second copy of the images is in memory.
                rows = slice(start, start + group_rows)
                part = table.slice(start, group_rows) if order is None else table.take(pa.array(order[rows]))
                part = part.set_column(2, "image", _stored_images(part["image"], layout)).cast(layout.schema)
                writer.write_table(part.cast(layout.file_schema), row_group_size=group_rows)
        return Path(local).stat().st_size


def rows_per_group(num_rows: int, num_bytes: int) -> int:
    """Rows of a row group of a shard of so many rows and bytes."""
    return max(1, min(_GROUP_ROWS, _GROUP_BYTES * num_rows // max(num_bytes, 1)))


def _stored_images(column: pa.ChunkedArray, layout: Layout) -> pa.ChunkedArray:
    """The images as they are stored: greyscale ones are tripled where the dataset has three channels."""
    channels, height, width = layout.image_shape
    if layout.storage == "encoded" or channels == 1 or not pa.types.is_large_binary(column.type):
        return column
    lengths = pc.binary_length(column).to_numpy()
    if (lengths == layout.image_bytes).all():
        return column
    grey = lengths == height * width
    tripled = (image.as_py() * (3 if is_grey else 1) for image, is_grey in zip(column, grey, strict=True))
    return pa.chunked_array([pa.array(tripled, pa.large_binary())])


def read_rows(path: str, rows: NDArray[np.integer] | None = None) -> pa.Table:
    """Rows of a shard: sample_id int64, label int32, image binary. Reads only the row groups that hold them.

    Args:
        path: of the shard.
        rows: integers (n,), positions in the shard, in the order wanted; all rows if None.

    Raises:
        EasyCoreError: the file is missing or damaged.
    """
    with paths.damage_named(path), paths.open_input(path) as stream:
        file = pq.ParquetFile(stream, pre_buffer=paths.is_remote(path))
        if rows is None:
            return _plain(file.read(columns=COLUMNS))
        # All groups but the last are full, see ``write_rows``.
        group_rows = file.metadata.row_group(0).num_rows if file.metadata.num_row_groups else 1
        groups, group_of_row = np.unique(rows // group_rows, return_inverse=True)
        table = file.read_row_groups(groups.tolist(), columns=COLUMNS)
    found = group_of_row * group_rows + rows % group_rows
    if len(found) and (np.diff(found) == 1).all():
        return _plain(table.slice(int(found[0]), len(found)))
    return _plain(table.take(pa.array(found)))


def _plain(table: pa.Table) -> pa.Table:
    """Without metadata, so that tables of all shards, and padding, have one schema."""
    fields = [pa.field(field.name, field.type) for field in table.schema]
    return table.combine_chunks().cast(pa.schema(fields))


def copy_rows(path: str, layout: Layout, sources: Sequence[tuple[str, NDArray[np.integer]]]) -> int:
    """Write a shard of rows of other shards.

    Args:
        path: of the new shard.
        layout: of the dataset.
        sources: (path, positions) of the rows, in order; positions are integers (n,).

    Returns:
        Size of the file in bytes.
    """
    return write_rows(path, layout, pa.concat_tables([read_rows(*source) for source in sources]))


def pixels(
    table: pa.Table,
    layout: Layout,
    path: str = "",
    draws: NDArray[np.float64] | None = None,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """The images of rows as uint8 (rows, channels, height, width): their centre views, or views drawn for training.

    A read-only view of the column's memory where that is possible; new memory, or ``out``, elsewhere.

    Args:
        table: ``sample_id`` and ``image`` of rows of a shard.
        layout: of the dataset.
        path: of the shard, for errors.
        draws: float64 (rows, ``views.DRAWS_PER_VIEW``) from ``views.view_draws``; None for centre views.
        out: uint8 (rows, channels, height, width), where they are put.

    Raises:
        EasyCoreError: an image cannot be decoded; names the shard and the sample.
    """
    column = table["image"]
    # One piece as it is: combining would copy it.
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    shape = (len(array), *layout.image_shape)
    stored: Any = (image.as_py() for image in array)
    if layout.storage == "raw":
        buffer, size = array.buffers()[1], layout.image_bytes
        stored = np.frombuffer(buffer or b"", np.uint8, len(array) * size, array.offset * size).reshape(shape)
        if draws is None:
            if out is not None:
                out[:] = stored
            return stored if out is None else out
    found = np.empty(shape, np.uint8) if out is None else out
    for row, content in enumerate(stored):
        try:
            found[row] = _view(content, layout, None if draws is None else draws[row])
        except ValueError as error:
            sample_id = table["sample_id"][row].as_py()
            raise EasyCoreError(
                f"{path}: the image of sample_id {sample_id} cannot be decoded ({error}); the shard is damaged"
            ) from error
    return found


def _view(content: bytes | NDArray[np.uint8], layout: Layout, draws: NDArray[np.float64] | None) -> NDArray[np.uint8]:
    channels, height, width = layout.image_shape
    if draws is not None:
        return views.random_view(content, (height, width), draws, exif=layout.exif, channels=channels)
    if layout.view == 1 and isinstance(content, bytes):
        return images.view(images.decode(content, layout.exif).image, layout.image_size, channels)
    return views.center_view(content, layout.image_size, layout.resize_size, exif=layout.exif, channels=channels)
