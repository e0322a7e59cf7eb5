"""Import images into a dataset: ``python -m jobs.prepare --help``, or ``easycore prepare``."""

from easycore_ray.cli import run_job

if __name__ == "__main__":
    run_job("prepare")
