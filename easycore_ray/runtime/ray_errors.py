"""What Ray raises when it loses processes, nodes or objects, as sentences for the user.

Errors of our own that tasks raise come out as they are, without the task's traceback; a bug keeps its own.
"""

from collections.abc import Callable
from typing import Any

import ray
from ray._private import worker

from easycore_ray.runtime.console import say
from easycore_ray.storage.errors import EasyCoreError

# Of Ray's own words that much is shown.
_LINE = 200
_AGAIN = "run the same command again to go on"
_NOT_THERE = "No module named 'easycore_ray'"
NOT_INSTALLED = (
    "a node of the cluster does not have easycore_ray; install this version of it there (deploy/Dockerfile is such an "
    "image), or let the job bring it along: ray job submit --working-dir . -- python -m jobs.VERB"
)
"""What is said of a node that cannot import this package."""
# Lost processes are counted and replaced by those who started them, and are not among these.
_SENTENCES: tuple[tuple[type[Exception], str], ...] = (
    (ray.exceptions.NodeDiedError, "its node was lost"),
    (ray.exceptions.LocalRayletDiedError, "Ray on this node has ended"),
    (ray.exceptions.ObjectLostError, "data that lay on a node was lost with it"),
    (ray.exceptions.TaskUnschedulableError, "the node it had to run on is no longer there"),
    (ray.exceptions.ActorUnschedulableError, "the node it had to run on is no longer there"),
    (ray.exceptions.RuntimeEnvSetupError, "a node could not set up the job's environment"),
    (ray.exceptions.ObjectStoreFullError, "the object store is full; give Ray a larger one"),
    (ray.exceptions.OutOfDiskError, "the disk of Ray's temporary folder is full; make room there"),
    (ray.exceptions.RpcError, "the head of the cluster cannot be reached"),
)  # fmt: skip


_print_of_ray: Callable[..., None] = getattr(worker, "print_to_stdstream", print)


def in_a_sentence(error: Exception, label: str) -> Exception:
    """The error to raise instead of one of Ray's; itself if it is none that has a sentence, a bug for instance.

    Args:
        error: what ``ray.get`` raised.
        label: what was being done.
    """
    if lacks_package(error):
        return EasyCoreError(f"{label}: {NOT_INSTALLED}")
    if isinstance(error, ray.exceptions.RayTaskError):
        cause = error.cause
        return cause if isinstance(cause, EasyCoreError) else error
    for kind, sentence in _SENTENCES:
        if isinstance(error, kind):
            return EasyCoreError(f"{label}: {sentence}; {_AGAIN} (Ray: {_first_line(error)})")
    return error


def quieten_ray() -> None:
    """Have what Ray tells this driver of the cluster's nodes as lines on standard error.

    When a node is lost, Ray prints ninety lines of its log to standard output, in the midst of a command's result. It
    has no option for that, only a function of its own to print with.
    """
    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = _say_of_nodes


def _say_of_nodes(data: dict[str, Any], **options: Any) -> None:
    if data.get("pid") != "raylet":  # what workers print, where somebody wants to see it
        _print_of_ray(data, **options)
        return
    text = next((line for line in "\n".join(data["lines"]).splitlines() if line.strip()), "")
    first = text.partition(". ")[0]
    say("a node of the cluster has ended" if first == "Raylet is terminated" else f"Ray: {first[:_LINE]}")


def lacks_package(error: BaseException) -> bool:
    """Whether a process of the cluster could not import this package."""
    return _NOT_THERE in str(error)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:_LINE] if lines else type(error).__name__
