"""Attack a checkpoint: ``python -m jobs.evaluate --help``, or ``easycore evaluate``."""

from easycore_ray.cli import run_job

if __name__ == "__main__":
    run_job("evaluate")
