"""Heartbeats: a file that a process rewrites as long as it lives, and its age by the clock of the store it lies in.

No two machines' clocks are compared: the age is the difference between the times that the store gave two files, the
heartbeat and one that is written now.
"""

import contextlib
import threading
import uuid
from collections.abc import Sequence

from easycore_ray.storage import paths
from easycore_ray.storage.errors import EasyCoreError

# So that a few may be lost, or late, before anyone thinks that the process is gone.
_BEATS_PER_LEASE = 6


def start_heartbeat(path: str, seconds: float, stop: threading.Event) -> threading.Thread:
    """Rewrite a file every now and then in a thread, first after a while: short work writes none.

    Args:
        path: the file; of this process alone, so that a late heartbeat undoes nothing of another's.
        seconds: after which a process without a heartbeat counts as gone.
        stop: ends the thread.
    """

    def beat() -> None:
        count = 0
        while not stop.wait(seconds / _BEATS_PER_LEASE):
            count += 1
            # The store may be away for a while; whoever depends on the heartbeat asks before each commit.
            with contextlib.suppress(EasyCoreError, OSError):
                paths.write_json(path, {"beats": count})

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    return thread


def last_written(files: Sequence[str]) -> float:
    """When the last of some files of one folder was written, in seconds since 1970 by the store's clock; 0 for none."""
    found = paths.entries(files[0].rpartition("/")[0], recursive=False)
    return max((entry.modified for entry in found if entry.path in files), default=0.0)


def age_by_store(files: Sequence[str]) -> float:
    """Seconds since the last of some files of one folder was written, by the store's clock."""
    folder, _, name = files[0].rpartition("/")
    # Named like the temporary file of a write, so that nothing takes it for content.
    probe = paths.join(folder, f".{name}.{uuid.uuid4().hex[:8]}.tmp")
    paths.write_bytes(probe, b"")
    try:
        return last_written([probe]) - last_written(files)
    finally:
        paths.delete_file(probe)
