"""Training and evaluation: the same weights and outcomes in one process and on Ray."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import torch
from safetensors.torch import load_file

from easycore_ray import evaluate, report, select, sweep, train
from easycore_ray.config.evaluation import EvaluateConfig
from easycore_ray.config.stages import TrainConfig
from easycore_ray.data.dataset import open_dataset
from easycore_ray.data.samples import read_split
from easycore_ray.engine.checkpoint import open_checkpoint
from easycore_ray.engine.checkpoint_files import BEST, LAST
from easycore_ray.engine.machine_use import SYSTEM
from easycore_ray.evaluation.attack_shards import attack_rows
from easycore_ray.evaluation.evaluate import evaluation_ids
from easycore_ray.evaluation.threats import threats_of
from easycore_ray.reporting.report import print_table
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import open_artifact
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.training.train import make_training_fit
from tests import faults
from tests.artifacts import weights_trained_here
from tests.worker_group import Group

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


# How the names of metrics begin that differ from run to run, besides seconds.
TIMES = ("stall_share", SYSTEM)
# Hardly trained against an attack that nothing withstands: no epoch is better than the first, which is the best.
OVERFITTING = dict(epochs=3, eps=1.0, beta=0.01, lr=0.2, seed=0)


def settings(digits, population, out, **changes):
    fields = dict(
        dataset=digits.path, coreset=population.path, out=str(out), model="cnn", width=4, epochs=2, batch_size=16,
        augment="crop", crop_pad=1, eps=0.1, attack_steps=2, tracking_uri="none", threads_per_worker=1, num_workers=1,
    )  # fmt: skip
    return fields | changes


@pytest.fixture(scope="module")
def checkpoint(digits, population, tmp_path_factory):
    """A TRADES model trained on one Ray Train worker."""
    return train(**settings(digits, population, tmp_path_factory.mktemp("train") / "model", training="trades"))


def test_one_ray_worker_and_this_process_train_the_same_weights(checkpoint, digits, population):
    """A worker of Ray Train and the loop run directly (as in a Tune trial) agree bit for bit."""
    config = TrainConfig(**settings(digits, population, "unused", training="trades"))
    expected = weights_trained_here(config)
    stored = load_file(checkpoint.path + "/model.safetensors")

    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], expected[name]) for name in stored)


def test_a_materialized_coreset_trains_the_weights_of_the_coreset(checkpoint, digits, tmp_path):
    """Its images in a dataset of their own, and the coreset within the whole dataset, are one and the same."""
    fields = dict(dataset=digits.path, method="random", fraction=97 / digits.manifest["counts"]["train"])
    coreset = select(**fields, out=str(tmp_path / "coreset"))
    assert select(**fields, out=coreset.path, materialize=True).fingerprint == coreset.fingerprint
    own = coreset.path + "/dataset"
    config = TrainConfig(**settings(digits, coreset, "unused", training="trades") | {"dataset": own, "coreset": None})
    expected = weights_trained_here(config)
    stored = load_file(checkpoint.path + "/model.safetensors")

    assert open_artifact(own).manifest["parents"]["coreset"]["fingerprint"] == coreset.fingerprint
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], expected[name]) for name in stored)


def test_a_checkpoint_builds_the_model_that_was_trained(checkpoint):
    """The manifest says how to build the model; the weights fill it, normalisation included."""
    _, model = open_checkpoint(checkpoint.path)
    stored = load_file(checkpoint.path + "/model.safetensors")

    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())
    assert not model.training


def test_outcomes_on_ray_equal_the_same_shards_in_this_process(checkpoint, digits, tmp_path):
    """Fixed, seeded shards make every image's outcome independent of where it was computed."""
    fields = dict(checkpoint=checkpoint.path, dataset=digits.path, out=str(tmp_path / "evaluation"), attack=("pgd20",),
                  eval_eps=(0.0, 0.05, 0.2), seed=5, num_workers=2)  # fmt: skip
    evaluation = evaluate(**fields)
    config = EvaluateConfig(**fields)
    dataset = open_dataset(digits.path)
    rows = read_split(dataset, "test", evaluation_ids(dataset, "test", None, 5))
    here = attack_rows(open_checkpoint(checkpoint.path)[1], rows, threats_of(config))
    stored = pq.read_table(evaluation.path + "/outcomes.parquet")

    assert len(rows.labels) > 250, "more than one shard, or there is nothing to divide"
    assert stored.equals(here)
    clean, weak, strong = (stored[name].to_numpy() for name in stored.column_names[3:])
    np.testing.assert_array_equal(clean, stored["clean_correct"].to_numpy())
    assert clean.sum() >= weak.sum() >= strong.sum()
    assert evaluation.manifest["summary"]["clean_accuracy"] == clean.mean()


@pytest.fixture(scope="module")
def swept(digits, two_workers, tmp_path_factory):
    """Folder of a sweep: a TRADES trial on the whole population, attacked with PGD and AutoAttack."""
    out = tmp_path_factory.mktemp("sweep") / "sweep"
    sweep(
        dataset=digits.path, scores=two_workers.path, out=str(out), method=(), fraction=(0.5,), seeds=(0,), beta=(6.0,),
        training=("trades",), train_epochs=2, model="cnn", width=4, batch_size=16, augment="crop",
        crop_pad=1, eps=0.1, attack_steps=2, attack=("pgd20", "autoattack"), eval_eps=(0.2,), num_eval_samples=260,
        tracking_uri="none", threads_per_worker=1, max_concurrent_trials=1,
    )  # fmt: skip
    return out


def test_a_trial_of_a_sweep_trains_the_weights_of_ray_train(swept, checkpoint):
    """A configuration in a Tune trial, under Ray Train and in this process: equal bit for bit, so one by identity."""
    trial = next((swept / "trials").glob("full_f1_trades*/checkpoint"))
    stored = load_file(trial / "model.safetensors")
    expected = load_file(checkpoint.path + "/model.safetensors")
    manifest = paths.read_json(str(trial / "manifest.json"))

    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], expected[name]) for name in stored)
    assert manifest["fingerprint"] == checkpoint.fingerprint
    assert manifest["parents"]["coreset"]["fingerprint"] == checkpoint.manifest["parents"]["coreset"]["fingerprint"]
    assert manifest["identity"] == checkpoint.manifest["identity"]


def test_autoattack_on_ray_equals_its_shards_in_one_process(swept, checkpoint, digits, tmp_path):
    """Two workers and a trial's own process give the same outcome of every image, warnings included."""
    fields = dict(checkpoint=checkpoint.path, dataset=digits.path, attack=("pgd20", "autoattack"), eval_eps=(0.2,),
                  num_eval_samples=260, threads_per_worker=1)  # fmt: skip
    done = evaluate(**fields, out=str(tmp_path / "evaluation"), num_workers=2)
    (trial,) = (swept / "trials").glob("full_f1_trades*/evaluation")
    stored = [pq.read_table(f"{folder}/outcomes.parquet") for folder in (done.path, trial)]
    kept = stored[0]["robust_autoattack_0.2"].to_numpy()

    assert stored[0].num_rows > 250, "more than one shard, or there is nothing to divide"
    assert 0 <= kept.sum() < stored[0]["clean_correct"].to_numpy().sum()
    assert stored[0].equals(stored[1], check_metadata=True)


def test_a_trial_of_several_workers_trains_and_attacks_on_all_of_them(digits, two_workers, tmp_path):
    """Its tasks find room outside what the trial itself reserves; outcomes are those of one process."""
    sweep(
        dataset=digits.path, scores=two_workers.path, out=str(tmp_path / "sweep"), method=(), fraction=(0.5,),
        seeds=(0,), training=("standard",), train_epochs=1, model="cnn", width=4, batch_size=16, augment="none",
        eval_eps=(0.1,), num_eval_samples=260, tracking_uri="none", threads_per_worker=1, trial_workers=2,
    )  # fmt: skip
    trial = tmp_path / "sweep" / "trials" / "full_f1_standard_s0"
    manifests = [paths.read_json(str(trial / name / "manifest.json")) for name in ("checkpoint", "evaluation")]
    config = EvaluateConfig(**manifests[1]["config"] | {"attack": ("pgd20",), "eval_eps": (0.1,)})
    dataset = open_dataset(digits.path)
    rows = read_split(dataset, "test", evaluation_ids(dataset, "test", 260, config.seed))
    here = attack_rows(open_checkpoint(str(trial / "checkpoint"))[1], rows, threats_of(config))

    assert [manifest["config"]["num_workers"] for manifest in manifests] == [2, 2]
    assert {entry["num_workers"] for entry in manifests[0]["epochs"]} == {2}
    assert pq.read_table(trial / "evaluation" / "outcomes.parquet").equals(here)


def test_a_sweep_tells_every_attack_and_their_worst(swept):
    """A column for each attack, the headline under all of them, and what the evaluations say of themselves."""
    for row in paths.read_json(str(swept / "summary.json"))["rows"]:
        each = [row[f"robust_accuracy_{name}_mean"] for name in row["attack"]]

        assert row["attack"] == ["pgd20", "autoattack"]
        assert row["robust_accuracy_mean"] <= min(each) <= row["clean_accuracy_mean"]
        assert row["worst_class_robust_accuracy_mean"] <= row["worst_class_robust_accuracy_pgd20_mean"]
        assert isinstance(row["suspicious"], list)
        assert isinstance(row["warnings"], list)


def test_a_run_killed_in_mid_epoch_ends_with_the_same_last_and_best(digits, population, tmp_path):
    """TRADES on two workers: one dies between two batches, then all with the driver; the same command ends it.

    Last and best weights are those of a run that nothing happened to, on two workers that are threads of this process,
    bit for bit, and so is every metric. Epochs have three segments, each of which commits.
    """
    fields = settings(digits, population, tmp_path / "killed", training="trades", num_workers=2, segment_images=48,
                      commit_minutes=0.0, **OVERFITTING)  # fmt: skip
    fit = make_training_fit(TrainConfig(**fields), open_dataset(digits.path), population)
    whole = Group(tmp_path / "whole", 2).run(fit)
    kills = [
        {"epoch": 2, "segment": 1, "rank": 1, "marker": str(tmp_path / "worker")},
        {"epoch": 3, "segment": 0, "rank": 0, "marker": str(tmp_path / "driver"), "driver": True},
    ]
    request = json.dumps({"job": "train", "fields": fields, "kills": kills})
    done = subprocess.run([sys.executable, faults.__file__, request], capture_output=True, text=True, check=False,
                          env=os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address},
                          timeout=500)  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert all(Path(kill["marker"]).exists() for kill in kills), "a kill did not happen"
    again = train(**fields)

    assert whole.best_epoch in (1, 2), "the best weights did not have to survive a kill"
    assert again.manifest["best_epoch"] == whole.best_epoch
    assert again.manifest["weights"] == {"last": "model.safetensors", "best": "best.safetensors"}
    for name, expected in ((LAST, whole.model), (BEST, whole.best)):
        stored = load_file(f"{again.path}/{name}")
        assert stored.keys() == expected.keys()
        assert all(torch.equal(stored[key], expected[key]) for key in stored)
    measured = [
        [
            {name: value for name, value in entry.items() if "seconds" not in name and not name.startswith(TIMES)}
            for entry in history
        ]
        for history in (whole.history, again.manifest["epochs"])
    ]
    assert measured[0] == measured[1]


def test_a_diverged_run_stops_on_all_workers_and_its_last_good_model_can_be_evaluated(digits, population, tmp_path):
    """Two workers end in the same step with one error; what was good before is a checkpoint."""
    fields = settings(digits, population, tmp_path / "run", num_workers=2, lr=0.2, weight_decay=300.0, epochs=6,
                      schedule="constant", warmup_fraction=0.0)  # fmt: skip
    ends = (
        r"(the loss is (nan|inf) in|the weights are not finite after) step \d+ of 42 \(epoch [2-6], learning rate 0.2\)"
    )
    with pytest.raises(EasyCoreError, match=ends):
        train(**fields)
    kept = str(tmp_path / "run" / "last_good")
    evaluation = evaluate(checkpoint=kept, dataset=digits.path, out=str(tmp_path / "e"), attack=("none",))

    assert open_checkpoint(kept)[0].manifest["counts"]["epochs"] >= 1
    assert evaluation.manifest["summary"]["num_samples"] == digits.manifest["counts"]["test"]


def test_a_sweep_can_be_finished_without_the_trials_that_diverged(digits, two_workers, tmp_path, capfd):
    """It fails at first; told to keep going it trains nothing again, and says in every table what is missing."""
    out = tmp_path / "sweep"
    fields = dict(
        dataset=digits.path, scores=two_workers.path, out=str(out), method=(), fraction=(0.5,), seeds=(0,),
        beta=(1.0, 1e39), training=("trades",), train_epochs=2, model="cnn", width=4, batch_size=16, augment="none",
        eps=0.1, attack_steps=1, val_attack_steps=0, eval_eps=(0.2,), num_eval_samples=60, threads_per_worker=1,
        max_concurrent_trials=1,
    )  # fmt: skip
    with pytest.raises(EasyCoreError, match=r"1 of 2 trials failed.*b1e\+39_s0: training diverged.*with --keep-going"):
        sweep(**fields)
    note = out / "trials" / "full_f1_trades_b1e+39_s0" / "checkpoint" / "diverged.json"
    before = note.stat().st_mtime_ns
    capfd.readouterr()
    done = sweep(**fields, keep_going=True)
    summary = paths.read_json(str(out / "summary.json"))

    assert note.stat().st_mtime_ns == before
    assert "1 of 2 trials are finished already" in capfd.readouterr().err
    assert [(row["beta"], row["seeds"]) for row in summary["rows"]] == [(1.0, [0])]
    assert [(lost["beta"], lost["seed"]) for lost in summary["diverged"]] == [(1e39, 0)]
    assert done.manifest["counts"] == {"trials": 1, "rows": 1, "diverged": 1}
    client = mlflow.MlflowClient(f"sqlite:///{out}/mlflow.db")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert {run.info.run_name.split()[0]: run.info.status for run in runs} == {
        "sweep": "FINISHED", "full_f1_trades_b1_s0": "FINISHED", "full_f1_trades_b1e+39_s0": "FAILED",
    }  # fmt: skip
    assert "seed 0: training diverged" in print_table(summary["rows"], summary["diverged"])
    assert Path(report(sweep=done.path, out=tmp_path / "report").page).is_file()
    assert "Diverged, without results" in (tmp_path / "report" / "report.html").read_text()
    with pytest.raises(EasyCoreError, match="all 1 trials diverged, the first with: training diverged: the loss"):
        sweep(**fields | {"out": str(tmp_path / "lost"), "beta": (1e39,)}, keep_going=True)


def test_a_checkpoint_of_other_images_is_refused(checkpoint, digits, tmp_path):
    """Evaluation on a dataset of another shape or other classes says what differs."""
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint.path, copy)
    manifest = copy / "manifest.json"
    content = json.loads(manifest.read_text())
    content["model"]["num_classes"] = 7
    manifest.write_text(json.dumps(content))

    with pytest.raises(EasyCoreError, match=r"does not fit|takes images of shape"):
        evaluate(checkpoint=str(copy), dataset=digits.path, out=str(tmp_path / "e"))


@contextlib.contextmanager
def libraries_of(title):
    """Gives a set that fills with the paths of the files that processes of this Ray with such a title have mapped."""
    found, done = set(), threading.Event()

    def look():
        while not done.wait(0.1):
            for process in faults.processes(os.environ[faults.MARK], title):
                with contextlib.suppress(OSError):
                    found.update(line.split()[-1] for line in Path(f"/proc/{process}/maps").read_text().splitlines())

    looking = threading.Thread(target=look)
    looking.start()
    yield found
    done.set()
    looking.join()


def test_a_users_model_trains_against_pgd_on_ray_as_in_this_process(digits, population, tmp_path):
    """A pgd run of a model of one's own, of 3 steps: same weights on a Ray worker as here; its name is in the manifest.

    Ray Train's controller has no use for torch, and does not load it.
    """
    changes = dict(model="tests.users_models:good", width=None, training="pgd", steps=3)
    with libraries_of("ray::TrainController") as libraries:
        done = train(**settings(digits, population, tmp_path / "model", **changes))
    config = TrainConfig(**settings(digits, population, "unused", **changes))
    expected = weights_trained_here(config)
    artifact, model = open_checkpoint(done.path)

    assert artifact.manifest["steps"] == 3
    assert artifact.manifest["model"]["name"] == "tests.users_models:good"
    assert artifact.manifest["model"]["width"] is None
    assert artifact.manifest["config"]["training"] == "pgd"
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert any("ray" in path for path in libraries)
    assert not any("libtorch" in path for path in libraries)
