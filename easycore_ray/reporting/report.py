"""A sweep as tables, plots and pictures: one HTML page, and the plots as files for a README.

Takes a finished sweep and the scoring run and dataset it was made from; gives a folder with ``report.html``,
``plots/*.png`` and a manifest. ``write_report`` takes plain data, so that a page can be made, and tested, without any
run behind it.
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from easycore_ray.config.arms import Arm
from easycore_ray.config.base import to_dict, verb
from easycore_ray.config.inspection import ReportConfig
from easycore_ray.data.dataset import Dataset, open_dataset
from easycore_ray.data.samples import read_split
from easycore_ray.reporting import score_plots, sweep_plots
from easycore_ray.reporting.figures import Plot, styles, to_png
from easycore_ray.reporting.html import ReportData, render_report
from easycore_ray.reporting.image_grid import Images, image_grid
from easycore_ray.reporting.plans import plan_report
from easycore_ray.reporting.score_plots import Mix
from easycore_ray.reporting.tables import print_table
from easycore_ray.runtime.claims import claim_artifact
from easycore_ray.runtime.console import say
from easycore_ray.scoring.hardness_table import open_hardness, read_hardness
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Artifact, finish, open_artifact
from easycore_ray.storage.hashes import content_hash

__all__ = ["gather", "make_report_plots", "print_summary", "print_table", "report", "write_report"]

REPORT_PAGE = "report.html"

_NUM_IMAGES = 24
_HARDNESS_COLUMNS = ["sample_id", "label", "aign", "forgetting_events", "first_learned_epoch"]


class Report(Artifact):
    """A finished report."""

    @property
    def page(self) -> str:
        """Path of the self-contained HTML page."""
        return paths.join(self.path, REPORT_PAGE)


@verb(ReportConfig, gives=Report, plan=plan_report)
def report(config: ReportConfig) -> Artifact:
    """Draw a finished sweep (or reuse the page that was drawn).

    Returns:
        The report.

    Raises:
        EasyCoreError: the sweep, or what it was made from, is missing or unfinished.
    """
    started = time.monotonic()
    sweep = open_artifact(config.sweep, "sweep")
    out = paths.absolute(config.out)
    made = claim_artifact("report", config, {"sweep": sweep})
    if isinstance(made, Artifact):
        say(f"report: {out} is finished, reused")
        return made
    files = write_report(gather(config, sweep), made.path)
    artifact = finish(
        made,
        fingerprint=content_hash(*(content_hash(name, content) for name, content in files.items())),
        config=to_dict(config),
        parents={"sweep": sweep},
        counts={"plots": len(files) - 1},
        wall_seconds=time.monotonic() - started,
        files=list(files),
    )
    say(f"report: {paths.join(made.path, REPORT_PAGE)}")
    return artifact


def print_summary(folder: str) -> str:
    """The table of what a sweep, study or pipeline found, for a terminal; see ``print_table``."""
    summary = paths.read_json(paths.join(folder, "summary.json"))
    # Older releases wrote no such lists.
    return print_table(summary["rows"], summary.get("diverged", ()), summary.get("stopped", ()))


def write_report(findings: ReportData, out: str) -> dict[str, bytes]:
    """Write ``report.html`` and ``plots/*.png`` into a folder.

    Returns:
        Content by name, as written. Equal findings give equal files.
    """
    plots = make_report_plots(findings)
    looks = styles(findings.rows)
    grids = [
        image_grid("easiest", findings.easiest, findings.classes),
        image_grid("hardest", findings.hardest, findings.classes),
    ]
    files = {REPORT_PAGE: render_report(findings, plots).encode()}
    files |= {f"plots/{plot.name}.png": to_png(plot, looks) for plot in [*plots, *grids] if plot.panels}
    for name, content in files.items():
        paths.write_bytes(paths.join(out, name), content)
    return files


def make_report_plots(findings: ReportData) -> list[Plot]:
    """The plots that the findings allow, in the order of the page."""
    rows, classes, labels = findings.rows, findings.classes, findings.hardness["label"]
    looks = styles(rows)
    fractions = sorted({row["fraction"] for row in rows if row["method"] != "full"})
    order = {arm: number for number, arm in enumerate(looks)}
    mixes = sorted(findings.mixes, key=lambda mix: (order.get(mix.arm, len(order)), mix.fraction))
    found = [
        sweep_plots.robust_by_fraction(rows, looks),
        sweep_plots.robust_by_beta(rows, looks),
        sweep_plots.trade_off(rows, looks),
        sweep_plots.plot_training_curves(findings.curves, looks),
        sweep_plots.cost(rows, looks),
        score_plots.distribution(findings.hardness, classes, fractions),
        score_plots.plot_class_mix(mixes, np.bincount(labels, minlength=len(classes)), classes),
        score_plots.scoring_run(findings.epochs),
    ]
    return [plot for plot in found if plot.panels]


def gather(config: ReportConfig, sweep: Artifact) -> ReportData:
    """All that a report shows, read from the sweep and from what it was made from."""
    summary = paths.read_json(paths.join(sweep.path, "summary.json"))
    scores = sweep.manifest["parents"]["scores"]["path"]
    table = read_hardness(open_hardness(scores), _HARDNESS_COLUMNS)
    hardness = {name: table[name].to_numpy() for name in _HARDNESS_COLUMNS}
    dataset = open_dataset(sweep.manifest["parents"]["dataset"]["path"])
    # Ties by id, as in selection.
    order = np.lexsort((hardness["sample_id"], hardness["aign"]))
    return ReportData(
        title=config.title,
        note=config.note,
        rows=summary["rows"],
        curves=summary.get("curves", []),  # sweeps of older releases have none
        diverged=summary.get("diverged", []),
        stopped=summary.get("stopped", []),
        hardness=hardness,
        epochs=open_artifact(paths.join(scores, "table"), "score_table").manifest["epochs"],
        mixes=_mixes(sweep),
        classes=dataset.classes,
        easiest=_read_images(dataset, hardness, order[:_NUM_IMAGES]),
        hardest=_read_images(dataset, hardness, order[::-1][:_NUM_IMAGES]),
        lineage=_conditions(summary["lineage"], sweep),
    )


def _mixes(sweep: Artifact) -> list[Mix]:
    """Class histograms of the sweep's coresets, full data left out."""
    folder = paths.join(sweep.path, "coresets")
    found = []
    for name in paths.list_files(folder):
        # Of the coresets themselves; inside one may lie the dataset of its images.
        if name.endswith("/manifest.json") and name.removeprefix(folder).count("/") == 2:
            coreset = open_artifact(name.removesuffix("/manifest.json"), "coreset").manifest
            if coreset["method"] != "full":
                arm = Arm(coreset["method"], coreset["score"], coreset["balance"]).name
                found.append(Mix(arm, coreset["fraction"], coreset["class_histogram"]))
    return found


def _read_images(dataset: Dataset, hardness: Mapping[str, NDArray[Any]], places: NDArray[np.int64]) -> Images:
    """The samples at these places of the hardness table, in that order."""
    wanted = hardness["sample_id"][places]
    rows = read_split(dataset, "train", wanted)
    # The reader sorts by id; the page by hardness.
    order = np.searchsorted(rows.sample_ids.numpy(), wanted)
    return Images(wanted, rows.labels.numpy()[order], hardness["aign"][places], rows.images.numpy()[order])


def _conditions(lineage: Mapping[str, Any], sweep: Artifact) -> dict[str, Any]:
    """The lineage in the summary, and what the sweep's manifest adds to it."""
    manifest = sweep.manifest
    return {
        **lineage,
        "parents": {"sweep": sweep.as_parent(), **manifest["parents"]},
        "created": manifest["created"],
        "trials": manifest["counts"].get("trials"),
        "device_hours": round(manifest["device_seconds"] / 3600, 2),
        "repeat_with": f"easycore sweep --config {sweep.path}/manifest.json --out NEW_FOLDER",
    }
