"""Draw a finished sweep: ``python -m jobs.report --help``, or ``easycore report``."""

from easycore_ray.cli import run_job

if __name__ == "__main__":
    run_job("report")
