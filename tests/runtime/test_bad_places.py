"""Full, closed and missing folders: one line that names the place, within seconds, with real file systems."""

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import easycore_ray
from easycore_ray.config.stages import PrepareConfig
from easycore_ray.data.ingest.builtin_sources import torchvision_source
from easycore_ray.engine.failures import describe_error
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import claim
from easycore_ray.storage.errors import EasyCoreError
from tests.runtime.test_connect import CONNECT, said_by_connecting

FULL = "cannot be written: No space left on device; make room and run the same command again, or choose another --out"


@contextlib.contextmanager
def mounted(folder, options):
    """A file system of its own at a folder."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=False)
    if done.returncode:
        pytest.skip("no right to mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path):
    """A folder with room for a file of 4 KiB, and not for a second one."""
    with mounted(tmp_path / "small", "size=4k") as folder:
        yield folder


class TestFullDisk:
    def test_files_that_do_not_fit_name_their_place(self, small_disk):
        """Nothing is left of them."""
        path = f"{small_disk}/file"
        with pytest.raises(EasyCoreError, match=f"{path} {FULL}"):
            paths.write_bytes(path, bytes(8192))
        with pytest.raises(EasyCoreError, match=f"{small_disk} {FULL}"), paths.staged(path) as local:
            Path(local).write_bytes(bytes(8192))
        assert list(small_disk.iterdir()) == []

    def test_a_claim_that_does_not_fit(self, small_disk):
        """The first that a job writes."""
        (small_disk / "other").write_bytes(bytes(4096))
        with pytest.raises(EasyCoreError, match=f"{small_disk}/x/lease.json {FULL}"):
            claim(f"{small_disk}/x", "dataset", "k")

    def test_workers_are_not_tried_again(self, small_disk):
        """Another attempt would find the disk as full."""
        try:
            (small_disk / "file").write_bytes(bytes(8192))
        except OSError as error:
            found = describe_error(error)
        assert found.repeats
        assert found.text.endswith(f"No space left on device; {paths.MAKE_ROOM}")

    @pytest.mark.ray
    def test_an_import_that_does_not_fit(self, ray_session, tmp_path):
        """Its claim and its lease do; the images do not, and the folder is free again."""
        with mounted(tmp_path / "small", "size=16k") as disk:
            with pytest.raises(EasyCoreError, match=rf"{disk}/x/staging-[0-9a-f]+\S* {FULL}"):
                easycore_ray.prepare(PrepareConfig(source="digits", out=f"{disk}/x"))
            assert not (disk / "x").exists()

    @pytest.mark.slow
    def test_ray_does_not_start_on_it(self, small_disk):
        """Left to itself it waits for half a minute."""
        said = said_by_connecting(RAY_TMPDIR=str(small_disk), RAY_ADDRESS="local")
        assert f"Ray cannot start on this machine: the disk of {small_disk} is full" in said


def test_a_read_only_disk(tmp_path):
    """Refused before any work."""
    with mounted(tmp_path / "closed", "size=4k,ro") as folder:
        with pytest.raises(
            EasyCoreError, match=r"lease\.json cannot be written: Read-only file system; choose another"
        ):
            claim(f"{folder}/x", "dataset", "k")
        with pytest.raises(EasyCoreError, match="file cannot be written: Read-only file system"):
            paths.write_bytes(f"{folder}/file", b"")


def without_privileges(code, **environment):
    """What a process says whose user may do no more than permissions of files allow, root included."""
    command = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*command, sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    if "setpriv: " in done.stderr:
        pytest.skip("no right to give up privileges")
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


@pytest.fixture
def closed(tmp_path):
    """A folder in which only others may write."""
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    return folder


@pytest.mark.slow
def test_a_folder_of_ray_that_is_another_users():
    """It is named, and what to do."""
    if os.geteuid() != 0:
        pytest.skip("no right to make another user's folder")
    with tempfile.TemporaryDirectory(prefix="ec", dir="/tmp") as folder:  # short, for the paths of sockets
        Path(folder, "ray").mkdir(mode=0o755)
        os.chown(f"{folder}/ray", 65534, 65534)
        said = without_privileges(CONNECT, RAY_TMPDIR=folder, RAY_ADDRESS="local")
    assert "Ray cannot start on this machine: [Errno 13] Permission denied: " in said
    assert f"its files go to {folder}/ray; set RAY_TMPDIR to a folder of yours" in said


@pytest.mark.slow
def test_a_home_that_ray_cannot_make(closed):
    """Its token lies there; another RAY_TMPDIR would not help."""
    said = without_privileges(CONNECT, HOME=f"{closed}/home", RAY_ADDRESS="local", RAY_AUTH_MODE="token")
    assert f"Permission denied: '{closed}/home'; it keeps a token there; set HOME to a folder of yours" in said


def test_a_cache_folder_that_cannot_be_made(tmp_path, monkeypatch):
    """Where downloads would go; below a file, so that root cannot make it either."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("EASYCORE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(EasyCoreError, match=r"downloads cannot be kept: .*; set EASYCORE_CACHE to a folder of yours"):
        torchvision_source("MNIST")
