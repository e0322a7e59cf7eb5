"""Test the paper's claims on your own data: ``python -m jobs.analyze --help``, or ``easycore analyze``."""

from easycore_ray.cli import run_job

if __name__ == "__main__":
    run_job("analyze")
