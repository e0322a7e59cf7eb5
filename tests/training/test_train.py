"""Which weights a training run keeps: the last, the best by validation, and the last good ones of a diverged run."""

import json
import shutil

import pytest
import torch

from easycore_ray.config.arms import Arm
from easycore_ray.config.evaluation import EvaluateConfig
from easycore_ray.config.stages import TrainConfig
from easycore_ray.data.dataset import open_dataset
from easycore_ray.data.samples import read_split
from easycore_ray.engine.checkpoint import open_checkpoint
from easycore_ray.engine.checkpoint_files import best_epoch_text
from easycore_ray.engine.run import fit_here
from easycore_ray.engine.run_identity import claim_run
from easycore_ray.engine.run_inputs import open_run_inputs
from easycore_ray.engine.state import HaltedError, load_state, save_state
from easycore_ray.engine.worker_group import LocalContext
from easycore_ray.experiments.finished_trials import FinishedTrial, read_finished
from easycore_ray.experiments.results import lost_row, result_rows, training_curves
from easycore_ray.experiments.tracked_trials import _row_metrics
from easycore_ray.experiments.trial_runner import _train_and_attack as train_and_attack
from easycore_ray.experiments.trial_runner import trial_summary
from easycore_ray.experiments.trials import Trial
from easycore_ray.inspection.inspect import inspect
from easycore_ray.inspection.verify import verify
from easycore_ray.storage.artifact import Artifact, open_artifact
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.training.train import (
    DivergedError,
    finish_checkpoint,
    keep_last_good,
    make_training_fit,
    read_divergence,
    train,
    train_here,
)
from tests.artifacts import edit_manifest, make_image_dataset

# With this seed, robust accuracy on the validation split is highest after epoch 2 and clean accuracy after epoch 3.
SEED = 7


def settings(dataset, **changes):
    """A TRADES run of 4 epochs; at a constant rate, so that a shorter run is the beginning of a longer one."""
    fields = dict(
        dataset=dataset.path, out="unused", model="cnn", width=2, epochs=4, batch_size=16, augment="none", eps=0.03,
        attack_steps=2, val_attack_steps=3, num_workers=1, training="trades", schedule="constant", warmup_fraction=0.0,
        seed=SEED, tracking_uri="none",
    )  # fmt: skip
    return TrainConfig(**fields | changes)


def trained(config, context=None):
    """The state after the last epoch of a run in this process."""
    dataset, _ = open_run_inputs(config)
    rows = read_split(dataset, "train")
    fit = make_training_fit(config, dataset, None)
    return train_here(fit, rows) if context is None else fit_here(fit, rows, context)


def finished(config, state):
    """The checkpoint a run's last state becomes."""
    dataset, parents = open_run_inputs(config)
    made = claim_run("checkpoint", config, parents)
    return finish_checkpoint(config, made, parents, make_training_fit(config, dataset, None), state, 1.0)


def same(weights, others):
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


def test_the_most_robust_epoch_is_the_best_not_the_most_accurate(dataset):
    """An adversarial run goes by robust validation accuracy, unless it is switched off: then by the clean one."""
    robust, clean = (trained(settings(dataset, val_attack_steps=steps)) for steps in (3, 0))
    values = [entry["val_robust_accuracy"] for entry in robust.history]

    assert robust.best_epoch == 1 + values.index(max(values)) == 2
    assert clean.best_epoch == 3
    assert [entry["val_accuracy"] for entry in clean.history] == [entry["val_accuracy"] for entry in robust.history]
    assert all(entry["val_seconds"] > 0 for entry in robust.history)
    assert not any("val_robust_accuracy" in entry for entry in clean.history)
    assert same(robust.model, clean.model), "looking at the validation split changed what is trained"


def test_the_best_weights_are_those_after_the_best_epoch(dataset):
    """As a run that ends there leaves them, bit for bit."""
    state = trained(settings(dataset))

    assert same(state.best, trained(settings(dataset, epochs=2)).model)
    assert not same(state.best, state.model)


def test_of_equally_good_epochs_the_first_is_the_best(dataset):
    """A standard run whose accuracy is as high again later keeps the earlier weights."""
    state = trained(settings(dataset, training="standard", seed=3))
    values = [entry["val_accuracy"] for entry in state.history]

    assert values.count(max(values)) > 1, "no tie to decide"
    assert state.best_epoch == 1 + values.index(max(values))


class Interrupted(LocalContext):
    """Commits to a folder, as on Ray, and is lost after an epoch."""

    def __init__(self, folder, after=None):
        super().__init__()
        self.folder, self.after = str(folder), after

    def restore(self):
        return load_state(self.folder) if self.after is None else None

    def commit(self, state):
        save_state(self.folder, state)
        if state.epoch == self.after:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [2, 3])
def test_an_interrupted_run_ends_with_the_same_last_and_best(dataset, tmp_path, after):
    """Lost right after the best epoch, whose weights are the last then, or later, when they lie beside the last."""
    with pytest.raises(KeyboardInterrupt):
        trained(settings(dataset), Interrupted(tmp_path, after))
    assert (tmp_path / "best.safetensors").exists() == (after == 3)
    state, whole = trained(settings(dataset), Interrupted(tmp_path)), trained(settings(dataset))

    assert same(state.model, whole.model)
    assert same(state.best, whole.best)
    assert state.best_epoch == whole.best_epoch == 2


def test_a_checkpoint_opens_with_last_or_best_weights(dataset, tmp_path):
    """The manifest says which epoch is the best, by what and how good; the fingerprint covers both files."""
    config = settings(dataset, out=str(tmp_path / "model"))
    state = trained(config)
    checkpoint = finished(config, state)
    manifest = checkpoint.manifest

    assert same(open_checkpoint(checkpoint.path)[1].state_dict(), state.model)
    assert same(open_checkpoint(checkpoint.path, "best")[1].state_dict(), state.best)
    assert (manifest["best_epoch"], manifest["selected_by"]) == (2, "val_robust_accuracy")
    assert manifest["best_value"] == max(entry["val_robust_accuracy"] for entry in state.history)
    assert best_epoch_text(manifest).startswith(
        "2 (kept as best.safetensors beside the last), by robust accuracy on the"
    )
    assert problems(checkpoint) == []
    shutil.copy(tmp_path / "model" / "model.safetensors", tmp_path / "model" / "best.safetensors")
    assert "model.safetensors and best.safetensors: not the fingerprint" in problems(checkpoint)[0]


def problems(checkpoint):
    return verify(checkpoint)


def test_the_best_weights_are_not_written_twice(dataset, tmp_path):
    """Where the last epoch is the best there is one file, which is both."""
    config = settings(dataset, epochs=2, out=str(tmp_path / "model"))
    checkpoint = finished(config, trained(config))

    assert sorted(path.name for path in (tmp_path / "model").glob("*.safetensors")) == ["model.safetensors"]
    assert checkpoint.manifest["weights"] == {"last": "model.safetensors", "best": "model.safetensors"}
    assert same(
        open_checkpoint(checkpoint.path, "best")[1].state_dict(), open_checkpoint(checkpoint.path)[1].state_dict()
    )
    assert best_epoch_text(checkpoint.manifest).startswith("2 (the last)")


def test_without_a_validation_split_there_is_no_best(tmp_path):
    """The last weights are kept, the manifest says that none was chosen, and asking for the best is refused."""
    config = settings(make_image_dataset(tmp_path / "dataset", [0, 1, 2] * 20), out=str(tmp_path / "model"), epochs=1)
    checkpoint = finished(config, trained(config))

    assert (checkpoint.manifest["best_epoch"], checkpoint.manifest["selected_by"]) == (None, None)
    assert "no validation split" in best_epoch_text(checkpoint.manifest)
    with pytest.raises(EasyCoreError, match=r"has no best weights: .*no validation split.*pass --weights last"):
        open_checkpoint(checkpoint.path, "best")


def test_a_budget_wider_than_the_image_is_refused_before_any_work(dataset, tmp_path):
    """An l2 eps meant in 255ths; where nothing is attacked, eps is not looked at."""
    fields = dict(norm="l2", eps=128.0)
    with pytest.raises(EasyCoreError, match="did you mean 128/255"):
        train(settings(dataset, out=str(tmp_path / "refused"), **fields))
    assert not (tmp_path / "refused").exists()
    open_run_inputs(settings(dataset, training="standard", **fields))


def diverging(dataset, **changes):
    """A run whose weight decay multiplies the weights until they overflow, in the second epoch."""
    return settings(dataset, weight_decay=300.0, lr=0.2, **changes)


def test_a_diverged_run_keeps_its_last_good_model(dataset, tmp_path):
    """It stops, says where and why, and what was good before is a checkpoint that opens and says what it is."""
    config = diverging(dataset, out=str(tmp_path / "model"))
    found, parents = open_run_inputs(config)
    made = claim_run("checkpoint", config, parents)
    with pytest.raises(HaltedError, match=r"the loss is nan in step \d of 16 \(epoch 2, learning rate 0.2\)") as caught:
        trained(config)
    error = keep_last_good(config, made, parents, make_training_fit(config, found, None), caught.value, 1.0)
    kept = str(tmp_path / "model" / "last_good")

    assert str(error) == f"{caught.value}; the model after epoch 1, the last good one, is kept in {kept}"
    artifact, model = open_checkpoint(kept)
    assert same(model.state_dict(), trained(diverging(dataset, epochs=1)).model)
    assert artifact.manifest["halted"] == str(caught.value)
    assert artifact.manifest["counts"]["epochs"] == 1
    note = read_divergence(config)
    assert (note["problem"], note["device_seconds"]) == (str(error), 1.0)
    assert read_divergence(config.replace(lr=0.1)) is None, "another run may not"
    with pytest.raises(EasyCoreError, match="still being written"):
        open_checkpoint(config.out)


def test_a_run_that_went_well_after_all_has_not_diverged(dataset, tmp_path):
    """The note of an earlier attempt counts for nothing beside a finished checkpoint."""
    config = diverging(dataset, epochs=1, out=str(tmp_path / "model"))
    found, parents = open_run_inputs(config)
    made = claim_run("checkpoint", config, parents)
    keep_last_good(config, made, parents, make_training_fit(config, found, None), HaltedError("by chance", None), 1.0)

    assert read_divergence(config)["problem"] == "by chance; no epoch was completed before"
    finished(config, trained(config))
    assert read_divergence(config) is None


def test_a_run_that_diverges_at_once_has_nothing_to_keep(dataset, tmp_path):
    """The message says so, and it is noted all the same."""
    config = settings(dataset, lr=1e30, out=str(tmp_path / "model"))
    found, parents = open_run_inputs(config)
    made = claim_run("checkpoint", config, parents)
    with pytest.raises(HaltedError) as caught:
        trained(config)
    error = keep_last_good(config, made, parents, make_training_fit(config, found, None), caught.value, 1.0)

    assert isinstance(error, DivergedError)
    assert str(error).endswith("lower --lr or raise --warmup-fraction; no epoch was completed before")
    assert read_divergence(config)["problem"] == str(error)
    assert not (tmp_path / "model" / "last_good").exists()


# ---------------------------------------------------------------- trials of a sweep


@pytest.fixture(scope="module")
def trials(dataset, tmp_path_factory):
    """Two trials that differ by their seed, run as a sweep runs them: best epoch 2, and another; with an average."""
    root = tmp_path_factory.mktemp("trials")
    found = [make_trial(dataset, root, seed=seed, epochs=4, ema=0.9) for seed in (SEED, SEED + 1)]
    for trial in found:
        train_and_attack(trial, lambda _: None)
    return found


def make_trial(dataset, root, *, seed, **changes):
    out = f"{root}/{seed}"
    train = settings(dataset, out=f"{out}/checkpoint", seed=seed, **changes)
    evaluate = EvaluateConfig(out=f"{out}/evaluation", checkpoint=train.out, dataset=dataset.path, split="val",
                              eval_eps=(0.0, 0.05))  # fmt: skip
    return Trial(arm=Arm("full", None, "none"), fraction=1.0, training="trades", beta=6.0, seed=seed, train=train,
                 evaluate=evaluate)  # fmt: skip


def scores_of(dataset):
    return Artifact("/nowhere", {"config": {"seed": 0}, "device_seconds": 0.0})


@pytest.mark.slow
def test_a_trial_evaluates_last_best_and_average(trials, dataset):
    """Its best epoch and its average are attacked as the last is, and told to whoever follows the trial."""
    trial = trials[0]
    configs = (trial.evaluate, trial.evaluation_of("best"), trial.evaluation_of("averaged"))
    last, best, averaged = (open_artifact(config.out).manifest["summary"] for config in configs)
    told = trial_summary(FinishedTrial.open(trial))

    assert read_finished([trial]) == {trial.evaluate.out: FinishedTrial.open(trial)}
    assert last != best
    assert averaged["num_samples"] == 21
    assert told["metrics"]["robust_accuracy_pgd20_averaged"] == averaged["robust"][1]["accuracy"]
    assert "; averaged: clean " in told["words"]
    assert told["metrics"]["best_epoch"] == 2
    assert told["metrics"]["clean_accuracy"] == last["clean_accuracy"]
    assert told["metrics"]["robust_accuracy_pgd20_best"] == best["robust"][1]["accuracy"]
    assert "; best epoch: clean " in told["words"]


@pytest.mark.slow
def test_a_trial_without_its_second_evaluation_is_not_finished(dataset, tmp_path):
    """Run again it does only what is missing."""
    trial = make_trial(dataset, tmp_path, seed=SEED)
    train_and_attack(trial, lambda _: None)
    before = (
        open_artifact(trial.train.out).manifest["created"],
        open_artifact(trial.evaluation_of("best").out).fingerprint,
    )
    shutil.rmtree(trial.evaluation_of("best").out)
    assert read_finished([trial]) == {}
    train_and_attack(trial, lambda _: pytest.fail("it trained again"))

    assert read_finished([trial])
    assert before == (
        open_artifact(trial.train.out).manifest["created"],
        open_artifact(trial.evaluation_of("best").out).fingerprint,
    )


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_a_killed_trial_goes_on_from_its_last_epoch(trials, dataset, tmp_path, after):
    """Lost after any epoch, it trains the others alone, and ends with the bits of a trial that nothing happened to."""
    trial, whole = make_trial(dataset, tmp_path, seed=SEED, ema=0.9), trials[0]
    epochs = []

    def report(entry):
        epochs.append(entry["epoch"])
        if entry["epoch"] == after and len(epochs) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_and_attack(trial, report)
    assert inspect(path=trial.train.out)["progress"]["committed_epochs"] == after
    train_and_attack(trial, report)

    assert epochs == [1, 2, 3, 4], "each was trained once"
    for mine, theirs in ((trial.train, whole.train), (trial.evaluate, whole.evaluate)):
        assert open_artifact(mine.out).fingerprint == open_artifact(theirs.out).fingerprint
    assert not list(tmp_path.rglob("*.zip")), "the state of a finished run is of no use"


@pytest.mark.slow
def test_a_trial_whose_last_epoch_is_the_best_is_evaluated_once(dataset, tmp_path):
    """Its best columns are those of the last; the last is that in which its steps ended."""
    trial = make_trial(dataset, tmp_path, seed=SEED, epochs=40, steps=8)
    train_and_attack(trial, lambda _: None)
    row = result_rows([FinishedTrial.open(trial)], scores_of(dataset))[1]

    assert trial_summary(FinishedTrial.open(trial))["epoch"] == 2
    assert [each.manifest["config"]["weights"] for each in FinishedTrial.open(trial).evaluations] == ["last"]
    assert not (tmp_path / str(SEED) / "evaluation_best").exists()
    assert read_finished([trial])
    assert row["best_epoch_mean"] == row["epochs"] == 2
    assert row["robust_accuracy_pgd20_best_mean"] == row["robust_accuracy_pgd20_mean"]
    assert row["robust_gap_mean"] == 0 == trial_summary(FinishedTrial.open(trial))["metrics"]["robust_gap"]


@pytest.mark.slow
def test_result_rows_have_the_best_beside_the_last(trials, dataset):
    """Mean and spread over seeds of what each seed's own best epoch reaches."""
    rows = result_rows(map(FinishedTrial.open, trials), scores_of(dataset))
    epochs = [open_artifact(trial.train.out).manifest["best_epoch"] for trial in trials]
    accuracies = [FinishedTrial.open(trial).summaries["best"] for trial in trials]

    averaged = [FinishedTrial.open(trial).summaries["averaged"] for trial in trials]
    last = [FinishedTrial.open(trial).summaries["last"] for trial in trials]

    assert [row["eps"] for row in rows] == [0.0, 0.05]
    for number, row in enumerate(rows):
        each = torch.tensor([summary["robust"][number]["accuracy"] for summary in accuracies], dtype=torch.float64)
        assert row["best_epoch_mean"] == sum(epochs) / 2
        assert row["robust_accuracy_pgd20_best_mean"] == pytest.approx(float(each.mean()))
        assert row["robust_accuracy_pgd20_best_std"] == pytest.approx(float(each.std()))
        ended = [summary["robust"][number]["accuracy"] for summary in last]
        gaps = each - torch.tensor(ended, dtype=torch.float64)
        assert row["robust_gap_mean"] == pytest.approx(float(gaps.mean()))
        assert row["robust_gap_std"] == pytest.approx(float(gaps.std()))
        each = torch.tensor([summary["robust"][number]["accuracy"] for summary in averaged], dtype=torch.float64)
        assert row["robust_accuracy_averaged_mean"] == pytest.approx(float(each.mean()))
        assert row["robust_accuracy_averaged_std"] == pytest.approx(float(each.std()))
        metrics = _row_metrics(row)
        (name,) = [name for name in metrics if "/robust_accuracy_averaged_mean_eps_" in name]
        assert metrics[name] == row["robust_accuracy_averaged_mean"]
        assert row["validation_seconds"] > 0
        names = {name for name in row if name.endswith(("images_per_second", "peak_memory_megabytes"))}
        assert names == {f"{of}_{what}" for of in ("training", "evaluation")
                         for what in ("images_per_second", "peak_memory_megabytes")}  # fmt: skip
        assert all(row[name] > 50 for name in names)
    assert rows[0]["robust_accuracy_pgd20_best_mean"] == rows[0]["clean_accuracy_best_mean"], "eps 0 is no attack"
    gap = trial_summary(FinishedTrial.open(trials[0]))["metrics"]["robust_gap"]
    assert gap == pytest.approx(accuracies[0]["robust"][1]["accuracy"] - last[0]["robust"][1]["accuracy"])
    json.dumps(rows, allow_nan=False)


def test_rows_name_the_seeds_that_are_missing_in_their_means(trials, dataset):
    """One seed diverged: the row is the other's, and says so; a wholly lost arm has no row, but an entry."""
    (row, _) = result_rows([FinishedTrial.open(trials[0])], scores_of(dataset), trials[1:])
    (whole, _) = result_rows(map(FinishedTrial.open, trials), scores_of(dataset))
    lost = lost_row(trials[1], "the loss is nan")

    assert (row["seeds"], row["diverged_seeds"]) == ([trials[0].seed], [trials[1].seed])
    assert row["clean_accuracy_std"] is None
    assert whole["diverged_seeds"] == []
    assert lost == {
        **{name: row[name] for name in ("method", "score", "balance", "fraction", "training", "beta")},
        "seed": trials[1].seed,
        "problem": "the loss is nan",
    }


def test_rows_without_a_validation_split_have_no_best(tmp_path):
    """None, not the last one's numbers in disguise."""
    dataset = make_image_dataset(tmp_path / "dataset", [0, 1, 2] * 20)
    trial = make_trial(dataset, tmp_path, seed=0, epochs=1)
    finished(trial.train, trained(trial.train))
    summary = {"clean_accuracy": 0.5, "worst_class_clean_accuracy": 0.5, "suspicious": [], "warnings": []}
    robust = [
        {"attack": "pgd20", "eps": eps, "accuracy": 0.25, "worst_class_accuracy": 0.0}
        for eps in trial.evaluate.eval_eps
    ]
    write_evaluation(trial.evaluate.out, summary | {"robust": robust})
    row = result_rows([FinishedTrial.open(trial)], scores_of(dataset))[0]

    assert {key: value for key, value in row.items() if "best" in key} == dict.fromkeys(
        ("best_epoch_mean", "clean_accuracy_best_mean", "clean_accuracy_best_std", "robust_accuracy_pgd20_best_mean",
         "robust_accuracy_pgd20_best_std"))  # fmt: skip
    assert row["clean_accuracy_mean"] == 0.5
    assert row["robust_gap_mean"] is row["robust_gap_std"] is None


def write_evaluation(out, summary):
    from easycore_ray.storage.artifact import claim, finish

    made = claim(out, "evaluation", "identity")
    finish(made, fingerprint="f", config={}, parents={}, counts={}, wall_seconds=0.0, summary=summary)


def test_curves_are_means_over_seeds(trials):
    """Epoch by epoch, what the trials' checkpoints recorded."""
    (curve,) = training_curves(map(FinishedTrial.open, trials))
    histories = [open_artifact(trial.train.out).manifest["epochs"] for trial in trials]

    assert [entry["epoch"] for entry in curve["epochs"]] == [1, 2, 3, 4]
    for number, entry in enumerate(curve["epochs"]):
        for name in ("train_loss", "train_accuracy", "val_accuracy", "val_robust_accuracy"):
            assert entry[name] == pytest.approx(sum(history[number][name] for history in histories) / 2)


def test_a_diverged_trial_keeps_its_last_good_model(dataset, tmp_path):
    """As a run on its own does, and the trial's error says where."""
    trial = make_trial(dataset, tmp_path, seed=SEED, weight_decay=300.0, lr=0.2)

    assert read_divergence(trial.train) is None
    with pytest.raises(DivergedError, match=rf"is kept in {trial.train.out}/last_good$") as caught:
        train_and_attack(trial, lambda _: None)
    assert read_divergence(trial.train)["problem"] == str(caught.value)
    assert (
        open_dataset(dataset.path).num_classes
        == open_checkpoint(f"{trial.train.out}/last_good")[1](torch.zeros(1, 1, 4, 4)).shape[1]
    )


@pytest.mark.ray
def test_a_constant_channel_is_said(ray_session, tmp_path, monkeypatch, capsys):
    """Also for datasets of earlier releases, whose manifest says 0."""
    dataset = make_image_dataset(tmp_path / "dataset", [0, 1, 2] * 8)
    edit_manifest(dataset.path, mean=[77 / 255], std=[0.0])

    def stop(*_, **__):
        raise EasyCoreError("far enough")

    monkeypatch.setattr("easycore_ray.training.train.fit_tracked", stop)
    with pytest.raises(EasyCoreError, match="far enough"):
        train(settings(dataset, out=f"{tmp_path}/out", batch_size=8))
    assert "train: channel 0 is 77/255 in every training image; its standard deviation is taken as 1" in (
        capsys.readouterr().err
    )


def test_every_epoch_says_what_the_training_process_took(trials):
    """Its memory and its share of a core, in the manifest, from which MLflow has them."""
    epochs = FinishedTrial.open(trials[0]).checkpoint.manifest["epochs"]

    assert len(epochs) == 4
    assert all(entry["system/memory_usage_megabytes"] > 50 for entry in epochs)
    assert all(entry["system/cpu_utilization_percentage"] > 0 for entry in epochs)
