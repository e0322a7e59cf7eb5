"""Ctrl-C while a library waits for a cluster."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


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
