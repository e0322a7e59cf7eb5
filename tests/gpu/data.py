"""Datasets for the GPU suite, made from random numbers: no download, no registry."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from easycore_ray.data import shards, views
from easycore_ray.data.dataset import Dataset, open_dataset
from easycore_ray.data.index import INDEX_SCHEMA, dataset_fingerprint, shard_details, shard_path, write_index
from easycore_ray.storage import artifact

_SHARD_ROWS = 5000
CLASSES = 10


def small_images(folder: Path, *, train: int, held_out: int, seed: int = 0) -> Dataset:
    """Color images of 32 × 32 pixels in ten classes that can be learned: a pattern of the class under noise.

    Args:
        folder: of the dataset.
        train: images of the training split.
        held_out: images of the validation and of the test split.
        seed: of everything.
    """
    draws = np.random.default_rng(seed)
    patterns = draws.normal(128, 40, (CLASSES, 3, 4, 4)).repeat(8, axis=2).repeat(8, axis=3)
    layout = shards.Layout("raw", (3, 32, 32), None)
    splits = {}
    for split, count in {"train": train, "val": held_out, "test": held_out}.items():
        labels = np.arange(count) % CLASSES
        noise = draws.normal(0, 60, (count, 3, 32, 32))
        pixels = np.clip(patterns[labels] + noise, 0, 255).astype(np.uint8)
        splits[split] = (labels, [image.tobytes() for image in pixels])
    return _write(folder, layout, splits)


def photos(folder: Path, count: int, *, image_size: int = 224, side: int = 400, distinct: int = 64) -> Dataset:
    """JPEG files of smooth colors, as large as those of ImageNet, seen at 224 × 224 pixels.

    Args:
        folder: of the dataset.
        count: images of the training split.
        image_size: pixels of a view.
        side: pixels of a file.
        distinct: files that differ; each is stored many times.
    """
    draws = np.random.default_rng(0)
    files = []
    for _ in range(min(distinct, count)):
        rough = Image.fromarray(draws.integers(0, 256, (12, 12, 3), np.uint8))
        buffer = io.BytesIO()
        rough.resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    resize = image_size * 8 // 7
    layout = shards.Layout("encoded", (3, image_size, image_size), image_size, "rotate", resize, views.VIEW_VERSION)
    labels = np.arange(count) % CLASSES
    return _write(folder, layout, {"train": (labels, [files[number % len(files)] for number in range(count)])})


def _write(folder: Path, layout: shards.Layout, splits: dict[str, tuple[np.ndarray, Sequence[bytes]]]) -> Dataset:
    tables = []
    sizes: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for split, (labels, images) in splits.items():
        ids = np.arange(len(labels))
        for number, start in enumerate(range(0, len(ids), _SHARD_ROWS)):
            mine = slice(start, start + _SHARD_ROWS)
            columns = [pa.array(ids[mine]), pa.array(labels[mine], pa.int32()),
                       pa.array(images[mine], layout.schema.field("image").type)]  # fmt: skip
            path = f"{folder}/{shard_path(split, number)}"
            sizes[split].append(shards.write_rows(path, layout, pa.table(columns, schema=layout.schema)))
        tables.append(pa.table(
            {
                "split": [split] * len(ids), "sample_id": ids, "key": [f"{number}.jpg" for number in ids],
                "label": labels, "sha256": [hashlib.sha256(image).hexdigest() for image in images],
                "input_norm": np.ones(len(ids)), "shard": ids // _SHARD_ROWS, "row": ids % _SHARD_ROWS,
            },
            schema=INDEX_SCHEMA,
        ))  # fmt: skip
    index = pa.concat_tables(tables)
    write_index(index, str(folder))
    artifact.finish(
        artifact.Claim(str(folder), "dataset", "identity", "nonce", resumed=False),
        fingerprint=dataset_fingerprint(index),
        config={},
        parents={},
        counts={split: len(splits[split][0]) if split in splits else 0 for split in sizes},
        wall_seconds=0.0,
        classes=[f"class {label}" for label in range(CLASSES)],
        **layout._asdict(),
        mean=[0.5] * 3,
        std=[0.25] * 3,
        shards=shard_details(index, sizes, CLASSES),
    )
    return open_dataset(str(folder))
