"""docs/methods.md: its tables are those of the registries."""

import re
from pathlib import Path

from easycore_ray.core.selection import HIGHER_IS_HARDER
from easycore_ray.core.selection_methods import METHODS, markdown_table
from easycore_ray.core.trajectory_scores import TRAJECTORY_SCORES

PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()


def section(name):
    """What stands between two marks of the page."""
    return re.search(rf"<!-- {name} -->\n(.*?)<!-- end -->", PAGE, re.DOTALL)[1]


def scores_table():
    """The scores of trajectories, one line each."""
    lines = ["| score | what it is | harder | from | least scored epochs |", "| --- | --- | --- | --- | --- |"]
    for name, kind in TRAJECTORY_SCORES.items():
        score, end = kind(), "high" if kind.HIGHER_IS_HARDER else "low"
        options = ",".join(f"{option}={getattr(score, option)}" for option in kind.LEAST)
        written = f"`{name}`" + (f" (`{options}`)" if options else "")
        lines.append(f"| {written} | {kind.DOC} | {end} | {', '.join(kind.COLUMNS)} | {score.least_epochs} |")
    return "\n".join(lines) + "\n"


def test_every_method_is_on_the_page():
    assert section("methods") == markdown_table() + "\n"


def test_every_trajectory_score_is_on_the_page():
    assert section("scores") == scores_table()


def test_every_score_of_a_hardness_table_is_on_the_page():
    told = PAGE.split("<!-- scores -->")[0]
    assert [name for name in HIGHER_IS_HARDER if f"`{name}`" not in told] == []


def test_what_differs_is_said_of_known_names():
    """Rows of the last table are methods and scores that there are."""
    rows = re.findall(r"^\| (`[^|]*`) \|", PAGE.split("## Equal to the sources")[1], re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert named <= {*METHODS, *HIGHER_IS_HARDER, *TRAJECTORY_SCORES}
    assert {"dual_beta", "cld", "stratified"} <= named
