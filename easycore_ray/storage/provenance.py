"""What made a result: versions of packages, and the commit of this one."""

import functools
import importlib.metadata
import subprocess
from pathlib import Path

# Reported in every manifest: what could change a number from one machine to the next.
_PACKAGES = ("easycore-ray", "ray", "torch", "torchvision", "pyarrow", "numpy", "mlflow", "pyautoattack")


def versions() -> dict[str, str]:
    """Installed versions of the packages that can change a result."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def git_commit() -> str | None:
    """Commit of the source tree this package runs from, or None outside a repository.

    That of the first call in this process, which ``claim`` makes before any work: the tree may move on meanwhile, the
    code that runs does not.
    """
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
