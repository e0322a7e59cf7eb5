"""Long-lived workers: each makes its function once, takes item after item, and is replaced when it is lost."""

import os
import signal
import time
from pathlib import Path

import pytest

from easycore_ray.runtime.tasks import LongLived, TaskResources, map_tasks
from easycore_ray.storage.errors import EasyCoreError

ON_RAY = [None, pytest.param(TaskResources(cpus=0.5, in_flight=2), marks=pytest.mark.ray)]


@pytest.fixture(params=ON_RAY, ids=["here", "ray"])
def resources(request):
    """Of no actor, or of two."""
    if request.param is not None:
        request.getfixturevalue("ray_session")
    return request.param


def make_adder(folder, added):
    """Leaves a mark each time it is called."""
    Path(folder, f"made-{os.getpid()}-{time.monotonic_ns()}").touch()

    def add(number, pause=0.0):
        time.sleep(pause)
        if number == 13:
            raise EasyCoreError("13 is not a number")
        if number == 14:
            raise KeyError(number)
        return number + added

    return add


def make_mortal(folder, times):
    """Makes a function that kills its process at the number 2, some times."""

    def live(number):
        died = len(list(Path(folder).glob("died-*")))
        if number == 2 and died < times:
            Path(folder, f"died-{died}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    return live


def make_waiting(folder):
    """Makes a function whose first item fails once the second has started, which never ends by itself."""

    def wait(number):
        if number == 0:
            while not Path(folder, "started").exists():
                time.sleep(0.05)
            raise EasyCoreError("the first has failed")
        Path(folder, "started").touch()
        time.sleep(4)
        Path(folder, "finished").touch()

    return wait


def refuse_to_be_made():
    """Fails at once."""
    raise EasyCoreError("there is no such model")


def test_items_are_done_by_functions_that_are_made_once_each(resources, tmp_path):
    """One here, two on Ray; results in the order of the items, however long each takes."""
    work = LongLived(make_adder, (str(tmp_path), 10))
    items = ((number, 0.3 if number == 0 else 0.0) for number in range(9))

    assert map_tasks(work, items, label="add", resources=resources) == list(range(10, 19))
    assert len(list(tmp_path.glob("made-*"))) <= (1 if resources is None else 2)
    assert map_tasks(work, [], label="add", resources=resources) == []


def test_our_errors_come_as_they_were_raised(resources, tmp_path):
    """Those of the function, and of making it; a fault of the program keeps its traceback."""
    work = LongLived(make_adder, (str(tmp_path), 10))
    with pytest.raises(EasyCoreError, match=r"^13 is not a number$"):
        map_tasks(work, [(1,), (13,)], label="add", resources=resources)
    with pytest.raises(KeyError):
        map_tasks(work, [(14,)], label="add", resources=resources)
    with pytest.raises(EasyCoreError, match=r"^there is no such model$"):
        map_tasks(LongLived(refuse_to_be_made), [(1,)], label="add", resources=resources)


@pytest.mark.ray
def test_no_more_are_made_than_there_are_items(ray_session, tmp_path):
    """One item needs one process, and one that the cluster has no place for holds nobody up."""
    work = LongLived(make_adder, (str(tmp_path), 1))
    assert map_tasks(work, [(1,)], label="add", resources=TaskResources(cpus=0.5, in_flight=8)) == [2]
    assert len(list(tmp_path.glob("made-*"))) == 1

    import ray

    wide = TaskResources(cpus=0.7 * ray.cluster_resources()["CPU"], in_flight=2)
    assert map_tasks(work, [(number,) for number in range(4)], label="add", resources=wide) == [1, 2, 3, 4]


@pytest.mark.ray
def test_fewer_than_requested_are_said_once(ray_session, tmp_path, monkeypatch, capsys):
    """With what the other waits for, and who holds it."""
    import ray

    monkeypatch.setattr("easycore_ray.runtime.room._SAY_SECONDS", 1.0)
    monkeypatch.setattr("easycore_ray.runtime.actors._LOOK_SECONDS", 0.2)
    cpus = ray.cluster_resources()["CPU"] - 1
    wide = TaskResources(cpus=cpus, in_flight=2)
    work = LongLived(make_adder, (str(tmp_path), 1))
    assert map_tasks(work, [(number, 1.5) for number in range(3)], label="add", resources=wide) == [1, 2, 3]
    # On a busy machine the first may itself wait for more than a second, and be said to.
    lines = [line for line in capsys.readouterr().err.splitlines() if "workers at work" in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"add: 1 of 2 workers at work, waiting for {{CPU: {cpus:g}}} (")


@pytest.mark.ray
def test_a_lost_process_is_replaced_until_an_item_has_lost_too_many(ray_session, tmp_path):
    """The item is done again, the others are not disturbed; then it is said in one line."""
    resources = TaskResources(cpus=0.5, in_flight=2, max_retries=2)
    items = [(number,) for number in range(6)]
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()

    assert map_tasks(LongLived(make_mortal, (str(first), 2)), items, label="live", resources=resources) == [*range(6)]
    with pytest.raises(EasyCoreError, match=r"live: the process of a task was lost 3 times"):
        map_tasks(LongLived(make_mortal, (str(second), 3)), items, label="live", resources=resources)


@pytest.mark.ray
def test_an_error_ends_what_still_runs(ray_session, tmp_path):
    """With its process."""
    resources = TaskResources(cpus=0.5, in_flight=2, max_retries=0)
    with pytest.raises(EasyCoreError, match="the first has failed"):
        map_tasks(LongLived(make_waiting, (str(tmp_path),)), [(0,), (1,)], label="wait", resources=resources)
    time.sleep(5)
    assert [path.name for path in tmp_path.iterdir()] == ["started"]
