"""One line that says how far long work is: done, rate, time left.

On a terminal the line is rewritten in place; elsewhere (logs of submitted jobs) a new line appears
every few seconds. Work in other processes reports through the progress actor.
"""

import sys
import time

_TERMINAL_SECONDS = 0.2


_LOG_SECONDS = 10.0


class Progress:
    """A progress line on standard error.

    Args:
        label: what is being done, e.g. ``score``.
        total: how many units make it whole.
        unit: plural name of a unit, e.g. ``images``.
    """

    def __init__(self, label: str, total: float, unit: str) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._started = time.monotonic()
        self._shown = 0.0
        self._first: tuple[float, float] | None = None
        self._done = 0.0
        self._open = False

    def update(self, done: float, note: str = "") -> None:
        """Show that ``done`` units are finished (a total, not an increment), with a note behind."""
        now = time.monotonic()
        if self._first is None:
            # The first report may stand for work of an earlier, interrupted run: the rate starts from it.
            self._first = (now, done) if done > 0 else (self._started, 0.0)
        ended = done >= self._total > self._done
        self._done = done
        pause = _TERMINAL_SECONDS if sys.stderr.isatty() else _LOG_SECONDS
        if ended or (now - self._shown >= pause and done < self._total):
            self._shown = now
            self._print(now, note)

    def _print(self, now: float, note: str) -> None:
        assert self._first is not None
        since, start = self._first
        rate = (self._done - start) / max(now - since, 1e-9)
        left = f", {duration((self._total - self._done) / rate)} left" if rate > 0 and self._done < self._total else ""
        share = 100 * self._done / self._total if self._total else 100
        speed = f", {_speed(rate)}".replace("/", f" {self._unit}/") if rate > 0 else ""
        text = f"{self._label}: {self._done:,.0f} of {self._total:,.0f} {self._unit} ({share:.0f} %){speed}{left}"
        if note:
            text += f" | {note}"
        terminal = sys.stderr.isatty()
        print(
            "\r\x1b[2K" + text if terminal else text,
            end="" if terminal else "\n",
            file=sys.stderr,
            flush=True,
        )
        self._open = terminal

    def close(self, closing: str = "") -> None:
        """End the line, with a closing text in its place if given."""
        if self._open:
            print("\r\x1b[2K" if closing else "", end="" if closing else "\n", file=sys.stderr)
        if closing:
            say(closing)


def _speed(rate: float) -> str:
    """A rate per second, or per minute where that is easier to grasp."""
    if rate >= 1:
        return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s"
    return f"{60 * rate:.1f}/min"


def say(text: str) -> None:
    """Print a line for the user on standard error (standard output carries results only)."""
    print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """A time for people: ``45 s``, ``12 min``, ``2.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
