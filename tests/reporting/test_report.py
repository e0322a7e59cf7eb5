"""The report: what it says is what the sweep found, it needs nothing else, and it survives odd sweeps.

The sweep behind it is artificial (accuracies from a formula), but its images are real digits, scored by a
small linear model in NumPy, so that pictures and distributions look like those of a run.
"""

import base64
import functools
import html.parser
import io
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from easycore_ray.config.arms import parse_arm
from easycore_ray.config.stages import ReportConfig
from easycore_ray.core.selection import choose
from easycore_ray.data import shards
from easycore_ray.data.index import INDEX_SCHEMA, write_index
from easycore_ray.reporting import score_plots, sweep_plots
from easycore_ray.reporting.figures import styles, to_png, to_svg
from easycore_ray.reporting.html import ReportData, render_report
from easycore_ray.reporting.image_grid import Images, to_data_uri
from easycore_ray.reporting.report import gather, make_report_plots, print_table, report
from easycore_ray.reporting.score_plots import Mix
from easycore_ray.reporting.tables import find_main_results, glance, result_tables
from easycore_ray.storage import artifact, paths
from easycore_ray.storage.artifact import Claim, open_artifact
from easycore_ray.storage.errors import EasyCoreError

# Every page draws a dozen plots.
pytestmark = pytest.mark.slow

ARMS = ("easycore", "easycore/class", "random", "hardest")
# Points of robust accuracy an arm gains or loses against random choice, for the formula below.
GAINS = {"full": 0.0, "easycore": 0.02, "easycore/class": 0.035, "random": 0.0, "hardest": -0.09}


def row_of(arm, fraction, beta, eps, seeds=(0, 1, 2), scale=1.0):
    """A result row from a formula: more data, larger β and smaller eps are better."""
    known, gain = parse_arm(arm), GAINS.get(arm, -0.02)
    clean = 0.97 - 0.06 * (1 - fraction) - 0.012 * (beta or 0) + gain / 4
    lost = 18 * eps if beta is None else 8 * eps / (1 + beta) ** 0.3  # to the attack
    robust = max(clean * (1 - lost) + gain - 0.1 * (1 - fraction), 0.0)
    std = lambda value: value if len(seeds) > 1 else None  # noqa: E731 - reads as a rule
    return {
        "method": known.method,
        "score": known.score,
        "balance": known.balance,
        "fraction": fraction,
        "training": "standard" if beta is None else "trades",
        "beta": beta,
        "scoring_seed": 0 if known.score else None,
        "seeds": list(seeds),
        "clean_accuracy_mean": clean,
        "clean_accuracy_std": std(0.004 + 0.002 * (1 - fraction)),
        "robust_accuracy_pgd20_mean": robust,
        "robust_accuracy_pgd20_std": std(0.008 + 0.006 * (1 - fraction)),
        # Adversarial training on small coresets overfits: an earlier epoch was the best.
        "best_epoch_mean": 20.0 if beta is None else 20.0 * fraction,
        "clean_accuracy_best_mean": clean if beta is None else clean - 0.02 * (1 - fraction),
        "clean_accuracy_best_std": std(0.005),
        "robust_accuracy_pgd20_best_mean": robust if beta is None else robust + 0.08 * (1 - fraction),
        "robust_accuracy_pgd20_best_std": std(0.006),
        "worst_class_clean_accuracy_mean": clean - 0.07,
        "worst_class_robust_accuracy_pgd20_mean": max(robust - 0.14, 0.0),
        "eps": eps,
        "epochs": 20,
        "steps": round(1760 * fraction * scale),
        "num_samples": round(1409 * fraction),
        "scoring_seconds": 41.0 * scale if known.score else 0.0,
        "training_seconds": scale * fraction * (38.0 if beta is None else 290.0),
        "device": "cpu",
    }


def make_rows(arms=ARMS, fractions=(0.3, 0.5), betas=(None, 1.0, 6.0), all_eps=(4 / 255, 8 / 255), **options):
    """Rows as a sweep writes them: full data first, then every arm and fraction; a row per eps."""
    pairs = [("full", 1.0), *((arm, fraction) for arm in arms for fraction in fractions)]
    return [row_of(*pair, beta, eps, **options) for pair in pairs for beta in betas for eps in all_eps]


def make_curves(rows, epochs=20):
    """Curves that go with rows: training improves throughout, validation under attack until the best epoch."""
    found = []
    for row in {(row["method"], row["balance"], row["fraction"], row["beta"]): row for row in rows}.values():
        keys = ("method", "score", "balance", "fraction", "training", "beta", "seeds")
        entries = []
        for epoch in range(1, epochs + 1):
            done = 1 - math.exp(-epoch / (4 * row["fraction"]))
            clean = row["clean_accuracy_mean"] * done
            entry = {"epoch": epoch, "train_loss": 2.4 - 1.9 * done, "train_accuracy": min(1.0, clean + 0.02),
                     "val_accuracy": clean}  # fmt: skip
            if row["beta"] is not None:
                lost = 0.004 * (1 - row["fraction"]) * max(0.0, epoch - row["best_epoch_mean"])
                entry["val_robust_accuracy"] = row["robust_accuracy_pgd20_best_mean"] * done - lost
            entries.append(entry)
        found.append({key: row[key] for key in keys} | {"epochs": entries})
    return found


ROWS = make_rows(all_eps=(8 / 255,))


@functools.cache
def scored_digits(epochs=8):
    """Digits and their hardness under softmax regression trained by gradient descent."""
    digits = load_digits()
    pixels = (digits.images * 255 / 16).round().astype(np.uint8)[:, None]
    inputs, labels = pixels.reshape(len(pixels), -1) / 255, digits.target
    weights, history, norms, right = np.zeros((64, 10)), [], [], []
    for epoch in range(1, epochs + 1):
        for _ in range(25):
            weights -= 0.5 * inputs.T @ (softmax(inputs @ weights) - np.eye(10)[labels]) / len(inputs)
        error = softmax(inputs @ weights) - np.eye(10)[labels]
        norms.append(np.linalg.norm(error @ weights.T, axis=1))
        right.append((inputs @ weights).argmax(1) == labels)
        loss = -np.log(softmax(inputs @ weights)[np.arange(len(labels)), labels])
        history.append({"epoch": epoch, "train_loss": loss.mean(), "train_accuracy": right[-1].mean(),
                        "val_accuracy": right[-1][::7].mean(), "train_seconds": 1.0, "score_seconds": 0.5,
                        "mean_grad_norm": norms[-1].mean()})  # fmt: skip
    right = np.array(right)
    hardness = {
        "sample_id": np.arange(len(labels)),
        "label": labels.astype(np.int32),
        "aign": np.mean(norms, axis=0),
        "forgetting_events": (right[:-1] & ~right[1:]).sum(0).astype(np.int32),
        "first_learned_epoch": np.where(right.any(0), right.argmax(0) + 1, -1).astype(np.int32),
    }
    return pixels, hardness, [{key: float(value) for key, value in entry.items()} for entry in history]


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def make_findings(rows=None, **changes):
    """What a report shows, without any folder behind it."""
    pixels, hardness, epochs = scored_digits()
    order = np.argsort(hardness["aign"])
    pick = [Images(hardness["sample_id"][part], hardness["label"][part], hardness["aign"][part], pixels[part])
            for part in (order[:24], order[::-1][:24])]  # fmt: skip
    mixes = [Mix(arm, fraction, mix_of(arm, fraction)) for arm in ARMS for fraction in (0.3, 0.5)]
    fields = {
        "title": "EasyCore on digits",
        "note": "Artificial accuracies, real images.",
        "rows": make_rows() if rows is None else rows,
        "hardness": hardness,
        "epochs": epochs,
        "curves": make_curves(make_rows() if rows is None else rows),
        "mixes": mixes,
        "classes": [f"digit {label}" for label in range(10)],
        "easiest": pick[0],
        "hardest": pick[1],
        "lineage": {"parents": {"dataset": {"path": "/data/digits", "fingerprint": "a" * 64}}, "git_commit": "abc"},
    }
    return ReportData(**{**fields, **changes})


def mix_of(arm, fraction):
    _, hardness, _ = scored_digits()
    known = parse_arm(arm)
    ids = choose(known.method, sample_ids=hardness["sample_id"], labels=hardness["label"], fraction=fraction,
                 scores=hardness["aign"], score=known.score, balance=known.balance)  # fmt: skip
    return np.bincount(hardness["label"][ids], minlength=10).tolist()


def done(folder, kind, parents=None, **details):
    """Finish an artifact of this kind in a folder."""
    claim = Claim(str(folder), kind, "identity", "nonce", resumed=False)
    details = {"counts": {}, "config": {}, **details}
    return artifact.finish(claim, fingerprint=artifact.content_hash(kind), parents=parents or {}, wall_seconds=1.0,
                           **details)  # fmt: skip


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A sweep's folder, with the dataset, scoring run and coresets it refers to, as the stages write them."""
    return make_sweep(tmp_path_factory.mktemp("runs"), ROWS)


def make_sweep(root, rows):
    pixels, hardness, epochs = scored_digits()
    count = len(pixels)
    layout = shards.Layout("raw", pixels.shape[1:], None)
    # Rows lie in another order than ids, as in a real dataset.
    placed = np.random.default_rng(0).permutation(count)
    stored = pa.array([pixels[number].tobytes() for number in placed], pa.binary(64))
    columns = [pa.array(placed), pa.array(hardness["label"][placed]), stored]
    shards.write_rows(f"{root}/dataset/shards/train-00000.parquet", layout, pa.table(columns, names=shards.COLUMNS))
    index = {
        "split": ["train"] * count,
        "sample_id": range(count),
        "key": [f"{number}.png" for number in range(count)],
        "label": hardness["label"],
        "sha256": ["0" * 64] * count,
        "input_norm": np.ones(count),
        "shard": [0] * count,
        "row": np.argsort(placed),
    }
    write_index(pa.table(index, schema=INDEX_SCHEMA), f"{root}/dataset")
    dataset = done(
        root / "dataset", "dataset", classes=[f"digit {label}" for label in range(10)], storage="raw", image_size=None,
        image_shape=list(pixels.shape[1:]), counts={"train": count},
        shards={"train": [{"path": "shards/train-00000.parquet", "rows": count}]},
    )  # fmt: skip
    table = done(root / "scores/table", "score_table", epochs=epochs)
    (root / "scores/hardness").mkdir()
    pq.write_table(pa.table(hardness), root / "scores/hardness/hardness.parquet")
    done(root / "scores/hardness", "hardness_table", files=[{"path": "hardness.parquet", "rows": count}])
    scores = done(root / "scores", "scoring_run", {"dataset": dataset, "score_table": table})
    for arm, fraction in {(row["method"] + "/class" * (row["balance"] == "class"), row["fraction"]) for row in rows}:
        known = parse_arm(arm)
        done(root / "sweep/coresets" / f"{arm.replace('/', '-')}_f{fraction}", "coreset", method=known.method,
             score=known.score, balance=known.balance, fraction=fraction,
             class_histogram=mix_of(arm, fraction))  # fmt: skip
    lineage = {"parents": {}, "config": {"norm": "linf"}, "versions": artifact.versions(), "git_commit": "abc123"}
    paths.write_json(f"{root}/sweep/summary.json", {"rows": rows, "curves": make_curves(rows), "lineage": lineage})
    return done(root / "sweep", "sweep", {"dataset": dataset, "scores": scores},
                counts={"rows": len(rows), "trials": 3 * len(rows)}, device_seconds=5400.0)  # fmt: skip


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
    assert f"torch {artifact.versions()['torch']}" in page.text
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
    assert found.spread is None
    assert "±" not in print_table(rows).replace("±: standard deviation", "")


def test_a_finding_compares_with_random_choice_of_the_same_size():
    """The best coreset, here a small one, is set against random at its own fraction, objective and eps."""
    rows = make_rows(arms=("easycore", "random"))
    (best,) = [row for row in rows if row["method"] == "easycore" and at(row) == (6.0, 0.3, 8 / 255)]
    (random,) = [row for row in rows if row["method"] == "random" and at(row) == (6.0, 0.3, 8 / 255)]
    best["robust_accuracy_pgd20_mean"] = 0.9
    found = {entry.objective: entry for entry in find_main_results(rows)}["TRADES, β = 6"]

    assert found.best is best
    assert found.random is random
    assert found.gain == pytest.approx(100 * (0.9 - random["robust_accuracy_pgd20_mean"]))
    assert found.spread == pytest.approx(100 * best["robust_accuracy_pgd20_std"] * 2**0.5)


def at(row):
    return row["beta"], row["fraction"], row["eps"]


def test_a_finding_uses_the_largest_eps_that_tells_anything():
    """Where full data is below 10 % at every larger eps, a smaller one is shown."""
    rows = make_rows(betas=(None,), all_eps=(0.25 / 255, 1 / 255, 16 / 255))

    assert [entry.eps for entry in find_main_results(rows)] == [1 / 255]


def test_arms_look_the_same_in_every_report():
    """The usual arms keep their colours whatever else is drawn; no two arms share colour and marker."""
    many = ("easiest:el2n", "easycore", "random", "easycore/class", "hardest", "band", "random/class", "stratified")
    few, lots = styles(make_rows()), styles(make_rows(arms=many))

    assert {arm: lots[arm].colour for arm in few} == {arm: look.colour for arm, look in few.items()}
    assert len({(look.colour, look.marker) for look in lots.values()}) == len(lots) == 9


def test_pgd_adversarial_training_is_named_on_page_tables_and_plots():
    """Rows of pgd are "PGD-AT" in findings, tables and panels; they have no β and take no part in the β plot."""
    rows = [row | {"training": "pgd", "beta": None} for row in make_rows(betas=(6.0,))]
    looks = styles(rows)

    assert {panel.title.split(",")[0] for panel in sweep_plots.robust_by_fraction(rows, looks).panels} == {"PGD-AT"}
    assert sweep_plots.robust_by_beta(rows, looks).panels == []
    assert {found.objective for found in find_main_results(rows)} == {"PGD-AT"}
    assert "TRADES" not in glance(rows, looks)
    assert "with <span" in glance(rows, looks)


def test_robust_by_fraction_draws_the_rows():
    """Lines of a panel go through the rows' values, in per cent; full data is the line across."""
    from matplotlib.figure import Figure

    rows = make_rows(arms=("easycore", "random"), betas=(None,), all_eps=(4 / 255,))
    (panel,) = sweep_plots.robust_by_fraction(rows, styles(rows)).panels
    axes = Figure().add_subplot()
    panel.draw(axes)
    heights = [[round(float(height), 6) for height in line.get_ydata()] for line in axes.lines]

    assert panel.title == "Standard training, ε = 4/255"
    for arm in ("easycore", "random"):
        assert [round(100 * row["robust_accuracy_pgd20_mean"], 6) for row in rows if row["method"] == arm] in heights
    assert [round(100 * rows[0]["robust_accuracy_pgd20_mean"], 6)] * 2 in heights
    (_, _, (whiskers,)), *_ = axes.containers
    lengths = [top - bottom for (_, bottom), (_, top) in whiskers.get_segments()]
    assert lengths == pytest.approx([200 * r["robust_accuracy_pgd20_std"] for r in rows if r["method"] == "easycore"])


def test_training_curves_draw_every_epoch_and_mark_the_best():
    """Per objective and fraction, three panels with a line per arm; the highest validation accuracy is marked."""
    from matplotlib.figure import Figure

    rows = make_rows(arms=("easycore", "random"), fractions=(0.5,), betas=(None, 6.0), all_eps=(8 / 255,))
    curves = make_curves(rows)
    plot = sweep_plots.plot_training_curves(curves, styles(rows))
    alts = [panel.alt for panel in plot.panels]

    assert [alt.split(": ")[0] for alt in alts] == ["Standard training, 50 %"] * 3 + ["TRADES, β = 6, 50 %"] * 3
    assert alts[1].endswith(": training accuracy over the epochs")
    assert alts[-1].endswith(": robust validation accuracy over the epochs")
    axes = Figure().add_subplot()
    plot.panels[-1].draw(axes)
    (easycore,) = [curve for curve in curves if curve["method"] == "easycore" and curve["beta"] == 6.0]
    values = [100 * entry["val_robust_accuracy"] for entry in easycore["epochs"]]
    line = axes.lines[1]
    assert list(line.get_ydata()) == values
    assert line.get_markevery() == [values.index(max(values))]
    assert 0 < values.index(max(values)) < 19, "the curve does not overfit, so there is nothing to see"


def test_curves_without_validation_or_epochs_to_compare_are_left_out():
    """A sweep of an older release, or of single epochs, has no plot; one without a validation split has two panels."""
    rows = make_rows(arms=("easycore",), fractions=(0.5,), betas=(6.0,), all_eps=(8 / 255,))
    looks = styles(rows)
    plain = make_curves(rows)
    for curve in plain:
        curve["epochs"] = [{k: v for k, v in entry.items() if not k.startswith("val_")} for entry in curve["epochs"]]

    assert sweep_plots.plot_training_curves([], looks).panels == []
    assert sweep_plots.plot_training_curves(make_curves(rows, epochs=1), looks).panels == []
    assert len(sweep_plots.plot_training_curves(plain, looks).panels) == 2


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


def test_beta_needs_two_values_to_be_a_plot():
    """With one β there is no plot against it; with two there is a panel per fraction and eps."""
    looks = styles(make_rows())

    assert sweep_plots.robust_by_beta(make_rows(betas=(None, 6.0)), looks).panels == []
    assert len(sweep_plots.robust_by_beta(make_rows(), looks).panels) == 4


def test_class_mix_averages_seeds_and_is_relative_to_the_data():
    """Two draws of one arm are one line; twice the share of a class in the data is 2."""
    from matplotlib.figure import Figure

    mixes = [Mix("random", 0.5, [10, 0]), Mix("random", 0.5, [5, 5]), Mix("hardest", 0.5, [1, 9])]
    (panel,) = score_plots.plot_class_mix(mixes, np.array([30, 70]), ["cat", "dog"]).panels
    axes = Figure().add_subplot()
    panel.draw(axes)

    assert [text.get_text() for text in axes.texts] == ["2.50", "0.36", "0.33", "1.29"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["random, 50 %", "hardest, 50 %"]


@pytest.mark.parametrize("aign", [np.zeros(9), np.full(9, 0.3), np.geomspace(1e-20, 1, 9), np.r_[0, np.ones(8)]])
def test_any_scores_have_a_histogram(aign):
    """Equal, vanishing and widely spread scores are drawn, every sample in some bin."""
    from matplotlib.figure import Figure

    hardness = {"label": np.arange(9) % 3, "aign": aign, "forgetting_events": np.arange(9) % 2,
                "first_learned_epoch": np.arange(9) - 1}  # fmt: skip
    plot = score_plots.distribution(hardness, ["a", "b", "c"], [0.3, 0.5])
    axes = Figure().add_subplot()
    plot.panels[0].draw(axes)

    assert max(sum(bar.get_height() for bar in stack) for stack in axes.containers[-1:]) <= 9
    assert sum(bar.get_y() + bar.get_height() for bar in axes.containers[-1]) == 9
    assert to_svg(plot.panels[1]).startswith(b"<?xml")


@pytest.mark.parametrize(("shape", "size"), [((3, 32, 32), (32, 32)), ((1, 8, 8), (8, 8)), ((3, 400, 300), (120, 160))])
def test_pictures_keep_their_shape(shape, size):
    """Small images are kept pixel for pixel, large ones are scaled to 160 pixels on the longer side."""
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    with Image.open(io.BytesIO(base64.b64decode(to_data_uri(pixels).split(",")[1]))) as picture:
        assert picture.size == size
        if max(shape) < 160:
            np.testing.assert_array_equal(np.asarray(picture).reshape(*shape[1:], -1).transpose(2, 0, 1), pixels)


def test_the_printed_table_is_aligned_and_fits():
    """Every line is at most 110 columns, columns line up, each row is there once."""
    rows = make_rows(arms=("easycore", "random", "easiest:aign/class"), all_eps=(0.25 / 255, 8 / 255))
    head, rule, *lines, note, best = print_table(rows).splitlines()

    assert len(lines) == len(rows)
    assert max(map(len, [head, rule, *lines, note, best])) <= 110
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
    head, _, *lines, note, doubt = print_table(rows).splitlines()

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
    head, _, *lines, note = print_table(rows).splitlines()

    assert re.search(r"robust +PGD-20 +AutoAttack +worst", head)
    pgd = 100 * rows[1]["robust_accuracy_pgd20_mean"]
    assert any(re.search(rf"31\.1 ± 2\.0 +{pgd:.1f} +32\.2 +5\.0 ", line) for line in lines)
    assert max(map(len, [head, *lines])) <= 110
    assert "under both" in note
    assert f"PGD-20 {pgd:.1f}, AutoAttack 32.2" in Page(result_tables(rows, styles(rows))).text
    assert find_main_results(rows)[0].best["robust_accuracy_mean"] == 0.311
    few = make_findings(rows)
    assert "PGD-20 and AutoAttack" in Page(render_report(few, [])).text
