"""Import images into a dataset: ``python -m jobs.prepare --help``."""

from easycore_ray.config import PrepareConfig
from easycore_ray.dataset import prepare
from jobs.command import run

if __name__ == "__main__":
    run(PrepareConfig, prepare)
