"""The report as one HTML page that needs nothing else: style, script, plots and images are inside.

Takes the findings of a sweep and its plots; gives the page's text. The page loads nothing from the network and
needs no library in the browser, so that the file can be mailed, archived and opened in ten years.
"""

import importlib.resources
import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from easycore_ray.core.eps import format_eps
from easycore_ray.reporting.figures import Plot, Row, Style, attack_names, percent, styles, to_svg
from easycore_ray.reporting.image_grid import Images, data_uri, short, to_data_uri
from easycore_ray.reporting.score_plots import Columns, Mix
from easycore_ray.reporting.tables import arm_tag, glance, result_tables, term


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """All that a report shows, as plain data."""

    title: str
    note: str
    rows: Sequence[Row]
    """Result rows, as in a sweep's ``summary.json``."""
    hardness: Columns
    """``sample_id, label, aign, forgetting_events, first_learned_epoch``: one entry per sample."""
    epochs: Sequence[Mapping[str, float]]
    """Metrics of the scoring run by epoch."""
    curves: Sequence[Row] = ()
    """Metrics of the training runs by epoch, as in ``summary.json``."""
    diverged: Sequence[Row] = ()
    """Runs without results, as in ``summary.json``."""
    stopped: Sequence[Row] = ()
    """Runs that were stopped early, as in ``summary.json``."""
    mixes: Sequence[Mix]
    """Class histograms of the coresets."""
    classes: Sequence[str]
    """Class names in label order."""
    easiest: Images
    hardest: Images
    lineage: Mapping[str, Any]
    """What the rows came from: ``parents``, ``versions``, ``git_commit``, ``config`` and whatever else is known."""


_CAPTIONS = {
    "robust_by_fraction": "Mean over seeds; whiskers and the grey band are ± one standard deviation. Dashed: a model "
    "trained on all data. Points are moved apart sideways a little so that whiskers stay distinguishable.",
    "robust_by_beta": "A larger β trades clean accuracy for robustness. Dashed: all data.",
    "trade_off": "Up and to the right is better. Filled markers: adversarial training, hollow: standard; larger "
    "markers: more of the data kept.",
    "cost": "Solid: one training run; hatched: the scoring run its coreset needs. Time on all devices together. One "
    "scoring run serves every arm that uses scores and every model trained on its coresets: shared among k models, "
    "the hatched part counts 1/k.",
    "training_curves": "Means over seeds; dashed: all data. The marker stands at the highest point, for the loss at "
    "the end. Where the training loss still falls and the accuracy under attack on the validation split falls too, "
    "the model overfits (robust overfitting, Rice et al. 2020), and the best epoch is worth more than the last.",
    "aign": "A sample is learned in the first scored epoch that classifies it correctly, and forgotten when a later "
    "one does not. Dashed lines: where the easiest 30 %, 50 %, … of all samples end.",
    "class_mix": "1.00: the class is as frequent in the coreset as in the data. Arms ending in /class keep the mix by "
    "construction.",
    "scoring_run": "The training that the scores were taken in.",
}
_HEADINGS = {
    "robust_by_fraction": "Robustness and the amount of data",
    "robust_by_beta": "Robustness and β",
    "trade_off": "Clean against robust accuracy",
    "training_curves": "The training runs",
    "cost": "Cost",
    "aign": "How hard the samples are",
    "class_mix": "Which classes are kept",
    "scoring_run": "The scoring run",
}


def render_report(findings: ReportData, plots: Sequence[Plot]) -> str:
    """The page. Equal findings give an equal page."""
    looks = styles(findings.rows)
    sections = [
        ("glance", "At a glance", glance(findings.rows, looks)),
        ("results", "Results", result_tables(findings.rows, looks, findings.diverged, findings.stopped)),
        *((plot.name, _HEADINGS[plot.name], figure(plot, looks, _CAPTIONS[plot.name])) for plot in plots),
        ("images", "The easiest and the hardest images", _images(findings)),
        ("lineage", "Where this comes from", lineage_tables(findings.lineage, "Configuration of the sweep")),
    ]
    return fill(findings.title, findings.note, _facts(findings), sections)


def fill(title: str, note: str, facts: Sequence[tuple[str, str]], sections: Sequence[tuple[str, str, str]]) -> str:
    """The page's frame around its content.

    Args:
        title: heading, plain text.
        note: a sentence below it, plain text; may be empty.
        facts: name and value of each small box.
        sections: id, heading and HTML of each.
    """
    template = string.Template(
        importlib.resources.files("easycore_ray.reporting").joinpath("page.html").read_text(encoding="utf-8")
    )
    return template.substitute(
        title=escape(title),
        note=f'<p class="note">{escape(note)}</p>' if note else "",
        facts="".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts),
        contents="".join(f'<a href="#{key}">{heading}</a>' for key, heading, _ in sections),
        sections="".join(
            f'<section id="{key}"><h2>{heading}</h2>{content}</section>' for key, heading, content in sections
        ),
        footer="Made by easycore_ray. Everything is in this file; it loads nothing.",
    )


def _facts(findings: ReportData) -> list[tuple[str, str]]:
    """What was measured, in a line of small boxes."""
    rows = findings.rows
    seeds = max(len(row["seeds"]) for row in rows)
    kept = sorted({row["fraction"] for row in rows if row["method"] != "full"})
    return [
        ("training samples", f"{len(findings.hardness['label']):,}"),
        ("classes", f"{len(findings.classes)}"),
        ("kept", ", ".join(map(percent, kept)) or "all"),
        ("seeds per result", f"{seeds}" if seeds > 1 else "1 (no spread)"),
        ("attack", attack_names(rows)),
        ("ε of the attack", ", ".join(format_eps(eps) for eps in sorted({row["eps"] for row in rows}))),
        ("trained on", ", ".join(sorted({row["device"] for row in rows}))),
    ]


def figure(plot: Plot, looks: Mapping[str, Style], text: str) -> str:
    """A plot: its panels side by side as far as the screen is wide, legend above, caption below."""
    images = "".join(
        f'<img src="{data_uri(to_svg(panel), "image/svg+xml")}" alt="{escape(panel.alt)}">' for panel in plot.panels
    )
    widest = max(panel.size[0] for panel in plot.panels)
    layout = "wide" if widest > 6 else "two" if widest > 4 else ""
    keys = "".join(f"<li>{arm_tag(arm, looks[arm])}</li>" for arm in plot.arms)
    legend = f'<ul class="legend">{keys}</ul>' if keys else ""
    caption = f"<figcaption>{text}</figcaption>"
    return f'{legend}<figure><div class="panels {layout}">{images}</div>{caption}</figure>'


def _images(findings: ReportData) -> str:
    intro = (
        f"The training samples with the lowest and the highest {term('AIGN')}. Mislabelled and ambiguous images "
        "gather at the hard end.</p>"
    )
    grids = "".join(
        f'<h3>{title}</h3><div class="images">{picture_grid(images, findings.classes, "AIGN")}</div>'
        for title, images in (("Easiest", findings.easiest), ("Hardest", findings.hardest))
    )
    return f"<p>{intro}{grids}"


def picture_grid(images: Images, classes: Sequence[str], score: str) -> str:
    """The images with class, score and id below each; ``score``: its name."""
    small = ' class="small"' if max(images.pixels.shape[2:]) < 64 else ""
    cells = []
    for number, label, value, pixels in zip(
        images.sample_ids, images.labels, images.scores, images.pixels, strict=True
    ):
        name = escape(str(classes[int(label)]))
        cells.append(
            f'<figure><img{small} loading="lazy" src="{to_data_uri(pixels)}" alt="{name}, sample {number}">'
            f"<b>{name}</b><span>{escape(score)} {short(value)}</span><span>id {number}</span></figure>"
        )
    return "".join(cells)


def lineage_tables(lineage: Mapping[str, Any], summary: str) -> str:
    """Parents with fingerprints, then every other entry, and the configuration to unfold."""
    parents = "".join(
        f"<tr><td>{escape(role)}</td><td><code>{escape(str(parent.get('fingerprint', ''))[:16])}</code></td>"
        f"<td><code>{escape(str(parent.get('path', '')))}</code></td></tr>"
        for role, parent in lineage.get("parents", {}).items()
    )
    table = (
        '<table class="lineage"><thead><tr><th>Made from</th><th>Fingerprint</th><th>Folder</th></tr></thead>'
        f"<tbody>{parents}</tbody></table>"
    )
    rest = {key: value for key, value in lineage.items() if key not in ("parents", "config") and value}
    entries = "".join(
        f"<tr><td>{escape(key.replace('_', ' '))}</td><td>{_value(value)}</td></tr>" for key, value in rest.items()
    )
    config = escape(json.dumps(lineage.get("config", {}), indent=2, default=str))
    return (
        f'{table}<h3>Conditions</h3><table class="lineage"><tbody>{entries}</tbody></table>'
        f"<details><summary>{summary}</summary><pre>{config}</pre></details>"
    )


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return escape(", ".join(f"{key} {entry}" for key, entry in value.items()))
    return f"<code>{escape(str(value))}</code>"
