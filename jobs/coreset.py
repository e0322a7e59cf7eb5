"""Select a coreset: ``python -m jobs.coreset --help``."""

from easycore_ray.cli import run
from easycore_ray.config.stages import CoresetConfig
from easycore_ray.selection.select import select

if __name__ == "__main__":
    run(CoresetConfig, select)
