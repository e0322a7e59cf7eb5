"""Small sources of images in every layout that can be imported."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from easycore_ray.data.ingest.pipeline import prepare

CLASSES = ["ant", "bee", "cow"]

PER_CLASS = 20


def pixels(number, shape=(6, 6, 3)):
    """Image ``number``: random, but the same in every source made below."""
    return np.random.default_rng(number).integers(0, 256, shape, np.uint8)


def png(values):
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def labelled(count=PER_CLASS):
    """(number, label) of a source sorted by class."""
    return [(label * count + row, label) for label in range(len(CLASSES)) for row in range(count)]


def write_folders(root, *, shape=(6, 6, 3), reverse=False, count=PER_CLASS):
    """CLASS/0001.png; ``reverse`` creates the files in another order."""
    for number, label in sorted(labelled(count), reverse=reverse):
        path = root / CLASSES[label] / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(pixels(number, shape)))
    return str(root)


def write_parquet(root, *, plain=False):
    """Two Hugging Face-style files with small row groups, and the class names beside them."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.json").write_text(json.dumps({"classes": CLASSES}))
    for half, part in enumerate(np.array_split(np.array(labelled()), 2)):
        files = [png(pixels(number)) for number, _ in part]
        entries = [{"bytes": file, "path": None} for file in files]
        columns = {"image" if plain else "img": files if plain else entries, "label": part[:, 1]}
        pq.write_table(pa.table(columns), root / f"{half}.parquet", row_group_size=7)
    return str(root)


def write_tars(root):
    """Two WebDataset shards: one with .cls members, one with .json."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.json").write_text(json.dumps(CLASSES))
    for half, part in enumerate(np.array_split(np.array(labelled()), 2)):
        with tarfile.open(root / f"{half}.tar", "w") as tar:
            for number, label in part.tolist():
                said = ("cls", str(label)) if half == 0 else ("json", json.dumps({"label": CLASSES[label]}))
                for suffix, content in (("png", png(pixels(number))), (said[0], said[1].encode())):
                    member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return str(root)


WRITERS = {"imagefolder": write_folders, "parquet": write_parquet, "webdataset": write_tars}


def make(source, out, **fields):
    """Import with test and val splits that small sources can give; 15 images of 6 x 6 pixels in a shard."""
    return prepare(source=source, out=str(out), **{"val_fraction": 0.1, "shard_mib": 15 * 108 / 2**20, **fields})


def contents(out):
    """All bytes of a dataset but its manifest's times."""
    return {path.name: path.read_bytes() for path in Path(out).rglob("*.parquet")}


def whole(dataset, split):
    """A split by the slowest way: the shards' rows in a dictionary by id."""
    channels, height, width = dataset.image_shape
    found = {}
    for path in dataset.shards(split):
        for row in pq.read_table(path).to_pylist():
            image = np.frombuffer(row["image"], np.uint8).reshape(channels, height, width)
            assert row["sample_id"] not in found
            found[row["sample_id"]] = (image, row["label"])
    return found
