"""What MLflow runs are to hold, as the artifacts have it. Nothing here talks to MLflow."""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from easycore_ray.storage import paths
from easycore_ray.storage.artifact import GENERATIONS, MANIFEST, RUN, Artifact, open_artifact
from easycore_ray.storage.errors import EasyCoreError

# Of a configuration: how a command was given rather than what it does.
_NOT_PARAMS = ("overwrite", "take_over", "tracking_uri", "experiment", "register")
# Kinds of artifacts that MLflow shows as data.
_DATA_KINDS = ("dataset", "coreset")


@dataclass(frozen=True)
class TrackedData:
    """A dataset or coreset that a run has used, as MLflow's interface lists it."""

    name: str
    """Kind and folder."""
    digest: str
    """Its fingerprint (hex)."""
    source: str
    """Path of its folder."""
    profile: Mapping[str, Any] = field(default_factory=dict)
    """Counts and the like, for people."""
    context: str = "training"
    """What it was used for."""


@dataclass(frozen=True)
class TrackedModel:
    """A trained model to be kept in MLflow beside its run."""

    name: str
    """In the experiment's list of models."""
    checkpoint: str
    """Folder of its checkpoint."""
    register: str | None = None
    """Name in the model registry, of which it becomes a version; None for none."""


@dataclass(frozen=True)
class TrackedRun:
    """What an MLflow run is to hold, or, while the job works, a part of it."""

    key: str
    """Identifies the run in its experiment: made from the artifact's identity and nonce."""
    name: str
    params: Mapping[str, Any] = field(default_factory=dict)
    """Nested mappings become ``outer.inner``; values are cut at 500 characters. Written once: what differs when a
    run resumes is named in the tag ``easycore.changed_params``."""
    tags: Mapping[str, Any] = field(default_factory=dict)
    parent: "TrackedRun | None" = None
    """The run this one is a child of, made where there is none."""
    points: Mapping[int, Mapping[str, float | None]] = field(default_factory=dict)
    """Metrics by step. None was not measured; a value that is not finite is left out and counted in a tag."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Paths of files to attach, by name within the run's artifacts; attached once."""
    data: Sequence[TrackedData] = ()
    """What it has used."""
    model: "TrackedModel | None" = None
    """What it has trained, if that is to be kept; once."""
    status: str = "RUNNING"
    """RUNNING, FINISHED, FAILED or KILLED."""


# The run that those described meanwhile are children of.
_ABOVE: ContextVar[TrackedRun | None] = ContextVar("run_above", default=None)


@contextlib.contextmanager
def under(run: TrackedRun) -> Iterator[None]:
    """Runs of jobs that are described in the body are children of this one."""
    token = _ABOVE.set(run)
    try:
        yield
    finally:
        _ABOVE.reset(token)


def describe_job(
    path: str, kind: str, verb: str, config: Mapping[str, Any], status: str = "RUNNING", **more: Any
) -> TrackedRun:
    """The run of one command.

    Args:
        path: folder of its artifact, claimed or finished.
        kind: of the artifact, as a tag.
        verb: how the key begins, and the name, before the folder.
        config: its configuration as in a manifest.
        status: of the run, if the artifact is not finished.
        more: other fields of the run; ``tags`` are added to ours.
    """
    claimed = paths.read_json(paths.join(path, RUN))
    finished = paths.exists(paths.join(path, MANIFEST))
    folder = _folder(path)
    name = f"{verb} {'/'.join(folder.split('/')[-2:])}"
    tags = {"kind": kind, "easycore.folder": folder} | more.pop("tags", {})
    return TrackedRun(
        f"{verb}-{claimed['identity'][:16]}-{claimed['nonce']}",
        name,
        params_of(config),
        tags,
        _ABOVE.get(),
        status="FINISHED" if finished else status,
        **more,
    )


def params_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What MLflow shows of a configuration: without how the command was given, or epochs that steps replace."""
    replaced = config.get("steps") is not None or config.get("device_seconds") is not None
    left_out = {*_NOT_PARAMS, *(("epochs", "train_epochs") if replaced else ())}
    return {name: value for name, value in config.items() if name not in left_out}


def data_of(parents: Mapping[str, Any], context: str = "training") -> list[TrackedData]:
    """Datasets and coresets among parents, which are artifacts or entries of a manifest (kind, path, fingerprint)."""
    entries = [parent.as_parent() if isinstance(parent, Artifact) else parent for parent in parents.values()]
    return [_data(entry["kind"], entry["path"], entry["fingerprint"], context) for entry in entries
            if entry["kind"] in _DATA_KINDS]  # fmt: skip


# Trials share them.
@functools.lru_cache(maxsize=1024)
def _data(kind: str, path: str, fingerprint: str, context: str) -> TrackedData:
    profile: dict[str, Any] = {}
    with contextlib.suppress(EasyCoreError):  # moved or deleted since then
        manifest = open_artifact(path, kind).manifest
        profile = dict(manifest["counts"])
        profile |= {name: manifest[name] for name in ("method", "score", "fraction", "balance") if name in manifest}
        profile |= {"classes": len(manifest["classes"])} if "classes" in manifest else {}
    folder = _folder(path)
    return TrackedData(f"{kind} {'/'.join(folder.split('/')[-2:])}", fingerprint, folder, profile, context)


def _folder(path: str) -> str:
    """Of an artifact, as its user named it: not the generation in it."""
    above, _, name = path.rpartition("/")
    return above if name.startswith(GENERATIONS) else path
