"""status(): whether a job has done its work, by what lies in its folder. No Ray is started, and nothing is changed.

States of jobs on clusters tell less: one that was retried or ended by its scheduler may have finished before, or be at
work elsewhere.
"""

from dataclasses import dataclass

from easycore_ray.config.base import verb
from easycore_ray.config.inspection import StatusConfig
from easycore_ray.engine.run_history import STOPPED
from easycore_ray.storage import lease, paths
from easycore_ray.storage.artifact import DIVERGED, MANIFEST, RUN, open_artifact, work_folder


@dataclass(frozen=True)
class Status:
    """What is known of the job that writes, or has written, a folder."""

    path: str
    finished: bool
    """Whether the artifact is there, whole."""
    reason: str
    """One line: what it is, or why it is not finished and what to do."""


@verb(StatusConfig, gives=Status)
def status(config: StatusConfig) -> Status:
    """Tell whether an artifact is finished.

    Raises:
        EasyCoreError: the folder holds something that is no artifact of ours.
    """
    path = paths.absolute(config.path)
    if not paths.exists(path):
        return Status(path, False, "there is nothing yet")
    if paths.exists(paths.join(path, MANIFEST)):
        manifest = open_artifact(path, any_version=True).manifest
        return Status(path, True, f"{manifest['kind'].replace('_', ' ')}, {manifest['created']}")
    if not paths.exists(paths.join(path, RUN)):
        return Status(path, False, "no job of ours has begun there")
    kind = str(paths.read_json(paths.join(path, RUN))["kind"]).replace("_", " ")
    return Status(path, False, f"{kind}, {_why_unfinished(path)}")


def _why_unfinished(path: str) -> str:
    if (holder := lease.holder(path)) is not None:
        return f"being written by {holder}"
    for name in (DIVERGED, STOPPED):
        note = paths.join(work_folder(path), name)
        if paths.exists(note):
            return str(paths.read_json(note)["problem"])
    return "and nobody is at work on it; run the same command again to go on"
