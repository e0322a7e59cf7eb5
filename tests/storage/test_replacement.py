"""``--overwrite``: killed at any moment, the folder holds the old result or the new one, whole."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from easycore_ray import clean, inspect, select
from easycore_ray.data.coreset import read_sample_ids
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import content_folder, open_artifact
from easycore_ray.storage.errors import EasyCoreError
from tests.artifacts import make_image_dataset, make_scoring_run
from tests.object_store import environment, running_store

LABELS = [number % 3 for number in range(30)]
OLD, NEW = {"fraction": 0.5, "method": "easiest"}, {"fraction": 0.2, "method": "hardest"}
KILLED = """
import os, signal, sys
from easycore_ray import select
from easycore_ray.storage import paths

left = int(sys.argv[1])

def counted(function):
    def call(path, *arguments, **options):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= "lease" not in path.rpartition("/")[2]
        return function(path, *arguments, **options)
    return call

for name in ("write_bytes", "write_file", "delete_file", "delete_tree"):
    setattr(paths, name, counted(getattr(paths, name)))
select(out=sys.argv[2], scores=sys.argv[3], fraction=0.2, method="hardest", overwrite=True)
print(left)
"""


# Ten of the fourteen writes and deletions of a replacement in a bucket.
MOMENTS = (0, 2, 4, 6, 7, 8, 9, 11, 12, 13)
# Each moment in a process of its own, made of one that has imported everything but opened no store yet.
KILLED_IN_A_BUCKET = f"""
import os, sys
from easycore_ray.selection import coreset_files, select as _

for moment in {MOMENTS}:
    child = os.fork()
    if not child:
        sys.argv[1:] = [str(moment), sys.argv[2] + str(moment), sys.argv[3]]
        exec({KILLED!r})
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """A scoring run of a small dataset."""
    root = tmp_path_factory.mktemp("scores")
    dataset = make_image_dataset(root / "dataset", LABELS)
    return make_scoring_run(root / "scores", dataset, LABELS).path


def count(coreset):
    """Samples of a coreset that is whole: 15 of the old one, 6 of the new one."""
    problems = [entry["problems"] for entry in inspect(path=coreset, verify=True)["verified"]]
    assert problems == [[]], problems
    return len(read_sample_ids(open_artifact(coreset)))


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(10))
def test_a_replacement_that_is_killed_leaves_the_old_or_the_new(scores, tmp_path, moment):
    """Before each of its writes and deletions; afterwards the same command ends well, and nothing old is left."""
    out = str(tmp_path / "coreset")
    select(out=out, scores=scores, **OLD)
    arguments = [sys.executable, "-c", KILLED, str(moment), out, scores]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, f"{moment} moments are all there are: {done.stdout}{done.stderr}"

    assert count(out) in (15, 6)
    assert count(out) == (15 if "gen-" not in content_folder(out) else 6)
    if count(out) == 6:
        clean(path=out, yes=True)
        assert sorted(path.name[:4] for path in Path(out).iterdir()) == ["gen-", "mani"]
    select(out=out, scores=scores, overwrite=True, **NEW)
    assert count(out) == 6
    names = sorted(path.name for path in Path(out).iterdir())
    assert [name[:4] for name in names] == ["gen-", "mani"], names


@pytest.mark.soak
def test_a_replacement_in_a_bucket_that_is_killed_leaves_the_old_or_the_new(scores, monkeypatch):
    """As on disk, on a store that answers like S3."""
    pytest.importorskip("moto")
    with running_store("replaced") as store:
        for name, value in environment(store.url).items():
            monkeypatch.setenv(name, value)
        out = "s3://replaced/coreset"
        for moment in MOMENTS:
            select(out=f"{out}{moment}", scores=scores, **OLD)
        arguments = [sys.executable, "-c", KILLED_IN_A_BUCKET, "-", out, scores]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
        assert done.stdout.split() == [str(int(signal.SIGKILL))] * 10, done.stdout + done.stderr

        found = [count(f"{out}{moment}") for moment in MOMENTS]
        assert set(found) == {15, 6}, "killed before and after the write that counts"
        assert found == sorted(found, reverse=True)
        for moment in MOMENTS:
            select(out=f"{out}{moment}", scores=scores, overwrite=True, **NEW)
            assert count(f"{out}{moment}") == 6
            names = {name.rpartition(f"coreset{moment}/")[2][:4] for name in paths.list_files(f"{out}{moment}")}
            assert names == {"gen-", "mani"}


def test_a_mistaken_source_costs_nothing(scores, tmp_path):
    """What cannot be made replaces nothing."""
    out = str(tmp_path / "coreset")
    select(out=out, scores=scores, **OLD)
    with pytest.raises(EasyCoreError):
        select(out=out, scores=scores, fraction=0.2, method="hardest", score="forgetting_events", overwrite=True)
    with pytest.raises(EasyCoreError):
        select(out=out, scores=scores + "-typo", overwrite=True, **NEW)
    assert count(out) == 15
    assert not list(Path(out).glob("gen-*"))


def test_what_lies_in_a_replaced_artifact_is_found_under_its_old_path(tmp_path):
    """As the scores of a pipeline that was run again."""
    from easycore_ray.storage.artifact import claim, finish

    def make(identity, **options):
        outer = claim(str(tmp_path / "outer"), "pipeline", identity, **options)
        inner = claim(paths.join(outer.path, "scores"), "scoring_run", identity)
        fields = dict(config={}, parents={}, counts={}, wall_seconds=1.0)
        finish(inner, fingerprint=identity, **fields)
        finish(outer, fingerprint=identity, **fields)

    make("one")
    make("two", overwrite=True)
    assert not (tmp_path / "outer" / "scores").exists()
    assert open_artifact(str(tmp_path / "outer" / "scores")).fingerprint == "two"
    with pytest.raises(EasyCoreError, match="outer/nothing does not exist"):
        open_artifact(str(tmp_path / "outer" / "nothing"))
