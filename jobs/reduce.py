"""Reduce a score table to hardness: ``python -m jobs.reduce --help``."""

from easycore_ray.cli import run
from easycore_ray.config.stages import ReduceConfig
from easycore_ray.scoring.reduce import reduce

if __name__ == "__main__":
    run(ReduceConfig, reduce)
