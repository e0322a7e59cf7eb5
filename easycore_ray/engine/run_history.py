"""The MLflow run of a training run, described by its manifest or, before that, by its last committed state."""

import io
import json
import re
import zipfile
from collections.abc import Mapping
from typing import Any

from easycore_ray.storage import paths
from easycore_ray.storage.artifact import DIVERGED, MANIFEST, RUN
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.tracking.runs import TrackedRun, data_of, describe_job

LAST_GOOD = "last_good"
"""Folder, inside that of a diverged run, of the checkpoint after its last good epoch."""

STOPPED = "stopped.json"
"""In an unfinished training run: that the sweep it is a trial of has stopped it early, as in ``artifact.DIVERGED``."""

COMMIT_NAME: re.Pattern[str] = re.compile(r"epoch-(\d{5,})(?:-(\d{5,}))?-[0-9a-f]{12}")
"""Names of the folders of training states, see ``commit_name``."""

# As Ray Train names it.
_SNAPSHOT = "checkpoint_manager_snapshot.json"


def train_run_name(verb: str, claimed: Mapping[str, str]) -> str:
    """Name of the Ray Train run of ``score`` or ``train`` under a claim, of which ``identity`` and ``nonce`` count."""
    return f"{verb}-{claimed['identity'][:12]}-{claimed['nonce']}"


def commit_name(epoch: int, segments: int | None, attempt: str) -> str:
    """Name of the folder of a training state.

    Args:
        epoch: whole epochs done.
        segments: done since then; None at the end of an epoch.
        attempt: unique for every start of the worker group.
    """
    return f"epoch-{epoch:05d}{'' if segments is None else f'-{segments:05d}'}-{attempt}"


def local_commit_file(path: str, verb: str, claimed: Mapping[str, str]) -> str:
    """Where a run in one process, a trial of a sweep, keeps its last state (``state.pack_state``).

    Args:
        path: folder of its artifact.
        verb: as for ``train_run_name``.
        claimed: as for ``train_run_name``.
    """
    return paths.join(path, "commits", train_run_name(verb, claimed) + ".zip")


def read_local_commit(file: str) -> dict[str, Any]:
    """What a ``local_commit_file`` says of its state: ``epoch``, ``step`` and ``history``, without the tensors."""
    with zipfile.ZipFile(io.BytesIO(paths.read_bytes(file))) as archive:
        return json.loads(archive.read("state.json"))


def read_committed_history(storage: str) -> list[dict[str, float]]:
    """Metrics of every epoch of the last state that was registered in ``storage``; none where it cannot be read.

    Args:
        storage: folder of Ray Train's run, ``<out>/commits/<run name>``; a run in one process has a file beside it.
    """
    try:
        if paths.exists(storage + ".zip"):
            return read_local_commit(storage + ".zip")["history"]
        latest = paths.read_json(paths.join(storage, _SNAPSHOT))["latest_checkpoint_result"]
        if not COMMIT_NAME.fullmatch(latest["checkpoint_dir_name"]):
            return []
        return paths.read_json(paths.join(storage, latest["checkpoint_dir_name"], "state.json"))["history"]
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return []


def check_committed_states(storage: str) -> None:
    """Make sure that Ray Train's record of a run can be read, and names states that are there, before it is resumed.

    Args:
        storage: folder of Ray Train's run, ``<out>/commits/<run name>``; nothing need be there.

    Raises:
        EasyCoreError: it is damaged.
    """
    record = paths.join(storage, _SNAPSHOT)
    if not paths.exists(record):
        return
    try:
        content = paths.read_json(record)
        results = [*content["checkpoint_results"], content["latest_checkpoint_result"]]
        names = [str(result["checkpoint_dir_name"]) for result in results if result]
    except (EasyCoreError, KeyError, TypeError) as error:
        raise EasyCoreError(f"{record} is damaged; pass --overwrite to begin again") from error
    for name in names:
        if not COMMIT_NAME.fullmatch(name) or not paths.exists(paths.join(storage, name, "state.json")):
            raise EasyCoreError(
                f"{record} names the training state {name!r}, which is not there; pass --overwrite to begin again"
            )


def describe_training_run(path: str, verb: str, kind: str, config: Mapping[str, Any], status: str) -> TrackedRun:
    """The MLflow run of a scoring run or checkpoint.

    Args:
        path: its folder, claimed or finished.
        verb: ``score`` or ``train``, as in the name of its Ray Train run.
        kind: of the artifact.
        config: as in a manifest; that of the manifest counts, if there is one.
        status: of the run, if it is not finished.
    """
    claimed = paths.read_json(paths.join(path, RUN))
    storage = paths.join(path, "commits", train_run_name(verb, claimed))
    history, best, parents = read_committed_history(storage), None, {}
    if paths.exists(paths.join(path, MANIFEST)):
        manifest = paths.read_json(paths.join(path, MANIFEST))
        history, config, parents = manifest["epochs"], manifest["config"], manifest["parents"]
        best = manifest.get("best_epoch")
    elif paths.exists(paths.join(path, DIVERGED)) and status != "RUNNING":
        status = "FAILED"
        if paths.exists(paths.join(path, LAST_GOOD, MANIFEST)):
            history = paths.read_json(paths.join(path, LAST_GOOD, MANIFEST))["epochs"]
    elif paths.exists(paths.join(path, STOPPED)):
        status = "KILLED"
    points = {int(entry["epoch"]): dict(entry) for entry in history}
    if best is not None and points:
        points[max(points)]["best_epoch"] = best
    return describe_job(path, kind, verb, config, status, points=points, data=data_of(parents))
