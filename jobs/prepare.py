"""Import images into a dataset: ``python -m jobs.prepare --help``."""

from easycore_ray.cli import run
from easycore_ray.config.stages import PrepareConfig
from easycore_ray.data.ingest.pipeline import prepare

if __name__ == "__main__":
    run(PrepareConfig, prepare)
