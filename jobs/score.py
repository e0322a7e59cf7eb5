"""Score every sample in a training run, then reduce: ``python -m jobs.score --help``, or ``easycore score``."""

from easycore_ray.cli import run_job

if __name__ == "__main__":
    run_job("score")
