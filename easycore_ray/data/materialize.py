"""A dataset made of a part of another: a coreset with its images, for when it is read many times.

Takes a dataset and training ids, gives a dataset like any other. Samples keep the ids they had, so that scores,
coresets and errors name the same images in both.
"""

import time
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from easycore_ray.data import shards
from easycore_ray.data.dataset import Dataset, locate_samples
from easycore_ray.data.index import dataset_fingerprint, shard_details, shard_path, write_index
from easycore_ray.data.ingest.splits import equal_parts
from easycore_ray.runtime import cluster
from easycore_ray.runtime.console import duration, say
from easycore_ray.runtime.tasks import TaskResources, map_tasks
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Artifact, claim, finish, identity
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.storage.hashes import content_hash


def materialize(
    dataset: Dataset,
    sample_ids: NDArray[np.integer],
    out: str,
    *,
    parents: Mapping[str, Artifact] | None = None,
    overwrite: bool = False,
) -> Artifact:
    """Write a dataset of these training samples only; they keep their ids, and val and test come along.

    Mean and standard deviation stay those of the parent, so that a model sees the same pixels in both.

    Args:
        dataset: the parent.
        sample_ids: (n,), of its training split, in any order.
        out: folder to write.
        parents: further parents for the manifest, by role, e.g. the coreset.
        overwrite: replace another dataset in ``out``.

    Raises:
        EasyCoreError: there are no ids, one is unknown or named twice, or ``out`` holds something else.
    """
    started = time.monotonic()
    out = paths.absolute(out)
    train = locate_samples(dataset, "train", sample_ids, columns=None)
    if not len(train):
        raise EasyCoreError("no sample is left to materialize; pass at least one sample_id")
    chosen = content_hash(train["sample_id"].to_numpy().tobytes())
    key = identity("dataset", {"sample_ids": chosen}, {"dataset": dataset.fingerprint})
    made = claim(out, "dataset", key, overwrite=overwrite)
    if isinstance(made, Artifact):
        say(f"materialize: {out} is finished already, with these samples; nothing to do")
        return made
    cluster.connect()
    train, sizes = _write_train(dataset, train, made.path)
    _copy_others(dataset, made.path)
    index = pa.concat_tables([train, dataset.index("val"), dataset.index("test")])
    write_index(index, made.path)
    parent = dataset.manifest
    others = {split: [shard["bytes"] for shard in parent["shards"][split]] for split in ("val", "test")}
    artifact = finish(
        made,
        fingerprint=dataset_fingerprint(index),
        config=parent["config"],
        parents={"dataset": dataset, **(parents or {})},
        counts={**parent["counts"], "train": len(train)},
        wall_seconds=time.monotonic() - started,
        **dataset.layout._asdict(),
        **{key: parent[key] for key in ("classes", "mean", "std")},
        shards=shard_details(index, {"train": sizes, **others}, dataset.num_classes),
        skipped=[],
    )
    say(f"materialize: {len(train):,} training images in {duration(time.monotonic() - started)} → {out}")
    return artifact


def _write_train(dataset: Dataset, train: pa.Table, out: str) -> tuple[pa.Table, list[int]]:
    """Write the training shards; returns their index, sorted by id, and their sizes.

    Rows stay in the parent's order, which is random already, so each shard reads consecutive rows of the parent.
    """
    shard, row = train["shard"].to_numpy(), train["row"].to_numpy()
    most = max(entry["rows"] for entry in dataset.manifest["shards"]["train"])
    parts = equal_parts(np.lexsort((row, shard)), most)
    sources = dataset.shards("train")
    items = (
        (
            paths.join(out, shard_path("train", number)),
            dataset.layout,
            [(sources[source], row[part[shard[part] == source]]) for source in np.unique(shard[part])],
        )
        for number, part in enumerate(parts)
    )
    rows = [len(part) for part in parts]
    sizes = map_tasks(shards.copy_rows, items, label="write", resources=TaskResources(), rows=rows, unit="images")
    places = {"shard": np.empty(len(train), np.int32), "row": np.empty(len(train), np.int32)}
    for number, part in enumerate(parts):
        places["shard"][part], places["row"][part] = number, np.arange(len(part))
    for name, values in places.items():
        train = train.set_column(train.schema.get_field_index(name), name, pa.array(values))
    return train, sizes


def _copy_others(dataset: Dataset, out: str) -> None:
    """Copy the shards of val and test."""
    entries = dataset.manifest["shards"]
    items = [
        (paths.join(dataset.path, shard["path"]), paths.join(out, shard["path"]))
        for split in ("val", "test")
        for shard in entries[split]
    ]
    map_tasks(paths.copy_file, items, label="copy", resources=TaskResources())
