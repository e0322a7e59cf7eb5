"""The report: what it says is what the sweep found, it needs nothing else, and it survives odd sweeps."""

import base64
import html.parser
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from easycore_ray.config.inspection import ReportConfig
from easycore_ray.reporting import sweep_plots
from easycore_ray.reporting.figures import styles, to_png
from easycore_ray.reporting.html import render_report
from easycore_ray.reporting.report import gather, make_report_plots, print_table, report
from easycore_ray.reporting.tables import find_main_results, glance, result_tables
from easycore_ray.storage import provenance
from easycore_ray.storage.artifact import open_artifact
from easycore_ray.storage.errors import EasyCoreError
from tests.sweeps import ARMS, ROWS, make_findings, make_rows, make_sweep, mix_of, scored_digits

# Every page draws a dozen plots.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A sweep's folder, with the dataset, scoring run and coresets it refers to, as the stages write them."""
    return make_sweep(tmp_path_factory.mktemp("runs"), ROWS)


class Page(html.parser.HTMLParser):
    """Tags and text of a page; void elements apart, every tag must be closed in order."""

    VOID = ("meta", "img", "link", "br", "hr", "input")

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def drawn(sweep, tmp_path_factory):
    """The report of the sweep: the artifact and its page."""
    out = tmp_path_factory.mktemp("reports") / "report"
    made = report(sweep=sweep.path, out=str(out), title="Digits & <more>", note="A note.")
    return made, Page((out / "report.html").read_text())


def test_a_report_is_an_artifact_that_is_reused(sweep, drawn, capfd):
    """The second call draws nothing and gives the same report."""
    made, _ = drawn
    again = report(sweep=sweep.path, out=made.path, title="Digits & <more>", note="A note.")

    assert made.kind == "report"
    assert again.fingerprint == made.fingerprint
    assert made.manifest["parents"]["sweep"]["fingerprint"] == sweep.fingerprint
    assert "reused" in capfd.readouterr().err


def test_another_title_is_another_report(sweep, drawn):
    """A finished report with other words in it is not passed off as the one that was asked for."""
    with pytest.raises(EasyCoreError, match="another configuration"):
        report(sweep=sweep.path, out=drawn[0].path, title="Other")


def test_a_plan_writes_nothing(sweep, tmp_path):
    """It says what would be drawn and where."""
    plan = report.plan(sweep=sweep.path, out=str(tmp_path / "r"))
    assert not (tmp_path / "r").exists()
    assert f"draw {len(ROWS)} result rows" in plan.work
    assert plan.makes[0] == f"{tmp_path}/r/report.html"


def test_only_a_sweep_is_drawn(sweep, tmp_path):
    """Another artifact's folder is refused by name."""
    with pytest.raises(EasyCoreError, match="holds a scoring run, not a sweep"):
        report(sweep=sweep.path.replace("/sweep", "/scores"), out=str(tmp_path))


def test_the_page_needs_nothing_else(drawn):
    """No tag refers to anything outside the file."""
    _, page = drawn
    targets = [value for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "href", "srcset")]

    assert targets
    assert all(target.startswith(("data:", "#")) for target in targets)
    assert not page.all("link")
    assert all("src" not in attrs for attrs in page.all("script"))


def test_links_lead_somewhere(drawn):
    """Every entry of the contents is a section."""
    _, page = drawn
    targets = {attrs["href"].removeprefix("#") for attrs in page.all("a")}

    assert targets == {attrs["id"] for attrs in page.all("section")}
    assert {"results", "robust_by_fraction", "robust_by_beta", "cost", "aign", "class_mix", "images"} < targets


def test_user_text_is_shown_not_run(drawn):
    """Titles and names cannot bring markup into the page."""
    _, page = drawn

    assert "Digits & <more>" in page.text
    assert not page.all("more")


def test_every_result_is_in_the_tables(drawn):
    """Each row's accuracies stand in the page as per cent with spread."""
    _, page = drawn
    for row in ROWS:
        for name in ("clean_accuracy", "robust_accuracy_pgd20"):
            assert f"{100 * row[f'{name}_mean']:.1f} ± {100 * row[f'{name}_std']:.1f}" in page.text


def test_every_eps_has_a_column_written_as_people_do():
    """A table has one line per arm and fraction, and a column of robust accuracy for each eps as k/255."""
    rows = make_rows(betas=(6.0,), all_eps=(0.25 / 255, 8 / 255))
    page = Page(result_tables(rows, styles(rows)))

    assert "Robust, ε = 0.25/255 Robust, ε = 8/255" in page.text
    assert len(page.all("tr")) == 1 + len(rows) / 2
    robust = {f"{row['robust_accuracy_pgd20_mean']}" for row in rows}
    assert robust < {attrs.get("data-v") for attrs in page.all("td")}


def test_the_best_coreset_of_each_size_is_marked(drawn):
    """Per objective, fraction and column one value is marked, and it is the highest of the coresets'."""
    _, page = drawn
    marked = sorted(float(attrs["data-v"]) for attrs in page.all("td") if attrs.get("class") == "best")
    expected = []
    for beta in (None, 1.0, 6.0):
        for fraction in (0.3, 0.5):
            group = [row for row in ROWS if (row["beta"], row["fraction"]) == (beta, fraction)]
            expected.append(max(row["clean_accuracy_mean"] for row in group))
            expected.append(max(row["robust_accuracy_pgd20_mean"] for row in group))

    assert marked == sorted(expected)


def test_images_are_those_of_the_easiest_and_hardest_samples(drawn):
    """Pictures, names and ids follow the ranking by AIGN, easiest first, then hardest first."""
    _, page = drawn
    pixels, hardness, _ = scored_digits()
    shown = [attrs for attrs in page.all("img") if attrs["src"].startswith("data:image/png")]
    order = np.argsort(hardness["aign"])
    for attrs, sample_id in zip(shown, [*order[:24], *order[::-1][:24]], strict=True):
        picture = Image.open(io.BytesIO(base64.b64decode(attrs["src"].split(",")[1])))

        np.testing.assert_array_equal(np.asarray(picture), pixels[sample_id, 0])
        assert attrs["alt"] == f"digit {hardness['label'][sample_id]}, sample {sample_id}"


def test_lineage_names_parents_versions_and_the_way_to_repeat(sweep, drawn):
    """Fingerprints, package versions, commit and command are on the page."""
    _, page = drawn

    assert sweep.fingerprint[:16] in page.text
    assert f"torch {provenance.versions()['torch']}" in page.text
    assert "abc123" in page.text
    assert f"easycore sweep --config {sweep.path}/manifest.json" in page.text


def test_plots_are_also_files(drawn):
    """Every plot and both image grids lie in plots/ as PNG files that open."""
    made, _ = drawn
    names = [name for name in made.manifest["files"] if name != "report.html"]

    assert {f"plots/{n}.png" for n in ("robust_by_fraction", "trade_off", "aign", "easiest", "hardest")} < set(names)
    for name in names:
        with Image.open(f"{made.path}/{name}") as picture:
            assert min(picture.size) > 100


def test_coresets_are_gathered_without_the_full_one(sweep):
    """Class histograms come from the coresets' manifests; all data is no coreset."""
    (some, *_) = Path(sweep.path, "coresets").iterdir()
    (some / "dataset").mkdir()
    (some / "dataset" / "manifest.json").write_text('{"kind": "dataset", "fingerprint": "of its images"}')
    mixes = gather(ReportConfig(sweep=sweep.path, out="unused"), open_artifact(sweep.path)).mixes

    shutil.rmtree(some / "dataset")
    assert {(mix.arm, mix.fraction) for mix in mixes} == {(arm, fraction) for arm in ARMS for fraction in (0.3, 0.5)}
    assert {tuple(mix.class_histogram) for mix in mixes if mix.arm == "hardest"} == {
        tuple(mix_of("hardest", fraction)) for fraction in (0.3, 0.5)
    }


def test_equal_findings_give_equal_files():
    """Nothing in the page or the plots depends on when or where they were drawn."""
    rows = make_rows(arms=("random",), fractions=(0.5,), betas=(None,), all_eps=(8 / 255,))
    pages, files = set(), set()
    for _ in range(2):
        small = make_findings(rows, mixes=[], epochs=[])
        plots = make_report_plots(small)[:2]
        pages.add(render_report(small, plots))
        files.add(to_png(plots[0], styles(rows)))

    assert len(pages) == len(files) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": make_rows(seeds=(0,), arms=("random",), fractions=(0.5,), betas=(6.0,), all_eps=(8 / 255,))},
        {"rows": make_rows(arms=(), betas=(None,), all_eps=(0.0,)), "mixes": []},
        {"rows": make_rows(arms=("easycore",), betas=(None,), all_eps=(0.5,)), "note": "", "epochs": []},
        {"rows": make_rows(arms=("random", "easiest:el2n/class", "band"), betas=(3.0,), all_eps=(1e-3,))},
        {
            "rows": make_rows(arms=("random",), betas=(None,), all_eps=(8 / 255,)),
            "classes": ["数字", "$price", "<b>", *"3456789"],
        },
    ],
    ids=["one seed", "full data only", "nothing robust", "other arms", "odd class names"],
)
def test_unusual_sweeps_are_drawn_too(changes):
    """One seed, no coresets, no robust model, unknown arms, foreign scripts: a page all the same."""
    few = make_findings(**changes)
    page = Page(render_report(few, make_report_plots(few)))

    assert "nan" not in page.text.lower().split()
    assert page.all("table")


def test_one_seed_has_no_spread():
    """With a single seed nothing is written after the mean, and no verdict is given on differences."""
    rows = make_rows(seeds=(0,))
    (found, *_) = find_main_results(rows)

    assert found.gain > 0
    assert found.paired.interval is None
    assert f"{found.paired.mean:+.1f}<small>one seed</small>" in glance(rows, styles(rows))
    assert "±" not in print_table(rows).replace("±: standard deviation", "")


def test_a_finding_compares_with_random_choice_of_the_same_size():
    """The best coreset, here a small one, is set against random at its own fraction, objective and eps."""
    rows = make_rows(arms=("easycore", "random"))
    (best,) = [row for row in rows if row["method"] == "easycore" and at(row) == (6.0, 0.3, 8 / 255)]
    (random,) = [row for row in rows if row["method"] == "random" and at(row) == (6.0, 0.3, 8 / 255)]
    best["robust_accuracy_pgd20_mean"] = 0.9
    # The seeds that both have count, whatever their order: 10, 20 and 30 points, 20 ± 4.303 · 10 / √3.
    best |= {"seeds": [2, 0, 1, 7], "robust_accuracy_by_seed": [0.8, 0.6, 0.7, 0.1]}
    random["robust_accuracy_by_seed"] = [0.5, 0.5, 0.5]
    found = {entry.objective: entry for entry in find_main_results(rows)}["TRADES, β = 6"]

    assert found.best is best
    assert found.random is random
    assert found.gain == pytest.approx(100 * (0.9 - random["robust_accuracy_pgd20_mean"]))
    assert found.paired.interval == pytest.approx((-4.84, 44.84), abs=0.01)
    assert "+20.0<small>± 10.0 [-4.8, +44.8] (3 of 3)</small>" in glance(rows, styles(rows))


def test_rows_without_figures_by_seed_still_compare():
    """As release 0.2.0 wrote them: a difference of means, without an interval."""
    rows = [{key: kept for key, kept in row.items() if key != "robust_accuracy_by_seed"} for row in make_rows()]

    assert find_main_results(rows)[0].paired is None
    assert "<small>no figures by seed</small>" in glance(rows, styles(rows))


def at(row):
    return row["beta"], row["fraction"], row["eps"]


def test_a_finding_uses_the_largest_eps_that_tells_anything():
    """Where full data is below 10 % at every larger eps, a smaller one is shown."""
    rows = make_rows(betas=(None,), all_eps=(0.25 / 255, 1 / 255, 16 / 255))

    assert [entry.eps for entry in find_main_results(rows)] == [1 / 255]


def test_pgd_adversarial_training_is_named_on_page_tables_and_plots():
    """Rows of pgd are "PGD-AT" in findings, tables and panels; they have no β and take no part in the β plot."""
    rows = [row | {"training": "pgd", "beta": None} for row in make_rows(betas=(6.0,))]
    looks = styles(rows)

    assert {panel.title.split(",")[0] for panel in sweep_plots.robust_by_fraction(rows, looks).panels} == {"PGD-AT"}
    assert sweep_plots.robust_by_beta(rows, looks).panels == []
    assert {found.objective for found in find_main_results(rows)} == {"PGD-AT"}
    assert "TRADES" not in glance(rows, looks)
    assert "with <span" in glance(rows, looks)


def test_the_printed_table_is_aligned_and_fits():
    """Every line is at most 110 columns, columns line up, each row is there once."""
    rows = make_rows(arms=("easycore", "random", "easiest:aign/class"), all_eps=(0.25 / 255, 8 / 255))
    head, rule, *lines, note, budget, best = print_table(rows).splitlines()

    assert len(lines) == len(rows)
    assert max(map(len, [head, rule, *lines, note, budget, best])) <= 110
    end = head.index("kept") + len("kept")
    assert all(line[end - 1] == "%" and line[end] == " " for line in lines)
    assert any(re.search(r"TRADES, β = 6 +random +50 % +704 +8/255 ", line) for line in lines)


def test_the_printed_table_cuts_long_names_not_numbers():
    """Rows with everything long still fit; the arm's name gives way."""
    rows = make_rows(arms=("stratified:forgetting/class",), betas=(6.25,), all_eps=(0.25 / 255,), scale=1000.0)
    table = print_table(rows)

    assert max(map(len, table.splitlines())) <= 110
    assert "…" in table
    assert f"{rows[-1]['steps']:,}" in table


def test_rows_survive_the_trip_through_json():
    """What a sweep writes to summary.json is drawn as well as rows in memory."""
    rows = make_rows()

    assert print_table(json.loads(json.dumps(rows))) == print_table(rows)


def test_a_suspicious_row_is_marked_and_explained():
    """Printed table and page mark the robust accuracy of these rows only; sentences stand below, each once."""
    rows = make_rows(arms=("random",), fractions=(0.5,), betas=(None,), all_eps=(4 / 255, 8 / 255))
    for row in rows[:2]:
        row |= {"suspicious": ["seed 1: the gradients are masked"], "warnings": ["seed 1: <Square> fooled"]}
    assert rows[0]["method"] == rows[1]["method"] == "full"
    head, _, *lines, note, _, doubt = print_table(rows).splitlines()

    assert [line.count("‡") for line in lines] == [int(" full " in line) for line in lines]
    assert len({len(line) for line in [head, *lines]}) == 1, "columns no longer line up"
    assert (note[0], doubt[0]) == ("r", "‡")
    page = Page(result_tables(rows, styles(rows)))
    assert page.text.count("‡") == 3, "two cells and the heading of the sentences"
    assert page.text.count("full, 100 %, seed 1: the gradients are masked") == 1
    assert page.text.count("seed 1: <Square> fooled") == 1
    assert "‡" not in print_table(rows[2:])


def test_a_row_without_a_diverged_seed_is_marked_and_the_run_named():
    """Printed table and page mark such rows only, and name every run without results, those of absent arms too."""
    rows = make_rows(arms=("random",), fractions=(0.5,), betas=(6.0,), all_eps=(8 / 255,))
    names = ("method", "score", "balance", "fraction", "training", "beta")
    lost = [
        {**{name: rows[1][name] for name in names}, "seed": 3, "problem": "the loss is <nan> in step 7"},
        {
            **{name: rows[1][name] for name in names},
            "method": "hardest",
            "score": "aign",
            "seed": 0,
            "problem": "so is it",
        },
    ]
    rows[1]["diverged_seeds"] = [3]
    head, *text = print_table(rows, lost).splitlines()
    lines = [line for line in text if line.startswith("TRADES")]
    page = Page(result_tables(rows, styles(rows), lost))

    assert [line.count("†") for line in lines] == [0, 1]
    assert len({len(line) for line in [head, *lines]}) == 1, "columns no longer line up"
    assert sum(line.startswith("† training diverged") for line in text) == 1
    assert text[-2:] == [
        "without results: TRADES, β = 6, random, 50 %, seed 3: the loss is <nan> in step 7",
        "without results: TRADES, β = 6, hardest, 50 %, seed 0: so is it",
    ]
    assert page.text.count("†") == 2, "a cell and the heading of the list"
    assert "random, 50 %, seed 3: the loss is <nan> in step 7" in page.text
    assert "†" not in print_table(rows[:1])


def test_several_attacks_have_columns_and_the_headline_is_their_worst():
    """Terminal, page, findings and axes go by the accuracy under all attacks and name them."""
    rows = make_rows(arms=("random",), fractions=(0.5,), betas=(6.0,), all_eps=(8 / 255,))
    for row in rows:
        row |= {"attack": ["pgd20", "autoattack"], "robust_accuracy_mean": 0.311, "robust_accuracy_std": 0.02,
                "worst_class_robust_accuracy_mean": 0.05, "robust_accuracy_autoattack_mean": 0.322}  # fmt: skip
    head, _, *lines, note, _ = print_table(rows).splitlines()

    assert re.search(r"robust +PGD-20 +AutoAttack +worst", head)
    pgd = 100 * rows[1]["robust_accuracy_pgd20_mean"]
    assert any(re.search(rf"31\.1 ± 2\.0 +{pgd:.1f} +32\.2 +5\.0 ", line) for line in lines)
    assert max(map(len, [head, *lines])) <= 110
    assert "under both" in note
    assert f"PGD-20 {pgd:.1f}, AutoAttack 32.2" in Page(result_tables(rows, styles(rows))).text
    assert find_main_results(rows)[0].best["robust_accuracy_mean"] == 0.311
    few = make_findings(rows)
    assert "PGD-20 and AutoAttack" in Page(render_report(few, [])).text


@pytest.mark.parametrize("several", [False, True])
def test_averaged_weights_have_a_column_and_a_line(several):
    """In the terminal, within its width, with one attack or several; on the page below what they belong to."""
    rows = make_rows(arms=("random",), fractions=(0.5,), betas=(6.0,), all_eps=(8 / 255,))
    assert "averaged" not in print_table(rows) + Page(result_tables(rows, styles(rows))).text
    for row in rows:
        row |= {"clean_accuracy_averaged_mean": 0.876, "clean_accuracy_averaged_std": 0.012,
                "robust_accuracy_averaged_mean": 0.543, "robust_accuracy_averaged_std": 0.021}  # fmt: skip
        row |= {"attack": ["pgd20", "autoattack"], "robust_accuracy_autoattack_mean": 0.3} if several else {}
    table = print_table(rows)

    assert re.search(r"averaged +steps +training$", table.splitlines()[0])
    assert table.count("54.3 ± 2.1") == len(rows)
    assert "averaged: robust with the weights averaged over the steps" in table
    assert max(map(len, table.splitlines())) <= 110
    page = Page(result_tables(rows, styles(rows))).text
    assert page.count("averaged 54.3 ± 2.1") == page.count("averaged 87.6 ± 1.2") == len(rows)


def test_an_arm_that_selects_no_coreset_is_explained_as_well():
    """With a line of its own, as every method has."""
    rows = make_rows(arms=("random",), fractions=(0.5,), betas=(None,), all_eps=(8 / 255,))
    rows.append({**rows[-1], "method": "rs2", "score": None, "robust_accuracy_pgd20_mean": 0.99})
    page = Page(render_report(make_findings(rows), [])).text

    (main,) = find_main_results(rows)
    assert main.best["method"] == main.random["method"] == "random", "it is no coreset, however robust"
    assert re.search(r"rs2\s+All samples, in another order each time, for the steps of a coreset of this size", page)


def test_an_arm_that_has_overfitted_to_single_steps_is_marked():
    """Its rows only, with what the mark means, in the terminal and on the page."""
    rows = make_rows(arms=("random",), fractions=(0.5,), betas=(None,), all_eps=(8 / 255,))
    rows[0]["overfitted_seeds"] = [1]
    lines = [line for line in print_table(rows).splitlines() if "§" in line]

    assert [line.startswith("§ ") for line in lines] == [False, True]
    assert " full " in lines[0]
    assert "far more than PGD" in lines[1]
    assert Page(result_tables(rows, styles(rows))).text.count("§") == 2
    assert "§" not in print_table(rows[1:])


def test_the_best_epoch_is_told_where_it_is_not_the_last():
    """Beside the last's accuracies, in the terminal and on the page; and nowhere else."""
    rows = make_rows(arms=("easycore",), fractions=(0.3,), betas=(None, 6.0), all_eps=(8 / 255,))
    (overfit,) = [row for row in rows if row["method"] == "easycore" and row["beta"] == 6.0]
    best = f"{100 * overfit['robust_accuracy_pgd20_best_mean']:.1f}"
    (line,) = [line for line in print_table(rows).splitlines() if "easycore" in line and "β = 6" in line]
    page = Page(result_tables(rows, styles(rows))).text

    assert f" {best} " in line
    assert f"best {best} ± 0.6 (epoch 6)" in page
    alike = [row | {"best_epoch_mean": 20.0} for row in rows]
    assert "best" not in print_table(alike)
    assert "best" not in print_table([row | {"best_epoch_mean": None} for row in rows])


def test_the_gap_between_best_and_last_is_a_column_where_it_is_known():
    """In points with its sign, at the eps that tells most; rows of earlier versions have none."""
    rows = make_rows(betas=(6.0,))
    for row in rows:
        if row["method"] == "easycore" and row["balance"] == "none":
            row |= {"robust_gap_mean": 0.034 if row["eps"] == max(r["eps"] for r in rows) else 0.9,
                    "robust_gap_std": None if row["fraction"] == 0.3 else 0.005}  # fmt: skip
    page = result_tables(rows, styles(rows))

    assert page.count(">Gap</span>,<br>ε = 8/255<") == 1
    assert page.count(">+3.4<") == page.count(">+3.4 ± 0.5<") == 1
    assert "Gap" not in result_tables(make_rows(), styles(rows))


def test_corrupted_images_have_a_column_where_they_were_classified():
    """After the clean ones; a dash for rows of another sweep without."""
    rows = make_rows(betas=(6.0,), all_eps=(8 / 255,))
    for row in rows[1:]:
        row |= {"corruption_accuracy_mean": 0.612, "corruption_accuracy_std": 0.011}
    page = result_tables(rows, styles(rows))

    assert ">Corrupted</span>" in page
    assert page.count(">61.2 ± 1.1<") == len(rows) - 1
    assert page.count('<td data-v="-1">–</td>') == 1
    assert "Corrupted" not in result_tables(make_rows(), styles(rows))
