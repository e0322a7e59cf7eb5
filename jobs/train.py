"""Train one model on a coreset: ``python -m jobs.train --help``."""

from easycore_ray.config import TrainConfig
from easycore_ray.training import train
from jobs.command import run

if __name__ == "__main__":
    run(TrainConfig, train)
