"""What the cluster's autoscaler says: which demands it can never meet, and how many nodes are on their way.

Ray 2.60 has no public way to ask. Version 2 of the autoscaler writes its state to the GCS, as ``ray status`` reads it;
version 1 leaves a status there too, and its limits in the configuration that it was started with, on the head. All
that is private to Ray is in this file, and what another Ray does not answer is taken for nothing known.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

Resources = dict[str, float]
"""Amounts by name: CPU, GPU, …"""
Bundles = Sequence[Resources]
"""What is wanted at the same time: the resources of each worker."""

# Where ``ray up`` puts the configuration on the head.
_BOOTSTRAP = "~/ray_bootstrap_config.yaml"


@dataclass(frozen=True)
class NodeType:
    """Nodes that the autoscaler may add."""

    resources: Resources
    most: int


@dataclass(frozen=True)
class Outlook:
    """What is to be expected of the autoscaler at this moment."""

    grows: bool
    """Whether there is one that may add nodes; unknown counts as yes."""
    infeasible: tuple[tuple[Resources, ...], ...] = ()
    """Demands that it has refused: of single tasks, a tuple of one, and of placement groups."""
    starting: int = 0
    """Nodes on their way."""
    failures: tuple[str, ...] = ()
    """Why nodes could not be had."""
    types: tuple[NodeType, ...] = ()
    """What it may add, where that is known; empty where it is not."""
    tells_refusals: bool = False
    """Whether ``infeasible`` is all that it refuses; version 1 keeps that to itself."""

    def refuses(self, bundles: Bundles) -> bool:
        """Whether this demand, or one of its parts, can never be met."""
        wanted = _sorted(bundles)
        return any(refused == wanted or (len(refused) == 1 and refused[0] in wanted)
                   for refused in map(_sorted, self.infeasible))  # fmt: skip

    def fits(self, bundles: Bundles, now: Sequence[Resources]) -> bool:
        """Whether nodes that are there and nodes that may come can hold these bundles; True where types are unknown.

        Args:
            bundles: wanted at the same time.
            now: resources of the nodes there are.
        """
        if not self.types:
            return True
        return self.holds(bundles, [*now, *(kind.resources for kind in self.types for _ in range(kind.most))])

    @staticmethod
    def holds(bundles: Bundles, nodes: Sequence[Resources]) -> bool:
        """Whether bundles fit on nodes, were those free: the largest first, each on the first node with room for it."""
        left = [dict(node) for node in nodes]
        for bundle in sorted(bundles, key=lambda each: sorted(each.values(), reverse=True), reverse=True):
            for node in left:
                if all(node.get(key, 0.0) >= value - 1e-9 for key, value in bundle.items()):
                    node.update({key: node.get(key, 0.0) - value for key, value in bundle.items()})
                    break
            else:
                return False
        return True


def total_of(resources: Iterable[Resources]) -> Resources:
    """All of them together."""
    total: Resources = {}
    for some in resources:
        for name, value in some.items():
            total[name] = total.get(name, 0.0) + value
    return total


def look() -> Outlook:
    """Ask, on a cluster that this process is connected to."""
    status = _version_2()
    if status is not None:
        return status
    return _version_1()


def _version_2() -> Outlook | None:
    """From the state in the GCS; None if no autoscaler of version 2 has written any."""
    try:
        from ray._raylet import GcsClient  # type: ignore[attr-defined]
        from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

        client = GcsClient(address=ray.get_runtime_context().gcs_address)
        state = GetClusterStatusReply.FromString(client.get_cluster_status(timeout_s=10)).autoscaling_state
        if not state.autoscaler_state_version:
            return None
        single = [(dict(request.resources_bundle),) for request in state.infeasible_resource_requests]
        gangs = [
            tuple(dict(request.resources_bundle) for request in gang.requests)
            for gang in state.infeasible_gang_resource_requests
        ]
        starting = sum(request.count for request in state.pending_instance_requests) + len(state.pending_instances)
        failures = tuple(dict.fromkeys(failed.reason for failed in state.failed_instance_requests))
    except (ImportError, AttributeError, RuntimeError, ValueError):
        return None
    return Outlook(True, tuple(single + gangs), starting, failures, tells_refusals=True)


def _version_1() -> Outlook:
    """From the status in the GCS and the configuration on the head."""
    try:
        from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
        from ray.experimental.internal_kv import _internal_kv_get

        status = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or "{}")
    except (ImportError, AttributeError, RuntimeError, ValueError):
        status = {}
    if not status:
        return Outlook(grows=False)
    report = status.get("autoscaler_report") or {}
    starting = len(report.get("pending_nodes") or ()) + sum((report.get("pending_launches") or {}).values())
    path = _configuration_of(int(status.get("monitor_pid") or 0))
    if path is None:
        return Outlook(grows=False, starting=starting)
    return Outlook(True, starting=starting, types=_node_types(path))


def _configuration_of(monitor: int) -> Path | None:
    """Configuration file of the autoscaler of version 1; None if it has none, and so adds no nodes.

    Read off the autoscaler's command line if this process is on the head, else where ``ray up`` puts it.
    """
    try:
        words = Path(f"/proc/{monitor}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        words = []
    if any(word.endswith("monitor.py") for word in words):
        found = [word.partition("=")[2] for word in words if word.startswith("--autoscaling-config=")]
        return Path(found[0]) if found and found[0] else None
    return Path(_BOOTSTRAP).expanduser()


def _node_types(path: Path) -> tuple[NodeType, ...]:
    """Types of worker nodes of a configuration; none where it cannot be read."""
    import yaml  # type: ignore[import-untyped]  # Ray needs it as well

    try:
        config: dict[str, Any] = yaml.safe_load(path.read_text())
        head, overall = config.get("head_node_type"), int(config.get("max_workers", 0))
        return tuple(
            NodeType(
                {key: float(value) for key, value in kind.get("resources", {}).items()},
                min(int(kind.get("max_workers", overall)), overall),
            )
            for name, kind in config["available_node_types"].items()
            if name != head
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return ()


def _sorted(bundles: Bundles) -> list[tuple[tuple[str, float], ...]]:
    return sorted(tuple(sorted((key, value) for key, value in bundle.items() if value)) for bundle in bundles)
