"""clean(): remove what no artifact needs any more, and nothing else.

A file goes only if its name is one of ours, its reason is known, and no manifest lists it: temporary files of
interrupted writes, score parts that no table counts, files of a reduction or selection that was cut anew, training
states of finished runs. In an unfinished artifact a writer may be at work, so there a file must be old as well; and
where it is unknown what a run would resume from, or a command holds the lease, nothing of it is touched.
"""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easycore_ray.config.base import verb
from easycore_ray.config.inspection import CleanConfig
from easycore_ray.engine.run_history import COMMIT_NAME
from easycore_ray.inspection.artifact_files import Commits, Folder, commits_folder, read_commits, survey
from easycore_ray.scoring.score_table import EXTRA_SCORES
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import MANIFEST, NOT_REPLACED, RUN
from easycore_ray.storage.lease import LEASE, LEASE_FILES, is_live
from easycore_ray.storage.paths import Entry

# As paths.write_bytes names them: .NAME.XXXXXXXX.tmp beside NAME.
_TEMPORARY = re.compile(r"(.*/)?\.[^/]+\.[a-z0-9_]{8}\.tmp")
_PART = re.compile(r"epoch=(\d{5})/part-(?:\d{5}-)?[0-9a-f]+-r\d{5}\.parquet")
_PART_IN_RUN = re.compile(rf"(?:{EXTRA_SCORES}/)?table/{_PART.pattern}")
_COMMIT = re.compile(rf"(commits/(?:score|train)-[0-9a-f]{{12}}-[0-9a-f]{{8}})/({COMMIT_NAME.pattern})/[^/]+")
_SHARD = re.compile(r"shards-[0-9a-f]{8}/[^/]+\.parquet")
_STAGED = re.compile(r"staging-[0-9a-f]{8}/\d{6,}-\d{5,}(\.rows)?")
_STATES = {"state.json", "model.safetensors", "best.safetensors", "optimizer.safetensors", "carried.safetensors"}
# What lies beside the states: Ray Train's record, lists of score parts, and the states of a run in one process.
_BESIDE_STATES = re.compile(
    r"commits/(?:score|train)-[0-9a-f]{12}-[0-9a-f]{8}"
    r"(?:/checkpoint_manager_snapshot\.json|/\.validate_storage_marker|(?:/extra)?/parts-\d{5,}-[0-9a-f]{12}\.json"
    r"|(?:\.segments)?\.zip)"
)
_NUMBERED = {
    "hardness_table": re.compile(r"hardness-\d{5}(-of-\d{5})?\.parquet"),
    "coreset": re.compile(r"(coreset\.parquet/)?coreset-\d{5}(-of-\d{5})?\.parquet"),
}


@dataclass(frozen=True)
class Leftover:
    """A file that no artifact needs."""

    path: str
    size: int
    """Bytes."""
    reason: str


@verb(CleanConfig, gives=list[Leftover])
def clean(config: CleanConfig) -> list[Leftover]:
    """List the leftovers of an artifact and of those inside it; with ``yes``, remove them.

    Returns:
        What was removed, or would be, by path.

    Raises:
        EasyCoreError: if the path is no artifact, or a file cannot be removed.
    """
    root = paths.absolute(config.path)
    found = leftovers(root, older_than=config.older_than)
    if config.yes:
        for leftover in found:
            paths.delete_file(leftover.path)
        _delete_emptied(root, found)
    return found


def leftovers(path: str, *, older_than: float = 24.0) -> list[Leftover]:
    """What may be removed from an artifact, by path; nothing is changed.

    Args:
        path: its folder.
        older_than: hours a file of an unfinished artifact must have been left alone.

    Raises:
        EasyCoreError: if the path is no artifact.
    """
    before = time.time() - older_than * 3600
    path = paths.absolute(path)
    survey(path)  # refuses what is no artifact
    folders = survey(_outermost_at_work(path))
    listed = {
        paths.join(folder.path, name)
        for folder in folders if not folder.replaced
        for name in _collect_strings(folder.manifest)
    }  # fmt: skip
    found = []
    at_work = tuple(folder.path + "/" for folder in folders if _has_live_lease(folder))
    for folder in folders:
        if (folder.path + "/").startswith(at_work):
            continue
        quiet = _is_quiet(folder, folders, before)
        reasons = _finished(folder, quiet) if folder.finished else _unfinished(folder, before, quiet)
        found += [
            Leftover(entry.path, entry.size, reason)
            for entry, reason in reasons
            if entry.path not in listed and entry.path.startswith(path + "/") and _lies_within(entry.path, path)
        ]
    return sorted(found, key=lambda leftover: leftover.path)


def _outermost_at_work(path: str) -> str:
    """The outermost artifact that holds this one and is unfinished or being written, or the path itself."""
    found, above = path, path.rpartition("/")[0]
    while above.rstrip("/") and not above.endswith(":/"):
        unfinished = paths.exists(paths.join(above, RUN)) and not paths.exists(paths.join(above, MANIFEST))
        if unfinished or paths.exists(paths.join(above, LEASE)):
            found = above
        above = above.rpartition("/")[0]
    return found


def _finished(folder: Folder, quiet: bool) -> Iterator[tuple[Entry, str]]:
    """Leftovers of a finished artifact: no one writes there any more, unless the run it is part of is unfinished."""
    if not quiet:
        return
    listed = _collect_strings(folder.manifest)
    numbered = _NUMBERED.get(folder.kind)
    for entry in folder.files:
        name = folder.relative(entry)
        if folder.replaced:
            if name != MANIFEST and not name.startswith(NOT_REPLACED):
                yield entry, "file of a result that has been replaced"
        elif _TEMPORARY.fullmatch(name):
            yield entry, "temporary file of an interrupted write"
        elif LEASE_FILES.fullmatch(name):
            yield entry, "lease of a command that has ended"
        elif _SHARD.fullmatch(name):
            yield entry, "partial result of a finished run"
        elif _STAGED.fullmatch(name):
            yield entry, "staging file of an import that has ended"
        elif folder.kind in ("score_table", "feature_table") and _PART.fullmatch(name):
            if name not in listed:
                yield entry, "score part of a lost worker; the table does not list it"
        elif numbered and numbered.fullmatch(name):
            # Only where the manifest lists files of this sort is one that it leaves out known to be left over.
            beside = {other for other in listed if other.rpartition("/")[0] == name.rpartition("/")[0]}
            if name not in listed and any(numbered.fullmatch(other) for other in beside):
                yield entry, f"not among the files of this {folder.kind.replace('_', ' ')}"
        elif folder.kind in ("scoring_run", "checkpoint") and (_is_state(name) or _BESIDE_STATES.fullmatch(name)):
            yield entry, "training state of a finished run"


def _unfinished(folder: Folder, before: float, quiet: bool) -> Iterator[tuple[Entry, str]]:
    """Leftovers of an unfinished artifact, so old that no one can be writing them.

    What the newest commit has overtaken is never used again, even while the run continues. What is newer than the
    newest commit may be about to be committed, so it counts as left over only where nothing at all was written lately.
    """
    commits = read_commits(folder)
    for entry in folder.files:
        name = folder.relative(entry)
        if entry.modified >= before:
            continue
        if _TEMPORARY.fullmatch(name):
            yield entry, "temporary file of an interrupted write"
        elif _STAGED.fullmatch(name):
            yield entry, "staging file of an interrupted import, which stages anew"
        elif commits is not None and _is_lost_part(folder, name, commits, quiet):
            yield entry, "score part of a lost worker; the newest commit does not list it"
        elif commits is not None and _is_superseded(folder, name, commits):
            yield entry, f"training state the run cannot go on from; epoch {commits.epoch} is committed"


def _has_live_lease(folder: Folder) -> bool:
    return any(folder.relative(entry) == LEASE for entry in folder.files) and is_live(folder.path)


def _is_lost_part(folder: Folder, name: str, commits: Commits, quiet: bool) -> bool:
    if folder.kind != "scoring_run":
        return False
    match = _PART_IN_RUN.fullmatch(name)
    return match is not None and name not in commits.parts and (quiet or int(match[1]) <= commits.epoch)


def _is_superseded(folder: Folder, name: str, commits: Commits) -> bool:
    """A state that Ray Train has not registered, not later than the newest that it has."""
    match = _COMMIT.fullmatch(name)
    if match is None or not _is_state(name) or match[1] != commits_folder(folder) or not commits.registered:
        return False
    reached = (int(match[3]), int(match[4] or 0))
    return f"{match[1]}/{match[2]}" not in commits.registered and reached <= (commits.epoch, commits.segments)


def _is_state(name: str) -> bool:
    return _COMMIT.fullmatch(name) is not None and name.rpartition("/")[2] in _STATES


def _is_quiet(folder: Folder, folders: list[Folder], before: float) -> bool:
    """True if no unfinished artifact that a folder is, or lies in, was written to lately."""
    above = [other for other in folders if not other.finished and _holds(other, folder)]
    below = [inner for inner in folders if any(_holds(other, inner) for other in above)]
    return all(entry.modified < before for inner in below for entry in inner.files)


def _holds(outer: Folder, inner: Folder) -> bool:
    return (inner.path + "/").startswith(outer.path + "/")


def _collect_strings(content: Any) -> set[str]:
    """Everything in a manifest that could be the path of a file: all its strings."""
    if isinstance(content, str):
        return {content}
    values = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    return {name for value in values for name in _collect_strings(value)}


def _lies_within(path: str, root: str) -> bool:
    """False for what a symbolic link brings in from elsewhere."""
    return paths.is_remote(path) or Path(path).resolve().is_relative_to(Path(root).resolve())


def _delete_emptied(root: str, removed: list[Leftover]) -> None:
    """Folders that held nothing but what was removed, the innermost first."""
    emptied: set[str] = set()
    for leftover in removed:
        folder = leftover.path.rpartition("/")[0]
        while len(folder) > len(root):
            emptied.add(folder)
            folder = folder.rpartition("/")[0]
    for folder in sorted(emptied, key=len, reverse=True):
        paths.delete_empty_dir(folder)
