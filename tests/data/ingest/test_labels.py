"""What labels mean: names of every file, columns, numbers that cannot be meant; no Ray but for what an import says."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from easycore_ray.data.ingest import readers, sources
from easycore_ray.data.ingest.pipeline import prepare
from easycore_ray.data.ingest.splits import TEST, TRAIN, VAL, assign_splits, class_names
from easycore_ray.storage.errors import EasyCoreError


def png(seed, size=4):
    """A random image as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, labels, *, names=None, column="label", image="image", extra=None):
    """A Parquet file with an image for each label, and the class names as Hugging Face keeps them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({image: [png(row) for row in range(len(labels))], column: labels, **(extra or {})})
    features = {column: {"names": names, "_type": "ClassLabel"}} if names else {}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)


def labels_of(source, split):
    """Labels of a split as the import understands them, or the problems."""
    tables = [readers.check(0, piece, source.classes) for piece in source.pieces[split]]
    rows = pa.concat_tables([table for found in tables for table in found])
    return rows["label"].to_pylist(), rows["problem"].to_pylist()


class TestNamesOfFiles:
    def test_each_files_numbers_stand_for_its_own_names(self, tmp_path):
        """The test file counts its classes the other way round."""
        write(tmp_path / "train-0.parquet", [0, 1], names=["cat", "dog"])
        write(tmp_path / "train-1.parquet", [0, 1], names=["dog", "cat"])
        write(tmp_path / "test-0.parquet", [0, 0, 1], names=["dog", "cat"])

        source = sources.list_source(str(tmp_path))

        assert source.classes == ["cat", "dog"]
        assert labels_of(source, "train")[0] == [0, 1, 1, 0]
        assert labels_of(source, "test")[0] == [1, 1, 0]

    def test_names_of_the_training_file_come_first(self, tmp_path):
        """Whatever the files are called."""
        write(tmp_path / "a-test.parquet", [0], names=["dog", "cat"])
        write(tmp_path / "b-train.parquet", [0, 1], names=["cat", "dog"])

        assert sources.list_source(str(tmp_path)).classes == ["cat", "dog"]

    def test_names_that_the_training_file_lacks_are_refused(self, tmp_path):
        """Both files are named."""
        write(tmp_path / "train-0.parquet", [0, 1], names=["cat", "dog"])
        write(tmp_path / "test-0.parquet", [0], names=["cat", "emu"])

        with pytest.raises(EasyCoreError, match=r"test-0\.parquet names .*train-0\.parquet does not name: emu"):
            sources.list_source(str(tmp_path))

    @pytest.mark.parametrize("kind", ["parquet", "json beside tars"])
    def test_a_test_source_is_mapped_by_name(self, tmp_path, kind):
        """Its list counts otherwise than the source's."""
        write(tmp_path / "one" / "train-0.parquet", [0, 1], names=["cat", "dog"])
        write(tmp_path / "two" / "0.parquet", [0, 1, 1], names=["dog", "cat"] if kind == "parquet" else None)
        if kind != "parquet":
            (tmp_path / "two" / "classes.json").write_text('["dog", "cat"]')

        source = sources.list_source(str(tmp_path / "one"), test_source=str(tmp_path / "two"))

        assert labels_of(source, "test")[0] == [1, 0, 0]

    def test_a_test_source_of_other_names_is_refused(self, tmp_path):
        """Both are named."""
        write(tmp_path / "one" / "train-0.parquet", [0, 1], names=["cat", "dog"])
        write(tmp_path / "two" / "0.parquet", [0], names=["emu"])

        with pytest.raises(EasyCoreError, match=r"two/0\.parquet names .*one/train-0\.parquet does not name: emu"):
            sources.list_source(str(tmp_path / "one"), test_source=str(tmp_path / "two"))

    def test_a_list_that_is_passed_orders_the_names_of_the_file(self, tmp_path):
        """The same names in another order change numbers, not meanings."""
        write(tmp_path / "0.parquet", [0, 1], names=["cat", "dog"])
        (tmp_path / "names.txt").write_text("dog\ncat\n")

        source = sources.list_source(str(tmp_path), classes=str(tmp_path / "names.txt"))

        assert (source.classes, labels_of(source, "train")[0]) == (["dog", "cat"], [1, 0])

    def test_a_list_that_is_passed_may_rename_all(self, tmp_path):
        """Codes of a data set become words, one for one."""
        write(tmp_path / "0.parquet", [0, 1], names=["n01", "n02"])
        (tmp_path / "names.txt").write_text("dog\ncat\n")

        source = sources.list_source(str(tmp_path), classes=str(tmp_path / "names.txt"))

        assert (source.classes, labels_of(source, "train")[0]) == (["dog", "cat"], [0, 1])

    @pytest.mark.parametrize(
        ("text", "match"), [("dog\nemu\n", "at different places"), ("a\nb\nc\n", "names 3 classes")]
    )
    def test_a_list_that_contradicts_the_file_is_refused(self, tmp_path, text, match):
        """A class would change its name without a word."""
        write(tmp_path / "0.parquet", [0, 1], names=["cat", "dog"])
        (tmp_path / "names.txt").write_text(text)

        with pytest.raises(EasyCoreError, match=match):
            sources.list_source(str(tmp_path), classes=str(tmp_path / "names.txt"))

    def test_a_number_that_the_files_own_list_lacks_is_refused(self, tmp_path):
        """It may be a class of the dataset's list, by chance."""
        write(tmp_path / "train-0.parquet", [0, 1, 2], names=["cat", "dog", "emu"])
        write(tmp_path / "test-0.parquet", [0, 2], names=["dog", "cat"])

        labels, problems = labels_of(sources.list_source(str(tmp_path)), "test")

        assert (labels, problems) == ([1, None], [None, "unknown label 2; its file names the classes 0 .. 1"])

    def test_a_list_that_lacks_a_folder_is_refused(self, tmp_path):
        """Before any image is read; a list in another order numbers the folders otherwise."""
        for label in ("cat", "dog"):
            (tmp_path / "source" / label).mkdir(parents=True)
            (tmp_path / "source" / label / "0.png").write_bytes(png(0))
        names = tmp_path / "names.txt"
        names.write_text("dog\ncat\n")
        source = sources.list_source(str(tmp_path / "source"), classes=str(names))
        assert (source.classes, labels_of(source, "train")[0]) == (["dog", "cat"], [1, 0])

        names.write_text("cat\nemu\n")
        with pytest.raises(EasyCoreError, match=r"source names classes that .*names\.txt does not name: dog"):
            sources.list_source(str(tmp_path / "source"), classes=str(names))


class TestColumns:
    def test_columns_can_be_named(self, tmp_path):
        """CIFAR-100 has two columns of labels; class names are those of the one that is read."""
        write(tmp_path / "0.parquet", [1, 0], names=["a", "b"], column="fine_label", image="picture",
              extra={"coarse_label": [5, 6]})  # fmt: skip

        source = sources.list_source(str(tmp_path), label_column="fine_label", image_column="picture")

        assert (source.classes, labels_of(source, "train")) == (["a", "b"], ([1, 0], [None, None]))

    def test_columns_that_could_be_meant_are_named(self, tmp_path):
        """With the options that choose them."""
        write(tmp_path / "0.parquet", [1], column="fine_label", image="pic", extra={"coarse_label": [5], "x": [0.5]})

        with pytest.raises(EasyCoreError) as caught:
            sources.list_source(str(tmp_path))
        assert "--label-column fine_label or --label-column coarse_label" in str(caught.value)
        assert "--image-column pic" in str(caught.value)

    @pytest.mark.parametrize(
        ("labels", "words"),
        [([0.0, 1.0], "cast the column to int64"), ([[0], [1]], "one whole number"), ([True, False], "bool")],
        ids=["floats", "lists", "flags"],
    )
    def test_labels_of_another_kind_are_refused_before_reading(self, tmp_path, labels, words):
        """Whole floats are what pandas makes of a column with a gap."""
        write(tmp_path / "0.parquet", labels, extra={"digit": [3, 4]})

        with pytest.raises(EasyCoreError, match=words) as caught:
            sources.list_source(str(tmp_path))
        assert "--label-column digit" in str(caught.value)

    def test_columns_of_a_source_without_any_are_refused(self, tmp_path):
        """They would be passed over."""
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "0.png").write_bytes(png(0))

        for source in (str(tmp_path), "digits"):
            with pytest.raises(EasyCoreError, match="label_column go with Parquet"):
                sources.list_source(source, label_column="y")


class TestNumbers:
    def test_labels_that_count_from_one_are_recognised(self):
        """Class 0 has no image, and all others have some."""
        with pytest.raises(EasyCoreError, match=r"labels of the source are 1 \.\. 3, .* count from 1.*label - 1"):
            class_names(np.array([1, 2, 3, 1]), np.full(4, TRAIN), None)

    def test_a_label_beyond_the_last_name_may_count_from_one(self):
        """Said where it is the number of classes, and nowhere else."""
        with pytest.raises(ValueError, match=r"allowed are 0 \.\. 1; if the labels count from 1"):
            readers.label_index(2, {"a": 0, "b": 1})
        with pytest.raises(ValueError, match=r"allowed are 0 \.\. 1$"):
            readers.label_index(3, {"a": 0, "b": 1})

    def test_a_whole_float_is_told_how_to_be_written(self):
        """In the .json of a tar, say."""
        with pytest.raises(ValueError, match=r"1\.0 is no whole number; write it as 1"):
            readers.label_index(1.0, None)


class TestLastImages:
    def hold_out(self, labels, **fractions):
        own = np.zeros(len(labels), np.int64)
        return assign_splits(np.asarray(labels), own, ("train",), seed=0, **fractions)

    def test_a_class_keeps_its_last_image_for_training(self):
        """Ten classes of one image, one of five: what is held out comes of the one."""
        labels = np.array([*range(10), *[10] * 5])

        for seed in range(5):
            splits = assign_splits(
                labels, np.zeros(15, np.int64), ("train",), val_fraction=0, test_fraction=0.2, seed=seed
            )
            assert (splits == TEST).sum() == 3
            assert set(labels[splits == TRAIN]) == set(range(11))

    def test_half_of_everything_leaves_one_of_each(self):
        """More is asked for than can be had: the rest stays."""
        labels = np.array([0, 1, 2, 3, 3])

        splits = self.hold_out(labels, val_fraction=0, test_fraction=0.9)

        assert set(labels[splits == TRAIN]) == {0, 1, 2, 3}
        assert (splits == TEST).sum() == 1

    def test_classes_of_one_image_alone_cannot_be_held_out_of(self):
        """An empty split is refused, as ever."""
        with pytest.raises(EasyCoreError, match="test split is empty"):
            self.hold_out([0, 1, 2, 3], val_fraction=0, test_fraction=0.5)

    def test_where_all_classes_have_enough_nothing_changes(self):
        """The share of each class is that of largest remainders, as before."""
        labels = np.repeat([0, 1, 2], [10, 20, 30])

        splits = self.hold_out(labels, val_fraction=0.1, test_fraction=0.2)

        assert np.bincount(labels[splits == TEST]).tolist() == [2, 4, 6]
        assert np.bincount(labels[splits == VAL]).tolist() == [1, 2, 2]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
class TestWhatAnImportSays:
    def last_line(self, capsys):
        return capsys.readouterr().err.strip().splitlines()[-1]

    def test_where_class_names_come_from(self, tmp_path, capsys):
        """The file with the metadata, or that there are none."""
        write(tmp_path / "one" / "train-0.parquet", [0, 1] * 5, names=["cat", "dog"])
        write(tmp_path / "two" / "0.parquet", [0, 1] * 5)

        prepare(source=str(tmp_path / "one"), out=str(tmp_path / "1"), val_fraction=0)
        assert f"class names from {tmp_path}/one/train-0.parquet" in self.last_line(capsys)
        prepare(source=str(tmp_path / "two"), out=str(tmp_path / "2"), val_fraction=0)
        assert "classes are named by their labels" in self.last_line(capsys)

    def test_one_class_must_be_allowed_whatever_the_layout(self, tmp_path):
        """A column of zeros is hardly a label."""
        write(tmp_path / "0.parquet", [0] * 10)

        with pytest.raises(EasyCoreError, match=r"one class.*--allow-one-class"):
            prepare(source=str(tmp_path), out=str(tmp_path / "out"), val_fraction=0)
        made = prepare(source=str(tmp_path), out=str(tmp_path / "out"), val_fraction=0, allow_one_class=True)
        assert made.classes == ["0"]

    def test_a_constant_channel_has_a_deviation_of_one(self, tmp_path, capsys):
        """Models divide by it. Exactly, where rounding would leave some 1e-9."""
        images = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), np.uint8)
        images[..., 2] = 77
        for number, image in enumerate(images):
            path = tmp_path / "source" / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)

        made = prepare(source=str(tmp_path / "source"), out=str(tmp_path / "out"), val_fraction=0, test_fraction=0)

        assert made.std == made.manifest["std"] == [*(images[..., :2] / 255).std((0, 1, 2)).tolist(), 1.0]
        assert "channel 2 is 77/255 in every training image" in capsys.readouterr().err

    def test_a_class_of_one_image_is_imported_with_the_default_shares(self, tmp_path):
        """It stays in the training split."""
        write(tmp_path / "0.parquet", [*range(10), *[10] * 50])

        made = prepare(source=str(tmp_path), out=str(tmp_path / "out"))

        assert made.num_classes == 11
        assert set(made.index("train")["label"].to_pylist()) == set(range(11))
