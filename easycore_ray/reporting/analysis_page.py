"""An analysis as plots and as a page: verdicts in sentences, a picture and the numbers behind each.

Takes the content of ``summary.json`` (see ``analyze.summarise_claims``) and gives files by name. Nothing else is
read, so a page can be made and tested without a run behind it.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

from easycore_ray.core.eps import format_eps
from easycore_ray.core.trend_test import DECILES, DOES_NOT_HOLD, HOLDS, INCONCLUSIVE, LEAST_ROWS, NEGLIGIBLE
from easycore_ray.reporting.figures import DEEP, INK, MUTED, PALE, Panel, Plot, to_png
from easycore_ray.reporting.html import figure, fill, lineage_tables
from easycore_ray.reporting.score_plots import heat_map
from easycore_ray.reporting.tables import bullet_list, html_table

AnalysisSummary = Mapping[str, Any]

_BADGES = {HOLDS: ("✔", "#1a7f37"), DOES_NOT_HOLD: ("✘", "#b3261e"), INCONCLUSIVE: ("?", MUTED)}
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_NEVER = "#D55E00"
_KINDS = {"seed": "another seed", "architecture": "another network", "recipe": "another recipe"}
_CAPTIONS = {
    "attack_success": "Of the samples the model classifies right, the share that an attack within ε makes it classify "
    "wrong: the minimum-norm attack (FMN) or PGD-20. Shaded: 95 % Wilson intervals. Decile 1 is the easiest.",
    "distance": "Distance to the nearest misclassified point found, of the samples classified right: median, and the "
    "middle half shaded. An upper bound of the true distance.",
    "learning": "Left: share classified right without an attack, with 95 % Wilson intervals. Right: in which epoch of "
    "the scoring run samples were first classified right, over all samples.",
    "classes": "1.00: the class is as frequent there as in all the data; blue: more frequent, red: less.",
    "agreement": "Share of the easiest half of one scoring run that is in that of the other; two random halves share "
    "50 %. Right: the same by what the two runs differ in; a bar is the mean.",
}
_HEADINGS = {
    "attack_success": "Success of attacks",
    "distance": "Distance to the decision boundary",
    "learning": "Clean accuracy, and when samples are learned",
    "classes": "Mix of classes",
    "agreement": "Agreement of scoring runs",
}


def render_analysis(
    summary: AnalysisSummary, classes: Sequence[str], lineage: Mapping[str, Any], page: str
) -> dict[str, bytes]:
    """The page under its name, and ``plots/NAME.png``. Equal content gives equal files."""
    plots = make_analysis_plots(summary, classes)
    files = {page: render_analysis_page(summary, plots, lineage).encode()}
    return files | {f"plots/{plot.name}.png": to_png(plot, {}) for plot in plots}


def make_analysis_plots(summary: AnalysisSummary, classes: Sequence[str]) -> list[Plot]:
    """The plots that the summary allows, in the order of the page."""
    score = "AIGN" if summary["score"] == "aign" else summary["score"]
    label = f"decile by {score}, 10 is hardest"
    groups = summary["groups"]
    learning = [Panel("Clean accuracy", "Clean accuracy by decile", partial(_clean, groups, label))] if groups else []
    if "first_learned" in summary["score_deciles"][0]:
        learning.append(
            Panel(
                "First epoch classified right",
                "Share of samples by the epoch they were learned in, by decile",
                partial(_learned, summary["score_deciles"], label),
            )
        )
    found = [
        Plot(
            "attack_success",
            [Panel(_title(group, groups), f"Attack success by decile; {group['name']}",
                   partial(_success, group, summary["eps"], label)) for group in groups],
            columns=2,
        ),
        Plot(
            "distance",
            [Panel(_title(group, groups), f"Distance to the boundary by decile; {group['name']}",
                   partial(_distance, group, summary["norm"], label)) for group in groups],
            columns=2,
        ),
        Plot("learning", learning, columns=2),
        _class_plot(summary, classes),
        _agreement_plot(summary),
    ]  # fmt: skip
    return [plot for plot in found if plot.panels]


def _title(group: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> str:
    """Short enough for a panel: the model where there are several, and which samples."""
    which = {"all": "", "seen": "trained on", "unseen": "not trained on", "unknown": ""}[group["which"]]
    model = group["model"] if len({each["model"] for each in groups}) > 1 or not which else ""
    return f"{model}\n{which}" if model and which else model or f"samples {which}"


# --- panels -------------------------------------------------------------------------------------


def _success(group: Mapping[str, Any], eps: Sequence[float], label: str, axes: Axes) -> None:
    shades = mpl.colormaps["viridis_r"](np.linspace(0.12, 0.95, len(eps)))
    for number, radius in enumerate(eps):
        rows = [(entry["decile"], each) for entry in group["deciles"] for each in entry["attack_success"]
                if each["eps"] == radius]  # fmt: skip
        if rows:
            _banded(axes, rows, shades[number], f"ε = {format_eps(radius)}")
    _per_cent(axes, "attack success, %", room=1.34)
    axes.legend(loc="upper left", fontsize=7.5, ncols=3, columnspacing=0.9, handlelength=1.2, handletextpad=0.4)
    axes.set_xlabel(label)


def _banded(axes: Axes, rows: Sequence[tuple[int, Mapping[str, Any]]], colour: Any, name: str) -> None:
    """Shares over deciles as a line with its interval shaded."""
    at = [decile for decile, _ in rows]
    low, high = (100 * np.array([each["interval"][end] for _, each in rows]) for end in (0, 1))
    axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(at, [100 * each["share"] for _, each in rows], color=colour, marker="o", markersize=3.5, label=name)


def _distance(group: Mapping[str, Any], norm: str, label: str, axes: Axes) -> None:
    scale = 255.0 if norm == "linf" else 1.0
    rows = [(entry["decile"], entry["distance_quartiles"]) for entry in group["deciles"]
            if entry["distance_quartiles"] and None not in entry["distance_quartiles"]]  # fmt: skip
    if rows:
        at = [decile for decile, _ in rows]
        low, middle, high = scale * np.array([quartiles for _, quartiles in rows]).T
        axes.fill_between(at, low, high, color=PALE, alpha=0.6, linewidth=0)
        axes.plot(at, middle, color=DEEP, marker="o", markersize=4)
        if low.min() > 0 and high.max() > 12 * low.min():
            axes.set_yscale("log")
            # As people write them: 2, 5, 10, not 2 × 10⁰.
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(bottom=0)
    _set_decile_axis(axes)
    axes.set_xlabel(label)
    axes.set_ylabel("distance (L∞), in 1/255" if norm == "linf" else "distance (L2)")


def _clean(groups: Sequence[Mapping[str, Any]], label: str, axes: Axes) -> None:
    for number, group in enumerate(groups):
        rows = [(entry["decile"], entry["clean_accuracy"]) for entry in group["deciles"]]
        middle = 100 * np.array([each["share"] for _, each in rows])
        ends = 100 * np.array([each["interval"] for _, each in rows]).T
        axes.errorbar(
            [decile + 0.12 * (number - (len(groups) - 1) / 2) for decile, _ in rows],
            middle,
            yerr=np.maximum([middle - ends[0], ends[1] - middle], 0),
            color=_COLOURS[number % len(_COLOURS)],
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=4,
            elinewidth=1,
            capsize=2,
            label=group["name"].replace(", samples it was ", ",\n"),
        )
    low = min(each["clean_accuracy"]["interval"][0] for group in groups for each in group["deciles"])
    axes.set_ylim(100 * low - 4 - 22 * (len(groups) > 1) * min(len(groups), 3) / 2, 102)
    _set_decile_axis(axes)
    axes.set_ylabel("clean accuracy, %")
    axes.set_xlabel(label)
    if len(groups) > 1:
        axes.legend(loc="lower left", fontsize=7.5)


def _learned(deciles: Sequence[Mapping[str, Any]], label: str, axes: Axes) -> None:
    """Stacked bars: epochs in ranges that double, then never."""
    last = max((int(epoch) for entry in deciles for epoch in entry["first_learned"] if epoch != "never"), default=1)
    ranges = [(1, 1)]
    while ranges[-1][1] < last:
        ranges.append((ranges[-1][1] + 1, min(2 * ranges[-1][1], last)))
    shades = mpl.colormaps["Blues"](np.linspace(0.25, 0.95, len(ranges)))
    at, bottom = [entry["decile"] for entry in deciles], np.zeros(len(deciles))
    names = [f"{low}" if low == high else f"{low}–{high}" for low, high in ranges]
    for name, span, shade in zip([*names, "never"], [*ranges, None], [*shades, _NEVER], strict=True):
        counts = [_learned_in(entry["first_learned"], span) for entry in deciles]
        share = 100 * np.array(counts) / np.array([entry["samples"] for entry in deciles])
        axes.bar(at, share, bottom=bottom, color=shade, width=0.86, label=name)
        bottom = bottom + share
    _per_cent(axes, "samples, %", room=1.24)
    close = {"columnspacing": 0.8, "handlelength": 1, "handletextpad": 0.4}
    axes.legend(loc="upper left", fontsize=7.5, ncols=len(names) + 1, title="epoch", title_fontsize=7.5, **close)
    axes.set_xlabel(label)
    axes.grid(visible=False, axis="x")


def _learned_in(histogram: Mapping[str, int], span: tuple[int, int] | None) -> int:
    """Samples learned in a range of epochs; None: never."""
    if span is None:
        return histogram.get("never", 0)
    return sum(count for epoch, count in histogram.items() if epoch != "never" and span[0] <= int(epoch) <= span[1])


def _class_plot(summary: AnalysisSummary, classes: Sequence[str]) -> Plot:
    counts = np.array([entry["class_histogram"] for entry in summary["score_deciles"]], np.float64)
    whole = counts.sum(axis=0)
    half = np.zeros(len(classes))
    for entry in summary["class_mix"]:
        half[entry["label"]] = entry["in_easiest_half"]
    parts = np.vstack([half, counts])
    share = np.maximum(whole / whole.sum(), 1e-12)
    ratio = np.where(whole > 0, parts / np.maximum(parts.sum(axis=1, keepdims=True), 1) / share, 1.0)
    names = ["easiest half", *(f"decile {entry['decile']}" for entry in summary["score_deciles"])]
    title = "Share of each class, as a multiple of its share in all scored samples"
    size = (9.4, 1.3 + 0.34 * len(names))
    return Plot("classes", [Panel(title, "Heat map of class shares", partial(heat_map, ratio, names, classes), size)])


def _agreement_plot(summary: AnalysisSummary) -> Plot:
    pairs, runs = summary["pairs"], summary["scoring_runs"]
    if not pairs:
        return Plot("agreement", [])
    matrix = np.full((len(runs), len(runs)), np.nan)
    for pair in pairs:
        matrix[pair["first"], pair["second"]] = matrix[pair["second"], pair["first"]] = 100 * pair["overlap"]
    names = [run["name"] for run in runs]
    side = max(3.2, 1.4 + 0.42 * len(names))
    alt = "Overlap of the easiest halves, run by run"
    return Plot(
        "agreement",
        [
            Panel("Easiest half in common, %", alt, partial(_matrix, matrix, names), (side + 1.3, side)),
            Panel("By what differs", "Overlap by what two runs differ in", partial(_by_kind, pairs), (4.5, side)),
        ],
        columns=2,
    )


def _matrix(matrix: NDArray[np.float64], names: Sequence[str], axes: Axes) -> None:
    axes.imshow(matrix, cmap="Blues", vmin=50, vmax=100)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_yticks(range(len(names)), list(names))
    axes.set_xticks(range(len(names)), list(names), rotation=30, ha="right", rotation_mode="anchor")
    for (row, column), value in np.ndenumerate(matrix):
        if not math.isnan(value):
            colour = "white" if value > 80 else INK
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=8.5, color=colour)


def _by_kind(pairs: Sequence[Mapping[str, Any]], axes: Axes) -> None:
    kinds = [kind for kind in _KINDS if any(pair["differ"] == kind for pair in pairs)]
    for place, kind in enumerate(kinds):
        look = list(_KINDS).index(kind)
        values = [100 * pair["overlap"] for pair in pairs if pair["differ"] == kind]
        spread = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else [0.0]
        axes.plot(place + np.asarray(spread), values, _MARKERS[look], color=_COLOURS[look], linestyle="")
        axes.hlines(np.mean(values), place - 0.26, place + 0.26, color=_COLOURS[look], linewidth=2)
    axes.axhline(50, color=MUTED, linestyle="--", linewidth=1)
    axes.annotate("chance", (len(kinds) - 0.5, 50), ha="right", va="bottom", fontsize=8, color=MUTED)
    axes.set_xlim(-0.5, len(kinds) - 0.5)
    axes.set_ylim(min(48, axes.get_ylim()[0]), 100)
    axes.set_xticks(range(len(kinds)), [_KINDS[kind] for kind in kinds])
    axes.set_ylabel("easiest half in common, %")
    axes.grid(visible=False, axis="x")


def _set_decile_axis(axes: Axes) -> None:
    """All ten, also where a group has samples of some only."""
    axes.set_xticks(range(1, DECILES + 1))
    axes.set_xlim(0.4, DECILES + 0.6)


def _per_cent(axes: Axes, label: str, *, room: float) -> None:
    """0 to 100 with room above for a legend."""
    axes.set_ylim(-2, 100 * room)
    axes.set_yticks(range(0, 101, 20))
    _set_decile_axis(axes)
    axes.set_ylabel(label)


# --- page ---------------------------------------------------------------------------------------


def render_analysis_page(summary: AnalysisSummary, plots: Sequence[Plot], lineage: Mapping[str, Any]) -> str:
    """The page, self-contained."""
    tables = {"attack_success": _group_tables(summary), "agreement": _pair_table(summary)}
    sections = [
        ("verdicts", "What holds here", _verdicts(summary)),
        *((plot.name, _HEADINGS[plot.name], figure(plot, {}, _CAPTIONS[plot.name]) + tables.get(plot.name, ""))
          for plot in plots),
        ("rules", "How this was decided", _rules(summary)),
        ("lineage", "Where this comes from", lineage_tables(lineage, "Configuration of the analysis")),
    ]  # fmt: skip
    facts = [
        ("scored samples", f"{summary['num_scored_samples']:,}"),
        ("scoring runs", f"{len(summary['scoring_runs'])}"),
        ("models attacked", f"{len(summary['models'])}"),
        ("samples attacked", f"{summary['num_samples']:,}"),
        ("norm", "L∞" if summary["norm"] == "linf" else "L2"),
    ]
    name = "AIGN" if summary["score"] == "aign" else summary["score"]
    return fill(f"Easy and hard samples by {name}: what holds here", "", facts, sections)


def _verdicts(summary: AnalysisSummary) -> str:
    items = []
    for claim in summary["claims"]:
        symbol, colour = _BADGES[claim["outcome"]]
        badge = f'<b style="color:{colour}">{symbol} {claim["outcome"]} here</b>'
        parts = claim["parts"] if len(claim["parts"]) > 1 else []
        text = escape(claim["sentence"]) if not parts else ""
        lines = [f"{_BADGES[part['outcome']][0]} {part['group']}: {part['sentence']}" for part in parts]
        listed = bullet_list(lines) if lines else ""
        items.append(f"<h3>{escape(claim['claim'])}</h3><p>{badge}{': ' if text else '.'}{text}</p>{listed}")
    warnings = "".join(f"<p><b>Note.</b> {escape(text)}</p>" for text in summary["warnings"])
    return "".join(items) + warnings


def _group_tables(summary: AnalysisSummary) -> str:
    scale, unit = (255, "1/255") if summary["norm"] == "linf" else (1, "L2")
    heads = ["Decile", "Samples", "Clean, %", f"Distance, {unit}", *(f"ε = {format_eps(e)}" for e in summary["eps"])]
    found = []
    for group in summary["groups"]:
        rows = []
        for entry in group["deciles"]:
            quartiles = entry["distance_quartiles"]
            middle = f"{scale * quartiles[1]:.3g}" if quartiles and quartiles[1] is not None else "–"
            success = {each["eps"]: f"{100 * each['share']:.0f}" for each in entry["attack_success"]}
            cells = [f"{entry['decile']}", f"{entry['num_samples']:,}", f"{100 * entry['clean_accuracy']['share']:.1f}",
                     middle, *(success.get(eps, "–") for eps in summary["eps"])]  # fmt: skip
            rows.append(cells)
        found.append(f"<h3>{escape(group['name'])}</h3>{html_table(heads, rows)}")
    note = "<figcaption>Median distance, and attack success in per cent, of the samples classified right.</figcaption>"
    return "".join(found) + note


def _pair_table(summary: AnalysisSummary) -> str:
    runs = summary["scoring_runs"]
    rows = [
        [
            f"{escape(runs[pair['first']]['name'])} – {escape(runs[pair['second']]['name'])}",
            _KINDS[pair["differ"]],
            "–" if pair["rank_correlation"] is None else f"{pair['rank_correlation']:.3f}",
            f"{100 * pair['overlap']:.1f}",
        ]
        for pair in summary["pairs"]
    ]
    return html_table(["Scoring runs", "Differ by", "Rank correlation", "Easiest half in common, %"], rows)


def _rules(summary: AnalysisSummary) -> str:
    models = bullet_list(
        f"{model['name']}: which samples it was trained on is not known"
        if model["drawn_seen"] is None
        else f"{model['name']}: {model['drawn_seen']:,} of the {summary['num_samples']:,} attacked samples were in its "
        "training data"
        for model in summary["models"]
    )
    return f"""
<p>The scored training samples are divided into deciles by their score; equally many of each are attacked. Attack
success and distance are of the samples a model classifies right: what is wrong already needs no attack,
and would make hard samples look vulnerable. Samples a model was trained on are reported apart from others.</p>
{models}
<p>A trend <b>holds</b> if the rank correlation (Spearman, over samples) is at least {NEGLIGIBLE:g}, its whole 95 %
bootstrap interval is on the claimed side, and no decile contradicts an easier one beyond noise. It <b>does not
hold</b> if the interval leaves no room for more than {NEGLIGIBLE:g} that way, or deciles contradict. Otherwise, or with
fewer than {LEAST_ROWS} samples, it is <b>inconclusive</b>. A claim holds if it does for every model and group with a
conclusive outcome. Attack success is judged at the ε where it is nearest to one half.</p>
<p>The score is <b>model-agnostic</b> if runs of two networks share as much of the easiest half as runs that differ by
the seed alone, less the spread of the latter. The <b>mix of classes</b> is kept if every class's share in the easiest
half is, beyond chance, within 10 % of that in the data.</p>"""
