"""A study on real Ray: what is in its results file is never run again, what is not is run to the same numbers."""

import json
import shutil

import pytest

from easycore_ray import study
from easycore_ray.config.experiments import StudyConfig
from easycore_ray.storage.errors import EasyCoreError

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

TIMES = {"training_seconds", "evaluation_seconds", "machine_cost", "finished"}


@pytest.mark.soak
def test_a_study_goes_on_from_its_results_alone(digits, tmp_path, capfd):
    """Without its models, a study runs only the trial that the file lacks, and finds what it had found."""
    config = StudyConfig(
        dataset=digits.path, out=str(tmp_path / "out"), results=str(tmp_path / "results.json"), parts=("standard",),
        seeds=(2,), subset=97, model="cnn", width=4, batch_size=16, score_epochs=1, train_epochs=1, augment="none",
        standard_eval_eps=(0.05, 0.1), num_eval_samples=20, num_workers=1, cpus_per_worker=1.0, threads_per_worker=1,
        tracking_uri="none", max_concurrent_trials=1,
    )  # fmt: skip
    study(config)
    results = tmp_path / "results.json"
    first = json.loads(results.read_text())
    shorter = json.loads(results.read_text())
    del shorter["trials"]["hardest_f0.5_standard_s2"]
    results.write_text(json.dumps(shorter))
    shutil.rmtree(tmp_path / "out" / "seed-2")
    capfd.readouterr()
    done = study(config)
    said = capfd.readouterr().err
    again = json.loads(results.read_text())

    assert len(first["trials"]) == 8
    assert "7 of 8 trials are in" in said
    assert [path.name for path in (tmp_path / "out" / "seed-2" / "trials").iterdir()] == ["hardest_f0.5_standard_s2"]
    for key, record in first["trials"].items():
        assert {**record, **dict.fromkeys(TIMES)} == {**again["trials"][key], **dict.fromkeys(TIMES)}
    assert done.manifest["counts"]["trials"] == 8
    spent = [entry["device_seconds"] for entry in again["scoring"].values()]
    spent += [record["training_seconds"] for record in again["trials"].values()]
    assert done.manifest["device_seconds"] == pytest.approx(sum(spent), abs=0.01)
    assert (tmp_path / "results.md").exists()
    with pytest.raises(EasyCoreError, match=r"train_epochs = 1, not 2"):
        study(config.replace(train_epochs=2))
