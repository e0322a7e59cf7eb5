"""Nodes for Ray's autoscaler on one machine: each is a ``ray start`` on a loopback address of its own.

Ray's configuration names the class: ``provider: {type: external, module: tests.autoscaling.provider.LocalNodes}``. It
runs in the autoscaler's process on the head. Every node that is started or ended is a line of the file ``log``.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    STATUS_UP_TO_DATE,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_NAME,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

OWN_MOUNTS = ["unshare", "--mount", "--map-root-user"]
"""Before a command: it may mount what others do not see, where the system allows that."""
# Raylets that start at the same moment on one machine take the same names for their sockets, and die of it.
_ONE_AT_A_TIME = """
n=0
until mkdir {lock} 2>/dev/null || [ $n -ge 100 ]; do n=$((n+1)); sleep 0.2; done
(sleep 4; rmdir {lock}) &
"""
HEAD = "head"
HEAD_TYPE = "ray.head.default"


class LocalNodes(NodeProvider):
    """See the module.

    ``provider_config`` holds ``gcs_address``, ``log``, ``start_seconds`` that a machine takes, and ``hidden``, a folder
    in whose place nodes have an empty one of their own.
    """

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self._lock, self._count = threading.RLock(), 0
        head = {TAG_RAY_NODE_KIND: NODE_KIND_HEAD, TAG_RAY_USER_NODE_TYPE: HEAD_TYPE, TAG_RAY_NODE_NAME: HEAD,
                TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE}  # fmt: skip
        self._tags: dict[str, dict[str, str]] = {HEAD: head}
        self._addresses = {HEAD: provider_config["gcs_address"].partition(":")[0]}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        """Ids of nodes with these tags."""
        with self._lock:
            for name, process in list(self._processes.items()):
                if process.poll() is not None:
                    self._forget(name, "died")
            return [name for name, tags in self._tags.items() if tag_filters.items() <= tags.items()]

    def is_running(self, node_id: str) -> bool:
        """Whether it was started and has not ended."""
        return node_id in self.non_terminated_nodes({})

    def is_terminated(self, node_id: str) -> bool:
        """The opposite."""
        return not self.is_running(node_id)

    def node_tags(self, node_id: str) -> dict[str, str]:
        """Its tags."""
        with self._lock:
            return dict(self._tags[node_id])

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        """Add tags."""
        with self._lock:
            self._tags[node_id] |= tags

    def external_ip(self, node_id: str) -> str:
        """Its address."""
        return self._addresses[node_id]

    internal_ip = external_ip

    def create_node_with_resources_and_labels(
        self, node_config: dict[str, Any], tags: dict[str, str], count: int, resources: dict[str, float], labels: Any
    ) -> None:
        """Start so many nodes."""
        del node_config, labels
        for _ in range(count):
            with self._lock:
                self._count += 1
                name = f"node-{self._count}"
                self._addresses[name] = f"127.0.1.{self._count}"
                kind = tags[TAG_RAY_USER_NODE_TYPE]
                self._processes[name] = self._start(name, kind, dict(resources))
                self._tags[name] = {TAG_RAY_NODE_NAME: name, TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE, **tags}
                self._note("started", name)

    def terminate_node(self, node_id: str) -> None:
        """End one."""
        with self._lock:
            process = self._processes.get(node_id)
            if process is not None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                self._forget(node_id, "ended")

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """Nothing is completed."""
        return cluster_config

    def _start(self, name: str, kind: str, resources: dict[str, float]) -> subprocess.Popen[bytes]:
        config = self.provider_config
        command = [
            f"{Path(sys.executable).parent}/ray", "start", "--block", f"--address={config['gcs_address']}",
            f"--node-ip-address={self._addresses[name]}", f"--num-cpus={int(resources.pop('CPU', 0))}",
            f"--num-gpus={int(resources.pop('GPU', 0))}",
            f"--object-store-memory={int(resources.pop('object_store_memory', 200_000_000))}",
            f"--memory={int(resources.pop('memory', 4_000_000_000))}", "--dashboard-agent-listen-port=0",
            f"--resources={json.dumps(resources)}",
        ]  # fmt: skip
        environment = {**os.environ, "RAY_CLOUD_INSTANCE_ID": name, "RAY_NODE_TYPE_NAME": kind}
        steps = [f"sleep {config.get('start_seconds', 0)}"]
        unshare = []
        if hidden := config.get("hidden"):
            steps.append(f"mount -t tmpfs none {shlex.quote(hidden)}")
            unshare = OWN_MOUNTS
        steps += [_ONE_AT_A_TIME.format(lock=shlex.quote(f"{config['log']}.lock")), 'exec "$@"']
        delayed = [*unshare, "sh", "-ec", "\n".join(steps), "node", *command]
        with Path(f"{config['log']}.{name}").open("wb") as output:
            return subprocess.Popen(
                delayed, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    def _forget(self, name: str, how: str) -> None:
        self._note(how, name)
        del self._processes[name], self._tags[name]

    def _note(self, what: str, name: str) -> None:
        kind = self._tags[name][TAG_RAY_USER_NODE_TYPE]
        with Path(self.provider_config["log"]).open("a") as log:
            event = {"time": time.time(), "what": what, "node": name, "type": kind, "pid": self._processes[name].pid}
            log.write(json.dumps(event) + "\n")
