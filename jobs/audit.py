"""Find likely label errors, copies and starved classes: ``python -m jobs.audit --help``, or ``easycore audit``."""

from easycore_ray.cli import run_job

if __name__ == "__main__":
    run_job("audit")
