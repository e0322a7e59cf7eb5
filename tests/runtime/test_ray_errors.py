"""What Ray loses, on a real cluster, in sentences."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import ray

from easycore_ray.runtime.actors import LongLived, TaskResources
from easycore_ray.runtime.ray_errors import in_a_sentence
from easycore_ray.runtime.tasks import map_tasks
from easycore_ray.storage.errors import EasyCoreError

ROOT = Path(__file__).parents[2]


def nap(marker):
    """Say that it has begun, and go on for long."""
    Path(marker).touch()
    time.sleep(100)


def make_nap():
    """For a long-lived process."""
    return nap


WORK = {"task": nap, "actor": LongLived(make_nap)}


def said(name, marker):
    """What work that is tried once says in the end."""
    resources = TaskResources(max_retries=0, in_flight=1)
    try:
        return map_tasks(WORK[name], [(str(marker),)], label=name, resources=resources)
    except EasyCoreError as error:
        return " ".join(str(error).split())


# Prints what a task and an actor say on a node without the package, then on one that is killed.
PROGRAM = """
import os, sys, threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from easycore_ray.runtime import cluster
from tests.runtime.test_ray_errors import WORK, said

folder = Path(sys.argv[1])
nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
bare = nodes.add_node(num_cpus=1, env_vars={"PYTHONPATH": f"{folder}:{sys.argv[2]}"})
os.environ["RAY_ADDRESS"] = nodes.address
cluster.connect()
for name in WORK:
    print(said(name, folder / "none"))
nodes.remove_node(bare)

def kill(node, marker):
    while not marker.exists():
        time.sleep(0.05)
    nodes.remove_node(node, allow_graceful=False)

for name in WORK:
    node = nodes.add_node(num_cpus=1)
    killing = threading.Thread(target=kill, args=(node, folder / name))
    killing.start()
    print(said(name, folder / name))
    killing.join()
ray.shutdown()
nodes.shutdown()
"""


@pytest.mark.ray
@pytest.mark.soak
def test_nodes_that_lack_the_package_or_are_lost_are_said_in_a_line(tmp_path):
    """Of tasks and of long-lived processes."""
    package = tmp_path / "easycore_ray"
    package.mkdir()
    (package / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'easycore_ray'\", name='easycore_ray')"
    )
    environment = os.environ | {"RAY_TMPDIR": tempfile.mkdtemp(prefix="ec", dir="/tmp"), "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    # Elsewhere: workers look for modules in their driver's folder first.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path), str(ROOT)], env=environment, cwd=elsewhere,
                          capture_output=True, text=True, timeout=150, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["task", "actor"] * 2
    assert all("a node of the cluster does not have easycore_ray; install this version" in line for line in lines[:2])
    assert "its node was lost; run the same command again to go on" in lines[2]
    assert "the process of a task was lost 1 times" in lines[3]
    assert "a node of the cluster has ended\n" in done.stderr
    assert "state-dump" not in done.stderr


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ray.exceptions.OwnerDiedError("a" * 56, None, ""), "data that lay on a node was lost with it"),
        (ray.exceptions.ActorUnschedulableError("no such node"), "the node it had to run on is no longer there"),
        (ray.exceptions.RpcError("no answer", 14), "the head of the cluster cannot be reached"),
    ],
)
def test_what_is_lost_is_said_with_what_to_do(error, words):
    """And with Ray's own first line."""
    found = in_a_sentence(error, "reduce")
    assert isinstance(found, EasyCoreError)
    assert str(found).startswith(f"reduce: {words}; run the same command again to go on (Ray: ")
    assert "\n" not in str(found)


def test_a_bug_keeps_its_traceback():
    """What is nobody's loss is raised as it is."""
    error = ValueError("x")
    assert in_a_sentence(error, "reduce") is error
