"""Process groups of training workers: how they find each other on hosts of any kind.

torch's gloo listens where the host's own name leads. On Debian and Ubuntu that is 127.0.1.1, which no other host
reaches; Ray's address of the node is one that all reach.
"""

import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.util import TrainingFramework

from easycore_ray.runtime.devices import problem_of

_SHUTDOWN_SECONDS = 30
_INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
# Linux: the address of an interface, and where it is in the answer.
_SIOCGIFADDR, _ADDRESS = 0x8915, slice(20, 24)


class _Backend(Backend):
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: "Collectives") -> None:
        """Prepare every worker, then let them join."""
        worker_group.execute(use_address_of_ray)
        place = worker_group.execute_single(0, get_address_and_port)
        # Where a node's GPUs cannot be used, the workers meet all the same, and then say so themselves.
        on_gpus = worker_group.get_resources_per_worker().get("GPU", 0) and all(worker_group.execute(can_use_gpu))
        backend = "nccl" if on_gpus else "gloo"
        arguments = (join_group, place, backend, backend_config.timeout_seconds)
        ray.get([worker_group.execute_single_async(rank, *arguments) for rank in range(len(worker_group))])

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """Let them part; one that does not answer is ended anyway."""
        with contextlib.suppress(ray.exceptions.GetTimeoutError):
            ray.get(worker_group.execute_async(leave_group), timeout=_SHUTDOWN_SECONDS)


@dataclass
class Collectives(BackendConfig):
    """The process group of training workers, on addresses that all nodes reach.

    As Ray Train's ``TorchConfig``, but torch is imported by the workers alone: Ray Train's controller, which reads
    this, starts two seconds sooner.

    Attributes:
        timeout_seconds: after so long in a collective, a lost peer is noticed; torch's default is half an hour.
    """

    timeout_seconds: int = 300

    @property
    def backend_cls(self) -> type[Backend]:
        """Set up by this."""
        return _Backend

    @property
    def train_func_context(self) -> Callable[[], contextlib.AbstractContextManager[None]]:
        """Entered by a worker for as long as it trains."""
        return _on_own_device

    @property
    def framework(self) -> TrainingFramework:
        """For Ray's dashboard."""
        return TrainingFramework.TORCH


@contextlib.contextmanager
def _on_own_device() -> Iterator[None]:
    import ray.train.torch
    import torch

    if torch.cuda.is_available() and (device := ray.train.torch.get_device()).type == "cuda":
        torch.cuda.set_device(device)
    yield


def can_use_gpu() -> bool:
    """In a worker: whether torch can use a GPU there."""
    return problem_of("cuda") is None


def join_group(place: tuple[str, int], backend: str, timeout_seconds: int) -> None:
    """In a worker: join the process group, and say in the environment who it is, as torchrun does.

    Args:
        place: address and port of rank 0.
        backend: of ``torch.distributed``.
        timeout_seconds: see ``Collectives``.
    """
    import ray.train
    import torch.distributed

    info = ray.train.get_context()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK")
    numbers = (info.get_world_rank(), info.get_world_size(), info.get_local_rank(), info.get_local_world_size(),
               info.get_node_rank())  # fmt: skip
    os.environ.update({name: str(number) for name, number in zip(names, numbers, strict=True)})
    os.environ.update(MASTER_ADDR=place[0], MASTER_PORT=str(place[1]))
    timeout = timedelta(seconds=timeout_seconds)
    torch.distributed.init_process_group(backend, rank=numbers[0], world_size=numbers[1], timeout=timeout)


def leave_group() -> None:
    """In a worker: leave the process group, and give back the GPU's cached memory."""
    import torch.distributed

    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        torch.distributed.destroy_process_group()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


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
