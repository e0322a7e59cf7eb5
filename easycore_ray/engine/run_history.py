"""The MLflow run of a training run, described by its manifest or, before that, by its last committed state."""

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from easycore_ray.storage import paths
from easycore_ray.storage.artifact import DIVERGED, MANIFEST, RUN
from easycore_ray.tracking.mlflow import TrackedRun

LAST_GOOD = "last_good"
"""Folder, inside that of a diverged run, of the checkpoint after its last good epoch."""

# As Ray Train names it.
_SNAPSHOT = "checkpoint_manager_snapshot.json"


def train_run_name(verb: str, claimed: Mapping[str, str]) -> str:
    """Name of the Ray Train run of ``score`` or ``train`` under a claim, of which ``identity`` and ``nonce`` count."""
    return f"{verb}-{claimed['identity'][:12]}-{claimed['nonce']}"


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
        return paths.read_json(paths.join(storage, latest["checkpoint_dir_name"], "state.json"))["history"]
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return []


def describe_training_run(path: str, verb: str, new: TrackedRun, status: str) -> TrackedRun:
    """The MLflow run of a scoring run or checkpoint.

    Args:
        path: its folder, claimed or finished.
        verb: ``score`` or ``train``, as in the name of its Ray Train run.
        new: the run at its start: name, tags, and parameters if no manifest has them; the key follows from the claim.
        status: of the run, if it is not finished.
    """
    claimed = paths.read_json(paths.join(path, RUN))
    storage = paths.join(path, "commits", train_run_name(verb, claimed))
    history, params, best = read_committed_history(storage), new.params, None
    if paths.exists(paths.join(path, MANIFEST)):
        manifest = paths.read_json(paths.join(path, MANIFEST))
        history, params, best = manifest["epochs"], manifest["config"], manifest.get("best_epoch")
        status = "FINISHED"
    elif paths.exists(paths.join(path, DIVERGED)) and status != "RUNNING":
        status = "FAILED"
        if paths.exists(paths.join(path, LAST_GOOD, MANIFEST)):
            history = paths.read_json(paths.join(path, LAST_GOOD, MANIFEST))["epochs"]
    points = {int(entry["epoch"]): dict(entry) for entry in history}
    if best is not None and points:
        points[max(points)]["best_epoch"] = best
    key = f"{verb}-{claimed['identity'][:16]}-{claimed['nonce']}"
    return replace(new, key=key, params=params, points=points, status=status)
