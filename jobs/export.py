"""Write a trained model into one file: ``python -m jobs.export --help``, or ``easycore export``."""

from easycore_ray.cli import run_job

if __name__ == "__main__":
    run_job("export")
