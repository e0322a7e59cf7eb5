"""Jobs submitted to an idle cluster that Ray's own autoscaler lets grow: nodes come, do the work and go."""

import json
import os
import subprocess
import sys
import time

import pytest

from tests.autoscaling.cluster import ROOT, autoscaling_cluster
from tests.autoscaling.provider import OWN_MOUNTS

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

IDLE_SECONDS = 30
# Version 1 is known by its configuration, version 2 is asked.
REFUSED = {
    "v1": "a worker wants 3 CPUs and 0 GPUs on one node, and no node the cluster can ever give is that large",
    "v2": "score: {CPU: 3} is wanted at the same time, and the cluster can never give that",
}


def can_mount():
    """Whether a process here may have mounts of its own."""
    return not subprocess.run([*OWN_MOUNTS, "mount", "-t", "tmpfs", "none", "/mnt"], check=False).returncode


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Made by a process of its own: its Ray is gone before the cluster starts."""
    path = str(tmp_path_factory.mktemp("digits") / "dataset")
    command = [sys.executable, "-m", "jobs.prepare", "--source", "digits", "--out", path]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return path


@pytest.mark.parametrize("version", ["v2", pytest.param("v1", marks=pytest.mark.soak)])
def test_a_job_brings_the_nodes_it_needs_and_they_go_again(tmp_path, dataset, version):
    """Two workers of two CPUs on nodes of two; what no node can hold is refused, and so is a folder of the head."""
    command = [sys.executable, "-m", "jobs.score", "--dataset", dataset, "--model", "cnn", "--width", "4",
               "--epochs", "1", "--batch-size", "120", "--tracking-uri", "none"]  # fmt: skip
    private = tmp_path / "private" if can_mount() else None
    if private is not None:
        private.mkdir()
    shape = {"train": {"CPU": 2}}
    with autoscaling_cluster(version, shape, most=2, idle_seconds=IDLE_SECONDS, hidden=private) as cluster:
        done = cluster.submit(*command, "--out", str(tmp_path / "a"), "--num-workers", "2", "--cpus-per-worker", "2")
        assert done.returncode == 0, done.stdout + done.stderr
        manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
        assert f"Job '{manifest['job']['submission_id']}' succeeded" in done.stdout
        assert cluster.started() == {"train": 2}, cluster.events()

        if private is not None:
            unseen = cluster.submit(*command, "--out", f"{private}/b", "--num-workers", "2", "--cpus-per-worker", "2")
            assert unseen.returncode != 0
            assert f"does not see {private}/b, in which this job writes; choose an --out that all" in unseen.stdout
            assert not list((private / "b").glob("table/epoch=*"))

        started = time.monotonic()
        refused = cluster.submit(*command, "--out", str(tmp_path / "c"), "--num-workers", "1", "--cpus-per-worker", "3")
        assert refused.returncode != 0
        assert REFUSED[version] in refused.stdout
        assert time.monotonic() - started < 60
        assert not (tmp_path / "c").exists()

        ended = time.monotonic() + IDLE_SECONDS + 30
        while cluster.running() and time.monotonic() < ended:
            time.sleep(1)
        assert cluster.running() == set()
