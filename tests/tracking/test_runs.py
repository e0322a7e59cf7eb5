"""What runs hold: parents above parents, data that was used, and what the short verbs leave, in a real store."""

import contextlib
import json
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from easycore_ray import evaluate, select
from easycore_ray.config.base import to_dict
from easycore_ray.config.evaluation import EvaluateConfig
from easycore_ray.config.stages import TrainConfig
from easycore_ray.data.dataset import open_dataset
from easycore_ray.engine.checkpoint import open_checkpoint
from easycore_ray.evaluation.tracked_evaluation import tags_of
from easycore_ray.experiments.tracked_trials import keep_best_models
from easycore_ray.experiments.trial_runner import attack_here
from easycore_ray.tracking.mlflow import Tracker
from easycore_ray.tracking.runs import TrackedData, TrackedModel, TrackedRun, describe_job, params_of, under
from tests.artifacts import make_checkpoint, make_image_dataset, make_scoring_run
from tests.tracking.stores import EXPERIMENT, client_of, free_port, runs_of, serve, store_of

LABELS = [number % 3 for number in range(30)]


@pytest.fixture
def uri(empty_store, tmp_path):
    """A store of a test's own."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return store_of(tmp_path)


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """A scoring run of a small dataset."""
    root = tmp_path_factory.mktemp("scores")
    return make_scoring_run(root / "scores", make_image_dataset(root / "dataset", LABELS), LABELS)


@pytest.mark.slow
def test_a_child_brings_the_runs_above_it(uri):
    """Whichever is sent first: a pipeline's own run is known by name before the pipeline ends."""
    pipeline = TrackedRun("p", "pipeline digits", {"seed": 0}, {"kind": "pipeline"})
    sweep = TrackedRun("s", "sweep digits", {"seed": 1}, {"kind": "sweep"}, pipeline)
    trial = TrackedRun("t", "easycore 0.3", parent=sweep, status="FINISHED")
    for run in (trial, sweep, pipeline):
        Tracker(uri, EXPERIMENT).close([run])
    runs = runs_of(uri)

    assert set(runs) == {"p", "s", "t"}
    assert runs["t"].data.tags["mlflow.parentRunId"] == runs["s"].info.run_id
    assert runs["s"].data.tags["mlflow.parentRunId"] == runs["p"].info.run_id
    assert (runs["p"].info.run_name, runs["p"].data.params) == ("pipeline digits", {"seed": "0"})


@pytest.mark.slow
def test_data_is_listed_once_with_its_source_and_profile(uri):
    """By other processes as well, and beside what came later."""
    first = TrackedData("dataset runs/digits", "ab" * 32, "/data/runs/digits", {"train": 9}, "evaluation")
    second = TrackedData("coreset runs/half", "cd" * 32, "s3://bucket/runs/half", {"samples": 4})
    for data in ([first], [first], [first, second]):
        # A digest of the description keeps what is in line as it is, so it differs here.
        Tracker(uri, EXPERIMENT).close([TrackedRun("t", "t", data=data, status="FINISHED")])
    used = {entry.dataset.name: entry.dataset for entry in runs_of(uri)["t"].inputs.dataset_inputs}

    assert len(used) == len(runs_of(uri)["t"].inputs.dataset_inputs) == 2
    assert used["dataset runs/digits"].digest == "ab" * 18
    assert used["dataset runs/digits"].source_type == "local"
    assert json.loads(used["dataset runs/digits"].profile) == {"train": 9}
    assert used["coreset runs/half"].source_type == "s3"
    contexts = {
        entry.dataset.name: [tag.value for tag in entry.tags] for entry in runs_of(uri)["t"].inputs.dataset_inputs
    }
    assert contexts == {"dataset runs/digits": ["evaluation"], "coreset runs/half": ["training"]}
    assert json.loads(used["coreset runs/half"].source) == {"uri": "s3://bucket/runs/half"}


def test_parameters_say_what_is_done_not_how_it_was_requested():
    """Nor epochs where steps replace them."""
    config = TrainConfig(out="o", dataset="d", steps=100, epochs=20, overwrite=True)
    found = params_of(to_dict(config))
    assert {"overwrite", "take_over", "tracking_uri", "experiment", "epochs"} & set(found) == set()
    assert found["steps"] == 100
    assert params_of(to_dict(config.replace(steps=None)))["epochs"] == 20


def test_a_job_is_named_by_its_folder_and_lies_under_what_runs_above_it(scores):
    """Nothing of it is in MLflow for that."""
    above = TrackedRun("p", "pipeline")
    with under(above):
        run = describe_job(scores.path, "scoring_run", "score", {"seed": 1})
    assert run.parent is above
    assert run.name == f"score {'/'.join(scores.path.split('/')[-2:])}"
    assert run.tags == {"kind": "scoring_run", "easycore.folder": scores.path}
    assert run.status == "FINISHED"
    assert describe_job(scores.path, "scoring_run", "score", {}).parent is None


@pytest.mark.slow
@pytest.mark.parametrize("how", ["option", "environment"])
def test_a_coreset_is_tracked_where_the_user_says(uri, scores, tmp_path, monkeypatch, how):
    """With its ids and its data; again, it changes nothing. Otherwise nowhere."""
    fields = dict(scores=scores.path, fraction=0.5, method="easiest")
    select(out=str(tmp_path / "untracked"), **fields)
    if how == "environment":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    else:
        fields["tracking_uri"] = uri
    for _ in range(2):
        select(out=str(tmp_path / "half"), **fields)
    (run,) = runs_of(uri).values()

    assert run.data.metrics == {"samples": 15.0, "fraction_kept": 0.5}
    assert run.data.tags["kind"] == "coreset"
    assert {entry.path for entry in client_of(uri).list_artifacts(run.info.run_id)} == {"sample_ids.npy", "keys.txt"}
    assert {entry.dataset.name.split()[0] for entry in run.inputs.dataset_inputs} == {"dataset", "coreset"}
    assert not (tmp_path / "untracked" / "mlflow.db").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("where", ["database", "server"])
def test_a_model_is_kept_once_and_loads_without_unpickling(tmp_path, empty_store, uri, scores, where, monkeypatch):
    """Registered where that is requested; its logits are those of the checkpoint. One whose upload failed is none."""
    import mlflow.pyfunc

    dataset = scores.manifest["parents"]["dataset"]["path"]
    checkpoint = make_checkpoint(tmp_path / "model", dataset)
    run = TrackedRun(
        "t", "t", model=TrackedModel("easycore-trades", checkpoint.path, "digits-trades"), status="FINISHED"
    )
    port = free_port()
    with serve(tmp_path, port, empty_store) if where == "server" else contextlib.nullcontext():
        uri = f"http://127.0.0.1:{port}" if where == "server" else uri
        broken(monkeypatch, uri, run)
        Tracker(uri, EXPERIMENT).close([run])
        brought = whole_models(uri)
        # With another description it is not brought again.
        Tracker(uri, EXPERIMENT).close([replace(run, tags={"k": "v"})])
        client = client_of(uri)
        (version,) = client.search_model_versions("name = 'digits-trades'")
        (model,) = whole_models(uri)
        mlflow.set_tracking_uri(uri)
        try:
            loaded = mlflow.pyfunc.load_model("models:/digits-trades/1", dst_path=str(tmp_path))
        finally:
            mlflow.set_tracking_uri(None)

    assert [entry.model_id for entry in brought] == [model.model_id], "the next command has not brought it"
    assert version.run_id == model.source_run_id
    assert "python_model.pkl" not in str(loaded.metadata.flavors)
    pixels = np.random.default_rng(0).random((5, 1, 4, 4), np.float32)
    expected = open_checkpoint(checkpoint.path)[1](torch.from_numpy(pixels)).detach().numpy()
    np.testing.assert_array_equal(loaded.predict(pixels), expected)


def whole_models(uri):
    """Models of which all files are in the store."""
    client = client_of(uri)
    found = client.search_logged_models([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    return [model for model in found if model.status == "READY"]


def broken(monkeypatch, uri, run):
    """An upload that fails once the model is known to the store."""
    with monkeypatch.context() as patched:
        patched.setattr(
            "mlflow.tracking.MlflowClient.log_model_artifacts", lambda *_: (_ for _ in ()).throw(OSError("no room"))
        )
        Tracker(uri, EXPERIMENT).close([run])


def test_the_most_robust_model_of_each_objective_is_kept():
    """At the last eps; none of an objective whose trials all diverged."""

    def trial(name, training, *values):
        points = {1: {"loss": 1.0}, **({2: {"robust_accuracy_pgd20": values[0]}} if values else {})}
        return TrackedRun(name, name, {"training": training}, points=points)

    runs = [trial("a", "trades", 0.3), trial("b", "trades", 0.5), trial("c", "standard", 0.0), trial("d", "pgd")]
    kept = keep_best_models(runs, {name: f"/sweep/{name}" for name in "abcd"}, "mine")
    assert {run.name: run.model for run in kept} == {
        "a": None, "d": None,
        "b": TrackedModel("easycore-trades", "/sweep/b", "mine-trades"),
        "c": TrackedModel("easycore-standard", "/sweep/c", "mine-standard"),
    }  # fmt: skip
    assert keep_best_models(runs, dict.fromkeys("abcd", "/x"), None)[1].model.register is None


@pytest.mark.slow
def test_an_evaluation_is_tracked_where_the_user_says(uri, scores, tmp_path):
    """Accuracies, ends of their intervals, the worst class, and what speaks against it; its images as data."""
    dataset = make_image_dataset(tmp_path / "dataset", LABELS, LABELS)
    fields = dict(checkpoint=make_checkpoint(tmp_path / "model", dataset.path).path, dataset=dataset.path,
                  out=str(tmp_path / "evaluation"), eval_eps=(0.1,))  # fmt: skip
    summary = attack_here(EvaluateConfig(**fields), open_dataset(dataset.path), "cpu").manifest["summary"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a model of one step is suspicious
        evaluate(**fields, tracking_uri=uri)
    (run,) = runs_of(uri).values()
    (row,) = summary["robust"]

    assert run.data.metrics["clean_accuracy"] == summary["clean_accuracy"]
    assert run.data.metrics["clean_accuracy_worst_class"] == summary["worst_class_clean_accuracy"]
    for name in ("robust_accuracy_pgd20", "robust_accuracy_pgd20_eps_0.1"):
        found = [run.data.metrics[f"{name}{end}"] for end in ("", "_low", "_high", "_worst_class")]
        assert found == [row["accuracy"], *row["interval"], row["worst_class_accuracy"]]
    assert ("easycore.suspicious" in run.data.tags) == bool(summary["suspicious"])
    assert tags_of({"suspicious": ["a", "b"]}) == {"easycore.suspicious": "a; b"}
    assert tags_of({"suspicious": []}) == {}
    assert [(used.dataset.digest, used.tags[0].value) for used in run.inputs.dataset_inputs] == [
        (dataset.fingerprint[:36], "evaluation")
    ]
