"""What is read off the names of folders and files: splits, classes, gaps, links; no Ray."""

import os
import urllib.request
from email.message import Message
from urllib.error import HTTPError, URLError

import numpy as np
import pytest
import scipy.io
from PIL import Image

from easycore_ray.data.ingest import sources
from easycore_ray.storage.errors import EasyCoreError


def touch(root, *names):
    """Make files that listing looks at by name only."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def listed(root, **options):
    """Names by split and class, and the classes."""
    source = sources.list_source(str(root), allow_one_class=False, **options)
    found = {
        split: sorted((label, name) for piece in pieces for name, label in piece.files)
        for split, pieces in source.pieces.items()
    }
    return found, source.classes


def refused(root, *words, **options):
    """The message of a refusal, which holds all words and is one line."""
    with pytest.raises(EasyCoreError) as caught:
        sources.list_source(str(root), allow_one_class=False, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


class TestSplits:
    @pytest.mark.parametrize(
        "pattern",
        ["{split}/{label}/{name}", "data/{split}/{label}/{name}", "a/b/images/{split}/{label}/{name}",
         "{label}/{split}/{name}", "data/{label}/{split}/{name}", "{split}/{label}/deeper/{name}"],
    )  # fmt: skip
    def test_nested_splits_are_understood(self, tmp_path, pattern):
        """Below folders that hold everything, and below or above the classes."""
        for split, name in (("train", "1.png"), ("train", "2.png"), ("Test", "3.png")):
            for label in ("cat", "dog"):
                touch(tmp_path, pattern.format(split=split, label=label, name=name))

        found, classes = listed(tmp_path)

        assert classes == ["cat", "dog"]
        assert {split: [(label, name[-5:]) for label, name in files] for split, files in found.items()} == {
            "train": [("cat", "1.png"), ("cat", "2.png"), ("dog", "1.png"), ("dog", "2.png")],
            "test": [("cat", "3.png"), ("dog", "3.png")],
        }

    def test_folders_of_splits_beside_others_are_no_classes(self, tmp_path):
        """Both readings are named, and what to pass."""
        touch(tmp_path, "train/cat/1.png", "train/dog/1.png", "test/cat/2.png", "test/dog/2.png", "docs/figures/b.png")

        refused(tmp_path, "train", "test", "docs", f"--source {tmp_path}/train --test-source {tmp_path}/test")

    def test_splits_beside_other_folders_below_a_common_one(self, tmp_path):
        """The same one level down."""
        touch(tmp_path, "data/train/cat/1.png", "data/train/dog/1.png", "data/extra/1.png")

        refused(tmp_path, "extra", f"--source {tmp_path}/data/train")

    def test_a_nested_copy_of_all_splits_is_refused(self, tmp_path):
        """Otherwise the test images of the copy are trained on."""
        for top in ("", "chest/"):
            touch(tmp_path, *(f"{top}{split}/{label}/1.png" for split in ("train", "test") for label in ("a", "b")))

        refused(tmp_path, "chest", f"--source {tmp_path}/chest")

    def test_a_copy_inside_the_training_folder_is_refused(self, tmp_path):
        """A class called test would be made of the test images."""
        touch(tmp_path, *(f"train/{top}{label}/1.png" for top in ("", "train/", "test/") for label in ("a", "b")))

        refused(tmp_path, f"{tmp_path}/train/test", f"--source {tmp_path}/train ")

    def test_classes_with_a_folder_of_a_split_name_in_some_are_refused(self, tmp_path):
        """Some images would be in no split."""
        touch(tmp_path, "cat/1.png", "cat/test/2.png", "dog/1.png")

        refused(tmp_path, "cat/test")

    def test_two_folders_for_one_split_are_refused(self, tmp_path):
        """One may be an older copy."""
        touch(tmp_path, "val/a/1.png", "validation/a/1.png", "train/a/2.png", "train/b/2.png")

        refused(tmp_path, "val and validation")

    @pytest.mark.parametrize("other", ["bus/1.png", "bus/old/1.png"])
    def test_a_class_of_trains_stays_a_class(self, tmp_path, other):
        """Images lie in it directly, as in a class."""
        touch(tmp_path, "train/1.png", other)

        assert listed(tmp_path)[1] == ["bus", "train"]

    def test_a_class_of_trains_within_splits_stays_a_class(self, tmp_path):
        """The first folder is the split, the second one the class."""
        touch(tmp_path, "train/train/1.png", "train/bus/1.png", "test/train/2.png", "test/bus/2.png")

        found, classes = listed(tmp_path)

        assert classes == ["bus", "train"]
        assert [len(files) for files in found.values()] == [2, 2]

    def test_a_file_whose_name_has_two_splits_is_refused(self, tmp_path):
        """Either reading may be wrong."""
        touch(tmp_path, "train/test-0.tar", "train/train-0.tar")

        refused(tmp_path, "train/test-0.tar", "train and test")


class TestOneClass:
    def test_a_folder_too_high_names_the_one_below(self, tmp_path):
        """All images as one class is hardly ever meant."""
        touch(tmp_path, "dataset/cat/1.png", "dataset/dog/1.png")

        refused(tmp_path, "one class", "dataset", f"--source {tmp_path}/dataset", "--allow-one-class")

    def test_a_folder_of_one_class_must_be_allowed(self, tmp_path):
        """With the option it is imported."""
        touch(tmp_path, "cat/1.png", "cat/2.png")

        refused(tmp_path, "one class, cat", "--allow-one-class")
        assert sources.list_source(str(tmp_path), allow_one_class=True).classes == ["cat"]


class TestLinks:
    def test_linked_class_folders_and_files_are_read(self, tmp_path):
        """A subset is often made of links."""
        touch(tmp_path, "all/a/1.png", "all/b/1.png", "all/c/1.png", "all/c/2.png")
        (tmp_path / "some" / "c").mkdir(parents=True)
        (tmp_path / "some" / "a").symlink_to(tmp_path / "all" / "a")
        (tmp_path / "some" / "c" / "2.png").symlink_to(tmp_path / "all" / "c" / "2.png")

        assert listed(tmp_path / "some")[0] == {"train": [("a", "a/1.png"), ("c", "c/2.png")]}

    def test_a_folder_reached_twice_is_named_with_both_ways(self, tmp_path):
        """A link to a class beside it would be the same images under another name."""
        touch(tmp_path, "a/1.png", "b/1.png")
        (tmp_path / "c").symlink_to("a")

        refused(tmp_path, f"{tmp_path}/a", f"{tmp_path}/c", "same folder")

    def test_a_loop_is_named(self, tmp_path):
        """Listing ends."""
        touch(tmp_path, "a/1.png", "b/1.png")
        (tmp_path / "b" / "up").symlink_to(tmp_path)

        refused(tmp_path, f"{tmp_path}/b/up", "same folder")

    @pytest.mark.parametrize("link", ["a/2.png", "c"])
    def test_a_broken_link_is_named(self, tmp_path, link):
        """What it should lead to is missing from the data."""
        touch(tmp_path, "a/1.png", "b/1.png")
        (tmp_path / link).symlink_to(tmp_path / "nowhere")

        refused(tmp_path, f"{tmp_path}/{link}", "nowhere", "broken link")

    def test_a_name_that_is_no_utf8_is_shown(self, tmp_path):
        """In the folder that is named."""
        touch(tmp_path, "a/1.png", "b/1.png")
        (tmp_path / "a" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"x")

        refused(tmp_path, f"{tmp_path}/a", r"caf\xe9.png", "UTF-8")


class TestPassedOver:
    def test_files_that_are_not_read_are_counted_by_suffix(self, tmp_path):
        """Hidden ones and those without a suffix as such."""
        touch(tmp_path, "a/1.png", "b/1.png", "b/x.txt", "y.TXT", "a/2.avif", "a/README", "b/.hidden.png")

        source = sources.list_source(str(tmp_path), layout="imagefolder")

        assert source.passed_over == {".avif": 1, ".txt": 2, "hidden": 1, "without suffix": 1}

    @pytest.mark.parametrize("suffix", ["jfif", "jpe", "pbm", "dib", "JPG"])
    def test_suffixes_that_pillow_reads_are_read(self, tmp_path, suffix):
        """As Pillow registers them for the formats that are decoded."""
        assert "." + suffix.lower() in Image.registered_extensions()
        touch(tmp_path, f"a/1.{suffix}", "b/1.png")

        assert len(listed(tmp_path)[0]["train"]) == 2


class TestShardNumbers:
    @pytest.mark.parametrize(
        ("names", "words"),
        [
            (["train-00000-of-00003.tar", "train-00002-of-00003.tar"], ["00001-of-00003", "1 of 3"]),
            (["x/train-0-of-3.tar"], ["1-of-3", "2 of 3"]),
            (["train-00000-of-00001.tar", "test-00001-of-00002.tar"], ["test-00000-of-00002"]),
            (["train-00000-of-00001-abc.tar", "train-00000-of-00001-def.tar"], ["more than once", "-abc", "-def"]),
            (["train-0-of-1.tar", "train-0-of-2.tar", "train-1-of-2.tar"], ["of 1", "of 2"]),
        ],
    )
    def test_gaps_are_named(self, tmp_path, names, words):
        """A file of a set that is not there, or there twice."""
        touch(tmp_path, *names)

        refused(tmp_path, *words)

    @pytest.mark.parametrize(
        "names",
        [
            ["train-00000-of-00002-abc.tar", "train-00001-of-00002-def.tar"],
            ["train-1-of-2.tar", "train-2-of-2.tar"],
            ["a/train-0-of-1.tar", "b/train-0-of-1.tar"],
            ["train-00000.tar", "train-00002.tar"],
        ],
    )
    def test_whole_sets_are_read(self, tmp_path, names):
        """Counted from 0 or 1, with a hash behind, one set a folder."""
        touch(tmp_path, *names)

        assert len(sources.list_source(str(tmp_path)).pieces["train"]) == len(names)

    def test_one_file_of_a_set_can_be_named(self, tmp_path):
        """Who names it means it."""
        touch(tmp_path, "train-0-of-2.tar")

        assert len(sources.list_source(f"{tmp_path}/train-0-of-2.tar").pieces["train"]) == 1


class TestTorchvision:
    def accepted(self, made, choice, tmp_path):
        """Whether a constructor knows its split: it then misses its files, of which there are none."""
        with pytest.raises(Exception) as caught:
            made(root=str(tmp_path), download=False, **choice)
        return "Unknown value" not in str(caught.value), str(caught.value)

    @pytest.mark.parametrize(
        ("name", "splits"),
        [
            ("CIFAR10", {"train", "test"}),
            ("Country211", {"train", "val", "test"}),
            ("DTD", {"train", "val", "test"}),
            ("FGVCAircraft", {"train", "val", "test"}),
            ("Flowers102", {"train", "val", "test"}),
            ("Food101", {"train", "test"}),
            ("Imagenette", {"train", "test"}),
            ("OxfordIIITPet", {"train", "test"}),
            ("PCAM", {"train", "val", "test"}),
            ("RenderedSST2", {"train", "val", "test"}),
            ("SVHN", {"train", "test"}),
            ("STL10", {"train", "test"}),
            ("EuroSAT", {"train"}),
        ],
    )
    def test_every_split_of_a_dataset_is_used(self, tmp_path, name, splits):
        """The library itself knows the words: it gets as far as looking for the files."""
        from easycore_ray.data.ingest import builtin_sources

        made, choices = builtin_sources._dataset_class(name)

        assert set(choices) == splits
        for choice in choices.values():
            known, message = self.accepted(made, choice, tmp_path)
            assert known, message

    @pytest.mark.parametrize(
        ("error", "hint"),
        [
            (URLError("unknown host"), True),
            (ConnectionResetError("reset"), True),
            (HTTPError("http://x", 404, "Not Found", Message(), None), False),
            (RuntimeError("File not found or corrupted."), False),
            (OSError(28, "No space left on device"), False),
        ],
    )
    def test_missing_internet_is_named_only_where_it_is_missing(self, tmp_path, monkeypatch, error, hint):
        """A full disk, a damaged file and a page that is gone are something else."""

        def download(*_args, **_kwargs):
            raise error

        monkeypatch.setenv("EASYCORE_CACHE", str(tmp_path))
        monkeypatch.setattr(urllib.request, "urlopen", download)

        with pytest.raises(EasyCoreError, match="SVHN cannot be loaded") as caught:
            sources.list_source("torchvision:SVHN")
        assert "\n" not in str(caught.value)
        assert ("without internet access" in str(caught.value)) == hint


def write_flowers(root):
    """Flowers102's own files, small: splits of three, four and five images of three classes."""
    base = root / "torchvision" / "flowers-102"
    (base / "jpg").mkdir(parents=True)
    labels = np.array([1 + number % 3 for number in range(12)])
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(base / "jpg" / f"image_{number + 1:05d}.jpg")
    scipy.io.savemat(base / "imagelabels.mat", {"labels": labels})
    numbers = np.arange(1, 13)
    scipy.io.savemat(base / "setid.mat", {"trnid": numbers[:3], "valid": numbers[3:7], "tstid": numbers[7:]})
    return labels - 1


def test_a_validation_split_of_torchvision_is_imported_as_one(tmp_path, monkeypatch):
    """Read by torchvision from files where a download would have put them."""
    labels = write_flowers(tmp_path)
    monkeypatch.setenv("EASYCORE_CACHE", str(tmp_path))
    monkeypatch.setattr("torchvision.datasets.Flowers102._check_integrity", lambda _: True)
    monkeypatch.setattr("torchvision.datasets.Flowers102.download", lambda _: None)

    source = sources.list_source("torchvision:Flowers102")

    found = {split: [label for piece in pieces for label in piece.labels] for split, pieces in source.pieces.items()}
    assert found == {"train": labels[:3].tolist(), "val": labels[3:7].tolist(), "test": labels[7:].tolist()}


def test_an_import_says_what_it_passed_over(tmp_path, ray_session, capsys):
    """In the last line, beside where the class names come from."""
    from easycore_ray.data.ingest.pipeline import prepare

    for label in ("cat", "dog"):
        for number in range(5):
            path = tmp_path / "source" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)).save(path)
        (tmp_path / "source" / label / "notes.txt").write_text("")

    made = prepare(source=str(tmp_path / "source"), out=str(tmp_path / "out"), val_fraction=0)

    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "2 .txt passed over" in last
    assert "class names from the folders" in last
    assert made.manifest["passed_over"] == {".txt": 2}


test_an_import_says_what_it_passed_over.pytestmark = [pytest.mark.ray]
