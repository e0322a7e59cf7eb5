"""Reduction: equal to a plain loop over rows, whoever wrote the rows and however ids are cut; damage is refused."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easycore_ray.inspection.verify import verify
from easycore_ray.scoring import reduce as reduction
from easycore_ray.scoring import score_table
from easycore_ray.scoring.hardness_table import COLUMNS_OF_SCORE, HARDNESS_SCHEMA, open_hardness, read_hardness
from easycore_ray.scoring.reduce import reduce
from easycore_ray.scoring.reduce_task import reduce_range
from easycore_ray.storage.artifact import Artifact, open_artifact
from easycore_ray.storage.errors import EasyCoreError
from tests.artifacts import draw_rows, finish_table, samples_of, write_parts
from tests.hardness import EPOCHS, expected, in_ranges, part_file, population, reduced, refuse

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


@pytest.mark.slow
@given(st.integers(1, 25), st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True), st.data())
@settings(max_examples=20, deadline=None)
def test_who_wrote_the_rows_and_how_ids_are_cut_changes_nothing(count, epochs, data):
    """Any ranks, other ones in some epochs, parts listed in any order, ranges of any size: the same bytes."""
    if epochs == [0]:
        epochs = [0, 1]
    ids, labels = population(count, seed=count)
    attacked = data.draw(st.booleans())
    rows, samples = draw_rows(ids, labels, epochs, attacked=attacked), samples_of(ids, labels)
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
        training = "trades" if attacked else "standard"
        finish_table(run, data.draw(st.permutations(parts)), samples, training=training)
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
