"""Artifacts: folders whose ``manifest.json``, written last, says what they are and how they came to be.

A finished artifact is reused, an unfinished one resumed, a different one refused. What ``--overwrite`` makes instead
of it grows in a folder of its own inside, a *generation*; only when that is whole does the manifest name it, by one
write, and the old files go. *Identity* is the
hash of everything that changes the result (configuration, number and threads of training workers, the fingerprints of
the parents; not reservations or logging) and decides which of the three applies. Library versions and the CPU are
recorded beside it. *Fingerprint* is the hash of
the content, and is what children record of their parents.
"""

import datetime
import functools
import hashlib
import importlib.metadata
import json
import re
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from easycore_ray.storage import paths
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.storage.machine import cpu

FORMAT_VERSION = 2
"""Of manifests and identities. Version 1 (releases 0.1) is read by ``inspect`` alone."""
ALGORITHM_VERSIONS = {
    "dataset": 1,
    "scoring_run": 1,
    "hardness_table": 1,
    "coreset": 1,
    "checkpoint": 1,
    "evaluation": 1,
    "sweep": 1,
    "report": 1,
    "study": 1,
    "analysis": 1,
    "pipeline": 1,
}
"""By kind of artifact: raised when the same configuration and inputs come to give another result."""
MANIFEST = "manifest.json"
RUN = "run.json"
DIVERGED = "diverged.json"
"""In an unfinished training run: that it diverged, as ``identity``, ``problem`` and the ``device_seconds`` it took."""

# What is left of a claim whose process was killed while it wrote it, see paths.write_bytes.
_HALF_CLAIM = re.compile(re.escape(f".{RUN}.") + r"[a-z0-9_]{8}\.tmp")

GENERATION = "generation"
"""Key of a manifest: the folder inside, a finished artifact itself, where the files that replaced others lie."""
GENERATIONS = "gen-"
"""How their names begin."""
NOT_REPLACED = ("mlflow.db", "mlflow_artifacts", "results.")
"""What stays where an artifact is replaced: MLflow's runs, also of those before it, and the results of a study, which
grow from run to run."""

# Reported in every manifest: what could change a number from one machine to the next.
_PACKAGES = ("easycore-ray", "ray", "torch", "torchvision", "pyarrow", "numpy", "mlflow", "pyautoattack")


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: the folder its files lie in, and its manifest."""

    path: str
    manifest: dict[str, Any] = field(repr=False)

    @property
    def kind(self) -> str:
        """What the folder holds: dataset, score_table, hardness_table, coreset, checkpoint and so on."""
        return self.manifest["kind"]

    @property
    def fingerprint(self) -> str:
        """Hash of the content (hex)."""
        return self.manifest["fingerprint"]

    def __fspath__(self) -> str:
        """Its folder, so that an artifact is taken wherever a path is."""
        return self.path

    def as_parent(self) -> dict[str, str]:
        """The entry a child's manifest keeps of this artifact."""
        return {"kind": self.kind, "path": self.path, "fingerprint": self.fingerprint}


@dataclass(frozen=True)
class Claim:
    """The right to write an artifact: made before the work, kept in ``run.json`` until it is finished.

    ``nonce`` distinguishes this attempt series from any earlier one with the same identity, so that
    state kept under a name (Ray Train's) can never be picked up by accident. ``path`` is where its files go, and
    ``replaces`` the artifact that they replace in the end, in whose folder they lie; None if they replace nothing.
    """

    path: str
    kind: str
    identity: str
    nonce: str
    resumed: bool
    replaces: str | None = None


def identity(kind: str, config: Mapping[str, Any], parents: Mapping[str, str]) -> str:
    """Hash (hex) of what decides an artifact's content: its kind, configuration and parents' fingerprints."""
    content = {
        "kind": kind,
        "format_version": FORMAT_VERSION,
        "algorithm_version": ALGORITHM_VERSIONS[kind],
        "config": dict(config),
        "parents": dict(parents),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def open_artifact(path: str, kind: str | None = None, *, any_version: bool = False) -> Artifact:
    """Open a finished artifact.

    Args:
        path: its folder.
        kind: what it must be.
        any_version: also take one of an older format, to look at.

    Raises:
        EasyCoreError: if the folder is missing, unfinished, of another kind, or of another format.
    """
    path, manifest = _locate(paths.absolute(path))
    wanted = (kind or "artifact").replace("_", " ")
    if manifest is None:
        if not paths.exists(path):
            raise EasyCoreError(f"{path} does not exist; pass the folder of a finished {wanted}")
        state = "still being written" if _is_claimed(path) else f"no {wanted}: it has no {MANIFEST}"
        raise EasyCoreError(f"{path} is {state}; pass the folder of a finished {wanted}, or run its job (again) first")
    if not isinstance(manifest, dict) or "kind" not in manifest or "fingerprint" not in manifest:
        raise EasyCoreError(f"{path}/{MANIFEST} is not one of ours: it has no kind and fingerprint")
    if not any_version or manifest.get("format_version", 1) > FORMAT_VERSION:
        refuse_other_format(path, manifest)
    if kind is not None and manifest["kind"] != kind:
        raise EasyCoreError(f"{path} holds a {manifest['kind'].replace('_', ' ')}, not a {wanted}; check the path")
    return Artifact(path, manifest)


def content_folder(path: str) -> str:
    """The folder the files of an artifact lie in: its own, or the generation that its manifest names.

    What lies in an artifact that was replaced is found under the old path as well, as a pipeline's ``scores`` are.
    """
    return _locate(path)[0]


def _locate(path: str) -> tuple[str, Any]:
    """The content folder of an artifact, and what its manifest holds; None without one."""
    if paths.exists(paths.join(path, MANIFEST)):
        manifest = paths.read_json(paths.join(path, MANIFEST))
        generation = manifest.get(GENERATION) if isinstance(manifest, dict) else None
        return path if generation is None else paths.join(path, generation), manifest
    above, _, name = path.rpartition("/")
    if not above.strip("/") or above.endswith(":/") or paths.exists(path):
        return path, None
    moved = paths.join(content_folder(above), name)
    return _locate(moved) if paths.exists(moved) else (path, None)


def refuse_other_format(path: str, found: Mapping[str, Any]) -> None:
    """Refuse what another release wrote.

    Raises:
        EasyCoreError: says what to do about it.
    """
    version = found.get("format_version", 1)
    if version > FORMAT_VERSION:
        raise EasyCoreError(
            f"{path} has format_version {version}, this release reads up to {FORMAT_VERSION}; upgrade easycore-ray"
        )
    if version < FORMAT_VERSION:
        made = found.get("versions", {}).get("easycore-ray", "0.1.0")
        raise EasyCoreError(f"{path} was made by {made} (format {version}); run again into another --out")


def _is_claimed(path: str) -> bool:
    """True for an unfinished artifact, and for what lies directly in one, as a scoring run's table does."""
    above = path.rpartition("/")[0]
    return paths.exists(paths.join(path, RUN)) or (
        paths.exists(paths.join(above, RUN)) and not paths.exists(paths.join(above, MANIFEST))
    )


def claim(path: str, kind: str, identity: str, *, overwrite: bool = False) -> Artifact | Claim:
    """Decide, before any work, what is to be done at ``path``.

    Nothing that is there is changed, also with ``overwrite``, before ``finish``.

    Returns:
        The finished ``Artifact`` if one of this identity is there, else a ``Claim`` to write (or go on
        writing) it.

    Raises:
        EasyCoreError: if the folder holds another artifact (unless ``overwrite``), something that is not
            ours (always), or cannot be written.
    """
    git_commit()
    found = _found(path)
    if found is not None and found.get("kind") != kind:
        held = str(found.get("kind")).replace("_", " ")
        raise EasyCoreError(f"{path} holds a {held}, not a {kind.replace('_', ' ')}; choose another --out")
    if found is not None:
        refuse_other_format(path, found)
    if found is not None and overwrite:
        return _claim_replacement(path, kind, identity, found)
    if found is not None and found.get("identity") != identity:
        raise EasyCoreError(
            f"{path} holds a {kind.replace('_', ' ')} made with another configuration or input; "
            "choose another --out, or pass --overwrite to replace it"
        )
    if found is not None and "fingerprint" in found:
        return Artifact(paths.join(path, found[GENERATION]) if GENERATION in found else path, found)
    if found is not None:
        return Claim(path, kind, identity, found["nonce"], resumed=True)
    made = Claim(path, kind, identity, uuid.uuid4().hex[:8], resumed=False)
    _write_claim(made)
    return made


def _claim_replacement(path: str, kind: str, identity: str, found: Mapping[str, Any]) -> Artifact | Claim:
    """Claim a generation inside an artifact, or go on with that of an interrupted replacement."""
    current = found.get(GENERATION, "")
    for folder in paths.list_subfolders(path):
        name = folder.rpartition("/")[2]
        if not name.startswith(GENERATIONS) or name == current:
            continue
        claimed = _read_entry(paths.join(folder, RUN), "nonce") or {}
        if tuple(map(claimed.get, ("kind", "identity", "replaces"))) != (kind, identity, current):
            paths.delete_tree(folder)  # replaced already, or never finished
            continue
        manifest = _read_entry(paths.join(folder, MANIFEST), "fingerprint")
        if manifest is not None:
            return _replace(path, Artifact(folder, manifest))
        return Claim(folder, kind, identity, claimed["nonce"], resumed=True, replaces=path)
    nonce = uuid.uuid4().hex[:8]
    made = Claim(paths.join(path, GENERATIONS + nonce), kind, identity, nonce, resumed=False, replaces=path)
    _write_claim(made, current)
    return made


def _replace(path: str, made: Artifact) -> Artifact:
    """Make a finished generation the artifact's content, by one write, and remove what was before."""
    generation = made.path.rpartition("/")[2]
    paths.write_json(paths.join(path, MANIFEST), {**made.manifest, GENERATION: generation})
    for folder in paths.list_subfolders(path):
        if folder.rpartition("/")[2] not in (generation, *NOT_REPLACED):
            paths.delete_tree(folder)
    for file in paths.list_files(path, recursive=False):
        name = file.rpartition("/")[2]
        plot = made.kind == "study" and name.endswith(".png")
        if name != MANIFEST and not name.startswith(NOT_REPLACED) and not plot:
            paths.delete_file(file)
    return made


def reopen(finished: Artifact, path: str) -> Claim:
    """Claim a finished artifact in a folder again, to add to it; it stays as it is until ``finish``."""
    entry = paths.read_json(paths.join(finished.path, RUN))
    replaces = None if finished.path == path else path
    return Claim(finished.path, finished.kind, entry["identity"], entry["nonce"], resumed=True, replaces=replaces)


def peek(path: str, kind: str, identity: str) -> str:
    """What ``claim`` would find at a path, without claiming it: nothing, finished, unfinished or other.

    Raises:
        EasyCoreError: another release wrote it, which no job replaces.
    """
    found = _found(path)
    if found is None:
        return "nothing"
    refuse_other_format(path, found)
    if (found.get("kind"), found.get("identity")) != (kind, identity):
        return "other"
    return "finished" if "fingerprint" in found else "unfinished"


@contextmanager
def giving_back(made: Claim) -> Iterator[None]:
    """Give a fresh claim back if the body is refused: a mistake must not block the folder for the corrected call.

    For what comes before the work; an unfinished run that was resumed is never touched.
    """
    try:
        yield
    except EasyCoreError:
        if not made.resumed:
            paths.delete_tree(made.path)
        raise


def _found(path: str) -> dict[str, Any] | None:
    """The manifest at ``path``, or the claim of an unfinished one, or None for a free place."""
    found = _read_entry(paths.join(path, MANIFEST), "fingerprint") or _read_entry(paths.join(path, RUN), "nonce")
    if found is not None:
        return found
    if paths.exists(path) and not paths.is_dir(path):
        raise EasyCoreError(f"{path} is a file; --out must be a folder that is new, empty or ours")
    foreign = [name for name in paths.list_files(path) if not _HALF_CLAIM.fullmatch(name[len(path) + 1 :])]
    if foreign:
        raise EasyCoreError(
            f"{path} is not empty and not ours (it holds {foreign[0]}); choose another --out, --overwrite does not help"
        )
    return None


def _read_entry(file: str, needed: str) -> dict[str, Any] | None:
    """A manifest or claim, or None if there is none of ours."""
    found = paths.read_json(file) if paths.exists(file) else None
    return found if isinstance(found, dict) and {"kind", "identity", needed} <= set(found) else None


def _write_claim(made: Claim, replaced: str | None = None) -> None:
    """Write ``run.json``; with the generation that is replaced, "" for the files of an artifact's own folder."""
    entry: dict[str, Any] = {
        "kind": made.kind,
        "format_version": FORMAT_VERSION,
        "identity": made.identity,
        "nonce": made.nonce,
        "created": _now(),
        "versions": versions(),
        "cpu": cpu(),
    }
    if replaced is not None:
        entry["replaces"] = replaced
    try:
        paths.write_json(paths.join(made.path, RUN), entry)
    except OSError as error:
        raise EasyCoreError(f"{made.path} cannot be written: {error}; choose another --out") from error


def finish(
    made: Claim,
    *,
    fingerprint: str,
    config: Mapping[str, Any],
    parents: Mapping[str, Artifact],
    counts: Mapping[str, int],
    wall_seconds: float,
    device_seconds: float | None = None,
    **details: Any,
) -> Artifact:
    """Write the manifest, which makes the artifact finished, and replaces another. All its files must be in place.

    Args:
        made: the claim under which the work was done.
        fingerprint: hash of the content (hex).
        config: the full configuration, as saved with ``--config`` in mind.
        parents: the artifacts this one was made from, by role.
        counts: row counts and the like.
        wall_seconds: time from claim to finish in this process.
        device_seconds: seconds × devices (workers) spent computing, if it differs.
        details: further content of the manifest, by kind.
    """
    manifest = {
        "kind": made.kind,
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint,
        "identity": made.identity,
        "created": _now(),
        "counts": dict(counts),
        "wall_seconds": round(wall_seconds, 3),
        "device_seconds": round(wall_seconds if device_seconds is None else device_seconds, 3),
        "config": dict(config),
        "parents": {role: parent.as_parent() for role, parent in parents.items()},
        **details,
        "versions": versions(),
        "cpu": cpu(),
        "git_commit": git_commit(),
    }
    paths.write_json(paths.join(made.path, MANIFEST), manifest)
    artifact = Artifact(made.path, manifest)
    return artifact if made.replaces is None else _replace(made.replaces, artifact)


def content_hash(*parts: bytes | str) -> str:
    """sha256 (hex) over the parts, each preceded by its length so that boundaries count."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def study_fingerprint(trials: Mapping[str, Mapping[str, Any]]) -> str:
    """Fingerprint of a study: of the records in its results file, by key."""
    return content_hash(*(f"{key} {record}" for key, record in sorted(trials.items())))


def versions() -> dict[str, str]:
    """Installed versions of the packages that can change a result."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def git_commit() -> str | None:
    """Commit of the source tree this package runs from, or None outside a repository.

    That of the first call in this process, which ``claim`` makes before any work: the tree may move on meanwhile, the
    code that runs does not.
    """
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
