"""Every stage in order: ``python -m jobs.pipeline --help``, or ``easycore pipeline``."""

from easycore_ray.cli import run_job

if __name__ == "__main__":
    run_job("pipeline")
