"""The samples of a dataset: read as tensors in one process, or streamed by Ray Data."""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray.data
import torch
from numpy.typing import NDArray
from torch import Tensor

from easycore_ray.data import shards
from easycore_ray.data.dataset import Dataset, locate_samples
from easycore_ray.data.ingest.splits import equal_parts

_BLOCK_BYTES = 16 * 1024 * 1024


# Enough blocks for several workers to start at the same time, on small datasets too.
_LEAST_BLOCKS = 8


class Samples(NamedTuple):
    """A batch of B samples: ids int64 (B,), images uint8 (B, C, H, W), labels int64 (B,)."""

    sample_ids: Tensor
    """int64 (batch,)."""
    images: Tensor
    """uint8 (batch, channels, height, width)."""
    labels: Tensor
    """int64 (batch,)."""


def table_to_samples(table: pa.Table, dataset: Dataset, path: str = "") -> Samples:
    """Rows of a shard (sample_id, label, image) as tensors of their own memory, in the same order.

    Args:
        table: sample_id, label, image.
        dataset: the rows belong to.
        path: of the shard, for errors.

    Returns:
        ids int64 (B,), images uint8 (B, C, H, W), labels int64 (B,).

    Raises:
        EasyCoreError: an image cannot be decoded; names the shard and the sample.
    """
    # Copied, because Arrow's memory is read-only and others may look at it.
    columns = (table["sample_id"].to_numpy(), shards.pixels(table, dataset.layout, path), table["label"].to_numpy())
    ids, images, labels = (torch.from_numpy(np.array(column)) for column in columns)
    return Samples(ids, images, labels.long())


def read_split(dataset: Dataset, split: str, sample_ids: NDArray[np.integer] | None = None) -> Samples:
    """A split, or the samples of these ids, sorted by id, read in this process.

    Args:
        dataset: where to read.
        split: train, val or test.
        sample_ids: integers (N,) in any order; all of the split if None.

    Returns:
        ids int64 (N,) ascending, images uint8 (N, C, H, W), labels int64 (N,).

    Raises:
        EasyCoreError: the split has no sample of some id, or an id is requested twice.
    """
    places = locate_samples(dataset, split, sample_ids)
    ids, shard = places["sample_id"].to_numpy(), places["shard"].to_numpy()
    images = torch.empty((len(ids), *dataset.image_shape), dtype=torch.uint8)
    labels = torch.empty(len(ids), dtype=torch.int64)
    for number, path in enumerate(dataset.shards(split)):
        wanted = np.flatnonzero(shard == number)
        if len(wanted):
            rows = table_to_samples(shards.read_rows(path, places["row"].to_numpy()[wanted]), dataset, path)
            images[torch.from_numpy(wanted)], labels[torch.from_numpy(wanted)] = rows.images, rows.labels
    return Samples(torch.from_numpy(ids.copy()), images, labels)


def block_of_split(
    dataset: Dataset, split: str, sample_ids: NDArray[np.integer] | None, number: int, count: int
) -> NDArray[np.int64]:
    """Ids, ascending, of one of ``count`` nearly equal parts of a split, or of some of its samples.

    Parts are cut in stored order: each lies in few shards, and is a fair mixture, as rows are placed at random.

    Args:
        dataset: where to look.
        split: train, val or test.
        sample_ids: integers (N,), unique, in any order; all of the split if None.
        number: of the part, 0 .. count − 1.
        count: of parts.

    Raises:
        EasyCoreError: see ``read_split``.
    """
    places = locate_samples(dataset, split, sample_ids)
    stored = np.lexsort((places["row"].to_numpy(), places["shard"].to_numpy()))
    start, stop = (part * len(stored) // count for part in (number, number + 1))
    return places["sample_id"].to_numpy()[np.sort(stored[start:stop])]


def ray_dataset(dataset: Dataset, split: str, sample_ids: NDArray[np.integer] | None = None) -> ray.data.Dataset:
    """A split, or the samples of these ids, as a Ray dataset in stored order.

    Rows are sample_id int64, label int32, image binary. They are read anew, block by block, whenever the dataset is
    iterated; each block holds rows of one shard, some 16 MiB at most. Iterate with ``preserve_order`` (set here, and
    needed again in a ``ray.train.DataConfig``).

    Args:
        dataset: a finished one.
        split: train, val or test.
        sample_ids: integers (n,), unique, in any order; the whole split if None.

    Raises:
        EasyCoreError: see ``read_split``.
    """
    tasks = _read_tasks(dataset, split, sample_ids)
    if not tasks:
        return ray.data.from_arrow(dataset.shard_schema.empty_table())
    data = ray.data.from_items(tasks, override_num_blocks=len(tasks))
    data.context.execution_options.preserve_order = True
    # Reading reserves no CPU: training workers may hold them all, and a task that waits for one would wait for ever.
    # As many at a time as there are CPUs, since nothing else would bound them.
    at_once = ray.data.TaskPoolStrategy(size=max(2, int(ray.cluster_resources().get("CPU", 2))))
    return data.map_batches(shards.read_tasks, batch_size=None, batch_format="pyarrow", num_cpus=0, compute=at_once)


def _read_tasks(dataset: Dataset, split: str, sample_ids: NDArray[np.integer] | None) -> list[dict[str, Any]]:
    """Path and row positions of each block (see ``shards.read_tasks``)."""
    places = locate_samples(dataset, split, sample_ids)
    entries = dataset.manifest["shards"][split]
    stored = sum(entry["bytes"] for entry in entries) / max(1, dataset.num_rows(split))
    most = max(1, min(int(_BLOCK_BYTES / max(stored, 1)), -(-len(places) // _LEAST_BLOCKS)))
    shard, row = places["shard"].to_numpy(), places["row"].to_numpy()
    return [
        {"path": path, "rows": part.astype(np.int32).tobytes()}
        for number, path in enumerate(dataset.shards(split))
        for part in equal_parts(np.sort(row[shard == number]), most)
    ]
