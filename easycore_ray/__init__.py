"""Choose training data for robust models, at cluster scale.

The verbs are the pipeline, in order; each takes the fields of its configuration as keywords (see
``easycore_ray.config``) and returns the finished artifact as a handle. ``VERB.plan(…)`` says what it would do, and
``open`` opens any finished artifact. They are loaded on first use, so that ``import easycore_ray`` and
``easycore_ray.core`` start no Ray.
"""

import importlib
import os
from typing import Any

__version__ = "0.2.0"

_VERBS = {
    "prepare": "data.ingest.pipeline",
    "score": "scoring.score",
    "reduce": "scoring.reduce",
    "select": "selection.select",
    "train": "training.train",
    "evaluate": "evaluation.evaluate",
    "sweep": "experiments.sweep",
    "report": "reporting.report",
    "study": "experiments.study",
    "pipeline": "experiments.pipeline",
    "analyze": "analysis.analyze",
    "audit": "inspection.audit",
    "export": "inspection.export",
    "inspect": "inspection.inspect",
    "clean": "inspection.clean",
    "status": "inspection.status",
}
_HANDLES = {
    "Artifact": "storage.artifact",
    "Dataset": "data.dataset",
    "ScoringRun": "scoring.score",
    "HardnessTable": "scoring.hardness_table",
    "Coreset": "data.coreset",
    "Checkpoint": "engine.checkpoint",
    "Evaluation": "evaluation.evaluate",
    "Sweep": "experiments.sweep",
    "Report": "reporting.report",
    "Study": "experiments.study",
    "Pipeline": "experiments.pipeline",
    "Analysis": "analysis.analyze",
    "Audit": "inspection.audit",
}
_MODULES = _VERBS | _HANDLES | {"WorkPlan": "config.work_plan"}
__all__ = ["__version__", "open", *_MODULES]


def open(path: str | os.PathLike[str]) -> Any:  # noqa: A001  (easycore_ray.open, as in PIL or xarray)
    """Open a finished artifact as its handle: a ``Dataset``, ``Coreset``, ``Checkpoint`` and so on.

    Raises:
        EasyCoreError: the folder is missing, unfinished, or of a newer format.
    """
    from easycore_ray.storage.artifact import open_artifact

    found = open_artifact(os.fspath(path))
    name = "".join(word.capitalize() for word in found.kind.split("_"))
    handle = __getattr__(name) if name in _HANDLES else type(found)
    return handle(found.path, found.manifest)


def __getattr__(name: str) -> Any:
    """Load a verb or a handle from its module."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """The public names, verbs included."""
    return sorted(__all__)
