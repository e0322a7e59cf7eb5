"""What is asked of a cluster, and what is refused: shapes of nodes without starting any."""

import pytest

from easycore_ray.runtime import cluster
from easycore_ray.runtime.cluster import Demand, cpus_per_worker, preflight
from easycore_ray.storage.errors import EasyCoreError

HEAD = {"CPU": 0.0}
DATA = {"CPU": 64.0}
GPU = {"CPU": 16.0, "GPU": 1.0}
BIG = {"CPU": 96.0, "GPU": 8.0}


@pytest.fixture
def nodes(monkeypatch):
    """Lets a test say which nodes a cluster has (or may add), without a cluster."""

    def have(*shapes, growing=False):
        total = {key: sum(shape.get(key, 0.0) for shape in shapes) for key in ("CPU", "GPU")}
        monkeypatch.setattr(cluster, "capacity", lambda: (total, growing))
        monkeypatch.setattr(cluster, "node_shapes", lambda: list(shapes))

    return have


def test_a_laptop_shares_its_cores_beside_ray_data(nodes):
    """Two workers on two CPUs reserve half a CPU each."""
    nodes({"CPU": 2.0})

    assert cpus_per_worker(2, None) == 0.5
    preflight(Demand(num_workers=2, cpus_per_worker=0.5))


def test_a_worker_never_asks_for_more_than_a_node_has(nodes):
    """Four workers on four 16-CPU nodes get 16 CPUs, not a quarter of the cluster's 129."""
    nodes(HEAD, DATA, *[GPU] * 4)

    assert cpus_per_worker(4, None, gpus_per_worker=1.0) == 16


def test_workers_share_a_node_with_several_gpus(nodes):
    """Eight workers on an eight-GPU node get a part of its CPUs each, and Ray Data keeps some."""
    nodes(HEAD, BIG, {"CPU": 8.0})

    assert cpus_per_worker(8, None, gpus_per_worker=1.0) == 12


def test_what_is_requested_is_taken(nodes):
    """An explicit number is not second-guessed, only checked."""
    nodes({"CPU": 8.0})

    assert cpus_per_worker(2, 1.5) == 1.5


@pytest.mark.parametrize(
    ("demand", "message"),
    [
        (Demand(num_workers=40, cpus_per_worker=4), "160 CPUs are wanted, the cluster has 80"),
        (Demand(num_workers=2, cpus_per_worker=1, gpus_per_worker=1), "2 GPUs are wanted, the cluster has 1"),
        (Demand(num_workers=1, cpus_per_worker=20, gpus_per_worker=1), "20 CPUs and 1 GPUs on one node"),
    ],
)
def test_what_would_hang_is_refused(nodes, demand, message):
    """More than there is, or more than one node has: an error, before any work."""
    nodes(HEAD, DATA, GPU)

    with pytest.raises(EasyCoreError, match=message):
        preflight(demand)


def test_nodes_that_may_still_come_count(nodes):
    """On an autoscaling cluster the message speaks of what it can ever give."""
    nodes(HEAD, GPU, growing=True)

    preflight(Demand(num_workers=1, cpus_per_worker=15, gpus_per_worker=1))
    with pytest.raises(EasyCoreError, match="the cluster can ever give 16"):
        preflight(Demand(num_workers=2, cpus_per_worker=16))


def test_decoding_has_most_cpus_beside_gpus_and_a_quarter_of_them_else(nodes):
    """A worker that computes on a GPU needs few."""
    nodes(HEAD, GPU)
    assert cpus_per_worker(1, None, gpus_per_worker=1.0, decodes=True) == 2
    nodes({"CPU": 16.0})
    assert cpus_per_worker(2, None, decodes=True) == 6
    nodes({"CPU": 2.0})
    assert cpus_per_worker(1, None, decodes=True) == 1
    assert cpus_per_worker(2, None, decodes=True) == 0.5


def test_workers_that_leave_no_cpu_for_decoding_would_hang(nodes):
    """A node that may still come can bring one."""
    nodes({"CPU": 2.0})
    preflight(Demand(num_workers=2, cpus_per_worker=1))
    preflight(Demand(num_workers=1, cpus_per_worker=1, decodes=True))
    with pytest.raises(EasyCoreError, match=r"take all 2 CPUs .* lower .* by 1 CPUs in all"):
        preflight(Demand(num_workers=2, cpus_per_worker=1, decodes=True))
    nodes({"CPU": 2.0}, {"CPU": 1.0}, growing=True)
    preflight(Demand(num_workers=2, cpus_per_worker=1, decodes=True))
