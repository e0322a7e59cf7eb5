"""Hosts on one machine: network namespaces on a bridge, whose links can be cut and whose processes can be killed.

Each host sees Ray's folder as its own and everything else as storage that all share, and its own name leads to
127.0.1.1, as on Debian and Ubuntu. Needs root, iproute2 and util-linux. The first host is the head; Ray there has no
CPUs.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

_RAY = str(Path(sys.executable).with_name("ray"))
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true", "RAY_AUTH_MODE": "disabled"}
# In namespaces of its own for mounts and names.
_BECOME_HOST = """
set -e
mount -t tmpfs tmpfs {folder}
echo {name} > /proc/sys/kernel/hostname
echo -e "127.0.0.1 localhost\\n127.0.1.1 {name}" > {folder}/hosts
mount --bind {folder}/hosts /etc/hosts
exec "$@"
"""
_DRAIN = """
import sys, time
import ray
from ray._raylet import GcsClient
from ray.core.generated import autoscaler_pb2
ray.init(address=sys.argv[1], log_to_driver=False)
(node,) = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeManagerAddress"] == sys.argv[2]]
reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
deadline = int((time.time() + float(sys.argv[3])) * 1000)
accepted, why = GcsClient(address=sys.argv[1]).drain_node(node, reason, "spot", deadline)
sys.exit(0 if accepted else why)
"""


class Network:
    """A head and workers of two CPUs each, as hosts of their own.

    Args:
        workers: how many, numbered from 1.
    """

    def __init__(self, workers: int) -> None:
        assert os.geteuid() == 0, "network namespaces need root"
        assert None not in map(shutil.which, ("ip", "nsenter")), "iproute2 and util-linux are needed"
        self._name = "ec" + uuid.uuid4().hex[:4]
        self._folder = Path(tempfile.mkdtemp(prefix="ec", dir="/tmp"))
        self._processes: dict[int, subprocess.Popen] = {}
        self.workers = range(1, workers + 1)
        _ip("netns", "add", self._space("sw"))
        _ip("link", "add", "br0", "type", "bridge", space=self._space("sw"))
        _ip("link", "set", "br0", "up", space=self._space("sw"))
        for number in (0, *self.workers):
            self._connect(number)
        # One after the other: raylets that start at the same moment on one machine take the same names.
        for number in (0, *self.workers):
            self.start(number)

    @property
    def gcs_address(self) -> str:
        """Of the cluster."""
        return f"{self.ip(0)}:6379"

    @staticmethod
    def ip(number: int) -> str:
        """Address of a host."""
        return f"10.77.0.{number + 1}"

    def _space(self, host: object) -> str:
        return f"{self._name}-{host}"

    def _connect(self, number: int) -> None:
        space, inner, outer = self._space(number), f"{self._name}e{number}", f"{self._name}p{number}"
        _ip("netns", "add", space)
        _ip("link", "add", inner, "netns", space, "type", "veth", "peer", "name", outer, "netns", self._space("sw"))
        _ip("link", "set", outer, "master", "br0", "up", space=self._space("sw"))
        _ip("addr", "add", f"{self.ip(number)}/24", "dev", inner, space=space)
        _ip("link", "set", inner, "up", space=space)
        _ip("link", "set", "lo", "up", space=space)

    def start(self, number: int) -> None:
        """Start Ray on a host, and wait until the cluster knows it."""
        role = ["--head", "--port=6379", "--num-cpus=0", f"--temp-dir={self._folder}", "--include-dashboard=false"]
        if number:
            role = [f"--address={self.gcs_address}", "--num-cpus=2"]
        ray = [_RAY, "start", "--block", f"--node-ip-address={self.ip(number)}", "--object-store-memory=150000000"]
        script = _BECOME_HOST.format(folder=self._folder, name=f"host-{number}")
        namespaces = ["ip", "netns", "exec", self._space(number), "unshare", "--uts"]
        command = [*namespaces, "bash", "-c", script, "host", *ray, *role]
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | _QUIET
        self._processes[number] = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        self._wait_for(number)

    def _wait_for(self, number: int) -> None:
        """Until its raylet has made its socket."""
        deadline = time.monotonic() + 60
        look = ["bash", "-c", f"ls {self._folder}/*/sockets/raylet*"]
        while subprocess.run(self.on(number, *look), capture_output=True, check=False).stdout == b"":
            assert self._processes[number].poll() is None, f"host {number} has ended"
            assert time.monotonic() < deadline, f"Ray does not start on host {number}"
            time.sleep(0.3)
        time.sleep(1)

    def on(self, number: int, *command: str) -> list[str]:
        """A command line that runs a command on a host."""
        pid = str(self._processes[number].pid)
        return ["nsenter", "-t", pid, "-m", "-n", "-u", "env", "-C", str(Path.cwd()), *command]

    def run(self, command: Sequence[str], log: Path) -> subprocess.Popen:
        """Start a command on the head, connected to the cluster."""
        environment = os.environ | _QUIET | {"RAY_ADDRESS": self.gcs_address}
        with log.open("w") as sink:
            return subprocess.Popen(self.on(0, *command), env=environment, stdout=sink, stderr=sink)

    def _pids(self, number: int) -> list[int]:
        found = subprocess.run(["ip", "netns", "pids", self._space(number)], capture_output=True, text=True, check=True)
        return [int(pid) for pid in found.stdout.split()]

    def busiest(self) -> int:
        """The worker host on which most tasks and actors of the job run."""
        return max(self.workers, key=lambda number: sum(map(_at_work, self._pids(number))))

    def kill(self, number: int) -> None:
        """End everything on a host, without a word."""
        for pid in self._pids(number):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._processes[number].wait(timeout=30)

    def restart(self) -> None:
        """End every host, and start them all anew."""
        for number in (0, *self.workers):
            self.kill(number)
        for number in (0, *self.workers):
            self.start(number)

    def at_work(self, number: int) -> bool:
        """Whether a task or actor of a job runs on a host."""
        return any(map(_at_work, self._pids(number)))

    def cut(self, number: int) -> None:
        """Drop every packet from and to a host; no connection is reset."""
        _ip("link", "set", f"{self._name}p{number}", "down", space=self._space("sw"))

    def heal(self, number: int) -> None:
        """Undo ``cut``."""
        _ip("link", "set", f"{self._name}p{number}", "up", space=self._space("sw"))

    def drain(self, number: int, seconds: float) -> None:
        """Announce that a host will be taken away."""
        command = self.on(0, sys.executable, "-c", _DRAIN, self.gcs_address, self.ip(number), str(seconds))
        subprocess.run(command, check=True, timeout=60, capture_output=True, env=os.environ | _QUIET)

    def close(self) -> None:
        """End all hosts."""
        for number in self._processes:
            self.kill(number)
        for number in (*self._processes, "sw"):
            _ip("netns", "del", self._space(number))


def _at_work(pid: int) -> bool:
    """Whether a process is a worker of Ray that has something to do."""
    try:
        title = Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False
    return title.startswith("ray::") and not title.startswith(("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnv"))


def _ip(*arguments: str, space: str | None = None) -> None:
    within = ["ip", "netns", "exec", space] if space else []
    subprocess.run([*within, "ip", *arguments], check=True, capture_output=True)
