"""Plots of what was scored: how hard samples are, which classes coresets take, how the scoring run went."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullFormatter
from numpy.typing import NDArray

from easycore_ray.reporting.figures import DEEP, INK, PALE, Panel, Plot, grouped, percent

Columns = Mapping[str, NDArray[Any]]

_LEARNED_COLOURS = {"never forgotten": PALE, "forgotten at least once": "#4292c6", "never learned": DEEP}
_MOST_CLASSES_NAMED = 20


@dataclass(frozen=True)
class Mix:
    """Classes of a coreset: its arm, the fraction kept, and the number of samples by label."""

    arm: str
    fraction: float
    class_histogram: Sequence[int]


def distribution(hardness: Columns, classes: Sequence[str], fractions: Sequence[float]) -> Plot:
    """AIGN over all samples, by how they were learned, with the fractions' cuts; and AIGN by class.

    Args:
        hardness: ``label, aign, forgetting_events, first_learned_epoch``, an entry per sample.
        classes: names in label order.
        fractions: shares kept, to be marked.
    """
    title = "All training samples"
    over_all = Panel(title, "Histogram of AIGN over the training samples", partial(_histogram, hardness, fractions))
    return Plot("aign", [over_all, _class_panel(hardness["aign"], hardness["label"], classes)])


def plot_class_mix(mixes: Sequence[Mix], dataset: NDArray[np.integer], classes: Sequence[str]) -> Plot:
    """Share of each class in each coreset as a multiple of its share in the data: a heat map.

    Coresets that differ by their seed only are averaged. ``dataset`` (classes,) is the number of samples by label.
    """
    groups = grouped(mixes, lambda mix: (mix.arm, mix.fraction))
    if not groups:
        return Plot("class_mix", [])
    ratio = np.array([_mean_share(members) for members in groups.values()]) / np.maximum(dataset / dataset.sum(), 1e-12)
    names = [f"{arm}, {percent(fraction)}" for arm, fraction in groups]
    title = "Share of each class, as a multiple of its share in the training data"
    draw = partial(heat_map, ratio, names, classes)
    return Plot("class_mix", [Panel(title, "Heat map of class shares", draw, (9.4, 1.3 + 0.34 * len(names)))])


def scoring_run(epochs: Sequence[Mapping[str, float]]) -> Plot:
    """Loss, accuracy and mean input gradient norm of the scoring run, epoch by epoch, as far as recorded."""
    accuracies = {"train_accuracy": "training", "adv_accuracy": "attacked", "val_accuracy": "validation"}
    wanted = (
        ("Loss", "cross-entropy", {"train_loss": "training", "mean_adv_loss": "attacked"}),
        ("Accuracy", "accuracy, %", accuracies),
        ("Mean input gradient norm", "loss per unit of pixel change", {"mean_grad_norm": "mean"}),
    )
    panels = []
    for title, label, series in wanted:
        scale = 100.0 if "%" in label else 1.0
        curves = {
            name: [(entry["epoch"], scale * entry[key]) for entry in epochs if entry.get(key) is not None]
            for key, name in series.items()
        }
        if any(curves.values()):
            alt = f"{title} of the scoring run over its epochs"
            panels.append(Panel(title, alt, partial(_curves, curves, label), (3.2, 2.7)))
    return Plot("scoring_run", panels)


def _histogram(hardness: Columns, fractions: Sequence[float], axes: Axes) -> None:
    aign = np.asarray(hardness["aign"], np.float64)
    least = aign[aign > 0].min(initial=aign.max() or 1.0)
    logarithmic = aign.max() > 30 * least
    # Samples whose gradient vanished share the first bin.
    values = np.maximum(aign, least) if logarithmic else aign
    low, high = values.min(), max(values.max(), values.min() + 1e-12)
    bins = np.geomspace(low, high, 41) if logarithmic else np.linspace(low, high, 41)
    axes.hist([values[mask] for mask in _learned(hardness)], bins=list(bins), stacked=True,
              color=list(_LEARNED_COLOURS.values()), label=list(_LEARNED_COLOURS))  # fmt: skip
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(top=1.45 * axes.get_ylim()[1])
    for number, fraction in enumerate(fractions):
        cut, top = np.quantile(values, fraction), 0.70 + 0.07 * (number % 3)  # neighbours stand too close for one line
        axes.axvline(cut, color=INK, linewidth=1, linestyle=(0, (4, 2)), ymax=top)
        axes.annotate(percent(fraction), (cut, top + 0.01), xycoords=("data", "axes fraction"), ha="center", fontsize=8)
    axes.legend(loc="upper left", fontsize=8, ncols=3, columnspacing=0.9, handlelength=1, handletextpad=0.4)
    axes.set_xlabel("AIGN, higher is harder")
    axes.set_ylabel("samples")
    axes.grid(visible=False, axis="x")


def _learned(hardness: Columns) -> list[NDArray[np.bool_]]:
    """Masks of the groups named in ``_LEARNED_COLOURS``, in that order."""
    learned = np.asarray(hardness["first_learned_epoch"]) >= 0
    forgotten = np.asarray(hardness["forgetting_events"]) > 0
    return [learned & ~forgotten, learned & forgotten, ~learned]


def _class_panel(aign: NDArray[Any], labels: NDArray[Any], classes: Sequence[str]) -> Panel:
    """Median and middle 80 % of each class's AIGN, easiest class on top; the two ends if there are many."""
    present = [label for label in range(len(classes)) if (labels == label).any()]
    quantiles = {label: np.quantile(aign[labels == label], (0.1, 0.5, 0.9)) for label in present}
    ordered = sorted(present, key=lambda label: quantiles[label][1])
    half = _MOST_CLASSES_NAMED // 2
    shown = ordered if len(ordered) <= _MOST_CLASSES_NAMED else ordered[:half] + ordered[-half:]
    title = "By class" if shown == ordered else f"By class: {half} easiest, {half} hardest"
    rows = [(str(classes[label]), quantiles[label]) for label in shown]
    return Panel(title, "AIGN by class", partial(_class_bars, rows), (4.5, max(3.2, 0.9 + 0.2 * len(shown))))


def _class_bars(rows: Sequence[tuple[str, NDArray[np.float64]]], axes: Axes) -> None:
    places = np.arange(len(rows))
    low, median, high = np.array([quantiles for _, quantiles in rows]).T
    axes.hlines(places, low, high, color=PALE, linewidth=6)
    axes.plot(median, places, "o", color=DEEP, markersize=5)
    axes.set_yticks(places, [name for name, _ in rows])
    axes.invert_yaxis()
    axes.set_xlabel("AIGN: median and middle 80 % of the class")
    axes.grid(visible=False, axis="y")


def heat_map(ratio: NDArray[np.float64], names: Sequence[str], classes: Sequence[str], axes: Axes) -> None:
    """Shares (parts, classes) of classes in parts of the data, as multiples, above 0, of those in all of it."""
    shades = np.log2(np.clip(ratio, 0.25, 4.0))
    axes.imshow(shades, cmap="RdBu", vmin=-2, vmax=2, aspect="auto")
    axes.set_yticks(range(len(names)), names)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if len(classes) > _MOST_CLASSES_NAMED:
        axes.set_xticks([])
        axes.set_xlabel(f"{len(classes)} classes in label order; blue: more than in the data, red: less")
        return
    axes.set_xticks(range(len(classes)), list(classes), rotation=30, ha="right", rotation_mode="anchor")
    for (row, column), value in np.ndenumerate(ratio):
        colour = "white" if abs(shades[row, column]) > 1.2 else INK
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8.5, color=colour)


def _curves(curves: Mapping[str, list[tuple[float, float]]], label: str, axes: Axes) -> None:
    for (name, points), line in zip(curves.items(), ("-", "--"), strict=False):
        if points:
            axes.plot(*zip(*points, strict=True), color=INK, linestyle=line, marker=".", label=name)
    if sum(map(bool, curves.values())) > 1:
        axes.legend()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)


def _mean_share(mixes: Sequence[Mix]) -> NDArray[np.float64]:
    """Share of each class, averaged over coresets."""
    counts = np.array([mix.class_histogram for mix in mixes], np.float64)
    return (counts / counts.sum(axis=1, keepdims=True)).mean(axis=0)
