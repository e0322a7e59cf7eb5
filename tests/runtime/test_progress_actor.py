"""The progress actor on a real cluster: where it lives, and what a slow answer or a dead process costs."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from easycore_ray.runtime import progress_actor, room
from easycore_ray.runtime.progress_actor import watching
from easycore_ray.runtime.reservations import pending_bundles

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


def pid_of(actor):
    return ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_an_answer_that_comes_too_late_loses_no_epoch(ray_session, monkeypatch):
    """The driver does not wait for the first answer; the epoch in it is in the next one."""
    monkeypatch.setattr(progress_actor, "_ANSWER_SECONDS", 0.3)
    seen = []
    with watching("test", 1, "images", lambda epoch, metrics: seen.append((epoch, metrics["loss"]))) as actor:
        busy = actor.__ray_call__.remote(lambda _: time.sleep(3))
        posted = actor.post_metrics.remote(1, {"loss": 1.0})
        ray.get(busy)
        # Questions that waited behind it were given up one by one; their answers, with the epoch in them, come now.
        ray.get(posted)
        wait_for(lambda: seen)
        ray.get(actor.post_metrics.remote(2, {"loss": 0.5}))
        wait_for(lambda: len(seen) == 2)

    assert seen == [(1, 1.0), (2, 0.5)]


def test_an_actor_that_dies_is_made_anew(ray_session):
    """Workers keep their handle, and what they report afterwards arrives."""
    seen = []
    with watching("test", 1, "images", lambda epoch, _: seen.append(epoch)) as actor:
        ray.get(actor.post_metrics.remote(1, {}))
        wait_for(lambda: seen == [1])
        pid = pid_of(actor)
        os.kill(pid, signal.SIGKILL)

        def posted():
            try:
                ray.get(actor.post_metrics.remote(2, {}), timeout=5)
            except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
                return False
            return True

        wait_for(posted)
        assert pid_of(actor) != pid
        wait_for(lambda: seen == [1, 2])


LOST_NODES = """
import os, ray
from ray.cluster_utils import Cluster
from easycore_ray.runtime.progress_actor import start_progress_actor
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80_000_000})
others = [cluster.add_node(num_cpus=4, object_store_memory=80_000_000) for _ in range(2)]
ray.init(address=cluster.address, log_to_driver=False)
actors = [start_progress_actor() for _ in range(6)]
for actor in actors:
    ray.get(actor.post_metrics.remote(1, {"loss": 1.0}))
for node in others:
    cluster.remove_node(node, allow_graceful=False)
for actor in actors:
    assert ray.get(actor.read.remote(0), timeout=60) == ((0.0, ""), {1: {"loss": 1.0}})
print("kept")
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.soak
def test_nodes_that_are_lost_take_no_progress_along():
    """The actor lives on the driver's node: every other node may go."""
    folder = tempfile.mkdtemp(prefix="ec", dir="/tmp")
    done = subprocess.run([sys.executable, "-c", LOST_NODES], env=os.environ | {"RAY_TMPDIR": folder},
                          capture_output=True, text=True, timeout=250, check=False)  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True)

    assert "kept" in done.stdout.splitlines(), done.stderr


def test_what_is_not_granted_is_said_while_a_job_is_under_way(ray_session, monkeypatch, capsys):
    """A group of this job that waits for CPUs, such as Ray Train's after a node was lost, until it is gone."""
    monkeypatch.setattr(progress_actor, "_LOOK_SECONDS", 0.5)
    monkeypatch.setattr(room, "_SAY_SECONDS", 1.0)
    everything = ray.cluster_resources()["CPU"]
    first = placement_group([{"CPU": everything}])
    assert first.wait(30)
    second = placement_group([{"CPU": 1}, {"CPU": 2}])
    said = ""
    with watching("score", 1, "images"):
        deadline = time.monotonic() + 30
        while "score: waiting for {CPU: 1} and {CPU: 2} (1 s; " not in said and time.monotonic() < deadline:
            time.sleep(0.2)
            said += capsys.readouterr().err
        remove_placement_group(second)
        wait_for(lambda: pending_bundles() == [])
    remove_placement_group(first)

    assert "score: waiting for {CPU: 1} and {CPU: 2} (1 s; the cluster has 1 node with 3 CPUs" in said
