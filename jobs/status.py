"""Tell whether a job is finished: ``python -m jobs.status --help``, or ``easycore status``."""

from easycore_ray.cli import run_job

if __name__ == "__main__":
    run_job("status")
