"""An evaluation as MLflow shows it."""

from typing import Any

from easycore_ray.config.base import to_dict
from easycore_ray.config.evaluation import EvaluateConfig
from easycore_ray.core.eps import format_eps
from easycore_ray.evaluation.attacked_model import WEIGHTS_FILE
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import open_artifact
from easycore_ray.tracking.runs import TrackedRun, data_of, describe_job

SUSPICIOUS = "easycore.suspicious"
"""Tag of a run whose evaluation doubts itself: what speaks against it. Runs that are in order have none."""


def describe_evaluation(config: EvaluateConfig, path: str) -> TrackedRun:
    """The MLflow run of the finished evaluation in a folder."""
    manifest = open_artifact(path, "evaluation").manifest
    summary = manifest["summary"]
    role = next(role for role in ("checkpoint", WEIGHTS_FILE) if role in manifest["parents"])
    return describe_job(
        path,
        "evaluation",
        "evaluate",
        to_dict(config),
        points={0: flat_metrics(summary) | manifest.get("machine_cost", {})},
        tags={role: manifest["parents"][role]["path"], **tags_of(summary)},
        files={"summary.json": paths.join(path, "summary.json")},
        data=data_of(manifest["parents"], "evaluation"),
    )


def flat_metrics(summary: dict[str, Any]) -> dict[str, float]:
    """An evaluation's summary as metrics in [0, 1]: accuracies, ends of their 95 % intervals, those of the worst class.

    ``clean_ece`` is the expected calibration error, ``corruption_accuracy`` the mean over corruptions, each of which
    has its own. ``robust_accuracy_<attack>_eps_<eps>``, and without an eps that of the last.
    """
    low, high = summary["clean_interval"]
    found: dict[str, float] = {
        "clean_accuracy": summary["clean_accuracy"],
        "clean_accuracy_low": low,
        "clean_accuracy_high": high,
        "clean_accuracy_worst_class": summary["worst_class_clean_accuracy"],
        **{name: summary[name] for name in ("clean_ece", "corruption_accuracy") if name in summary},
    }
    for entry in summary.get("corruptions", ()):
        found[f"corruption_accuracy_{entry['corruption']}"] = entry["accuracy"]
    for row in summary["robust"]:
        values = {
            "": row["accuracy"],
            "_low": row["interval"][0],
            "_high": row["interval"][1],
            "_worst_class": row["worst_class_accuracy"],
        }
        eps = format_eps(row["eps"]).replace("/", "_")
        for end, value in values.items():
            found[f"robust_accuracy_{row['attack']}_eps_{eps}{end}"] = value
            found[f"robust_accuracy_{row['attack']}{end}"] = value
    return found


def tags_of(summary: dict[str, Any]) -> dict[str, str]:
    """Tags by which runs are filtered."""
    return {SUSPICIOUS: "; ".join(map(str, summary["suspicious"]))} if summary["suspicious"] else {}
