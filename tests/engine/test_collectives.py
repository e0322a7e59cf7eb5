"""Where gloo and NCCL listen."""

import socket
from pathlib import Path

import pytest
import ray

from easycore_ray.engine import collectives
from easycore_ray.engine.collectives import interface_of, interface_variables


def addresses():
    """This host's IPv4 addresses but the loopback's."""
    names = [name for _, name in socket.if_nameindex() if name != "lo"]
    return [(name, address) for name in names for address in _of(name)]


def _of(name):
    with Path("/proc/net/fib_trie").open() as table:
        candidates = {line.split()[-1] for line in table if "|--" in line}
    return [address for address in candidates if interface_of(address) == name]


def test_an_interface_is_found_by_its_address():
    """The loopback has one on every host; nobody has one of the documentation's."""
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("198.51.100.7") is None


@pytest.mark.parametrize(
    ("node", "own"),
    [("10.0.0.5", "10.0.0.5"), ("127.0.0.1", "127.0.1.1"), ("198.51.100.7", "127.0.1.1"), ("127.0.0.1", None)],
)
def test_nothing_is_set_where_names_lead_somewhere_or_nothing_is_known(node, own):
    """Also on one machine alone."""
    assert interface_variables(node, own) == {}


def test_a_name_that_leads_to_the_host_itself_is_not_what_others_reach(monkeypatch):
    """As on Debian: Ray's interface is set, unless the user has set one."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    found = addresses()
    if not found:
        pytest.skip("this host has no network")
    name, address = found[0]

    both = {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name}
    assert interface_variables(address, "127.0.1.1") == both
    assert interface_variables(address, None) == both
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    assert interface_variables(address, "127.0.1.1") == {"GLOO_SOCKET_IFNAME": name}


def test_ray_train_is_given_the_backend():
    """With the time after which a lost peer is noticed."""
    config = collectives.Collectives()

    assert config.backend_cls is collectives._Backend
    assert config.timeout_seconds == 300


class Group:
    """Two workers of Ray Train, of whom only is known what they were asked to run."""

    def __init__(self, gpus, usable=True):
        self.gpus, self.usable, self.asked = gpus, usable, []

    def __len__(self):
        return 2

    def get_resources_per_worker(self):
        return {"CPU": 1, "GPU": self.gpus}

    def execute(self, function):
        self.asked.append((function.__name__,))
        return [True, self.usable]

    def execute_single(self, rank, function):
        self.asked.append((function.__name__, rank))
        return "10.0.0.5", 29500

    def execute_single_async(self, rank, function, *arguments):
        self.asked.append((function.__name__, rank, *arguments))
        return ray.put(None)


@pytest.mark.ray
@pytest.mark.parametrize(("gpus", "usable", "backend"), [(0, True, "gloo"), (1, True, "nccl"), (1, False, "gloo")])
def test_workers_find_the_interface_before_they_join(ray_session, gpus, usable, backend):
    """All of them, then the address of the first, where all join with the time-out that was set.

    Also where a worker cannot use the GPU it is given: with gloo, so that it can say so.
    """
    group = Group(gpus, usable)
    config = collectives.Collectives(timeout_seconds=7)
    config.backend_cls().on_start(group, config)

    assert group.asked == [
        ("use_address_of_ray",),
        ("get_address_and_port", 0),
        *[("can_use_gpu",)] * gpus,
        ("join_group", 0, ("10.0.0.5", 29500), backend, 7),
        ("join_group", 1, ("10.0.0.5", 29500), backend, 7),
    ]
