"""Artifacts: folders whose ``manifest.json``, written last, says what they are and how they came to be.

A finished artifact is reused, an unfinished one resumed, a different one refused. What ``--overwrite`` makes instead
of it grows in a folder of its own inside, a *generation*; only when that is whole does the manifest name it, by one
write, and the old files go. *Identity* is the hash of everything that changes the result (configuration, number and
threads of training workers, the fingerprints of the parents; not reservations or logging) and decides which of the
three applies. Library versions and the CPU are recorded beside it. *Fingerprint* is the hash of the content, and is
what children record of their parents.
"""

import datetime
import hashlib
import json
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from easycore_ray.storage import lease, paths
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.storage.lease import LEASE_FILES, Lease
from easycore_ray.storage.machine import cpu
from easycore_ray.storage.names import check_listed_names
from easycore_ray.storage.provenance import code_version, git_commit, versions
from easycore_ray.storage.takeover import copy_state

FORMAT_VERSION = 2
"""Of manifests and identities. Version 1 (releases 0.1) is read by ``inspect`` alone."""
ALGORITHM_VERSIONS = {
    "dataset": 2,
    "scoring_run": 2,
    "hardness_table": 1,
    "coreset": 1,
    "checkpoint": 2,
    "evaluation": 1,
    "sweep": 2,
    "report": 1,
    "study": 2,
    "analysis": 1,
    "audit": 1,
    "pipeline": 2,
}
"""By kind of artifact: raised when the same configuration and inputs come to give another result."""
MANIFEST = "manifest.json"
RUN = "run.json"
DIVERGED = "diverged.json"
"""In an unfinished training run: that it diverged, as ``identity``, ``problem`` and the ``device_seconds`` it took."""

# What is left of a claim or lease whose process was killed while it wrote it, see paths.write_bytes.
_HALF_CLAIM = re.compile(r"\.(run|lease(-[0-9a-f]{8})?)\.json\.[a-z0-9_]{8}\.tmp")

GENERATION = "generation"
"""Key of a manifest: the folder inside, a finished artifact itself, where the files that replaced others lie."""
GENERATIONS = "gen-"
"""How their names begin."""
NOT_REPLACED = ("mlflow.db", "mlflow_artifacts", "results.")
"""What stays where an artifact is replaced: MLflow's runs, also of those before it, and the results of a study, which
grow from run to run."""
_MADE_OF_ARTIFACTS = {"pipeline", "sweep", "study"}
"""Kinds that go on in place where they are taken over: each artifact inside is claimed by itself."""


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
    ``lease`` is what lets no other job write there; ``run`` the ``run.json`` that names it.
    """

    path: str
    kind: str
    identity: str
    nonce: str
    resumed: bool
    replaces: str | None = None
    lease: Lease | None = None
    run: str | None = None

    def check(self) -> None:
        """Before each commit: make sure that no other job has taken over.

        Raises:
            EasyCoreError: one has.
        """
        if self.lease is not None:
            lease.check_lease(self.lease, self.run)

    def inside(self, name: str, kind: str, identity: str) -> "Claim":
        """The claim of an artifact that lies inside this one and is made with it."""
        return Claim(paths.join(self.path, name), kind, identity, self.nonce, self.resumed, None, self.lease, self.run)


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
    if manifest is None:
        wanted = (kind or "artifact").replace("_", " ")
        if not paths.exists(path):
            raise EasyCoreError(f"{path} does not exist; pass the folder of a finished {wanted}")
        state = "still being written" if _is_claimed(path) else f"no {wanted}: it has no {MANIFEST}"
        raise EasyCoreError(f"{path} is {state}; pass the folder of a finished {wanted}, or run its job (again) first")
    return _opened(path, manifest, kind, any_version)


def from_manifest(path: str, manifest: Any, kind: str) -> Artifact:
    """A finished artifact whose manifest has been read; arguments and errors as of ``open_artifact``."""
    return _opened(_content_folder(path, manifest), manifest, kind, False)


def _opened(path: str, manifest: Any, kind: str | None, any_version: bool) -> Artifact:
    if not isinstance(manifest, dict) or "kind" not in manifest or "fingerprint" not in manifest:
        raise EasyCoreError(f"{path}/{MANIFEST} is not one of ours: it has no kind and fingerprint")
    if not any_version or manifest.get("format_version", 1) > FORMAT_VERSION:
        refuse_other_format(path, manifest)
    if kind is not None and manifest["kind"] != kind:
        raise EasyCoreError(
            f"{path} holds a {manifest['kind'].replace('_', ' ')}, not a {kind.replace('_', ' ')}; check the path"
        )
    return Artifact(path, manifest)


def content_folder(path: str) -> str:
    """The folder the files of an artifact lie in: its own, or the generation that its manifest names.

    What lies in an artifact that was replaced is found under the old path as well, as a pipeline's ``scores`` are.
    """
    return _locate(path)[0]


def work_folder(path: str) -> str:
    """The folder the files of an artifact lie in, or, of an unfinished one, grow in."""
    entry = None if paths.exists(paths.join(path, MANIFEST)) else _read_entry(paths.join(path, RUN), "nonce")
    return paths.join(path, entry[GENERATION]) if entry and GENERATION in entry else content_folder(path)


def _locate(path: str) -> tuple[str, Any]:
    """The content folder of an artifact, and what its manifest holds; None without one."""
    if paths.exists(paths.join(path, MANIFEST)):
        manifest = paths.read_json(paths.join(path, MANIFEST))
        return _content_folder(path, manifest), manifest
    above, _, name = path.rpartition("/")
    if not above.strip("/") or above.endswith(":/") or paths.exists(path):
        return path, None
    moved = paths.join(content_folder(above), name)
    return _locate(moved) if paths.exists(moved) else (path, None)


def _content_folder(path: str, manifest: Any) -> str:
    check_listed_names(manifest, paths.join(path, MANIFEST))
    generation = manifest.get(GENERATION) if isinstance(manifest, dict) else None
    return path if generation is None else paths.join(path, generation)


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


def claim(path: str, kind: str, identity: str, *, overwrite: bool = False, take_over: bool = False) -> Artifact | Claim:
    """Decide, before any work, what is to be done at ``path``, and let no other job write there meanwhile.

    Nothing that is there is changed, also with ``overwrite``, before ``finish``; ``take_over``: from a job at work.

    Returns:
        The finished ``Artifact`` if one of this identity is there, else a ``Claim`` to write (or go on
        writing) it.

    Raises:
        EasyCoreError: if the folder holds another artifact (unless ``overwrite``), something that is not
            ours (always), cannot be written, or is being written by another job.
    """
    git_commit()
    found = _claimable(path, kind, identity, overwrite)
    if found is None or overwrite or "fingerprint" not in found:
        held = lease.acquire(path, found, take_over=take_over)
        found = _claimable(path, kind, identity, overwrite)  # what it was before the lease was had counts no more
        if found is None:
            made = Claim(path, kind, identity, uuid.uuid4().hex[:8], False, None, held, paths.join(path, RUN))
            _write_run(made)
            return made
        if overwrite:
            return _claim_replacement(path, kind, identity, found, held)
        if "fingerprint" not in found:
            return _resume(path, found, held)
        lease.release(path, finished=True)
    return Artifact(paths.join(path, found[GENERATION]) if GENERATION in found else path, found)


def _claimable(path: str, kind: str, identity: str, overwrite: bool) -> dict[str, Any] | None:
    """The manifest or claim at a path, or None for a free place; an error if it may not be claimed."""
    found = _found(path)
    if found is None:
        return None
    if found.get("kind") != kind:
        held = str(found.get("kind")).replace("_", " ")
        raise EasyCoreError(f"{path} holds a {held}, not a {kind.replace('_', ' ')}; choose another --out")
    refuse_other_format(path, found)
    if not overwrite and found.get("identity") != identity:
        raise EasyCoreError(
            f"{path} holds a {kind.replace('_', ' ')} made with another configuration or input; "
            "choose another --out, or pass --overwrite to replace it"
        )
    return found


def _resume(path: str, found: Mapping[str, Any], held: Lease) -> Claim:
    """Go on with an unfinished artifact: in place, or in another folder if who was taken over may still write there."""
    before = generation = found.get(GENERATION)
    if moves := _is_fenced(found, held):
        generation = GENERATIONS + uuid.uuid4().hex[:8]
    folder, replaces = (paths.join(path, generation), path) if generation else (path, None)
    begun, run = _beginning(found), paths.join(path, RUN)
    made = Claim(folder, found["kind"], found["identity"], found["nonce"], True, replaces, held, run)
    if moves:
        _move_state(paths.join(path, before) if before else path, made, begun)
    _write_run(made, **begun, **({GENERATION: generation} if generation else {}))
    if moves and before:
        paths.delete_tree(paths.join(path, before))
    return made


def _is_fenced(found: Mapping[str, Any], held: Lease) -> bool:
    return found.get("lease") in held.fenced and found["kind"] not in _MADE_OF_ARTIFACTS


def _beginning(found: Mapping[str, Any]) -> dict[str, Any]:
    """What the ``run.json`` of an unfinished artifact says of its beginning."""
    return {key: found[key] for key in ("created", "versions", "cpu") if key in found}


def _move_state(source: str, made: Claim, begun: Mapping[str, Any]) -> None:
    """Copy what an artifact resumes from to where another claim goes on; only that is read from then on."""
    copy_state(source, made.path)
    assert made.lease is not None
    lease.check_lease(made.lease)
    _write_run(replace(made, run=paths.join(made.path, RUN)), **begun)


def _claim_replacement(path: str, kind: str, identity: str, found: Mapping[str, Any], held: Lease) -> Artifact | Claim:
    """Claim a generation inside an artifact, or go on with that of an interrupted replacement."""
    current = found.get(GENERATION, "")
    new = paths.join(path, GENERATIONS + uuid.uuid4().hex[:8])
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
            whole = _replace(path, Artifact(folder, manifest))
            lease.release(path, finished=True)
            return whole
        at = new if _is_fenced(claimed, held) else folder
        made = Claim(at, kind, identity, claimed["nonce"], True, path, held, paths.join(at, RUN))
        if at != folder:
            _move_state(folder, made, _beginning(claimed))
        _write_run(made, replaces=current, **_beginning(claimed))
        if at != folder:
            paths.delete_tree(folder)
        return made
    made = Claim(new, kind, identity, new[-8:], False, path, held, paths.join(new, RUN))
    _write_run(made, replaces=current)
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
        if name != MANIFEST and not name.startswith(NOT_REPLACED) and not plot and not LEASE_FILES.fullmatch(name):
            paths.delete_file(file)
    return made


def reopen(finished: Artifact, path: str, *, take_over: bool = False) -> Claim:
    """Claim a finished artifact in a folder again, to add to it; it stays as it is until ``finish``."""
    run = paths.join(finished.path, RUN)
    entry = paths.read_json(run)
    held = lease.acquire(path, entry, take_over=take_over)
    replaces = None if finished.path == path else path
    made = Claim(finished.path, finished.kind, entry["identity"], entry["nonce"], True, replaces, held, run)
    _write_run(made, **_beginning(entry))
    return made


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
            with suppress(EasyCoreError):
                made.check()
                paths.delete_tree(made.path)
            lease.release(made.replaces or made.path)
        raise


def _found(path: str) -> dict[str, Any] | None:
    """The manifest at ``path``, or the claim of an unfinished one, or None for a free place."""
    found = _read_entry(paths.join(path, MANIFEST), "fingerprint") or _read_entry(paths.join(path, RUN), "nonce")
    if found is not None:
        return found
    if paths.exists(path) and not paths.is_dir(path):
        raise EasyCoreError(f"{path} is a file; --out must be a folder that is new, empty or ours")
    names = [file[len(path) + 1 :] for file in paths.list_files(path)]
    foreign = [name for name in names if not _HALF_CLAIM.fullmatch(name) and not lease.is_of_lease(path, name)]
    if foreign:
        raise EasyCoreError(
            f"{path} is not empty and not ours (it holds {foreign[0]}); choose another --out, --overwrite does not help"
        )
    return None


def _read_entry(file: str, needed: str) -> dict[str, Any] | None:
    """A manifest or claim, or None if there is none of ours."""
    found = paths.read_json(file) if paths.exists(file) else None
    check_listed_names(found, file)
    return found if isinstance(found, dict) and {"kind", "identity", needed} <= set(found) else None


def _write_run(made: Claim, **more: Any) -> None:
    """Write the ``run.json`` of a claim, with the generation that it ``replaces`` or in which it goes on."""
    assert made.run is not None
    assert made.lease is not None
    entry: dict[str, Any] = {
        "kind": made.kind,
        "format_version": FORMAT_VERSION,
        "identity": made.identity,
        "nonce": made.nonce,
        "created": _now(),
        "versions": versions(),
        "cpu": cpu(),
        **more,
        **lease.entry_of(made.lease, made.run.rpartition("/")[0]),
    }
    try:
        paths.write_json(made.run, entry)
    except OSError as error:
        raise EasyCoreError(f"{made.path} cannot be written: {error}; choose another --out") from error
    lease.check_lease(made.lease)


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

    Raises:
        EasyCoreError: another job has taken over; nothing is written.
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
        **code_version(),
    }
    made.check()
    try:
        paths.write_json(paths.join(made.path, MANIFEST), manifest, new=True)
    except FileExistsError:
        made.check()
        paths.write_json(paths.join(made.path, MANIFEST), manifest)
    artifact = Artifact(made.path, manifest)
    if made.replaces is not None:
        made.check()
        _replace(made.replaces, artifact)
    lease.release(made.replaces or made.path, finished=True)
    return artifact


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
