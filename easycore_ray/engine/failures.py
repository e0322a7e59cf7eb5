"""What ended the workers of a run: an error of their own, which would come again, or the loss of a process."""

import os
import tempfile
import traceback
from pathlib import Path

from easycore_ray.runtime.ray_errors import NOT_INSTALLED, lacks_package
from easycore_ray.storage import paths
from easycore_ray.storage.errors import EasyCoreError

# Where errors come from that have their cause elsewhere: in a peer, a device, the cluster.
_LIBRARIES_OF_OTHERS = ("/torch/distributed/", "/site-packages/ray/")
_WORDS_OF_OTHERS = ("NCCL", "CUDA error")


class WorkerError(Exception):
    """What a worker has raised, as it travels to the driver: without the error itself, which may not be picklable."""

    def __init__(self, text: str, repeats: bool) -> None:
        super().__init__(text, repeats)
        self.text = text
        """For the user, in one line."""
        self.repeats = repeats
        """Whether another attempt would end in the same way."""


def describe_error(error: Exception) -> WorkerError:
    """What to tell the driver of an error on this worker: its own message, or its type, message and line."""
    cause = getattr(error, "cause", None)  # of a Ray task
    raised = cause if isinstance(cause, Exception) else error
    if isinstance(raised, EasyCoreError):
        return WorkerError(str(raised), repeats=True)
    if isinstance(raised, OSError) and paths.is_full(raised):
        place = f"--out or its temporary folder, {tempfile.gettempdir()}"
        why = f"a worker cannot write to {place}: {os.strerror(raised.errno or 0)}"
        return WorkerError(f"{why}; {paths.MAKE_ROOM}", repeats=True)
    frames = traceback.extract_tb(error.__traceback__)
    elsewhere = (
        isinstance(raised, OSError)
        or any(library in frame.filename for frame in frames for library in _LIBRARIES_OF_OTHERS)
        or any(word in str(raised) for word in _WORDS_OF_OTHERS)
    )
    own = [frame for frame in frames if "/site-packages/" not in frame.filename]
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno}, in {own[-1].name})" if own else ""
    return WorkerError(f"{type(raised).__name__}: {_one_line(raised)}{place}", repeats=not elsewhere)


def first_failure(error: BaseException) -> WorkerError:
    """The failure that explains the others: one that repeats if there is one, of the lowest rank.

    Args:
        error: Ray Train's, with the exceptions of its workers by rank, or its controller's.
    """
    of_controller = getattr(error, "controller_failure", None)
    by_rank: dict[int, BaseException] = getattr(error, "worker_failures", None) or {0: of_controller or error}
    if any(map(lacks_package, by_rank.values())):
        return WorkerError(NOT_INSTALLED, repeats=True)
    if of_controller is not None:
        return WorkerError(f"Ray Train cannot run it: {_one_line(of_controller)}", repeats=True)
    found = [
        failure if isinstance(failure, WorkerError) else WorkerError(_last_line(failure), repeats=False)
        for _, failure in sorted(by_rank.items())
    ]
    return next((failure for failure in found if failure.repeats), found[0])


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _last_line(error: BaseException) -> str:
    """Of a lost process Ray tells a story, whose last line says why."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
