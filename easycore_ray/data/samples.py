"""The samples of a dataset, read as tensors in one process."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from easycore_ray.data import shards
from easycore_ray.data.dataset import Dataset, locate_samples, part_in_stored_order

# Pixels that are read or decoded at a time.
_PART_BYTES = 16 << 20


class Samples(NamedTuple):
    """A batch of B samples: ids int64 (B,), images uint8 (B, C, H, W), labels int64 (B,)."""

    sample_ids: Tensor
    """int64 (batch,)."""
    images: Tensor
    """uint8 (batch, channels, height, width)."""
    labels: Tensor
    """int64 (batch,)."""


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
    ids, shard, row = (places[name].to_numpy() for name in ("sample_id", "shard", "row"))
    images = np.empty((len(ids), *dataset.image_shape), np.uint8)
    labels = np.empty(len(ids), np.int64)
    # By parts, so that little beside the images is in memory.
    part_rows = max(1, _PART_BYTES // dataset.layout.image_bytes)
    for number, path in enumerate(dataset.shards(split)):
        wanted = np.flatnonzero(shard == number)
        wanted = wanted[np.argsort(row[wanted])]
        for start in range(0, len(wanted), part_rows):
            part = wanted[start : start + part_rows]
            table = shards.read_rows(path, row[part])
            images[part], labels[part] = shards.pixels(table, dataset.layout, path), table["label"].to_numpy()
    return Samples(*(torch.from_numpy(column) for column in (ids.copy(), images, labels)))


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
    return places["sample_id"].to_numpy()[np.sort(part_in_stored_order(places, number, count))]
