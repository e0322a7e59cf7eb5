"""Compare coresets over whole repetitions: ``python -m jobs.study --help``, or ``easycore study``."""

from easycore_ray.cli import run_job

if __name__ == "__main__":
    run_job("study")
