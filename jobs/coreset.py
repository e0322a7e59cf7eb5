"""Select a coreset: ``python -m jobs.coreset --help``."""

from easycore_ray.config import CoresetConfig
from easycore_ray.coreset import select
from jobs.command import run

if __name__ == "__main__":
    run(CoresetConfig, select)
