"""deploy/: manifests that Kubernetes and KubeRay's operator accept, whose parts fit each other, and the image."""

import copy
import fnmatch
import json
import lzma
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
KUBERAY = ROOT / "deploy" / "kuberay"
MANIFESTS = {"RayCluster": KUBERAY / "raycluster.yaml", "RayJob": KUBERAY / "rayjob.yaml"}
# Folder of the operator's schemas (config/crd/bases of KubeRay, also as .xz), where it is to be had.
CRDS = os.environ.get("EASYCORE_KUBERAY_CRDS")
VERSION = "1.33"


def read(kind):
    return yaml.safe_load(MANIFESTS[kind].read_text())


def cluster_of(manifest):
    return manifest["spec"].get("rayClusterSpec", manifest["spec"])


def groups_of(manifest):
    """Head and workers by name."""
    spec = cluster_of(manifest)
    return {"head": spec["headGroupSpec"], **{group["groupName"]: group for group in spec["workerGroupSpecs"]}}


def pods_of(manifest):
    """A pod of each group, as Kubernetes would be asked for it."""
    return {
        name: {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": group["template"]["spec"]}
        for name, group in groups_of(manifest).items()
    }


@pytest.mark.parametrize("kind", MANIFESTS)
def test_kubernetes_accepts_every_pod(kind):
    """By its own schema, unknown fields refused."""
    for pod in pods_of(read(kind)).values():
        kubernetes_validate.validate(pod, VERSION, strict=True)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "serviceaccount"), "easycore"),
        (("spec", "terminationGracePeriodSeconds"), "soon"),
        (("spec", "containers", 0, "resources", "limit"), {"cpu": "1"}),
        (("spec", "volumes", 0, "emptyDir", "size"), "1Gi"),
        (("spec", "tolerations", 0, "operator"), 1),
    ],
)
def test_kubernetes_refuses_mistakes(path, value):
    """The checks are not empty."""
    pod = copy.deepcopy(pods_of(read("RayCluster"))["train-gpu"])
    place = pod
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, VERSION, strict=True)


def operator_schema(kind):
    """What KubeRay's operator accepts, unknown fields refused, as the API server would drop them without a word."""
    (path,) = Path(CRDS).glob(f"*{kind.lower()}s.yaml*")
    text = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
    version = next(each for each in yaml.safe_load(text)["spec"]["versions"] if each["name"] == "v1")
    schema = _closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft7Validator(schema)


def _closed(schema):
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    is_open = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    if schema.get("type") == "object" and "properties" in schema and not is_open:
        closed["additionalProperties"] = False
    return closed


@pytest.mark.skipif(CRDS is None, reason="set EASYCORE_KUBERAY_CRDS to a folder with the operator's schemas")
@pytest.mark.parametrize("kind", MANIFESTS)
def test_the_operator_accepts_it_and_refuses_mistakes(kind):
    """Misspelt fields, wrong types and words that it does not know."""
    schema, manifest = operator_schema(kind), read(kind)
    assert [error.message for error in schema.iter_errors(manifest)] == []
    for change in (
        lambda spec: spec.update(enableInTreeAutoScaling=True),
        lambda spec: spec["autoscalerOptions"].update(version="v3"),
        lambda spec: spec["workerGroupSpecs"][0].update(maxReplicas="4"),
        lambda spec: spec["authOptions"].update(mode="password"),
    ):
        wrong = copy.deepcopy(manifest)
        change(cluster_of(wrong))
        assert list(schema.iter_errors(wrong))


def test_job_and_cluster_have_the_same_nodes():
    """One change in both."""
    assert cluster_of(read("RayJob")) == cluster_of(read("RayCluster"))


def test_the_cluster_grows_from_its_head_and_asks_for_a_token():
    """No tasks on the head, no worker while there is no work, access by token alone, nothing calls home."""
    spec = cluster_of(read("RayCluster"))
    assert spec["enableInTreeAutoscaling"]
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    for group in spec["workerGroupSpecs"]:
        assert (group["replicas"], group["minReplicas"]) == (0, 0)
        assert group["maxReplicas"] > 0
    for pod in pods_of(read("RayCluster")).values():
        told = {entry["name"]: entry["value"] for entry in pod["spec"]["containers"][0]["env"]}
        assert told["RAY_USAGE_STATS_ENABLED"] == "0"
        assert told["MLFLOW_DISABLE_TELEMETRY"] == "true"
        assert told["EASYCORE_ROOT"].startswith("s3://")
        assert not [name for name in told if re.search("SECRET|PASSWORD|TOKEN|ACCESS_KEY", name)]


def test_one_image_with_the_ray_of_the_constraints():
    """On every node, built from Ray's own of the pinned version."""
    (pinned,) = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    images = {pod["spec"]["containers"][0]["image"] for kind in MANIFESTS for pod in pods_of(read(kind)).values()}

    assert len(images) == 1
    assert cluster_of(read("RayJob"))["rayVersion"] == pinned
    assert f"BASE=rayproject/ray:{pinned}-" in (ROOT / "deploy" / "Dockerfile").read_text()


def test_shared_memory_holds_the_object_store():
    """/dev/shm is at least the 30 % of the memory that Ray's object store takes."""
    for pod in pods_of(read("RayCluster")).values():
        (container,), (volume,) = pod["spec"]["containers"], pod["spec"]["volumes"]
        memory, shm = (int(text.removesuffix("Gi")) for text in (
            container["resources"]["limits"]["memory"], volume["emptyDir"]["sizeLimit"]))  # fmt: skip
        assert 0.3 * memory <= shm < memory
        assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/dev/shm"}]
        assert container["resources"]["requests"] == container["resources"]["limits"]


def test_documented_jobs_fit_the_nodes():
    """A worker of the commands leaves CPUs of its node for decoding."""
    limits = pods_of(read("RayCluster"))["train-gpu"]["spec"]["containers"][0]["resources"]["limits"]
    for path in MANIFESTS.values():
        cpus, gpus = (int(re.search(rf"--{name} (\d+)", path.read_text())[1]) for name in
                      ("cpus-per-worker", "gpus-per-worker"))  # fmt: skip
        assert cpus <= int(limits["cpu"]) - 1
        assert gpus == int(limits["nvidia.com/gpu"])


def test_tries_are_the_jobs_and_never_the_submitters():
    """A submitter that tries again would start the command a second time beside the first."""
    spec = read("RayJob")["spec"]

    assert spec["backoffLimit"] > 0
    assert spec["submitterConfig"] == {"backoffLimit": 0}
    assert spec["shutdownAfterJobFinishes"]
    assert spec["activeDeadlineSeconds"] > spec["preRunningDeadlineSeconds"]


def dockerfile():
    """Instructions and their arguments, lines that go on joined."""
    text = (ROOT / "deploy" / "Dockerfile").read_text().replace("\\\n", " ")
    return [line.split(None, 1) for line in text.splitlines() if line and not line.startswith("#")]


def test_the_image_is_built_from_files_that_travel():
    """What is copied exists, and .dockerignore lets it through; nobody is root in the end."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    kept = [rule.removeprefix("!") for rule in rules if rule.startswith("!")]
    copied = [name for word, rest in dockerfile() if word == "COPY" for name in rest.split()[1:-1]]

    assert rules[0] == "*"
    assert {name for name in copied if not any(fnmatch.fnmatch(name, rule) for rule in kept)} == set()
    assert all((ROOT / name).exists() for name in copied)
    assert [rest for word, rest in dockerfile() if word == "USER"] == ["ray"]


def test_its_steps_install_the_dependencies_and_the_project(tmp_path):
    """Run in a folder like the image's: pip is handed the project's own list and constraints, then the project."""
    for name in ("pyproject.toml", "README.md", "LICENSE", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    for name, said in (("pip", 'echo "$@" >> calls'), ("easycore", 'echo "easycore $@" >> calls')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{said}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for word, rest in dockerfile():
        if word == "RUN":
            subprocess.run(["sh", "-c", rest], cwd=tmp_path, env=environment, check=True)
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]

    assert (tmp_path / "requirements.txt").read_text().splitlines() == wanted
    assert (tmp_path / "calls").read_text().splitlines() == [
        "install --no-cache-dir --requirement requirements.txt --constraint constraints.txt",
        "install --no-cache-dir --no-deps .[autoattack]",
        "easycore --version",
    ]


def test_environment_of_the_image_is_that_of_the_manifests():
    """Also where a node is started by other means."""
    (told,) = [rest for word, rest in dockerfile() if word == "ENV"]

    assert json.loads("{" + ", ".join('"{}": "{}"'.format(*pair.split("=")) for pair in told.split()) + "}") == {
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "RAY_AUTH_MODE": "token",
    }
