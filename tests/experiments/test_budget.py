"""Device-seconds: turned into steps once, before anything is trained, and read by whoever resumes."""

import json

import pytest

from easycore_ray.config.experiments import SweepConfig
from easycore_ray.config.identity import identity_fields
from easycore_ray.config.stages import TrainConfig
from easycore_ray.engine import budget
from easycore_ray.engine.budget import read_budget, settle_budget
from easycore_ray.engine.run_identity import claim_run
from easycore_ray.engine.run_inputs import open_run_inputs
from easycore_ray.engine.shares import training_steps
from easycore_ray.experiments.plans import open_sweep_inputs, plan_sweep
from easycore_ray.experiments.sweep import sweep
from easycore_ray.experiments.trials import make_trials
from easycore_ray.reporting.budgets import budget_text
from easycore_ray.reporting.tables import print_table
from easycore_ray.runtime.claims import claim_artifact
from easycore_ray.scoring.score import score
from easycore_ray.storage.artifact import Claim, open_artifact
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.training.plans import plan_train
from easycore_ray.training.train import train
from tests.artifacts import make_image_dataset

SMALL = dict(model="cnn", width=2, batch_size=16, augment="none", eps=0.03, attack_steps=2, val_attack_steps=0,
             tracking_uri="none")  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    labels = [number % 3 for number in range(60)]
    folder = tmp_path_factory.mktemp("budgets") / "dataset"
    return make_image_dataset(folder, labels, val_labels=labels[:9], test_labels=labels[:12])


def settings(dataset, out, **changes):
    fields = dict(dataset=dataset.path, out=str(out), training="trades", num_workers=1, device_seconds=5.0)
    return TrainConfig(**SMALL | fields | changes)


def record(folder, device_seconds=5.0, **steps):
    """As if so many steps of each objective had been found to fit."""
    objectives = {name: {"steps": count, "seconds_per_step": 0.5} for name, count in steps.items()}
    content = {"device_seconds": device_seconds, "device": "a device", "objectives": objectives}
    folder.mkdir(exist_ok=True)
    (folder / "budget.json").write_text(json.dumps(content))


def sweep_of(out, **changes):
    fields = dict(
        dataset="d", scores="s", method=("easycore", "rs2", "infobatch"), fraction=(0.5,), seeds=(0,), beta=(6.0,),
        training=("standard", "trades"), device_seconds=5.0, eval_eps=(0.03,), num_eval_samples=6,
    )  # fmt: skip
    return SweepConfig(out=str(out), **SMALL | fields | changes)


CORESETS = {"full_f1": "full", "easycore_f0.5": "half"}


def test_trials_have_the_recorded_steps_whatever_their_coreset(tmp_path):
    """Each objective its own; how they came about is no part of a trial's identity, but of the sweep's."""
    record(tmp_path, standard=40, trades=7)
    config = sweep_of(tmp_path)
    trials = make_trials(config, str(tmp_path), CORESETS)

    assert {(trial.training, training_steps(trial.train, rows)) for trial in trials for rows in (30, 60)} == {
        ("standard", 40), ("trades", 7)
    }  # fmt: skip
    assert len(trials) == 8
    by_steps = make_trials(config.replace(device_seconds=None, steps=7), str(tmp_path), CORESETS)
    same = [trial.train for trial in trials if trial.training == "trades"]
    assert same == [trial.train for trial in by_steps if trial.training == "trades"]
    assert identity_fields(config)["device_seconds"] == 5.0


def test_a_record_of_other_seconds_is_none(tmp_path):
    """That of another run in the same folder."""
    record(tmp_path, device_seconds=6.0, trades=7)
    assert read_budget(str(tmp_path), 5.0) is None
    assert read_budget(str(tmp_path / "nowhere"), 5.0) is None
    assert read_budget(str(tmp_path), 6.0)["trades"].steps == 7


def test_tables_name_seconds_and_steps():
    """And what was taken off for scoring."""
    row = {"training": "trades", "beta": 6.0, "method": "full", "steps": 20, "budget_device_seconds": 90.0,
           "seconds_per_step": 4.5}  # fmt: skip
    assert budget_text([row, {**row, "method": "easycore", "steps": 18, "charged_steps": 2}]) == (
        "budget: equal device-seconds: 90 s a model, 20 steps of trades at 4.5 s; for scoring, 2 steps are taken off a "
        "model that goes by scores"
    )


def test_plans_say_the_steps_where_they_are_known(dataset, tmp_path):
    """Recorded ones; else from figures of the network where there are some; else nothing but that they will be."""
    plan = plan_train(settings(dataset, tmp_path / "new"))
    assert plan.steps == 0
    assert any("steps and time are known once a step of each objective was timed" in text for text in plan.warnings)
    begun = settings(dataset, tmp_path / "begun")
    claim_run("checkpoint", begun, open_run_inputs(begun)[1])
    record(tmp_path / "begun", trades=7)
    assert plan_train(begun).steps == 7


def test_an_adversarial_step_takes_longer(dataset, tmp_path):
    """Timed in this process; two standard workers take twice the device-seconds that one does, about."""
    config = settings(dataset, tmp_path)
    seconds, device = budget._time_steps(config, ["standard", "trades"], 5.0)
    assert 0 < seconds["standard"] < seconds["trades"] < 5
    assert device


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
class TestRuns:
    def test_steps_are_timed_once(self, dataset, tmp_path, monkeypatch):
        """Recorded before training, and what was recorded is taken by the run that goes on."""
        config = settings(dataset, tmp_path / "run")
        made = claim_run("checkpoint", config, open_run_inputs(config)[1])
        [found] = settle_budget("train", made, config, ["trades"], 5.0).values()
        assert found.steps == int(5.0 / found.seconds_per_step) >= 1
        assert read_budget(made.path, 5.0) == {"trades": found}
        record(tmp_path / "run", trades=7)
        done = train(config)

        assert done.manifest["counts"]["steps"] == 7
        assert done.manifest["seconds_per_step"] == 0.5
        assert done.manifest["config"]["device_seconds"] == 5.0
        assert train(config).path == done.path
        equal = train(settings(dataset, tmp_path / "steps", device_seconds=None, steps=7))
        assert equal.fingerprint == done.fingerprint

    def test_extra_data_takes_part(self, dataset, tmp_path):
        """Its steps are those of the record as well."""
        config = settings(dataset, tmp_path / "run", extra_dataset=dataset.path, extra_fraction=0.5)
        claim_run("checkpoint", config, open_run_inputs(config)[1])
        record(tmp_path / "run", trades=3)

        assert train(config).manifest["sources"]["extra"]["rows"] == 3 * 8

    def test_a_budget_of_no_step_is_refused(self, dataset, tmp_path):
        """With one that would do."""
        config = settings(dataset, tmp_path / "run", device_seconds=1e-6)
        with pytest.raises(
            EasyCoreError, match=r"device_seconds is 1e-06, and one step of trades takes .* pass at least"
        ):
            train(config)
        # The folder is free again, for a run with more.
        more = config.replace(device_seconds=5.0)
        assert isinstance(claim_run("checkpoint", more, open_run_inputs(more)[1]), Claim)

    def test_a_sweep_has_equal_steps_for_all_arms(self, dataset, tmp_path):
        """Those of its record; its table, summary and manifest say what they were made from."""
        small = dict(model="cnn", width=2, batch_size=16, epochs=2, augment="none", num_workers=1, tracking_uri="none")
        scores = score(dataset=dataset.path, out=str(tmp_path / "scores"), **small)
        inputs = dict(dataset=dataset.path, scores=scores.path, training=("standard",), beta=())
        config = sweep_of(tmp_path / "sweep", **inputs)
        plan = plan_sweep(config)
        assert (plan.trials, plan.steps) == (4, 0)
        claim_artifact("sweep", config, open_sweep_inputs(config)[2])
        record(tmp_path / "sweep", standard=9)
        assert plan_sweep(config).steps == 4 * 9
        with pytest.raises(EasyCoreError, match=r"method easiest:adv_loss: .* needs scoring in adversarial training"):
            open_sweep_inputs(config.replace(method=("easiest:adv_loss",)))
        with pytest.raises(EasyCoreError, match=r"method hardest:dual: score dual needs at least 10 scored epochs"):
            open_sweep_inputs(config.replace(method=("hardest:dual",)))
        done = sweep(config)

        assert {row["method"]: row["steps"] for row in done.rows()} == dict.fromkeys(
            ("full", "easycore", "rs2", "infobatch"), 9
        )
        assert "equal device-seconds: 5 s a model, 9 steps of standard at 0.5 s; rs2 and infobatch" in print_table(
            done.rows()
        ).replace("\n", " ")
        expected = {"standard": {"budget_device_seconds": 5.0, "seconds_per_step": 0.5}}
        assert done.manifest["budget"] == expected
        trial = open_artifact(f"{done.path}/trials/infobatch_f0.5_standard_s0/checkpoint", "checkpoint")
        assert (trial.manifest["config"]["steps"], trial.manifest["config"]["device_seconds"]) == (9, None)
        assert trial.manifest["config"]["pruning"] == "infobatch"
