"""SIGTERM in the process of a command."""

import os
import signal
import threading

import pytest

from easycore_ray.runtime.interrupts import TerminatedError, interruptible, keeping_handler, terminable


@pytest.fixture(autouse=True)
def systems_handler():
    """As in a command: SIGTERM would end the process."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_is_raised_inside_and_the_systems_own_afterwards():
    """Also while the main thread waits for another one, and as a kind of Ctrl-C, which all clean-up knows."""
    threading.Timer(0.2, terminate).start()
    with pytest.raises(TerminatedError) as raised, terminable():
        interruptible(lambda: threading.Event().wait(20))

    assert isinstance(raised.value, KeyboardInterrupt)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_what_ray_puts_in_its_place_does_not_stay():
    """Ray's own handler ends the process without a word to MLflow."""

    def connect_and_terminate():
        with keeping_handler():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        terminate()

    with pytest.raises(TerminatedError), terminable():
        connect_and_terminate()


def test_a_handler_of_the_embedding_program_stays():
    """It knows better what SIGTERM means there; so does Ray's where nothing was in place before."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with terminable():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with keeping_handler():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
