"""Train one model on a coreset: ``python -m jobs.train --help``."""

from easycore_ray.cli import run
from easycore_ray.config.stages import TrainConfig
from easycore_ray.training.train import train

if __name__ == "__main__":
    run(TrainConfig, train)
