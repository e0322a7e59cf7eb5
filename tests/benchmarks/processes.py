"""What a command and all processes it starts take: peak memory by kind of process, object store, spilled bytes, disk.

Read from ``/proc`` every quarter of a second, so that peaks shorter than that may be missed.
"""

import os
import re
import subprocess
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

_EVERY_SECONDS = 0.25
_MIB = 2**20


@dataclass
class Usage:
    """What a command took.

    Attributes:
        seconds: wall time.
        processes: peak of private memory (RssAnon) of any one process, MiB, by kind: ``driver``, the name Ray gives a
            worker process while it runs a task or actor, or the program.
        object_store: peak growth of ``/dev/shm``, where the object store lies, MiB; of all programs on the machine.
        spilled: peak of bytes that Ray spilled to disk, MiB.
        disk: peak size of the watched folder, MiB.
        output: what the command printed.
    """

    seconds: float = 0.0
    processes: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    object_store: float = 0.0
    spilled: float = 0.0
    disk: float = 0.0
    output: str = ""


def run(command: list[str], *, watched: Path, ray_folder: Path) -> Usage:
    """Run a command to its end.

    Args:
        command: program and arguments.
        watched: folder whose size is followed.
        ray_folder: Ray's temporary folder of this run, where it spills.

    Raises:
        subprocess.CalledProcessError: the command failed; its output is printed first.
    """
    usage, done = Usage(), threading.Event()
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        watching = threading.Thread(target=_watch, args=(process.pid, watched, ray_folder, usage, done), daemon=True)
        watching.start()
        assert process.stdout is not None
        usage.output = process.stdout.read()
    usage.seconds = time.monotonic() - started
    done.set()
    watching.join()
    if process.returncode:
        print(usage.output)
        raise subprocess.CalledProcessError(process.returncode, command)
    return usage


def _watch(pid: int, watched: Path, ray_folder: Path, usage: Usage, done: threading.Event) -> None:
    looks, before = 0, _shared_memory()
    while not done.wait(_EVERY_SECONDS):
        for found in _descendants(pid):
            _add(found, pid, usage)
        usage.object_store = max(usage.object_store, _shared_memory() - before)
        if looks % 20 == 0:  # walking large folders is not free
            usage.disk = max(usage.disk, size_of(watched) / _MIB)
            usage.spilled = max(usage.spilled, sum(map(size_of, ray_folder.glob("session_*/ray_spilled*"))) / _MIB)
        looks += 1


def _add(pid: int, driver: int, usage: Usage) -> None:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return  # it has ended
    sizes = {name: int(size) / 1024 for name, size in re.findall(r"(Rss\w+):\s+(\d+) kB", status)}
    name = "driver" if pid == driver else _kind(words[0].decode())
    usage.processes[name] = max(usage.processes[name], sizes.get("RssAnon", 0.0))


def _shared_memory() -> float:
    """MiB in use in ``/dev/shm``."""
    found = os.statvfs("/dev/shm")
    return (found.f_blocks - found.f_bfree) * found.f_frsize / _MIB


def _kind(program: str) -> str:
    """Name of the program, the task or the class of the actor that a process runs."""
    return re.sub(r"\..*", "", program.removeprefix("ray::")) if program.startswith("ray::") else Path(program).name


def _descendants(pid: int) -> list[int]:
    """The process and all that it and its children started."""
    children = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            children[int(stat.rpartition(")")[2].split()[1])].append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        waiting += children[found[-1]]
    return found


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() and not path.is_symlink() else 0
        except OSError:
            continue  # it was deleted meanwhile
    return total
