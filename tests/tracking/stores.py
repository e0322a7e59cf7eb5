"""Real MLflow stores for tests, and what they hold."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from easycore_ray.tracking.mlflow import TRIAL_KEY, Tracker
from easycore_ray.tracking.runs import TrackedRun

EXPERIMENT = "easycore"


def store_of(folder):
    """The address of the database in a folder."""
    return f"sqlite:///{folder}/mlflow.db"


def make_empty_store(folder):
    """Set up a fresh database, which takes seconds; the path of its file."""
    Tracker(store_of(folder), "elsewhere").close([TrackedRun("k", "n")])
    return Path(folder, "mlflow.db")


def client_of(uri):
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


def runs_of(uri):
    """All runs of the experiment by trial key; a key with two runs fails."""
    client = client_of(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    runs = client.search_runs([experiment.experiment_id])
    by_key = {run.data.tags[TRIAL_KEY]: run for run in runs}
    assert len(by_key) == len(runs)
    return by_key


def history(uri, run, metric):
    """(step, value) of every point of a metric, as they are stored."""
    return [(point.step, point.value) for point in client_of(uri).get_metric_history(run.info.run_id, metric)]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def serve(folder, port, empty_store):
    """A real MLflow server on a port of this machine, on a copy of an empty database."""
    shutil.copy(empty_store, Path(folder, "server.db"))
    environment = os.environ | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--workers", "1"]
    command += ["--artifacts-destination", str(Path(folder, "served"))]
    said = Path(folder, "server.log")
    with said.open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=folder)
    try:
        deadline = time.monotonic() + 60
        while not healthy(port):
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(0.2)
        yield
    finally:
        os.killpg(server.pid, 15)
        server.wait(90)


def healthy(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False
