"""The files of a source: names, sizes and times, without reading any.

Takes the path of a folder, a file or an object store's prefix, gives a ``Listing``. What would make the result depend
on luck is refused: a folder that is reached twice, a link to nowhere, a name that no manifest can hold.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from easycore_ray.storage import paths
from easycore_ray.storage.errors import EasyCoreError


class SourceFile(NamedTuple):
    """A file of a source."""

    name: str
    """Relative to the root of its listing."""
    size: int
    """Bytes."""
    modified: int
    """Nanoseconds since 1970, by the clock of the disk or store."""


# What is recorded of the files of a source: path, bytes, nanoseconds since 1970 as SourceFile has it.
FILES_SCHEMA = pa.schema({"path": pa.string(), "size": pa.int64(), "modified": pa.int64()})


class Listing(NamedTuple):
    """All files below a root, sorted by name; what file managers hide is counted only."""

    root: str
    files: list[SourceFile]
    hidden: int

    def having(self, suffixes: tuple[str, ...]) -> list[SourceFile]:
        """The files whose names end in one of the suffixes, in any case."""
        return [file for file in self.files if file.name.lower().endswith(suffixes)]


def to_table(root: str, files: Sequence[SourceFile]) -> pa.Table:
    """Files of a listing with their whole paths, as ``FILES_SCHEMA``."""
    names = pa.array([file.name for file in files], pa.string())
    columns = [
        pc.binary_join_element_wise(root.rstrip("/"), names, "/"),
        [file.size for file in files],
        [file.modified for file in files],
    ]
    return pa.table(columns, schema=FILES_SCHEMA)


def list_tree(path: str) -> Listing:
    """List a folder with all folders inside it, or one file as the only one of its folder.

    Links are followed.

    Raises:
        EasyCoreError: nothing is there, a folder is reached twice, a link leads nowhere, a name is not UTF-8, a folder
            cannot be listed.
    """
    if not paths.exists(path):
        raise EasyCoreError(f"{path} does not exist; pass --source FOLDER, digits or torchvision:NAME")
    if not paths.is_dir(path):
        root, name = path.rsplit("/", 1)
        return Listing(root, [_one_file(path, name)], 0)
    if not paths.is_remote(path):
        return _walk(path)
    found = [(entry.path.removeprefix(path).lstrip("/"), entry) for entry in paths.entries(path)]
    shown = [(name, entry) for name, entry in found if not any(map(is_hidden, name.split("/")))]
    files = [SourceFile(name, entry.size, int(entry.modified * 1e9)) for name, entry in shown]
    return Listing(path, sorted(files), len(found) - len(files))


def list_folders(path: str) -> list[str]:
    """Names of the folders directly below a path, hidden ones left out."""
    names = [folder.rpartition("/")[2] for folder in paths.list_subfolders(path)]
    return [name for name in names if not is_hidden(name)]


def is_hidden(name: str) -> bool:
    """True for what file managers and archivers leave behind."""
    return name.startswith(".") or name == "__MACOSX"


def count_by_suffix(names: Iterable[str], hidden: int) -> dict[str, int]:
    """How many files there are of each suffix, in lower case; ``hidden`` ones as such."""
    counts = Counter(PurePosixPath(name).suffix.lower() or "without suffix" for name in names)
    if hidden:
        counts["hidden"] = hidden
    return dict(sorted(counts.items()))


def name_some(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many there are if those are not all."""
    return ", ".join(names[:most]) + (f", … ({len(names):,} in all)" if len(names) > most else "")


def _one_file(path: str, name: str) -> SourceFile:
    filesystem, inner = paths.locate(path)
    info = filesystem.get_file_info(inner)
    return SourceFile(name, int(info.size or 0), int(info.mtime_ns or 0))


def _walk(root: str) -> Listing:
    """A local folder. Every folder is entered once, whatever links lead to it."""
    files: list[SourceFile] = []
    hidden = 0
    seen: dict[tuple[int, int], str] = {}
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        status = Path(folder).stat()
        first = seen.setdefault((status.st_dev, status.st_ino), folder)
        if first != folder:
            raise EasyCoreError(
                f"{folder} and {first} are the same folder, so that its files would be imported twice; remove the "
                "link, or pass a folder inside"
            )
        folders, found, passed = _scan(root, folder)
        files += found
        hidden += passed
        # Taken from the end: in order of their names, so that a message is always the same.
        waiting += sorted(folders, reverse=True)
    return Listing(root, sorted(files), hidden)


def _scan(root: str, folder: str) -> tuple[list[str], list[SourceFile], int]:
    """Folders, files and the number of hidden entries directly in a folder."""
    folders: list[str] = []
    files: list[SourceFile] = []
    hidden = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                _check_name(folder, entry.name)
                if is_hidden(entry.name):
                    hidden += 1
                elif _is_folder(entry):
                    folders.append(entry.path)
                elif entry.is_file():
                    status = entry.stat()
                    name = entry.path.removeprefix(root).lstrip("/")
                    files.append(SourceFile(name, status.st_size, status.st_mtime_ns))
                elif entry.is_symlink():
                    target = Path(entry.path).readlink()
                    raise EasyCoreError(
                        f"{entry.path} is a broken link, to {target}; restore what it leads to, or remove it"
                    )
    except OSError as error:
        raise EasyCoreError(f"{folder} cannot be listed: {error}; see its permissions") from error
    return folders, files, hidden


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether it is one, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _check_name(folder: str, name: str) -> None:
    """Refuse a name that is not text."""
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(name).decode(errors="backslashreplace")
        raise EasyCoreError(
            f"{folder} holds {shown}, whose name is not UTF-8; rename it (convmv -f latin1 -t utf8 does it for all)"
        ) from None
