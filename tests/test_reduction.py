"""Reduction: equal to a plain loop over rows, whoever wrote the rows and however ids are cut; damage is refused."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easycore_ray import paths, reduction, score_table
from easycore_ray.config import ReduceConfig
from easycore_ray.errors import EasyCoreError
from easycore_ray.hardness_table import SCHEMA, open_hardness, read_hardness
from easycore_ray.manifest import Artifact, open_artifact
from easycore_ray.reduction import reduce, reduce_range
from easycore_ray.score_table import open_table
from tests.artifacts import draw_rows, edit_manifest, finish_table, samples_of, write_parts

EPOCHS = [0, 1, 3, 5, 7]


def population(count=37, seed=0):
    """Ids with gaps in random order, and labels."""
    rng = np.random.default_rng(seed)
    return rng.permutation(np.arange(count) * 3 + 11), rng.integers(0, 4, count)


def expected(rows, samples):
    """The hardness table by a plain loop over samples and their rows, in order of epochs."""
    found = {name: [] for name in SCHEMA.names}
    for sample in samples.to_pylist():
        mine = []
        for columns in sorted(rows, key=lambda columns: columns["epoch"][0]):
            at = columns["sample_id"].tolist().index(sample["sample_id"])
            mine.append({name: values[at].item() for name, values in columns.items()})
        control = [row["grad_norm"] for row in mine if row["epoch"] == 0]
        mine = [row for row in mine if row["epoch"] > 0]
        learned = [row["epoch"] for row in mine if row["correct"]]
        sums = dict.fromkeys(("grad_norm", "el2n", "loss", "margin"), 0.0)
        forgotten, before = 0, False
        for row in mine:
            for name in sums:
                sums[name] += row[name]
            forgotten += before and not row["correct"]
            before = row["correct"]
        row = {
            "sample_id": sample["sample_id"],
            "label": sample["label"],
            "num_scores": len(mine),
            "aign": sums["grad_norm"] / len(mine),
            "el2n": sums["el2n"] / len(mine),
            "loss": sums["loss"] / len(mine),
            "aum": sums["margin"] / len(mine),
            "forgetting_events": forgotten,
            "first_learned_epoch": learned[0] if learned else -1,
            "input_norm": np.float32(sample["input_norm"]).item(),
            "aign_epoch0": control[0] if control else None,
        }
        for name in SCHEMA.names:
            found[name].append(row[name])
    return pa.table(found, schema=SCHEMA)


@pytest.fixture
def run(tmp_path):
    """A scoring run with a finished table of 37 samples, five epochs, three ranks."""
    ids, labels = population()
    parts = write_parts(tmp_path / "table", draw_rows(ids, labels, EPOCHS), np.arange(37) % 3)
    finish_table(tmp_path, parts, samples_of(ids, labels))
    return tmp_path


def reduced(run, **options):
    """The hardness table of a run."""
    artifact = reduce(ReduceConfig(out=f"{run}/hardness", scores=str(run), **options))
    return read_hardness(artifact)


# ---------------------------------------------------------------- values


def test_it_equals_the_plain_loop(run):
    """All columns, exactly: means in float64, counts, first learned epoch, the control apart."""
    ids, labels = population()
    samples = samples_of(ids, labels)

    assert reduced(run).equals(expected(draw_rows(ids, labels, EPOCHS), samples))


def test_counts_follow_a_hand_made_history(tmp_path):
    """Learned, forgotten and learned again; late; never; and a control that counts for nothing."""
    ids, labels = np.arange(3), np.zeros(3, int)
    history = {0: [1, 1, 1], 1: [1, 0, 0], 2: [0, 0, 0], 4: [1, 1, 0], 5: [0, 1, 0]}
    rows = draw_rows(ids, labels, list(history))
    for columns, correct in zip(rows, history.values(), strict=True):
        columns["correct"] = np.array(correct, bool)
        columns["grad_norm"] = np.float32([10 * columns["epoch"][0] + i for i in range(3)])
    rows[0]["grad_norm"][:] = 1e9
    finish_table(tmp_path, write_parts(tmp_path / "table", rows, np.zeros(3)), samples_of(ids, labels))
    table = reduced(tmp_path)

    assert table["forgetting_events"].to_pylist() == [2, 0, 0]
    assert table["first_learned_epoch"].to_pylist() == [1, 4, -1]
    assert table["num_scores"].to_pylist() == [4, 4, 4]
    assert table["aign"].to_pylist() == [30.0, 31.0, 32.0]
    assert table["aign_epoch0"].to_pylist() == [1e9, 1e9, 1e9]


def test_without_a_control_its_column_is_empty(tmp_path):
    """Null, not zero: there is nothing to compare with."""
    ids, labels = population()
    parts = write_parts(tmp_path / "table", draw_rows(ids, labels, [2, 4]), np.zeros(37))
    finish_table(tmp_path, parts, samples_of(ids, labels))

    assert reduced(tmp_path)["aign_epoch0"].null_count == 37


def test_sums_do_not_lose_small_scores_beside_large_ones(tmp_path):
    """Float64 all the way: in float32 the small ones would vanish."""
    ids, labels = np.arange(2), np.zeros(2, int)
    rows = draw_rows(ids, labels, list(range(1, 22)))
    for columns in rows:
        columns["grad_norm"] = np.float32([1e8 if columns["epoch"][0] == 1 else 1.0, 1.0])
    finish_table(tmp_path, write_parts(tmp_path / "table", rows, np.zeros(2)), samples_of(ids, labels))

    assert reduced(tmp_path)["aign"].to_pylist() == [(1e8 + 20) / 21, 1.0]


@given(st.integers(1, 25), st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True), st.data())
@settings(max_examples=20, deadline=None)
def test_who_wrote_the_rows_and_how_ids_are_cut_changes_nothing(count, epochs, data):
    """Any number of ranks, any rows to each, parts listed in any order, ranges of any size: the same bytes."""
    if epochs == [0]:
        epochs = [0, 1]
    ids, labels = population(count, seed=count)
    rows, samples = draw_rows(ids, labels, epochs), samples_of(ids, labels)
    ranks = np.array(data.draw(st.lists(st.integers(0, 5), min_size=count, max_size=count)))
    bucket = data.draw(st.integers(1, 90))
    with tempfile.TemporaryDirectory() as run:
        parts = data.draw(st.permutations(write_parts(f"{run}/table", rows, ranks)))
        finish_table(run, parts, samples)
        table = open_table(f"{run}/table")
        low, high = int(ids.min()), int(ids.max()) + 1
        for number, start in enumerate(range(low, high, bucket)):
            reduce_range(table, f"{run}/hardness", number, start, min(start + bucket, high))
        pieces = [pq.read_table(path) for path in sorted(Path(run, "hardness").iterdir())]

    assert pa.concat_tables(pieces).equals(expected(rows, samples))


def test_row_groups_change_nothing(run, tmp_path, monkeypatch):
    """A part is read a row group at a time; a sample's rows may start anywhere in one."""
    ids, labels = population()
    monkeypatch.setattr(score_table, "_ROW_GROUP_ROWS", 4)
    parts = write_parts(tmp_path / "cut" / "table", draw_rows(ids, labels, EPOCHS), np.arange(37) % 2)
    finish_table(tmp_path / "cut", parts, samples_of(ids, labels))

    assert reduced(tmp_path / "cut").equals(reduced(run))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("bucket_rows", [10, 50, 108])
def test_ranges_reduced_by_ray_tasks_are_put_together_in_order(run, bucket_rows):
    """Eleven tasks to two, the last one short: equal to the plain loop."""
    ids, labels = population()
    table = reduced(run, bucket_rows=bucket_rows)

    assert table.equals(expected(draw_rows(ids, labels, EPOCHS), samples_of(ids, labels)))
    assert len(open_hardness(str(run)).manifest["files"]) == -(-109 // bucket_rows)


# ---------------------------------------------------------------- the artifact


def test_the_artifact_says_what_it_is(run):
    """Counts, how scores were taken, and which dataset they belong to, for those who select by them."""
    artifact = reduce(out=f"{run}/hardness", scores=str(run))
    table = open_artifact(f"{run}/table")

    assert artifact.kind == "hardness_table"
    assert artifact.manifest["counts"] == {"samples": 37, "scored_epochs": 4}
    assert artifact.manifest["score_pass"] == "eval"
    assert artifact.manifest["dataset"]["fingerprint"] == "f" * 64
    assert artifact.manifest["parents"]["score_table"]["fingerprint"] == table.fingerprint
    assert open_hardness(str(run)) == open_hardness(f"{run}/hardness") == artifact


def test_read_hardness_reads_what_is_asked_for(run):
    """All columns in the schema's order, or those named."""
    artifact = reduce(out=f"{run}/hardness", scores=str(run))

    assert read_hardness(artifact).schema.equals(SCHEMA)
    assert read_hardness(artifact, ["sample_id", "aign"]).column_names == ["sample_id", "aign"]


def test_a_finished_table_is_reused_whatever_the_range_size(run, capsys, monkeypatch):
    """How ids were cut is no reason to reduce again."""
    artifact = reduce(out=f"{run}/hardness", scores=str(run))
    monkeypatch.setattr(reduction, "reduce_range", None)

    assert reduce(out=f"{run}/hardness", scores=str(run), bucket_rows=5) == artifact
    assert "is finished, reused" in capsys.readouterr().err


def test_another_score_table_is_another_hardness_table(run, tmp_path):
    """The folder of the first is not given to the second without --overwrite."""
    reduce(out=f"{run}/hardness", scores=str(run))
    ids, labels = population()
    finish_table(
        tmp_path / "b",
        write_parts(tmp_path / "b" / "table", draw_rows(ids, labels, EPOCHS, seed=1), np.zeros(37)),
        samples_of(ids, labels),
    )

    with pytest.raises(EasyCoreError, match="made with another configuration or input"):
        reduce(out=f"{run}/hardness", scores=str(tmp_path / "b"))
    assert isinstance(reduce(out=f"{run}/hardness", scores=str(tmp_path / "b"), overwrite=True), Artifact)


def test_an_interrupted_reduction_goes_on(run, monkeypatch):
    """What was left of it does no harm, files of smaller ranges included."""
    table = open_table(f"{run}/table")

    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(reduction, "finish", die)
        with pytest.raises(KeyboardInterrupt):
            reduce(out=f"{run}/hardness", scores=str(run))
    reduce_range(table, f"{run}/hardness", 3, 11, 20)
    ids, labels = population()

    assert reduced(run).equals(expected(draw_rows(ids, labels, EPOCHS), samples_of(ids, labels)))


def test_a_dry_run_writes_nothing(run, capsys):
    """It says what would be done."""
    assert reduce(out=f"{run}/hardness", scores=str(run), dry_run=True) is None
    assert "would reduce 37 samples × 5 epochs" in capsys.readouterr().err
    assert not (run / "hardness").exists()


# ---------------------------------------------------------------- damage


def part_file(run, epoch=3, rank=1):
    """A part's file."""
    return run / "table" / f"epoch={epoch:05d}" / f"part-a-r{rank:05d}.parquet"


def relist(run, columns, epoch=3, rank=1):
    """Replace a part by these rows, and its descriptor with it: damage that no checksum shows."""
    part = score_table.write_part(str(run / "table"), columns, epoch=epoch, rank=rank, attempt="a")
    manifest = json.loads((run / "table" / "manifest.json").read_text())
    parts = [part.to_dict() if entry["path"] == part.path else entry for entry in manifest["parts"]]
    edit_manifest(run / "table", parts=parts)


def columns_of(run, epoch=3, rank=1):
    """The rows of a part."""
    table = pq.read_table(part_file(run, epoch, rank), partitioning=None)
    return {name: table[name].to_numpy().copy() for name in table.column_names}


def refuse(run, message, **options):
    """Reducing fails with this one line, and nothing is finished."""
    with pytest.raises(EasyCoreError, match=message) as caught:
        reduced(run, **options)
    assert "\n" not in str(caught.value)
    assert not (run / "hardness" / "manifest.json").exists()


def change_a_score(run):
    """Flip one bit of one float in a part; it stays a valid file."""
    content = bytearray(part_file(run).read_bytes())
    content[content.index(columns_of(run)["margin"].tobytes())] ^= 1
    part_file(run).write_bytes(content)


def test_a_torn_part_is_refused(run):
    """Its end is missing."""
    part_file(run).write_bytes(part_file(run).read_bytes()[:-20])
    refuse(run, "epoch=00003/part-a-r00001.parquet does not have the checksum")


def test_a_part_that_is_gone_is_refused(run):
    """Listed, but not there."""
    part_file(run).unlink()
    refuse(run, "epoch=00003/part-a-r00001.parquet is listed in the manifest but cannot be read")


def test_a_changed_score_is_refused(run):
    """No value can change behind the manifest's back."""
    change_a_score(run)
    refuse(run, "epoch=00003/part-a-r00001.parquet does not have the checksum")


@pytest.mark.parametrize("bucket", [7, 40, 200])
def test_every_part_is_verified_by_one_range(run, bucket):
    """However ids are cut, some range reads all of a damaged part and refuses it, and only one does."""
    change_a_score(run)
    table, refused = open_table(f"{run}/table"), []
    for low in range(11, 120, bucket):
        try:
            reduce_range(table, f"{run}/hardness", 0, low, min(low + bucket, 120))
        except EasyCoreError as error:
            refused.append(str(error))

    assert len(refused) == 1
    assert "does not have the checksum" in refused[0]


def test_a_doubled_row_in_another_part_is_refused(run):
    """The same sample by two ranks."""
    columns = columns_of(run)
    columns["sample_id"][2] = columns_of(run, rank=0)["sample_id"][4]
    relist(run, columns)
    refuse(run, rf"epoch 3: sample_id {columns['sample_id'][2]} has more than one row")


def test_a_doubled_row_in_one_part_is_refused(run):
    """The same sample twice by one rank."""
    columns = columns_of(run)
    columns["sample_id"][2] = columns["sample_id"][3]
    relist(run, columns)
    refuse(run, "epoch=00003/part-a-r00001.parquet is not sorted by sample_id, or holds one twice")


def test_a_missing_row_is_refused(run):
    """One sample lacks one epoch."""
    gone = columns_of(run)["sample_id"][5]
    relist(run, {name: np.delete(values, 5) for name, values in columns_of(run).items()})
    refuse(run, rf"epoch 3: 1 samples have no row or are foreign \(first sample_id: {gone}\)")


def test_a_sample_without_any_row_is_refused(run):
    """Also where no part reaches its id."""
    for epoch in EPOCHS:
        for rank in range(3):
            columns = columns_of(run, epoch, rank)
            keep = columns["sample_id"] != 119
            relist(run, {name: values[keep] for name, values in columns.items()}, epoch, rank)
    refuse(run, "36 of 37 samples have scores; the table is damaged")


@pytest.mark.parametrize("foreign", [-1, 12, 500])
def test_a_foreign_row_is_refused(run, foreign):
    """Padding, an id in a gap, an id beyond the population."""
    columns = columns_of(run)
    columns = {name: np.append(values, values[:1]) for name, values in columns.items()}
    columns["sample_id"][-1] = foreign
    relist(run, columns)
    refuse(run, rf"samples have no row or are foreign \(first sample_id: {foreign}\)")


@pytest.mark.parametrize("name", ["grad_norm", "loss", "margin", "el2n"])
def test_a_score_that_is_not_finite_is_refused(run, monkeypatch, name):
    """The writer refuses it; a part written by something else is refused here."""
    columns = columns_of(run)
    columns[name][0] = np.nan
    monkeypatch.setattr(score_table, "_refuse_non_finite", lambda *_: None)
    relist(run, columns)
    refuse(run, "epoch 3 holds scores that are not finite")


def test_a_table_with_nothing_but_the_control_is_refused(tmp_path):
    """There is no average of no epochs."""
    ids, labels = population()
    parts = write_parts(tmp_path / "table", draw_rows(ids, labels, [0]), np.zeros(37))
    finish_table(tmp_path, parts, samples_of(ids, labels))
    refuse(tmp_path, "holds no scored epoch after the first weights")


def test_tables_that_cannot_be_used_are_refused(run):
    """Newer, of another kind, unfinished, missing: before anything is written."""
    edit_manifest(run / "table", format_version=7)
    refuse(run, "format_version 7, this release reads up to 1")
    edit_manifest(run / "table", format_version=1, kind="dataset")
    refuse(run, "holds a dataset, not a score table")
    (run / "table" / "manifest.json").unlink()
    paths.write_json(f"{run}/table/run.json", {})
    refuse(run, "is still being written")
    refuse(run / "nowhere", "does not exist")
    assert not (run / "hardness").exists()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_damage_found_by_a_ray_task_is_the_same_single_line(run):
    """Without the task's traceback around it."""
    change_a_score(run)
    refuse(run, "^[^ ]*part-a-r00001.parquet does not have the checksum in the manifest", bucket_rows=20)
