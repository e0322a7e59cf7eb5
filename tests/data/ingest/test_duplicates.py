"""The same picture more than once: counted, dropped or refused."""

import io

import numpy as np
import pytest
from PIL import Image

from easycore_ray.config.identity import identity_fields
from easycore_ray.config.stages import PrepareConfig
from easycore_ray.data.ingest.pipeline import prepare
from easycore_ray.storage.errors import EasyCoreError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def save(path, seed, kind="PNG", size=6):
    """A random picture; the same for the same seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    path.write_bytes(buffer.getvalue())


@pytest.fixture
def source(tmp_path):
    """Eight training and four test pictures: one of both splits, one twice in train, one of two labels."""
    root = tmp_path / "source"
    for number in range(4):
        save(root / "train" / "a" / f"{number}.png", number)
        save(root / "train" / "b" / f"{number}.png", 10 + number)
        save(root / "test" / "ab"[number % 2] / f"{number}.png", 20 + number)
    save(root / "train" / "a" / "1 copy.bmp", 1, "BMP")
    save(root / "train" / "b" / "of test.png", 20)
    save(root / "train" / "b" / "of a.png", 0)
    return str(root)


def make(source, out, **fields):
    """Import without a validation split."""
    return prepare(source=source, out=str(out), val_fraction=0, **fields)


def keys(dataset, split):
    """Where the samples of a split come from, in id order."""
    return dataset.index(split)["key"].to_pylist()


def test_copies_are_counted_and_kept(source, tmp_path, capsys):
    """By their pixels: a copy in another format is one."""
    made = make(source, tmp_path / "out")

    said = capsys.readouterr().err
    assert "3 images are there more than once, 1 of them in train and test, 2 with different labels" in said
    assert "--on-duplicate" in said
    assert made.manifest["duplicates"] == {
        "images": 3, "samples": 6, "in_train_and_test": 1, "with_different_labels": 2, "dropped": 0,
    }  # fmt: skip
    assert made.num_rows("train") == 11


def test_dropping_leaves_each_picture_once_and_the_test_split_whole(source, tmp_path, capsys):
    """Of train and test the copy for testing stays, else the first; ids are dense."""
    made = make(source, tmp_path / "out", on_duplicate="drop")

    assert keys(made, "train") == [
        "train/a/0.png", "train/a/1 copy.bmp", "train/a/2.png", "train/a/3.png",
        "train/b/0.png", "train/b/1.png", "train/b/2.png", "train/b/3.png",
    ]  # fmt: skip
    assert len(keys(made, "test")) == 4
    assert made.index("train")["sample_id"].to_pylist() == list(range(8))
    assert made.manifest["duplicates"]["dropped"] == 3
    assert {entry["key"]: entry["reason"] for entry in made.manifest["dropped"]} == {
        "train/a/1.png": "the same picture as train/a/1 copy.bmp",
        "train/b/of a.png": "the same picture as train/a/0.png",
        "train/b/of test.png": "the same picture as test/a/0.png",
    }
    assert "3 copies are dropped, so that ids are others than without --on-duplicate drop" in capsys.readouterr().err


def test_an_error_names_the_copies_and_writes_nothing(source, tmp_path):
    """The first two of a picture."""
    with pytest.raises(EasyCoreError, match=r"3 images are there more than once.*train/a/0\.png and train/b/of a\.png"):
        make(source, tmp_path / "out", on_duplicate="error")
    assert not (tmp_path / "out").exists()


def test_held_out_copies_count_as_train_and_test(tmp_path, capsys):
    """Every picture is there twice; of three that are held out of a class, one has its twin in training."""
    for number in range(10):
        for copy in range(2):
            save(tmp_path / "source" / "ab"[number % 2] / f"{number}-{copy}.png", number)

    made = make(str(tmp_path / "source"), tmp_path / "out", test_fraction=0.3)

    test = {key.rsplit("-", 1)[0] for key in keys(made, "test")}
    train = {key.rsplit("-", 1)[0] for key in keys(made, "train")}
    assert (
        f"10 images are there more than once, {len(test & train)} of them in train and test" in capsys.readouterr().err
    )
    assert test & train


def test_nothing_is_said_where_no_picture_is_there_twice(tmp_path, capsys):
    """Large images, which are stored as they came."""
    for number in range(4):
        save(tmp_path / "source" / "ab"[number % 2] / f"{number}.png", number, size=200)

    made = make(str(tmp_path / "source"), tmp_path / "out", test_fraction=0)

    assert "more than once" not in capsys.readouterr().err
    assert made.manifest["duplicates"]["images"] == 0


def test_large_copies_are_found_as_well(tmp_path, capsys):
    """By the bytes of their files."""
    for number in range(4):
        save(tmp_path / "source" / "ab"[number % 2] / f"{number}.png", min(number, 2), size=200)

    made = make(str(tmp_path / "source"), tmp_path / "out", test_fraction=0)

    assert made.manifest["duplicates"]["images"] == 1
    assert "1 image is there more than once" in capsys.readouterr().err


def test_dropping_alone_is_another_dataset():
    """To keep and to stop give the same dataset, if any."""
    keep, drop, error = (identity_fields(PrepareConfig(out="o", on_duplicate=how)) for how in ("keep", "drop", "error"))

    assert keep == error
    assert keep != drop
