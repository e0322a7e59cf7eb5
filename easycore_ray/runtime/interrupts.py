"""Ctrl-C, and the wish of a cluster that a job ends, while a library waits for that cluster."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any


class TerminatedError(KeyboardInterrupt):
    """SIGTERM has come: ``ray job stop``, or a scheduler that ends the job."""


def _terminate(*_: Any) -> None:
    raise TerminatedError


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Inside the block SIGTERM is raised in the main thread, as Ctrl-C is; where it has a handler already, that stays.

    Raises:
        TerminatedError: it has come.
    """
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def keeping_handler() -> Iterator[None]:
    """Around ``ray.init``, which puts a handler of its own for SIGTERM in place."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is _terminate:
            signal.signal(signal.SIGTERM, before)


def interruptible(function: Callable[[], Any]) -> Any:
    """Result of ``function()``, run in a thread of its own, so that Ctrl-C arrives in the caller at once.

    Called from the main thread, Ray Train and Ray Tune put handlers of their own in place: they wait for workers to
    end by themselves, and Ray Train's stays there after the run and swallows what comes later.

    Raises:
        Exception: what ``function`` raises.
        KeyboardInterrupt: after Ctrl-C; the thread is left behind and ends with the process.
    """
    outcome: Future[Any] = Future()

    def work() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return outcome.result()
