"""A source that has changed since it was imported is noticed."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from easycore_ray.data.ingest.pipeline import prepare
from easycore_ray.storage.errors import EasyCoreError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def save(path, seed):
    """A random picture of a size of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)).save(path)


@pytest.fixture
def source(tmp_path):
    """Two classes of five pictures, and a file that is none."""
    for number in range(10):
        save(tmp_path / "source" / "ab"[number % 2] / f"{number}.png", number)
    (tmp_path / "source" / "notes.txt").write_text("first")
    return tmp_path / "source"


def make(source, out, **fields):
    """Import without a validation split."""
    return prepare(source=str(source), out=str(out), val_fraction=0, **fields)


def test_new_gone_and_changed_files_are_counted(source, tmp_path):
    """In one line, with what to pass."""
    make(source, tmp_path / "out")
    for number in (11, 12, 13):
        save(source / "a" / f"{number}.png", number)
    (source / "a" / "0.png").unlink()
    (source / "a" / "2.png").write_bytes((source / "a" / "4.png").read_bytes())
    os.utime(source / "a" / "6.png", (1, 1))

    with pytest.raises(EasyCoreError) as caught:
        make(source, tmp_path / "out")

    message = str(caught.value)
    assert "3 new, 1 gone and 2 changed files" in message
    assert "\n" not in message
    assert "--overwrite" in message
    assert "--no-source-check" in message


def test_the_options_do_as_they_say(source, tmp_path, capsys):
    """The old dataset as it is, or the new one."""
    made = make(source, tmp_path / "out")
    save(source / "a" / "11.png", 11)

    assert make(source, tmp_path / "out", source_check=False).fingerprint == made.fingerprint
    again = make(source, tmp_path / "out", overwrite=True)
    assert sum(again.manifest["counts"].values()) == 11
    capsys.readouterr()
    assert make(source, tmp_path / "out").fingerprint == again.fingerprint
    assert "nothing to do" in capsys.readouterr().err


def test_files_that_are_not_read_do_not_count(source, tmp_path):
    """Notes may change."""
    made = make(source, tmp_path / "out")
    (source / "notes.txt").write_text("second")
    (source / "more.txt").write_text("")

    assert make(source, tmp_path / "out").fingerprint == made.fingerprint


def test_the_test_source_and_the_list_of_classes_count(source, tmp_path):
    """Whatever is read."""
    save(tmp_path / "more" / "a" / "0.png", 50)
    (tmp_path / "names").write_text("a\nb\n")
    others = {"test_source": str(tmp_path / "more"), "classes": str(tmp_path / "names")}
    make(source, tmp_path / "out", **others)
    make(source, tmp_path / "out", **others)

    (tmp_path / "names").write_text("b\na\n")
    save(tmp_path / "more" / "a" / "1.png", 51)
    with pytest.raises(EasyCoreError, match="1 new, 0 gone and 1 changed files"):
        make(source, tmp_path / "out", **others)


def test_a_source_that_is_gone_altogether_is_said(source, tmp_path, capsys):
    """It cannot be imported again, and the dataset is whole."""
    made = make(source, tmp_path / "out")
    shutil.rmtree(source)
    capsys.readouterr()

    assert make(source, tmp_path / "out").fingerprint == made.fingerprint
    assert f"{source} is not there any more" in capsys.readouterr().err


def test_named_sources_are_not_compared(tmp_path):
    """They come with a library."""
    made = make("digits", tmp_path / "out")

    assert make("digits", tmp_path / "out").fingerprint == made.fingerprint
