"""Tasks on a node that is cut off: its processes stand still, as behind a network that ends without a word."""

import os
import shutil
import subprocess
import sys
import tempfile

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.soak, pytest.mark.timeout(200)]

# A head without CPUs, and two nodes; one of them is stopped, all its processes at once, once both are at work. Two more
# tasks wait for a CPU, and so have asked for one, perhaps there.
CUT_OFF = """
import os, signal, sys, threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from easycore_ray.runtime.tasks import TaskResources, map_tasks

folder = Path(sys.argv[1])

# What runs there does not end, however long it takes until all is stopped.
def work(number, goes):
    node = ray.get_runtime_context().get_node_id()
    (folder / f"{number}-{node}").touch()
    time.sleep(600 if node == goes else 3)
    return number, node

checks = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_timeout_ms": 1000,
          "health_check_failure_threshold": 3}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80_000_000,
                                                        "_system_config": checks})
stays, goes = [cluster.add_node(num_cpus=1, object_store_memory=80_000_000) for _ in range(2)]
ray.init(address=cluster.address, log_to_driver=False)
(raylet,) = [info.process for info in goes.all_processes["raylet"]]
stopped = []

def with_children(parent):
    found = [parent]
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                found += with_children(int(stat.parent.name))
        except OSError:
            pass
    return found

def cut():
    while len({path.name.partition("-")[2] for path in folder.iterdir()}) < 2:
        time.sleep(0.1)
    stopped.extend(with_children(raylet.pid))
    for process in stopped:
        os.kill(process, signal.SIGSTOP)

threading.Thread(target=cut, daemon=True).start()
started = time.monotonic()
found = map_tasks(work, [(number, goes.node_id) for number in range(4)], label="test", resources=TaskResources(cpus=1))
seconds = time.monotonic() - started
assert [number for number, _ in found] == [0, 1, 2, 3], found
assert {node for _, node in found} == {stays.node_id}, found
print(f"{seconds:.0f} s")
for process in stopped:
    os.kill(process, signal.SIGKILL)
ray.shutdown()
cluster.shutdown()
"""


def test_tasks_of_a_node_that_is_cut_off_are_given_out_again(tmp_path):
    """As soon as Ray takes it for dead; without that the driver waits for seven minutes."""
    folder = tempfile.mkdtemp(prefix="ec", dir="/tmp")
    environment = os.environ | {"RAY_TMPDIR": folder}
    done = subprocess.run([sys.executable, "-c", CUT_OFF, str(tmp_path)], env=environment, capture_output=True,
                          text=True, timeout=180, check=False)  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-2]) < 60
