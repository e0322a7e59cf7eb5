"""List or remove what an artifact no longer needs: ``python -m jobs.clean --help``, or ``easycore clean``."""

from easycore_ray.cli import run_job

if __name__ == "__main__":
    run_job("clean")
