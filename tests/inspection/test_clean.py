"""clean: what it removes no one needs, what it leaves is everything else, and it knows when a writer may be at work."""

import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from easycore_ray import clean, inspect, select
from easycore_ray.cli.command import run
from easycore_ray.cli.results import run_clean
from easycore_ray.config.inspection import CleanConfig
from easycore_ray.inspection.artifact_files import read_commits, survey
from easycore_ray.storage import artifact, paths
from easycore_ray.storage.errors import EasyCoreError
from tests.artifacts import ATTEMPT, commits_of, edit_manifest, make_image_dataset, make_scoring_run

LABELS = [number % 2 for number in range(20)]
OLD = time.time() - 10 * 86400
# The states and Ray Train's own files of a run of two epochs.
NUM_COMMIT_FILES = 2 * 3 + 2 + 3


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """A finished dataset, scoring run and coreset below an unfinished pipeline's folder; to be copied."""
    root = tmp_path_factory.mktemp("template") / "run"
    dataset = make_image_dataset(root / "dataset", LABELS)
    scores = make_scoring_run(root / "scores", dataset, LABELS)
    select(out=f"{root}/coreset", scores=scores.path, fraction=0.5)
    return root


def copy(template, folder):
    """The template somewhere else, with parents as if made there."""
    shutil.copytree(template, folder)
    for path in folder.rglob("*.json"):
        path.write_text(path.read_text().replace(str(template), str(folder)))
    return folder


@pytest.fixture
def root(template, tmp_path):
    """A copy of the template."""
    return copy(template, tmp_path / "run")


def age(folder, when=OLD):
    """Make everything as old as this."""
    for path in Path(folder).rglob("*"):
        os.utime(path, (when, when))


def names(folder):
    """All files below a folder."""
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


def cleaned(folder, **options):
    """Files that cleaning removes, relative; and only those it announces."""
    announced = {leftover.path for leftover in clean(path=str(folder), **options)}
    before = names(folder)
    removed = {leftover.path for leftover in clean(path=str(folder), yes=True, **options)}
    assert before - names(folder) == {path[len(str(folder)) + 1 :] for path in removed}
    assert announced == removed
    return before - names(folder)


def unfinish(run, *, epoch):
    """Make a finished scoring run one that was interrupted after an epoch was committed."""
    (run / "manifest.json").unlink()
    (run / "table" / "manifest.json").unlink()
    shutil.rmtree(run / "hardness")
    commits = commits_of(run)
    if epoch == 1:
        shutil.rmtree(commits / f"epoch-00002-{'a' * 12}")
        snapshot = json.loads((commits / "checkpoint_manager_snapshot.json").read_text())
        first = snapshot["checkpoint_results"][0]
        snapshot |= {"checkpoint_results": [first], "latest_checkpoint_result": first}
        (commits / "checkpoint_manager_snapshot.json").write_text(json.dumps(snapshot))


def put(folder, *files):
    """Write files of four bytes."""
    for name in files:
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"junk")


JUNK = {
    "scores/table/epoch=00001/part-0123456789ab-r00000.parquet",
    "scores/table/epoch=00007/part-0123456789ab-r00001.parquet",
    "scores/table/epoch=00001/.part-00000-a-r00000.parquet.x1_y2z3w.tmp",
    "scores/table/.manifest.json.abcdefgh.tmp",
    "scores/hardness/hardness-00001.parquet",
    "scores/hardness/.hardness-00001.parquet.abcdefgh.tmp",
    "coreset/.keys.txt.abcdefgh.tmp",
    "dataset/shards/.train-00000.parquet.abcdefgh.tmp",
    "dataset/staging-01234567/000012-00000",
    "dataset/staging-01234567/000012-00000.rows",
    "scores/commits/train-0123456789ab-01234567.zip",
}
FOREIGN = {
    "notes.txt",
    "scores/table/part-0123456789ab-r00000.parquet",
    "scores/table/epoch=00001/part-mine.parquet",
    "scores/table/epoch=00001/backup.parquet",
    "scores/hardness/hardness-final.parquet",
    "scores/hardness/hardness-00001.parquet.bak",
    "scores/commits/mine/model.safetensors",
    "scores/model.safetensors",
    "coreset/coreset-00000.parquet",
    "coreset/hardness-00003.parquet",
    "dataset/shards/train-00007.parquet",
    "scores/tracking/1.jsonl",
    "scores/.hidden.tmp",
    "scores/x.abcdefgh.tmp",
}


@pytest.mark.slow
@given(st.sets(st.sampled_from(sorted(JUNK))), st.sets(st.sampled_from(sorted(FOREIGN))))
@settings(max_examples=25)
def test_a_finished_artifact_loses_its_junk_and_nothing_else(template, junk, foreign):
    """Whatever lies about in it: known leftovers go, all else stays, and everything still verifies."""
    with tempfile.TemporaryDirectory() as folder:
        root = copy(template, Path(folder) / "run")
        put(root, *junk, *foreign)
        before = names(root)
        for part in ("scores", "coreset", "dataset"):
            cleaned(root / part)
        commits = {name for name in before if name.startswith("scores/commits/score-")}

        assert len(commits) == NUM_COMMIT_FILES
        assert before - names(root) == junk | commits
        for part in ("scores", "coreset", "dataset"):
            facts = inspect(path=str(root / part), verify=True)
            assert [entry["problems"] for entry in facts["verified"]] == [[]] * len(facts["verified"])


def test_nothing_is_removed_without_yes(root, capsys):
    """What would be is said, file by file with its size and reason, and the total."""
    put(root, "scores/hardness/hardness-00009.parquet")
    before = names(root)
    run(CleanConfig, run_clean, [f"{root}/scores"])
    said = capsys.readouterr().out

    assert names(root) == before
    assert "not among the files of this hardness table:\n         4 B  hardness/hardness-00009.parquet\n" in said
    assert "training state of a finished run:\n" in said
    total = said.splitlines()[-1]
    assert total.startswith(f"would remove {NUM_COMMIT_FILES + 1} files, ")
    assert total.endswith(f"from {root}/scores; pass --yes to do it")
    run(CleanConfig, run_clean, [f"{root}/scores", "--yes"])
    assert f"removed {NUM_COMMIT_FILES + 1} files" in capsys.readouterr().out
    run(CleanConfig, run_clean, [f"{root}/scores", "--yes"])
    assert capsys.readouterr().out == f"nothing to remove in {root}/scores\n"


def test_emptied_folders_go_and_others_stay(root):
    """Of what was removed only, and never one that someone else made."""
    put(root, "scores/table/epoch=00009/part-ab-r00000.parquet")
    (root / "scores" / "empty").mkdir()
    cleaned(root / "scores")

    assert not (root / "scores" / "commits").exists()
    assert not (root / "scores" / "table" / "epoch=00009").exists()
    assert (root / "scores" / "empty").is_dir()


@pytest.mark.parametrize("epoch", [1, 2])
def test_an_interrupted_run_keeps_all_it_can_go_on_from(root, epoch):
    """However old: the registered states, Ray Train's list, the parts they name. What is older and lost goes."""
    unfinish(root / "scores", epoch=epoch)
    commits = commits_of(root / "scores").relative_to(root / "scores")
    states = ("state.json", "model.safetensors", "best.safetensors", "optimizer.safetensors")
    lost = {f"{commits}/epoch-0000{epoch}-{'b' * 12}/{name}" for name in states}
    lost |= {f"table/epoch=0000{epoch}/part-0123-r00000.parquet", "table/.x.abcdefgh.tmp"}
    put(root / "scores", *lost, f"{commits}/epoch-00009-{'b' * 12}/state.json", f"{commits}/notes.txt")
    age(root)
    before = read_commits(survey(str(root / "scores"))[0])
    # With one epoch committed, the listed parts of the second are lost ones too.
    overtaken = {f"table/epoch=00002/part-00000-a-r0000{rank}.parquet" for rank in (0, 1)} if epoch == 1 else set()

    assert cleaned(root / "scores") == lost | overtaken
    after = read_commits(survey(str(root / "scores"))[0])
    assert after == before
    assert all((root / "scores" / part).exists() for part in after.parts)


def test_parts_of_extra_rows_stay_while_a_state_names_them(root):
    """They lie in a table of their own, and what no state names there is lost like any other."""
    unfinish(root / "scores", epoch=2)
    newest = commits_of(root / "scores") / f"epoch-00002-{ATTEMPT}" / "state.json"
    state = json.loads(newest.read_text())
    state["carried"]["extra.parts"] = [{"path": "epoch=00002/part-00000-a-r00000.parquet", "rows": 3}]
    newest.write_text(json.dumps(state))
    kept, lost = (f"extra/table/epoch=00002/part-00000-{attempt}-r00000.parquet" for attempt in "ab")
    put(root / "scores", kept, lost)
    age(root)

    assert lost in cleaned(root / "scores")
    assert (root / "scores" / kept).exists()
    assert (
        f"extra/table/{state['carried']['extra.parts'][0]['path']}"
        in read_commits(survey(str(root / "scores"))[0]).parts
    )


def test_a_run_within_an_epoch_keeps_the_parts_of_its_segments(root):
    """Those that its last state names, with that state; earlier ones that were never registered go."""
    scores = root / "scores"
    unfinish(scores, epoch=1)
    commits = commits_of(scores)
    kept, lost = (f"table/epoch=00002/part-0000{n}-0123-r00000.parquet" for n in (0, 1))
    state = json.loads((commits / f"epoch-00001-{'a' * 12}" / "state.json").read_text())
    state["progress"] = {"epoch": 2, "world_size": 1, "segments": 3}
    state["carried"]["parts"] = [{"path": kept.removeprefix("table/"), "rows": 30}]
    within = f"epoch-00001-00003-{'a' * 12}"
    put(scores, kept, lost, f"{commits.relative_to(scores)}/{within}/model.safetensors")
    for name in (f"epoch-00001-00002-{'b' * 12}", f"epoch-00001-00004-{'b' * 12}"):
        put(scores, f"{commits.relative_to(scores)}/{name}/model.safetensors")
    (commits / within / "state.json").write_text(json.dumps(state))
    record = commits / "checkpoint_manager_snapshot.json"
    snapshot = json.loads(record.read_text())
    snapshot["latest_checkpoint_result"] = {"checkpoint_dir_name": within, "metrics": {}}
    snapshot["checkpoint_results"].append(snapshot["latest_checkpoint_result"])
    record.write_text(json.dumps(snapshot))
    age(root)

    before = read_commits(survey(str(scores))[0])
    assert (before.epoch, before.segments) == (1, 3)
    overtaken = {f"table/epoch=00002/part-00000-a-r0000{rank}.parquet" for rank in (0, 1)}
    superseded = f"{commits.relative_to(scores)}/epoch-00001-00002-{'b' * 12}/model.safetensors"
    assert cleaned(scores) == {lost, superseded} | overtaken
    assert read_commits(survey(str(scores))[0]) == before


def test_a_run_at_work_keeps_what_it_may_be_about_to_commit(root):
    """Recently written: parts of epochs to come stay even if they are old; what a commit has overtaken may go."""
    unfinish(root / "scores", epoch=1)
    put(root / "scores", "table/epoch=00001/part-0123-r00000.parquet")
    age(root)
    put(root / "scores", "table/epoch=00002/part-4567-r00000.parquet", "table/.x.abcdefgh.tmp")

    assert cleaned(root / "scores") == {"table/epoch=00001/part-0123-r00000.parquet"}


@pytest.mark.parametrize(("hours", "kept"), [(24.0, True), (0.0, False)])
def test_young_files_of_an_interrupted_run_are_kept(root, hours, kept):
    """As long as --older-than says."""
    unfinish(root / "scores", epoch=2)
    lost = {"table/epoch=00002/part-0123-r00000.parquet", "table/.x.abcdefgh.tmp"}
    put(root / "scores", *lost)
    age(root / "scores", time.time() - 60)

    assert cleaned(root / "scores", older_than=hours) == (set() if kept else lost)


def test_where_it_cannot_be_told_nothing_of_a_run_is_touched(root):
    """Ray Train's list is gone or unreadable, or a state it names is, or a list of parts."""
    for damage in ("unlink", "text", "state", "list", "other list"):
        run_folder = copy(root / "scores", root.parent / damage)
        unfinish(run_folder, epoch=2)
        put(run_folder, "table/epoch=00001/part-0123-r00000.parquet")
        listing = commits_of(run_folder) / "checkpoint_manager_snapshot.json"
        if damage == "unlink":
            listing.unlink()
        elif damage == "text":
            listing.write_text("{")
        elif damage == "list":
            (commits_of(run_folder) / f"parts-00001-{'a' * 12}.json").unlink()
        elif damage == "other list":
            (commits_of(run_folder) / f"parts-00001-{'a' * 12}.json").write_text("[]")
        else:
            (commits_of(run_folder) / f"epoch-00002-{'a' * 12}" / "state.json").unlink()
        age(run_folder)

        assert cleaned(run_folder) == set(), damage


def test_a_run_that_was_never_committed_loses_parts_only_when_it_rests(root):
    """There is nothing to go on from, so old parts are lost; young ones may be the first epoch's."""
    unfinish(root / "scores", epoch=2)
    shutil.rmtree(root / "scores" / "commits")
    assert cleaned(root / "scores") == set()
    age(root)
    assert len(cleaned(root / "scores")) == 6


def test_a_stage_of_a_pipeline_at_work_is_left_alone(root):
    """Finished itself, but what it is part of goes on; also when only the stage is named."""
    artifact.claim(str(root / "new"), "pipeline", "k" * 64)
    shutil.move(root / "new" / "run.json", root / "run.json")
    put(root, "scores/hardness/hardness-00009.parquet")

    assert cleaned(root) == cleaned(root / "scores") == cleaned(root / "scores" / "hardness") == set()
    age(root)
    assert len(cleaned(root / "scores")) == NUM_COMMIT_FILES + 1


def test_a_list_of_files_is_believed_even_if_odd(root):
    """A manifest that lists a file keeps it; one that lists none of a sort keeps all of that sort."""
    put(root, "coreset/coreset-00000.parquet", "coreset/coreset-00001.parquet")
    assert cleaned(root / "coreset") == set()
    edit_manifest(root / "coreset", files=[{"path": "coreset-00000.parquet"}])
    assert cleaned(root / "coreset") == {"coreset-00001.parquet"}
    edit_manifest(root / "scores/hardness", files=[])
    assert not any(name.startswith("hardness/") for name in cleaned(root / "scores"))


def test_what_any_manifest_lists_stays_whatever_its_name_is(root):
    """A file that looks like an interrupted write, and a state of training."""
    run = root / "scores"
    put(run, "hardness/.hardness.abcdefgh.tmp")
    (state,) = [name for name in names(run) if name.endswith(f"epoch-00002-{'a' * 12}/model.safetensors")]
    leftovers = {leftover.path for leftover in clean(path=str(run))}
    assert {f"{run}/hardness/.hardness.abcdefgh.tmp", f"{run}/{state}"} <= leftovers
    edit_manifest(run / "hardness", files=[{"path": ".hardness.abcdefgh.tmp"}])
    edit_manifest(run, files=[{"path": state}])

    assert not {"hardness/.hardness.abcdefgh.tmp", state} & cleaned(run)


def test_an_artifact_of_a_newer_release_inside_is_left_alone(root):
    """Its rules are not known; what is around it is cleaned."""
    put(root, "scores/hardness/hardness-00009.parquet")
    edit_manifest(root / "scores" / "hardness", format_version=9)

    assert {name.split("/")[0] for name in cleaned(root / "scores")} == {"commits"}


def test_nothing_outside_is_reached_through_a_link(root, tmp_path):
    """A folder of the artifact that lies elsewhere keeps its files."""
    outside = tmp_path / "elsewhere"
    put(outside, "part-0123-r00000.parquet", ".x.abcdefgh.tmp")
    (root / "scores" / "table" / "epoch=00009").symlink_to(outside)
    cleaned(root / "scores")

    assert names(outside) == {"part-0123-r00000.parquet", ".x.abcdefgh.tmp"}


@pytest.mark.parametrize("where", ["nowhere", "dataset/shards", "."])
def test_what_is_no_artifact_is_refused(root, capsys, where):
    """In one line, and nothing is removed, even with --yes."""
    put(root, "dataset/shards/.x.abcdefgh.tmp", ".y.abcdefgh.tmp")
    before = names(root)
    with pytest.raises(SystemExit) as caught:
        run(CleanConfig, run_clean, [f"{root}/{where}", "--yes"])

    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert names(root) == before


@pytest.mark.parametrize("hours", [-1.0, float("nan")])
def test_hours_must_be_a_number(hours):
    """Checked before anything is looked at."""
    with pytest.raises(EasyCoreError, match="older_than must be >= 0"):
        CleanConfig(path="/x", older_than=hours)


def test_an_object_store_is_cleaned_alike(root, tmp_path, monkeypatch):
    """Through the same code as s3://, served from a folder."""
    store = pafs.PyFileSystem(pafs.FSSpecHandler(LocalFileSystem(auto_mkdir=True)))
    filesystem = pafs.SubTreeFileSystem(str(tmp_path), store)
    real = paths.locate
    monkeypatch.setattr(
        paths, "locate", lambda path: (filesystem, path[5:]) if path.startswith("s3://") else real(path)
    )
    monkeypatch.setattr(paths, "reach", lambda *_: None, raising=False)  # a question to the real store
    put(root, "scores/table/epoch=00001/part-0123-r00000.parquet", "scores/notes.txt")
    found = clean(path="s3://run/scores", yes=True)

    assert len(found) == NUM_COMMIT_FILES + 1
    assert all(leftover.path.startswith("s3://run/scores/") for leftover in found)
    assert (root / "scores" / "notes.txt").exists()
    assert inspect(path="s3://run/scores", verify=True)["verified"][0]["problems"] == []
