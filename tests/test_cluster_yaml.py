"""cluster.yaml: Ray accepts it, refuses typical mistakes in it, and what the jobs demand fits its nodes."""

import copy
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parent.parent

# vCPUs, memory (GiB), GPUs; https://aws.amazon.com/ec2/instance-types/
INSTANCES = {"m6i.2xlarge": (8, 32, 0), "m6i.4xlarge": (16, 64, 0), "g5.4xlarge": (16, 64, 1)}


@pytest.fixture
def cluster():
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def is_spot(node):
    return node["node_config"].get("InstanceMarketOptions") == {"MarketType": "spot"}


def test_ray_accepts_it(cluster):
    """The file passes the checks of `ray up`."""
    validate_config(prepare_config(cluster))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("idle_timeout",), 5, "idle_timeout"),
        (("available_node_types", "train_gpu", "maxWorkers"), 2, "maxWorkers"),
        (("available_node_types", "train_gpu", "resources", "GPU"), 0.5, "integer"),
        (("head_node_type",), "chief", "head_node_type"),
        (("docker", "shm_size"), "20g", "shm_size"),
    ],
)
def test_ray_refuses_mistakes(cluster, path, value, message):
    """The checks are not empty: unknown keys, fractional resources and a missing head type are found."""
    mutated = copy.deepcopy(cluster)
    place = mutated
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value

    with pytest.raises(Exception, match=message):
        validate_config(prepare_config(mutated))


def test_the_head_is_on_demand_and_runs_no_tasks(cluster):
    """Losing the head loses every job, so it is no spot node and has no CPUs to give."""
    head = cluster["available_node_types"][cluster["head_node_type"]]

    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["resources"] == {"CPU": 0}


def test_workers_are_spot_and_may_all_go(cluster):
    """GPU and CPU workers are spot nodes, from none to their maximum; an idle cluster is its head."""
    workers = {k: v for k, v in cluster["available_node_types"].items() if k != cluster["head_node_type"]}

    assert {"train_gpu", "data_cpu"} == set(workers)
    assert all(is_spot(node) for node in workers.values())
    assert all(0 == node["min_workers"] < node["max_workers"] for node in workers.values())
    assert cluster["max_workers"] == sum(node["max_workers"] for node in workers.values())


def test_resources_are_those_of_the_instances(cluster):
    """What the autoscaler is told a node has is what the instance has."""
    for name, node in cluster["available_node_types"].items():
        cpus, _, gpus = INSTANCES[node["node_config"]["InstanceType"]]

        assert node["resources"].get("CPU") in ({0} if name == "head" else {cpus})
        assert node["resources"].get("GPU", 0) == gpus


def test_the_documented_job_fits_the_nodes(cluster):
    """A training worker of the command in the header fits a GPU node with a CPU to spare for Ray Data."""
    text = (ROOT / "cluster.yaml").read_text()
    workers, gpus, cpus = (
        int(re.search(rf"--{name} (\d+)", text)[1]) for name in ("num-workers", "gpus-per-worker", "cpus-per-worker")
    )
    node = cluster["available_node_types"]["train_gpu"]

    assert gpus == node["resources"]["GPU"]
    assert cpus <= node["resources"]["CPU"] - 1
    assert workers <= node["max_workers"]


def test_shared_memory_holds_the_object_store(cluster):
    """/dev/shm is at least the 30 % of a worker's memory that Ray's object store takes."""
    (option,) = [text for text in cluster["docker"]["run_options"] if "--shm-size" in text]
    shm_gib = int(re.fullmatch(r"--shm-size=(\d+)g", option)[1])
    memory = max(INSTANCES[n["node_config"]["InstanceType"]][1] for n in cluster["available_node_types"].values())

    assert 0.3 * memory <= shm_gib < memory


def test_access_takes_a_token_and_nothing_calls_home(cluster):
    """Every process of the cluster asks for the token all nodes get; usage reports and telemetry are off."""
    options = cluster["docker"]["run_options"]

    assert "--env RAY_AUTH_MODE=token" in options
    assert "--env RAY_USAGE_STATS_ENABLED=0" in options
    assert "--env MLFLOW_DISABLE_TELEMETRY=true" in options
    assert "~/.ray/auth_token" in cluster["file_mounts"]
    assert any("--dashboard-host=127.0.0.1" in command for command in cluster["head_start_ray_commands"])


def test_every_node_has_a_pinned_image_and_a_role(cluster):
    """No node runs on whatever image is the latest, and none without an instance profile."""
    for node in cluster["available_node_types"].values():
        assert "latest" not in node["node_config"]["ImageId"]
        assert node["node_config"]["IamInstanceProfile"]["Name"]
    assert re.fullmatch(r"rayproject/ray:\d+\.\d+\.\d+-py3\d+-gpu", cluster["docker"]["image"])


def test_the_image_has_the_ray_of_the_constraints(cluster):
    """Nodes run the version of Ray that set-up would install, so that it installs none."""
    (pinned,) = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)

    assert cluster["docker"]["image"].startswith(f"rayproject/ray:{pinned}-")


def test_set_up_installs_the_dependencies_of_the_project(cluster, tmp_path):
    """The set-up command, run in a home like a node's, hands pip the project's own list and constraints."""
    home = tmp_path / "easycore"
    home.mkdir()
    (home / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    pip = tmp_path / "pip"
    pip.write_text('#!/bin/sh\necho "$@" > arguments.txt\n')
    pip.chmod(0o755)
    environment = {"HOME": str(tmp_path), "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command in cluster["setup_commands"]:
        subprocess.run(["bash", "-c", command], check=True, env=environment)
    expected = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]

    assert expected == (home / "requirements.txt").read_text().splitlines()
    assert "--requirement requirements.txt --constraint constraints.txt" in (home / "arguments.txt").read_text()
    assert {"~/easycore/pyproject.toml", "~/easycore/constraints.txt"} < set(cluster["file_mounts"])
