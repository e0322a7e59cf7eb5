"""Show what an artifact is: ``python -m jobs.inspect --help``, or ``easycore inspect``."""

from easycore_ray.cli import run_job

if __name__ == "__main__":
    run_job("inspect")
