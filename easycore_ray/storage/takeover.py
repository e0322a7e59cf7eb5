"""What an unfinished artifact has committed, copied to where another job goes on with it.

For an artifact that was taken over from a holder that may wake up again and go on writing into its folder.
"""

import contextlib
import re
import time

from easycore_ray.storage import paths
from easycore_ray.storage.errors import EasyCoreError

# Training states and Ray Train's record of them, score parts, finished shards of an evaluation or analysis, what steps
# device-seconds were turned into, and how a run diverged or why it was stopped. Everything else is written after the
# work, and is written again.
_STATE = re.compile(r"(commits|table|extra/table|last_good|shards-[0-9a-f]{8})/.+|(budget|diverged|stopped)\.json")
_ATTEMPTS = 30
_PAUSE_SECONDS = 1.0


def copy_state(source: str, target: str) -> None:
    """Copy what an unfinished artifact resumes from; again where it changes meanwhile, until nothing did.

    Workers of the holder before end at their next commit, since the lease is another's by now, so that this ends.

    Args:
        source: folder of the artifact.
        target: folder that the copies go to.

    Raises:
        EasyCoreError: it goes on changing.
    """
    for attempt in range(_ATTEMPTS):
        before = _state_files(source)
        paths.delete_tree(target)
        with contextlib.suppress(EasyCoreError):  # a state is deleted once the next but one is committed
            for entry in before:
                paths.copy_file(entry.path, paths.join(target, entry.path[len(source) + 1 :]))
            if _state_files(source) == before:
                return
        time.sleep(_PAUSE_SECONDS if attempt else 0)
    raise EasyCoreError(f"{source} is still being written to by the run that was taken over; end that, and try again")


def _state_files(folder: str) -> list[paths.Entry]:
    found = paths.entries(folder)
    return [entry for entry in found if _STATE.fullmatch(entry.path[len(folder) + 1 :])]
