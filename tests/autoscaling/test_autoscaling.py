"""Jobs submitted to an idle cluster that Ray's own autoscaler lets grow: nodes come, do the work and go."""

import sys
import time

import pytest

from easycore_ray import prepare
from tests.autoscaling.cluster import autoscaling_cluster

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

IDLE_SECONDS = 20


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return prepare(source="digits", out=str(tmp_path_factory.mktemp("digits") / "dataset")).path


@pytest.mark.parametrize("version", ["v2", pytest.param("v1", marks=pytest.mark.soak)])
def test_a_job_brings_the_nodes_it_needs_and_they_go_again(tmp_path, dataset, version):
    """Two workers of two CPUs on nodes of two; what no node can hold is refused; nothing keeps a node."""
    command = [sys.executable, "-m", "jobs.score", "--dataset", dataset, "--model", "cnn", "--width", "4",
               "--epochs", "1", "--batch-size", "120", "--tracking-uri", "none"]  # fmt: skip
    with autoscaling_cluster(version, {"train": {"CPU": 2}}, most=2, idle_seconds=IDLE_SECONDS) as cluster:
        done = cluster.submit(*command, "--out", str(tmp_path / "a"), "--num-workers", "2", "--cpus-per-worker", "2")
        assert done.returncode == 0, done.stdout + done.stderr
        assert (tmp_path / "a" / "manifest.json").exists()
        assert cluster.started() == {"train": 2}

        started = time.monotonic()
        refused = cluster.submit(*command, "--out", str(tmp_path / "b"), "--num-workers", "1", "--cpus-per-worker", "3")
        assert refused.returncode != 0
        assert "score: {CPU: 3} is wanted at the same time, and the cluster can never give that" in refused.stdout
        assert time.monotonic() - started < 60
        assert not (tmp_path / "b").exists()

        ended = time.monotonic() + IDLE_SECONDS + 30
        while cluster.running() and time.monotonic() < ended:
            time.sleep(1)
        assert cluster.running() == set()
        assert cluster.started() == {"train": 2}
