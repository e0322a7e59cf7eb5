"""Select a coreset: ``python -m jobs.coreset --help``, or ``easycore coreset``."""

from easycore_ray.cli import run_job

if __name__ == "__main__":
    run_job("coreset")
