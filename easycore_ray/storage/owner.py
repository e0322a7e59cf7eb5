"""Who holds a lease: a process, described so that others can name it and tell whether it has ended."""

import contextlib
import datetime
import getpass
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def describe_this_process() -> dict[str, Any]:
    """User, host and process, as JSON content."""
    user = None
    with contextlib.suppress(OSError, KeyError):  # a container's user may have no name
        user = getpass.getuser()
    return {
        "user": user,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_started": _process_start(os.getpid()),
        "machine": _machine(),
        "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def owner_text(owner: Mapping[str, Any]) -> str:
    """``USER@HOST, process PID, since TIME``."""
    return f"{owner.get('user')}@{owner.get('host')}, process {owner.get('pid')}, since {owner.get('since')}"


def has_ended(owner: Mapping[str, Any]) -> bool:
    """Whether a process ran on this machine and is no more; False for those of other machines, which cannot be asked.

    Args:
        owner: what ``describe_this_process`` said there.
    """
    pid, started = owner.get("pid"), owner.get("process_started")
    if owner.get("machine") != _machine() or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    now = _process_start(pid)
    # Another process has its number by now, or it has ended and its parent has not asked for its exit code yet.
    return now is not None and started is not None and now != started


def _machine() -> str:
    """Where a process's number means something: this boot of this machine, and its namespace of processes."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def _process_start(pid: int) -> str | None:
    """When a process started, in ticks since boot; "ended" if only its exit code is left, None where unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "ended" if fields[0] in "ZX" else fields[19]
