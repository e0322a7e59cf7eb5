"""Score every sample in a training run, then reduce: ``python -m jobs.score --help``."""

from easycore_ray.config import ScoreConfig
from easycore_ray.scoring import score
from jobs.command import run

if __name__ == "__main__":
    run(ScoreConfig, score)
