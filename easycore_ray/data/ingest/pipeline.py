"""Importing a source: check every image, decide where each row goes, write the shards.

Takes a listed ``Source``, gives shards, an index and what the manifest says of them. Nothing is written before every
row has passed. Ray Data reads, decodes and checks the source into blocks that stay in the object store (spilled to
disk beyond its size); this process sees their descriptions only, decides, and lets plain Ray tasks deal the blocks
out to shards and write them.
"""

import math
import pickle
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from numpy.typing import NDArray

from easycore_ray.config.base import to_dict, verb
from easycore_ray.config.fields import OnDuplicate
from easycore_ray.config.stages import PrepareConfig
from easycore_ray.data.dataset import Dataset
from easycore_ray.data.images import MAX_RAW_BYTES
from easycore_ray.data.index import INDEX_SCHEMA, dataset_fingerprint, shard_details, write_index
from easycore_ray.data.ingest import readers, shuffle
from easycore_ray.data.ingest.changes import check_unchanged, write_source_files
from easycore_ray.data.ingest.duplicates import (
    choose_copies,
    count_copies,
    describe_copies,
    find_copies,
    refuse_copies,
)
from easycore_ray.data.ingest.plans import dataset_identity, plan_prepare
from easycore_ray.data.ingest.readers import Source
from easycore_ray.data.ingest.remarks import count_remarks, describe_remarks
from easycore_ray.data.ingest.sources import list_configured, names_place
from easycore_ray.data.ingest.splits import SPLITS, TRAIN, Placement, assign_splits, class_names, place
from easycore_ray.data.shards import Layout, Written
from easycore_ray.runtime import cluster
from easycore_ray.runtime.console import Progress, duration, say
from easycore_ray.runtime.tasks import TaskResources, map_tasks
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Artifact, claim, finish, giving_back
from easycore_ray.storage.errors import EasyCoreError

_SHOWN = 3
_BLOCKS_PER_TASK = 64


class CheckedSource(NamedTuple):
    """A source that has been read.

    Attributes:
        blocks: references of tables of ``readers.CHECKED_SCHEMA``.
        sizes: of the blocks, in bytes.
        rows: their ``readers.DESCRIPTION``, ``block`` and ``offset`` (row in the block), in source order.
    """

    blocks: list[Any]
    sizes: list[int]
    rows: pa.Table


class Imported(NamedTuple):
    """What an import wrote, as recorded in the manifest."""

    fingerprint: str
    counts: dict[str, int]
    details: dict[str, Any]


def import_source(source: Source, config: PrepareConfig, out: str) -> Imported:
    """Import a source into ``out``: all shards and the index, without the manifest.

    Raises:
        EasyCoreError: names the bad samples, the empty class or split; nothing is written then.
    """
    checked = _check(source, config)
    bad = pc.is_valid(checked.rows["problem"])
    skipped, rows = checked.rows.filter(bad), checked.rows.filter(pc.invert(bad))
    _refuse_bad(skipped, len(checked.rows), skip=config.on_bad_sample == "skip")
    layout = _layout(rows, config)
    rows, counted, dropped = _without_copies(source, rows, config.on_duplicate)
    labels, own = rows["label"].to_numpy(), _own_splits(source, rows)
    fractions = {"val_fraction": config.val_fraction, "test_fraction": config.test_fraction}
    splits = assign_splits(labels, own, source.pieces, seed=config.seed, **fractions)
    classes = class_names(labels, splits, source.classes, where=names_place(source, config.source))
    _check_several_classes(classes, allow_one_class=config.allow_one_class)
    if not dropped:
        counted |= count_copies(find_copies(rows["content"]), splits, labels)
    placed = place(splits, config.rows_per_shard, config.seed)
    written = shuffle.write_shards(checked.blocks, checked.sizes, rows, placed, layout=layout, out=out)
    index = _index(rows, own, placed, layout, written)
    write_index(index, out)
    mean, std, constant = _moments(rows.filter(pa.array(splits == TRAIN)), layout)
    details = {
        "classes": classes,
        **layout._asdict(),
        "image_shape": list(layout.image_shape),
        "mean": mean,
        "std": std,
        "constant_channels": constant,
        "shards": shard_details(index, _sizes(placed, written), len(classes)),
        "remarks": count_remarks(rows),
        "skipped": skipped.select(["key", "problem"]).rename_columns(["key", "reason"]).to_pylist(),
        "duplicates": {**counted, "dropped": len(dropped)},
        "dropped": dropped,
        "names_from": source.names_from,
        "passed_over": source.passed_over,
        "source_files": write_source_files(source.files, out) if source.files else None,
    }
    counts: dict[str, int] = {name: int((splits == split).sum()) for split, name in enumerate(SPLITS)}
    return Imported(dataset_fingerprint(index), counts, details)


def _without_copies(
    source: Source, rows: pa.Table, on_duplicate: OnDuplicate
) -> tuple[pa.Table, dict[str, int], list[dict[str, str]]]:
    """The rows that are imported, what is known of copies among all, and key and reason of those left out.

    Raises:
        EasyCoreError: there are copies and they are to be refused.
    """
    own, copies = _own_splits(source, rows), find_copies(rows["content"])
    counted = count_copies(copies, own, rows["label"].to_numpy())
    if on_duplicate == "error":
        refuse_copies(copies, counted, rows["key"])
    if on_duplicate != "drop":
        return rows, counted, []
    chosen = choose_copies(copies, own)
    left_out = np.flatnonzero(chosen != np.arange(len(chosen)))
    keys = rows["key"].take(pa.array(left_out)).to_pylist()
    kept = rows["key"].take(pa.array(chosen[left_out])).to_pylist()
    dropped = [{"key": key, "reason": f"the same picture as {other}"} for key, other in zip(keys, kept, strict=True)]
    return rows.take(pa.array(np.unique(chosen))).combine_chunks(), counted, dropped


def _check_several_classes(classes: list[str], *, allow_one_class: bool) -> None:
    if len(classes) == 1 and not allow_one_class:
        raise EasyCoreError(
            f"the source has one class, {classes[0]}; check --source and the labels, or pass --allow-one-class if that "
            "is meant"
        )


def describe_dataset(found: Mapping[str, Any]) -> str:
    """What a dataset's manifest holds, in one line."""
    counts = found["counts"]
    splits = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    skipped = f", {len(found['skipped']):,} skipped" if found["skipped"] else ""
    skipped += f", {len(found['dropped']):,} copies dropped" if found.get("dropped") else ""
    size = sum(shard["bytes"] for entries in found["shards"].values() for shard in entries) / 2**20
    shape = "x".join(map(str, found["image_shape"]))
    return ", ".join(
        [
            f"{sum(counts.values()):,} images of {shape} in {len(found['classes']):,} classes ({splits}{skipped})",
            *describe_remarks(found.get("remarks", {})),
            f"{size:,.1f} MiB",
        ]
    )


def _check(source: Source, config: PrepareConfig) -> CheckedSource:
    """Read, decode and check all pieces with Ray Data."""
    pieces = [piece for split in SPLITS for piece in source.pieces.get(split, [])]
    items = [{"number": number, "piece": pickle.dumps(piece)} for number, piece in enumerate(pieces)]
    read = ray.data.from_items(items, override_num_blocks=len(items))
    # All blocks are held until the last one is checked. Ray Data would take this for a slow consumer and go down
    # to one task at half of the object store; they may spill to disk instead.
    read.context.override_object_store_memory_limit_fraction = 1e6
    data = read.map_batches(
        readers.check_batch,
        batch_size=None,
        batch_format="pyarrow",
        fn_kwargs={"classes": source.classes, "image_size": config.image_size, "exif": config.exif},
    )
    line = Progress("check", source.total or len(pieces), "images" if source.total else "files")
    blocks: list[Any] = []
    sizes: list[int] = []
    rows, begun = 0, set[int]()
    # Held here, the blocks outlive the execution and are dealt out to shards without being read again.
    for bundle in data.iter_internal_ref_bundles():
        blocks += bundle.block_refs
        sizes += [entry.size_bytes or 0 for entry in bundle.metadata]
        rows += bundle.num_rows() or 0
        begun |= {entry.exec_stats.task_idx for entry in bundle.metadata if entry.exec_stats}
        line.update(rows if source.total else len(begun))
    line.close()
    return CheckedSource(blocks, sizes, _described(blocks))


def _described(blocks: list[Any]) -> pa.Table:
    """The rows of all blocks without their images, in source order."""
    items = [tuple(blocks[start : start + _BLOCKS_PER_TASK]) for start in range(0, len(blocks), _BLOCKS_PER_TASK)]
    described = map_tasks(readers.drop_images, items, label="describe", resources=TaskResources())
    tables = [table for found in described for table in found]
    counts = [table.num_rows for table in tables]
    rows = pa.concat_tables(tables)
    rows = rows.append_column("block", pa.array(np.repeat(np.arange(len(tables), dtype=np.int32), counts)))
    rows = rows.append_column("offset", pa.array(np.concatenate([np.arange(count) for count in counts])))
    order = np.lexsort((rows["row"].to_numpy(), rows["piece"].to_numpy()))
    return rows.take(pa.array(order)).combine_chunks()


def _refuse_bad(bad: pa.Table, total: int, *, skip: bool) -> None:
    """Stop at damaged files always, and at bad samples unless they are to be skipped."""
    damaged = bad.filter(pc.equal(bad["row"], readers.DAMAGED))
    if damaged.num_rows:
        raise EasyCoreError(f"{damaged['problem'][0].as_py()}; {_more(damaged.num_rows)}fetch the file again")
    if bad.num_rows == total:
        first = f": {_format_rows(bad.slice(0, 1))}" if total else ""
        raise EasyCoreError(f"none of {total:,} samples is usable{first}; check --source and --format")
    if bad.num_rows and not skip:
        raise EasyCoreError(
            f"{bad.num_rows:,} of {total:,} samples are not usable: {_format_rows(bad.slice(0, _SHOWN))}"
            f"{'; …' if bad.num_rows > _SHOWN else ''}; repair them, or leave them out with --on-bad-sample skip"
        )


def _format_rows(bad: pa.Table) -> str:
    return "; ".join(
        f"{where}: {problem}"
        for where, problem in zip(bad["where"].to_pylist(), bad["problem"].to_pylist(), strict=True)
    )


def _more(count: int) -> str:
    return f"so are {count - 1} more files; " if count > 1 else ""


def _layout(rows: pa.Table, config: PrepareConfig) -> Layout:
    """Storage and shape of the dataset's images.

    Raises:
        EasyCoreError: they differ in size and no ``image_size`` makes them equal.
    """
    heights, widths = rows["height"].to_numpy(), rows["width"].to_numpy()
    other = np.flatnonzero((heights != heights[0]) | (widths != widths[0]))
    if len(other):
        named = [f"{rows['where'][row].as_py()} is {heights[row]}x{widths[row]}" for row in (0, int(other[0]))]
        raise EasyCoreError(
            f"the images differ in size: {' and '.join(named)} pixels; pass --image-size PIXELS "
            "(shorter side is resized to it, centre is cropped)"
        )
    channels = int(rows["channels"].to_numpy().max())
    shape = (channels, int(heights[0]), int(widths[0]))
    storage = "raw" if np.prod(shape) <= MAX_RAW_BYTES else "encoded"
    return Layout(storage, shape, config.image_size, config.exif)


def _own_splits(source: Source, rows: pa.Table) -> NDArray[np.integer]:
    """The split each row's piece belongs to in the source."""
    counts = [len(source.pieces.get(split, [])) for split in SPLITS]
    return np.repeat(np.arange(len(SPLITS)), counts)[rows["piece"].to_numpy()]


def _sizes(placed: Placement, written: list[Written]) -> dict[str, list[int]]:
    """Bytes of the shards, by split."""
    return {
        split: [shard.num_bytes for (name, _), shard in zip(placed.names, written, strict=True) if name == split]
        for split in SPLITS
    }


def _index(
    rows: pa.Table, own: NDArray[np.integer], placed: Placement, layout: Layout, written: list[Written]
) -> pa.Table:
    """The index of the dataset, see ``index``."""
    by_place = np.lexsort((placed.row, placed.shard))
    hashes = np.empty(len(rows), object)
    hashes[by_place] = [sha256 for shard in written for sha256 in shard.sha256]
    squares = _per_channel(rows["squares"])[:, : layout.image_shape[0]].sum(axis=1)
    columns = {
        "split": np.array(SPLITS, object)[placed.split],
        "sample_id": placed.sample_id,
        "key": _unique_keys(rows, own),
        "label": rows["label"].cast(pa.int32()),
        "sha256": hashes,
        "input_norm": np.sqrt(squares) / 255,
        "shard": np.array([number for _, number in placed.names], np.int32)[placed.shard],
        "row": placed.row,
    }
    order = np.lexsort((placed.sample_id, placed.split))
    return pa.table(columns, schema=INDEX_SCHEMA).take(pa.array(order))


def _unique_keys(rows: pa.Table, own: NDArray[np.integer]) -> NDArray[Any]:
    """The source's own image paths, or file and row where a split of the source has a path twice."""
    keys, wheres = (np.array(rows[name].to_pylist(), object) for name in ("key", "where"))
    for split in range(len(SPLITS)):
        if len(set(keys[own == split])) < (own == split).sum():
            keys[own == split] = wheres[own == split]
    return keys


def _per_channel(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """A column of three numbers per row as int64 (rows, 3)."""
    return column.combine_chunks().flatten().to_numpy().reshape(-1, 3)


def _moments(rows: pa.Table, layout: Layout) -> tuple[list[float], list[float], list[int]]:
    """Mean and standard deviation of each channel, in [0, 1] units, from exact integer sums; the constant channels.

    The deviation of a constant channel is 1: models divide by it.
    """
    channels, height, width = layout.image_shape
    count = len(rows) * height * width
    sums = _per_channel(rows["sums"]).sum(axis=0)[:channels].tolist()
    squares = _per_channel(rows["squares"]).sum(axis=0)[:channels].tolist()
    # Python's integers, so that a variance of 0 is 0.
    variances = [count * square - total * total for total, square in zip(sums, squares, strict=True)]
    std = [math.sqrt(variance) / count / 255 if variance else 1.0 for variance in variances]
    constant = [channel for channel, variance in enumerate(variances) if not variance]
    return [total / count / 255 for total in sums], std, constant


def _say_copies(found: Mapping[str, Any], on_duplicate: OnDuplicate) -> None:
    """What a user should know of pictures that are there more than once, in a line."""
    counted = found["duplicates"]
    if counted["dropped"]:
        then = f"{counted['dropped']:,} copies are dropped, so that ids are others than without --on-duplicate drop"
        say(f"prepare: {describe_copies(counted)}; {then}")
    elif counted["images"] and on_duplicate == "keep":
        say(f"prepare: {describe_copies(counted)}; all are kept, --on-duplicate drop keeps one of each")


def _describe_source(found: Mapping[str, Any]) -> str:
    """Where the class names come from, and what was not read."""
    names = f"class names from {found['names_from']}" if found["names_from"] else "classes are named by their labels"
    passed = ", ".join(f"{count:,} {suffix}" for suffix, count in found["passed_over"].items())
    return names + (f"; {passed} passed over" if passed else "")


@verb(PrepareConfig, gives=Dataset, plan=plan_prepare)
def prepare(config: PrepareConfig) -> Artifact:
    """Import images into shards, or find that it was done before.

    Returns:
        The dataset.

    Raises:
        EasyCoreError: the source is missing or unclear, a sample is bad, a class or split is empty, ``out`` holds
            something else, or the source has changed since. Nothing is written then.
    """
    started = time.monotonic()
    out = paths.absolute(config.out)
    made = claim(out, "dataset", dataset_identity(config), overwrite=config.overwrite, take_over=config.take_over)
    if isinstance(made, Artifact):
        if config.source_check:
            check_unchanged(config, made)
        say(f"prepare: {out} is finished already, with this configuration; nothing to do")
        return made
    with giving_back(made):
        source = list_configured(config)
        cluster.connect()
        imported = import_source(source, config, made.path)
    seconds = time.monotonic() - started
    artifact = finish(
        made,
        fingerprint=imported.fingerprint,
        config=to_dict(config),
        parents={},
        counts=imported.counts,
        wall_seconds=seconds,
        **imported.details,
    )
    found = artifact.manifest
    for text in Dataset(out, found).describe_constant_channels():
        say(f"prepare: {text}")
    _say_copies(found, config.on_duplicate)
    say(f"prepare: {describe_dataset(found)} in {duration(seconds)} → {out}; {_describe_source(found)}")
    return artifact
