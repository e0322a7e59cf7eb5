"""Events that reach their destination although it may be slow, away, or the process killed.

Takes JSON-able events and a function that delivers one. The one decision behind this module: a caller
only fills a queue. One thread appends what is queued to a journal file (JSON lines); another one reads
the journals of the folder, oldest first, and delivers. What is not delivered when the process ends is
delivered, in order, by the next ``Courier`` of the same folder.
"""

import contextlib
import fcntl
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from easycore_ray.runtime.console import say

__all__ = ["Courier", "Event", "Refused", "lock"]

Event = dict[str, Any]

# Waits between attempts (s): a hiccup is not worth a warning, an outage of hours not worth a load.
_PAUSES = (1.0, 30.0, 60.0, 300.0)


class Refused(Exception):  # noqa: N818 - an answer, not an error of the courier
    """Raised by ``deliver`` where the event is at fault, so that sending it again cannot help."""


class Courier:
    """Delivers events in the background, each at least once and in order.

    ``put`` neither waits nor raises. Progress is noted after every delivery, so an event is delivered
    twice only if the process dies between the two; ``deliver`` must bear that.

    Args:
        folder: where journals are kept; made with the first event.
        deliver: brings one event to its destination (in a thread of this process). Raises ``Refused``
            for an event at fault; any other error means that the destination is away.
        destination: its name in messages.
        complete: adds to an event what takes too long for the caller.
    """

    def __init__(
        self,
        folder: Path,
        deliver: Callable[[Event], None],
        *,
        destination: str,
        complete: Callable[[Event], Event] = lambda event: event,
    ) -> None:
        self._folder, self._destination = folder, destination
        self._deliver, self._complete = deliver, complete
        self._own = folder / f"{time.time_ns():020d}-{os.getpid()}.jsonl"
        self._queue: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._news, self._written_out, self._closing = threading.Event(), threading.Event(), threading.Event()
        self._away = False
        self._said: set[str] = set()
        self._writer = threading.Thread(target=self._write, name="journal", daemon=True)
        self._sender = threading.Thread(target=self._send, name="courier", daemon=True)
        self._writer.start()
        self._sender.start()

    def put(self, event: Event) -> None:
        """Take an event; the caller must not change it afterwards."""
        if not self._closing.is_set():
            self._queue.put(event)

    def close(self, timeout: float) -> None:
        """Deliver what is left, for at most ``timeout`` seconds; what then remains stays in the journal."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._queue.put(None)
        started = time.monotonic()
        # First what makes sure that nothing is lost: the sender may give up long before all is written.
        self._writer.join(timeout)
        self._sender.join(max(0.0, timeout - (time.monotonic() - started)))
        left = sum(map(_undelivered, _journals(self._folder)))
        if left:
            say(f"tracking: {left} events wait in {self._folder}; the next run with this --out sends them")

    def _write(self) -> None:
        """Append queued events to the journal until the courier is closed (thread)."""
        journal: IO[bytes] | None = None
        while (event := self._queue.get()) is not None:
            try:
                line = json.dumps(self._complete(event)).encode() + b"\n"
                journal = journal or self._make_journal()
                journal.write(line)
                journal.flush()
            except Exception as error:
                self._say_once(f"tracking: an event is lost, the journal cannot be written: {error}")
            self._news.set()
        self._written_out.set()
        self._news.set()

    def _make_journal(self) -> IO[bytes]:
        """The own journal, locked (while this process lives) before any other courier can see it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        hidden = self._own.with_suffix(".new")
        journal = hidden.open("wb")
        lock(journal)
        hidden.rename(self._own)
        return journal

    def _send(self) -> None:
        """Deliver older journals, then the own one as it grows (thread)."""
        try:
            for journal in _journals(self._folder):
                if journal < self._own and not self._send_older(journal):
                    return
            while not self._own.exists() and not self._written_out.is_set():
                self._wait_for_news()
            if self._own.exists() and self._send_journal(self._own):
                _discard(self._own)
        except Exception as error:
            # A full disk, or our own mistake: the run goes on, and the events are in the journal.
            self._say_once(f"tracking stops ({type(error).__name__}: {error}); events wait in {self._folder}")

    def _send_older(self, journal: Path) -> bool:
        """Deliver what another process left behind; False if the destination stays away."""
        with contextlib.suppress(FileNotFoundError), journal.open("rb") as handle:
            if not lock(handle, wait=False):
                return True  # its owner lives, and delivers it
            left = _undelivered(journal)
            if not self._send_journal(journal):
                return False
            _discard(journal)
            if left:
                say(f"tracking: {left} events of an earlier run sent to {self._destination}")
        return True

    def _send_journal(self, journal: Path) -> bool:
        """Deliver the events of a journal from its mark on; False if the destination stays away."""
        with journal.open("rb") as stream:
            stream.seek(_delivered_bytes(journal))
            for line in self._lines(stream, growing=journal == self._own):
                if not self._send_line(line):
                    return False
                _mark(journal).write_text(str(stream.tell()))
        return True

    def _lines(self, stream: IO[bytes], *, growing: bool) -> Iterator[bytes]:
        """Whole lines, waiting for more while the journal grows; a half-written last line is no event."""
        while True:
            written_out = self._written_out.is_set()
            start = stream.tell()
            line = stream.readline()
            if line.endswith(b"\n"):
                yield line
                continue
            stream.seek(start)
            if not growing or written_out:
                return
            self._wait_for_news()

    def _send_line(self, line: bytes) -> bool:
        """Deliver one event, however long it takes; False if closed while the destination is away."""
        for attempt in range(sys.maxsize):
            last = self._closing.is_set()
            try:
                self._deliver(json.loads(line))
            except (Refused, json.JSONDecodeError) as error:
                say(f"tracking: an event is left out, {self._destination} refuses it: {error}")
                return True
            except Exception as error:
                if attempt or last:
                    self._report_away(error)
                if last:
                    return False
                self._closing.wait(_PAUSES[min(attempt, len(_PAUSES) - 1)])
            else:
                self._report_back()
                return True
        return False

    def _report_away(self, error: Exception) -> None:
        if not self._away:
            say(f"tracking: {self._destination} is away ({error}); events are kept in {self._folder}")
        self._away = True

    def _report_back(self) -> None:
        if self._away:
            say(f"tracking: {self._destination} is back")
        self._away = False

    def _wait_for_news(self) -> None:
        self._news.wait()
        self._news.clear()

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            say(text)


def lock(handle: IO[Any], *, wait: bool = True) -> bool:
    """Lock an open file until it is closed; False if another process holds it and ``wait`` is off."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # Some network file systems have no locks. Going on without is right for all but two jobs at once.
        return True
    return True


def _journals(folder: Path) -> list[Path]:
    """All journals of a folder, oldest first."""
    return sorted(folder.glob("*.jsonl"))


def _mark(journal: Path) -> Path:
    """The file that says how many bytes of a journal are delivered."""
    return journal.with_suffix(".sent")


def _delivered_bytes(journal: Path) -> int:
    try:
        return int(_mark(journal).read_text())
    except (FileNotFoundError, ValueError):  # killed while writing it: once more from the start
        return 0


def _undelivered(journal: Path) -> int:
    """Number of events of a journal that are not delivered."""
    try:
        return journal.read_bytes()[_delivered_bytes(journal) :].count(b"\n")
    except OSError:
        return 0


def _discard(journal: Path) -> None:
    # The journal first: a mark without a journal is litter, a journal without its mark is sent again.
    journal.unlink(missing_ok=True)
    _mark(journal).unlink(missing_ok=True)
