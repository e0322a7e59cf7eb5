"""Importing a source: check every image, decide where each row goes, write the shards.

Takes a listed ``Source``, gives shards, an index and what the manifest says of them. An external sort, so that no
source is too large: tasks check pieces and write usable images to staging files beside the shards-to-be (``staging``);
this process sees some 50 bytes of each, and decides; then each shard is put together from a range of every staging
file (``shard_writer``). No shard is written before every row has passed.
"""

import math
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from easycore_ray.config.base import to_dict, verb
from easycore_ray.config.fields import OnDuplicate
from easycore_ray.config.stages import PrepareConfig
from easycore_ray.data.dataset import Dataset
from easycore_ray.data.images import MAX_RAW_BYTES
from easycore_ray.data.index import INDEX_FILE, describe_shards, write_index_parts
from easycore_ray.data.ingest import readers
from easycore_ray.data.ingest.changes import SOURCE_FILES, check_unchanged, write_source_files
from easycore_ray.data.ingest.disk import warn_of_full_disk
from easycore_ray.data.ingest.duplicates import (
    choose_copies,
    count_copies,
    describe_copies,
    find_copies,
    refuse_copies,
)
from easycore_ray.data.ingest.index_rows import index_rows, read_keys
from easycore_ray.data.ingest.measuring import Viewing
from easycore_ray.data.ingest.plans import dataset_identity, plan_prepare
from easycore_ray.data.ingest.readers import Source
from easycore_ray.data.ingest.remarks import count_remarks, describe_remarks
from easycore_ray.data.ingest.shard_writer import WrittenShard, write_shards
from easycore_ray.data.ingest.sources import list_configured, names_place
from easycore_ray.data.ingest.splits import LEFT_OUT, SPLITS, Placement, assign_splits, class_names, place
from easycore_ray.data.ingest.staging import Checking, StagedPart, concat_bad, concat_samples, stage_piece
from easycore_ray.data.shards import Layout
from easycore_ray.data.views import VIEW_VERSION
from easycore_ray.runtime import cluster
from easycore_ray.runtime.console import duration, say
from easycore_ray.runtime.tasks import TaskResources, map_tasks
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Artifact, claim, finish, giving_back
from easycore_ray.storage.errors import EasyCoreError

_SHOWN = 3
_STAGING = "staging-"
# Tasks that wait beside those that run: their arguments are names of files, or, of built-in sources, images.
_IN_FLIGHT = 256
_IN_FLIGHT_IN_MEMORY = 16


class StagedSource(NamedTuple):
    """A source that has been read.

    Attributes:
        parts: its staging files, in source order, without the tables below.
        rows: ``staging.SAMPLE_SCHEMA`` of all usable rows, in source order.
        own: int8 (N,), index into ``SPLITS``: which split of the source each is in.
        bad: ``staging.BAD_SCHEMA`` of all others.
    """

    parts: list[StagedPart]
    rows: pa.Table
    own: NDArray[np.int8]
    bad: pa.Table


class Imported(NamedTuple):
    """What an import wrote, as recorded in the manifest."""

    fingerprint: str
    counts: dict[str, int]
    details: dict[str, Any]


def import_source(source: Source, config: PrepareConfig, out: str) -> Imported:
    """Import a source into ``out``: all shards and the index, without the manifest.

    Raises:
        EasyCoreError: names the bad samples, the empty class or split; no shard is written then.
    """
    staging = paths.join(out, _STAGING + uuid.uuid4().hex[:8])
    try:
        return _import(source, config, out, staging)
    finally:
        paths.delete_tree(staging)


def clear_remains(out: str) -> None:
    """Delete what an import that was killed left in a folder; nothing of it is used again."""
    for folder in paths.list_subfolders(out):
        if folder.rpartition("/")[2].startswith((_STAGING, "shards")):
            paths.delete_tree(folder)
    for file in paths.list_files(out, recursive=False):
        if file.rpartition("/")[2].lstrip(".").startswith((INDEX_FILE, SOURCE_FILES)):
            paths.delete_file(file)


def _import(source: Source, config: PrepareConfig, out: str, staging: str) -> Imported:
    record = write_source_files(source.files, out) if len(source.files) else None
    staged = _check(source, config, staging)
    rows = staged.rows
    _refuse_bad(staged.bad, len(rows) + len(staged.bad), skip=config.on_bad_sample == "skip")
    layout = _layout(staged.parts, config)
    kept, counted, dropped = _without_copies(staged, config.on_duplicate)
    splits = np.full(len(rows), LEFT_OUT, np.int8)
    labels, own = rows["label"].to_numpy(), staged.own[kept]
    fractions = {"val_fraction": config.val_fraction, "test_fraction": config.test_fraction}
    splits[kept] = assign_splits(labels[kept], own, source.pieces, seed=config.seed, **fractions)
    classes = class_names(labels[kept], splits[kept], source.classes, where=names_place(source, config.source))
    _check_several_classes(classes, allow_one_class=config.allow_one_class)
    if not dropped:
        counted |= count_copies(find_copies(rows["content"]), splits, labels)
    hashes = rows["hash"].to_numpy()
    placed = place(splits, hashes, _rows_per_shard(staged, layout, config.shard_mib))
    written = write_shards(staged.parts, hashes, placed, layout=layout, out=out)
    unnamed = _unnamed_pieces(source, rows["key_hash"].to_numpy()[kept], own)
    fingerprint = write_index_parts(index_rows(staged.parts, placed, layout, unnamed), out)
    counts: dict[str, int] = {name: int((splits == split).sum()) for split, name in enumerate(SPLITS)}
    mean, std, constant = _moments(_of_split(placed, written, "train"), counts["train"], layout)
    details = {
        "classes": classes,
        **layout._asdict(),
        "image_shape": list(layout.image_shape),
        "mean": mean,
        "std": std,
        "constant_channels": constant,
        "shards": dict(_shard_details(placed, written, labels, len(classes))),
        "remarks": count_remarks(rows if isinstance(kept, slice) else rows.take(pa.array(kept))),
        "skipped": staged.bad.select(["key", "problem"]).rename_columns(["key", "reason"]).to_pylist(),
        "duplicates": {**counted, "dropped": len(dropped)},
        "dropped": dropped,
        "names_from": source.names_from,
        "passed_over": source.passed_over,
        "source_files": record,
    }
    return Imported(fingerprint, counts, details)


def _without_copies(
    staged: StagedSource, on_duplicate: OnDuplicate
) -> tuple[slice | NDArray[np.intp], dict[str, int], list[dict[str, str]]]:
    """The rows that are imported, what is known of copies among all, and key and reason of those left out.

    Raises:
        EasyCoreError: there are copies and they are to be refused.
    """
    copies = find_copies(staged.rows["content"])
    counted = count_copies(copies, staged.own, staged.rows["label"].to_numpy())
    if on_duplicate == "error":
        refuse_copies(copies, counted, lambda rows: read_keys(staged.parts, rows))
    if on_duplicate != "drop":
        return slice(None), counted, []
    chosen = choose_copies(copies, staged.own)
    left_out = np.flatnonzero(chosen != np.arange(len(chosen)))
    keys, kept = read_keys(staged.parts, left_out), read_keys(staged.parts, chosen[left_out])
    dropped = [{"key": key, "reason": f"the same picture as {other}"} for key, other in zip(keys, kept, strict=True)]
    return np.unique(chosen), counted, dropped


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


def _check(source: Source, config: PrepareConfig, staging: str) -> StagedSource:
    """Read, decode and check all pieces, and write what is usable to staging files."""
    started = time.monotonic()
    pieces = [piece for split in SPLITS for piece in source.pieces.get(split, [])]
    viewing = Viewing(config.image_size, config.exif, config.store, config.resize_size)
    checking = Checking(source.classes, viewing, config.seed)
    items = ((staging, number, piece, checking) for number, piece in enumerate(pieces))
    sizes, unit = source.sizes()
    in_flight = _IN_FLIGHT if len(source.files) else _IN_FLIGHT_IN_MEMORY
    found = map_tasks(
        stage_piece, items, label="check", resources=TaskResources(in_flight=in_flight), rows=sizes, unit=unit
    )
    parts = [part for piece in found for part in piece]
    rows, bad = concat_samples(parts), concat_bad(parts)
    seconds, count = time.monotonic() - started, len(rows) + len(bad)
    say(f"check: {count:,} images in {duration(seconds)}, {count / max(seconds, 1e-9):,.0f} images/s")
    own = np.repeat(_own_splits(source)[[part.piece for part in parts]], [part.num_rows for part in parts])
    # Both tables are copies.
    return StagedSource([part._replace(samples=b"", bad=b"") for part in parts], rows, own, bad)


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


def _layout(parts: list[StagedPart], config: PrepareConfig) -> Layout:
    """Storage and shape of the dataset's images.

    Raises:
        EasyCoreError: they differ in size and no ``image_size`` makes them equal.
    """
    sizes = [size for part in parts for size in part.sizes]
    height, width, where = sizes[0]
    other = next((size for size in sizes if size[:2] != (height, width)), None)
    if other is not None:
        raise EasyCoreError(
            f"the images differ in size: {where} is {height}x{width} and {other[2]} is {other[0]}x{other[1]} pixels; "
            "pass --image-size PIXELS (shorter side is resized to it, centre is cropped)"
        )
    channels = max(part.channels for part in parts)
    is_raw = channels * height * width <= MAX_RAW_BYTES if config.store == "auto" else config.store == "pixels"
    shape, storage = (channels, height, width), "raw" if is_raw else "encoded"
    return Layout(storage, shape, config.image_size, config.exif, config.resize_size, VIEW_VERSION)


def _rows_per_shard(staged: StagedSource, layout: Layout, shard_mib: float) -> int:
    """Rows whose images take about ``shard_mib``."""
    encoded = sum(part.encoded_bytes for part in staged.parts) / len(staged.rows)
    image_bytes = layout.image_bytes if layout.storage == "raw" else encoded
    return max(1, int(shard_mib * 2**20 / image_bytes))


def _of_split(placed: Placement, written: list[WrittenShard], split: str) -> list[WrittenShard]:
    return [shard for (name, _), shard in zip(placed.names, written, strict=True) if name == split]


def _shard_details(
    placed: Placement, written: list[WrittenShard], labels: NDArray[np.integer], num_classes: int
) -> Iterator[tuple[str, list[dict[str, object]]]]:
    """Each split with what the manifest says of its shards."""
    for split, name in enumerate(SPLITS):
        members = placed.split == split
        sizes = [shard.num_bytes for shard in _of_split(placed, written, name)]
        yield name, describe_shards(name, placed.shard[members], labels[members], sizes, num_classes)


def _own_splits(source: Source) -> NDArray[np.int8]:
    """The split of the source that each piece belongs to, as an index into ``SPLITS``."""
    return np.repeat(np.arange(len(SPLITS), dtype=np.int8), [len(source.pieces.get(split, [])) for split in SPLITS])


def _unnamed_pieces(source: Source, key_hashes: NDArray[np.uint64], own: NDArray[np.integer]) -> set[int]:
    """Numbers of the pieces in whose split of the source a key is there twice."""
    found: list[int] = []
    for split in range(len(SPLITS)):
        hashes = np.sort(key_hashes[own == split])
        if (hashes[1:] == hashes[:-1]).any():
            found += np.flatnonzero(_own_splits(source) == split).tolist()
    return set(found)


def _moments(shards: list[WrittenShard], rows: int, layout: Layout) -> tuple[list[float], list[float], list[int]]:
    """Mean and standard deviation of each channel, in [0, 1] units, from exact integer sums; the constant channels.

    The deviation of a constant channel is 1: models divide by it.
    """
    channels, height, width = layout.image_shape
    count = rows * height * width
    # Python's integers, so that a variance of 0 is 0.
    sums = [sum(shard.sums[channel] for shard in shards) for channel in range(channels)]
    squares = [sum(shard.squares[channel] for shard in shards) for channel in range(channels)]
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
        clear_remains(made.path)
        source = list_configured(config)
        warn_of_full_disk(source, config, made.path)
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
