"""Where runs go: the address of an MLflow server or database."""

import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from urllib.parse import quote, urlsplit

from easycore_ray.runtime.console import say
from easycore_ray.storage import paths

ADDRESS = "MLFLOW_TRACKING_URI"
"""Environment variable that names a store, as for MLflow itself."""


def ui_command(uri: str) -> str:
    """The line that shows the runs: a command to type, or a server's address."""
    if uri.startswith(("http://", "https://")):
        return without_credentials(uri)
    # The command of this environment, whether or not it has been activated.
    command = os.path.relpath(Path(sys.executable).with_name("mlflow"))
    command = "mlflow" if shutil.which("mlflow") or command.startswith("..") else command
    return f"{shlex.quote(command)} ui --backend-store-uri {shlex.quote(uri)} --host 127.0.0.1 --port 5000"


def default_uri(out: str) -> str:
    """The store a job uses if none is named: ``mlflow.db`` in its folder; ``none`` for a remote folder, said in a line.

    The environment's ``MLFLOW_TRACKING_URI`` comes first. An object store cannot hold a database, and one on this
    machine would be lost with the driver's node.
    """
    if named := os.environ.get(ADDRESS):
        return named
    if not paths.is_remote(out):
        # MLflow decodes it; where there is something to decode, it also makes an empty folder of the name as encoded.
        return f"sqlite:///{re.sub('[%?#]', lambda found: quote(found[0]), out)}/mlflow.db"
    say(f"tracking is off: {out} cannot hold a database; pass --tracking-uri to track this run")
    return "none"


def without_credentials(uri: str) -> str:
    """An address that may be shown."""
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else uri
