"""Choosing file by file: parts that add up, streams that go on, refusals, and a killed run that is run again."""

import errno
import hashlib
import itertools
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from easycore_ray.core.selection import choose, draws_of
from easycore_ray.core.selection_methods import METHODS
from easycore_ray.data.coreset import read_sample_ids
from easycore_ray.data.index import index_spans, read_index, read_index_range
from easycore_ray.scoring.hardness_table import open_hardness, read_hardness, write_hardness
from easycore_ray.scoring.reduce import reduce
from easycore_ray.selection import exact_cut, gathered_choice, partitions
from easycore_ray.selection.select import select
from easycore_ray.selection.user_scores import with_user_scores
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import open_artifact
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.storage.hashes import content_hash
from tests.artifacts import draw_rows, edit_manifest, finish_table, make_dataset, samples_of, write_parts
from tests.contract import COUNT, columns, in_memory, kept, table

ROOT = Path(__file__).resolve().parents[2]


def make_run(folder, *, bucket_rows=25, count=COUNT):
    """A dataset and a scoring run of it, its hardness table in files of ``bucket_rows``."""
    labels = np.random.default_rng(0).choice(4, count, p=[0.5, 0.25, 0.2, 0.05])
    dataset = make_dataset(f"{folder}/dataset", labels.tolist())
    ids = np.arange(count)
    parts = write_parts(f"{folder}/scores/table", draw_rows(ids, labels, [1, 2]), ids % 2)
    finish_table(f"{folder}/scores", parts, samples_of(ids, labels), dataset)
    hardness = reduce(out=f"{folder}/scores/hardness", scores=f"{folder}/scores")
    # Cut here: reduce itself would start Ray for more than one range.
    rows, starts = read_hardness(hardness), range(0, count, bucket_rows)
    for entry in hardness.manifest["files"]:
        Path(hardness.path, entry["path"]).unlink()
    files = [write_hardness(hardness.path, number, rows.slice(start, bucket_rows), count=len(starts))
             for number, start in enumerate(starts)]  # fmt: skip
    edit_manifest(hardness.path, files=files)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A scoring run whose hardness table has several files."""
    return make_run(tmp_path_factory.mktemp("run"))


# ---------------------------------------------------------------- drawing


def test_a_draw_depends_on_the_seed_and_the_sample_alone():
    """Not on the samples beside it: of half the samples, those are kept that have the lowest draws of all."""
    ids, method = np.arange(1000) * 7, METHODS["random"]
    draws = draws_of(method, 3, ids)
    assert draws_of(method, 3, ids[::-5]).tolist() == draws[::-5].tolist()
    assert np.corrcoef(draws, draws_of(method, 4, ids))[0, 1] < 0.1
    assert 0 <= draws.min() < 0.01
    assert 0.99 < draws.max() < 1
    assert np.histogram(draws, 10, (0, 1))[0].min() > 60
    kept_ids = choose("random", sample_ids=ids, labels=ids % 2, fraction=0.25, seed=3, balance="class")
    for label in (0, 1):
        mine = ids[ids % 2 == label]
        lowest_draws = mine[np.argsort(draws_of(method, 3, mine))[:125]]
        assert kept_ids[kept_ids % 2 == label].tolist() == np.sort(lowest_draws).tolist()


@pytest.mark.parametrize("balance", ["none", "class"])
def test_random_needs_no_scores(tmp_path, balance):
    """From the index of a dataset, whatever its row groups, it is the draw of one process."""
    labels = columns()["label"].tolist()
    make_dataset(tmp_path / "d", labels, ids=columns()["sample_id"].tolist())
    samples = partitions.dataset_partitions(str(tmp_path / "d"))
    assert kept("random", None, balance, samples=samples).tolist() == in_memory("random", None, balance).tolist()


# ---------------------------------------------------------------- the index of a dataset


def many_groups(monkeypatch, folder, count=101):
    monkeypatch.setattr("easycore_ray.data.index._ROW_GROUP_ROWS", 10)
    make_dataset(folder, [number % 3 for number in range(count)], ids=[3 * number for number in range(count)])
    return str(folder)


def test_a_range_of_the_index_is_read_alone(tmp_path, monkeypatch):
    """Rows in id order, ends included, from the row groups that hold them; nothing of the other splits."""
    folder = many_groups(monkeypatch, tmp_path / "d")
    whole = read_index(folder, "train")
    assert pq.ParquetFile(f"{folder}/index.parquet").num_row_groups == 11
    for first, last in [(0, 300), (3, 3), (28, 100), (299, 1000), (301, 400)]:
        rows = read_index_range(folder, "train", first, last, ["sample_id", "key"])
        inside = [row for row in whole.to_pylist() if first <= row["sample_id"] <= last]
        assert rows.to_pylist() == [{"sample_id": row["sample_id"], "key": row["key"]} for row in inside]
    assert read_index_range(folder, "test", 0, 300, ["key"]).num_rows == 0


@pytest.mark.parametrize(("most", "lengths"), [(1, [10] * 10 + [1]), (25, [20] * 4 + [21]), (1000, [101])])
def test_spans_cover_the_split_in_order(tmp_path, monkeypatch, most, lengths):
    """Cut where row groups end; every sample once."""
    folder = many_groups(monkeypatch, tmp_path / "d")
    spans = index_spans(folder, "train", most)
    assert [span.rows for span in spans] == lengths
    ids = [
        read_index_range(folder, "train", span.first_id, span.last_id, ["sample_id"])["sample_id"].to_pylist()
        for span in spans
    ]
    assert [sample_id for part in ids for sample_id in part] == [3 * number for number in range(101)]


def test_an_index_with_one_row_group_is_still_read(tmp_path, monkeypatch):
    """As datasets had it before: the same coreset."""
    make_dataset(tmp_path / "old", [number % 3 for number in range(101)], ids=[3 * n for n in range(101)])
    many_groups(monkeypatch, tmp_path / "new")
    old, new = (
        select(out=f"{tmp_path}/c-{name}", dataset=f"{tmp_path}/{name}", method="random") for name in ("old", "new")
    )
    assert pq.ParquetFile(tmp_path / "old" / "index.parquet").num_row_groups == 1
    assert old.fingerprint == new.fingerprint
    assert (tmp_path / "c-old" / "keys.txt").read_text() == (tmp_path / "c-new" / "keys.txt").read_text()


# ---------------------------------------------------------------- parts


@pytest.mark.parametrize("method", ["easycore", "stratified", "random"])
def test_parts_and_exports_agree(run, tmp_path, method):
    """Files in id order as the manifest lists them; ids, keys and rows are the same samples."""
    coreset = select(out=f"{tmp_path}/c", scores=f"{run}/scores", method=method, fraction=0.4)
    rows = pq.read_table(f"{coreset.path}/coreset.parquet")
    files = coreset.manifest["files"]

    tables = len(open_hardness(f"{run}/scores").manifest["files"])
    assert tables > 3
    names = [f"coreset.parquet/coreset-{number:05d}.parquet" for number in range(tables)]
    listed = [entry["path"] for entry in files]
    assert listed == [name for name in names if name in listed]
    assert len(files) >= tables - 1  # the last file of the table has one sample
    assert sorted(paths.list_files(f"{coreset.path}/coreset.parquet")) == [f"{coreset.path}/{e['path']}" for e in files]
    for entry in files:
        part = pq.read_table(f"{coreset.path}/{entry['path']}")
        ids = part["sample_id"].to_pylist()
        assert (part.num_rows, ids[0], ids[-1]) == (entry["rows"], entry["first_id"], entry["last_id"])
        content = Path(coreset.path, entry["path"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
    assert rows["sample_id"].to_pylist() == read_sample_ids(coreset).tolist()
    assert np.load(f"{coreset.path}/sample_ids.npy", mmap_mode="r").tolist() == rows["sample_id"].to_pylist()
    assert Path(coreset.path, "keys.txt").read_text().splitlines() == rows["key"].to_pylist()
    assert np.bincount(rows["label"].to_numpy(), minlength=4).tolist() == coreset.manifest["class_histogram"]


def test_a_coreset_does_not_depend_on_how_its_table_is_cut(tmp_path, run):
    """Fingerprint, ids, keys and rows."""
    whole = make_run(tmp_path / "whole", bucket_rows=1000)
    one, many = (
        select(out=f"{tmp_path}/{name}", scores=f"{folder}/scores", balance="class")
        for name, folder in {"one": whole, "many": run}.items()
    )
    assert len(one.manifest["files"]) == 1 < len(many.manifest["files"])
    assert one.fingerprint == many.fingerprint
    read = [pq.read_table(f"{coreset.path}/coreset.parquet") for coreset in (one, many)]
    assert read[0].to_pylist() == read[1].to_pylist()
    for name in ("sample_ids.npy", "keys.txt"):
        assert Path(one.path, name).read_bytes() == Path(many.path, name).read_bytes()


def test_the_fingerprint_is_the_hash_of_the_ids(run, tmp_path):
    """As it was when a coreset was one file."""
    coreset = select(out=f"{tmp_path}/c", scores=f"{run}/scores", fraction=0.4)
    assert coreset.fingerprint == content_hash(read_sample_ids(coreset).astype("<i8").tobytes())


def test_a_file_of_which_nothing_is_kept_has_no_part(tmp_path):
    """Its number is left out."""
    scores = np.where(np.arange(COUNT) < 60, 5.0, 1.0)
    make_dataset(tmp_path / "d", columns()["label"].tolist(), ids=columns()["sample_id"].tolist())
    pq.write_table(pa.table({"sample_id": columns()["sample_id"], "score": scores}), tmp_path / "mine.parquet")
    samples = with_user_scores(partitions.hardness_partitions(table(4), None), str(tmp_path / "mine.parquet"))
    selection = exact_cut.Selection(method=METHODS["easiest"], fraction=0.3, score="user", options={})
    entries = exact_cut.write_choice(
        exact_cut.decide(selection, samples), f"{tmp_path}/c/coreset.parquet", f"{tmp_path}/d"
    )

    assert [entry["path"][-13:] for entry in entries] == ["00002.parquet", "00003.parquet"]
    assert sum(entry["rows"] for entry in entries) == 30


# ---------------------------------------------------------------- refusals


def test_a_method_that_needs_all_samples_is_refused_beyond_memory(run, tmp_path, monkeypatch):
    """With a sentence instead of a killed process; methods that rank have no such bound."""
    monkeypatch.setattr(gathered_choice, "gather_limit", lambda: 100)
    with pytest.raises(EasyCoreError, match=r"stratified sees all samples at once, and 101 are more than the 100"):
        select(out=f"{tmp_path}/c", scores=f"{run}/scores", method="stratified")
    assert select(out=f"{tmp_path}/c", scores=f"{run}/scores", method="hardest").manifest["counts"]["samples"] == 51


def test_a_damaged_file_is_refused(tmp_path):
    """By its path, and the folder stays free."""
    run = make_run(tmp_path / "run")
    files = sorted((tmp_path / "run" / "scores" / "hardness").glob("*.parquet"))
    whole = pq.read_table(files[1])
    pq.write_table(whole.slice(1), files[1])
    rows = whole.num_rows
    with pytest.raises(EasyCoreError, match=rf"00001.*parquet has {rows - 1} rows, {rows} are listed; it is damaged"):
        select(out=f"{tmp_path}/c", scores=f"{run}/scores")
    files[1].unlink()
    with pytest.raises(EasyCoreError, match=r"hardness-00001.*parquet is listed in the manifest but cannot be read"):
        select(out=f"{tmp_path}/c", scores=f"{run}/scores")
    assert not (tmp_path / "c").exists()


def in_row_groups(folder, scores, rows):
    """A hardness file of these scores, in row groups of so many, as a partition."""
    count = len(scores)
    ids = np.arange(count)
    pq.write_table(pa.table({"sample_id": ids, "label": ids % 3, "aign": scores}), f"{folder}/h", row_group_size=rows)
    return partitions.Partition(0, count, 0, count - 1, f"{folder}/h", from_index=False, score="aign")


@pytest.mark.parametrize("order", ["at random", "sorted", "few values, sorted", "all equal"])
@pytest.mark.parametrize("rows", [pytest.param(10, marks=pytest.mark.slow), 1000])
def test_a_sample_of_a_few_row_groups_changes_no_choice(tmp_path, monkeypatch, order, rows):
    """Also where the row groups that are read for it are nothing like the others."""
    drawn, scores = [], np.random.default_rng(0).random(1000)
    draw = partitions._draw
    monkeypatch.setattr(partitions, "_draw", lambda *args: drawn.append(draw(*args)) or drawn[-1])
    if order != "at random":
        scores = np.sort(np.floor(scores * {"sorted": 1e9, "few values, sorted": 5}.get(order, 1)))
    samples = [in_row_groups(tmp_path, scores, rows)]

    for limit, fraction in itertools.product((10, 100), (0.37, 0.9)):
        chosen = kept("easiest", "aign", "none", fraction=fraction, samples=samples, limit=limit)
        assert chosen.tolist() == np.sort(np.lexsort((np.arange(1000), scores))[: round(1000 * fraction)]).tolist()
    assert [len(groups) for groups in drawn] == [25 if rows == 10 else 1] * 4


def test_every_nan_is_counted_where_a_sample_has_seen_few(tmp_path):
    """The message is about all rows, not about those read first."""
    scores = np.where(np.arange(1000) % 10 == 3, np.nan, 1.0)
    with pytest.raises(ValueError, match=r"100 of 1000 scores are NaN \(first ids: \[3, 13, 23, 33, 43\]"):
        kept("easiest", "aign", "none", samples=[in_row_groups(tmp_path, scores, 100)], limit=10)


def test_a_key_that_is_nan_is_the_methods_fault(monkeypatch):
    """A method that divides by nothing ranks nothing."""
    broken = replace(METHODS["easiest"], function=lambda scores, _: np.where(scores > 1, np.nan, 0.0))
    monkeypatch.setitem(METHODS, "broken", broken)
    with pytest.raises(ValueError, match="gave a key that is NaN"):
        kept("broken", "aign", "none")


# ---------------------------------------------------------------- killed and run again


KILLED = """
import os, signal, sys
from easycore_ray.storage import paths
from easycore_ray.selection.select import select

left = int(sys.argv[3])
put = paths.write_file

def dying(path, local):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    put(path, local)

paths.write_file = dying
select(out=sys.argv[1], scores=sys.argv[2], fraction=0.4, balance="class")
"""


@pytest.mark.slow
def test_a_killed_selection_is_run_again(run, tmp_path):
    """SIGKILL before the first part, between parts, before an export: the same coreset, and nothing else is listed."""
    whole = select(out=f"{tmp_path}/whole", scores=f"{run}/scores", fraction=0.4, balance="class")
    for files_written in (0, 2, 5, 6):
        folder = tmp_path / f"killed-{files_written}"
        done = subprocess.run([sys.executable, "-c", KILLED, str(folder), f"{run}/scores", str(files_written)],
                              cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)  # fmt: skip
        assert done.returncode == -signal.SIGKILL
        with pytest.raises(EasyCoreError, match="still being written"):
            open_artifact(str(folder), "coreset")
        # As if the first attempt had cut its files otherwise.
        orphan = folder / "coreset.parquet" / "coreset-00007.parquet"
        orphan.parent.mkdir(exist_ok=True)
        orphan.write_bytes(b"left behind")

        again = select(out=str(folder), scores=f"{run}/scores", fraction=0.4, balance="class")

        assert again.fingerprint == whole.fingerprint
        assert again.manifest["files"] == whole.manifest["files"]
        assert not orphan.exists()
        assert pq.read_table(f"{again.path}/coreset.parquet").equals(pq.read_table(f"{whole.path}/coreset.parquet"))
        for name in ("sample_ids.npy", "keys.txt"):
            assert Path(again.path, name).read_bytes() == Path(whole.path, name).read_bytes()


def test_a_disk_that_fails_while_it_is_flushed_fails_the_selection(run, tmp_path, monkeypatch):
    """Flushed beside the work, and still heard; the same call again makes the coreset."""

    def failing(local):
        raise OSError(errno.EIO, "Input/output error", local)

    with monkeypatch.context() as broken:
        broken.setattr(paths, "flush", failing)
        with pytest.raises(OSError, match="Input/output error"):
            select(out=f"{tmp_path}/c", scores=f"{run}/scores")
    assert not list(tmp_path.glob("c/coreset.parquet/*"))
    with pytest.raises(EasyCoreError, match="still being written"):
        open_artifact(f"{tmp_path}/c", "coreset")
    assert select(out=f"{tmp_path}/c", scores=f"{run}/scores").manifest["counts"]["samples"] == 51


# ---------------------------------------------------------------- on Ray


@pytest.mark.ray
def test_ray_tasks_make_the_same_choice(run, tmp_path, ray_session, monkeypatch):
    """Several files a task: ids, rows and refusals are those of one process; a user's scores and drawn numbers too."""
    here = {
        (method, balance): select(out=f"{tmp_path}/{method}-{balance}", scores=f"{run}/scores", method=method,
                                  balance=balance).manifest
        for method in ("easycore", "random", "stratified") for balance in ("none", "class")
    }  # fmt: skip
    monkeypatch.setattr(exact_cut, "_SMALL_ROWS", 0)
    monkeypatch.setattr(exact_cut, "_TASKS_PER_CPU", 0.5)
    for (method, balance), manifest in here.items():
        again = select(out=f"{tmp_path}/ray-{method}-{balance}", scores=f"{run}/scores", method=method, balance=balance)
        assert again.manifest["files"] == manifest["files"]
        assert again.fingerprint == manifest["fingerprint"]

    scores = np.arange(COUNT) * 37.0 % 101
    pq.write_table(pa.table({"sample_id": np.arange(COUNT), "score": scores}), tmp_path / "mine.parquet")
    options = {"scores": f"{run}/scores", "user_scores": f"{tmp_path}/mine.parquet", "method": "easiest"}
    mine = select(out=f"{tmp_path}/mine", **options)
    assert (
        read_sample_ids(mine).tolist()
        == choose(
            "easiest", sample_ids=np.arange(COUNT), labels=np.zeros(COUNT), scores=scores, score="user", fraction=0.5
        ).tolist()
    )
    scores[[3, 99]] = np.nan
    pq.write_table(pa.table({"sample_id": np.arange(COUNT), "score": scores}), tmp_path / "mine.parquet")
    with pytest.raises(EasyCoreError, match=r"2 of 101 scores are NaN \(first ids: \[3, 99\]\)"):
        select(out=f"{tmp_path}/bad", **options)
