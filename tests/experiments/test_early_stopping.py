"""What a sweep stops early, by Tune's own scheduler: shares of steps, rungs, notes, and what it takes up again."""

import json
import zipfile
from types import SimpleNamespace

import pytest

from easycore_ray import pipeline
from easycore_ray.config.experiments import SweepConfig
from easycore_ray.engine.run_history import local_commit_file
from easycore_ray.experiments.comparison_rules import SHARE, VALIDATION, check_comparable, mixed_order, rungs_of
from easycore_ray.experiments.early_stopping import EarlyStopping
from easycore_ray.experiments.stopped_trials import (
    committed_history,
    decided_history,
    note_stop,
    read_stop,
    read_stops,
    standings,
)
from easycore_ray.experiments.trials import coreset_folders, make_trials
from easycore_ray.storage import paths
from easycore_ray.storage.errors import EasyCoreError, FieldsError
from tests.artifacts import make_image_dataset

STOP, CONTINUE = "STOP", "CONTINUE"


def config_of(**changes):
    fields = dict(out="o", dataset="d", scores="s", method=("random",), fraction=(0.1, 0.2, 0.3, 0.5), seeds=(0,),
                  training=("trades",), beta=(6.0,), scheduler="asha", train_epochs=9, batch_size=10)  # fmt: skip
    return SweepConfig(**fields | changes)


@pytest.fixture
def trials(tmp_path):
    """All data and four coresets of 10, 20, 30 and 50 of 100 samples, each with its manifest."""
    return make_some(tmp_path)


def make_some(folder, **changes):
    config = config_of(**changes)
    found = make_trials(config, str(folder), coreset_folders(config, str(folder)))
    for trial in found:
        manifest = {"kind": "coreset", "format_version": 2, "fingerprint": "f",
                    "counts": {"samples": round(100 * trial.fraction)}}  # fmt: skip
        paths.write_json(f"{trial.train.coreset}/manifest.json", manifest)
    return found


def history_of(*accuracies):
    return [
        {"epoch": number, "num_workers": 1, "train_seconds": 2.0, "val_seconds": 0.5, "val_robust_accuracy": accuracy}
        for number, accuracy in enumerate(accuracies, 1)
    ]


def begin(trial, history):
    """What the process of a trial leaves behind that has committed so many epochs."""
    claimed = {"kind": "checkpoint", "identity": f"id of {trial.name}" + 64 * "0", "nonce": "abc"}
    paths.write_json(f"{trial.train.out}/run.json", claimed)
    file = local_commit_file(trial.train.out, "train", claimed)
    paths.write_bytes(file, b"")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("state.json", json.dumps({"history": history}))


class Live:
    """A sweep's trials that report to the scheduler, as Tune passes it on."""

    def __init__(self, **changes):
        self.scheduler = EarlyStopping(config_of(**changes), lambda: None)

    def report(self, trial, *accuracies):
        """Epoch by epoch until it is stopped; the last decision."""
        for number in range(1, len(accuracies) + 1):
            begin(trial, history_of(*accuracies[:number]))
            (standing,) = standings(trial, history_of(*accuracies)[number - 1 : number])
            tuned = SimpleNamespace(trial_id=f"tune-{trial.name}", config={"trial": trial})
            if self.scheduler.on_trial_result(None, tuned, {"epochs": [], **standing}) == STOP:
                return STOP
        return CONTINUE

    @property
    def recorded(self):
        """What Tune's scheduler has recorded at each rung."""
        (asha,) = self.scheduler._by_metric.values()
        return {rung: dict(found) for rung, found in asha._brackets[0]._rungs}


@pytest.mark.parametrize(
    ("grace", "factor"), [(0.111, 3.0), (0.1, 2.0), (0.25, 4.0), (0.5, 2.5), (0.01, 3.0), (0.9, 3.0)]
)
def test_the_rungs_are_those_of_tunes_scheduler(grace, factor):
    """By which the notes name the comparison."""
    live = Live(grace_fraction=grace, reduction_factor=factor)

    assert sorted(live.recorded) == pytest.approx(rungs_of(config_of(grace_fraction=grace, reduction_factor=factor)))


def test_shares_are_of_a_trials_own_steps(tmp_path):
    """A ninth after the first of nine epochs, whatever the size; with --steps, epochs of a small coreset count less."""
    for trial in make_some(tmp_path / "epochs"):
        assert [entry[SHARE] for entry in standings(trial, history_of(*[0.1] * 9))] == [
            111, 222, 333, 444, 556, 667, 778, 889, 1000,
        ]  # fmt: skip
    small, *_, half = make_some(tmp_path / "steps", steps=15)[1:]
    assert [entry[SHARE] for entry in standings(small, history_of(0.1, 0.2))] == [67, 133]
    assert [entry[SHARE] for entry in standings(half, history_of(0.1, 0.2, 0.3))] == [333, 667, 1000]
    assert standings(small, [{"epoch": 1, "val_accuracy": 0.9}]) == [], "adversarial trials are compared under attack"
    pruned = [{**entry, "steps": steps} for entry, steps in zip(history_of(0.1, 0.2), (3, 5), strict=True)]
    assert [entry[SHARE] for entry in standings(small, pruned)] == [200, 333], "pruned epochs are of several lengths"


def test_a_trial_that_is_behind_is_stopped_and_noted(trials):
    """At the first rung; the note says where, by what, and what it cost."""
    live, (_, low, high, *_) = Live(), trials
    assert live.report(high, *[0.5] * 9) == CONTINUE
    assert live.report(low, 0.2, 0.9) == STOP
    note = read_stop(low)

    assert (note["epoch"], note[SHARE], note["rung"], note["metric"], note[VALIDATION], note["device_seconds"]) == (
        1, 111, 111, "val_robust_accuracy", 0.2, 2.5,
    )  # fmt: skip
    assert note["problem"] == (
        "stopped after epoch 1, 11.1 % of its steps: val_robust_accuracy 0.2000 was behind at the comparison from "
        "11.1 % on"
    )
    assert read_stops(trials) == {low.name: note} == live.scheduler.stopped
    assert note["epochs"] == committed_history(low) == history_of(0.2)


def test_all_data_are_never_stopped_and_set_no_mark(trials):
    """They are the reference of every table, at whatever accuracy."""
    live, (full, low, *_) = Live(), trials
    assert live.report(full, *[0.9] * 9) == CONTINUE
    assert live.report(low, *[0.1] * 9) == CONTINUE
    assert live.report(full, *[0.0] * 9) == CONTINUE
    assert full.name not in live.recorded[111] | live.recorded[333]


def test_nothing_is_stopped_at_the_end_of_its_training(trials):
    """The evaluation is all that is left; an epoch beyond a rung counts at the highest rung that it has reached."""
    live, (_, low, high, *_) = Live(train_epochs=9), trials
    live.report(high, *[0.5] * 9)
    tuned = SimpleNamespace(trial_id="t", config={"trial": low})
    begin(low, history_of(0.1))
    assert live.scheduler.on_trial_result(None, tuned, {SHARE: 1000, VALIDATION: 0.0}) == CONTINUE
    assert live.scheduler.on_trial_result(None, tuned, {SHARE: 500, VALIDATION: 0.6}) == CONTINUE
    assert live.scheduler.on_trial_result(None, tuned, {SHARE: 600, VALIDATION: 0.1}) == CONTINUE
    assert low.name in live.recorded[333]
    assert low.name not in live.recorded[111]


def test_objectives_are_compared_by_their_own_metric(tmp_path):
    """Standard training with standard training: its clean accuracies stop no model that is trained against attacks."""
    both = make_some(tmp_path, training=("standard", "trades", "pgd"))
    scheduler = Live(training=("standard", "trades", "pgd")).scheduler
    assert set(scheduler._by_metric) == {"val_accuracy", "val_robust_accuracy"}
    by_training = {
        training: [t for t in both if t.training == training][1:] for training in ("standard", "trades", "pgd")
    }

    def decide(trial, accuracy):
        begin(trial, history_of(accuracy))
        tuned = SimpleNamespace(trial_id=trial.name, config={"trial": trial})
        return scheduler.on_trial_result(None, tuned, {SHARE: 111, VALIDATION: accuracy})

    assert decide(by_training["standard"][0], 0.9) == CONTINUE
    assert decide(by_training["trades"][0], 0.4) == CONTINUE
    assert decide(by_training["pgd"][0], 0.3) == STOP


def test_a_sweep_that_is_run_again_takes_up_what_was_decided(trials):
    """Finished, stopped and interrupted trials leave the scheduler as it was; nothing is decided twice."""
    live, (full, first, second, third, fourth) = Live(), trials
    live.report(first, *[0.5] * 9)
    live.report(second, 0.2)
    live.report(third, 0.6, 0.6, 0.6, 0.7)
    finished = {first.place: SimpleNamespace(checkpoint=SimpleNamespace(manifest={"epochs": history_of(*[0.5] * 9)}))}
    again = Live()
    again.scheduler.replay(trials, finished, read_stops(trials))

    assert again.recorded == live.recorded
    assert again.scheduler.stopped == {}
    assert again.report(third, 0.6, 0.6, 0.6, 0.7, 0.7) == CONTINUE, "it is beyond that rung"
    assert again.report(fourth, 0.3) == STOP
    assert full.name not in again.recorded[111]


def test_an_epoch_whose_decision_was_lost_is_decided_when_its_trial_resumes(trials):
    """Committed, and the sweep killed before it was stopped or not."""
    live, (_, first, second, *_) = Live(), trials
    live.report(first, *[0.5] * 9)
    begin(second, history_of(0.1))
    again = Live()
    again.scheduler.replay([first, second], {}, {})

    assert decided_history(second) == []
    assert second.name not in again.recorded[111]
    assert again.report(second, 0.1) == STOP


def test_a_note_counts_for_the_run_it_was_written_of(trials):
    """Not for another one in its folder, nor once that is finished."""
    low = trials[1]
    begin(low, history_of(0.2))
    note_stop(low, {SHARE: 111, VALIDATION: 0.2}, 111)
    assert read_stop(low)
    claimed = paths.read_json(f"{low.train.out}/run.json")
    paths.write_json(f"{low.train.out}/run.json", claimed | {"identity": "another"})
    assert read_stop(low) is None
    paths.write_json(f"{low.train.out}/run.json", claimed)
    paths.write_json(f"{low.train.out}/manifest.json", {})
    assert read_stop(low) is None


def test_trials_are_run_in_a_mixed_order_after_all_data(trials):
    """The same one each time, and another than that of the grid, in which each would be better than those before."""
    mixed = mixed_order(trials)
    assert mixed[0] is trials[0]
    assert sorted(trial.name for trial in mixed) == sorted(trial.name for trial in trials)
    assert mixed_order(list(reversed(trials))) == mixed != trials


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"reduction_factor": 1.0}, "reduction_factor must be > 1, got 1; 3 lets about a third go on"),
        ({"grace_fraction": 1.0}, r"grace_fraction must be in \[0.001, 1\), got 1"),
        ({"trial_workers": 2}, "got trial_workers 2; pass --trial-workers 1, or --scheduler none"),
        (
            {"val_attack_steps": 0},
            "scheduler asha compares adversarial objectives under attack, got val_attack_steps 0",
        ),
        ({"scheduler": "pbt"}, "scheduler must be one of none, asha, got 'pbt'"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes, sentence):
    """In one line, before any work."""
    with pytest.raises(FieldsError, match=sentence):
        config_of(**changes)


def test_options_of_early_stopping_mean_nothing_without_it():
    """A sweep without it may have any number of workers, and needs no validation."""
    config_of(scheduler="none", trial_workers=2, val_attack_steps=0, reduction_factor=0.0)
    config_of(training=("standard",), val_attack_steps=0)


def test_a_dataset_without_a_validation_split_is_refused():
    """With the option that needs one."""
    dataset = SimpleNamespace(path="/data/set", num_rows=lambda split: {"val": 0, "train": 9}[split])
    check_comparable(config_of(scheduler="none"), dataset)
    with pytest.raises(EasyCoreError, match=r"--scheduler asha compares trials .* and /data/set has none; prepare it"):
        check_comparable(config_of(), dataset)


def test_a_pipeline_is_refused_before_it_scores(tmp_path):
    """Not hours later, by its sweep."""
    dataset = make_image_dataset(tmp_path / "dataset", [0, 1] * 10).path
    with pytest.raises(EasyCoreError, match=r"--scheduler asha compares trials .* has none"):
        pipeline(dataset=dataset, scheduler="asha", model="cnn", out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
