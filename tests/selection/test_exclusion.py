"""Samples that are left out: every method then chooses as if they were not there, of any number of files."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from easycore_ray.core.selection import choose
from easycore_ray.core.selection_methods import METHODS
from easycore_ray.data.coreset import read_sample_ids
from easycore_ray.scoring.hardness_table import open_hardness, read_hardness
from easycore_ray.scoring.reduce import reduce
from easycore_ray.selection import exact_cut, partitions
from easycore_ray.selection.exclusion import without_samples
from easycore_ray.selection.select import select
from easycore_ray.storage.errors import EasyCoreError
from tests.artifacts import draw_rows, finish_table, make_dataset, samples_of, write_parts
from tests.contract import COUNT, columns, features, fraction_of, stored, table
from tests.selection.test_exact_cut import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A scoring run whose hardness table has several files."""
    return make_run(tmp_path_factory.mktemp("run"))


def left_out_ids():
    """Every third id, the first file's whole, and ids that no partition has."""
    ids = columns()["sample_id"]
    return np.union1d(np.concatenate([ids[::3], ids[:9]]), ids[::5] + 1)


@pytest.mark.parametrize("balance", ["none", "class"])
@pytest.mark.parametrize("method", METHODS)
def test_what_is_left_is_chosen_from_as_if_there_were_no_other(method, balance):
    """The same ids as of rows in memory without them: in one file, in four, and in twelve whose first is emptied."""
    chosen = METHODS[method]
    score = chosen.default_score or None if chosen.needs_score else None
    ids = columns()["sample_id"]
    stays = ~np.isin(ids, left_out_ids())
    scores = stored(score)[stays] if score else None
    second = stored(chosen.second_score)[stays] if chosen.second_score else None
    vectors = features().take(np.flatnonzero(stays)) if chosen.needs_features else None
    fraction = fraction_of(method)
    plain = choose(method, sample_ids=ids[stays], labels=columns()["label"][stays], scores=scores, score=score,
                   second=second, features=vectors, balance=balance, fraction=fraction)  # fmt: skip
    selection = exact_cut.Selection(method=chosen, fraction=fraction, score=score, options=chosen.known({}),
                                    num_classes=5 if balance == "class" else None)  # fmt: skip

    for num_files, limit in ((1, 1), (4, 20), (12, 1000)):
        samples = without_samples(partitions.hardness_partitions(table(num_files), score), left_out_ids())
        choice = exact_cut.decide(selection, samples, second=second, features=vectors, limit=limit)
        found = [batch.sample_ids for partition, rule in zip(choice.partitions, choice.rules, strict=True)
                 for batch in exact_cut.kept_rows(partition, selection, rule)]  # fmt: skip
        assert choice.total == stays.sum() < COUNT
        assert np.concatenate(found).tolist() == plain.tolist()


def test_a_partition_with_gaps_in_its_ids_counts_only_what_it_has():
    """Ids that are left out and lie in a gap change no number of rows; what has nothing left is gone."""
    whole = partitions.hardness_partitions(table(4), "aign")
    gone = columns()["sample_id"][: whole[0].rows]
    left = without_samples(whole, np.union1d(gone, columns()["sample_id"][30:40] + 1))

    assert [part.rows for part in left] == [part.rows for part in whole[1:]]
    assert [part.number for part in left] == [0, 1, 2]
    assert without_samples(whole, columns()["sample_id"]) == []


def write_list(path, ids, **more):
    """A Parquet file of samples to leave out."""
    pq.write_table(pa.table({"sample_id": np.asarray(ids, np.int64), **more}), path)
    return str(path)


def plain_choice(run, left_out, method, **options):
    """What ``choose`` keeps of the rest of the run's table."""
    rows = read_hardness(open_hardness(f"{run}/scores"))
    stays = ~np.isin(rows["sample_id"].to_numpy(), left_out)
    score = METHODS[method].default_score if METHODS[method].needs_score else None
    return choose(method, sample_ids=rows["sample_id"].to_numpy()[stays], labels=rows["label"].to_numpy()[stays],
                  scores=rows[score].to_numpy()[stays] if score else None, fraction=0.4, **options)  # fmt: skip


@pytest.mark.parametrize("method", ["easycore", "stratified", "random"])
def test_the_coreset_is_that_of_the_rest(run, tmp_path, method):
    """The fraction counts on what is left; the manifest says how many were left out, and of what file."""
    left_out = np.arange(0, COUNT, 4)
    path = write_list(tmp_path / "out.parquet", left_out[::-1])
    made = select(out=f"{tmp_path}/c", scores=f"{run}/scores", method=method, fraction=0.4, exclude=path)
    plan = select.plan(out=f"{tmp_path}/d", scores=f"{run}/scores", method=method, fraction=0.4, exclude=path)

    assert read_sample_ids(made).tolist() == plain_choice(run, left_out, method).tolist()
    assert made.manifest["counts"] == {"samples": 30, "of": COUNT - len(left_out)}
    assert made.manifest["excluded"]["samples"] == len(left_out)
    assert made.manifest["excluded"]["path"] == path
    assert f"keep 30 of {COUNT - len(left_out)} samples" in plan.work
    assert not set(read_sample_ids(made).tolist()) & set(left_out.tolist())


def test_without_scores_the_rest_of_the_dataset_is_drawn_from(run, tmp_path):
    """As with scores: a draw goes by the id alone."""
    path = write_list(tmp_path / "out.parquet", [1, 5, 6])
    options = dict(method="random", fraction=0.4, exclude=path)
    by_index, by_table = (
        select(out=f"{tmp_path}/{name}", **inputs, **options)
        for name, inputs in (("a", {"dataset": f"{run}/dataset"}), ("b", {"scores": f"{run}/scores"}))
    )
    assert by_index.fingerprint == by_table.fingerprint
    assert by_index.manifest["counts"]["of"] == COUNT - 3


def test_a_users_scores_of_the_rest_are_taken(run, tmp_path):
    """A file may have scores of the others or not."""
    path = write_list(tmp_path / "out.parquet", [0, 50, 100])
    scores = np.random.default_rng(5).random(COUNT)
    kept = []
    for name, ids in (("all", np.arange(COUNT)), ("rest", np.delete(np.arange(COUNT), [0, 50, 100]))):
        pq.write_table(pa.table({"sample_id": ids, "score": scores[ids]}), tmp_path / f"{name}.parquet")
        made = select(out=f"{tmp_path}/{name}", dataset=f"{run}/dataset", method="easiest", fraction=0.2,
                      user_scores=f"{tmp_path}/{name}.parquet", exclude=path)  # fmt: skip
        kept.append(read_sample_ids(made).tolist())
    rest = np.delete(np.arange(COUNT), [0, 50, 100])
    assert kept[0] == kept[1] == np.sort(rest[np.argsort(scores[rest])[:20]]).tolist()


def test_a_second_score_is_that_of_the_rest(run, tmp_path):
    """Rows of both scores stay beside each other."""
    left_out = np.arange(3, COUNT, 5)
    path = write_list(tmp_path / "out.parquet", left_out)
    made = select(out=f"{tmp_path}/c", scores=f"{run}/scores", method="stratified", score="aum", fraction=0.4,
                  cutoff=0.2, cutoff_score="el2n", exclude=path)  # fmt: skip
    rows = read_hardness(open_hardness(f"{run}/scores"))
    second = rows["el2n"].to_numpy()[~np.isin(rows["sample_id"].to_numpy(), left_out)]
    plain = plain_choice(run, left_out, "stratified", second=second, second_score="el2n", cutoff=0.2)
    assert read_sample_ids(made).tolist() == plain.tolist()


def test_one_set_of_samples_is_one_coreset(run, tmp_path):
    """Whatever file names them, in whatever order, twice or not; other samples are another coreset."""
    one = write_list(tmp_path / "one.parquet", [4, 2, 2, 9])
    other = write_list(tmp_path / "other.parquet", [2, 4, 9], kind=["label_error", "duplicate", "mine"])
    out = {"out": f"{tmp_path}/c", "scores": f"{run}/scores"}
    first = select(exclude=one, **out)

    assert select(exclude=other, **out) == first
    more = write_list(tmp_path / "more.parquet", [2, 4])
    for changed in ({"exclude": more}, {}, {"exclude": other, "exclude_kind": "duplicate"}):
        with pytest.raises(EasyCoreError, match="made with another configuration or input"):
            select(**out, **changed)
    of_kind = select(out=f"{tmp_path}/k", scores=f"{run}/scores", exclude=other, exclude_kind="duplicate")
    assert of_kind.manifest["excluded"]["samples"] == 1
    assert of_kind.manifest["counts"]["of"] == COUNT - 1


def test_a_run_of_a_part_is_left_without_those_of_it(tmp_path):
    """Findings of the whole dataset name samples that were not scored: they are no choice anyway, and not counted."""
    labels = np.arange(COUNT) % 3
    dataset = make_dataset(tmp_path / "dataset", labels.tolist())
    ids = np.arange(0, COUNT, 2)
    parts = write_parts(tmp_path / "scores" / "table", draw_rows(ids, labels[ids], [1, 2]), ids % 4 // 2)
    finish_table(tmp_path / "scores", parts, samples_of(ids, labels[ids]), dataset)
    reduce(out=f"{tmp_path}/scores/hardness", scores=f"{tmp_path}/scores")
    made = select(out=f"{tmp_path}/c", scores=f"{tmp_path}/scores", method="full", fraction=1.0,
                  exclude=write_list(tmp_path / "out.parquet", np.arange(12)))  # fmt: skip

    assert read_sample_ids(made).tolist() == ids[6:].tolist()
    assert made.manifest["excluded"]["samples"] == 6


@pytest.mark.parametrize(
    ("columns_of_file", "message"),
    [
        ({"sample_id": [1, COUNT, -4]}, r"names 2 ids that are no training sample of .*dataset \(first: -4\)"),
        ({"sample_id": list(range(COUNT))}, rf"names all {COUNT} samples there are to choose from; none is left"),
        ({"sample_id": [1.5]}, "0 nulls and type double; it needs whole numbers in a column sample_id"),
        ({"sample_id": pa.array([1, None])}, "1 nulls and type int64; it needs whole numbers"),
        ({"id": [1]}, r"has columns \['id'\]; it needs whole numbers in a column sample_id"),
        ({"sample_id": [1, 2], "key": ["x.png", None]}, r"has for 1 of 2 rows other keys .*\(first: sample_id 1\)"),
        ({"sample_id": [1], "key": [[1]]}, "needs whole numbers in sample_id and text in key and kind"),
    ],
)
def test_files_that_do_not_fit_are_refused(run, tmp_path, columns_of_file, message):
    """In one line, and nothing is left behind."""
    pq.write_table(pa.table(columns_of_file), tmp_path / "out.parquet")
    with pytest.raises(EasyCoreError, match=message) as caught:
        select(out=f"{tmp_path}/c", scores=f"{run}/scores", exclude=f"{tmp_path}/out.parquet")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "c").exists()


def test_what_is_no_list_of_samples_is_refused(run, tmp_path):
    """Another kind of folder or file, no file at all, kinds where there are none."""
    Path(tmp_path / "mine.csv").write_text("sample_id\n1\n")
    plain = write_list(tmp_path / "plain.parquet", [1])
    for fields, message in (
        ({"exclude": f"{run}/dataset"}, "holds a dataset, not a audit; check the path"),
        ({"exclude": f"{tmp_path}/mine.csv"}, "is not a Parquet file"),
        ({"exclude": f"{tmp_path}/nowhere"}, "nowhere .*cannot be read|nowhere cannot be read"),
        ({"exclude": plain, "exclude_kind": "duplicate"}, "exclude_kind needs a column kind in it"),
        ({"exclude_kind": "duplicate"}, "exclude_kind goes with --exclude"),
        ({"exclude": plain, "exclude_kind": "copies"}, "exclude_kind must be one of label_error, label_conflict, dup"),
    ):
        with pytest.raises(EasyCoreError, match=message):
            select(out=f"{tmp_path}/c", scores=f"{run}/scores", **fields)
    assert not (tmp_path / "c").exists()
