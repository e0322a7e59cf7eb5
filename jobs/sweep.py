"""Train and evaluate arms × fractions × objectives × seeds: ``python -m jobs.sweep --help``, or ``easycore sweep``."""

from easycore_ray.cli import run_job

if __name__ == "__main__":
    run_job("sweep")
