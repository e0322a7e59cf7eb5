"""A study without its trials: what it plans, what its results file refuses, what it makes of records."""

import json
import statistics

import pytest

from easycore_ray.cli.start_values import preset_fields
from easycore_ray.config.experiments import StudyConfig
from easycore_ray.config.identity import identity_fields
from easycore_ray.config.presets import STUDIES
from easycore_ray.experiments.study import rows_of, study
from easycore_ray.experiments.study_results import Book, key_of, trials_of_part
from easycore_ray.reporting.study_plots import draw_study, gains_over_random
from easycore_ray.storage.artifact import Artifact
from easycore_ray.storage.errors import EasyCoreError
from tests.artifacts import make_image_dataset

pytestmark = pytest.mark.slow

DATASET = Artifact("d", {"kind": "dataset", "fingerprint": "f" * 64})


def settings(**changes):
    return StudyConfig(**dict(out="/o", dataset="/d") | changes)


def record(method, seed, clean, robust, *, fraction=0.5, training="standard", attacks=("pgd20",)):
    """What a trial found, at eps 1/255 and, a tenth lower, at 2/255."""
    found = [
        {"attack": attack, "eps": eps, "accuracy": robust - lower, "worst_class_accuracy": 0.1}
        for eps, lower in ((1 / 255, 0.0), (2 / 255, 0.1))
        for attack in attacks
    ]
    return {
        "method": method, "score": "aign" if method == "easycore" else None, "balance": "none", "fraction": fraction,
        "training": training, "beta": 6.0 if training == "trades" else None, "seed": seed, "num_samples": 10,
        "steps": 5, "training_seconds": 2.0, "evaluation_seconds": 1.0, "device": "cpu", "num_eval_samples": 100,
        "clean_accuracy": clean, "worst_class_clean_accuracy": 0.2, "robust": found, "suspicious": [], "warnings": [],
    }  # fmt: skip


def book_of(path, records):
    """A results file with these records and five scoring runs."""
    book = Book(str(path), {}, DATASET)
    for seed, seconds in enumerate((10.0, 30.0, 20.0, 20.0, 20.0)):
        book.add("scoring", str(seed), {"device_seconds": seconds})
    for number, found in enumerate(records):
        under_autoattack = any(entry["attack"] == "autoattack" for entry in found["robust"])
        book.add("trials", f"{number}" + "+autoattack" * under_autoattack, found)
    return book


RECORDS = [
    record("random", 0, 0.8, 0.5), record("random", 1, 0.7, 0.6),
    record("easycore", 0, 0.75, 0.55), record("easycore", 1, 0.72, 0.58),
    record("full", 0, 0.9, 0.6, fraction=1.0), record("full", 1, 0.9, 0.62, fraction=1.0),
    record("easycore", 0, 0.75, 0.5, attacks=("pgd20", "autoattack")),
]  # fmt: skip


RECORDS[3]["suspicious"] = ["flattering"]


class TestPlan:
    def test_every_trial_has_a_name_of_its_own(self):
        """Full data belong to two parts but are one trial; all others differ, over parts and seeds."""
        config = settings()
        names = {part: [key_of(trial) for trial in trials_of_part(config, part)] for part in config.parts}
        every = [name for part in names.values() for name in part]

        assert {part: len(mine) for part, mine in names.items()} == {
            "standard": 3 * 8, "trades": 3 * 4, "fractions": 3 * 15, "autoattack": 8 + 4,
        }  # fmt: skip
        assert sorted(name for name in set(every) if every.count(name) > 1) == [
            f"full_f1_standard_s{s}" for s in range(3)
        ]

    def test_autoattack_is_run_on_the_models_that_are_there(self):
        """The first seed's checkpoints, at one eps each, beside the PGD of the same images."""
        config = settings(seeds=(4, 5), autoattack_eval_eps=2 / 255, eps=8 / 255, num_autoattack_samples=7)
        plain = {trial.name: trial for part in ("standard", "trades") for trial in trials_of_part(config, part)}
        for trial in trials_of_part(config, "autoattack"):
            assert trial.seed == 4
            assert trial.train == plain[trial.name].train
            assert trial.evaluate.out != plain[trial.name].evaluate.out
            assert trial.evaluate.eval_eps == ((8 / 255,) if trial.training == "trades" else (2 / 255,))
            assert (trial.evaluate.attack, trial.evaluate.num_eval_samples) == (("pgd20", "autoattack"), 7)

    def test_a_seed_scores_and_trains_under_the_same_number(self):
        """Each repetition is one of the whole method: its scoring run, its coresets, its models."""
        config = settings(batch_size=64, num_workers=2)
        for trial in trials_of_part(config, "standard"):
            assert trial.train.seed == trial.seed
            assert f"/seed-{trial.seed}/" in trial.train.coreset
        score = config.score_config("scores", 2)
        assert (score.seed, score.num_workers, score.batch_size) == (2, 2, 64)

    @pytest.mark.parametrize("name", STUDIES)
    def test_a_preset_fills_in_the_command_line(self, name):
        """--preset NAME of jobs.study is the study of that name."""
        config = STUDIES[name]("/o", "/d")

        assert StudyConfig(**preset_fields(StudyConfig, name) | {"out": "/o", "dataset": "/d"}) == config


class TestResults:
    def test_what_was_found_is_there_again(self, tmp_path):
        """The file alone is enough to go on from."""
        book_of(tmp_path / "r.json", RECORDS)
        again = Book(str(tmp_path / "r.json"), {}, DATASET)

        assert list(again.trials.values()) == json.loads(json.dumps(RECORDS))

    def test_another_setting_is_refused_by_name(self, tmp_path):
        """Trials of two recipes never share a file; how many seeds and parts there are is no matter."""
        path = str(tmp_path / "r.json")
        setting = identity_fields(settings())
        Book(path, setting, DATASET).add("trials", "t", RECORDS[0])

        with pytest.raises(EasyCoreError, match=r"lr = 0\.1, not 0\.2"):
            Book(path, setting | {"lr": 0.2}, DATASET)
        with pytest.raises(EasyCoreError, match="another dataset"):
            Book(path, setting, Artifact("d", {"fingerprint": "0" * 64}))

    def test_results_of_an_older_release_are_refused(self, tmp_path):
        """They stay as they are, as a record."""
        path = tmp_path / "r.json"
        content = {"setting": {}, "dataset": DATASET.fingerprint, "scoring": {}, "trials": {}}
        path.write_text(json.dumps(content))

        with pytest.raises(EasyCoreError, match=r"r.json was made by 0.1.0 \(format 1\); run again into another --out"):
            Book(str(path), {}, DATASET)
        assert json.loads(path.read_text()) == content

    def test_a_diverged_trial_is_an_answer_only_where_that_is_asked_for(self, tmp_path):
        """Without --keep-going it is run again; once it has results, it has not diverged."""
        trial = trials_of_part(settings(), "standard")[0]
        attacked = next(other for other in trials_of_part(settings(), "autoattack") if other.name == trial.name)
        book = Book(str(tmp_path / "r.json"), {}, DATASET)
        book.add("diverged", trial.name, {"seed": 0})
        again = Book(str(tmp_path / "r.json"), {}, DATASET)

        assert again.knows(trial, diverged=True)
        assert again.knows(attacked, diverged=True), "there is no model to attack"
        assert not again.knows(trial, diverged=False)
        again.add("trials", key_of(trial), RECORDS[0])
        assert again.knows(trial, diverged=False)
        assert not again.diverged

    def test_any_other_file_is_refused(self, tmp_path):
        """A JSON file that is no study's results is not overwritten."""
        (tmp_path / "r.json").write_text('{"rows": []}')

        with pytest.raises(EasyCoreError, match="no results of a study"):
            Book(str(tmp_path / "r.json"), {}, DATASET)


class TestTables:
    def test_rows_are_means_over_seeds(self, tmp_path):
        """Full data first; AutoAttack's evaluations are not mixed in; scoring is charged to who needs scores."""
        rows = rows_of(book_of(tmp_path / "r.json", RECORDS))
        easy = next(row for row in rows if row["method"] == "easycore" and row["eps"] == 1 / 255)

        assert [(row["method"], row["eps"]) for row in rows] == [
            (method, eps) for method in ("full", "random", "easycore") for eps in (1 / 255, 2 / 255)
        ]
        assert easy["seeds"] == [0, 1]
        assert easy["robust_accuracy_pgd20_mean"] == pytest.approx(0.565)
        assert easy["robust_accuracy_pgd20_std"] == pytest.approx(statistics.stdev([0.55, 0.58]))
        assert easy["robust_accuracy_mean"] == easy["robust_accuracy_pgd20_mean"]
        assert easy["suspicious"] == ["seed 1: flattering"]
        assert {row["method"]: row["scoring_seconds"] for row in rows} == {"full": 0.0, "random": 0.0, "easycore": 20.0}

    def test_a_row_names_the_seeds_that_diverged(self, tmp_path):
        """Rows of that arm only; the tables say which run it was and why."""
        book = book_of(tmp_path / "r.json", RECORDS[:3])
        names = ("method", "score", "balance", "fraction", "training", "beta")
        lost = {**{name: RECORDS[2][name] for name in names}, "seed": 1, "problem": "the loss is nan in step 7"}
        book.add("diverged", "easycore_f0.5_standard_s1", lost)
        draw_study(rows_of(book), RECORDS[:3], str(tmp_path / "r.json"), diverged=[lost])

        assert {(row["method"], *row["diverged_seeds"]) for row in rows_of(book)} == {("random",), ("easycore", 1)}
        assert (
            "### Diverged, without results\n\n- Standard training, easycore, 50 %, seed 1: the loss is nan in step 7\n"
            in (tmp_path / "results.md").read_text()
        )

    def test_tables_are_there_while_only_all_data_has_results(self, tmp_path):
        """Every coreset of it diverged: the plots that would compare have nothing to show."""
        book = book_of(tmp_path / "r.json", RECORDS[4:6])
        draw_study(rows_of(book), RECORDS[4:6], str(tmp_path / "r.json"))

        assert "| full | 100 % |" in (tmp_path / "results.md").read_text()
        assert [path.name for path in tmp_path.glob("*.png")] == ["trade_off.png"]

    def test_gains_are_within_a_seed(self):
        """Easycore of seed 0 against random of seed 0; a seed without random counts for nothing."""
        gains = gains_over_random([*RECORDS, record("easycore", 9, 1.0, 1.0)])
        points = {gain["eps"]: gain["points"] for gain in gains}

        assert {gain["method"] for gain in gains} == {"easycore"}
        assert points[None] == pytest.approx([-5.0, 2.0])
        assert points[1 / 255] == pytest.approx([5.0, -2.0]) == points[2 / 255]

    def test_gains_come_by_objective_and_fraction(self):
        """Whatever was run first; the other tables and plots come like that too."""
        run = [(0.5, "trades"), (0.5, "standard"), (0.7, "standard"), (0.3, "standard")]
        gains = gains_over_random(
            record(method, 0, 0.7, 0.5, fraction=fraction, training=training)
            for fraction, training in run
            for method in ("random", "easycore")
        )

        assert list(dict.fromkeys((gain["training"], gain["fraction"]) for gain in gains)) == [
            ("standard", 0.3), ("standard", 0.5), ("standard", 0.7), ("trades", 0.5),
        ]  # fmt: skip

    def test_tables_and_plots_lie_beside_the_results(self, tmp_path):
        """The Markdown says mean, spread, gain and AutoAttack; the plots are pictures."""
        book = book_of(tmp_path / "r.json", RECORDS)
        draw_study(rows_of(book), list(book.trials.values()), str(tmp_path / "r.json"))
        text = (tmp_path / "results.md").read_text()

        assert "| easycore | 50 % | 10 | 2 | 73.5 ± 2.1 | 56.5 ± 2.1 | 46.5 ± 2.1 | 20.0 | 5 |" in text
        ahead = "+1.5 ± 4.9 [-43.0, +46.0] (1 of 2)"
        assert f"| easycore | 50 % | -1.5 ± 4.9 [-46.0, +43.0] (1 of 2) | {ahead} | {ahead} |" in text
        assert "The tables above make 3 comparisons, over 2 seeds each." in text
        assert "0 of these do, and none of the comparisons survives Holm's correction" in text
        assert "| Standard training | easycore | 50 % | 0 | 100 | 2/255 | 40.0 | 40.0 | 0.0 |" in text
        for name in ("robust_by_eps", "against_random", "trade_off"):
            assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")

    def test_of_many_comparisons_those_that_survive_are_marked(self, tmp_path):
        """Ahead by 10 points in each of five seeds; on clean images by 1 ± 0.9, which alone would do."""
        clean = (0.004, 0.001, 0.02, 0.018, 0.007)
        records = [record("random", seed, 0.7, 0.5) for seed in range(5)]
        records += [record("easycore", seed, 0.7 + clean[seed], 0.6 + 0.001 * seed) for seed in range(5)]
        gains = gains_over_random(records)
        book = book_of(tmp_path / "r.json", records)
        draw_study(rows_of(book), records, str(tmp_path / "r.json"))
        text = (tmp_path / "results.md").read_text()

        assert [(gain["eps"] is None, gain["survives"]) for gain in gains] == [
            (True, False), (False, True), (False, True),
        ]  # fmt: skip
        assert gains[0]["difference"].ahead == 5
        assert "2 of these do, and 2 of the comparisons survive Holm's correction" in text
        assert "(5 of 5) \\* |" in text
        assert "- Standard training, easycore, 50 % kept, 1/255: +10.2 ± 0.2 [+10.0, +10.4] (5 of 5)" in text

    def test_one_seed_is_said(self, tmp_path):
        """There is no interval, and nothing that survives."""
        records = [record("random", 0, 0.7, 0.5), record("easycore", 0, 0.72, 0.6)]
        draw_study(rows_of(book_of(tmp_path / "r.json", records)), records, str(tmp_path / "r.json"))
        text = (tmp_path / "results.md").read_text()

        assert "| easycore | 50 % | +2.0 (one seed) | +10.0 (one seed) | +10.0 (one seed) |" in text
        assert "3 comparisons, over 1 seed each." in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"parts": ("standard", "others")},
            "parts must be one of standard, trades, fractions, autoattack, half, half-autoattack, half-others, "
            "half-others-autoattack, 30-percent, 30-percent-autoattack, 10-percent, 10-percent-autoattack, "
            "standard-half, standard-half-autoattack, half-autoattack-500, got 'others'",
        ),
        ({"num_workers": 3}, "batch_size 128 is not divisible by 3 workers"),
        ({"num_workers": (1, 2)}, "num_workers must be a whole number, got (1, 2)"),
        ({"seeds": ()}, "seeds needs at least one value"),
        ({"autoattack_eval_eps": 8.0}, "autoattack_eval_eps"),
        ({"train_epochs": 0, "lr": -1.0}, "train_epochs must be >= 1, got 0"),
    ],
)
def test_bad_input_is_refused(changes, words):
    """By name, with the value and what is allowed."""
    with pytest.raises(EasyCoreError) as caught:
        settings(**changes)

    assert words in str(caught.value)


def test_what_is_wrong_with_a_stage_is_told_once():
    """Also where the sentence has parts of its own."""
    with pytest.raises(EasyCoreError) as caught:
        settings(model="resnet18-imagenet", width=8, milestones=(75.0,))

    assert str(caught.value).count("width of resnet18-imagenet") == 1
    assert str(caught.value).count("milestones must be rising") == 1


@pytest.mark.parametrize("field", ["eps", "standard_eval_eps", "eval_eps", "autoattack_eval_eps"])
def test_a_budget_wider_than_the_image_is_refused_before_any_work(tmp_path, field):
    """Images of 16 values can be changed by 4 at most, wherever in a study it is."""
    dataset = make_image_dataset(tmp_path / "dataset", [0, 1, 2])
    budgets = {"eps": 0.5, "standard_eval_eps": (0.5,), "eval_eps": (0.5,), "autoattack_eval_eps": 0.5}
    budgets[field] = (128.0,) if isinstance(budgets[field], tuple) else 128.0
    out = tmp_path / "study"

    with pytest.raises(EasyCoreError, match="did you mean 128/255"):
        study(settings(dataset=dataset.path, out=str(out), norm="l2", model="cnn", **budgets))
    assert not out.exists()


def test_what_belongs_to_two_parts_is_counted_once(tmp_path):
    """Seven halves, seven each of 30 % and 70 %, and one of all data."""
    dataset = make_image_dataset(tmp_path / "dataset", [0, 1, 2])
    plan = study.plan(settings(dataset=dataset.path, parts=("standard", "fractions"), seeds=(0,), model="cnn"))

    assert plan.trials == 22
    assert "run 22 of 22 trials" in plan.work
