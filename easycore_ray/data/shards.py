"""Shards: Parquet files of samples in placement order, written and read on any worker.

Takes rows that know their place, gives files, and the other way round. Small images lie in the file as they lie in
memory (``fixed_size_binary``, uint8, channels first), which reads some 15 times faster than lists or tensors in
Parquet; larger ones stay encoded.

Imported by Ray workers, so no torch in here.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from easycore_ray.data import images, views
from easycore_ray.storage import paths
from easycore_ray.storage.errors import EasyCoreError

COLUMNS = ["sample_id", "label", "image"]
_DEALT = pa.schema({"row": pa.int32(), "sample_id": pa.int64(), "label": pa.int32(), "image": pa.large_binary()})
_GROUP_BYTES = 4 * 1024 * 1024
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


class Written(NamedTuple):
    """Result of writing a shard: bytes of the file, and the sha256 of each image."""

    num_bytes: int
    sha256: list[str]
    """Of each stored image (hex), in row order."""


def scatter(places: Sequence[pa.Table], layout: Layout, num_shards: int, *blocks: pa.Table) -> Any:
    """Deal checked rows out to shards: one table (row, sample_id, label, image) per shard.

    Args:
        places: for each block, ``offset`` (row in the block), ``shard``, ``row`` (in the shard), ``sample_id``
            and ``label`` of the rows that are kept.
        layout: of the dataset.
        num_shards: shards of all splits.
        *blocks: tables of ``readers.CHECKED_SCHEMA``.

    Returns:
        A list of ``num_shards`` tables; the table itself if it is one, as Ray's ``num_returns`` wants it.
    """
    column = "pixels" if layout.storage == "raw" else "encoded"
    dealt: list[list[pa.Table]] = [[] for _ in range(num_shards)]
    for block, place in zip(blocks, places, strict=True):
        shard = place["shard"].to_numpy()
        for number in np.unique(shard):
            chosen = place.filter(pa.array(shard == number))
            part = chosen.select(["row", "sample_id", "label"])
            dealt[number].append(part.append_column("image", block[column].take(chosen["offset"])))
    tables = [pa.concat_tables([_DEALT.empty_table(), *parts]).combine_chunks() for parts in dealt]
    return tables if num_shards > 1 else tables[0]


def write_dealt_shard(path: str, layout: Layout, *parts: pa.Table) -> Written:
    """Write the rows dealt to one shard, in the order of ``row``.

    Args:
        path: of the shard.
        layout: of the dataset.
        *parts: tables from ``scatter``: row, sample_id int64, label int32, image.
    """
    table = pa.concat_tables(parts).combine_chunks()
    table = table.take(pa.array(np.argsort(table["row"].to_numpy())))
    stored = _stored_images(table["image"].combine_chunks(), layout)
    size = write_rows(path, layout, pa.table([table["sample_id"], table["label"], stored], names=COLUMNS))
    return Written(size, [hashlib.sha256(image.as_buffer()).hexdigest() for image in stored])


def write_rows(path: str, layout: Layout, table: pa.Table) -> int:
    """Write a shard of these rows in this order; the file appears whole.

    Args:
        path: of the shard.
        layout: of the dataset.
        table: sample_id int64, label int32, image binary (raw uint8 pixels in C, H, W order, or an encoded file).

    Returns:
        Size of the file in bytes.
    """
    group_rows = max(1, min(_GROUP_ROWS, _GROUP_BYTES * len(table) // max(table.nbytes, 1)))
    sink = pa.BufferOutputStream()
    # Pixels and JPEGs hardly compress, and statistics of images serve no one.
    with pq.ParquetWriter(
        sink, layout.file_schema, compression="none", use_dictionary=False, write_statistics=["sample_id"]
    ) as writer:
        for start in range(0, len(table), group_rows):
            part = table.slice(start, group_rows).cast(layout.schema)
            writer.write_table(part.cast(layout.file_schema), row_group_size=group_rows)
    content = sink.getvalue()
    paths.write_bytes(path, content)
    return content.size


def _stored_images(column: pa.Array, layout: Layout) -> pa.Array:
    """The images as they are stored: greyscale ones are tripled where the dataset has three channels."""
    channels, height, width = layout.image_shape
    grey_bytes = height * width
    if layout.storage == "encoded" or channels == 1 or len(column) == 0:
        return column
    lengths = np.diff(np.frombuffer(column.buffers()[1], np.int64)[column.offset : column.offset + len(column) + 1])
    if (lengths == layout.image_bytes).all():
        return column
    tripled = (image.as_py() * (3 if size == grey_bytes else 1) for image, size in zip(column, lengths, strict=True))
    return pa.array(tripled, pa.large_binary())


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
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        ends = np.cumsum(sizes)
        groups, group_of_row = np.unique(np.searchsorted(ends, rows, side="right"), return_inverse=True)
        table = file.read_row_groups(groups.tolist(), columns=COLUMNS)
    # Position of a row in what was read: what lies between the groups that were read is missing.
    skipped = np.array([ends[group] - sizes[group] for group in groups], np.int64)
    read = np.cumsum([0, *(sizes[group] for group in groups)])[:-1]
    return _plain(table.take(pa.array(rows - (skipped - read)[group_of_row])))


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


def read_tasks(tasks: pa.Table) -> pa.Table:
    """Rows of shards for ``ray.data``: sample_id int64, label int32, image binary.

    Args:
        tasks: ``path`` of a shard and ``rows``, its row positions as int32 bytes.
    """
    tables = [read_rows(task["path"], np.frombuffer(task["rows"], np.int32)) for task in tasks.to_pylist()]
    return pa.concat_tables(tables)


def pixels(
    table: pa.Table, layout: Layout, path: str = "", draws: NDArray[np.float64] | None = None
) -> NDArray[np.uint8]:
    """The images of rows as uint8 (rows, channels, height, width): their centre views, or views drawn for training.

    A read-only view of the column's memory if it is stored raw, in one piece, and nothing is drawn; else new memory.

    Args:
        table: ``sample_id`` and ``image`` of rows of a shard.
        layout: of the dataset.
        path: of the shard, for errors.
        draws: float64 (rows, ``views.DRAWS_PER_VIEW``) from ``views.view_draws``; None for centre views.

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
            return stored
    found = np.empty(shape, np.uint8)
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
