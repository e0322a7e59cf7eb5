"""A cluster on this machine that Ray's own autoscaler lets grow and shrink: a head of 0 CPUs, worker types from 0 up.

    python -m tests.autoscaling.cluster v2        runs until it is ended, and says where it listens

Nothing that Ray answers is changed: nodes are processes of ``tests.autoscaling.provider``.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.autoscaling.provider import HEAD_TYPE

ROOT = Path(__file__).parents[2]
RAY = f"{Path(sys.executable).parent}/ray"
HOST = "127.0.0.1"
# Of a head and a dashboard on two busy cores.
_START_SECONDS = 60


@dataclass(frozen=True)
class AutoscalingCluster:
    """A cluster that runs."""

    folder: Path
    address: str
    """``RAY_ADDRESS``."""
    jobs: str
    """Of the server that takes jobs."""
    head: int
    """Process id of the head's ``ray start``."""

    @property
    def environment(self) -> dict[str, str]:
        """Of commands that work on it."""
        return {**_environment(), "RAY_ADDRESS": self.address}

    def events(self) -> list[dict[str, Any]]:
        """What became of nodes: ``time``, ``what`` (started, ended, died), ``node``, ``type``, ``pid``."""
        log = self.folder / "nodes"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def started(self) -> Counter[str]:
        """How many nodes of each type were ever started."""
        return Counter(event["type"] for event in self.events() if event["what"] == "started")

    def running(self) -> set[str]:
        """Nodes that have not ended."""
        found = set[str]()
        for event in self.events():
            (found.add if event["what"] == "started" else found.discard)(event["node"])
        return found

    def at_work_on_head(self) -> set[str]:
        """Titles of the head's own tasks and actors at this moment."""
        return set(_at_work(self.head))

    def busiest(self) -> int:
        """Process id of the node on which most tasks and actors are at work, also that of its process group."""
        running = self.running()
        nodes = [event["pid"] for event in self.events() if event["what"] == "started" and event["node"] in running]
        return max(nodes, key=lambda pid: len(_at_work(pid)))

    def submit(self, *command: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """``ray job submit`` of a command, run in the project's root; its output ends with that of the job."""
        line = [RAY, "job", "submit", f"--address={self.jobs}", "--", *command]
        ended = time.monotonic() + timeout
        while True:
            done = subprocess.run(
                line, env=_environment(), cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
            )
            # The server listens before it can take jobs.
            if "No available agent" not in done.stderr or time.monotonic() > ended:
                return done
            time.sleep(1)


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _at_work(node: int) -> list[str]:
    """Titles of the tasks and actors of the node whose ``ray start`` has this process id."""
    raylets = [pid for pid in _children(node) if _command(pid).partition("\0")[0].endswith("/raylet")]
    titles = [_command(pid).rstrip("\0") for raylet in raylets for pid in _children(raylet)]
    return [title for title in titles if title.startswith("ray::") and not title.startswith("ray::IDLE")]


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def _environment() -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return own | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}


@contextlib.contextmanager
def autoscaling_cluster(
    version: str,
    types: dict[str, dict[str, float]],
    *,
    most: int = 2,
    idle_seconds: float = 10,
    start_seconds: float = 0,
    hidden: Path | None = None,
) -> Iterator[AutoscalingCluster]:
    """A cluster of these worker types.

    Args:
        version: of the autoscaler, v1 or v2.
        types: resources of a node of each type.
        most: nodes of a type.
        idle_seconds: after which a node is ended.
        start_seconds: that a machine takes before Ray is started on it.
        hidden: a folder in whose place nodes have an empty one of their own.
    """
    port, dashboard = _free_port(), _free_port()
    with tempfile.TemporaryDirectory(prefix="nodes") as name:
        folder = Path(name)
        config = _config(types, most, idle_seconds) | {
            "provider": {
                "type": "external", "module": "tests.autoscaling.provider.LocalNodes", "disable_node_updaters": True,
                "disable_launch_config_check": True, "gcs_address": f"{HOST}:{port}", "log": f"{folder}/nodes",
                "start_seconds": start_seconds, "hidden": str(hidden or ""),
            }
        }  # fmt: skip
        (folder / "autoscaling.json").write_text(json.dumps(config))
        command = [
            RAY, "start", "--head", "--block", f"--port={port}", f"--node-ip-address={HOST}", "--num-cpus=0",
            "--object-store-memory=200000000", f"--dashboard-host={HOST}", f"--dashboard-port={dashboard}",
            "--dashboard-agent-listen-port=0", f"--temp-dir={folder}/ray",
            f"--autoscaling-config={folder}/autoscaling.json",
        ]  # fmt: skip
        environment = _environment() | {
            "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_enable_autoscaler_v2": str(int(version == "v2")),
            "RAY_CLOUD_INSTANCE_ID": "head", "RAY_NODE_TYPE_NAME": HEAD_TYPE,
        }  # fmt: skip
        with (folder / "head").open("wb") as output:
            head = subprocess.Popen(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        cluster = AutoscalingCluster(folder, f"{HOST}:{port}", f"http://{HOST}:{dashboard}", head.pid)
        try:
            _await_port(dashboard, head)
            yield cluster
        finally:
            groups = [head.pid, *{event["pid"] for event in cluster.events()}]
            for group in groups:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)
            head.wait()


def _config(types: dict[str, dict[str, float]], most: int, idle_seconds: float) -> dict[str, Any]:
    lists = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
             "head_start_ray_commands", "worker_start_ray_commands")  # fmt: skip
    node = {"node_config": {}, "min_workers": 0}
    head = {HEAD_TYPE: {**node, "resources": {"CPU": 0}, "max_workers": 0}}
    return {
        "cluster_name": "local", "max_workers": most * len(types), "head_node_type": HEAD_TYPE, "auth": {},
        "upscaling_speed": 10.0, "idle_timeout_minutes": idle_seconds / 60, "docker": {}, "file_mounts": {},
        "cluster_synced_files": [], "file_mounts_sync_continuously": False, "rsync_exclude": [], "rsync_filter": [],
        **{name: [] for name in lists},
        "available_node_types": head | {
            name: {**node, "resources": resources, "max_workers": most} for name, resources in types.items()
        },
    }  # fmt: skip


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _await_port(port: int, head: subprocess.Popen[bytes]) -> None:
    ended = time.monotonic() + _START_SECONDS
    while time.monotonic() < ended and head.poll() is None:
        with contextlib.suppress(OSError):
            socket.create_connection((HOST, port), timeout=1).close()
            return
        time.sleep(0.2)
    raise RuntimeError("the head has not started")


if __name__ == "__main__":
    with autoscaling_cluster(sys.argv[1], {"train": {"CPU": 2}, "data": {"CPU": 2}}) as running:
        print(f"RAY_ADDRESS={running.address} jobs at {running.jobs}, files in {running.folder}", flush=True)
        signal.pause()
