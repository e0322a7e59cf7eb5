"""Paths: absolute once, local and remote alike, and files that are whole or not there."""

import contextlib
import json
import resource
import threading
import time
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from fsspec.implementations.local import LocalFileSystem

from easycore_ray.storage import paths
from easycore_ray.storage.errors import EasyCoreError


@pytest.fixture
def submitted(tmp_path, monkeypatch):
    """The surroundings of a job under ``ray job submit``: its variable, and a throw-away working directory."""
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.delenv("EASYCORE_ROOT", raising=False)
    return copy


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """``s3://`` served from a folder: the code for object stores, without one."""
    folder = tmp_path / "object_store"
    folder.mkdir()
    # Like an object store, it needs no folder before a file.
    store = pafs.PyFileSystem(pafs.FSSpecHandler(LocalFileSystem(auto_mkdir=True)))
    filesystem = pafs.SubTreeFileSystem(str(folder), store)
    real = paths.locate
    monkeypatch.setattr(
        paths, "locate", lambda path: (filesystem, path[5:]) if path.startswith("s3://") else real(path)
    )
    (folder / "bucket" / "runs").mkdir(parents=True)
    return folder


# ---------------------------------------------------------------- absolute


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("runs/a", "/home/me/runs/a"),
        ("./runs//a/", "/home/me/runs/a"),
        ("../b", "/home/b"),
        ("/data/../runs", "/runs"),
        ("file:///data/x", "/data/x"),
        ("s3://bucket/runs/", "s3://bucket/runs"),
        ("gs://bucket", "gs://bucket"),
        ("~/x", "/home/you/x"),
    ],
)
def test_absolute_is_the_path_every_process_can_use(given, expected, monkeypatch):
    """Relative paths start in the working directory; URIs and absolute paths stay what they are."""
    monkeypatch.delenv("EASYCORE_ROOT", raising=False)
    monkeypatch.setenv("HOME", "/home/you")
    monkeypatch.setattr(Path, "absolute", lambda self: Path("/home/me") / self)

    assert paths.absolute(given) == expected


@pytest.mark.parametrize(
    ("root", "expected"),
    [("/shared", "/shared/runs/a"), ("s3://bucket/me/", "s3://bucket/me/runs/a")],
)
def test_easycore_root_is_where_relative_paths_start(root, expected, monkeypatch):
    """The root may be a folder or a URI; absolute paths do not care."""
    monkeypatch.setenv("EASYCORE_ROOT", root)

    assert paths.absolute("runs/a") == expected
    assert paths.absolute("/runs/a") == "/runs/a"


@pytest.mark.usefixtures("submitted")
def test_a_relative_path_in_a_submitted_job_is_refused():
    """Its working directory is thrown away, and the result with it."""
    with pytest.raises(EasyCoreError, match=r"runs/a is relative.*EASYCORE_ROOT"):
        paths.absolute("runs/a")


@pytest.mark.usefixtures("submitted")
def test_a_submitted_job_takes_absolute_paths_and_a_root(monkeypatch):
    """What survives the job is allowed."""
    assert paths.absolute("/runs/a") == "/runs/a"
    assert paths.absolute("s3://bucket/a") == "s3://bucket/a"
    monkeypatch.setenv("EASYCORE_ROOT", "/shared")
    assert paths.absolute("runs/a") == "/shared/runs/a"


@pytest.mark.parametrize(
    ("given", "message"),
    [("", "a path is empty"), ("s3://", "names no bucket"), ("~nobody-of-this-name/x", "does not know")],
)
def test_what_is_no_path_is_refused(given, message):
    """Each with its own sentence."""
    with pytest.raises(EasyCoreError, match=message):
        paths.absolute(given)


@pytest.mark.parametrize(
    ("path", "parts", "expected"),
    [
        ("/a", ("b", "c.json"), "/a/b/c.json"),
        ("/a/", ("/b/",), "/a/b"),
        ("s3://bucket/", ("x/y",), "s3://bucket/x/y"),
        ("/", ("a",), "/a"),
    ],
)
def test_join_puts_one_slash_between_parts(path, parts, expected):
    """Also where either side brings its own."""
    assert paths.join(path, *parts) == expected


@pytest.mark.parametrize("path", ["ftp://host/x", "http://host/x", "s4://bucket/x"])
def test_an_unknown_scheme_is_refused_with_those_that_work(path):
    """The message lists what is allowed."""
    with pytest.raises(EasyCoreError, match="allowed are local paths, s3:// and gs://"):
        paths.read_bytes(path)


# ---------------------------------------------------------------- whole or not at all


@pytest.mark.parametrize("before", [None, b"the old content"])
def test_a_write_that_fails_midway_leaves_what_was_there(tmp_path, before):
    """The file may not grow beyond 64 KiB: a real write error after a part of the content is on disk."""
    target = tmp_path / "file"
    if before is not None:
        target.write_bytes(before)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            paths.write_bytes(str(target), bytes(1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([] if before is None else [before])


def test_a_failed_rename_leaves_nothing_behind(tmp_path, monkeypatch):
    """Not even a temporary file."""

    def fail(*_):
        raise OSError("no rename")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no rename"):
        paths.write_bytes(str(tmp_path / "file"), b"content")

    assert list(tmp_path.iterdir()) == []


def test_a_reader_never_sees_a_part_of_a_file(tmp_path):
    """While two contents replace each other, every read gives one of them, whole."""
    target = str(tmp_path / "file")
    contents = [b"a" * 3_000_000, b"b" * 2_000_000]
    paths.write_bytes(target, contents[0])
    stop = threading.Event()

    def write():
        while not stop.is_set():
            for content in contents:
                paths.write_bytes(target, content)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = [paths.read_bytes(target) in contents for _ in range(60)]
    finally:
        stop.set()
        writer.join()
    assert all(seen)


@pytest.mark.parametrize("failures", [4, 5])
def test_a_folder_is_listed_again_where_one_inside_went_meanwhile(tmp_path, monkeypatch, failures):
    """As those of old checkpoints do while a run is inspected; but not for ever."""

    class Vanishing:
        left = failures

        def get_file_info(self, selector):
            self.left -= 1
            if self.left >= 0:
                raise FileNotFoundError(2, "Cannot list directory", "epoch")
            return pafs.LocalFileSystem().get_file_info(selector)

    filesystem = Vanishing()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(paths, "locate", lambda path: (filesystem, path))
    if failures == 4:
        assert paths.list_files(str(tmp_path)) == [f"{tmp_path}/file"]
    else:
        with pytest.raises(EasyCoreError, match=r"cannot be listed: .*Cannot list directory"):
            paths.list_files(str(tmp_path))


def test_json_that_cannot_be_written_leaves_no_file(tmp_path):
    """NaN is not JSON; it is refused before anything is opened."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        paths.write_json(str(tmp_path / "x.json"), {"loss": float("nan")})

    assert list(tmp_path.iterdir()) == []


def test_written_files_can_be_read_by_others(tmp_path):
    """Temporary files are private; finished ones are not."""
    paths.write_bytes(str(tmp_path / "a" / "file"), b"x")

    assert (tmp_path / "a" / "file").stat().st_mode & 0o777 == 0o644


# ---------------------------------------------------------------- files, local and remote


class TestBothKindsOfStore:
    """One behaviour, whichever filesystem is behind a path."""

    @pytest.fixture(params=["local", "s3://bucket/runs"])
    def root(self, request, tmp_path, bucket):
        """A folder that is there and empty."""
        if request.param != "local":
            return request.param
        (tmp_path / "local").mkdir()
        return str(tmp_path / "local")

    def test_what_is_written_is_read(self, root):
        """Bytes and JSON come back, with their size."""
        paths.write_bytes(f"{root}/a/b.bin", b"12345")
        paths.write_json(f"{root}/a/c.json", {"k": [1, None, "é"]})

        assert paths.read_bytes(f"{root}/a/b.bin") == b"12345"
        assert paths.read_json(f"{root}/a/c.json") == {"k": [1, None, "é"]}
        assert paths.size(f"{root}/a/b.bin") == 5

    def test_files_are_listed_sorted_with_their_whole_path(self, root):
        """Recursively or not; folders are not files; a missing folder has none."""
        for name in ("b", "a/2", "a/1"):
            paths.write_bytes(f"{root}/{name}", b"")

        assert paths.list_files(root) == [f"{root}/a/1", f"{root}/a/2", f"{root}/b"]
        assert paths.list_files(f"{root}/missing") == []

    def test_folders_come_and_go(self, root):
        """Making and deleting are repeatable."""
        for _ in range(2):
            paths.make_dir(f"{root}/x/y")
        paths.write_bytes(f"{root}/x/y/file", b"")

        assert paths.is_dir(f"{root}/x/y")
        assert paths.exists(f"{root}/x/y/file")
        assert not paths.is_dir(f"{root}/x/y/file")
        for _ in range(2):
            paths.delete_tree(f"{root}/x")
        assert not paths.exists(f"{root}/x")

    def test_what_cannot_be_read_is_named(self, root):
        """Missing, a folder, not JSON: one sentence each, with the path."""
        paths.write_bytes(f"{root}/bad.json", b"{")

        with pytest.raises(EasyCoreError, match=rf"{root}/missing cannot be read"):
            paths.read_bytes(f"{root}/missing")
        with pytest.raises(EasyCoreError, match=rf"{root} cannot be read"):
            paths.read_bytes(root)
        with pytest.raises(EasyCoreError, match=rf"{root}/bad.json is not valid JSON"):
            paths.read_json(f"{root}/bad.json")

    def test_copies_cross_between_stores(self, root, tmp_path):
        """Local to either, and back."""
        (tmp_path / "source").write_bytes(b"content")
        paths.copy_file(str(tmp_path / "source"), f"{root}/copy")
        paths.copy_file(f"{root}/copy", str(tmp_path / "back"))

        assert (tmp_path / "back").read_bytes() == b"content"


@pytest.mark.parametrize("remote", [False, True])
def test_an_opened_input_gives_any_stretch_of_a_file(remote, tmp_path, bucket):
    """Reads what lies at an offset, to the end and past it, locally and remotely; empty files too."""
    root = "s3://bucket/runs" if remote else str(tmp_path)
    content = bytes(range(256)) * 40
    paths.write_bytes(f"{root}/a", content)
    paths.write_bytes(f"{root}/empty", b"")
    with paths.open_input(f"{root}/a") as stream:
        assert stream.size() == len(content)
        stream.seek(1000)
        assert stream.read(300) == content[1000:1300]
        assert stream.read_at(20, len(content) - 10) == content[-10:]
    with paths.open_input(f"{root}/empty") as stream:
        assert stream.read() == b""


@pytest.mark.parametrize("remote", [False, True])
def test_an_input_that_is_not_there_is_named(remote, tmp_path, bucket):
    """A missing file cannot be opened: one sentence that names it."""
    root = "s3://bucket/runs" if remote else str(tmp_path)
    with pytest.raises(EasyCoreError, match=r"/nowhere cannot be read"):
        paths.open_input(f"{root}/nowhere")


def test_json_keeps_the_order_of_keys(tmp_path):
    """A manifest reads from what it is to the details."""
    paths.write_json(str(tmp_path / "x.json"), {"z": 1, "a": 2})

    assert list(json.loads((tmp_path / "x.json").read_text())) == ["z", "a"]


def test_a_folder_below_a_file_cannot_be_made(tmp_path):
    """The sentence names the path and says what to do."""
    (tmp_path / "file").write_text("")
    with pytest.raises(EasyCoreError, match=r"file/x cannot be created.*choose another --out"):
        paths.make_dir(str(tmp_path / "file" / "x"))


# ---------------------------------------------------------------- files too large to hold


@pytest.mark.parametrize("content", [b"", b"rows" * 100_000])
@pytest.mark.parametrize("target", ["local", "remote"])
def test_a_local_file_is_put_in_place_whole(tmp_path, bucket, target, content):
    """Moved beside a local target's old content, or uploaded; no temporary file is left there."""
    path = "s3://bucket/runs/a/file" if target == "remote" else str(tmp_path / "out" / "a" / "file")
    (tmp_path / "mine").write_bytes(content)
    paths.write_file(path, str(tmp_path / "mine"))
    assert paths.read_bytes(path) == content
    with paths.staged(path) as local:
        Path(local).write_bytes(b"more")
        assert paths.read_bytes(path) == content
    assert paths.read_bytes(path) == b"more"
    assert [name.rsplit("/", 1)[-1] for name in paths.list_files(path.rsplit("/", 1)[0])] == ["file"]
    assert not Path(local).exists()


@pytest.mark.parametrize("target", ["local", "remote"])
def test_a_body_that_fails_leaves_the_file_as_it_was(tmp_path, bucket, target):
    """Whatever it had staged until then."""
    path = "s3://bucket/runs/file" if target == "remote" else str(tmp_path / "out" / "file")
    paths.write_bytes(path, b"before")

    def fail():
        with paths.staged(path) as local:
            Path(local).write_bytes(b"half")
            raise RuntimeError(local)

    with pytest.raises(RuntimeError) as caught:
        fail()
    assert paths.read_bytes(path) == b"before"
    assert not Path(str(caught.value)).exists()
    assert len(paths.list_files(path.rsplit("/", 1)[0])) == 1


def test_a_file_that_the_body_may_not_read_is_no_fault_of_the_place_it_writes_to(tmp_path):
    """The error is the body's own; only a disk that is full under it is the target's."""
    with pytest.raises(PermissionError, match="secret"), paths.staged(f"{tmp_path}/x"):
        raise PermissionError(13, "Permission denied", "secret")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("way", ["deleted", "written"])
def test_a_folder_in_which_others_still_work_is_deleted(tmp_path, way):
    """Tasks of a driver that was killed outlive it for a moment."""
    folder = tmp_path / "shards"
    inner = [folder / f"{number}" for number in range(40)]
    for place in inner:
        place.mkdir(parents=True)
        for number in range(100):
            (place / f"{number}.tmp").touch()
    started, until = threading.Event(), time.monotonic() + 0.5

    def work():
        started.set()
        for place in reversed(inner):
            for number in range(100):
                with contextlib.suppress(FileNotFoundError):
                    (place / f"{number}.tmp").unlink() if way == "deleted" else (place / f"{number}.new").touch()
        while way == "written" and time.monotonic() < until:
            with contextlib.suppress(FileNotFoundError):
                (inner[-1] / "last.new").touch()
                (inner[-1] / "last.new").unlink()

    at_work = threading.Thread(target=work)
    at_work.start()
    started.wait()
    paths.delete_tree(str(folder))
    at_work.join()

    assert not folder.exists()
