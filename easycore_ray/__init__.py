"""Choose training data for robust models, at cluster scale.

The verbs are the pipeline, in order; each takes the fields of its configuration as keywords (see
``easycore_ray.config``) and returns the finished artifact. They are loaded on first use, so that
``import easycore_ray`` and ``easycore_ray.core`` start no Ray.
"""

import importlib
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
    "inspect": "inspection.inspect",
    "clean": "inspection.clean",
}
__all__ = ["__version__", *_VERBS]


def __getattr__(name: str) -> Any:
    """Load a verb from its module."""
    if name not in _VERBS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_VERBS[name]}"), name)


def __dir__() -> list[str]:
    """The public names, verbs included."""
    return sorted(__all__)
