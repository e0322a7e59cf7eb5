"""One line where an unfinished run, or what it is made from, comes from other library versions or another CPU."""

import json

import pytest

from easycore_ray.config.stages import TrainConfig
from easycore_ray.runtime import claims
from easycore_ray.runtime.claims import claim_artifact
from easycore_ray.storage.artifact import Artifact, Claim, finish
from easycore_ray.storage.machine import cpu
from tests.artifacts import edit_manifest, make_dataset


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    """As at the start of a process."""
    monkeypatch.setattr(claims, "_SAID", set())


@pytest.fixture
def dataset(tmp_path):
    return make_dataset(tmp_path / "dataset", [0, 1])


def claim_of(tmp_path, dataset, out="model"):
    config = TrainConfig(out=str(tmp_path / out), dataset=dataset.path)
    return claim_artifact("checkpoint", config, {"dataset": dataset})


def elsewhere(manifest):
    """What an artifact of another machine says of its making."""
    return {"versions": manifest["versions"] | {"torch": "1.0", "unknown": "1"}, "cpu": "an abacus"}


def test_manifests_and_claims_record_versions_and_cpu(tmp_path, dataset):
    """Of finished and unfinished artifacts; here nothing differs, and nothing is said."""
    made = claim_of(tmp_path, dataset)
    claimed = json.loads((tmp_path / "model" / "run.json").read_text())

    assert claimed["cpu"] == dataset.manifest["cpu"] == cpu()
    assert claimed["versions"] == dataset.manifest["versions"]
    assert isinstance(made, Claim)


def test_a_parent_of_another_machine_is_said_once(tmp_path, dataset, capsys):
    """In one line, with what differs; a version it does not know here is no difference."""
    edit_manifest(dataset.path, **elsewhere(dataset.manifest))
    dataset = Artifact(dataset.path, json.loads((tmp_path / "dataset" / "manifest.json").read_text()))
    claim_of(tmp_path, dataset)
    claim_of(tmp_path, dataset, "another")
    (line,) = capsys.readouterr().err.splitlines()

    assert line.startswith(f"warning: {dataset.path} was made with torch 1.0, here ")
    assert f"; the CPU an abacus, here {cpu()}: " in line
    assert "unknown" not in line


def test_an_unfinished_run_of_another_machine_is_said(tmp_path, dataset, capsys):
    """Whoever resumes it learns that its bits are not one machine's; a finished one is merely reused."""
    claim_of(tmp_path, dataset)
    entry = tmp_path / "model" / "run.json"
    found = json.loads(entry.read_text())
    entry.write_text(json.dumps(found | elsewhere(found)))
    assert capsys.readouterr().err == ""
    made = claim_of(tmp_path, dataset)

    assert capsys.readouterr().err.startswith(f"warning: {tmp_path}/model was begun with torch 1.0, here ")
    finish(made, fingerprint="f", config={}, parents={}, counts={}, wall_seconds=0.0)
    claims._SAID.clear()
    assert isinstance(claim_of(tmp_path, dataset), Artifact)
    assert capsys.readouterr().err == ""


def test_what_an_older_artifact_does_not_say_is_not_compared(tmp_path, dataset, capsys):
    """Manifests of earlier releases have no CPU."""
    manifest = {name: value for name, value in dataset.manifest.items() if name not in ("cpu", "versions")}
    claim_of(tmp_path, Artifact(dataset.path, manifest))

    assert capsys.readouterr().err == ""
