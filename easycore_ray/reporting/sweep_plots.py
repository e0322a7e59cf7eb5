"""Plots of a sweep's result rows: robust accuracy against fraction and β, the trade-off, the cost; training curves.

Takes rows and curves as in ``summary.json`` (``results.result_rows``); accuracies are shares in [0, 1] there and
per cent here. A spread is the standard deviation over seeds; with one seed there is none.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from easycore_ray.core.eps import format_eps
from easycore_ray.reporting.figures import (
    MUTED,
    Panel,
    Plot,
    Row,
    Style,
    arm_name,
    attack_names,
    grouped,
    objective,
    percent,
    split_full,
    value,
)

_ROBUST = "robust_accuracy"
# Metrics of an epoch, and how they are called; the last is what robust overfitting shows in.
_CURVES = {
    "train_loss": "training loss",
    "train_accuracy": "training accuracy, %",
    "val_accuracy": "validation accuracy, %",
    "val_robust_accuracy": "robust validation accuracy, %",
}


def robust_by_fraction(rows: Sequence[Row], looks: Mapping[str, Style]) -> Plot:
    """Robust accuracy against the fraction kept: a panel per objective and eps, full data as a line across."""
    groups = grouped(rows, lambda row: f"{objective(row)}, ε = {format_eps(row['eps'])}")
    panels = [
        Panel(title, f"Robust accuracy against the fraction kept; {title}", partial(_by_fraction, members, looks))
        for title, members in groups.items()
    ]
    return Plot("robust_by_fraction", panels, list(looks))


def robust_by_beta(rows: Sequence[Row], looks: Mapping[str, Style]) -> Plot:
    """Robust accuracy against TRADES' β: a panel per fraction and eps; no panels with fewer than two β."""
    trades = [row for row in rows if row["training"] == "trades"]
    betas = sorted({row["beta"] for row in trades})
    panels = []
    for (fraction, eps), members in grouped(trades, lambda row: (row["fraction"], row["eps"])).items():
        if members[0]["method"] == "full" or len(betas) < 2:
            continue
        full = [row for row in trades if row["method"] == "full" and row["eps"] == eps]
        title = f"{percent(fraction)} kept, ε = {format_eps(eps)}"
        draw = partial(_by_beta, [*full, *members], looks, betas)
        panels.append(Panel(title, f"Robust accuracy against β; {title}", draw))
    return Plot("robust_by_beta", panels, list(looks))


def trade_off(rows: Sequence[Row], looks: Mapping[str, Style]) -> Plot:
    """Robust against clean accuracy, a panel per eps. Filled: adversarial, hollow: standard; larger: more data."""
    groups = grouped(rows, lambda row: f"ε = {format_eps(row['eps'])}")
    panels = [
        Panel(title, f"Robust against clean accuracy; {title}", partial(_trade_off, members, looks))
        for title, members in groups.items()
    ]
    return Plot("trade_off", panels, list(looks))


def cost(rows: Sequence[Row], looks: Mapping[str, Style]) -> Plot:
    """Device time of one training run and of the scoring run its coreset needs: a panel per objective."""
    first = [row for row in rows if row["eps"] == rows[0]["eps"]]
    panels = []
    for title, members in grouped(first, objective).items():
        ordered = sorted(members, key=lambda row: -row["fraction"])
        size = (4.5, 1.1 + 0.29 * len(ordered))
        panels.append(Panel(title, f"Device time by arm; {title}", partial(_cost, ordered, looks), size))
    return Plot("cost", panels, list(looks))


def plot_training_curves(curves: Sequence[Row], looks: Mapping[str, Style]) -> Plot:
    """Loss and accuracies of the training runs, epoch by epoch: a line of panels per objective and fraction.

    A curve is the mean over seeds; all data are in every line. The marker stands where an accuracy is highest.
    """
    panels = []
    for title, of_objective in grouped(curves, objective).items():
        full, coresets = split_full(of_objective)
        by_fraction = grouped(coresets, lambda curve: curve["fraction"]) or {1.0: []}
        for fraction, members in by_fraction.items():
            panels += _curve_panels(f"{title}, {percent(fraction)}", [*full, *members], looks)
    return Plot("training_curves", panels, list(dict.fromkeys(map(arm_name, curves))))


def _curve_panels(title: str, curves: Sequence[Row], looks: Mapping[str, Style]) -> list[Panel]:
    """Three panels of the metrics that are there, so that lines of panels align; none for a single epoch."""
    if max(len(curve["epochs"]) for curve in curves) < 2:
        return []
    there = [name for name in _CURVES if any(name in entry for curve in curves for entry in curve["epochs"])]
    # The clean training accuracy says least where the attacked validation accuracy is known.
    shown = [name for name in there if name != "train_accuracy" or "val_robust_accuracy" not in there]
    return [
        Panel(title, f"{title}: {_CURVES[name].removesuffix(', %')} over the epochs",
              partial(_curve, curves, name, looks), (3.2, 2.7))
        for name in shown
    ]  # fmt: skip


def _curve(curves: Sequence[Row], name: str, looks: Mapping[str, Style], axes: Axes) -> None:
    scale = 1.0 if name == "train_loss" else 100.0
    for curve in curves:
        points = [(entry["epoch"], scale * entry[name]) for entry in curve["epochs"] if name in entry]
        if not points:
            continue
        epochs, values = zip(*points, strict=True)
        look = looks[arm_name(curve)]
        marked = len(values) - 1 if name == "train_loss" else int(np.argmax(values))
        axes.plot(epochs, values, color=look.colour, linestyle="--" if curve["method"] == "full" else "-",
                  linewidth=1.4, marker=look.marker, markevery=[marked])  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel(_CURVES[name])


def _by_fraction(rows: Sequence[Row], looks: Mapping[str, Style], axes: Axes) -> None:
    full, coresets = split_full(rows)
    kept = sorted({100 * row["fraction"] for row in coresets})
    for row in full:
        mean, spread = 100 * value(row, f"{_ROBUST}_mean"), _spread(row, _ROBUST)
        colour = looks[arm_name(row)].colour
        axes.axhline(mean, color=colour, linestyle="--", linewidth=1.4)
        axes.axhspan(mean - spread, mean + spread, color=colour, alpha=0.1, linewidth=0)
    _lines(axes, coresets, looks, kept, lambda row: 100 * row["fraction"])
    axes.set_xticks(kept)
    axes.set_xlabel("training samples kept, %")
    axes.set_ylabel(_robust_label(rows))


def _by_beta(rows: Sequence[Row], looks: Mapping[str, Style], betas: Sequence[float], axes: Axes) -> None:
    # One step per value: the usual ones (1, 3, 6) are so uneven that a true scale would hide the first.
    _lines(axes, rows, looks, range(len(betas)), lambda row: betas.index(row["beta"]))
    axes.set_xticks(range(len(betas)), [f"{beta:g}" for beta in betas])
    axes.set_xlabel("β, weight of the robustness term")
    axes.set_ylabel(_robust_label(rows))


def _trade_off(rows: Sequence[Row], looks: Mapping[str, Style], axes: Axes) -> None:
    for row in rows:
        look = looks[arm_name(row)]
        axes.errorbar(
            100 * row["clean_accuracy_mean"],
            100 * value(row, f"{_ROBUST}_mean"),
            xerr=_spread(row, "clean_accuracy"),
            yerr=_spread(row, _ROBUST),
            fmt=look.marker,
            color=look.colour,
            markerfacecolor=look.colour if row["training"] != "standard" else "white",
            markersize=4 + 5 * row["fraction"],
            elinewidth=0.8,
        )
    axes.margins(0.08)
    axes.set_xlabel("clean accuracy, %")
    axes.set_ylabel(_robust_label(rows))


def _cost(rows: Sequence[Row], looks: Mapping[str, Style], axes: Axes) -> None:
    unit, seconds = _time_unit(max(row["training_seconds"] + row["scoring_seconds"] for row in rows))
    places = np.arange(len(rows))
    training = np.array([row["training_seconds"] for row in rows]) / seconds
    scoring = np.array([row["scoring_seconds"] for row in rows]) / seconds
    colours = [looks[arm_name(row)].colour for row in rows]
    axes.barh(places, training, color=colours, height=0.66)
    axes.barh(places, scoring, left=training, color="white", edgecolor=colours, hatch="////", height=0.66)
    for place, end in zip(places, training + scoring, strict=True):
        axes.annotate(f" {end:.3g}", (end, place), va="center", fontsize=8.5, color=MUTED)
    axes.set_yticks(places, [f"{arm_name(row)}, {percent(row['fraction'])}" for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(right=1.14 * float((training + scoring).max()))
    axes.set_xlabel(f"device {unit} per run")
    axes.grid(visible=False, axis="y")


def _lines(
    axes: Axes,
    rows: Sequence[Row],
    looks: Mapping[str, Style],
    positions: Sequence[float],
    x_of: Callable[[Row], float],
) -> None:
    """Robust accuracy with its spread, a line per arm, a little apart so that spreads stay distinguishable."""
    apart = 0.014 * (max(positions, default=0) - min(positions, default=0) or 10.0)
    groups = grouped(rows, arm_name)
    for number, (arm, members) in enumerate(groups.items()):
        members.sort(key=x_of)
        axes.errorbar(
            [x_of(row) + (number - (len(groups) - 1) / 2) * apart for row in members],
            [100 * value(row, f"{_ROBUST}_mean") for row in members],
            yerr=[_spread(row, _ROBUST) for row in members],
            color=looks[arm].colour,
            marker=looks[arm].marker,
            linestyle="--" if arm == "full" else "-",
            elinewidth=1,
            capsize=2.5,
        )
    axes.margins(x=0.08, y=0.1)


def _robust_label(rows: Sequence[Row]) -> str:
    return f"robust accuracy ({attack_names(rows)}), %"


def _spread(row: Row, name: str) -> float:
    """Standard deviation over seeds in per cent; 0 where there is one seed only."""
    return 100 * (value(row, f"{name}_std") or 0.0)


def _time_unit(seconds: float) -> tuple[str, float]:
    """Name of a unit in which a time is a handy number, and its seconds."""
    if seconds < 300:
        return "seconds", 1.0
    return ("minutes", 60.0) if seconds < 3 * 3600 else ("hours", 3600.0)
