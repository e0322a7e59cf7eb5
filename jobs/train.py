"""Train one model on a coreset: ``python -m jobs.train --help``, or ``easycore train``."""

from easycore_ray.cli import run_job

if __name__ == "__main__":
    run_job("train")
