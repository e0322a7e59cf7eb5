"""What a large sweep asks of an object store and of MLflow once its trials are trained, counted trial by trial."""

import shutil
import time

import pytest

pytest.importorskip("moto")

from easycore_ray import sweep
from easycore_ray.config.experiments import SweepConfig
from easycore_ray.config.identity import artifact_identity
from easycore_ray.data.coreset import open_run_data
from easycore_ray.data.dataset import open_dataset
from easycore_ray.engine.run_identity import run_identity
from easycore_ray.experiments.finished_trials import FinishedTrial, read_finished
from easycore_ray.experiments.plans import open_sweep_inputs
from easycore_ray.experiments.tracked_trials import describe_trial, new_trial_run
from easycore_ray.experiments.trials import coreset_folders, make_trials, select_coresets
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import FORMAT_VERSION, MANIFEST, RUN, Artifact
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.tracking.mlflow import Tracker
from easycore_ray.tracking.runs import TrackedRun
from tests.artifacts import make_image_dataset, make_scoring_run
from tests.object_store import Proxy, environment, running_store
from tests.scoring.test_reduce_remote import upload
from tests.tracking.stores import EXPERIMENT, free_port, history, runs_of, serve

LABELS = [number % 3 for number in range(60)]
EPOCHS = 3


def sweep_of(root, seeds, **changes):
    """Two trials for each seed: all data, and the easiest half."""
    return SweepConfig(
        dataset=f"{root}/dataset", scores=f"{root}/scores", out=f"{root}/sweep-{seeds}", method=("easycore",),
        fraction=(0.5,), seeds=tuple(range(seeds)), training=("standard",), train_epochs=EPOCHS, model="cnn", width=2,
        augment="none", eval_eps=(0.1,), **{"tracking_uri": "none"} | changes,
    )  # fmt: skip


def write_manifest(out, kind, key, **content):
    """A finished artifact, without the files that a sweep does not open."""
    held = {"kind": kind, "format_version": FORMAT_VERSION, "identity": key, "fingerprint": f"of {out}", "config": {}}
    paths.write_json(paths.join(out, MANIFEST), held | {"parents": {}, "device_seconds": 1.0} | content)


def write_trials(config):
    """What the trials of a sweep would have made: checkpoints whose best epoch is not the last, and evaluations."""
    out = paths.absolute(config.out)
    key = artifact_identity("sweep", config, open_sweep_inputs(config)[2])
    paths.write_json(paths.join(out, RUN), {"kind": "sweep", "format_version": FORMAT_VERSION, "identity": key,
                                            "nonce": "0123abcd"})  # fmt: skip
    folders = select_coresets(config, open_dataset(config.dataset), out)
    trials = make_trials(config, out, folders)
    entry = {"num_workers": 1, "train_seconds": 0.5, "val_seconds": 0.1, "train_loss": 1.0, "train_accuracy": 0.5,
             "val_accuracy": 0.5}  # fmt: skip
    robust = [{"attack": "pgd20", "eps": 0.1, "accuracy": 0.25, "worst_class_accuracy": 0.1, "interval": [0.2, 0.3]}]
    summary = {"clean_accuracy": 0.5, "worst_class_clean_accuracy": 0.4, "clean_interval": [0.4, 0.6],
               "num_samples": 20, "suspicious": [], "warnings": [], "robust": robust}  # fmt: skip
    for trial in trials:
        _, parents = open_run_data(trial.train.dataset, trial.train.coreset)
        write_manifest(
            trial.train.out, "checkpoint", run_identity("checkpoint", trial.train, parents), best_epoch=2, steps=3,
            weights={"last": "model.safetensors", "best": "best.safetensors"}, counts={"samples": 60, "epochs": EPOCHS},
            epochs=[{"epoch": epoch, **entry} for epoch in range(1, EPOCHS + 1)],
            parents={role: parent.as_parent() for role, parent in parents.items()},
        )  # fmt: skip
        for each in (trial.evaluate, trial.evaluation_of("best")):
            write_manifest(each.out, "evaluation", artifact_identity("evaluation", each, {}), summary=summary)
    return trials


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A dataset and its scores, on this machine's disk."""
    root = tmp_path_factory.mktemp("inputs")
    dataset = make_image_dataset(root / "dataset", LABELS, LABELS[:20])
    make_scoring_run(root / "scores", dataset, LABELS)
    return str(root)


@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.parametrize("most", [12, pytest.param(1000, marks=pytest.mark.soak)])
def test_a_sweep_opens_each_artifact_of_a_trial_once(ray_session, inputs, monkeypatch, most):
    """Of trials that are trained and evaluated, whose sweep was killed before its summary: five requests at most."""
    counted = {}
    with running_store("far") as store:
        for name, value in environment(store.url).items():
            monkeypatch.setenv(name, value)
        for name in ("dataset", "scores"):
            upload(f"{inputs}/{name}", f"s3://far/{name}")
        for seeds in (2, most):
            config = sweep_of("s3://far", seeds)
            trials = write_trials(config)
            proxy = Proxy(store.port)
            with monkeypatch.context() as patch:
                patch.setenv("AWS_ENDPOINT_URL", proxy.url)
                done = sweep(config)
            counted[len(trials)] = sum(proxy.requests.values())
            assert done.manifest["counts"]["trials"] == len(trials)
            print(f"{len(trials)} trials: {dict(proxy.requests)}")
        found = read_finished(trials)
    few, many = counted
    assert (counted[many] - counted[few]) / (many - few) <= 5, counted
    assert list(found) == [trial.place for trial in trials]
    assert [len(each.evaluations) for each in found.values()] == [2] * len(trials)


def test_what_is_not_whole_is_not_finished(inputs, tmp_path):
    """Nor is one without its checkpoint or either evaluation; a checkpoint of another configuration is refused."""
    for name in ("dataset", "scores"):
        shutil.copytree(f"{inputs}/{name}", tmp_path / name)
    trials = write_trials(sweep_of(tmp_path, 2))
    assert [each.trial for each in read_finished(trials).values()] == trials
    other = paths.join(trials[3].train.out, MANIFEST)
    kept = paths.read_json(other)
    paths.write_json(other, kept | {"identity": "of another configuration"})
    with pytest.raises(EasyCoreError, match="holds a checkpoint made with another configuration or input"):
        read_finished(trials)
    paths.write_json(other, kept)
    lost = (trials[0].train.out, trials[1].evaluate.out, trials[2].evaluation_of("best").out)
    for out in lost:
        paths.delete_file(paths.join(out, MANIFEST))
    assert [each.trial for each in read_finished(trials).values()] == trials[3:]
    assert read_finished([]) == {}


@pytest.mark.slow
def test_each_epoch_is_one_request_to_mlflow_and_a_trial_six_more(inputs, empty_store, tmp_path):
    """Live, as a sweep sends them, and from the artifacts alone, once they are there; through a real server."""
    config = sweep_of(inputs, 1)
    folders = coreset_folders(config, config.out)
    trial = make_trials(config, config.out, folders)[0]
    entries = [{"epoch": epoch, "train_loss": 1 / epoch, "train_accuracy": 0.5} for epoch in range(1, EPOCHS + 1)]
    robust = {"attack": "pgd20", "eps": 0.1, "accuracy": 0.25, "worst_class_accuracy": 0.1, "interval": [0.2, 0.3]}
    summary = {"clean_accuracy": 0.5, "worst_class_clean_accuracy": 0.4, "clean_interval": [0.4, 0.6],
               "num_samples": 20, "suspicious": [], "warnings": [], "robust": [robust]}  # fmt: skip
    dataset = open_dataset(config.dataset)
    made = {"epochs": entries, "best_epoch": 3, "parents": {"dataset": dataset.as_parent()}}
    finished = FinishedTrial(
        trial, Artifact(trial.train.out, made), (Artifact(trial.evaluate.out, {"summary": summary}),)
    )
    port = free_port()
    with serve(tmp_path, port, empty_store):
        proxy = Proxy(port)
        for key, live in (("live", True), ("later", False)):
            parent = TrackedRun(key, key)
            tracker = Tracker(proxy.url, EXPERIMENT)
            tracker.send(parent)
            wait_until_sent(tracker)
            before = sum(proxy.requests.values())
            run = describe_trial(finished, parent)
            if live:
                tracker.send(new_trial_run(trial, parent))
                for entry in entries:
                    tracker.send(TrackedRun(run.key, run.name, parent=parent, points={entry["epoch"]: entry}))
            tracker.close([run])
            requests = sum(proxy.requests.values()) - before
            print(f"{key}: {requests} requests for {EPOCHS} epochs")
            assert requests <= EPOCHS * live + 6, proxy.requests
            held = runs_of(f"http://127.0.0.1:{port}")[run.key]
            assert held.info.status == "FINISHED"
            assert held.data.metrics["robust_accuracy_pgd20"] == 0.25
            assert len(history(f"http://127.0.0.1:{port}", held, "train_loss")) == EPOCHS


def wait_until_sent(tracker):
    """Wait until a tracker's thread has sent what is queued."""
    deadline = time.monotonic() + 60
    while not tracker._store._held and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
