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
from easycore_ray.experiments.study_results import AUTOATTACK_SUFFIX, key_of, open_study, sweep_of_part, trials_of_part
from easycore_ray.experiments.trials import coreset_folders, select_coresets
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import open_artifact
from easycore_ray.storage.errors import EasyCoreError
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
