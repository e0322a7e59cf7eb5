"""An audit as a page: the likely label errors, equal images side by side, and what a global cut leaves of each class.

Takes the content of ``summary.json`` (see ``inspection.audit``) and pictures; nothing else is read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from easycore_ray.reporting.figures import DEEP, MUTED, Panel, Plot, percent
from easycore_ray.reporting.html import figure, fill, lineage_tables, picture_grid
from easycore_ray.reporting.image_grid import Images
from easycore_ray.reporting.tables import bullet_list, html_table

_MOST_BARS = 30
_MOST_ROWS = 200
_STARVED = "#D55E00"


@dataclass(frozen=True)
class AuditPictures:
    """Images of findings, by kind; of those that are equal a group each."""

    label_errors: Images | None
    label_conflicts: Sequence[Images]
    duplicates: Sequence[Images]


def render_audit(
    summary: Mapping[str, Any], pictures: AuditPictures, classes: Sequence[str], lineage: Mapping[str, Any]
) -> str:
    """The page, self-contained. Equal content gives an equal page.

    Args:
        summary: content of ``summary.json``.
        pictures: to show.
        classes: names in label order.
        lineage: what the audit was made from, see ``lineage_tables``.
    """
    sections = [
        ("found", "What was found", bullet_list(summary["sentences"])),
        ("label-errors", "Likely label errors", _label_errors(summary, pictures.label_errors, classes)),
        ("label-conflicts", "Equal images with different labels",
         _groups(pictures.label_conflicts, summary["label_conflicts"]["groups"], classes, summary["score"])),
        ("duplicates", "Equal images with one label",
         _groups(pictures.duplicates, summary["duplicates"]["groups"], classes, summary["score"])),
        ("classes", "What a global cut leaves of each class", _classes(summary)),
        ("lineage", "Where this comes from", lineage_tables(lineage, "Configuration of the audit")),
    ]  # fmt: skip
    starved = len(summary["classes"]["starved"])
    facts = [
        ("samples", f"{summary['samples']:,}"),
        ("classes", f"{len(classes)}"),
        ("likely label errors listed", f"{summary['label_errors']['samples']:,}"),
        ("in label conflicts", f"{summary['label_conflicts']['samples']:,}"),
        ("copies", f"{summary['duplicates']['samples']:,}"),
        ("starved classes", f"{starved}"),
        ("separability of classes", f"{summary['classes']['separability']:.2f}"),
    ]
    return fill("What the scores say of the data", "", facts, sections)


def _label_errors(summary: Mapping[str, Any], images: Images | None, classes: Sequence[str]) -> str:
    if images is None:
        return "<p>None are listed: the share asked for rounds to no sample.</p>"
    found = summary["label_errors"]
    text = (
        f"The {len(images.sample_ids)} most suspect of {found['samples']:,} listed, hardest by "
        f"{escape(summary['score'])} first, under the label they have. {percent(found['share'])} of the samples are "
        "listed whether or not so many are wrong: some are rare or unclear, and rightly labelled."
    )
    return f'<p>{text}</p><div class="images">{picture_grid(images, classes, summary["score"])}</div>'


def _groups(groups: Sequence[Images], total: int, classes: Sequence[str], score: str) -> str:
    """Each group in a row of its own; the first is the one that an exclusion keeps, if any."""
    if not groups:
        return "<p>None.</p>"
    shown = f"<p>{len(groups):,} of {total:,} groups, the images of each side by side.</p>"
    rows = "".join(f'<div class="images">{picture_grid(images, classes, score)}</div><hr>' for images in groups)
    return shown + rows.removesuffix("<hr>")


def _classes(summary: Mapping[str, Any]) -> str:
    found = summary["classes"]
    rows = found["rows"]
    caption = (
        f"Of the easiest {percent(found['fraction'])} by {escape(found['score'])}: samples kept of a class, as a "
        "multiple of its quota, what a cut of the same size that is balanced by class keeps. Dashed: the quota; "
        f"dotted: {found['threshold']:g} of it, below which a class counts as starved."
    )
    if len(rows) > _MOST_BARS:
        caption += f" The {_MOST_BARS} classes that keep least of {len(rows)}."
    heads = ("Class", "Samples", "Quota", "Kept", "Of its quota")
    cells = [
        [escape(row["name"]), f"{row['samples']:,}", f"{row['quota']:,}", f"{row['kept']:,}", _ratio_text(row["ratio"])]
        for row in rows[:_MOST_ROWS]
    ]
    separability = (
        f"<p>Separability of the classes: η² = {found['separability']:.3f}, the share of the variance of the samples' "
        "ranks that lies between classes. 0: all classes are equally hard, and a global cut keeps their mix; near 1: "
        "one class follows the other. Where it is high, <code>coreset --balance class</code> keeps a share of each."
        "</p>"
    )
    return separability + figure(audit_class_plot(summary), {}, caption) + html_table(heads, cells)


def _ratio_text(ratio: float | None) -> str:
    return "–" if ratio is None else f"{100 * ratio:.0f} %"


def audit_class_plot(summary: Mapping[str, Any]) -> Plot:
    """A bar for each class, those that keep least on top."""
    found = summary["classes"]
    rows = [(row["name"], row["ratio"]) for row in found["rows"] if row["ratio"] is not None][:_MOST_BARS]
    draw = partial(_bars, rows, found["threshold"])
    size = (6.4, 1.2 + 0.24 * max(len(rows), 3))
    return Plot("classes", [Panel("", "Samples kept of each class, as a multiple of its quota", draw, size)])


def _bars(rows: Sequence[tuple[str, float]], threshold: float, axes: Axes) -> None:
    ratios = [ratio for _, ratio in rows]
    colours = [_STARVED if ratio < threshold else DEEP for ratio in ratios]
    axes.barh(np.arange(len(rows)), ratios, color=colours, height=0.7)
    axes.axvline(1, color=MUTED, linestyle="--", linewidth=1)
    axes.axvline(threshold, color=MUTED, linestyle=":", linewidth=1)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, max([1.1, *(1.05 * ratio for ratio in ratios)]))
    axes.set_xlabel("kept samples as a multiple of the quota")
    axes.grid(visible=False, axis="y")
