"""Write a trained model into one file: ``python -m jobs.export --help``."""

from easycore_ray.cli import run
from easycore_ray.config.stages import ExportConfig
from easycore_ray.inspection.export import export

if __name__ == "__main__":
    run(ExportConfig, export)
