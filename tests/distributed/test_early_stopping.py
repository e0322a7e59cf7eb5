"""A small sweep that stops a trial, as Tune runs it: what it leaves, what it leaves running, and what resumes."""

import shutil
import time
from pathlib import Path

import mlflow
import pytest
import ray
from ray.util.placement_group import placement_group_table

from easycore_ray import inspect, prepare, report, score, status, sweep
from easycore_ray.experiments.search_points import read_points
from easycore_ray.reporting.report import print_summary
from easycore_ray.storage import paths

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]

RECIPE = dict(model="cnn", width=4, batch_size=16, augment="none", threads_per_worker=1)
# Six samples a class of ten are learned less well than half of all: at each rung the small coresets are behind.
GRID = dict(
    method=("random",), fraction=(0.06, 0.5), seeds=(0,), training=("standard",), train_epochs=6, eval_eps=(0.1,),
    num_eval_samples=50, grace_fraction=0.16, max_concurrent_trials=1, **RECIPE,
)  # fmt: skip
# With one at a time in a fixed order, the same are stopped in each run.
SEEDS = dict(seeds=(0, 1, 2))


@pytest.fixture(scope="module")
def inputs(ray_session, tmp_path_factory):
    """Digits with a validation split of a tenth, and their scores."""
    folder = tmp_path_factory.mktemp("inputs")
    dataset = prepare(source="digits", val_fraction=0.1, out=folder / "dataset").path
    scores = score(dataset=dataset, out=folder / "scores", epochs=1, tracking_uri="none", num_workers=1, **RECIPE)
    return {"dataset": dataset, "scores": scores.path}


@pytest.fixture(scope="module")
def stopped(inputs, tmp_path_factory):
    """The sweep, in which at least one trial was stopped."""
    return sweep(out=tmp_path_factory.mktemp("stopped") / "sweep", scheduler="asha", **GRID | SEEDS, **inputs)


def trials_of(made):
    """Names of the trials of a sweep: finished ones, stopped ones."""
    folders = sorted(Path(made.path, "trials").iterdir())
    ended = {folder.name: (folder / "checkpoint" / "manifest.json").exists() for folder in folders}
    return {name for name, done in ended.items() if done}, {name for name, done in ended.items() if not done}


def test_what_is_stopped_is_in_no_mean_and_said_everywhere(stopped, tmp_path):
    """In the summary, the table, the page, inspect and MLflow; the sweep itself is finished."""
    finished, behind = trials_of(stopped)
    summary = paths.read_json(f"{stopped.path}/summary.json")

    assert {f"random_f{row['fraction']:g}_standard_s{row['seed']}" for row in summary["stopped"]} == behind != set()
    assert {f"full_f1_standard_s{seed}" for seed in range(3)} <= finished
    for row in summary["rows"]:
        name = f"{row['method']}_f{row['fraction']:g}_standard_s{{}}"
        assert {name.format(seed) for seed in row["seeds"]} <= finished
        assert {name.format(seed) for seed in row["stopped_seeds"]} <= behind
        assert len(row["seeds"]) + len(row["stopped_seeds"]) == 3
    assert stopped.manifest["counts"]["stopped"] == len(behind)
    assert status(path=stopped.path).finished
    assert "stopped early: Standard training, random, " in print_summary(stopped.path)
    page = Path(report(sweep=stopped.path, out=tmp_path / "report").page).read_text()
    assert "Stopped early, in no mean" in page
    name = sorted(behind)[0]
    place = f"{stopped.path}/trials/{name}/checkpoint"
    assert inspect(path=place)["progress"]["stopped"].startswith("stopped after epoch ")
    assert not status(path=place).finished
    assert status(path=place).reason.startswith("checkpoint, stopped after epoch ")
    assert not any(entry["problems"] for entry in inspect(path=stopped.path, verify=True)["verified"])
    client = mlflow.MlflowClient(f"sqlite:///{stopped.path}/mlflow.db")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    ends = {run.info.run_name.split()[0]: run for run in runs}
    assert {key for key, run in ends.items() if run.info.status == "KILLED"} == behind
    assert ends[name].data.tags["easycore.stopped"].startswith("stopped after epoch ")


def test_a_trial_that_ends_has_the_bits_it_has_without(stopped, inputs, tmp_path):
    """Weights and evaluation of every finished one."""
    finished, _ = trials_of(stopped)
    plain = sweep(out=tmp_path / "plain", **GRID | SEEDS, **inputs)

    assert trials_of(plain)[1] == set()
    for name in finished:
        for kind in ("checkpoint", "evaluation"):
            mine, theirs = (paths.read_json(f"{each.path}/trials/{name}/{kind}/manifest.json")["fingerprint"]
                            for each in (stopped, plain))  # fmt: skip
            assert mine == theirs, name


def test_nothing_stays_reserved_or_running(stopped):
    """Placement groups and actors of stopped trials: all CPUs are free again, without a dashboard."""
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"] and time.monotonic() < deadline:
        time.sleep(0.2)
    held = [entry for entry in placement_group_table().values() if entry["state"] != "REMOVED"]

    assert ray.available_resources()["CPU"] == ray.cluster_resources()["CPU"]
    assert held == []


def test_a_sweep_that_is_run_again_decides_nothing_twice(stopped, inputs, tmp_path):
    """Its manifest and the end of one trial are lost: that one is finished, the stopped ones stay as they are."""
    again = tmp_path / "again"
    shutil.copytree(stopped.path, again)
    finished, behind = trials_of(stopped)
    lost = sorted(name for name in finished if name.startswith("random"))[0]
    notes = {name: (again / "trials" / name / "checkpoint" / "stopped.json").read_bytes() for name in behind}
    (again / "manifest.json").unlink()
    shutil.rmtree(again / "trials" / lost / "evaluation")
    made = sweep(out=again, scheduler="asha", **GRID | SEEDS, **inputs)
    before, after = (paths.read_json(f"{each.path}/summary.json") for each in (stopped, made))

    assert {name: (again / "trials" / name / "checkpoint" / "stopped.json").read_bytes() for name in behind} == notes
    assert after["stopped"] == before["stopped"]
    assert made.fingerprint == stopped.fingerprint
    assert [(row["seeds"], row["clean_accuracy_mean"]) for row in after["rows"]] == [
        (row["seeds"], row["clean_accuracy_mean"]) for row in before["rows"]
    ]


@pytest.mark.soak
def test_a_lost_decision_is_made_again_before_anything_is_trained(stopped, inputs, tmp_path):
    """A trial had committed an epoch when the sweep was killed: it reports it again, and is stopped there."""
    again = tmp_path / "again"
    shutil.copytree(stopped.path, again)
    name = sorted(trials_of(stopped)[1])[0]
    file = again / "trials" / name / "checkpoint" / "stopped.json"
    before = paths.read_json(str(file))
    (again / "manifest.json").unlink()
    file.unlink()
    made = sweep(out=again, scheduler="asha", **GRID | SEEDS, **inputs)
    after = paths.read_json(str(file))

    assert after | {"created": ""} == before | {"created": ""}
    assert made.fingerprint == stopped.fingerprint


def test_a_search_records_its_points_and_goes_on(inputs, tmp_path):
    """Four points, one after the other; with the last of them and the manifest lost, the same four."""
    fields = GRID | {"fraction": (0.2, 0.6), "train_epochs": 2, "search": "optuna", "num_trials": 4, **inputs}
    out = tmp_path / "search"
    made = sweep(out=out, **fields)
    points, summary = read_points(made.path), paths.read_json(f"{made.path}/summary.json")

    assert made.manifest["counts"]["trials"] == 5
    assert [row["fraction"] for row in summary["rows"]] == [1.0, *(point.fraction for point in points)]
    (out / "manifest.json").unlink()
    content = paths.read_json(f"{out}/search.json")
    paths.write_json(f"{out}/search.json", {"points": content["points"][:-1]})
    shutil.rmtree(out / "trials" / f"random_f{points[-1].fraction:g}_standard_s0")
    again = sweep(out=out, **fields)

    assert read_points(again.path) == points
    assert again.fingerprint == made.fingerprint
