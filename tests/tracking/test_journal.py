"""The journal behind tracking: order, exactly-once across crashes, and no waiting."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from easycore_ray.tracking import journal
from easycore_ray.tracking.journal import Courier, Refused


class Destination:
    """Keeps what it is given; may be away, or refuse some events."""

    def __init__(self, *, away=False, room=None, refuses=()):
        self.received = []
        self.away, self.room, self.refuses = away, room, refuses

    def __call__(self, event):
        if self.away or (self.room is not None and len(self.received) >= self.room):
            raise ConnectionError("nobody there")
        if event["n"] in self.refuses:
            raise Refused("not this one")
        self.received.append(event["n"])


def send(folder, numbers, destination):
    courier = Courier(folder, destination, destination="a test")
    for n in numbers:
        courier.put({"n": n})
    courier.close(timeout=20)


def files(folder):
    return sorted(path.suffix for path in folder.iterdir())


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(journal, "_PAUSES", (0.01, 0.02))


def test_delivers_in_order_and_leaves_no_files(tmp_path):
    """Events arrive once, in order, and a journal that is delivered is deleted."""
    destination = Destination()
    send(tmp_path, range(100), destination)

    assert list(range(100)) == destination.received
    assert files(tmp_path) == []


def test_put_returns_at_once_while_the_destination_hangs(tmp_path):
    """A destination that never answers does not slow the caller; close waits no longer than it is told."""
    release = threading.Event()
    courier = Courier(tmp_path, lambda _: release.wait(), destination="a test")
    started = time.monotonic()
    for n in range(1000):
        courier.put({"n": n})
    put = time.monotonic() - started
    courier.close(timeout=0.2)
    closed = time.monotonic() - started
    release.set()

    assert put < 0.5
    assert closed < 2


def test_an_absent_destination_gets_everything_later_in_order(tmp_path, capfd):
    """What could not be delivered comes first with the next courier of the folder, after a single warning."""
    send(tmp_path, range(5), Destination(away=True))
    warnings = capfd.readouterr().err.splitlines()
    destination = Destination()
    send(tmp_path, range(5, 8), destination)

    assert list(range(8)) == destination.received
    assert sum("is away" in line for line in warnings) == 1
    assert any("5 events wait" in line for line in warnings)
    assert "5 events of an earlier run" in capfd.readouterr().err
    assert files(tmp_path) == []


def test_close_waits_for_the_journal_although_the_destination_is_away(tmp_path):
    """All events are on disk when close returns, even if writing them takes longer than giving up on sending."""

    def slowly(event):
        time.sleep(0.01)
        return event

    courier = Courier(tmp_path, Destination(away=True), destination="a test", complete=slowly)
    for n in range(50):
        courier.put({"n": n})
    courier.close(timeout=20)

    assert sum(path.read_text().count("\n") for path in tmp_path.glob("*.jsonl")) == 50


def test_a_hiccup_is_not_worth_a_warning(tmp_path, capfd):
    """One failed attempt is repeated without a word."""
    failures = [ConnectionError("once")]
    received = []

    def deliver(event):
        if failures:
            raise failures.pop()
        received.append(event["n"])

    courier = Courier(tmp_path, deliver, destination="a test")
    courier.put({"n": 1})
    while not received:
        time.sleep(0.01)
    courier.close(timeout=20)

    assert received == [1]
    assert capfd.readouterr().err == ""


def test_delivery_goes_on_when_the_destination_is_back(tmp_path, capfd):
    """An outage in the middle of a run loses nothing and needs no restart."""
    destination = Destination(away=True)
    courier = Courier(tmp_path, destination, destination="a test")
    courier.put({"n": 0})
    while "is away" not in (said := capfd.readouterr().err):
        time.sleep(0.01)
    destination.away = False
    while not destination.received:
        time.sleep(0.01)
    courier.put({"n": 1})
    courier.close(timeout=20)

    assert destination.received == [0, 1]
    assert "nobody there" in said
    assert "is back" in capfd.readouterr().err


def test_a_refused_event_does_not_hold_up_the_others(tmp_path, capfd):
    """An event at fault is named and left out."""
    destination = Destination(refuses={1})
    send(tmp_path, range(3), destination)

    assert destination.received == [0, 2]
    assert "refuses it: not this one" in capfd.readouterr().err


def test_an_event_that_is_not_json_is_left_out(tmp_path, capfd):
    """A mistake of the caller costs that event only."""
    destination = Destination()
    send(tmp_path, [0, object(), 2], destination)

    assert destination.received == [0, 2]
    assert "an event is lost" in capfd.readouterr().err


def test_only_what_is_not_marked_as_delivered_is_sent(tmp_path):
    """A process that died after two deliveries leaves the third one to the next."""
    lines = [json.dumps({"n": n}).encode() + b"\n" for n in range(3)]
    (tmp_path / "0-1.jsonl").write_bytes(b"".join(lines))
    (tmp_path / "0-1.sent").write_text(str(len(lines[0] + lines[1])))
    destination = Destination()
    send(tmp_path, [], destination)

    assert destination.received == [2]
    assert files(tmp_path) == []


def test_a_damaged_mark_costs_a_repetition_not_an_event(tmp_path):
    """A mark that was being written when the process died counts as none."""
    (tmp_path / "0-1.jsonl").write_text('{"n": 0}\n')
    (tmp_path / "0-1.sent").write_text("")
    destination = Destination()
    send(tmp_path, [], destination)

    assert destination.received == [0]


def test_a_half_written_last_line_is_no_event(tmp_path, capfd):
    """The line a process died in is left out in silence, those before it are delivered."""
    (tmp_path / "0-1.jsonl").write_text('{"n": 0}\n{"n": 1}\n{"n": 2')
    destination = Destination()
    send(tmp_path, [3], destination)

    assert destination.received == [0, 1, 3]
    assert "left out" not in capfd.readouterr().err


def test_the_journal_of_a_living_courier_is_left_alone(tmp_path):
    """Two jobs with one folder deliver their own events only."""
    first = Destination(away=True)
    courier = Courier(tmp_path, first, destination="a test")
    courier.put({"n": 0})
    while not list(tmp_path.glob("*.jsonl")):
        time.sleep(0.01)
    second = Destination()
    send(tmp_path, [1], second)
    first.away = False
    courier.close(timeout=20)

    assert second.received == [1]
    assert first.received == [0]


KILLED = """
import sys, time
from pathlib import Path
from easycore_ray.tracking.journal import Courier
def away(event): raise ConnectionError("nobody there")
courier = Courier(Path(sys.argv[1]), away, destination="a test")
for n in range(200): courier.put({"n": n})
while True:
    print(flush=True)
    time.sleep(0.01)
"""


def test_a_killed_process_loses_nothing_it_had_written(tmp_path):
    """After kill -9 the next courier delivers every event, once."""
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE) as process:
        written = 0
        while written < 200:
            process.stdout.readline()
            written = sum(path.read_bytes().count(b"\n") for path in tmp_path.glob("*.jsonl"))
        os.kill(process.pid, signal.SIGKILL)
    destination = Destination()
    send(tmp_path, [], destination)

    assert list(range(200)) == destination.received


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sessions=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), max_size=5))
def test_any_series_of_outages_delivers_each_event_once_in_order(tmp_path_factory, sessions):
    """Each session queues some events and its destination takes only so many; in the end all are there."""
    folder = tmp_path_factory.mktemp("journal")
    received, queued = [], 0
    for new, room in sessions:
        destination = Destination(room=room)
        send(folder, range(queued, queued + new), destination)
        queued += new
        received += destination.received
    last = Destination()
    send(folder, [], last)

    assert list(range(queued)) == received + last.received
