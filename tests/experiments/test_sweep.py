"""What a sweep runs, told from its configuration alone: objectives, epochs and names."""

import pytest

from easycore_ray.config.experiments import SweepConfig
from easycore_ray.engine.shares import training_steps
from easycore_ray.experiments.trials import make_trials
from easycore_ray.reporting.budgets import budget_text
from easycore_ray.reporting.figures import objective
from easycore_ray.storage.errors import EasyCoreError


def trials_of(**changes):
    """The trials of a sweep over two arms (full and easycore) and one seed."""
    config = SweepConfig(
        out="o", dataset="d", scores="s", method=("easycore",), fraction=(0.5,), seeds=(1,), **changes
    )  # fmt: skip
    return make_trials(config, "o", {"full_f1": "full", "easycore_f0.5": "half"})


def test_pgd_is_one_objective_whatever_the_betas():
    """Standard and pgd have one trial each and no β in name or row, trades one for each β."""
    trials = trials_of(training=("standard", "pgd", "trades"), beta=(1.0, 6.0))
    half = [trial for trial in trials if trial.fraction == 0.5]

    assert [trial.name for trial in half] == [
        "easycore_f0.5_standard_s1", "easycore_f0.5_pgd_s1", "easycore_f0.5_trades_b1_s1", "easycore_f0.5_trades_b6_s1",
    ]  # fmt: skip
    assert [(trial.train.training, trial.beta) for trial in half[:2]] == [("standard", None), ("pgd", None)]
    names = [objective({"training": trial.training, "beta": trial.beta}) for trial in half]
    assert names == ["Standard training", "PGD-AT", "TRADES, β = 1", "TRADES, β = 6"]


def test_adversarial_runs_have_their_own_number_of_epochs():
    """adversarial_epochs is that of every run against an attacker, pgd as well, and of no other."""
    trials = trials_of(training=("standard", "pgd", "trades"), beta=(6.0,), train_epochs=9, adversarial_epochs=4)

    assert {trial.training: trial.train.epochs for trial in trials} == {"standard": 9, "pgd": 4, "trades": 4}


def test_a_pgd_sweep_needs_no_beta():
    """An empty list of β is refused for TRADES alone."""
    assert [trial.training for trial in trials_of(training=("pgd",), beta=())] == ["pgd", "pgd"]


def test_trials_have_the_workers_of_the_sweep():
    """Of one worker as of several; a batch that those can share is not refused."""
    for workers in (1, 3):
        trials = trials_of(trial_workers=workers, batch_size=9 * workers)
        assert {(trial.train.num_workers, trial.evaluate.num_workers) for trial in trials} == {(workers, workers)}


def test_trials_run_the_attacks_of_the_sweep():
    """Each evaluation gets them all."""
    assert {trial.evaluate.attack for trial in trials_of(attack=("pgd20", "autoattack"))} == {("pgd20", "autoattack")}


# ---------------------------------------------------------------- equal compute

HALF = "easycore_f0.5"


def steps_of(config, samples=1001, batch=100):
    """Steps of every trial whose batches are of 100, on a coreset of 500 of 1,001 samples or on all."""
    kept = {True: samples, False: samples // 2}
    return {
        trial.arm.method: training_steps(trial.train.replace(batch_size=batch), kept[trial.train.coreset == "full"])
        for trial in make_trials(config, "o", {"full_f1": "full", "easycore_f0.5": "half"})
    }


def sweep_with_rs2(**changes):
    fields = {"out": "o", "dataset": "d", "scores": "s", "method": ("easycore", "rs2"), "fraction": (0.5,),
              "training": ("standard",), "seeds": (1,), "train_epochs": 6, "num_eval_samples": 10}  # fmt: skip
    return SweepConfig(**fields | changes)


def test_rs2_has_all_samples_for_the_steps_of_a_coreset():
    """Six epochs of the easiest half in batches of 100 are 36 steps (501 samples), of all data 66."""
    assert steps_of(sweep_with_rs2()) == {"full": 66, "easycore": 30, "rs2": 36}
    both = sweep_with_rs2(method=("easycore", "rs2", "infobatch"))
    assert steps_of(both) == {"full": 66, "easycore": 30, "rs2": 36, "infobatch": 36}
    pruned = {trial.arm.method: trial.train.pruning for trial in make_trials(both, "o", {"full_f1": "f", HALF: "h"})}
    assert pruned == {"full": "none", "easycore": "none", "rs2": "none", "infobatch": "infobatch"}
    assert steps_of(sweep_with_rs2(steps=50)) == {"full": 50, "easycore": 50, "rs2": 50}


def test_the_budget_of_a_comparison_is_said():
    """In words, from the rows themselves."""
    row = {"training": "standard", "beta": None, "method": "easycore", "steps": 30}
    other = {**row, "method": "full", "steps": 60}
    assert budget_text([row, {**other, "steps": 30}]) == "budget: equal steps"
    assert budget_text([row, other]) == "budget: equal epochs, a smaller coreset takes fewer steps"
    assert budget_text([row, {**row, "method": "rs2"}]).endswith("; rs2: all data, for the steps of a coreset")
    assert budget_text([row, {**row, "method": "rs2"}, {**row, "method": "infobatch"}]).endswith(
        "; rs2 and infobatch: all data, for the steps of a coreset"
    )
    assert "for scoring, 4 to 9 steps are taken off" in budget_text(
        [{**row, "charged_steps": 4}, {**row, "charged_steps": 9}, other]
    )


@pytest.fixture
def scores(tmp_path):
    """The manifest of a scoring run of 4 epochs over 1,000 samples, exact passes after each."""
    from easycore_ray.config.base import to_dict
    from easycore_ray.config.stages import ScoreConfig
    from easycore_ray.storage import paths

    config = to_dict(ScoreConfig(out="s", dataset="d", epochs=4, score_pass="eval"))
    manifest = {"kind": "scoring_run", "format_version": 2, "fingerprint": "f", "config": config,
                "counts": {"samples": 1000, "rows": 4000}}  # fmt: skip
    paths.write_json(str(tmp_path / "manifest.json"), manifest)
    return str(tmp_path)


def test_scoring_is_charged_to_those_who_use_it(scores):
    """4 × 1,000 images at 3 passes and 4 × 1,000 at 2.4, shared by two arms that go by scores with two seeds each."""
    config = sweep_with_rs2(scores=scores, count_scoring=True, method=("easycore", "hardest", "random", "rs2"),
                            seeds=(0, 1), batch_size=10, fraction=(0.5,))  # fmt: skip
    coresets = {"full_f1": "f", "easycore_f0.5": "e", "hardest_f0.5": "h", "random_f0.5_s0": "r", "random_f0.5_s1": "r"}
    trials = make_trials(config, "o", coresets)
    charged = {trial.arm.method: trial.train.charged_steps for trial in trials}

    share = (4000 * 3 + 4000 * 2.4) / 4
    assert charged == {"full": 0, "random": 0, "rs2": 0, "easycore": round(share / 30), "hardest": round(share / 30)}
    assert training_steps(trials[-1].train.replace(charged_steps=5), 100) == 6 * 5 - 5
    adversarial = make_trials(config.replace(training=("trades",), attack_steps=10, beta=(6.0,)), "o", coresets)
    assert {trial.train.charged_steps for trial in adversarial} == {0, round(share / 270)}
    assert {trial.train.charged_steps for trial in make_trials(config.replace(count_scoring=False), "o", coresets)} == {
        0
    }


def test_scoring_in_adversarial_training_is_charged_with_its_attacks(tmp_path, scores):
    """A TRADES step with 5 attack steps takes 17 forward passes, an exact pass under them 11 more than one without."""
    from easycore_ray.storage import paths

    manifest = paths.read_json(f"{scores}/manifest.json")
    manifest["config"] |= {"training": "trades", "attack_steps": 5}
    paths.write_json(f"{scores}/manifest.json", manifest)
    config = sweep_with_rs2(scores=scores, count_scoring=True, method=("easycore",), seeds=(0,), batch_size=10)
    trials = make_trials(config, "o", {"full_f1": "f", "easycore_f0.5": "e"})

    cost = 4000 * 17 + 4000 * (2.4 + 11)
    assert [trial.train.charged_steps for trial in trials] == [0, round(cost / 30)]


@pytest.mark.parametrize("of", ["main", "extra"])
def test_scoring_of_two_sources_is_charged_with_both(scores, of):
    """An epoch of 1,000 main rows at a share of 0.75 trains 4,000; exact passes see 1,000 and 500."""
    from easycore_ray.storage import paths

    manifest, samples = paths.read_json(f"{scores}/manifest.json"), {"main": 1000, "extra": 500}
    manifest["config"] |= {"extra_dataset": "e", "extra_fraction": 0.75, "batch_size": 100}
    manifest["sources"] = {name: {"samples": count} for name, count in samples.items()}
    manifest["counts"] = {"samples": samples[of], "rows": 4 * samples[of]}
    paths.write_json(f"{scores}/manifest.json", manifest)
    config = sweep_with_rs2(scores=scores, count_scoring=True, method=("easycore",), seeds=(0,), batch_size=10)
    trials = make_trials(config, "o", {"full_f1": "f", "easycore_f0.5": "e"})

    cost = 4 * 4000 * 3 + 4 * 1500 * 2.4
    assert [trial.train.charged_steps for trial in trials] == [0, round(cost / 30)]


def test_scoring_that_costs_all_steps_is_refused(scores):
    """With what would help."""
    config = sweep_with_rs2().replace(scores=scores)
    trial = make_trials(config, "o", {"full_f1": "full", "easycore_f0.5": "half"})[1]
    with pytest.raises(EasyCoreError, match="charged with 99 steps, and a training run has 6 in all: nothing is left"):
        training_steps(trial.train.replace(charged_steps=99), 100)
