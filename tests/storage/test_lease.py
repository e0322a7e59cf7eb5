"""Leases: a second writer is refused, goes on when the first is gone, and nothing of one that wakes up is read."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from easycore_ray import clean, inspect, select
from easycore_ray.data.coreset import read_sample_ids
from easycore_ray.storage import lease, paths
from easycore_ray.storage.artifact import Artifact, Claim, claim, content_folder, finish, open_artifact
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.storage.lease import LEASE, SECONDS_VARIABLE
from tests.artifacts import make_image_dataset, make_scoring_run
from tests.object_store import environment, running_store

BUCKET = "leases"
LABELS = [number % 3 for number in range(30)]
CHOICE = {"fraction": 0.5, "method": "easiest"}
ANOTHER = {"fraction": 0.2, "overwrite": True}
DONE = {"config": {}, "parents": {}, "counts": {}, "wall_seconds": 1.0}
# The command "coreset", which before a chosen one of its writes and deletions (leases not counted) stops or waits.
FIRST = """
import os, signal, sys, time
from easycore_ray.cli.command import main
from easycore_ray.storage import paths

left, how = int(sys.argv[1]), sys.argv[2]

def counted(function):
    def call(path, *arguments, **options):
        global left
        if "lease" not in path.rpartition("/")[2]:
            if left == 0 and how == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            elif left == 0:
                print("waiting", flush=True)
                time.sleep(float(how))
            left -= 1
        return function(path, *arguments, **options)
    return call

for name in ("write_bytes", "write_file", "delete_file", "delete_tree"):
    setattr(paths, name, counted(getattr(paths, name)))
main(["coreset", *sys.argv[3:]])
"""


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """A scoring run of a small dataset."""
    root = tmp_path_factory.mktemp("scores")
    dataset = make_image_dataset(root / "dataset", LABELS)
    return make_scoring_run(root / "scores", dataset, LABELS).path


@pytest.fixture(scope="module")
def bucket():
    """A bucket of a store on this machine, and how to reach it."""
    pytest.importorskip("moto")
    with running_store(BUCKET) as store, pytest.MonkeyPatch.context() as patch:
        for name, value in environment(store.url).items():
            patch.setenv(name, value)
        yield f"s3://{BUCKET}"


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path):
    """A folder for artifacts, on disk and in a bucket."""
    if request.param == "local":
        return str(tmp_path)
    return f"{request.getfixturevalue('bucket')}/{tmp_path.name}"


def start(scores, out, moment, how, *options, seconds=1.0):
    """A first command that stops or waits before its write of this number."""
    arguments = ["--out", out, "--scores", scores, "--fraction", "0.5", "--method", "easiest", *options]
    first = subprocess.Popen(
        [sys.executable, "-c", FIRST, str(moment), how, *arguments],
        env=os.environ | {SECONDS_VARIABLE: str(seconds)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    if how == "stop":
        os.waitpid(first.pid, os.WUNTRACED)
    else:
        assert first.stdout.readline() == "waiting\n"
    return first


def end(first, sent=signal.SIGCONT):
    """What a first command says in the end, and its exit code."""
    first.send_signal(sent)
    said = first.communicate(timeout=60)[1]
    return said, first.returncode


def whole(out):
    """Samples of a coreset that is whole."""
    problems = [entry["problems"] for entry in inspect(path=out, verify=True)["verified"]]
    assert problems == [[]], problems
    return len(read_sample_ids(open_artifact(out)))


def write_lease(folder, *, machine="another", age=0.0, seconds=60.0, token="0" * 8):
    """A lease of a process elsewhere, whose last heartbeat is this old (on disk)."""
    content = {"token": token, "user": "ann", "host": "node-7", "pid": os.getpid(), "process_started": "1",
               "machine": machine, "since": "2026-01-02T03:04:05+00:00", "seconds": seconds, "fenced": []}  # fmt: skip
    path = paths.join(str(folder), LEASE)
    paths.write_json(path, content)
    if age:
        os.utime(path, (time.time() - age, time.time() - age))


@pytest.mark.slow
def test_a_second_command_is_refused_and_the_first_ends_well(scores, place):
    """It is told who is at work; readers and dry runs are not concerned, and afterwards no lease is left."""
    out = f"{place}/coreset"
    first = start(scores, out, 3, "1.5", seconds=60)

    with pytest.raises(
        EasyCoreError, match=rf"coreset is being written by .*@.*, process {first.pid}, since 20.*-over"
    ):
        select(out=out, scores=scores, **CHOICE)
    select.plan(out=out, scores=scores, **CHOICE)
    with pytest.raises(EasyCoreError, match="still being written"):
        open_artifact(out)
    assert end(first)[1] == 0
    assert whole(out) == 15
    assert not [name for name in paths.list_files(out) if "lease" in name.rpartition("/")[2]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "changes"), [(0, {}), (3, {}), (5, {}), (1, ANOTHER), (5, ANOTHER)], ids=lambda value: str(value)[:9]
)
def test_nothing_of_a_command_that_wakes_up_is_read(scores, tmp_path, moment, changes):
    """Stopped before each of these writes for longer than its lease, taken over, and continued after the second's end.

    The second makes the same coreset, or another one in its place.
    """
    check_wake_up(scores, str(tmp_path / "coreset"), moment, changes)


@pytest.mark.slow
def test_nothing_of_a_command_that_wakes_up_is_read_from_a_bucket(scores, bucket):
    """As on disk."""
    check_wake_up(scores, f"{bucket}/woken", 3, {})


def check_wake_up(scores, out, moment, changes):
    # Requests to a bucket take their time on a busy machine, and its times are whole seconds.
    seconds = 5 if paths.is_remote(out) else 1
    first = start(scores, out, moment, "stop", seconds=seconds)
    with pytest.raises(EasyCoreError, match="is being written by"):
        select(out=out, scores=scores, **CHOICE | changes)
    time.sleep(seconds + 1.1 if paths.is_remote(out) else 1.1)
    second = select(out=out, scores=scores, **CHOICE | changes)
    before = paths.read_bytes(f"{out}/manifest.json")

    said, code = end(first)
    assert (code, said.count("\n")) == (2, 1), said
    assert "was taken over by another command; this run ends here" in said
    assert paths.read_bytes(f"{out}/manifest.json") == before
    assert content_folder(out) == second.path
    assert whole(out) == (6 if changes else 15)
    assert [name for name in paths.list_files(out) if name.rpartition("/")[2].startswith("lease")] == []
    assert clean(path=out, yes=True, older_than=0) is not None
    assert whole(out) == (6 if changes else 15)


@pytest.mark.slow
def test_a_live_command_is_taken_over_on_request(scores, place):
    """With --take-over: it ends at its next commit, and names the one that goes on."""
    out = f"{place}/coreset"
    first = start(scores, out, 3, "1", seconds=60)
    done = select(out=out, scores=scores, take_over=True, **CHOICE)

    said, code = end(first)
    assert (code, said.count("\n")) == (2, 1), said
    assert open_artifact(out).path == done.path
    assert whole(out) == 15


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_after_a_kill_on_this_machine_the_same_command_goes_on_at_once(scores, tmp_path, sent, code):
    """A process that has ended holds nothing; one that was interrupted has given its lease back."""
    out = str(tmp_path / "coreset")
    first = start(scores, out, 3, "30", seconds=60)
    assert end(first, sent)[1] == code
    assert (tmp_path / "coreset" / LEASE).exists() == (sent == signal.SIGKILL)

    assert select(out=out, scores=scores, **CHOICE).path == out
    assert whole(out) == 15


def test_a_process_that_does_not_see_the_folder_of_its_job_writes_nothing(tmp_path, monkeypatch):
    """On a node whose storage is another; where it was seen once, it is not looked for again."""
    monkeypatch.setattr(lease, "_seen", set())
    held = lease.acquire(str(tmp_path / "out"))
    elsewhere = lease.Lease(str(tmp_path / "other"), "1")
    (tmp_path / "other").mkdir()
    lease.check_seen([held, None, lease.Lease("s3://bucket/x", "2")])
    with pytest.raises(EasyCoreError, match=rf"node .* does not see {tmp_path}/other, in which this job writes"):
        lease.check_seen([held, elsewhere])
    with pytest.raises(EasyCoreError, match="does not see"), lease.working_under(elsewhere):
        pytest.fail("worked")
    (tmp_path / "out" / LEASE).unlink()
    lease.check_seen([held])


def test_a_lease_of_another_machine_is_honoured_until_it_is_old(tmp_path):
    """Whether its process lives cannot be asked; the age is taken from the store's times, not from two clocks."""
    write_lease(tmp_path / "x", age=50)
    with pytest.raises(EasyCoreError, match=r"by ann@node-7, process .*, since 2026-01-02.*last heartbeat is 50 s"):
        claim(str(tmp_path / "x"), "coreset", "k")
    paths.write_json(str(tmp_path / "x" / f"lease-{'0' * 8}.json"), {})
    os.utime(tmp_path / "x" / LEASE, (0, 0))
    with pytest.raises(EasyCoreError, match="last heartbeat is 0 s"):
        claim(str(tmp_path / "x"), "coreset", "k")
    os.utime(tmp_path / "x" / f"lease-{'0' * 8}.json", (0, 0))

    assert isinstance(claim(str(tmp_path / "x"), "coreset", "k"), Claim)
    assert sorted(path.name for path in (tmp_path / "x").iterdir())[:1] == [f"lease-{'0' * 8}.json"]


def test_an_unfinished_run_that_is_taken_over_resumes_from_copies(tmp_path):
    """Its committed state is copied; the holder before goes on writing where nobody reads, and cannot finish."""
    out = tmp_path / "x"
    begun = claim(str(out), "checkpoint", "k")
    lease._held.clear()  # as if by another process
    write_lease(out, age=100, token=begun.lease.token)
    (out / "commits").mkdir()
    (out / "commits" / "state").write_text("epoch 3")
    (out / "model").write_text("half")

    again = claim(str(out), "checkpoint", "k")
    assert again.resumed
    assert again.nonce == begun.nonce
    assert again.path != begun.path
    assert (Path(again.path) / "commits" / "state").read_text() == "epoch 3"
    assert not (Path(again.path) / "model").exists()
    (out / "commits" / "state").write_text("epoch 4 of the one that woke up")
    with pytest.raises(EasyCoreError, match="was taken over by"):
        begun.check()
    with pytest.raises(EasyCoreError, match="was taken over by"):
        finish(begun, fingerprint="1", **DONE)
    assert not (out / "manifest.json").exists()
    again.check()

    # Killed and taken up again, on this machine and after a clean end: where the second was.
    lease.release(str(out))
    third = claim(str(out), "checkpoint", "k")
    assert (third.path, third.resumed) == (again.path, True)
    finish(third, fingerprint="2", **DONE)
    assert open_artifact(str(out)).path == again.path
    assert not (out / "model").exists()


def test_a_lease_covers_what_lies_inside_and_outsiders_are_refused(tmp_path):
    """A pipeline's stages need none of their own; another job is refused where one of them is at work."""
    outer = claim(str(tmp_path / "p"), "pipeline", "k")
    inner = claim(str(tmp_path / "p" / "scores"), "scoring_run", "s")
    assert inner.lease == outer.lease
    assert not (tmp_path / "p" / "scores" / LEASE).exists()

    lease._held.clear()
    content = json.loads((tmp_path / "p" / LEASE).read_text())
    paths.write_json(str(tmp_path / "p" / LEASE), content | {"machine": "another"})
    with pytest.raises(EasyCoreError, match=r"/p is being written by"):
        claim(str(tmp_path / "p" / "scores"), "scoring_run", "s")
    with lease.working_under(outer.lease):
        assert claim(str(tmp_path / "p" / "scores"), "scoring_run", "s").lease == outer.lease
    taken = claim(str(tmp_path / "p" / "scores"), "scoring_run", "s", take_over=True)
    assert taken.path != inner.path
    outer.check()
    with pytest.raises(EasyCoreError, match="was taken over"):
        inner.check()


def test_what_a_pipeline_had_begun_is_moved_when_it_is_taken_over(tmp_path):
    """Finished stages are reused in place, the one at work goes on elsewhere; its old workers write to no one."""
    claim(str(tmp_path / "p"), "pipeline", "k")
    finish(claim(str(tmp_path / "p" / "dataset"), "dataset", "d"), fingerprint="1", **DONE)
    inner = claim(str(tmp_path / "p" / "scores"), "scoring_run", "s")
    token = inner.lease.token
    lease._held.clear()
    write_lease(tmp_path / "p", age=100, token=token)

    again = claim(str(tmp_path / "p"), "pipeline", "k")
    assert again.path == str(tmp_path / "p")
    assert claim(f"{again.path}/dataset", "dataset", "d").path == f"{again.path}/dataset"
    moved = claim(f"{again.path}/scores", "scoring_run", "s")
    assert moved.path.startswith(f"{inner.path}/gen-")
    # What was given back remembers who may wake up.
    lease.release(again.path)
    later = claim(str(tmp_path / "p"), "pipeline", "k")
    assert later.lease.fenced == (token,)
    done = finish(claim(f"{later.path}/scores", "scoring_run", "s"), fingerprint="2", **DONE)
    assert done.path == moved.path
    finish(later, fingerprint="3", **DONE)
    assert not (tmp_path / "p" / LEASE).exists()


def test_clean_leaves_what_a_live_lease_holds(tmp_path):
    """Whatever its age; of a holder that has ended, the lease goes as well."""
    made = finish(claim(str(tmp_path / "x"), "coreset", "k"), fingerprint="1", **DONE)
    assert isinstance(made, Artifact)
    (tmp_path / "x" / ".part.abcdefgh.tmp").write_text("")
    os.utime(tmp_path / "x" / ".part.abcdefgh.tmp", (0, 0))
    write_lease(tmp_path / "x")
    assert clean(path=made.path, older_than=0) == []

    write_lease(tmp_path / "x", age=100)
    assert [Path(leftover.path).name for leftover in clean(path=made.path)] == [".part.abcdefgh.tmp", LEASE]


def test_a_lease_has_a_heartbeat_while_it_is_held(tmp_path, monkeypatch):
    """A file of its own, changed again and again, and gone in the end."""
    monkeypatch.setenv(SECONDS_VARIABLE, "0.3")
    made = claim(str(tmp_path / "x"), "coreset", "k")
    beat = tmp_path / "x" / f"lease-{made.lease.token}.json"
    deadline = time.monotonic() + 10
    while not beat.exists() or json.loads(beat.read_text())["beats"] < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    finish(made, fingerprint="1", **DONE)
    time.sleep(0.2)
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["manifest.json", "run.json"]
