"""What made a result: versions of packages, the commit of this one, the job that was submitted."""

import functools
import importlib.metadata
import json
import os
import subprocess
from pathlib import Path

from easycore_ray import __version__

COMMIT_VARIABLE = "EASYCORE_GIT_COMMIT"
"""Environment variable: the commit of a working directory that travels without its repository."""

# Reported in every manifest: what could change a number from one machine to the next.
_PACKAGES = ("easycore-ray", "ray", "torch", "torchvision", "pyarrow", "numpy", "mlflow", "pyautoattack", "timm")


def versions() -> dict[str, str]:
    """Installed versions of the packages that can change a result."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    # A working directory that a job brought along is not installed.
    return {"easycore-ray": __version__, **found}


@functools.cache
def git_commit() -> str | None:
    """Commit of the source tree this package runs from, or what ``EASYCORE_GIT_COMMIT`` says; None if neither does.

    That of the first call in this process, which ``claim`` makes before any work: the tree may move on meanwhile, the
    code that runs does not.
    """
    if told := os.environ.get(COMMIT_VARIABLE):
        return told
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def submitted_job() -> dict[str, str]:
    """Of a process that ``ray job submit`` has started: what identifies the job and its code; empty elsewhere.

    ``submission_id`` names the job, ``working_directory`` is the package that Ray made of the folder it brought along,
    whose name is a hash of the content.
    """
    try:
        job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
        found = {
            "submission_id": job.get("metadata", {}).get("job_submission_id"),
            "working_directory": job.get("runtime_env", {}).get("working_dir"),
        }
    except (ValueError, AttributeError):
        return {}
    return {name: str(value) for name, value in found.items() if value}


def code_version() -> dict[str, object]:
    """For manifests: ``git_commit``, and of submitted jobs ``job``."""
    job = submitted_job()
    return {"git_commit": git_commit(), **({"job": job} if job else {})}
