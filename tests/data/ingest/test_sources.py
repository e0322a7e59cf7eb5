"""Listing sources, reading their samples, and turning images into pixels; no Ray."""

import io
import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torchvision.transforms.functional as vision
from PIL import Image

from easycore_ray.data import images
from easycore_ray.data.ingest import readers, sources
from easycore_ray.data.ingest.measuring import measure
from easycore_ray.storage.errors import EasyCoreError


def picture(width, height, mode="RGB", seed=0):
    """A random image."""
    shape = (height, width, len(Image.new(mode, (1, 1)).getbands()))
    return Image.frombytes(mode, (width, height), np.random.default_rng(seed).bytes(int(np.prod(shape))))


def png(image):
    """The image as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def touch(root, *names, content=b"x"):
    """Make files that listing looks at by name only."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def names(source):
    """File names of a listed folder source, by split."""
    return {split: [name for piece in pieces for name, _ in piece.files] for split, pieces in source.pieces.items()}


class TestImageFolders:
    def test_classes_are_the_sorted_folders_and_files_are_sorted_by_class(self, tmp_path):
        """The order of torchvision's ImageFolder, whatever the disk's."""
        touch(tmp_path, "b/2.png", "a b/1.jpg", "a/z/9.PNG", "a/0.jpeg", "b/.hidden.png", "notes.txt")

        source = sources.list_source(str(tmp_path))

        assert source.classes == ["a", "a b", "b"]
        assert names(source) == {"train": ["a/0.jpeg", "a/z/9.PNG", "a b/1.jpg", "b/2.png"]}
        assert source.num_rows == {"train": 4}

    def test_train_and_test_folders_are_splits(self, tmp_path):
        """Folders named after splits hold the classes one level deeper."""
        touch(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/2.png")

        source = sources.list_source(str(tmp_path))

        assert source.classes == ["a", "b"]
        assert names(source) == {"test": ["test/a/2.png"], "train": ["train/a/1.png", "train/b/1.png"]}

    def test_val_stands_in_for_a_missing_test_folder(self, tmp_path):
        """ImageNet's layout: what it calls val is never trained on or selected by."""
        touch(tmp_path, "train/a/1.png", "val/a/2.png")

        assert set(sources.list_source(str(tmp_path)).pieces) == {"train", "test"}

    def test_a_class_named_like_a_split_is_a_class(self, tmp_path):
        """Only if all folders have split names are they splits."""
        touch(tmp_path, "train/1.png", "bus/1.png")

        assert sources.list_source(str(tmp_path)).classes == ["bus", "train"]

    def test_an_empty_class_folder_is_still_a_class(self, tmp_path):
        """So that the import can report it as empty."""
        touch(tmp_path, "a/1.png")
        (tmp_path / "b").mkdir()

        assert sources.list_source(str(tmp_path)).classes == ["a", "b"]

    def test_an_image_outside_class_folders_is_refused(self, tmp_path):
        """It would have no label."""
        touch(tmp_path, "a/1.png", "2.png")

        with pytest.raises(EasyCoreError, match=r"2\.png lies in no class folder"):
            sources.list_source(str(tmp_path))

    def test_test_source_replaces_the_test_split(self, tmp_path):
        """Its own structure does not matter: all of it is tested on."""
        touch(tmp_path, "here/a/1.png", "there/a/2.png")

        source = sources.list_source(str(tmp_path / "here"), test_source=str(tmp_path / "there"))

        assert names(source) == {"train": ["a/1.png"], "test": ["a/2.png"]}


class TestListing:
    def test_a_missing_source_is_named(self, tmp_path):
        """The commonest mistake gets the plainest answer."""
        with pytest.raises(EasyCoreError, match=r"nowhere does not exist; pass --source"):
            sources.list_source(str(tmp_path / "nowhere"))

    def test_a_folder_of_several_kinds_needs_a_format(self, tmp_path):
        """Guessing would import half of it."""
        touch(tmp_path, "a/1.png", "b.tar")

        with pytest.raises(EasyCoreError, match=r"webdataset and imagefolder.*--format"):
            sources.list_source(str(tmp_path))
        assert names(sources.list_source(str(tmp_path), layout="imagefolder")) == {"train": ["a/1.png"]}

    def test_a_folder_without_images_is_refused(self, tmp_path):
        """Nothing to import is not an empty dataset."""
        touch(tmp_path, "readme.md")

        with pytest.raises(EasyCoreError, match="holds no images, Parquet files or tar shards"):
            sources.list_source(str(tmp_path))

    @pytest.mark.parametrize(
        ("files", "splits"),
        [
            (["train-0-of-1.tar", "test-0-of-1.tar"], {"train", "test"}),
            (["data/train-0.tar", "data/validation-0.tar"], {"train", "test"}),
            (["imagenet-train-0.tar", "imagenet-val-0.tar", "imagenet-test-0.tar"], {"train", "val", "test"}),
            (["train/0.tar", "test/0.tar"], {"train", "test"}),
            (["shard-0.tar", "shard-1.tar"], {"train"}),
        ],
    )
    def test_splits_are_read_off_file_names(self, tmp_path, files, splits):
        """The conventions of Hugging Face and WebDataset."""
        touch(tmp_path, *files)

        assert set(sources.list_source(str(tmp_path)).pieces) == splits

    def test_a_file_of_no_split_among_splits_is_refused(self, tmp_path):
        """It might be test data."""
        touch(tmp_path, "train-0.tar", "extra-0.tar")

        with pytest.raises(EasyCoreError, match=r"extra-0\.tar belongs to no split"):
            sources.list_source(str(tmp_path))

    def test_a_source_of_test_data_only_is_refused(self, tmp_path):
        """Nothing could be trained on."""
        touch(tmp_path, "test-0.tar")

        with pytest.raises(EasyCoreError, match="no training split, only test"):
            sources.list_source(str(tmp_path))

    def test_unknown_torchvision_names_are_refused(self):
        """With examples of what there is."""
        with pytest.raises(EasyCoreError, match=r"torchvision:CIFAR11 .* CIFAR10,"):
            sources.list_source("torchvision:CIFAR11")

    @pytest.mark.parametrize(
        "text", ['["cat", "dog"]', '{"classes": ["cat", "dog"]}', "cat\n\n dog \n"], ids=["list", "object", "lines"]
    )
    def test_class_names_are_read_from_json_or_lines(self, tmp_path, text):
        """Three ways people keep them."""
        (tmp_path / "names").write_text(text)

        assert sources.read_classes(str(tmp_path / "names")) == ["cat", "dog"]

    def test_a_class_named_twice_is_refused(self, tmp_path):
        """A name must mean one label."""
        (tmp_path / "names").write_text("cat\ndog\ncat\n")

        with pytest.raises(EasyCoreError, match="names cat twice"):
            sources.read_classes(str(tmp_path / "names"))

    def test_names_beside_the_source_or_above_it_are_found(self, tmp_path):
        """classes.json in the folder or its parent."""
        touch(tmp_path, "tars/train-0.tar")
        (tmp_path / "classes.json").write_text('{"classes": ["cat"]}')

        assert sources.list_source(str(tmp_path / "tars")).classes == ["cat"]


class TestParquet:
    def write(self, path, rows, *, row_group_size=100, metadata=None, image="image"):
        table = pa.table({image: [png(picture(4, 4, seed=row)) for row in range(rows)], "label": [0] * rows})
        pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=row_group_size)

    def test_arrays_of_numbers_are_no_images(self, tmp_path):
        """Normalised pixels in a list column are refused by name, before anything is read."""
        pq.write_table(pa.table({"image": [[-1.2, 0.3]], "label": [0]}), tmp_path / "0.parquet")

        with pytest.raises(EasyCoreError, match=r"image of list<.*double>; needed are image files.*normalis"):
            sources.list_source(str(tmp_path))

    def test_row_groups_are_joined_into_pieces_that_cover_every_row_once(self, tmp_path):
        """Pieces of about a thousand rows; keys count rows through the file."""
        self.write(tmp_path / "0.parquet", 2350)

        pieces = sources.list_source(str(tmp_path)).pieces["train"]

        assert [len(piece.groups) for piece in pieces] == [10, 10, 4]
        wheres = [sample.where for piece in pieces for sample in piece.samples()]
        assert wheres == [f"0.parquet#{row}" for row in range(2350)]

    def test_class_names_come_from_the_datasets_librarys_metadata(self, tmp_path):
        """The ClassLabel feature that Hugging Face writes."""
        features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "img": {"_type": "Image"}}
        self.write(
            tmp_path / "0.parquet",
            1,
            image="img",
            metadata={"huggingface": json.dumps({"info": {"features": features}})},
        )

        assert sources.list_source(str(tmp_path)).classes == ["cat", "dog"]

    def test_a_file_without_the_needed_columns_is_refused(self, tmp_path):
        """Says what it has and what is needed."""
        pq.write_table(pa.table({"pic": [b""], "y": [0]}), tmp_path / "0.parquet")

        with pytest.raises(EasyCoreError, match=r"columns pic, y; needed are image \(or img\)"):
            sources.list_source(str(tmp_path))

    def test_a_truncated_file_is_refused_by_name(self, tmp_path):
        """A broken download is not taken for an empty one."""
        self.write(tmp_path / "0.parquet", 10)
        content = (tmp_path / "0.parquet").read_bytes()
        (tmp_path / "0.parquet").write_bytes(content[: len(content) // 2])

        with pytest.raises(EasyCoreError, match=r"0\.parquet cannot be read as Parquet"):
            sources.list_source(str(tmp_path))


class TestLabels:
    @pytest.mark.parametrize(("label", "index"), [(0, 0), (1, 1), ("dog", 1)])
    def test_whole_numbers_and_names_are_labels(self, label, index):
        """Either way to say it."""
        assert readers.label_index(label, {"cat": 0, "dog": 1}) == index

    @pytest.mark.parametrize("label", [None, "", -1, 2, 1.0, True, "emu", "1"])
    def test_everything_else_is_refused(self, label):
        """Missing, out of range, not whole, unknown."""
        with pytest.raises(ValueError, match="label"):
            readers.label_index(label, {"cat": 0, "dog": 1})

    def test_names_need_a_list_of_classes(self):
        """The message says how to pass one."""
        with pytest.raises(ValueError, match="--classes FILE"):
            readers.label_index("cat", None)


class TestImages:
    @pytest.mark.parametrize(("width", "height"), [(40, 30), (50, 30), (30, 47), (7, 9), (16, 16), (33, 16)])
    def test_resized_views_equal_torchvisions(self, width, height):
        """Resize the shorter side, crop the centre: an independent implementation agrees to the bit."""
        image = picture(width, height)

        expected = vision.center_crop(vision.resize(image, [16]), [16])

        assert (images.view(image, 16) == np.asarray(expected).transpose(2, 0, 1)).all()

    @pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("LA", 1), ("RGB", 3), ("RGBA", 3), ("CMYK", 3)])
    def test_greyscale_has_one_channel_and_all_else_three(self, mode, channels):
        """Transparency is dropped."""
        assert images.view(picture(4, 4, mode), None).shape == (channels, 4, 4)

    def test_palettes_are_resolved_to_their_colours(self):
        """Indices are not pixels."""
        image = picture(8, 8).quantize(4)

        assert (images.view(image, None) == np.asarray(image.convert("RGB")).transpose(2, 0, 1)).all()

    @pytest.mark.parametrize(
        "content", [b"", b"no image", png(picture(32, 32))[:-100]], ids=["empty", "text", "truncated"]
    )
    def test_broken_files_are_corrupt(self, content):
        """Half an image is none."""
        with pytest.raises(ValueError, match="corrupt image"):
            images.decode(content)

    def test_deep_images_are_refused(self):
        """Pillow would clip 16 bits to 8 instead of scaling them."""
        deep = Image.fromarray(np.full((4, 4), 5000, np.uint16))

        with pytest.raises(ValueError, match="more than 8 bits"):
            images.decode(png(deep))

    @pytest.mark.parametrize("mode", ["L", "RGB"])
    def test_sums_are_those_of_the_view(self, mode):
        """Greyscale counts as three equal channels, so that it can join a colour dataset."""
        image = picture(6, 5, mode)
        pixels = np.broadcast_to(images.view(image, None), (3, 5, 6)).astype(int)

        found = measure(image)

        assert found.sums.tolist() == pixels.sum((1, 2)).tolist()
        assert found.squares.tolist() == (pixels**2).sum((1, 2)).tolist()

    def test_large_images_stay_as_they_came(self):
        """Beyond 64 KiB of pixels the file itself is stored."""
        content = png(picture(200, 200))

        found = measure(content)

        assert (found.pixels, found.encoded) == (None, content)


class TestPieces:
    def test_a_check_reports_bad_samples_as_rows_and_keeps_the_good_ones(self, tmp_path):
        """One import tells all that is wrong."""
        good = png(picture(4, 4))
        table = pa.table(
            {
                "image": [
                    {"bytes": good, "path": "x.png"},
                    {"bytes": b"junk", "path": None},
                    {"bytes": None, "path": "y"},
                ],
                "label": [0, 0, 0],
            }
        )
        pq.write_table(table, tmp_path / "0.parquet")
        [piece] = sources.list_source(str(tmp_path)).pieces["train"]

        found = pa.concat_tables(readers.check(7, pickle.loads(pickle.dumps(piece)), None))

        assert found["piece"].to_pylist() == [7, 7, 7]
        assert found["key"].to_pylist() == ["x.png", "0.parquet#1", "y"]
        assert [bool(problem) for problem in found["problem"].to_pylist()] == [False, True, True]
        assert found["pixels"][0].as_py() == images.view(images.decode(good).image, None).tobytes()

    def test_a_damaged_tar_is_reported_as_damaged(self, tmp_path):
        """No sample can be blamed, and none skipped, for a file that ends early."""
        (tmp_path / "0.tar").write_bytes(b"not a tar at all" * 100)

        found = pa.concat_tables(readers.check(0, readers.Tar(str(tmp_path), "0.tar"), None))

        assert found["row"].to_pylist() == [readers.DAMAGED]
        assert "0.tar cannot be read" in found["problem"][0].as_py()
