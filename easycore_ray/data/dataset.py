"""Datasets: images in shards, with an id for every sample.

``prepare`` imports a source once. From then on everything reads the dataset and names samples by ``sample_id``: in one
process with ``samples.read_split``, or streamed by Ray Data with ``stream.stream_rows``. Ids are dense over each split
in source order while rows lie in shards in a seeded random order, so that ids mean something and any block of a shard
is a fair mixture.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from easycore_ray.core.seeding import numpy_rng
from easycore_ray.core.selection import class_quotas
from easycore_ray.data.index import read_index, read_index_rows
from easycore_ray.data.ingest.splits import SPLITS
from easycore_ray.data.shards import Layout
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Artifact, open_artifact
from easycore_ray.storage.errors import EasyCoreError

_LEAST_STD = 1e-7

PLACE_COLUMNS = ("sample_id", "label", "shard", "row")
"""Of the index: what says where the image of a sample is stored."""


class Dataset(Artifact):
    """A finished dataset; its fingerprint is the hash of all labels and images, in id order."""

    @property
    def classes(self) -> list[str]:
        """Names, in label order."""
        return self.manifest["classes"]

    @property
    def num_classes(self) -> int:
        """Labels are 0 .. num_classes − 1."""
        return len(self.classes)

    @property
    def layout(self) -> Layout:
        """How images are stored: raw pixels or encoded files, and their shape (channels, height, width)."""
        channels, height, width = self.manifest["image_shape"]
        found = self.manifest
        # Release 0.2 and before recorded none of these three.
        later = found.get("exif", "ignore"), found.get("resize_size"), found.get("view", 1)
        return Layout(found["storage"], (channels, height, width), found["image_size"], *later)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of what models see."""
        return self.layout.image_shape

    @property
    def mean(self) -> list[float]:
        """Mean of each channel over the training images, in [0, 1] units."""
        return self.manifest["mean"]

    @property
    def std(self) -> list[float]:
        """Standard deviation of each channel over the training images' pixels, in [0, 1] units; 1 if it is constant."""
        # Earlier releases recorded 0, or what rounding made of it; no other is that small.
        return [std if std > _LEAST_STD else 1.0 for std in self.manifest["std"]]

    def describe_constant_channels(self) -> list[str]:
        """A sentence for each channel that has one value in all training images."""
        return [
            f"channel {channel} is {round(255 * mean)}/255 in every training image; its standard deviation is taken as "
            "1, so that models see it as 0"
            for channel, (mean, std) in enumerate(zip(self.mean, self.std, strict=True))
            if std == 1.0  # no other channel of pixels in [0, 1] deviates by more than 0.5
        ]

    @property
    def shard_schema(self) -> pa.Schema:
        """Arrow schema of the rows that readers give: sample_id int64, label int32, image binary."""
        return self.layout.schema

    def num_rows(self, split: str) -> int:
        """Number of samples in a split; 0 if the dataset has no such split.

        Raises:
            EasyCoreError: the split is none of train, val, test.
        """
        return self.manifest["counts"][_known(split)]

    def shards(self, split: str) -> list[str]:
        """Paths of a split's shards, in order of their numbers.

        Raises:
            EasyCoreError: the split is none of train, val, test.
        """
        return [paths.join(self.path, shard["path"]) for shard in self.manifest["shards"][_known(split)]]

    def index(self, split: str = "train", columns: Sequence[str] | None = None) -> pa.Table:
        """The index of a split, sorted by ``sample_id``.

        Args:
            split: train, val or test.
            columns: those to read; all if None.

        Returns:
            ``index.INDEX_SCHEMA``: sample_id int64, label int32, input_norm float64 in [0, 1] pixel units, and others.

        Raises:
            EasyCoreError: the split is none of train, val, test, or the file cannot be read.
        """
        return read_index(self.path, _known(split), columns)


def _known(split: str) -> str:
    if split not in SPLITS:
        raise EasyCoreError(f"unknown split {split!r}; allowed are {', '.join(SPLITS)}")
    return split


def open_dataset(path: str) -> Dataset:
    """Open a finished dataset.

    Raises:
        EasyCoreError: see ``artifact.open_artifact``.
    """
    artifact = open_artifact(path, "dataset")
    return Dataset(artifact.path, artifact.manifest)


def image_bytes_per_row(dataset: Dataset) -> int:
    """Memory of one image as models see it, in bytes (uint8)."""
    return dataset.layout.image_bytes


def locate_samples(
    dataset: Dataset,
    split: str,
    sample_ids: NDArray[np.integer] | None,
    columns: Sequence[str] | None = PLACE_COLUMNS,
) -> pa.Table:
    """Index rows of a split, or of some of its ids, sorted by id; only the parts of the index that hold them are read.

    Args:
        dataset: to look in.
        split: train, val or test.
        sample_ids: (n,) of that split, in any order; None for all.
        columns: names in ``index.INDEX_SCHEMA``; all if None.

    Raises:
        EasyCoreError: the split has no sample of some id, or an id is requested twice.
    """
    if sample_ids is None:
        return dataset.index(split, columns)
    ids = np.asarray(sample_ids, np.int64)
    ids = ids if _ascends(ids) else np.sort(ids)
    if not _ascends(ids):
        raise EasyCoreError(f"sample_id {ids[1:][ids[1:] == ids[:-1]][0]} is requested twice; pass every id once")
    wanted = None if columns is None else list(dict.fromkeys(["sample_id", *columns]))
    rows = read_index_rows(dataset.path, _known(split), ids, wanted)
    if len(rows) < len(ids):
        missing = np.setdiff1d(ids, rows["sample_id"].to_numpy(), assume_unique=True)
        raise EasyCoreError(
            f"{len(missing):,} of {len(ids):,} samples are not in the {split} split of {dataset.path} "
            f"(first missing: {missing[0]}); do dataset and ids belong together?"
        )
    return rows if columns is None else rows.select(list(columns))


def _ascends(ids: NDArray[np.int64]) -> bool:
    return bool((ids[1:] > ids[:-1]).all())


def draw_ids(dataset: Dataset, split: str, num_samples: int, seed: int) -> NDArray[np.int64]:
    """Ids of a seeded, class-balanced draw (every class by its share): int64 (num_samples,), ascending.

    All ids if the split has no more than ``num_samples``.
    """
    if num_samples >= dataset.num_rows(split):
        return dataset.index(split, ["sample_id"])["sample_id"].to_numpy()
    index = dataset.index(split, ["sample_id", "label"])
    ids, labels = index["sample_id"].to_numpy(), index["label"].to_numpy()
    rng = numpy_rng("draw", split, seed)
    quotas = class_quotas(labels, num_samples)
    # One sort for all classes: a pass for each takes minutes where there are many of both.
    order = np.argsort(labels, kind="stable")
    drawn, start = [], 0
    for label, quota in quotas.items():
        stop = int(np.searchsorted(labels, label, "right", sorter=order))
        drawn.append(rng.choice(ids[order[start:stop]], quota, replace=False))
        start = stop
    return np.sort(np.concatenate(drawn))


def check_same_dataset(artifact: Artifact, dataset: Dataset) -> None:
    """Refuse a score or hardness table of another dataset.

    Raises:
        EasyCoreError: names both datasets.
    """
    theirs = artifact.manifest["parents"].get("dataset") or artifact.manifest["dataset"]
    if theirs["fingerprint"] != dataset.fingerprint:
        raise EasyCoreError(
            f"{artifact.path} holds scores of {theirs['path']} (fingerprint {theirs['fingerprint'][:12]}), "
            f"not of {dataset.path} ({dataset.fingerprint[:12]}); pass the dataset that was scored"
        )


def part_in_stored_order(places: pa.Table, number: int, count: int) -> NDArray[np.int64]:
    """Positions (n,) of one of ``count`` nearly equal parts of index rows, as they are stored.

    Args:
        places: ``shard`` and ``row`` of the rows.
        number: of the part, 0 .. count − 1.
        count: of parts.
    """
    stored = np.lexsort((places["row"].to_numpy(), places["shard"].to_numpy()))
    start, stop = (part * len(stored) // count for part in (number, number + 1))
    return stored[start:stop]
