"""The command lines: ``easycore VERB …``, and the same verbs as ``python -m jobs.VERB`` for ``ray job submit``."""

from easycore_ray.cli.command import main, run_job

__all__ = ["main", "run_job"]
