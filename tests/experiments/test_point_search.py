"""What a search chooses, by Optuna: in its ranges, no point twice, the same again after an interruption."""

import importlib.util
from types import SimpleNamespace

import pytest

from easycore_ray.config.experiments import SweepConfig
from easycore_ray.data.dataset import open_dataset
from easycore_ray.experiments.comparison_rules import SHARE, VALIDATION, check_comparable
from easycore_ray.experiments.plans import plan_sweep
from easycore_ray.experiments.point_search import PointSearch
from easycore_ray.experiments.search_points import Point, planned_trials, point_trial, read_points, sweep_trials
from easycore_ray.storage.artifact import Claim, open_artifact
from easycore_ray.storage.errors import EasyCoreError, FieldsError
from tests.artifacts import make_image_dataset, make_scoring_run

pytestmark = pytest.mark.slow

LABELS = [number % 3 for number in range(60)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A dataset of 60 images with a scoring run."""
    folder = tmp_path_factory.mktemp("search")
    make_scoring_run(folder / "scores", make_image_dataset(folder / "dataset", LABELS), LABELS)
    return folder


def config_of(root, **changes):
    fields = dict(out="o", dataset=f"{root}/dataset", scores=f"{root}/scores", method=("easycore", "random"),
                  fraction=(0.1, 0.9), training=("trades",), beta=(1.0, 10.0), seeds=(3,), search="optuna",
                  num_trials=14)  # fmt: skip
    return SweepConfig(**fields | changes)


def accuracy_of(trial):
    """Stands for a training run: best at 60 %, better with a larger β."""
    return 0.6 - abs(trial.fraction - 0.6) + 0.01 * (trial.beta or 0)


class Searched:
    """A search whose trials end as soon as they are chosen, in a folder of its own."""

    def __init__(self, config, folder, finished=(), ended=None):
        made = Claim(str(folder), "sweep", "identity", "nonce", resumed=False)
        ends = {trial.place: SimpleNamespace(checkpoint=SimpleNamespace(manifest=manifest_of(trial)))
                for trial in finished}  # fmt: skip
        self.points = PointSearch(config, open_dataset(config.dataset), made, ends, ended or {})
        self.trials = []

    def choose(self, count):
        """So many trials, each finished before the next is chosen."""
        for number in range(count):
            if (chosen := self.points.suggest(f"t{number}")) == "FINISHED":
                break
            self.trials.append(chosen["trial"])
            result = {VALIDATION: accuracy_of(chosen["trial"]), SHARE: 1000, "summary/words": "clean …"}
            self.points.on_trial_complete(f"t{number}", result)
        return self.trials


def manifest_of(trial):
    return {"epochs": [{"epoch": trial.train.epochs, "val_robust_accuracy": accuracy_of(trial)}]}


def test_points_lie_in_their_ranges_and_none_is_tried_twice(root, tmp_path):
    """Fractions in steps of 0.01, β of 0.1, one of the arms; each has its coreset, and is recorded."""
    config = config_of(root)
    trials = Searched(config, tmp_path).choose(14)

    assert len({trial.name for trial in trials}) == 14
    assert {trial.arm.method for trial in trials} == {"easycore", "random"}
    for trial in trials:
        assert 0.1 <= trial.fraction <= 0.9
        assert trial.fraction == round(trial.fraction, 2)
        assert 1 <= trial.beta <= 10
        assert trial.beta == round(trial.beta, 1)
        assert trial.seed == 3
        assert open_artifact(trial.train.coreset, "coreset").manifest["fraction"] == trial.fraction
    assert [point_trial(config, str(tmp_path), point) for point in read_points(str(tmp_path))] == trials
    full = [trial for trial in sweep_trials(config, str(tmp_path)) if trial.arm.method == "full"]
    assert [trial.beta for trial in full] == [1.0, 10.0], "the reference is trained on at both ends"


def test_later_points_are_better_than_the_first(root, tmp_path):
    """What is fed back is used: after ten random ones the mean rises."""
    trials = Searched(config_of(root, num_trials=30), tmp_path).choose(30)
    early, late = trials[:10], trials[-10:]

    assert sum(map(accuracy_of, late)) > sum(map(accuracy_of, early)) + 0.5


@pytest.mark.parametrize("done", [0, 4, 11])
def test_an_interrupted_search_goes_on_as_if_it_had_not_been(root, tmp_path, done):
    """The trial that was under way is run again with its values, and those after it are the same."""
    config = config_of(root)
    whole = Searched(config, tmp_path / "whole").choose(14)
    cut = Searched(config, tmp_path / "cut")
    cut.choose(done)
    cut.points.suggest("under way")
    again = Searched(config, tmp_path / "cut", finished=cut.trials)

    assert again.points.missing == 14 - done
    again.choose(14 - done)
    names = [trial.name for trial in whole]
    assert [trial.name for trial in cut.trials + again.trials] == names
    assert [point_trial(config, "o", point).name for point in read_points(str(tmp_path / "cut"))] == names


def test_another_seed_chooses_other_points(root, tmp_path):
    """From the first one on."""
    one, other = (Searched(config_of(root, seeds=(seed,)), tmp_path / str(seed)).choose(3) for seed in (3, 4))

    assert not {trial.fraction for trial in one} & {trial.fraction for trial in other}


def test_stopped_and_diverged_points_are_told_as_such(root, tmp_path):
    """Live and replayed: a stopped one as pruned where it was, a diverged one as failed."""
    config = config_of(root)
    live = Searched(config, tmp_path)
    first, second = (live.points.suggest(name)["trial"] for name in ("a", "b"))
    live.points.on_trial_complete("a", {VALIDATION: 0.2, SHARE: 111})
    live.points.on_trial_complete("b", {"problem": "training diverged", "diverged": True})
    ended = {first.name: {VALIDATION: 0.2, SHARE: 111}, second.name: {"problem": "training diverged"}}
    again = Searched(config, tmp_path, ended=ended)

    for searched in (live, again):
        told = [
            (trial.state.name, trial.value, trial.intermediate_values) for trial in searched.points._ot_study.trials
        ]
        assert told == [("PRUNED", 0.2, {111: 0.2}), ("FAIL", None, {})]
    assert again.points.missing == 12


def test_a_range_of_few_points_is_exhausted(root, tmp_path):
    """All of them are tried once, and the search ends."""
    config = config_of(root, method=("random",), training=("pgd",), fraction=(0.4, 0.43))
    searched = Searched(config, tmp_path)

    assert sorted(trial.fraction for trial in searched.choose(14)) == [0.4, 0.41, 0.42, 0.43]
    assert searched.points.exhausted


def test_the_plan_counts_the_points_at_their_largest(root, tmp_path):
    """No more than this is to be done."""
    config = config_of(root, scheduler="asha", out=str(tmp_path / "new"))
    trials = planned_trials(config, config.out)

    assert len(trials) == 16
    assert {(trial.fraction, trial.beta) for trial in trials[2:]} == {(0.9, 10.0)}


def test_points_without_a_weight_have_no_beta(root, tmp_path):
    """Standard training, one arm: the fraction alone is searched for."""
    config = config_of(root, training=("standard",), method=("random",))
    (trial,) = Searched(config, tmp_path).choose(1)

    assert trial.beta is None
    assert read_points(str(tmp_path)) == [Point("random", trial.fraction, None)]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seeds": (0, 1)}, "search optuna trains one model a point, got seeds 0 1; pass one"),
        ({"training": ("standard", "trades")}, "goes by the metric of one objective, got training standard trades"),
        ({"fraction": (0.5,)}, "fraction must be LO HI with LO < HI for search optuna, got 0.5"),
        ({"beta": (6.0, 1.0)}, "beta must be LO HI with LO < HI for search optuna, got 6 1"),
        ({"fraction": (0.125, 0.5)}, "fraction is searched in steps of 0.01, got 0.125 0.5; pass multiples of it"),
        ({"method": ("full",)}, "needs a method besides full"),
        ({"count_scoring": True}, "a search has none, leave it out"),
        ({"val_attack_steps": 0}, "search optuna goes by adversarial objectives under attack, got val_attack_steps 0"),
    ],
)
def test_what_cannot_be_searched_is_refused(root, changes, sentence):
    """In one line, before any work."""
    with pytest.raises(FieldsError, match=sentence):
        config_of(root, **changes)


def test_a_missing_package_and_a_missing_split_are_refused_before_any_work(root, monkeypatch):
    """With what to do."""
    config = config_of(root)
    with pytest.raises(EasyCoreError, match="--search optuna compares trials on the validation split"):
        plan_sweep(config)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    dataset = SimpleNamespace(path="d", num_rows=lambda _: 9)
    with pytest.raises(EasyCoreError, match=r"not installed; run: pip install 'easycore-ray\[search\]'"):
        check_comparable(config, dataset)


def test_an_arm_by_validation_losses_needs_validation_images_of_every_class(tmp_path):
    """Said before anything is scored or trained."""
    config = SweepConfig(out="o", dataset="d", scores="s", method=("easycore", "hardest:cld"))
    for name, val_labels, missing in (
        ("none", [], "class 0, class 1"),
        ("some", [0, 2], "class 1"),
        ("all", [2, 1, 0], ""),
    ):
        dataset = open_dataset(make_image_dataset(tmp_path / name, LABELS, val_labels=val_labels).path)
        check_comparable(config.replace(method=("easycore",)), dataset)
        if missing:
            with pytest.raises(
                EasyCoreError, match=rf"method hardest:cld compares .* has no validation images of {missing}"
            ):
                check_comparable(config, dataset)
        else:
            check_comparable(config, dataset)
