"""Attack a checkpoint: ``python -m jobs.evaluate --help``."""

from easycore_ray.config import EvaluateConfig
from easycore_ray.evaluation import evaluate
from jobs.command import run

if __name__ == "__main__":
    run(EvaluateConfig, evaluate)
