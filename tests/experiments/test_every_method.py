"""The study of every method: its parts, what they attack, what is refused before work, and what a dry run says."""

import json
import typing

import pytest

from easycore_ray import study
from easycore_ray.config.arms import parse_arm
from easycore_ray.config.experiments import StudyConfig, SweepConfig
from easycore_ray.config.fields import StudyPart
from easycore_ray.config.identity import identity_fields
from easycore_ray.config.presets import every_method
from easycore_ray.config.study_parts import ATTACK_PARTS, PARTS
from easycore_ray.experiments.study import _record as record_of
from easycore_ray.experiments.study import draw_book, rows_of
from easycore_ray.experiments.study_results import (
    Book,
    key_of,
    open_study,
    sweep_of_part,
    trials_of_part,
)
from easycore_ray.experiments.tracked_trials import new_trial_run
from easycore_ray.experiments.trial_runner import _train_and_attack as train_and_attack
from easycore_ray.experiments.trials import AUTOATTACK_SUFFIX, coreset_folders, select_coresets
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Artifact, open_artifact
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.tracking.runs import TrackedRun
from tests.artifacts import make_image_dataset, make_scoring_run

LABELS = [number % 3 for number in range(60)]


def parts_of(config, part):
    """Names of a part's trials by what they are in the results."""
    return {key_of(trial): trial for trial in trials_of_part(config, part)}


class TestParts:
    def test_the_command_line_knows_all_parts(self):
        """Those that train and those that attack."""
        assert {*typing.get_args(StudyPart)} == {*PARTS} | {*ATTACK_PARTS}

    def test_half_has_the_arms_of_the_question(self):
        """One of each family, each half of the steps of all data."""
        trials = [trial for trial in trials_of_part(every_method("/o", "/d"), "half") if trial.seed == 0]

        assert [trial.arm.name for trial in trials] == [
            "full", "rs2", "random", "easycore", "easycore/class", "easiest:el2n", "easiest:aum", "dual_beta",
            "stratified",
        ]  # fmt: skip
        assert {(trial.training, trial.beta, trial.train.ema) for trial in trials} == {("trades", 6.0, 0.995)}
        assert {trial.arm.name: trial.train.steps_fraction for trial in trials if trial.train.steps_fraction} == {
            "rs2": 0.5
        }

    def test_the_other_methods_are_other_arms(self):
        """No arm is run twice, and every method of one's own is in some part."""
        main, others = (set(PARTS[name].method) for name in ("half", "half-others"))
        names = {parse_arm(arm).method for arm in main | others}

        assert main & others == set()
        assert names >= {"rs2", "infobatch", "hardest", "middle", "band", "easiest", "dual_beta", "stratified"}
        assert next(t for t in trials_of_part(every_method("/o", "/d"), "half-others") if t.arm.name == "infobatch")

    def test_ccs_drops_what_its_authors_drop(self, tmp_path):
        """A tenth of the samples where 70 % are pruned, three tenths at 90 %, none at half; by AUM."""
        dataset = make_image_dataset(tmp_path / "dataset", LABELS, LABELS[:20])
        scores = make_scoring_run(tmp_path / "scores", dataset, LABELS)
        found = {}
        for part in ("half", "30-percent", "10-percent"):
            config = every_method(str(tmp_path / part), dataset.path)
            sweep = sweep_of_part(config, part, 0).replace(scores=scores.path, method=("stratified", "easiest:aum"))
            select_coresets(sweep, dataset, sweep.out)
            for name in coreset_folders(sweep, sweep.out):
                if name.startswith(("stratified", "easiest")):
                    saved = open_artifact(paths.join(sweep.out, "coresets", name), "coreset").manifest["config"]
                    found.setdefault(part, {})[saved["method"], saved["score"]] = saved["cutoff"]

        assert found == {
            part: {("stratified", "aum"): cutoff, ("easiest", "aum"): 0.0}
            for part, cutoff in (("half", 0.0), ("30-percent", 0.1), ("10-percent", 0.3))
        }

    def test_parts_of_one_size_share_their_coresets(self):
        """So their cut-off must be one."""
        cutoffs = {}
        for part in PARTS.values():
            if "stratified" in part.method:
                cutoffs.setdefault(part.fraction, set()).add(part.cutoff)

        assert all(len(values) == 1 for values in cutoffs.values())

    @pytest.mark.parametrize(
        ("part", "suffix", "images"), [("half-autoattack", "", 250), ("half-autoattack-500", "500", 500)]
    )
    def test_autoattack_is_run_on_the_last_weights_of_every_seed(self, part, suffix, images):
        """The models of the part, at 8/255, on as many images, in a folder of their own."""
        config = every_method("/o", "/d")
        plain, attacked = parts_of(config, "half"), parts_of(config, part)

        assert list(attacked) == [f"{name}{AUTOATTACK_SUFFIX}{suffix}" for name in plain]
        for trial in attacked.values():
            model = plain[trial.name]
            assert trial.train == model.train
            assert trial.evaluate.out.endswith(f"/autoattack{suffix}")
            assert (trial.evaluate.num_eval_samples, trial.evaluate.eval_eps) == (images, (8 / 255,))
            files = {"weights": {"last": "l", "best": "b", "averaged": "a"}}
            assert [each.weights for each in trial.evaluations(files)] == ["last"]
            assert [each.weights for each in model.evaluations(files)] == ["last", "averaged"]

    def test_every_evaluation_has_a_tracked_run_of_its_own(self):
        """Also the second AutoAttack of a model."""
        config = every_method("/o", "/d")
        parent = TrackedRun("p", "p", {}, {}, None)
        places = {trial.place: trial for part in (*PARTS, *ATTACK_PARTS) for trial in trials_of_part(config, part)}

        assert len({new_trial_run(trial, parent).key for trial in places.values()}) == len(places)

    def test_an_average_is_no_part_of_studies_without_one(self):
        """Their results are taken up as ever."""
        config = StudyConfig(out="/o", dataset="/d")

        assert "ema" not in identity_fields(config)
        assert identity_fields(config.replace(ema=0.995))["ema"] == 0.995


class TestRefusals:
    def test_too_few_scored_epochs_are_refused_before_work(self):
        """DUAL takes ten; parts without it take any."""
        with pytest.raises(EasyCoreError, match="method dual_beta"):
            every_method("/o", "/d").replace(score_epochs=5)
        assert every_method("/o", "/d").replace(score_epochs=5, parts=("trades",))

    def test_a_score_that_needs_validation_is_refused_without_one(self, tmp_path):
        """Before anything is written."""
        dataset = make_image_dataset(tmp_path / "dataset", LABELS, LABELS[:20])
        config = every_method(str(tmp_path / "o"), dataset.path).replace(parts=("half-others",), subset=30)

        with pytest.raises(EasyCoreError, match=r"easiest:cld compares losses .* has no validation images"):
            study(config)
        assert not (tmp_path / "o").exists()

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"method": ("easycore",), "cutoff": 0.1}, "cutoff 0.1 is for arms of stratified, got easycore; leave it"),
            ({"method": ("stratified",), "cutoff": 0.6}, "cutoff 0.6 leaves less than the fraction 0.5 that is kept"),
            ({"method": ("stratified",), "cutoff": 1.0}, "cutoff must be in [0, 1), got 1"),
        ],
    )
    def test_a_cutoff_that_cannot_be_is_refused(self, changes, words):
        """In a sweep, which has the option of its own."""
        with pytest.raises(EasyCoreError) as caught:
            SweepConfig(**{"out": "o", "dataset": "d", "scores": "s", "fraction": (0.3, 0.5)} | changes)
        assert words in str(caught.value)


class TestPlan:
    @pytest.fixture
    def config(self, tmp_path):
        """The preset on a small dataset whose manifest says that it holds CIFAR's images."""
        dataset = make_image_dataset(tmp_path / "dataset", LABELS, LABELS[:20], val_labels=LABELS[:10])
        manifest = tmp_path / "dataset" / "manifest.json"
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"image_shape": [3, 32, 32]}))
        return every_method(str(tmp_path / "o"), dataset.path).replace(subset=40)

    def test_a_dry_run_lists_parts_trials_and_hours(self, config, tmp_path):
        """Each model is trained once, whatever attacks it; averaged weights are attacked by PGD as well."""
        plan = study.plan(config)
        images = {estimate.work: estimate.images for estimate in plan.estimates}

        assert plan.trials == 54
        assert "run 54 of 54 trials (half: 27, half-autoattack: 27) after 3 scoring runs" in plan.work
        assert plan.device_hours > 0
        assert images["autoattack evaluation"] == 27 * 20
        assert images["pgd20 evaluation"] == 27 * 20 * (3 * 2 + 1)
        assert plan.steps == study.plan(config.replace(parts=("half",))).steps
        assert not (tmp_path / "o").exists()

    def test_more_seeds_and_parts_go_on_in_the_same_results(self, config):
        """They are how much is done, not how."""
        more = config.replace(seeds=(0, 1, 2, 3, 4), parts=("half", "half-autoattack-500", "10-percent"))

        assert open_study(config).setting == open_study(more).setting
        assert open_study(more).total == 5 * 9 + 5 * 9 + 5 * 8


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Trials of a study, really trained and attacked, in this process; by their names in the results."""
    root = tmp_path_factory.mktemp("every")
    dataset = make_image_dataset(root / "dataset", LABELS, LABELS[:20], val_labels=LABELS[:10])
    config = every_method(str(root / "o"), dataset.path).replace(
        model="cnn", width=2, subset=None, batch_size=16, augment="none", adversarial_epochs=2, attack_steps=1,
        precision="fp32", num_eval_samples=10, num_autoattack_samples=4, seeds=(0,),
    )  # fmt: skip
    make_scoring_run(root / "o" / "scores" / "seed-0", dataset, LABELS)
    arms = ("rs2", "stratified", "infobatch")
    for part in ("half", "half-others"):
        sweep = sweep_of_part(config, part, 0)
        mine = tuple(arm for arm in sweep.method if arm in arms)
        select_coresets(sweep.replace(method=mine, cutoff=0.0), dataset, sweep.out)
    trials = {
        key_of(trial): trial
        for part in ("half", "half-others", "half-autoattack")
        for trial in trials_of_part(config, part)
        if trial.arm.name in ("full", *arms)
    }
    return {key: train_and_attack(trial, lambda _: None) for key, trial in trials.items()}


@pytest.mark.slow
class TestTrials:
    def test_dynamic_arms_take_the_steps_of_a_coreset(self, finished):
        """Half of those of all data, from all of them."""
        steps = {each.trial.arm.name: each.checkpoint.manifest["steps"] for each in finished.values()}
        samples = {each.trial.arm.name: each.checkpoint.manifest["counts"]["samples"] for each in finished.values()}

        assert steps == {"full": 8, "rs2": 4, "stratified": 4, "infobatch": 4}
        assert samples == {"full": 60, "rs2": 60, "stratified": 30, "infobatch": 60}

    def test_records_hold_both_weights_and_pages_show_them(self, finished, tmp_path):
        """PGD of the last and of the averaged; AutoAttack of the last alone, below its PGD."""
        book = Book(str(tmp_path / "results.json"), {}, Artifact("d", {"fingerprint": "f" * 64}))
        book.add("scoring", "0", {"device_seconds": 9.0})
        for key, each in finished.items():
            book.add("trials", key, record_of(each))
        draw_book(book)
        again = json.loads((tmp_path / "results.json").read_text())["trials"]
        text = (tmp_path / "results.md").read_text()

        assert {key for key, record in again.items() if "averaged" in record} == {
            key for key in finished if AUTOATTACK_SUFFIX not in key
        }
        for key, record in again.items():
            averaged = finished[key].summaries.get("averaged")
            if averaged:
                assert record["averaged"]["clean_accuracy"] == averaged["clean_accuracy"]
                assert [entry["eps"] for entry in record["averaged"]["robust"]] == [2 / 255, 4 / 255, 8 / 255]
        assert [row["method"] for row in rows_of(book)] == [name for name in ("full", "rs2", "stratified", "infobatch")
                                                            for _ in range(3)]  # fmt: skip
        assert all("robust_accuracy_averaged_mean" in row for row in rows_of(book))
        assert text.count("| averaged |") == 4
        assert "AutoAttack at ε = 8/255, on the same 4 images" in text
        assert "Not attacked so, and not compared: infobatch." in text
