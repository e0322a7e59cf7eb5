"""Mapping a function over items: in order, bounded, resumable, with our own errors as they were raised."""

import itertools
import os
import signal
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest

from easycore_ray.runtime.tasks import KeptResults, TaskResources, map_tasks
from easycore_ray.storage.artifact import Claim
from easycore_ray.storage.errors import EasyCoreError

ON_RAY = [None, pytest.param(TaskResources(cpus=0.5), marks=pytest.mark.ray)]


@pytest.fixture(params=ON_RAY, ids=["here", "ray"])
def resources(request):
    """Of no task, or of Ray tasks."""
    if request.param is not None:
        request.getfixturevalue("ray_session")
    return request.param


def square(number, pause=0.0):
    time.sleep(pause)
    return number**2


def table_of(number, folder):
    """A table; leaves a mark that it was made."""
    Path(folder, f"made-{number}").touch()
    return pa.table({"number": [number]})


def refuse(number):
    """Refuses the number 2; a longer one is a fault of the program."""
    if number == 2:
        raise EasyCoreError("2 is not a number")
    raise KeyError(number)


def die(folder):
    """Dies the first time."""
    if not Path(folder, "died").exists():
        Path(folder, "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def die_always():
    """Never returns."""
    os.kill(os.getpid(), signal.SIGKILL)


def run_until_stopped(folder, number):
    """Fails at once, or leaves a mark when it started and another if it was let finish."""
    if number == 0:
        while not Path(folder, "started-1").exists():
            time.sleep(0.05)
        raise EasyCoreError("the first has failed")
    Path(folder, f"started-{number}").touch()
    time.sleep(4)
    Path(folder, f"finished-{number}").touch()


def write_on_or_fail(folder, number):
    """Writes file after file, or fails once another call does."""
    for count in itertools.count():
        if number == 0 and Path(folder, "1-0").exists():
            raise EasyCoreError("the first has failed")
        if number == 1:
            Path(folder, f"1-{count}").touch()
        time.sleep(0.001)


def import_or_fail(folder, number):
    """Imports a package that takes a while, or fails once another call is in the midst of it."""
    if number == 0:
        while not Path(folder, "importing").exists():
            time.sleep(0.05)
        raise EasyCoreError("the first has failed")
    sys.path.insert(0, folder)
    import slow_package

    return slow_package.ready


def test_results_come_in_the_order_of_the_items(resources):
    """However long each takes; an iterator is taken item by item."""
    items = ((number, 0.2 if number == 0 else 0.0) for number in range(5))
    assert map_tasks(square, items, label="square", resources=resources) == [0, 1, 4, 9, 16]
    assert map_tasks(square, [], label="square", resources=resources) == []


def test_our_errors_come_as_they_were_raised(resources):
    """A mistake of the user is one sentence; a fault of the program keeps its traceback."""
    with pytest.raises(EasyCoreError, match=r"^2 is not a number$"):
        map_tasks(refuse, [(2,)], label="refuse", resources=resources)
    with pytest.raises(KeyError):
        map_tasks(refuse, [(3,)], label="refuse", resources=resources)


def test_kept_results_are_read_by_a_resumed_claim_only(resources, tmp_path, capsys):
    """What an earlier run finished is not made again; a claim with another nonce reads none of it."""
    first = Claim(str(tmp_path), "kind", "identity", "nonce", resumed=False)
    names = ["a", "b", "c"]
    items = [(number, str(tmp_path)) for number in range(3)]

    def make(claim):
        for mark in tmp_path.glob("made-*"):
            mark.unlink()
        tables = map_tasks(table_of, items, label="make", resources=resources, rows=[1, 1, 1], unit="numbers",
                           kept=KeptResults(claim, names))  # fmt: skip
        assert [table["number"].to_pylist() for table in tables] == [[0], [1], [2]]
        return sorted(mark.name for mark in tmp_path.glob("made-*"))

    assert len(make(first)) == 3
    kept = KeptResults(first, names)
    Path(kept.folder, "b.parquet").unlink()
    assert make(Claim(str(tmp_path), "kind", "identity", "nonce", resumed=True)) == ["made-1"]
    assert "resuming, 2 of 3 shards exist already" in capsys.readouterr().err
    assert len(make(Claim(str(tmp_path), "kind", "identity", "other", resumed=True))) == 3


@pytest.mark.parametrize("damage", [lambda content: content[:-9], lambda _: b"", lambda _: b"PAR1PAR1"])
def test_a_kept_result_that_is_damaged_or_another_is_made_again(tmp_path, damage):
    """It is as if it were not there."""
    kept = KeptResults(
        Claim(str(tmp_path), "evaluation", "i", "0" * 8, resumed=True), ["a", "b"],
        lambda number, table: table.column_names == ["number"] and table["number"].to_pylist() == [number],
    )  # fmt: skip
    items = [(0, str(tmp_path)), (1, str(tmp_path))]
    map_tasks(table_of, items, label="count", kept=kept)
    first = tmp_path / "shards-00000000" / "a.parquet"
    first.write_bytes(damage(first.read_bytes()))
    (tmp_path / "made-0").unlink()
    (tmp_path / "made-1").unlink()

    assert [table["number"].to_pylist() for table in map_tasks(table_of, items, label="count", kept=kept)] == [[0], [1]]
    assert (tmp_path / "made-0").exists()
    assert not (tmp_path / "made-1").exists()

    kept.write(1, pa.table({"number": [7]}))
    assert [table["number"].to_pylist() for table in map_tasks(table_of, items, label="count", kept=kept)] == [[0], [1]]


def test_progress_counts_rows(capsys):
    """In the unit that is named."""
    map_tasks(square, [(1,), (2,)], label="square", rows=[10, 20], unit="images")
    assert "square: 30 of 30 images (100 %)" in capsys.readouterr().err


@pytest.mark.ray
def test_a_lost_process_is_replaced_until_it_is_lost_too_often(ray_session, tmp_path):
    """Ray runs the task again; then it is said in one line."""
    once = TaskResources(cpus=0.5, max_retries=1)
    assert map_tasks(die, [(str(tmp_path),)], label="die", resources=once) == ["alive"]
    with pytest.raises(EasyCoreError, match=r"die: the process of a task was lost 2 times"):
        map_tasks(die_always, [()], label="die", resources=once)


@pytest.mark.ray
def test_an_error_cancels_what_still_runs_and_no_more_is_submitted(ray_session, tmp_path):
    """At most two at a time: the second is stopped, the third never starts."""
    two = TaskResources(cpus=0.5, in_flight=2, max_retries=0)
    items = [(str(tmp_path), number) for number in range(3)]
    with pytest.raises(EasyCoreError, match="the first has failed"):
        map_tasks(run_until_stopped, items, label="run", resources=two)
    time.sleep(5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["started-1"]


SLOW_PACKAGE = """
import pathlib, time
from slow_package import part
pathlib.Path(__file__).parents[1].joinpath("importing").touch()
time.sleep(2)
ready = marked
"""
# As C extensions do: it completes its package once, when it is imported first.
SLOW_PART = """
import slow_package
slow_package.marked = True
"""


@pytest.mark.ray
def test_a_task_that_was_cancelled_in_an_import_leaves_no_half_imported_module(ray_session, tmp_path):
    """As happens to pandas: what later tasks import in that process would lack what the first import had set."""
    package = tmp_path / "slow_package"
    package.mkdir()
    (package / "__init__.py").write_text(SLOW_PACKAGE)
    (package / "part.py").write_text(SLOW_PART)
    two = TaskResources(cpus=0.5, in_flight=2, max_retries=0)
    with pytest.raises(EasyCoreError, match="the first has failed"):
        map_tasks(import_or_fail, [(str(tmp_path), number) for number in range(2)], label="run", resources=two)
    time.sleep(1)
    later = [(str(tmp_path), number) for number in range(1, 9)]
    assert map_tasks(import_or_fail, later, label="run", resources=TaskResources(cpus=0.25)) == [True] * 8


@pytest.mark.ray
def test_nothing_is_written_by_a_cancelled_task_once_its_error_is_there(ray_session, tmp_path):
    """Its folder may be deleted by then, and would come back."""
    two = TaskResources(cpus=0.5, max_retries=0)
    with pytest.raises(EasyCoreError, match="the first has failed"):
        map_tasks(write_on_or_fail, [(str(tmp_path), number) for number in range(2)], label="run", resources=two)
    there = len(list(tmp_path.iterdir()))
    time.sleep(1)
    assert len(list(tmp_path.iterdir())) == there
