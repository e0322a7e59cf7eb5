"""Addresses where no Ray answers and places where none can start: one line within seconds."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray

CONNECT = """
from easycore_ray.cli.command import mistakes_in_one_line
from easycore_ray.runtime import cluster
with mistakes_in_one_line():
    cluster.connect()
"""


def said_by_connecting(**environment):
    """The one line on standard error of a process that tries to connect, within 20 s."""
    done = subprocess.run(
        [sys.executable, "-c", CONNECT], env=os.environ | environment, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


@pytest.mark.slow
def test_an_address_where_nobody_listens():
    """Refused by name, and what an address looks like."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    said = said_by_connecting(RAY_ADDRESS=f"127.0.0.1:{port}")
    assert f"no Ray cluster answers at RAY_ADDRESS=127.0.0.1:{port}: " in said
    assert "it must be HOST:PORT of a running cluster" in said
    assert "RAY_ADDRESS=headnode.invalid: " in said_by_connecting(RAY_ADDRESS="headnode.invalid")


@pytest.mark.slow
def test_an_address_where_something_else_listens():
    """It takes the connection and says nothing; Ray itself waits for more than two minutes."""
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor() as pool:
        addresses = [f"{scheme}127.0.0.1:{server.getsockname()[1]}" for scheme in ("", "ray://")]
        said = list(pool.map(lambda address: said_by_connecting(RAY_ADDRESS=address), addresses))
    assert all("something listens there that is no Ray" in line for line in said)


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["/proc/1", "/tmp/" + 110 * "x"])
def test_a_folder_in_which_ray_cannot_start(folder):
    """One that cannot be written, and one whose name is too long for a socket."""
    environment = {"RAY_TMPDIR": folder, "RAY_ADDRESS": "local"}
    said = said_by_connecting(**environment)
    assert said.startswith("error: Ray cannot start on this machine: ")
    assert f"its files go to {folder}/ray; set RAY_TMPDIR to a folder of yours with a short name" in said


@pytest.mark.slow
def test_no_call_starts_ray_behind_a_jobs_back():
    """Jobs connect by themselves; a thread that Ctrl-C has left behind must not have Ray start again."""
    program = """
from easycore_ray.cli import run_job
try:
    run_job("inspect", ["/nowhere"])
except SystemExit:
    pass
import ray
try:
    ray.get_actor("anyone")
except Exception:
    pass
print(ray.is_initialized())
"""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ENABLE_AUTO_CONNECT"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "False\n", done.stderr


@pytest.mark.slow
def test_importing_changes_no_variables():
    """A library that is imported leaves the process as it is."""
    load = "import easycore_ray.runtime.cluster"
    code = f"import os; import ray; before = dict(os.environ); {load}; assert dict(os.environ) == before"
    bare = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    subprocess.run([sys.executable, "-c", code], env=bare, check=True, timeout=60)


SIGNALLED = """
import os, signal
from easycore_ray.cli.command import mistakes_in_one_line
from easycore_ray.runtime import cluster
with mistakes_in_one_line():
    cluster.connect()
    os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.ray
def test_sigterm_is_ours_after_ray_has_started(ray_session):
    """Ray's own handler would end the process without a line, and MLflow's run would go on for ever."""
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    done = subprocess.run([sys.executable, "-c", SIGNALLED], env=environment, capture_output=True, text=True,
                          timeout=120, check=False)  # fmt: skip
    assert (done.returncode, done.stderr) == (143, "terminated; run the same command again to resume\n")


SILENT_CALL = """
import sys, time
import ray
from easycore_ray.runtime import cluster
from easycore_ray.runtime.tasks import LongLived, TaskResources, map_tasks

def make():
    return time.sleep

cluster.connect()
one = TaskResources(cpus=1, in_flight=1, max_retries=0)
map_tasks(LongLived(make), [(float(sys.argv[1]),)], label="sleep", resources=one)
map_tasks(time.sleep, [(float(sys.argv[1]),)], label="sleep", resources=one)
"""


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.timeout(400)
def test_a_call_may_take_minutes_on_a_cluster_that_was_there_before(tmp_path):
    """Pings more often than its servers allow would end the connection after one minute, and with it the task."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}", "--num-cpus=1",
             "--include-dashboard=false", "--node-ip-address=127.0.0.1", "--object-store-memory=80000000"]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    head = subprocess.Popen(start, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                            start_new_session=True)  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not ray_answers(port) and time.monotonic() < deadline:
            time.sleep(0.5)
        done = subprocess.run(
            [sys.executable, "-c", SILENT_CALL, "100"], check=False, capture_output=True, text=True,
            env=environment | {"RAY_ADDRESS": f"127.0.0.1:{port}"},
        )  # fmt: skip
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        head.wait(60)
    assert done.returncode == 0, done.stderr


def ray_answers(port):
    """Whether something listens there."""
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    return False
