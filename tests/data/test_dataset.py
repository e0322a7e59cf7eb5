"""Importing datasets, and reading them back."""

import hashlib
import io
import json
import os
import shutil
import struct
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from easycore_ray.data.dataset import draw_ids, open_dataset
from easycore_ray.data.ingest import pipeline, readers, shard_writer, sources, staging
from easycore_ray.data.ingest.pipeline import prepare
from easycore_ray.data.samples import read_split
from easycore_ray.storage.errors import EasyCoreError
from tests.image_sources import (
    CLASSES,
    PER_CLASS,
    WRITERS,
    contents,
    labelled,
    make,
    pixels,
    png,
    whole,
    write_folders,
    write_parquet,
    write_tars,
)
from tests.killed_import import run_here

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


class TestImport:
    @pytest.mark.parametrize("kind", WRITERS)
    def test_every_layout_stores_the_source_pixels_with_their_labels(self, tmp_path, kind):
        """Each image is found under its id, in source order, bit for bit."""
        source = WRITERS[kind](tmp_path / "source")

        make(source, tmp_path / "out", val_fraction=0, test_fraction=0)

        dataset = open_dataset(str(tmp_path / "out"))
        assert (dataset.classes, dataset.image_shape) == (CLASSES, (3, 6, 6))
        rows = whole(dataset, "train")
        for sample_id, (number, label) in enumerate(labelled()):
            image, stored_label = rows[sample_id]
            assert stored_label == label
            assert (image == pixels(number).transpose(2, 0, 1)).all()

    def test_all_layouts_of_the_same_images_have_one_fingerprint(self, tmp_path):
        """The fingerprint is of the content, not of the container."""
        found = {make(write(tmp_path / kind), tmp_path / f"{kind}-out").fingerprint for kind, write in WRITERS.items()}

        plain = make(write_parquet(tmp_path / "plain", plain=True), tmp_path / "plain-out").fingerprint

        assert found == {plain}

    def test_the_fingerprint_is_the_hash_of_labels_and_image_hashes(self, dataset):
        """Recomputed slowly, from the shards alone."""
        digest = hashlib.sha256()
        for split in ("train", "val", "test"):
            for _, (image, label) in sorted(whole(dataset, split).items()):
                digest.update(struct.pack("<i", label) + hashlib.sha256(image.tobytes()).digest())

        assert dataset.fingerprint == digest.hexdigest()

    def test_blocks_workers_and_the_disks_order_change_nothing(self, dataset, tmp_path, monkeypatch):
        """One source has one set of ids and shards, however the work is divided."""
        source = write_folders(tmp_path / "source", reverse=True)
        monkeypatch.setattr(sources, "_FILES_PER_PIECE", 7)

        make(source, tmp_path / "out")
        monkeypatch.setattr(pipeline, "_IN_FLIGHT", 1)
        make(source, tmp_path / "one by one")
        for module in (pipeline, shard_writer):
            monkeypatch.setattr(module, "map_tasks", partial(run_here, module.map_tasks))
        monkeypatch.setattr(readers, "ROWS_PER_TABLE", 2)
        monkeypatch.setattr(staging, "_BATCH_BYTES", 1)
        make(source, tmp_path / "in small runs")

        assert contents(tmp_path / "out") == contents(tmp_path / "one by one") == contents(tmp_path / "in small runs")
        assert open_dataset(str(tmp_path / "out")).fingerprint == dataset.fingerprint

    def test_index_says_where_each_image_came_from_and_lies(self, dataset, folders):
        """Key, label, hash, norm, shard and row all lead to the same image."""
        for split in ("train", "val", "test"):
            index = dataset.index(split).to_pylist()
            assert [row["sample_id"] for row in index] == list(range(dataset.num_rows(split)))
            for row in index:
                image = np.asarray(Image.open(f"{folders}/{row['key']}")).transpose(2, 0, 1)
                there = pq.read_table(dataset.shards(split)[row["shard"]]).slice(row["row"], 1).to_pylist()[0]
                assert there == {"sample_id": row["sample_id"], "label": row["label"], "image": image.tobytes()}
                assert row["sha256"] == hashlib.sha256(image.tobytes()).hexdigest()
                assert row["input_norm"] == pytest.approx(np.linalg.norm(image / 255))
                assert CLASSES[row["label"]] == row["key"].split("/")[0]

    def test_file_and_row_stand_for_keys_that_are_there_twice(self, tmp_path):
        """Two files that name their images alike: in the split where they do."""
        for name in ("train-0", "train-1", "test-0"):
            paths = ["1.png", "2.png", "3.png", "4.png"]
            entries = [
                {"bytes": png(pixels(100 * int(name == "test-0") + 10 * int(name[-1]) + int(path[0]))), "path": path}
                for path in paths
            ]
            pq.write_table(pa.table({"image": entries, "label": [0, 1, 0, 1]}), tmp_path / f"{name}.parquet")

        made = prepare(source=str(tmp_path), out=str(tmp_path / "out"), val_fraction=0)

        keys = {split: made.index(split)["key"].to_pylist() for split in ("train", "test")}
        assert keys["test"] == ["1.png", "2.png", "3.png", "4.png"]
        assert len(set(keys["train"])) == 8
        assert all(key.startswith(f"train-{number // 4}.parquet") for number, key in enumerate(keys["train"]))

    def test_splits_are_disjoint_complete_and_class_balanced(self, dataset):
        """60 images: 12 for testing, 10 % of the other 48 for validation."""
        keys = [dataset.index(split)["key"].to_pylist() for split in ("train", "val", "test")]

        assert [len(part) for part in keys] == [43, 5, 12]
        assert len(set().union(*keys)) == 3 * PER_CLASS
        assert np.bincount(dataset.index("test")["label"].to_numpy()).tolist() == [4, 4, 4]

    def test_manifest_describes_images_and_shards(self, dataset):
        """Moments are over the training pixels in [0, 1]; shards are nearly equal, their histograms right."""
        images = np.stack([image for image, _ in whole(dataset, "train").values()]) / 255

        assert dataset.mean == pytest.approx(images.mean((0, 2, 3)).tolist())
        assert dataset.std == pytest.approx(images.std((0, 2, 3)).tolist())
        entries = dataset.manifest["shards"]["train"]
        assert [entry["rows"] for entry in entries] == [15, 14, 14]
        for entry, path in zip(entries, dataset.shards("train"), strict=True):
            labels = pq.read_table(path)["label"].to_numpy()
            assert entry["class_histogram"] == np.bincount(labels, minlength=3).tolist()
            assert entry["bytes"] == Path(path).stat().st_size

    def test_a_shard_explains_its_image_column(self, dataset):
        """Fixed-size bytes, with the shape they stand for."""
        image = pq.read_schema(dataset.shards("train")[0]).field("image")

        assert image.type == pa.binary(108)
        assert json.loads(image.metadata[b"shape"]) == [3, 6, 6]

    def test_digits_are_imported_without_any_file(self, tmp_path):
        """The embedded default: 0..16 becomes 0..255, one channel."""
        from sklearn.datasets import load_digits

        artifact = prepare(source="digits", out=str(tmp_path / "out"))

        dataset = open_dataset(str(tmp_path / "out"))
        index = pa.concat_tables([dataset.index(split) for split in ("train", "val", "test")])
        number = {int(row["key"].removeprefix("digits#")): row for row in index.to_pylist()}
        assert (dataset.image_shape, len(number), artifact.fingerprint) == ((1, 8, 8), 1797, dataset.fingerprint)
        expected = np.rint(load_digits().images[1234] * 255 / 16).astype(np.uint8)
        assert number[1234]["sha256"] == hashlib.sha256(expected.tobytes()).hexdigest()

    def test_torchvision_datasets_come_with_their_test_split(self, tmp_path, monkeypatch):
        """MNIST's own files, ten images each, where a download would have put them."""
        raw = tmp_path / "torchvision" / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for name, first in (("train", 0), ("t10k", 50)):
            images = np.stack([pixels(first + row, (28, 28)) for row in range(10)])
            (raw / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, 10, 28, 28) + images.tobytes())
            (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, 10) + bytes(range(10)))
        monkeypatch.setenv("EASYCORE_CACHE", str(tmp_path))

        prepare(source="torchvision:MNIST", out=str(tmp_path / "out"), val_fraction=0)

        dataset = open_dataset(str(tmp_path / "out"))
        assert [dataset.num_rows(split) for split in ("train", "val", "test")] == [10, 0, 10]
        assert dataset.classes[3] == "3 - three"
        assert (whole(dataset, "test")[4][0] == pixels(54, (28, 28))).all()

    def test_one_colour_image_makes_a_grey_dataset_three_channels(self, tmp_path):
        """Grey images repeat their channel; hash and norm are of what is stored."""
        source = write_folders(tmp_path / "source", shape=(6, 6))
        (tmp_path / "source" / "cow" / "0059.png").write_bytes(png(pixels(59)))

        make(source, tmp_path / "out", val_fraction=0, test_fraction=0)

        dataset = open_dataset(str(tmp_path / "out"))
        rows, first = whole(dataset, "train"), dataset.index().to_pylist()[0]
        grey = np.broadcast_to(pixels(0, (6, 6)), (3, 6, 6))
        assert (rows[0][0] == grey).all()
        assert (rows[59][0] == pixels(59).transpose(2, 0, 1)).all()
        assert first["sha256"] == hashlib.sha256(grey.tobytes()).hexdigest()
        assert first["input_norm"] == pytest.approx(np.linalg.norm(grey / 255))


class TestRefusals:
    def refuse(self, source, out, match, **fields):
        """The import fails with this message and leaves nothing behind."""
        with pytest.raises(EasyCoreError, match=match) as raised:
            make(source, out, **fields)
        assert "\n" not in str(raised.value)
        assert not list(Path(out).rglob("*"))

    def test_corrupt_images_are_named(self, tmp_path):
        """The first few by file, all by number."""
        source = write_folders(tmp_path / "source")
        for name in ("ant/0003.png", "bee/0021.png", "bee/0022.png", "cow/0045.png"):
            (tmp_path / "source" / name).write_bytes(b"no image")

        self.refuse(
            source,
            tmp_path / "out",
            r"4 of 60 samples .*ant/0003\.png: corrupt image.*0021.*0022.*…; .*--on-bad-sample skip",
        )

    def test_unknown_labels_are_named_by_file_and_row(self, tmp_path):
        """Row numbers count through the file's row groups."""
        source = write_parquet(tmp_path / "source")
        table = pq.read_table(tmp_path / "source" / "1.parquet")
        labels = table["label"].to_pylist()
        labels[17] = 3
        pq.write_table(
            table.set_column(1, "label", pa.array(labels)), tmp_path / "source" / "1.parquet", row_group_size=7
        )

        self.refuse(
            source, tmp_path / "out", r"1 of 60 samples .* 1\.parquet#17: unknown label 3; allowed are 0 \.\. 2"
        )

    def test_an_empty_class_is_named(self, tmp_path):
        """A folder without images."""
        source = write_folders(tmp_path / "source")
        (tmp_path / "source" / "dog").mkdir()

        self.refuse(source, tmp_path / "out", r"1 of 4 classes .* class 3 \(dog\)")

    def test_an_empty_split_is_named(self, folders, tmp_path):
        """A fraction too small for the source."""
        self.refuse(folders, tmp_path / "out", "val split is empty", val_fraction=0.001)

    def test_images_of_different_size_need_an_image_size(self, tmp_path):
        """Two examples, and the option that helps."""
        source = write_folders(tmp_path / "source")
        (tmp_path / "source" / "ant" / "0007.png").write_bytes(png(pixels(7, (9, 5, 3))))

        self.refuse(source, tmp_path / "out", r"0000\.png is 6x6 and ant/0007\.png is 9x5 .*--image-size")

    def test_a_damaged_tar_is_refused_even_where_bad_samples_are_skipped(self, tmp_path):
        """A file that ends early has lost nobody knows how many samples."""
        source = write_tars(tmp_path / "source")
        content = (tmp_path / "source" / "1.tar").read_bytes()
        (tmp_path / "source" / "1.tar").write_bytes(content[:9000])

        self.refuse(source, tmp_path / "out", r"1\.tar cannot be read", on_bad_sample="skip")

    def test_a_folder_without_one_good_image_is_refused(self, tmp_path):
        """Even where bad samples are skipped."""
        (tmp_path / "source" / "ant").mkdir(parents=True)
        (tmp_path / "source" / "ant" / "0.png").write_bytes(b"junk")

        self.refuse(str(tmp_path / "source"), tmp_path / "out", "none of 1 samples is usable", on_bad_sample="skip",
                    allow_one_class=True)  # fmt: skip

    def test_skipped_samples_are_listed_and_ids_stay_dense(self, tmp_path):
        """The rest is imported as if they had never been there."""
        source = write_folders(tmp_path / "source")
        (tmp_path / "source" / "ant" / "0003.png").write_bytes(b"no image")

        artifact = make(source, tmp_path / "out", on_bad_sample="skip", val_fraction=0, test_fraction=0)

        [skipped] = artifact.manifest["skipped"]
        assert skipped["key"] == "ant/0003.png"
        assert skipped["reason"].startswith("corrupt image")
        dataset = open_dataset(str(tmp_path / "out"))
        index = dataset.index()
        assert index["sample_id"].to_pylist() == list(range(59))
        assert index["key"].to_pylist()[2:4] == ["ant/0002.png", "ant/0004.png"]


class TestReuse:
    def test_a_finished_dataset_is_returned_without_reading_the_source(self, tmp_path):
        """Same configuration, same folder: the source may even be gone."""
        source = write_folders(tmp_path / "source")
        made = make(source, tmp_path / "out")
        shutil.rmtree(source)

        again = make(source, tmp_path / "out")

        assert again.manifest == json.loads(json.dumps(made.manifest))

    def test_another_source_is_refused_without_overwrite(self, dataset, tmp_path):
        """A dataset is never silently replaced."""
        source = write_folders(tmp_path / "source")

        with pytest.raises(EasyCoreError, match="another configuration or input"):
            make(source, dataset.path)

    def test_a_mistake_leaves_the_folder_free_for_the_next_try(self, folders, tmp_path):
        """A wrong --source does not have to be overwritten."""
        with pytest.raises(EasyCoreError, match="does not exist"):
            make(str(tmp_path / "typo"), tmp_path / "out")

        assert make(folders, tmp_path / "out").kind == "dataset"

    def test_a_plan_writes_nothing(self, folders, tmp_path):
        """It says what would be imported, and where."""
        plan = prepare.plan(source=folders, out=str(tmp_path / "out"))

        assert not (tmp_path / "out").exists()
        assert "import 60 images in 3 classes" in plan.work
        assert plan.makes == (f"{tmp_path}/out",)

    def test_a_plan_downloads_nothing(self, tmp_path):
        """It cannot say how many images there are, then."""
        plan = prepare.plan(source="torchvision:CIFAR10", out=str(tmp_path / "out"))

        assert plan.work.startswith("import torchvision:CIFAR10 into shards")


class TestReaders:
    def test_read_split_gives_every_sample_once_sorted_by_id(self, dataset):
        """As the shards have them."""
        rows, expected = read_split(dataset, "train"), whole(dataset, "train")

        assert rows.sample_ids.tolist() == sorted(expected)
        assert rows.images.dtype == torch.uint8
        for sample_id, image, label in zip(*rows, strict=True):
            assert (image.numpy() == expected[int(sample_id)][0]).all()
            assert int(label) == expected[int(sample_id)][1]

    def test_read_split_gives_chosen_samples_in_id_order(self, dataset):
        """Whatever the order they are asked for in."""
        everything = read_split(dataset, "train")

        rows = read_split(dataset, "train", np.array([30, 2, 41]))

        assert rows.sample_ids.tolist() == [2, 30, 41]
        assert (rows.images == everything.images[[2, 30, 41]]).all()

    @pytest.mark.parametrize(
        ("ids", "message"), [([1, 43], "first missing: 43"), ([5, 5], "sample_id 5 is requested twice")]
    )
    def test_ids_that_are_not_there_once_are_refused(self, dataset, ids, message):
        """A coreset of another dataset must not be read as a shorter one."""
        with pytest.raises(EasyCoreError, match=message):
            read_split(dataset, "train", np.array(ids))

    def test_an_empty_split_reads_as_no_rows(self, folders, tmp_path):
        """Of images of the right shape."""
        make(folders, tmp_path / "out", val_fraction=0)
        dataset = open_dataset(str(tmp_path / "out"))

        assert read_split(dataset, "val").images.shape == (0, 3, 6, 6)

    def test_an_unknown_split_is_refused(self, dataset):
        """With the names there are."""
        with pytest.raises(EasyCoreError, match="unknown split 'valid'; allowed are train, val, test"):
            read_split(dataset, "valid")

    def test_drawn_ids_are_balanced_seeded_and_at_most_all(self, dataset):
        """A fixed test subset for every run."""
        labels = dataset.index("test")["label"].to_numpy()

        drawn = draw_ids(dataset, "test", 6, seed=0)

        assert np.bincount(labels[drawn]).tolist() == [2, 2, 2]
        assert drawn.tolist() == sorted(draw_ids(dataset, "test", 6, seed=0))
        assert drawn.tolist() != draw_ids(dataset, "test", 6, seed=1).tolist()
        assert draw_ids(dataset, "test", 100, seed=0).tolist() == list(range(12))


CIFAR10 = Path(os.environ.get("EASYCORE_CIFAR10", Path(__file__).parents[3] / "shared" / "data" / "cifar10"))


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="needs CIFAR-10 as Parquet: set EASYCORE_CIFAR10 to its folder")
def test_real_cifar10_files_import_with_names_from_the_folder_above(tmp_path):
    """One file per split of real JPEGs, decoded to what Pillow sees."""
    for split in ("train", "test"):
        (tmp_path / "source" / split).mkdir(parents=True)
        # Under another name: it says that there are more.
        first = sorted((CIFAR10 / split).glob("*.parquet"))[0]
        shutil.copy(first, tmp_path / "source" / split / "first.parquet")
    shutil.copy(CIFAR10 / "classes.json", tmp_path)

    prepare(source=str(tmp_path / "source"), out=str(tmp_path / "out"))

    dataset = open_dataset(str(tmp_path / "out"))
    counts = [dataset.num_rows(split) for split in ("train", "val", "test")]
    assert (dataset.classes[0], dataset.image_shape, counts) == ("airplane", (3, 32, 32), [4900, 100, 5000])
    table = pq.read_table(next((tmp_path / "source" / "test").iterdir()))
    rows = read_split(dataset, "test", np.array([0, 4321]))
    for position, sample_id in enumerate([0, 4321]):
        content = table["img"][sample_id].as_py()
        image = np.asarray(Image.open(io.BytesIO(content["bytes"])).convert("RGB"))
        assert (rows.images[position].permute(1, 2, 0).numpy() == image).all()
        assert int(rows.labels[position]) == table["label"][sample_id].as_py()
        assert dataset.classes[int(rows.labels[position])] == content["path"].split("/")[0]
