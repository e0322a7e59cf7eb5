"""Attack a checkpoint: ``python -m jobs.evaluate --help``."""

import sys
import warnings

from easycore_ray.config import EvaluateConfig
from easycore_ray.evaluation import evaluate
from easycore_ray.manifest import Artifact
from easycore_ray.suspicion import SuspiciousEvaluation, verdict
from jobs.command import run


def main(config: EvaluateConfig) -> Artifact | None:
    """Evaluate; exit code 1 if the figures are suspicious."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SuspiciousEvaluation)  # said below, as the last word
        evaluation = evaluate(config)
    signs = evaluation.manifest["summary"]["suspicious"] if evaluation is not None else []
    if evaluation is not None and signs:
        print("error:", verdict(signs, evaluation.path), file=sys.stderr)
        raise SystemExit(1)
    return evaluation


if __name__ == "__main__":
    run(EvaluateConfig, main)
