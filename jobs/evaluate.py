"""Attack a checkpoint: ``python -m jobs.evaluate --help``."""

import sys
import warnings

from easycore_ray.cli import run
from easycore_ray.config.stages import EvaluateConfig
from easycore_ray.evaluation.evaluate import Evaluation, evaluate
from easycore_ray.evaluation.sanity_checks import SuspiciousEvaluation, verdict


def main(config: EvaluateConfig) -> Evaluation:
    """Evaluate; exit code 1 if the figures are suspicious."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SuspiciousEvaluation)  # said below, as the last word
        evaluation = evaluate(config)
    signs = evaluation.summary["suspicious"]
    if signs:
        print("error:", verdict(signs, evaluation.path), file=sys.stderr)
        raise SystemExit(1)
    return evaluation


if __name__ == "__main__":
    run(EvaluateConfig, main)
