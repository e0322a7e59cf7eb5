"""Process groups of training workers: how they find each other on hosts of any kind.

torch's gloo listens where the host's own name leads. On Debian and Ubuntu that is 127.0.1.1, which no other host
reaches; Ray's address of the node is one that all reach.
"""

import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

# A lost peer is noticed after this long in a collective; torch's default is half an hour.
_TIMEOUT_SECONDS = 300
_INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
# Linux: the address of an interface, and where it is in the answer.
_SIOCGIFADDR, _ADDRESS = 0x8915, slice(20, 24)


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Prepare every worker, then let them join."""
        worker_group.execute(use_address_of_ray)
        super().on_start(worker_group, backend_config)


@dataclass
class Collectives(TorchConfig):
    """Ray Train's process group, on addresses that all nodes reach."""

    timeout_s: int = _TIMEOUT_SECONDS

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """Set up by this."""
        return _Backend


def use_address_of_ray() -> None:
    """In a worker: tell gloo and NCCL the interface of Ray's address, where the host's name leads to itself alone.

    What the user has set stays.
    """
    import ray.util

    os.environ.update(interface_variables(ray.util.get_node_ip_address(), own_address()))


def interface_variables(node: str, own: str | None) -> dict[str, str]:
    """Environment variables to set, for the address that Ray knows and the one that the host's name leads to."""
    if own is not None and not own.startswith("127."):
        return {}
    found = interface_of(node)
    if found is None or node.startswith("127."):
        return {}
    return {name: found for name in _INTERFACE_VARIABLES if name not in os.environ}


def own_address() -> str | None:
    """IPv4 address that this host's name leads to; None if it leads nowhere."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return None


def interface_of(address: str) -> str | None:
    """Name of the interface that has an IPv4 address; None if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # it has no IPv4 address
                continue
            if socket.inet_ntoa(answer[_ADDRESS]) == address:
                return name
    return None
