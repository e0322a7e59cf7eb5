"""Reduce a score table to hardness: ``python -m jobs.reduce --help``."""

from easycore_ray.config import ReduceConfig
from easycore_ray.reduction import reduce
from jobs.command import run

if __name__ == "__main__":
    run(ReduceConfig, reduce)
