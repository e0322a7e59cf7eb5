"""Arms at equal budgets, from made-up records: differences, corrections, costs, recommendations, the page."""

import json
from pathlib import Path

import pytest
from scipy import stats

from easycore_ray.config.arms import parse_arm
from easycore_ray.experiments.study import draw_book, rows_of
from easycore_ray.experiments.study_results import Book
from easycore_ray.reporting.arm_comparison import compare_budgets, recommended_arm
from easycore_ray.reporting.comparison_page import against_rs2, comparison_sections, recommendation
from easycore_ray.reporting.figures import to_png
from easycore_ray.storage.artifact import Artifact

SCORING = {str(seed): {"device_seconds": 90.0 + seed} for seed in range(5)}
NOISE = (0.0, 0.004, -0.003, 0.002, -0.001)


def record(name, seed, accuracy, *, fraction=0.5, attack="autoattack", images=250, training="trades", eps=8 / 255):
    """What a trial found; under AutoAttack 2 points less than under PGD."""
    arm = parse_arm(name)
    attacks = {"pgd20": accuracy + 0.02, "autoattack": accuracy} if attack == "autoattack" else {"pgd20": accuracy}
    robust = [{"attack": key, "eps": eps, "accuracy": value, "worst_class_accuracy": 0.1}
              for key, value in attacks.items()]  # fmt: skip
    return {
        "method": arm.method, "score": arm.score, "balance": arm.balance, "fraction": fraction, "training": training,
        "beta": 6.0 if training == "trades" else None, "seed": seed, "steps": 10, "num_samples": 100,
        "training_seconds": 20.0 + seed, "num_eval_samples": images, "clean_accuracy": 0.5, "robust": robust,
        "worst_class_clean_accuracy": 0.2, "suspicious": [], "warnings": [], "device": "cpu",
    }  # fmt: skip


def study_of(leads, seeds=5, **changes):
    """Records of rs2 at 25 % in each seed, of all data, and of arms that are so far ahead, with a seed's own noise."""
    found = [record("full", seed, 0.30, **changes | {"fraction": 1.0}) for seed in range(seeds)]
    for seed in range(seeds):
        base = 0.25 + 0.01 * seed
        found.append(record("rs2", seed, base, **changes))
        for place, (name, lead) in enumerate(leads.items()):
            found.append(record(name, seed, base + lead + NOISE[(seed + place) % 5], **changes))
    return found


def compared(records):
    """The only comparison."""
    (found,) = compare_budgets(records, SCORING)
    return found


LEADS = {"random": -0.02, "easycore": 0.03, "easycore/class": 0.001}


class TestNumbers:
    def test_differences_are_within_a_seed_and_corrected_for_the_arms(self):
        """Against rs2 and against random, by SciPy's t-test and Holm's rule, three arms each."""
        records = study_of(LEADS)
        found = compared(records)
        values = {}
        for each in records:
            values.setdefault(each["method"] + "/" * (each["balance"] == "class"), []).append(
                each["robust"][-1]["accuracy"]
            )
        for reference in ("rs2", "random"):
            others = [name for name in ("rs2", "random", "easycore", "easycore/") if name != reference]
            tests = {name: stats.ttest_rel(values[name], values[reference]) for name in others}
            highest = 0.0
            for rank, name in enumerate(sorted(tests, key=lambda name: tests[name].pvalue)):
                highest = max(highest, min(1.0, (3 - rank) * tests[name].pvalue))
                lead = next(each for each in found.arms if each.arm == name.replace("/", "/class")).leads[reference]
                ends = tests[name].confidence_interval(0.95)
                assert lead.p_value == pytest.approx(highest)
                assert lead.difference.interval == pytest.approx((100 * ends.low, 100 * ends.high))

    def test_arms_are_sorted_and_all_data_are_beside(self):
        """The most robust first; all data are no arm of a budget and in no correction."""
        found = compared(study_of(LEADS))

        assert [each.arm for each in found.arms] == ["easycore", "easycore/class", "rs2", "random"]
        assert (found.full.accuracy, found.full.leads) == (pytest.approx(30.0), {})
        assert (found.attack, found.eps, found.num_images) == ("autoattack", 8 / 255, 250)

    def test_seeds_without_rs2_count_for_nothing(self):
        """Where rs2 of a seed is missing, the others are compared over the seeds that are there."""
        records = [each for each in study_of(LEADS) if (each["method"], each["seed"]) != ("rs2", 2)]
        lead = next(each for each in compared(records).arms if each.arm == "easycore").leads

        assert (lead["rs2"].difference.count, lead["random"].difference.count) == (4, 5)

    def test_a_model_pays_its_share_of_the_scoring_run_of_its_seed(self):
        """Two arms of this budget and one of another go by scores; what they were attacked with does not matter."""
        records = [*study_of(LEADS), *study_of({"easiest:aum": 0.0}, fraction=0.1), *study_of(LEADS, attack="pgd20")]
        found = compare_budgets(records, SCORING)[0]
        costs = {each.arm: (each.training_seconds, each.scoring_seconds) for each in found.arms}

        assert found.num_scored == 3
        assert costs["rs2"] == costs["random"] == (22.0, 0.0)
        assert costs["easycore"] == costs["easycore/class"] == (22.0, pytest.approx((90 + 91 + 92 + 93 + 94) / 5 / 3))
        assert found.arms[0].seconds == pytest.approx(22.0 + 92 / 3)

    def test_without_rs2_nothing_is_compared(self):
        """Studies of before are drawn as they were, also from the records in docs/study, which release 0.1.0 made."""
        records = [each for each in study_of(LEADS) if each["method"] != "rs2"]
        old = json.loads((Path(__file__).parents[2] / "docs" / "study" / "results.json").read_text())

        assert compare_budgets(records, SCORING) == []
        assert compare_budgets(list(old["trials"].values()), old["scoring"]) == []
        assert comparison_sections([]) == []


class TestAttack:
    def test_autoattack_goes_before_pgd_and_missing_arms_are_named(self):
        """As soon as rs2 and another arm have it."""
        plain = study_of(LEADS | {"hardest": -0.1}, attack="pgd20", images=1000)
        assert (compared(plain).attack, compared(plain).num_images) == ("pgd20", 1000)
        found = compared([*plain, *study_of(LEADS, seeds=3)])

        assert (found.attack, found.num_images, found.not_attacked) == ("autoattack", 250, ("hardest",))
        assert "Not attacked so, and not compared: hardest." in comparison_sections([found])[1]

    def test_the_set_of_the_most_models_is_compared(self):
        """500 images once they have as many models as 250."""
        few = [*study_of(LEADS), *study_of(LEADS, seeds=3, images=500)]

        assert compared(few).num_images == 250
        assert compared([*few, *study_of(LEADS, images=500)]).num_images == 500

    def test_pgd_is_compared_at_the_largest_eps_that_leaves_something(self):
        """At 8/255 all data of standard training have no accuracy left."""
        records = []
        for each in study_of(LEADS, training="standard", attack="pgd20", eps=1 / 255):
            dead = {"attack": "pgd20", "eps": 8 / 255, "accuracy": 0.01, "worst_class_accuracy": 0.0}
            records.append(each | {"robust": [*each["robust"], dead]})

        assert compared(records).eps == 1 / 255


class TestRecommendation:
    def test_the_largest_lead_beyond_chance_is_taken(self):
        """Both are ahead of rs2 beyond chance."""
        found = compared(study_of({"random": -0.02, "easycore": 0.03, "easiest:aum": 0.05}))

        assert recommended_arm(found) == "easiest:aum"
        assert recommendation(found).startswith(
            "**TRADES, β = 6, 50 % of the steps: take `easiest:aum`.** It is ahead of rs2 beyond chance, in points +5.0"
        )
        assert (
            "A model costs 68 device-seconds with its share of scoring, 22 with rs2, which would take 209 % more steps "
            "for that; not compared." in recommendation(found)
        )

    def test_without_a_lead_beyond_chance_rs2_is_taken(self):
        """The best mean is named, and who is behind."""
        found = compared(study_of({"random": -0.05, "easycore": 0.001}))

        assert recommended_arm(found) == "rs2"
        assert "No arm is better than rs2 beyond chance (AutoAttack at ε = 8/255, 2 arms)" in recommendation(found)
        assert "the best mean is that of `easycore`, in points +0.1" in recommendation(found)
        assert "Behind rs2 beyond chance: `random`." in recommendation(found)

    def test_an_interval_beside_0_is_not_enough(self):
        """The same lead survives as one arm of two, and not as one of nine."""
        lead = {"easycore": 0.0055}
        names = ("random", "hardest", "middle", "band", "easiest:loss", "easiest:aum", "easiest:el2n", "easycore/class")
        others = dict.fromkeys(names, -0.001)
        few, many = compared(study_of(lead | {"random": -0.02})), compared(study_of(lead | others))
        mine = next(each for each in many.arms if each.arm == "easycore").leads["rs2"]

        assert mine.difference.interval[0] > 0
        assert (recommended_arm(few), recommended_arm(many)) == ("easycore", "rs2")

    def test_one_seed_recommends_nothing(self):
        """It has no interval."""
        found = compared(study_of(LEADS, seeds=1))

        assert recommended_arm(found) is None
        assert "no recommendation.** One seed tells nothing of chance" in recommendation(found)
        assert "degree" not in comparison_sections([found])[1]


class TestPage:
    def test_it_says_what_the_numbers_are(self):
        """Weights, images, degrees of freedom, sharing of the scoring run; a line for each arm."""
        first, table = comparison_sections([compared(study_of(LEADS, seeds=3))])

        assert "The rule: of the arms whose lead over rs2 survives" in first
        assert "![" in first
        assert "(against_rs2.png)" in first
        assert "AutoAttack at ε = 8/255, on the same 250 images" in table
        assert "last weights, no average" in table
        assert "Holm's correction for the 3 arms" in table
        assert "3 seeds give a test 2 degrees of freedom: an interval reaches 4.3 standard errors" in table
        assert "the clearest arm survives from 7.6 on" in table
        assert "divided by the models of the seed that go by scores, 2 in this study" in table
        assert "| full | 3 | 30.0 ± 0.0 |  |  |  |  | 50.0 | 10 | 21 | 0 | 21 |" in table
        assert "| 50.0 | 10 | 21 | 46 | 66 |" in table

    def test_the_picture_has_a_panel_for_each_budget(self):
        """And says in its title what to take."""
        found = compare_budgets([*study_of(LEADS), *study_of(LEADS, fraction=0.1)], SCORING)
        plot = against_rs2(found)

        assert [panel.title for panel in plot.panels] == [
            "TRADES, β = 6, 50 % of the steps: take easycore", "TRADES, β = 6, 10 % of the steps: take easycore",
        ]  # fmt: skip
        assert to_png(plot, {}).startswith(b"\x89PNG")

    def test_a_study_with_rs2_has_it_on_top(self, tmp_path):
        """Beside the results, with the picture; the other tables follow, averaged weights below the last."""
        book = Book(str(tmp_path / "results.json"), {}, Artifact("d", {"kind": "dataset", "fingerprint": "f" * 64}))
        for seed, entry in SCORING.items():
            book.add("scoring", seed, entry)
        averages = {"clean_accuracy": 0.6, "robust": [{"attack": "pgd20", "eps": 8 / 255, "accuracy": 0.4}]}
        for number, each in enumerate(study_of(LEADS, attack="pgd20", images=1000)):
            book.add("trials", str(number), each | {"averaged": averages})
        for number, each in enumerate(study_of(LEADS)):
            book.add("trials", f"{number}+autoattack500", each)
        draw_book(book)
        text = (tmp_path / "results.md").read_text()
        costs = {row["method"]: row["scoring_seconds"] for row in rows_of(book)}

        assert text.startswith(
            "### Which samples to train on, by budget\n\n- **TRADES, β = 6, 50 % of the steps: take `easy"
        )
        assert "| full | 100 % | last | 100 | 5 | 50.0 ± 0.0 | 30.0 ± 0.0 | 20.0 | 10 |" in text
        assert "| full | 100 % | averaged | 100 | 5 | 60.0 ± 0.0 | 40.0 ± 0.0 |  | 10 |" in text
        assert costs == {"full": 0.0, "rs2": 0.0, "random": 0.0, "easycore": 92.0}
        assert (tmp_path / "against_rs2.png").read_bytes().startswith(b"\x89PNG")
