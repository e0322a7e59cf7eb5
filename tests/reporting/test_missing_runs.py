"""Runs without results, in words, tables and the page: those that diverged, those that were stopped early."""

from easycore_ray.reporting.figures import styles
from easycore_ray.reporting.missing_runs import lost_runs, stopped_runs
from easycore_ray.reporting.report import print_table
from easycore_ray.reporting.tables import budget_text, result_tables
from tests.sweeps import make_rows


def stopped_row(seed, fraction=0.3, share=111, validation=0.25):
    return {"method": "random", "score": None, "balance": "none", "fraction": fraction, "training": "trades",
            "beta": 6.0, "seed": seed, "problem": "stopped after …", "share": share,
            "validation": validation}  # fmt: skip


def test_stopped_runs_are_a_line_an_arm():
    """With the share of steps and the accuracy of each seed."""
    assert stopped_runs([stopped_row(0), stopped_row(2, share=333, validation=0.4), stopped_row(1, 0.5)]) == [
        "TRADES, β = 6, random, 30 %: seed 0 at 11.1 % of its steps (validation 25.0 %), "
        "seed 2 at 33.3 % of its steps (validation 40.0 %)",
        "TRADES, β = 6, random, 50 %: seed 1 at 11.1 % of its steps (validation 25.0 %)",
    ]
    assert lost_runs([stopped_row(1)]) == ["TRADES, β = 6, random, 30 %, seed 1: stopped after …"]


def test_rows_with_stopped_seeds_are_marked_and_arms_without_results_named():
    """An arm all of whose seeds were stopped has no accuracies; one with some has the mean of the others, marked."""
    rows = make_rows(arms=("random",), fractions=(0.3,), betas=(6.0,), all_eps=(0.1,))
    rows[1] |= {"stopped_seeds": [3]}
    stopped = [stopped_row(3), stopped_row(0, 0.5)]
    table, page = print_table(rows, [], stopped), result_tables(rows, styles(rows), [], stopped)

    (line,) = [line for line in table.splitlines() if " random " in line and "30 %" in line and "¶" in line]
    assert "±" in line
    assert "¶ at least one seed was stopped early; the mean is over the others, which were ahead, and flatters" in table
    assert "stopped early: TRADES, β = 6, random, 50 %: seed 0 at 11.1 %" in table
    assert "50 %" not in "".join(line for line in table.splitlines() if not line.startswith("stopped early"))
    assert "Stopped early, in no mean" in page
    assert page.count("¶") == 2
    plain = print_table(rows[:1]) + result_tables(rows[:1], styles(rows[:1]))
    assert "¶" not in plain
    assert "topped early" not in plain


def test_a_budget_is_compared_over_all_weights_of_an_objective():
    """A search has another β in each row."""
    row = {"training": "trades", "beta": 6.0, "method": "random", "steps": 30}
    assert budget_text([row, {**row, "beta": 2.5, "steps": 40}]).startswith("budget: equal epochs")
