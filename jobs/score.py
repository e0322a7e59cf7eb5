"""Score every sample in a training run, then reduce: ``python -m jobs.score --help``."""

from easycore_ray.cli import run
from easycore_ray.config.stages import ScoreConfig
from easycore_ray.scoring.score import score

if __name__ == "__main__":
    run(ScoreConfig, score)
