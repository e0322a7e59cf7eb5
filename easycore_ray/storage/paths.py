"""Every path of the system, local or remote, goes through here.

A path is a string that ``pyarrow.fs`` can open: a local path, ``s3://…`` or ``gs://…``. A file appears whole or not
at all. Content is serialised first and then put in place by one rename (local) or one upload (remote), because an
output stream on an object store completes its upload even when the code that writes to it raises.
"""

import contextlib
import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs

from easycore_ray.storage import object_store
from easycore_ray.storage.errors import EasyCoreError

__all__ = [
    "Entry",
    "absolute",
    "copy_file",
    "damage_named",
    "delete_empty_dir",
    "delete_file",
    "delete_tree",
    "entries",
    "exists",
    "in_submitted_job",
    "is_dir",
    "is_full",
    "is_remote",
    "join",
    "list_files",
    "list_subfolders",
    "locate",
    "make_dir",
    "open_input",
    "reach",
    "read_bytes",
    "read_json",
    "read_listed_json",
    "size",
    "staged",
    "write_bytes",
    "write_file",
    "write_json",
]

# Errors of a place where nothing can be written, now or later; others, of a disk that stumbles, stay what they are.
_FULL = {errno.ENOSPC, errno.EDQUOT}
_CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM}

# How often a folder is listed whose own folders come and go.
_LISTINGS = 5

# A folder that is deleted while others still work in it: the errors, and the seconds before it is tried again.
_CHANGED = {errno.ENOENT, errno.ENOTEMPTY}
_DELETE_WAITS = (0.0, 0.0, 0.1, 0.3, 1.0, 3.0)


class Entry(NamedTuple):
    """A file that is there."""

    path: str
    size: int
    """Bytes."""
    modified: float
    """Seconds since 1970, by the clock of the store."""


def is_remote(path: str) -> bool:
    """True for URIs such as ``s3://bucket/key``; False for local paths."""
    return "://" in path and not path.startswith("file://")


def in_submitted_job() -> bool:
    """True inside ``ray job submit``, where the working directory is a throw-away copy."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and "working_dir_files" in str(Path.cwd())


def absolute(path: str) -> str:
    """The path as every process of a cluster can use it.

    Relative paths are taken from ``EASYCORE_ROOT`` if that is set (it may be a URI), else from
    the working directory.

    Raises:
        EasyCoreError: for an empty path, a URI without a bucket, and a relative path inside a submitted
            job without ``EASYCORE_ROOT``: what is written there is lost when the job ends.
    """
    if not path:
        raise EasyCoreError("a path is empty; pass a folder such as runs/digits or s3://bucket/runs/digits")
    if is_remote(path):
        scheme, _, inner = path.partition("://")
        if "@" in inner.partition("/")[0]:
            # It would be kept in configurations and manifests.
            raise EasyCoreError(
                f"the {scheme}:// path holds credentials; put them into the environment (AWS_ACCESS_KEY_ID, "
                "AWS_SECRET_ACCESS_KEY) and pass the bucket alone"
            )
        if not inner.strip("/"):
            raise EasyCoreError(f"{path} names no bucket; pass e.g. s3://bucket/runs/digits")
        return path.rstrip("/")
    if path.startswith("file://"):
        path = path.removeprefix("file://")
    try:
        local = Path(path).expanduser()
    except RuntimeError as error:
        raise EasyCoreError(f"{path} names a user this machine does not know; write the folder out") from error
    if local.is_absolute():
        return os.path.normpath(local)
    root = os.environ.get("EASYCORE_ROOT")
    if root:
        return absolute(join(root, path)) if is_remote(root) else os.path.normpath(Path(root).absolute() / local)
    if in_submitted_job():
        raise EasyCoreError(
            f"{path} is relative, and a submitted job runs in a copy that is thrown away; "
            "pass an absolute path or URI, or set EASYCORE_ROOT to the folder relative paths start from"
        )
    return os.path.normpath(local.absolute())


def join(path: str, *parts: str) -> str:
    """``path/part/…`` with single slashes, for local paths and URIs alike."""
    return "/".join([path.rstrip("/"), *(part.strip("/") for part in parts)])


def locate(path: str) -> tuple[pafs.FileSystem, str]:
    """The ``pyarrow.fs`` filesystem of a path, and the path inside it.

    The filesystem may be sent to other processes; each opens a store once (see ``stores``).

    Raises:
        EasyCoreError: for other URIs than s3:// and gs://, and a bucket whose region cannot be found out.
    """
    if not is_remote(path):
        return pafs.LocalFileSystem(), path
    scheme, _, inner = path.partition("://")
    with _translate_errors(path, "opened"):
        # Not parsed as a URI: keys may hold spaces, % and ?, which mean something else there.
        return object_store.open_store(scheme, inner.partition("/")[0]), inner


def reach(*candidates: object) -> None:
    """Query each object store among these values for its bucket, once per process.

    Called before any work, so that a mistake ends within seconds; later requests are repeated for a minute
    where a store fails or is away. Values that are no remote paths are passed over.

    Raises:
        EasyCoreError: there is no such bucket, the credentials are missing or wrong, nothing answers.
    """
    flat = [one for value in candidates for one in (value if isinstance(value, tuple) else (value,))]
    named = [value for value in flat if isinstance(value, str)] + [os.environ.get("EASYCORE_ROOT", "")]
    for path in [absolute(value) for value in named if value.startswith(object_store.SCHEMES)]:
        scheme, _, inner = path.partition("://")
        with _translate_errors(path, "reached"):
            object_store.check_bucket(scheme, inner.partition("/")[0])


@contextlib.contextmanager
def _translate_errors(path: str, done: str, then: str = "") -> Iterator[None]:
    """Turn a filesystem's error into one sentence: the path, and why it cannot be opened, read and so on."""
    try:
        yield
    except OSError as error:
        why = object_store.reason(path, error) if is_remote(path) else str(error)
        raise EasyCoreError(f"{path} cannot be {done}: {why}{then}") from error


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk, or somebody's share of it, is full."""
    return isinstance(error, OSError) and error.errno in _FULL


MAKE_ROOM = "make room and run the same command again, or choose another --out"
"""What to do about a full disk."""


@contextlib.contextmanager
def _refuse_unwritable(path: str, errors: set[int] = _FULL | _CLOSED) -> Iterator[None]:
    """Turn the error of a local place where nothing can be written into one sentence that names it."""
    try:
        yield
    except OSError as error:
        if error.errno not in errors:
            raise
        hint = MAKE_ROOM if is_full(error) else "choose another --out"
        raise EasyCoreError(f"{path} cannot be written: {os.strerror(error.errno)}; {hint}") from error


def _info(path: str) -> pafs.FileInfo:
    filesystem, inner = locate(path)
    with _translate_errors(path, "reached"):
        return filesystem.get_file_info(inner)


def exists(path: str) -> bool:
    """True if a file or folder is there."""
    return _info(path).type != pafs.FileType.NotFound


def is_dir(path: str) -> bool:
    """True if the path is a folder."""
    return _info(path).type == pafs.FileType.Directory


def size(path: str) -> int:
    """Size of a file in bytes."""
    return int(_info(path).size or 0)


def list_files(path: str, *, recursive: bool = True) -> list[str]:
    """Paths of the files below a folder, or directly in it, sorted; empty if the folder does not exist."""
    return [entry.path for entry in entries(path, recursive=recursive)]


def list_subfolders(path: str) -> list[str]:
    """Paths of the folders directly in a folder, sorted; empty if it does not exist."""
    found = _list(path, recursive=False)
    return sorted(_with_scheme(path, info) for info in found if info.type == pafs.FileType.Directory)


def entries(path: str, *, recursive: bool = True) -> list[Entry]:
    """The files below a folder with size and time of change, sorted by path; empty if the folder does not exist."""
    files = [info for info in _list(path, recursive=recursive) if info.type == pafs.FileType.File]
    return sorted(Entry(_with_scheme(path, info), int(info.size or 0), (info.mtime_ns or 0) / 1e9) for info in files)


def _with_scheme(path: str, info: pafs.FileInfo) -> str:
    return (path.split("://")[0] + "://" if is_remote(path) else "") + info.path


def _list(path: str, *, recursive: bool) -> list[pafs.FileInfo]:
    """What is below a folder; looks again where a folder inside went meanwhile, as those of a run at work do."""
    filesystem, inner = locate(path)
    selector = pafs.FileSelector(inner, recursive=recursive, allow_not_found=True)
    with _translate_errors(path, "listed"):
        for _ in range(_LISTINGS - 1):
            with contextlib.suppress(FileNotFoundError):
                return filesystem.get_file_info(selector)
        return filesystem.get_file_info(selector)


def make_dir(path: str) -> None:
    """Create a folder and its parents; no error if it is there, nothing to do in an object store."""
    if is_remote(path):
        return
    with _translate_errors(path, "created", "; choose another --out"):
        pafs.LocalFileSystem().create_dir(path, recursive=True)


def delete_tree(path: str) -> None:
    """Delete a folder and all it holds; no error if it is not there.

    Begins anew, for some seconds, where files come and go meanwhile: tasks of a driver that was killed end a moment
    after it.
    """
    with _translate_errors(path, "deleted"):
        for wait in _DELETE_WAITS:
            try:
                _delete_dir(path)
                break
            except OSError as error:
                if error.errno not in _CHANGED or wait == _DELETE_WAITS[-1]:
                    raise
            time.sleep(wait)


def _delete_dir(path: str) -> None:
    filesystem, inner = locate(path)
    if is_remote(path) and "/" not in inner:
        filesystem.delete_dir_contents(inner)  # a bucket stays
    elif exists(path):
        filesystem.delete_dir(inner)


def open_input(path: str) -> pa.NativeFile:
    """A file to read in part: seekable, used as a context manager, fit for ``pq.ParquetFile``.

    Local files are mapped into memory; of remote ones only the ranges requested are fetched, so
    pass ``pre_buffer=paths.is_remote(path)`` to Parquet readers, which joins small ranges to few requests.

    Raises:
        EasyCoreError: if it is missing or unreadable.
    """
    filesystem, inner = locate(path)
    with _translate_errors(path, "read"):
        return filesystem.open_input_file(inner) if is_remote(path) else pa.memory_map(inner)


@contextlib.contextmanager
def damage_named(path: str) -> Iterator[None]:
    """Name the file in which pyarrow finds damage.

    Raises:
        EasyCoreError: the body raised an error of pyarrow's.
    """
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise EasyCoreError(f"{path} cannot be read ({error}); it is damaged") from error


def read_bytes(path: str) -> bytes:
    """The whole content of a file.

    Raises:
        EasyCoreError: if it is missing or unreadable.
    """
    filesystem, inner = locate(path)
    with _translate_errors(path, "read"), filesystem.open_input_file(inner) as stream:
        return stream.read()


def read_listed_json(entry: Entry) -> Any:
    """The content of a JSON file that ``entries`` gave, by one request: a store is not asked for its size again.

    Raises:
        EasyCoreError: if it is gone, unreadable or not JSON.
    """
    if not is_remote(entry.path):
        return read_json(entry.path)
    import pyarrow.csv as pacsv
    import pyarrow.dataset as pads

    # Of all of pyarrow, its datasets alone are told sizes. Of their formats, CSV gives lines as they are, with a
    # separator that no JSON holds.
    column = pa.schema([("line", pa.binary())])
    lines = pads.CsvFileFormat(
        pacsv.ParseOptions(delimiter="\x01", quote_char=False),
        convert_options=pacsv.ConvertOptions(column_types=column),
        read_options=pacsv.ReadOptions(column_names=column.names, block_size=entry.size + 1),
    )
    filesystem, inner = locate(entry.path)
    with _translate_errors(entry.path, "read"):
        fragment = lines.make_fragment(inner, filesystem=filesystem, file_size=entry.size)
        found = pads.Scanner.from_fragment(fragment, schema=column, use_threads=False).to_table()
    return _parse_json(entry.path, b"\n".join(found["line"].to_pylist()))


def read_json(path: str) -> Any:
    """The content of a JSON file.

    Raises:
        EasyCoreError: if it is missing, unreadable or not JSON.
    """
    return _parse_json(path, read_bytes(path))


def _parse_json(path: str, content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise EasyCoreError(f"{path} is not valid JSON: {error}; it is damaged or not ours") from error


def write_bytes(path: str, content: bytes | pa.Buffer, *, new: bool = False) -> None:
    """Put a file in place whole: afterwards it holds all of ``content``, or does not exist or is as before.

    Args:
        path: the file.
        content: all of it.
        new: fail if there is one, however late it came. Object stores are not asked: pyarrow has no conditional writes.

    Raises:
        EasyCoreError: nothing can be written there.
        FileExistsError: with ``new``.
        OSError: the disk fails in another way.
    """
    if is_remote(path):
        filesystem, inner = locate(path)
        with _translate_errors(path, "written"), filesystem.open_output_stream(inner) as stream:
            stream.write(content)
        return
    with _refuse_unwritable(path):
        _write_local(Path(path), content, new)


def _write_local(target: Path, content: bytes | pa.Buffer, new: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)
        if new and _link(temporary, target):
            Path(temporary).unlink()
        else:
            Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _link(source: str, target: Path) -> bool:
    """Make a second name of a file, unless it is taken (an error); False where the disk has no such names."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        return False
    return True


def write_file(path: str, local_file: str) -> None:
    """Put a finished local file in place whole; it is moved, or uploaded once and left for the caller to delete."""
    if is_remote(path):
        if not Path(local_file).stat().st_size:
            write_bytes(path, b"")
            return
        # Mapped, so that the one write is given all of it without holding it.
        with _translate_errors(path, "written"), pa.memory_map(local_file) as content:
            write_bytes(path, content.read_buffer())
        return
    with _refuse_unwritable(path):
        _move_local(Path(path), local_file)


def _move_local(target: Path, local_file: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    os.close(handle)
    try:
        # A rename on one file system, a copy between two; only then does the name itself change, in one step.
        shutil.move(local_file, temporary)
        with Path(temporary).open("rb+") as stream:
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def staged(path: str) -> Iterator[str]:
    """A local file for the body to write, put in place as ``path`` when the body ends well, else deleted.

    For content that is too large to hold: it lies beside a local target, in the temporary folder for a remote one.
    """
    folder = Path(tempfile.gettempdir()) if is_remote(path) else Path(path).parent
    with _refuse_unwritable(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{Path(path).name}.", suffix=".tmp")
        os.close(handle)
    try:
        with _refuse_unwritable(str(folder), _FULL):  # the body may be refused another file, which is no fault of this
            yield temporary
        write_file(path, temporary)
    finally:
        Path(temporary).unlink(missing_ok=True)


def flush(local_file: str) -> None:
    """Wait until the disk has what was written to a local file so far."""
    handle = os.open(local_file, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: str, content: Any, *, new: bool = False) -> None:
    """Put a JSON file in place whole, indented, keys in the order given; ``new`` as of ``write_bytes``."""
    write_bytes(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode(), new=new)


def copy_file(source: str, target: str) -> None:
    """Copy one file between any two paths; the target appears whole."""
    write_bytes(target, read_bytes(source))


def delete_file(path: str) -> None:
    """Delete one file; no error if it is gone already."""
    filesystem, inner = locate(path)
    with _translate_errors(path, "deleted"), contextlib.suppress(FileNotFoundError):
        filesystem.delete_file(inner)


def delete_empty_dir(path: str) -> None:
    """Delete a local folder if there is nothing in it; object stores have no folders to delete."""
    if not is_remote(path):
        with contextlib.suppress(OSError):
            Path(path).rmdir()
