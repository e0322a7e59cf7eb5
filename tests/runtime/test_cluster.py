"""What is asked of a cluster, and what is refused: shapes of nodes without starting any."""

import os
import subprocess
import sys

import pytest
import yaml

from easycore_ray.runtime import autoscaler
from easycore_ray.runtime.autoscaler import NodeType, Outlook
from easycore_ray.runtime.cluster import Demand, capacity_of, check_demand, cpus_per_worker
from easycore_ray.runtime.room import looks_until_refused
from easycore_ray.storage.errors import EasyCoreError

HEAD = {"CPU": 0.0}
DATA = {"CPU": 64.0}
GPU = {"CPU": 16.0, "GPU": 1.0}
BIG = {"CPU": 96.0, "GPU": 8.0}


def having(*nodes, types=()):
    """What a cluster of these nodes has; with types, an autoscaler may add one node of each."""
    outlook = Outlook(bool(types), types=tuple(NodeType(resources, 1) for resources in types))
    return capacity_of(nodes, outlook)


def test_a_laptop_shares_its_cores_beside_ray_data():
    """Two workers on two CPUs reserve half a CPU each."""
    there = having({"CPU": 2.0})

    assert cpus_per_worker(2, None, there=there) == 0.5
    check_demand(Demand(num_workers=2, cpus_per_worker=0.5), there)


def test_a_worker_never_asks_for_more_than_a_node_has():
    """Four workers on four 16-CPU nodes get 16 CPUs, not a quarter of the cluster's 129."""
    there = having(HEAD, DATA, *[GPU] * 4)

    assert cpus_per_worker(4, None, gpus_per_worker=1.0, there=there) == 16


def test_workers_share_a_node_with_several_gpus():
    """Eight workers on an eight-GPU node get a part of its CPUs each, and Ray Data keeps some."""
    there = having(HEAD, BIG, {"CPU": 8.0})

    assert cpus_per_worker(8, None, gpus_per_worker=1.0, there=there) == 12


def test_what_is_requested_is_taken():
    """An explicit number is not second-guessed, only checked."""
    there = having({"CPU": 8.0})

    assert cpus_per_worker(2, 1.5, there=there) == 1.5


@pytest.mark.parametrize(
    ("demand", "message"),
    [
        (Demand(num_workers=40, cpus_per_worker=4), "160 CPUs are wanted, the cluster has 80"),
        (Demand(num_workers=2, cpus_per_worker=1, gpus_per_worker=1), "2 GPUs are wanted, the cluster has 1"),
        (Demand(num_workers=1, cpus_per_worker=20, gpus_per_worker=1), "20 CPUs and 1 GPUs on one node"),
    ],
)
def test_what_would_hang_is_refused(demand, message):
    """More than there is, or more than one node has: an error, before any work."""
    there = having(HEAD, DATA, GPU)

    with pytest.raises(EasyCoreError, match=message):
        check_demand(demand, there)


def test_nodes_that_may_still_come_count():
    """On an autoscaling cluster the message speaks of what it can ever give."""
    there = having(HEAD, types=[GPU])

    check_demand(Demand(num_workers=1, cpus_per_worker=15, gpus_per_worker=1), there)
    with pytest.raises(EasyCoreError, match="the cluster can ever give 16"):
        check_demand(Demand(num_workers=2, cpus_per_worker=16), there)


def test_decoding_has_most_cpus_beside_gpus_and_a_quarter_of_them_else():
    """A worker that computes on a GPU needs few."""
    there = having(HEAD, GPU)
    assert cpus_per_worker(1, None, gpus_per_worker=1.0, decodes=True, there=there) == 2
    there = having({"CPU": 16.0})
    assert cpus_per_worker(2, None, decodes=True, there=there) == 6
    there = having({"CPU": 2.0})
    assert cpus_per_worker(1, None, decodes=True, there=there) == 1
    assert cpus_per_worker(2, None, decodes=True, there=there) == 0.5


def test_workers_that_leave_no_cpu_for_decoding_would_hang():
    """A node that may still come can bring one."""
    there = having({"CPU": 2.0})
    check_demand(Demand(num_workers=2, cpus_per_worker=1), there)
    check_demand(Demand(num_workers=1, cpus_per_worker=1, decodes=True), there)
    with pytest.raises(EasyCoreError, match=r"take all 2 CPUs .* lower .* by 1 CPUs in all"):
        check_demand(Demand(num_workers=2, cpus_per_worker=1, decodes=True), there)
    there = having({"CPU": 2.0}, types=[{"CPU": 3.0}])
    check_demand(Demand(num_workers=2, cpus_per_worker=1, decodes=True), there)


def test_where_nobody_knows_what_may_come_nothing_is_refused_and_a_worker_gets_a_cpu():
    """The autoscaler decides, once it has been asked."""
    there = capacity_of([HEAD], Outlook(True))

    assert (there.known, there.grows, there.tasks) == (False, True, 16)
    assert cpus_per_worker(4, None, there=there) == 1
    check_demand(Demand(num_workers=1000, cpus_per_worker=1), there)


def test_what_the_user_says_is_the_limit_where_the_autoscaler_says_none():
    """And a worker gets its share of it; where the autoscaler says more, that counts."""
    there = capacity_of([HEAD], Outlook(True), {"CPU": 33.0, "GPU": 4.0})

    assert (there.known, there.grows) == (True, True)
    assert cpus_per_worker(4, None, gpus_per_worker=1.0, there=there) == 8
    check_demand(Demand(num_workers=4, cpus_per_worker=8, gpus_per_worker=1), there)
    with pytest.raises(EasyCoreError, match="40 CPUs are wanted, the cluster can ever give 33"):
        check_demand(Demand(num_workers=4, cpus_per_worker=10, gpus_per_worker=1), there)
    said = capacity_of([HEAD], Outlook(True, types=(NodeType(GPU, 2),)), {"CPU": 33.0})
    assert said.ever["CPU"] == 32


def test_the_process_that_directs_workers_counts():
    """Two workers of two CPUs on four, and a tenth for the trial's own process: it would wait for ever."""
    there = having({"CPU": 2.0}, {"CPU": 2.0})

    check_demand(Demand(num_workers=2, cpus_per_worker=2), there)
    with pytest.raises(EasyCoreError, match=r"4\.1 CPUs are wanted, the cluster has 4"):
        check_demand(Demand(num_workers=2, cpus_per_worker=2, driver_cpus=0.1), there)


@pytest.mark.parametrize(
    ("refused", "is_refused"),
    [
        ([{"CPU": 2.0}, {"CPU": 2.0}], True),
        ([{"CPU": 2.0}], True),
        ([{"CPU": 2.0}] * 3, False),
        ([{"CPU": 4.0}], False),
        ([{"CPU": 2.0, "GPU": 0.0}, {"CPU": 2.0}], True),
    ],
)
def test_a_demand_that_the_autoscaler_has_refused(refused, is_refused):
    """The same at once, or one of its parts alone; not what others asked for."""
    assert Outlook(True, infeasible=(tuple(refused),)).refuses([{"CPU": 2.0}, {"CPU": 2.0}]) == is_refused


TOO_MUCH = [{"CPU": 100.0}]


@pytest.mark.parametrize(
    ("outlook", "bundles", "looks"),
    [
        (Outlook(True, tells_refusals=True), TOO_MUCH, None),
        (Outlook(True, infeasible=((TOO_MUCH[0],),), starting=1, tells_refusals=True), TOO_MUCH, 3),
        (Outlook(True, types=(NodeType(GPU, 2),)), TOO_MUCH, 3),
        (Outlook(True, types=(NodeType(GPU, 2),)), [{"CPU": 16.0}] * 2, None),
        (Outlook(False), TOO_MUCH, 3),
        (Outlook(False), [{"CPU": 64.0}], None),
        (Outlook(True), TOO_MUCH, 30),
        (Outlook(True, starting=1), TOO_MUCH, None),
        (Outlook(True), [{"CPU": 64.0}], None),
    ],
    ids=["not yet refused", "refused", "no such type", "a type", "no autoscaler", "others hold it", "silent",
         "starting", "silent, others hold it"],
)  # fmt: skip
def test_a_demand_is_given_up_when_it_can_never_be_met(outlook, bundles, looks):
    """At once where that is known, after a minute where an autoscaler starts nothing and says nothing."""
    assert looks_until_refused(outlook, bundles, [HEAD, DATA]) == looks


def test_version_1_of_the_autoscaler_is_known_by_its_configuration(tmp_path, monkeypatch):
    """As its command line names it, of a process here; on another host, where ``ray up`` puts it; or none at all."""
    monkeypatch.setenv("HOME", str(tmp_path))
    config = {"head_node_type": "head", "max_workers": 3, "available_node_types": {
        "head": {"resources": {"CPU": 0}}, "gpu": {"resources": {"CPU": 16, "GPU": 1}, "max_workers": 9},
        "cpu": {"resources": {"CPU": 64}, "max_workers": 2}}}  # fmt: skip
    path, program = tmp_path / "config.yaml", tmp_path / "monitor.py"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    program.write_text("print(flush=True); input()")

    def configuration(*options):
        command = [sys.executable, program, *options]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as monitor:
            monitor.stdout.readline()
            found = autoscaler._configuration_of(monitor.pid)
            monitor.communicate(b"\n")
        return found

    assert configuration(f"--autoscaling-config={path}") == path
    assert configuration("--logs-dir=x") is None
    assert autoscaler._configuration_of(os.getpid()) == tmp_path / "ray_bootstrap_config.yaml"
    assert autoscaler._node_types(path) == (NodeType(GPU, 3), NodeType({"CPU": 64.0}, 2))
    assert autoscaler._node_types(tmp_path / "missing.yaml") == ()
    path.write_text("available_node_types: 3")
    assert autoscaler._node_types(path) == ()
