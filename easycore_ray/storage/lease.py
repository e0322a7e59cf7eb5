"""Leases: one writer at a time for a folder, and a way on when that writer is gone.

A job that writes an artifact holds ``lease.json`` in its folder, which says who and since when, and rewrites a
heartbeat beside it. Another job is refused, unless the process is known to have ended (it ran on this machine), its
last heartbeat is older than the lease lasts, or the user says so. A lease covers all that lies in its folder and is
written by the same job, on whatever machine. Readers need none.

Whoever was taken over may wake up again. Its token is *fenced*: what was begun under it is not written to any more (see
``artifact.claim``), and it ends where it finds another token in place of its own (``check_lease``). Between that
check and the write that follows it, it might be stopped once more: pyarrow offers no conditional writes on object
stores, with which that gap could be closed. On local disks a folder's first lease, and a manifest that replaces none,
are made by a link, which fails if there is one.
"""

import contextlib
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from easycore_ray.storage import paths
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.storage.heartbeat import age_by_store, last_written, start_heartbeat
from easycore_ray.storage.owner import describe_this_process, has_ended, owner_text

LEASE = "lease.json"
"""Name of the file that says who writes in a folder."""
LEASE_FILES = re.compile(r"lease(-[0-9a-f]{8})?\.json")
"""Names of that file and of the heartbeats beside it."""
SECONDS_VARIABLE = "EASYCORE_LEASE_SECONDS"
"""Environment variable: after how many seconds without a heartbeat a lease may be taken over."""

# Longer than a store that is away is asked again (object_store), so that its restart ends no lease.
_SECONDS = 120.0


@dataclass(frozen=True)
class Lease:
    """The right to write in a folder and in all that lies in it."""

    folder: str
    token: str
    """Unique to this holder."""
    fenced: tuple[str, ...] = ()
    """Tokens of holders that were taken over and may wake up again."""


# What this process holds, by folder, with what ends its thread; and what the job that it works for holds.
_held: dict[str, tuple[Lease, threading.Event, threading.Thread]] = {}
_passed_on: list[Lease] = []
# Tokens of leases whose folders this process has seen.
_seen: set[str] = set()


def acquire(folder: str, claimed: Mapping[str, Any] | None = None, *, take_over: bool = False) -> Lease:
    """The lease to write in a folder under: a new one, or the one that this job holds of a folder around it.

    Args:
        folder: absolute path.
        claimed: content of the folder's ``run.json``, which names the lease it was begun under.
        take_over: take it also from a holder that is at work.

    Raises:
        EasyCoreError: another job holds it (says who, and since when), or this job's own was taken over.
    """
    covering = _covering(folder)
    if covering is not None:
        check_lease(covering)
        if covering.folder == folder:
            return covering
    fenced = covering.fenced if covering else ()
    above = _folder_above(folder, claimed)
    if claimed and above is not None and (covering is None or above != covering.folder):
        begun_under = _read(above)
        if begun_under is not None and begun_under["token"] == claimed["lease"]:
            fenced += _give_way(above, begun_under, take_over)
    found = _read(folder)
    if found is not None:
        fenced += _give_way(folder, found, take_over)
    elif covering is not None:
        return Lease(covering.folder, covering.token, fenced)
    lease = Lease(folder, uuid.uuid4().hex[:8], tuple(dict.fromkeys(fenced)))
    if not _write(lease, new=found is None):
        return acquire(folder, claimed, take_over=take_over)
    stop = threading.Event()
    thread = start_heartbeat(_heartbeat(folder, lease.token), _lease_seconds(), stop)
    _held[folder] = lease, stop, thread
    return lease


def release(folder: str, *, finished: bool = False) -> None:
    """Give a lease of this process back, if it has one; ``finished``: no one goes on with what was fenced."""
    if folder not in _held:
        return
    lease, stop, thread = _held.pop(folder)
    stop.set()
    thread.join(timeout=2)
    with contextlib.suppress(EasyCoreError, OSError):
        paths.delete_file(_heartbeat(folder, lease.token))
        found = _read(folder)
        if found is None or found["token"] != lease.token:
            return
        if lease.fenced and not finished:
            paths.write_json(paths.join(folder, LEASE), {**found, "released": True})
        else:
            paths.delete_file(paths.join(folder, LEASE))


@contextlib.contextmanager
def released_at_the_end() -> Iterator[None]:
    """Give back what the body acquires, however it ends.

    Raises:
        EasyCoreError: the body failed, and a lease was taken over: whatever went wrong, its files are another's by now.
    """
    before = set(_held)
    try:
        yield
    except Exception as error:
        for folder in set(_held) - before:
            try:
                check_lease(_held[folder][0])
            except EasyCoreError as lost:
                raise lost from error
        raise
    finally:
        for folder in set(_held) - before:
            release(folder)


@contextlib.contextmanager
def working_under(lease: Lease | None) -> Iterator[None]:
    """For a process that works for the holder of a lease: it covers what the body claims in its folder.

    Raises:
        EasyCoreError: see ``check_seen``.
    """
    check_seen([lease])
    _passed_on.extend([lease] if lease else [])
    try:
        yield
    finally:
        if lease:
            _passed_on.remove(lease)


def check_lease(lease: Lease, run: str | None = None) -> None:
    """Make sure that a lease was not taken over; ``run``: path of a ``run.json`` that must name it as well.

    Raises:
        EasyCoreError: says by whom it was.
    """
    found = _read(lease.folder)
    mine = found is not None and found["token"] == lease.token
    if mine and (run is None or (_read_json(run) or {}).get("lease") == lease.token):
        return
    by = "another command" if found is None or mine else owner_text(found)
    raise EasyCoreError(
        f"{lease.folder} was taken over by {by}; this run ends here, and nothing that it wrote since then is used"
    )


def leases_of_job() -> list[Lease]:
    """What this process holds, and what the job that it works for holds."""
    return [lease for lease, _, _ in _held.values()] + _passed_on


def check_seen(leases: Iterable[Lease | None]) -> None:
    """In a process that a job has started, on whatever node: make sure that it sees the folders of these leases.

    Raises:
        EasyCoreError: a folder of the same name is another one here, or there is none; nothing was written to it.
    """
    for lease in leases:
        if lease is None or lease.token in _seen or paths.is_remote(lease.folder):
            continue
        if _read(lease.folder) is None:
            raise EasyCoreError(
                f"node {socket.gethostname()} does not see {lease.folder}, in which this job writes; choose an --out "
                "that all nodes share: in a folder that each of them mounts, or s3:// or gs://"
            )
        _seen.add(lease.token)


def is_live(folder: str) -> bool:
    """Whether the holder of a folder's lease may be at work; writes nothing, and so goes by this machine's clock."""
    found = _read(folder)
    if found is None or found.get("released") or has_ended(found):
        return False
    return time.time() - last_written(_files(folder, found)) <= found["seconds"]


def holder(folder: str) -> str | None:
    """For people, who may be at work on a folder, and the age of the last sign of it; None if nobody is."""
    found = _read(folder)
    if found is None or not is_live(folder):
        return None
    age = max(0.0, time.time() - last_written(_files(folder, found)))
    return f"{owner_text(found)}, last sign {age:.0f} s ago"


def is_of_lease(folder: str, name: str) -> bool:
    """Whether a file in a folder is a lease of ours or its heartbeat."""
    return LEASE_FILES.fullmatch(name) is not None and (name != LEASE or _read(folder) is not None)


def entry_of(lease: Lease, folder: str) -> dict[str, Any]:
    """What the ``run.json`` in a folder says of the lease that it is written under."""
    return {"lease": lease.token, "lease_levels_above": folder.removeprefix(lease.folder).count("/")}


def _folder_above(folder: str, claimed: Mapping[str, Any] | None) -> str | None:
    """Where the lease lies that a folder's ``run.json`` was written under; None if in the folder itself."""
    levels, parts = (claimed or {}).get("lease_levels_above"), folder.split("/")
    return "/".join(parts[:-levels]) if isinstance(levels, int) and 0 < levels < len(parts) else None


def _covering(folder: str) -> Lease | None:
    """The innermost lease of this job whose folder is this one or holds it."""
    around = [lease for lease in leases_of_job() if (folder + "/").startswith(lease.folder + "/")]
    return max(around, key=lambda lease: len(lease.folder), default=None)


def _give_way(folder: str, found: Mapping[str, Any], take_over: bool) -> tuple[str, ...]:
    """The tokens to fence when a lease that was found is replaced; an error if it may not be."""
    fenced = tuple(found["fenced"])
    if found.get("released") or has_ended(found):
        return fenced
    age = age_by_store(_files(folder, found))
    if not take_over and age <= found["seconds"]:
        raise EasyCoreError(
            f"{folder} is being written by {owner_text(found)}, whose last heartbeat is {max(0, age):.0f} s old; "
            "wait for it, choose another --out, or pass --take-over to end it"
        )
    return (*fenced, found["token"])


def _read(folder: str) -> dict[str, Any] | None:
    found = _read_json(paths.join(folder, LEASE))
    return found if found is not None and {"token", "seconds", "fenced"} <= set(found) else None


def _read_json(path: str) -> dict[str, Any] | None:
    """A JSON object; None if there is no such file, or it holds anything else."""
    try:
        found = paths.read_json(path) if paths.exists(path) else None
    except EasyCoreError:
        if not paths.exists(path):  # deleted meanwhile
            return None
        raise
    return found if isinstance(found, dict) else None


def _lease_seconds() -> float:
    return float(os.environ.get(SECONDS_VARIABLE, _SECONDS))


def _write(lease: Lease, *, new: bool) -> bool:
    """Write the file of a lease; False if there is another by now, where the store can tell."""
    content = {
        "token": lease.token,
        **describe_this_process(),
        "seconds": _lease_seconds(),
        "fenced": list(lease.fenced),
    }
    try:
        paths.write_json(paths.join(lease.folder, LEASE), content, new=new)
    except FileExistsError:
        return False
    except OSError as error:
        raise EasyCoreError(f"{lease.folder} cannot be written: {error}; choose another --out") from error
    return True


def _files(folder: str, found: Mapping[str, Any]) -> list[str]:
    """A lease and its heartbeat: taking it is the first one."""
    return [paths.join(folder, LEASE), _heartbeat(folder, found["token"])]


def _heartbeat(folder: str, token: str) -> str:
    return paths.join(folder, f"lease-{token}.json")
