"""Reduce a score table to hardness: ``python -m jobs.reduce --help``, or ``easycore reduce``."""

from easycore_ray.cli import run_job

if __name__ == "__main__":
    run_job("reduce")
