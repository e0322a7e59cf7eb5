"""What lies in the folder of an artifact: its own files, the artifacts inside it, and how far an unfinished one is.

One listing is enough: a folder with a manifest is a finished artifact, one with only a claim an unfinished one, and
every file belongs to the innermost of these that holds it. Nothing here changes anything. No Ray.
"""

import zipfile
from dataclasses import dataclass, field
from typing import Any

from easycore_ray.engine.run_history import COMMIT_NAME, read_local_commit, train_run_name
from easycore_ray.scoring.score_table import CARRIED_EXTRA, EXTRA_SCORES, read_part_lists
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import FORMAT_VERSION, GENERATION, GENERATIONS, MANIFEST, RUN
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.storage.names import check_listed_names
from easycore_ray.storage.paths import Entry

# Ray Train keeps here which checkpoints it has registered; what is not in it is never gone on from.
_SNAPSHOT = "checkpoint_manager_snapshot.json"
_STATE = "state.json"


@dataclass(frozen=True)
class Folder:
    """An artifact, finished or not, with the files that belong to it and to none inside it."""

    path: str
    manifest: dict[str, Any] | None = field(repr=False)
    """None: unfinished."""
    claim: dict[str, Any] | None = field(repr=False)
    """Content of ``run.json``; None if there is none, as for parts of a run that are finished with it."""
    files: tuple[Entry, ...] = field(repr=False)

    @property
    def kind(self) -> str:
        """What the folder holds or is to hold."""
        found = self.manifest if self.manifest is not None else self.claim
        assert found is not None
        return str(found["kind"])

    @property
    def finished(self) -> bool:
        """True if the manifest is there."""
        return self.manifest is not None

    @property
    def replaced(self) -> bool:
        """True if the manifest names a generation, which has all the files; what lies beside it is left over."""
        return self.manifest is not None and GENERATION in self.manifest

    def relative(self, entry: Entry) -> str:
        """Path of one of its files within the folder."""
        return entry.path[len(self.path) + 1 :]


@dataclass(frozen=True)
class Commits:
    """The training states an unfinished run can resume from."""

    registered: tuple[str, ...]
    """Folders within the artifact, oldest first; the last one is where the run resumes."""
    epoch: int
    """Completed epochs in the newest; −1 if nothing is committed."""
    segments: int
    """Segments done since then."""
    parts: frozenset[str]
    """Score parts, as paths within the folder, that any of them lists."""
    rows: int
    """Score rows the newest one lists."""
    history: tuple[dict[str, float], ...]
    """Metrics of every committed epoch."""


def survey(path: str) -> list[Folder]:
    """The artifact at a path, first, and all artifacts inside it, by path.

    Raises:
        EasyCoreError: if the path is no artifact (names those below it), or of a newer format.
    """
    path = paths.absolute(path)
    files = paths.entries(path)
    split = [entry.path.rpartition("/") for entry in files]
    marked = sorted({folder for folder, _, name in split if name in (MANIFEST, RUN)})
    there = {entry.path for entry in files}
    opened = {
        folder: found
        for folder in marked
        if (found := _read_manifest_and_claim(folder, there, strict=folder == path)) is not None
    }
    if path not in opened:
        raise EasyCoreError(_no_artifact(path, list(opened)))
    owned: dict[str, list[Entry]] = {folder: [] for folder in opened}
    for entry in files:
        owned[_owner(entry.path, opened)].append(entry)
    order = [path, *(folder for folder in opened if folder != path)]
    return [Folder(folder, *opened[folder], tuple(owned[folder])) for folder in order]


def current(folders: list[Folder]) -> list[Folder]:
    """Those of a survey that count: not the rest of what was replaced, and no replacement that is not finished."""
    named = {paths.join(f.path, f.manifest[GENERATION]) for f in folders if f.manifest and f.replaced}
    begun = [
        folder.path + "/"
        for folder in folders[1:]
        if folder.path.rpartition("/")[2].startswith(GENERATIONS) and folder.path not in named
    ]
    return [f for f in folders if not f.replaced and not (f.path + "/").startswith(tuple(begun))]


def read_commits(folder: Folder) -> Commits | None:
    """What an unfinished run has committed; None where that is unknown, so that nothing may be concluded."""
    at = commits_folder(folder)
    relative = {folder.relative(entry) for entry in folder.files}
    if at is None:
        return None
    local = tuple(name for name in (f"{at}.zip", f"{at}.segments.zip") if name in relative)
    if local:
        return _read_local_commits(folder, local)
    if f"{at}/{_SNAPSHOT}" not in relative:
        # Ray writes it with the first registration. States without it: something is missing that we do not understand.
        if any(name.startswith(f"{at}/epoch-") for name in relative):
            return None
        return Commits((), -1, 0, frozenset(), 0, ())
    try:
        snapshot = paths.read_json(paths.join(folder.path, at, _SNAPSHOT))
        names = [result["checkpoint_dir_name"] for result in snapshot["checkpoint_results"]]
        latest = snapshot["latest_checkpoint_result"]
        newest = latest["checkpoint_dir_name"] if latest else None
        names = [name for name in names if name != newest] + ([newest] if newest else [])
        if not all(COMMIT_NAME.fullmatch(name) for name in names):
            return None
        states = [paths.read_json(paths.join(folder.path, at, name, _STATE)) for name in names]
        last: dict[str, Any] = states[-1] if states else {"epoch": -1, "history": [], "carried": {}}
        return Commits(
            tuple(f"{at}/{name}" for name in names),
            int(last["epoch"]),
            int((last.get("progress") or {"segments": 0})["segments"]),
            _listed_parts(paths.join(folder.path, at), states),
            sum(
                entry["rows"]
                for kind in ("", CARRIED_EXTRA)
                for name in ("parts", "part_lists")
                for entry in last["carried"].get(kind + name, [])
            ),
            tuple(last["history"]),
        )
    except (EasyCoreError, KeyError, TypeError, AttributeError):
        return None


def _read_local_commits(folder: Folder, names: tuple[str, ...]) -> Commits | None:
    """What a run in one process has committed: at the end of its last whole epoch, and within the next."""
    try:
        states = [read_local_commit(paths.join(folder.path, name)) for name in names]
        last = states[-1] if states[-1]["epoch"] == states[0]["epoch"] else states[0]
        segments = int((last.get("progress") or {"segments": 0})["segments"])
        return Commits(names, int(last["epoch"]), segments, frozenset(), 0, tuple(last["history"]))
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None


def _listed_parts(storage: str, states: list[dict[str, Any]]) -> frozenset[str]:
    """Paths of the score parts that training states name, of the epoch under way and in lists of those before."""
    found: list[str] = []
    for kind, below in (("", ""), (CARRIED_EXTRA, EXTRA_SCORES + "/")):
        named = [entry["path"] for state in states for entry in state["carried"].get(f"{kind}parts", [])]
        lists = {entry["path"]: entry for state in states for entry in state["carried"].get(f"{kind}part_lists", [])}
        named += [part.path for part in read_part_lists(paths.join(storage, below), lists.values())]
        found += [f"{below}table/{path}" for path in named]
    return frozenset(found)


def commits_folder(folder: Folder) -> str | None:
    """Where an unfinished run keeps its training states, within its folder; None for kinds that have none."""
    labels = {"scoring_run": "score", "checkpoint": "train"}
    if folder.claim is None or folder.kind not in labels:
        return None
    return f"commits/{train_run_name(labels[folder.kind], folder.claim)}"


def _read_manifest_and_claim(
    folder: str, there: set[str], *, strict: bool
) -> tuple[dict[str, Any] | None, dict[str, Any] | None] | None:
    """Manifest and claim of a folder, or None if they are not ours; ``strict``: what cannot be read is an error."""
    manifest = _read_marker(folder, MANIFEST, {"kind", "fingerprint"}, there, strict)
    claim = _read_marker(folder, RUN, {"kind", "identity", "nonce"}, there, strict)
    if manifest is not None and manifest.get("format_version", 0) > FORMAT_VERSION:
        if strict:
            raise EasyCoreError(
                f"{folder} has format_version {manifest['format_version']}, this release reads up to {FORMAT_VERSION}; "
                "upgrade easycore-ray"
            )
        # Its files are its own, and nothing is known of them.
        manifest = {"kind": "unknown", "fingerprint": "", "config": {}, "parents": {}}
    if manifest is None and f"{folder}/{MANIFEST}" in there:
        if strict:
            raise EasyCoreError(f"{folder}/{MANIFEST} is not one of ours: it has no kind and fingerprint")
        manifest = {"kind": "unknown", "fingerprint": "", "config": {}, "parents": {}}
    return None if manifest is None and claim is None else (manifest, claim)


def _read_marker(folder: str, name: str, needed: set[str], there: set[str], strict: bool) -> dict[str, Any] | None:
    if f"{folder}/{name}" not in there:
        return None
    try:
        found = paths.read_json(f"{folder}/{name}")
        check_listed_names(found, f"{folder}/{name}")
    except EasyCoreError:
        if strict:
            raise
        return None
    return found if isinstance(found, dict) and needed <= set(found) else None


def _owner(path: str, opened: dict[str, Any]) -> str:
    """The innermost artifact that holds a file; the outermost holds them all."""
    folder = path.rpartition("/")[0]
    return folder if folder in opened else _owner(folder, opened)


def _no_artifact(path: str, below: list[str]) -> str:
    """What to say of a folder that is none of ours."""
    if not paths.exists(path):
        return f"{path} does not exist; pass the folder of an artifact, e.g. of a scoring run"
    if not below:
        return f"{path} is no artifact (it has no {MANIFEST}) and holds none; pass the folder of an artifact"
    some = [folder[len(path) + 1 :] for folder in below[:8]]
    more = f" and {len(below) - len(some)} more" if len(below) > len(some) else ""
    return f"{path} is no artifact (it has no {MANIFEST}); pass one of those below it: {', '.join(some)}{more}"
