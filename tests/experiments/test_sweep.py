"""What a sweep runs, told from its configuration alone: objectives, epochs and names."""

from easycore_ray.config.experiments import SweepConfig
from easycore_ray.experiments.trials import make_trials
from easycore_ray.reporting.figures import objective


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
