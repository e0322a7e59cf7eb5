"""How plots look, and their rendering to SVG and PNG.

A plot is a list of panels, each small enough to be read on a phone, one below the other; it is also rendered whole,
as a file for a README. An arm has one colour and one marker everywhere, from a palette that colour-blind readers can
distinguish (Okabe & Ito 2008), and the marker alone is enough.
"""

import io
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from easycore_ray.config.arms import DYNAMIC, Arm

Row = Mapping[str, Any]

ATTACK_TITLES = {"fgsm": "FGSM", "pgd20": "PGD-20", "autoattack": "AutoAttack"}
INK, MUTED, PALE, DEEP = "#222222", "#5f6b76", "#9ecae1", "#08306b"
PANEL_SIZE = (4.5, 3.2)

_COLOURS = {
    "full": INK,
    "easycore": "#0072B2",
    "easycore/class": "#56B4E9",
    "random": "#E69F00",
    "hardest": "#D55E00",
}
_OTHER_COLOURS = ("#009E73", "#CC79A7", "#8C6D1F", "#7F7F7F", "#4B3F9E")
# Marker for matplotlib, and the same as a character for the page.
_MARKERS = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"), ("v", "▼"), ("P", "✚"), ("X", "✖"), ("*", "★"))
_RC: Any = {
    "font.size": 9.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlepad": 10,
    "grid.color": "#e3e7eb",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "hatch.linewidth": 0.6,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.08,
    "text.parse_math": False,  # class names may have dollar signs
    "svg.hashsalt": "easycore",  # equal data give equal files
}


@dataclass(frozen=True)
class Style:
    """How an arm looks: colour, matplotlib's marker, and the marker as a character."""

    colour: str
    marker: str
    symbol: str


@dataclass(frozen=True)
class Panel:
    """One pair of axes: what it shows, the same in words, and how it is drawn. Size in inches."""

    title: str
    alt: str
    draw: Callable[[Axes], None]
    size: tuple[float, float] = PANEL_SIZE


@dataclass(frozen=True)
class Plot:
    """Panels with a common meaning. ``name``: of its file; ``arms``: those a legend has to name."""

    name: str
    panels: Sequence[Panel]
    arms: Sequence[str] = ()
    columns: int = 3


OBJECTIVE_TITLES = {
    "standard": "Standard training",
    "trades": "TRADES",
    "pgd": "PGD-AT",
    "mart": "MART",
    "nfgsm": "N-FGSM",
}
"""What a model was trained for, for reading."""


def arm_name(row: Row) -> str:
    """The arm of a result row as on the command line, e.g. ``easiest:el2n/class``."""
    return Arm(row["method"], row["score"], row["balance"]).name


def objective(row: Row) -> str:
    """What a row's models were trained for, e.g. ``TRADES, β = 6``."""
    name = OBJECTIVE_TITLES[row["training"]]
    return name if row["beta"] is None else f"{name}, β = {row['beta']:g}"


def value(row: Row, name: str) -> Any:
    """A number of a row. ``robust_accuracy`` is that under all attacks; older rows have PGD-20's alone."""
    return row[name] if name in row else row[name.replace("robust_accuracy", "robust_accuracy_pgd20")]


def attacks(rows: Sequence[Row]) -> list[str]:
    """Names of the attacks behind the headline of these rows, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row.get("attack", ["pgd20"])))


def attack_names(rows: Sequence[Row]) -> str:
    """The same for reading: ``PGD-20 and AutoAttack``, ``PGD-20 from 5 starts``."""
    restarts = max((row.get("pgd_restarts", 1) for row in rows), default=1)
    titles = ATTACK_TITLES | ({"pgd20": f"PGD-20 from {restarts} starts"} if restarts > 1 else {})
    return " and ".join(titles.get(name, name) for name in attacks(rows))


def best_differs(row: Row) -> bool:
    """Whether validation chose another epoch than the last, in some seed at least; False where none was chosen."""
    return row.get("best_epoch_mean") not in (None, row.get("epochs"))


def percent(fraction: float) -> str:
    """A share for reading, e.g. ``30 %``."""
    return f"{100 * fraction:g} %"


def grouped(entries: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    """Entries by key, in the order of first appearance."""
    found: dict[Any, list[Any]] = {}
    for entry in entries:
        found.setdefault(key(entry), []).append(entry)
    return found


def is_coreset(row: Row) -> bool:
    """Whether a row's models were trained on a coreset: neither on all data, nor on what they draw while they train."""
    return row["method"] != "full" and row["method"] not in DYNAMIC


def split_full(rows: Iterable[Any]) -> tuple[list[Any], list[Any]]:
    """Rows or curves of the arm that has all data for all its steps, and the others."""
    found = grouped(rows, lambda row: row["method"] == "full")
    return found.get(True, []), found.get(False, [])


def styles(rows: Iterable[Row]) -> dict[str, Style]:
    """A style for each arm, in order of appearance; the usual arms always have the same colour."""
    others = iter(_OTHER_COLOURS * 9)
    found: dict[str, Style] = {}
    for arm in dict.fromkeys(map(arm_name, rows)):
        marker, symbol = _MARKERS[len(found) % len(_MARKERS)]
        found[arm] = Style(_COLOURS.get(arm) or next(others), marker, symbol)
    return found


def to_svg(panel: Panel) -> bytes:
    """A panel as an SVG file; text is outlines, so that it looks the same everywhere."""
    with mpl.rc_context(_RC):
        figure = Figure(figsize=panel.size, layout="constrained")
        _draw(figure.add_subplot(), panel)
        return _saved(figure, format="svg", metadata={"Date": None, "Creator": None})


def to_png(plot: Plot, looks: Mapping[str, Style]) -> bytes:
    """A plot with all its panels, and a legend of its arms, as a PNG file."""
    columns = 2 if len(plot.panels) == 4 else min(len(plot.panels), plot.columns)
    lines = math.ceil(len(plot.panels) / columns)
    width, height = (max(panel.size[side] for panel in plot.panels) for side in (0, 1))
    legend = 0.4 if plot.arms else 0.0
    with mpl.rc_context(_RC):
        figure = Figure(figsize=(width * columns, height * lines + legend), layout="constrained")
        for number, panel in enumerate(plot.panels, start=1):
            _draw(figure.add_subplot(lines, columns, number), panel)
        if plot.arms:
            handles = [_handle(arm, looks[arm]) for arm in plot.arms]
            figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 3 * columns))
        return _saved(figure, format="png", dpi=150, metadata={"Software": None})


def _draw(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title)
    panel.draw(axes)


def _saved(figure: Figure, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Class names may be in a script the bundled font lacks: boxes in a plot are no reason to stop.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, **options)
    return buffer.getvalue()


def _handle(arm: str, look: Style) -> Line2D:
    """A legend's entry."""
    full = arm == "full"
    return Line2D([], [], color=look.colour, marker=look.marker, label=arm, linestyle="--" if full else "-")
