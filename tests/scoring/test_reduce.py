"""Reduction: equal to a plain loop over rows, whoever wrote the rows and however ids are cut; damage is refused."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easycore_ray.config.stages import ReduceConfig
from easycore_ray.inspection.verify import verify
from easycore_ray.scoring import reduce as reduction
from easycore_ray.scoring import score_table
from easycore_ray.scoring.hardness_table import COLUMNS_OF_SCORE, HARDNESS_SCHEMA, open_hardness, read_hardness
from easycore_ray.scoring.reduce import reduce
from easycore_ray.scoring.reduce_task import make_plan, reduce_range
from easycore_ray.scoring.score_reader import open_table
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Artifact, open_artifact
from easycore_ray.storage.errors import EasyCoreError
from tests.artifacts import draw_rows, edit_manifest, finish_table, samples_of, write_parts

EPOCHS = [0, 1, 3, 5, 7]


def population(count=37, seed=0):
    """Ids with gaps in random order, and labels."""
    rng = np.random.default_rng(seed)
    return rng.permutation(np.arange(count) * 3 + 11), rng.integers(0, 4, count)


def expected(rows, samples):
    """The hardness table by a plain loop over samples and their rows, in order of epochs."""
    found = {name: [] for name in HARDNESS_SCHEMA.names}
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
        for name in HARDNESS_SCHEMA.names:
            found[name].append(row[name])
    return pa.table(found, schema=HARDNESS_SCHEMA)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A scoring run with a finished table of 37 samples, five epochs, three ranks; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    ids, labels = population()
    parts = write_parts(folder / "table", draw_rows(ids, labels, EPOCHS), np.arange(37) % 3)
    finish_table(folder, parts, samples_of(ids, labels))
    return folder


@pytest.fixture
def run(tmp_path, finished_run):
    """A copy of the run of its own."""
    return shutil.copytree(finished_run, tmp_path, dirs_exist_ok=True)


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


def in_ranges(run, num_ranges, numbers=None, out="hardness"):
    """What the tasks of a plan write, put together in id order; the tasks run here."""
    table = open_table(f"{run}/table")
    plan = make_plan(table, tuple(table.epochs()), f"{run}/{out}", num_ranges)
    entries = [reduce_range(plan, number) for number in numbers or range(len(plan.ranges))]
    return pa.concat_tables(pq.read_table(f"{run}/{out}/{entry['path']}") for entry in entries)


@given(st.integers(1, 25), st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True), st.data())
@settings(max_examples=20, deadline=None)
def test_who_wrote_the_rows_and_how_ids_are_cut_changes_nothing(count, epochs, data):
    """Any ranks, other ones in some epochs, parts listed in any order, ranges of any size: the same bytes."""
    if epochs == [0]:
        epochs = [0, 1]
    ids, labels = population(count, seed=count)
    rows, samples = draw_rows(ids, labels, epochs), samples_of(ids, labels)
    shares = st.lists(st.integers(0, 5), min_size=count, max_size=count).map(np.array)
    ranks = data.draw(shares)
    with tempfile.TemporaryDirectory() as run:
        parts = []
        for columns in rows:
            # Usually a worker keeps its samples; a restart with other workers deals them anew.
            moved = data.draw(st.one_of(st.just({}), st.dictionaries(st.integers(0, count - 1), st.integers(0, 5))))
            ranks = data.draw(st.one_of(st.just(ranks), st.just(ranks), shares)).copy()
            ranks[list(moved)] = list(moved.values())
            parts += write_parts(f"{run}/table", [columns], ranks)
        finish_table(run, data.draw(st.permutations(parts)), samples)
        found = in_ranges(run, data.draw(st.integers(1, 90)))

    assert found.equals(expected(rows, samples))


@pytest.mark.parametrize("num_ranges", [1, 2, 3, 4])
def test_samples_that_move_before_those_that_stay_are_found(tmp_path, num_ranges):
    """Rank 0 gives away what it had of a range and keeps the rest; 1, 2 repeat theirs, in other places."""
    ids, labels = np.arange(12), np.zeros(12, int)
    before = np.arange(12) % 3
    after = np.where(ids == 6, 3, before)
    rows, samples = draw_rows(ids, labels, [1, 2, 3, 4]), samples_of(ids, labels)
    parts = []
    for columns, ranks in zip(rows, [before, after, before, before], strict=True):
        parts += write_parts(tmp_path / "table", [columns], ranks)
    finish_table(tmp_path, parts, samples)

    assert in_ranges(tmp_path, num_ranges).equals(expected(rows, samples))


def test_row_groups_change_nothing(run, tmp_path, monkeypatch):
    """A part is read a row group at a time; a sample's rows may start anywhere in one."""
    ids, labels = population()
    monkeypatch.setattr(score_table, "_ROW_GROUP_ROWS", 4)
    parts = write_parts(tmp_path / "cut" / "table", draw_rows(ids, labels, EPOCHS), np.arange(37) % 2)
    finish_table(tmp_path / "cut", parts, samples_of(ids, labels))

    assert reduced(tmp_path / "cut").equals(reduced(run))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(("bucket_rows", "num_ranges"), [(10, 11), (20, 6), (108, 3)])
def test_ranges_reduced_by_ray_tasks_are_put_together_in_order(run, bucket_rows, num_ranges):
    """Eleven tasks to three, the last one short: equal to the plain loop."""
    ids, labels = population()
    table = reduced(run, bucket_rows=bucket_rows)

    assert table.equals(expected(draw_rows(ids, labels, EPOCHS), samples_of(ids, labels)))
    files = open_hardness(str(run)).manifest["files"]
    # Two ranges of at most 108 become three, so that each of three CPUs has work.
    assert len(files) == num_ranges
    assert max(entry["last_id"] - entry["first_id"] for entry in files) < bucket_rows


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_progress_is_counted_in_rows(run, capsys):
    """All of them at the end: 37 samples of five epochs."""
    reduced(run, bucket_rows=20)

    assert "reduce: 185 of 185 rows (100 %), " in capsys.readouterr().err


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

    assert read_hardness(artifact).schema.equals(HARDNESS_SCHEMA)
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

    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(reduction, "finish", die)
        with pytest.raises(KeyboardInterrupt):
            reduce(out=f"{run}/hardness", scores=str(run))
    in_ranges(run, 10, [3, 5])
    ids, labels = population()

    assert reduced(run).equals(expected(draw_rows(ids, labels, EPOCHS), samples_of(ids, labels)))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_driver_killed_amid_the_ranges_changes_nothing(run):
    """SIGKILL after the first range is in; the same call again gives the files of an undisturbed one, byte for byte."""
    import ray

    program = (
        "import os, signal, sys\n"
        "from easycore_ray.runtime import tasks\n"
        "from easycore_ray.scoring import reduce as reduction\n"
        "tasks.Progress.update = lambda _, done, *__: done and os.kill(os.getpid(), signal.SIGKILL)\n"
        "reduction.reduce(out=sys.argv[1] + '/hardness', scores=sys.argv[1], bucket_rows=20)\n"
    )
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    done = subprocess.run([sys.executable, "-c", program, run], env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list((run / "hardness").glob("hardness-*-of-00006.parquet"))
    assert not (run / "hardness" / "manifest.json").exists()
    again = reduce(out=f"{run}/hardness", scores=str(run), bucket_rows=20)
    undisturbed = reduce(out=f"{run}/other", scores=str(run), bucket_rows=20)
    ids, labels = population()

    assert read_hardness(again).equals(expected(draw_rows(ids, labels, EPOCHS), samples_of(ids, labels)))
    assert again.manifest["files"] == undisturbed.manifest["files"]
    assert again.fingerprint == undisturbed.fingerprint


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_killed_task_is_done_again(run, tmp_path, monkeypatch):
    """SIGKILL of a task's process, once, before and once after its file is written: nobody needs to do anything."""
    work, marks = reduce_range, [tmp_path / "before", tmp_path / "after"]

    def die_twice(plan, number):
        def die_once(mark):
            if number == 1 and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        die_once(marks[0])
        entry = work(plan, number)
        die_once(marks[1])
        return entry

    monkeypatch.setattr(reduction, "reduce_range", die_twice)
    ids, labels = population()

    assert reduced(run, bucket_rows=20).equals(expected(draw_rows(ids, labels, EPOCHS), samples_of(ids, labels)))
    assert all(mark.exists() for mark in marks)


# ---------------------------------------------------------------- some epochs only


@pytest.mark.parametrize(("text", "epochs"), [("1:3", [1, 3]), ("2:5", [3, 5]), ("7:7", [7]), ("1:7", [1, 3, 5, 7])])
def test_epoch_range_counts_these_epochs_only(run, text, epochs):
    """As if the others had not been scored, but for the control."""
    ids, labels = population()
    rows = [columns for columns in draw_rows(ids, labels, EPOCHS) if columns["epoch"][0] in [0, *epochs]]

    assert reduced(run, epoch_range=text).equals(expected(rows, samples_of(ids, labels)))
    manifest = open_hardness(str(run)).manifest
    assert manifest["epoch_range"] == [int(end) for end in text.split(":")]
    assert manifest["counts"]["scored_epochs"] == len(epochs)


def test_epoch_range_is_part_of_what_the_table_is(run):
    """Another range is another table with another fingerprint; another spelling is the same one."""
    part = reduce(out=f"{run}/a", scores=str(run), epoch_range="1:5")
    whole = reduce(out=f"{run}/b", scores=str(run))

    assert whole.manifest["epoch_range"] is None
    assert (
        part.fingerprint != whole.fingerprint != reduce(out=f"{run}/c", scores=str(run), epoch_range="1:3").fingerprint
    )
    assert reduce(out=f"{run}/a", scores=str(run), epoch_range=" 01:05") == part
    with pytest.raises(EasyCoreError, match="made with another configuration or input"):
        reduce(out=f"{run}/a", scores=str(run), epoch_range="1:3")


def test_damage_outside_the_epochs_that_are_used_does_no_harm(run):
    """Parts of other epochs are not looked at."""
    part_file(run, epoch=7).unlink()
    ids, labels = population()
    rows = draw_rows(ids, labels, EPOCHS)[:4]

    assert reduced(run, epoch_range="1:5").equals(expected(rows, samples_of(ids, labels)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2:2", "epoch_range 2:2 holds no scored epoch of .*table; the nearest are 1 and 3"),
        ("5:9", "epoch_range 5:9 ends after the last scored epoch of .*table, 7; B must be at most 7"),
        ("8:9", "B must be at most 7"),
    ],
)
def test_epochs_that_are_not_there_are_refused(run, text, message):
    """Before anything is written, by the plan as well."""
    refuse(run, message, epoch_range=text)
    with pytest.raises(EasyCoreError, match=message):
        reduce.plan(out=f"{run}/hardness", scores=str(run), epoch_range=text)
    assert not (run / "hardness").exists()


def test_a_plan_writes_nothing(run):
    """It says what would be done."""
    assert reduce.plan(out=f"{run}/hardness", scores=str(run)).work == "reduce 37 samples × 5 epochs"
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


@pytest.mark.parametrize("num_ranges", [1, 3, 16])
def test_every_part_is_verified_by_one_range(run, num_ranges):
    """However ids are cut, one range reads all of a damaged part and refuses it, and only one does."""
    change_a_score(run)
    refused = []
    for number in range(num_ranges):
        try:
            in_ranges(run, num_ranges, [number])
        except EasyCoreError as error:
            refused.append(str(error))

    assert len(refused) == 1
    assert "does not have the checksum" in refused[0]


@pytest.mark.parametrize("num_ranges", [1, 2, 5])
def test_checksums_are_shared_out_evenly(run, num_ranges):
    """Each part to one range that it has rows in, and no range has much more to do than another."""
    table = open_table(f"{run}/table")
    plan = make_plan(table, tuple(table.epochs()), f"{run}/hardness", num_ranges)
    for (low, high), parts in zip(plan.ranges, plan.verified, strict=True):
        assert all(part.first_id < high and part.last_id >= low for part in parts)
    loads = [sum(part.num_bytes for part in parts) for parts in plan.verified]

    assert sorted(part.path for parts in plan.verified for part in parts) == sorted(part.path for part in table.parts)
    assert max(loads) - min(loads) <= max(part.num_bytes for part in table.parts)


def test_a_part_without_rows_is_verified_too(run):
    """A worker that had none wrote one; it is listed, so it must be there."""
    empty = {name: values[:0] for name, values in columns_of(run).items()}
    part = score_table.write_part(f"{run}/table", empty, epoch=3, rank=9, attempt="a")
    manifest = json.loads((run / "table" / "manifest.json").read_text())
    edit_manifest(run / "table", parts=[part.to_dict(), *manifest["parts"]])
    assert reduced(run).num_rows == 37
    (run / "table" / part.path).unlink()
    (run / "hardness" / "manifest.json").unlink()
    refuse(run, "epoch=00003/part-a-r00009.parquet is listed in the manifest but cannot be read")


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
    refuse(run, rf"epoch 3: 1 samples have no row \(first sample_id: {gone}\)")


def test_an_epoch_of_a_lost_worker_is_refused(run):
    """A part that is not listed is a part that is not there."""
    manifest = json.loads((run / "table" / "manifest.json").read_text())
    edit_manifest(
        run / "table", parts=[part for part in manifest["parts"] if part["path"] != "epoch=00003/part-a-r00001.parquet"]
    )
    gone = columns_of(run)["sample_id"]
    refuse(run, rf"epoch 3: {len(gone)} samples have no row \(first sample_id: {gone[0]}\)")


def test_a_sample_without_any_row_is_refused(run):
    """Also where no part reaches its id."""
    for epoch in EPOCHS:
        for rank in range(3):
            columns = columns_of(run, epoch, rank)
            keep = columns["sample_id"] != 119
            relist(run, {name: values[keep] for name, values in columns.items()}, epoch, rank)
    refuse(run, r"epoch 0: 1 samples have no row \(first sample_id: 119\)")


def test_a_list_of_samples_that_is_not_the_runs_is_refused(run):
    """Shorter than the manifest says, or of another schema, or gone."""
    ids, labels = population()
    score_table.write_samples(f"{run}/table", samples_of(ids[:-1], labels[:-1]))
    refuse(run, "36 of 37 samples are known; the table is damaged")
    pq.write_table(pa.table({"sample_id": ids}), run / "table" / "samples.parquet")
    refuse(run, "samples.parquet has another schema than the samples of a table")
    (run / "table" / "samples.parquet").unlink()
    refuse(run, "samples.parquet belongs to the table but cannot be read")


@pytest.mark.parametrize("foreign", [-1, 12, 500])
def test_a_foreign_row_is_refused(run, foreign):
    """Padding, an id in a gap, an id beyond the population."""
    columns = columns_of(run)
    columns = {name: np.append(values, values[:1]) for name, values in columns.items()}
    columns["sample_id"][-1] = foreign
    relist(run, columns)
    refuse(run, rf"(holds the foreign sample_id {foreign}, |epoch 3: sample_id {foreign} is foreign: )")


@pytest.mark.parametrize("epoch", [0, 3])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["grad_norm", "loss", "margin", "el2n"])
def test_a_score_that_is_not_finite_is_refused(run, monkeypatch, name, bad, epoch):
    """The writer refuses it; a part written by something else is refused here, with its epoch and ids."""
    columns = columns_of(run, epoch)
    columns[name][[0, 4]] = bad
    first, second = columns["sample_id"][[0, 4]]
    monkeypatch.setattr(score_table, "_refuse_non_finite", lambda *_: None)
    relist(run, columns, epoch)
    refuse(run, rf"epoch {epoch}: {name} is not finite for 2 samples \(first sample_ids: {first}, {second}\)")


def test_a_part_of_another_schema_is_refused(run):
    """Valid Parquet and listed with its checksum, but no part."""
    pq.write_table(pa.table({"sample_id": columns_of(run)["sample_id"]}), part_file(run))
    manifest = json.loads((run / "table" / "manifest.json").read_text())
    for part in manifest["parts"]:
        if part["path"] == "epoch=00003/part-a-r00001.parquet":
            part["sha256"] = hashlib.sha256(part_file(run).read_bytes()).hexdigest()
    edit_manifest(run / "table", parts=manifest["parts"])
    refuse(run, "part-a-r00001.parquet has another schema than a score table part: \\['sample_id'\\]")


def test_a_table_with_nothing_but_the_control_is_refused(tmp_path):
    """There is no average of no epochs."""
    ids, labels = population()
    parts = write_parts(tmp_path / "table", draw_rows(ids, labels, [0]), np.zeros(37))
    finish_table(tmp_path, parts, samples_of(ids, labels))
    refuse(tmp_path, "holds no scored epoch after the first weights")


def test_tables_that_cannot_be_used_are_refused(run):
    """Newer, of another kind, unfinished, missing: before anything is written."""
    edit_manifest(run / "table", format_version=7)
    refuse(run, "format_version 7, this release reads up to 2")
    edit_manifest(run / "table", format_version=2, kind="dataset")
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


@pytest.mark.parametrize(
    "only", [("aign",), ("el2n", "aum"), ("forgetting",), ("aign_epoch0",), ("loss", "aign_epoch0", "input_norm")]
)
def test_only_some_scores_are_the_same_and_the_others_empty(run, only):
    """--only changes no value: what is asked for equals the full reduction, the rest is null."""
    whole = read_hardness(reduce(scores=str(run), out=f"{run}/hardness"))
    some = read_hardness(reduce(scores=str(run), out=f"{run}/some", only=only))
    asked = {"sample_id", "label", *(column for name in only for column in COLUMNS_OF_SCORE[name])}

    (file,) = Path(f"{run}/some").glob("*.parquet")
    assert set(pq.read_schema(file).names) == asked
    assert not verify(open_hardness(f"{run}/some"))
    for name in HARDNESS_SCHEMA.names:
        if name in asked:
            assert some[name].equals(whole[name])
        else:
            assert some[name].null_count == some.num_rows


def test_a_damaged_page_is_found_without_reading_whole_parts(run):
    """With --only, a flipped bit in a score that is read is refused; one in a column that is not read is not seen."""
    table = open_table(f"{run}/table")
    part = Path(table.path, next(part.path for part in table.parts if part.epoch > 0 and part.rows))
    content = part.read_bytes()
    for column, refused in (("grad_norm", True), ("loss", False)):
        index = score_table.SCORE_SCHEMA.get_field_index(column)
        chunk = pq.ParquetFile(part).metadata.row_group(0).column(index)
        # The last byte of the chunk is one of a value: its lowest mantissa byte would be no other number to a reader.
        at = chunk.data_page_offset + chunk.total_compressed_size - 4
        part.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        if refused:
            with pytest.raises(EasyCoreError, match="is damaged"):
                reduce(scores=str(run), out=f"{run}/a", only=("aign",))
        else:
            reduce(scores=str(run), out=f"{run}/b", only=("aign",))
        with pytest.raises(EasyCoreError, match="does not have the checksum in the manifest"):
            reduce(scores=str(run), out=f"{run}/{column}")
        part.write_bytes(content)
