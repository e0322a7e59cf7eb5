"""Tracking against a real SQLite store and a real MLflow server on loopback."""

import math
import os
import pickle
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from easycore_ray.tracking import journal
from easycore_ray.tracking.mlflow import CHANGED, NON_FINITE, TRIAL_KEY, Tracker, ui_command

EXPERIMENT = "easycore"


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A fresh database, made once: setting it up takes seconds."""
    out = tmp_path_factory.mktemp("store")
    with Tracker.open(None, out=str(out), experiment="elsewhere") as tracker:
        tracker.run("k", name="n", params={}, tags={})
    return out / "mlflow.db"


@pytest.fixture
def out(tmp_path, empty_store):
    """The folder of a job, with its database set up."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return tmp_path


def open_tracker(out, uri=None):
    return Tracker.open(uri, out=str(out), experiment=EXPERIMENT)


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
    return [(point.step, point.value) for point in client_of(uri).get_metric_history(run.info.run_id, metric)]


def store_of(out):
    return f"sqlite:///{out}/mlflow.db"


def test_a_sweep_is_a_parent_with_children(out):
    """Trials are children of the sweep's run, with their own parameters, tags and status."""
    with open_tracker(out) as tracker:
        tracker.run("sweep", name="sweep digits", params={"fraction": (0.3, 0.5)}, tags={"dataset": "abc"})
        tracker.run("trial-0", name="easycore 0.3", parent_key="sweep", params={"fraction": 0.3}, tags={})
        tracker.run("trial-1", name="random 0.3", parent_key="sweep", params={"fraction": 0.3}, tags={})
        tracker.finish("trial-0")
        tracker.finish("trial-1", status="FAILED")
        tracker.finish("sweep")
    runs = runs_of(store_of(out))

    assert {"sweep", "trial-0", "trial-1"} == set(runs)
    assert runs["sweep"].info.run_id == runs["trial-0"].data.tags["mlflow.parentRunId"]
    assert runs["sweep"].info.run_id == runs["trial-1"].data.tags["mlflow.parentRunId"]
    assert "mlflow.parentRunId" not in runs["sweep"].data.tags
    assert [runs[k].info.status for k in ("sweep", "trial-0", "trial-1")] == ["FINISHED", "FINISHED", "FAILED"]
    assert runs["sweep"].data.params == {"fraction": "0.3, 0.5"}
    assert runs["sweep"].data.tags["dataset"] == "abc"
    assert runs["trial-0"].info.run_name == "easycore 0.3"


def test_metrics_are_stored_as_they_were_logged(out):
    """Every point of every metric arrives with its step and its exact value."""
    losses = [math.exp(-epoch / 7) for epoch in range(1, 21)]
    with open_tracker(out) as tracker:
        tracker.run("t", name="t", params={}, tags={})
        for epoch, loss in enumerate(losses, start=1):
            tracker.log("t", {"loss": loss, "accuracy": 1 - loss}, step=epoch)
    run = runs_of(store_of(out))["t"]

    assert list(enumerate(losses, start=1)) == history(store_of(out), run, "loss")
    assert [(e, 1 - v) for e, v in enumerate(losses, start=1)] == history(store_of(out), run, "accuracy")


def test_values_that_are_not_finite_are_left_out_and_counted(out):
    """NaN and infinity are counted in a tag; the finite values beside them are kept."""
    with open_tracker(out) as tracker:
        tracker.run("t", name="t", params={}, tags={})
        tracker.log("t", {"loss": float("nan"), "norm": float("inf"), "accuracy": 0.5}, step=1)
        tracker.log("t", {"loss": float("-inf"), "accuracy": 0.6}, step=2)
    run = runs_of(store_of(out))["t"]

    assert run.data.tags[NON_FINITE] == "3"
    assert run.data.metrics == {"accuracy": 0.6}
    assert history(store_of(out), run, "accuracy") == [(1, 0.5), (2, 0.6)]


def test_parameters_are_flattened_and_cut(out):
    """Nested parameters get dotted names, long values end at 500 characters, any number of them fits."""
    params = {"model": {"name": "cnn", "width": 8}, "note": "x" * 2000, "beta": None}
    with open_tracker(out) as tracker:
        tracker.run("t", name="t", params={**params, **{f"p{i}": i for i in range(150)}}, tags={})
    stored = runs_of(store_of(out))["t"].data.params

    assert stored["model.name"] == "cnn"
    assert stored["model.width"] == "8"
    assert stored["note"] == "x" * 500
    assert stored["beta"] == "None"
    assert {f"p{i}": str(i) for i in range(150)}.items() <= stored.items()


def test_a_run_says_where_it_comes_from(out):
    """Source and user are set, as MLflow's own interface would."""
    with open_tracker(out) as tracker:
        tracker.run("t", name="t", params={}, tags={"mlflow.source.name": "jobs/score.py"})
    tags = runs_of(store_of(out))["t"].data.tags

    assert tags["mlflow.source.name"] == "jobs/score.py"
    assert tags["mlflow.user"]


def test_a_restart_continues_the_same_run(out):
    """The second process adds to the first one's run; an epoch done twice with the same result counts once."""
    with open_tracker(out) as tracker:
        tracker.run("t", name="t", params={"lr": 0.1, "num_workers": 2}, tags={})
        tracker.log("t", {"loss": 3.0}, step=1)
        tracker.log("t", {"loss": 2.0}, step=2)
        tracker.finish("t", status="FAILED")
    with open_tracker(out) as tracker:
        tracker.run("t", name="t", params={"lr": 0.1, "num_workers": 4, "new": 1}, tags={})
        tracker.log("t", {"loss": 2.0}, step=2)
        tracker.log("t", {"loss": 1.0}, step=3)
    run = runs_of(store_of(out))["t"]

    assert history(store_of(out), run, "loss") == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert run.info.status == "RUNNING"
    assert run.data.params == {"lr": "0.1", "num_workers": "2", "new": "1"}
    assert run.data.tags[CHANGED] == "num_workers: 2 → 4"


def test_an_absent_server_costs_no_time_and_no_event(out, capfd):
    """With nobody there a job is told once and goes on at once; later events arrive exactly once."""
    dead = f"http://user:secret@127.0.0.1:{free_port()}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "_PAUSES", (0.01, 0.01))
        started = time.monotonic()
        tracker = open_tracker(out, dead)
        log_a_run(tracker)
        assert time.monotonic() - started < 0.5
        tracker.close(timeout=20)
    said = capfd.readouterr().err
    spool = out / "tracking"
    (journal_file,) = spool.glob("*.jsonl")
    spare = journal_file.read_bytes()

    assert said.count("is away (connection refused)") == 1
    assert "secret" not in said
    assert "Retry" not in said

    open_tracker(out).close()
    check_the_run(store_of(out))
    assert list(spool.glob("*.jsonl")) == []

    journal_file.write_bytes(spare)  # as if the process had died before it could note the delivery
    open_tracker(out).close()
    check_the_run(store_of(out))


def log_a_run(tracker):
    tracker.run("t", name="t", params={"lr": 0.1}, tags={"dataset": "abc"})
    for epoch in range(1, 4):
        tracker.log("t", {"loss": 1 / epoch}, step=epoch)
    tracker.artifact("t", "notes/summary.txt", text="three epochs")
    tracker.finish("t")


def check_the_run(uri):
    run = runs_of(uri)["t"]
    points = [(point.step, point.value) for point in client_of(uri).get_metric_history(run.info.run_id, "loss")]
    assert points == [(1, 1.0), (2, 1 / 2), (3, 1 / 3)]
    assert run.data.params == {"lr": "0.1"}
    assert run.data.tags["dataset"] == "abc"
    assert run.info.status == "FINISHED"
    assert run.info.start_time <= run.info.end_time


def test_artifacts_are_stored_inside_out(out):
    """Texts and files are attached under the name they are given."""
    (out / "report.html").write_text("<p>hello")
    with open_tracker(out) as tracker:
        tracker.run("t", name="t", params={}, tags={})
        tracker.artifact("t", "report/report.html", path=str(out / "report.html"))
        tracker.artifact("t", "summary.txt", text="42 %")
    found = {path.name: path.read_text() for path in (out / "mlflow_artifacts").rglob("*") if path.is_file()}

    assert found == {"report.html": "<p>hello", "summary.txt": "42 %"}


def test_a_missing_file_does_not_hold_up_the_metrics(out, capfd):
    """An artifact that cannot be read is named and left out."""
    with open_tracker(out) as tracker:
        tracker.run("t", name="t", params={}, tags={})
        tracker.artifact("t", "a.html", path=str(out / "nowhere.html"))
        tracker.log("t", {"loss": 1.0}, step=1)

    assert runs_of(store_of(out))["t"].data.metrics == {"loss": 1.0}
    assert "nowhere.html cannot be read" in capfd.readouterr().err


@pytest.mark.parametrize("metrics", [{"a?%": 1.0}, {"loss": "high"}])
def test_metrics_that_cannot_be_stored_do_not_stop_the_caller(out, metrics, capfd):
    """A bad name or value costs that call only, and is said."""
    with open_tracker(out) as tracker:
        tracker.run("t", name="t", params={}, tags={})
        tracker.log("t", metrics, step=1)
        tracker.log("t", {"loss": 2.0}, step=2)

    assert runs_of(store_of(out))["t"].data.metrics == {"loss": 2.0}
    assert "left out" in capfd.readouterr().err


def test_what_was_not_measured_is_no_point(out, capfd):
    """A metric that is None (no validation split, say) is left out without a word."""
    with open_tracker(out) as tracker:
        tracker.run("t", name="t", params={}, tags={})
        tracker.log("t", {"loss": 1.0, "val_accuracy": None}, step=1)
    run = runs_of(store_of(out))["t"]

    assert run.data.metrics == {"loss": 1.0}
    assert NON_FINITE not in run.data.tags
    assert capfd.readouterr().err == ""


def test_a_copy_in_another_process_tracks_nothing(out):
    """Tune pickles callbacks with all they hold: that works, and the copy neither sends nor waits."""
    with open_tracker(out) as tracker:
        copy = pickle.loads(pickle.dumps(tracker))
        log_a_run(copy)
        copy.close()
        tracker.run("other", name="o", params={}, tags={})

    assert set(runs_of(store_of(out))) == {"other"}


def test_a_deleted_run_is_made_anew(out):
    """Metrics of a run that someone deleted meanwhile go to a new run with the same key."""
    with open_tracker(out) as tracker:
        tracker.run("t", name="t", params={}, tags={})
    client_of(store_of(out)).delete_run(runs_of(store_of(out))["t"].info.run_id)
    with open_tracker(out) as tracker:
        tracker.log("t", {"loss": 2.0}, step=2)

    assert runs_of(store_of(out))["t"].data.metrics == {"loss": 2.0}


def test_none_tracks_nothing(tmp_path):
    """With 'none' every call is accepted and no file is written."""
    with Tracker.open("none", out=str(tmp_path), experiment=EXPERIMENT) as tracker:
        log_a_run(tracker)

    assert tracker.uri is None
    assert list(tmp_path.iterdir()) == []


def test_a_remote_out_has_no_default_store(capfd):
    """An object store cannot hold a database: tracking is off, and the user is told what to pass."""
    with Tracker.open(None, out="s3://bucket/runs", experiment=EXPERIMENT) as tracker:
        log_a_run(tracker)

    assert tracker.uri is None
    assert "--tracking-uri" in capfd.readouterr().err


def test_a_remote_out_spools_on_this_machine(tmp_path, monkeypatch):
    """What a server misses of a job with a remote --out waits in the user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tracker = Tracker.open(f"http://127.0.0.1:{free_port()}", out="s3://bucket/runs", experiment=EXPERIMENT)
    log_a_run(tracker)
    tracker.close(timeout=20)

    assert len(list(tmp_path.rglob("*.jsonl"))) == 1


FRESH = """
import sys, time
from easycore_ray.tracking.mlflow import Tracker
assert "mlflow" not in sys.modules
started = time.monotonic()
tracker = Tracker.open(None, out=sys.argv[1], experiment="easycore")
tracker.run("t", name="t", params={"lr": 0.1}, tags={})
tracker.log("t", {"loss": 1.0}, step=1)
print(time.monotonic() - started)
tracker.close(timeout=200)
import os
print(os.environ["MLFLOW_DISABLE_TELEMETRY"])
"""


@pytest.mark.slow
def test_the_first_use_of_a_fresh_store_does_not_slow_the_caller(tmp_path):
    """Importing MLflow and setting up its database happen elsewhere, in silence, without a call home."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path)], capture_output=True, text=True, check=True, env=environment
    )
    seconds, telemetry_off = done.stdout.split()

    assert float(seconds) < 0.5  # importing MLflow alone takes 2 s
    assert telemetry_off == "true"
    assert done.stderr == ""
    assert runs_of(store_of(tmp_path))["t"].data.metrics == {"loss": 1.0}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def start_server(tmp_path, empty_store):
    """Starts a real MLflow server on a given port, stopped after the test."""
    started = []

    def start(port):
        shutil.copy(empty_store, tmp_path / "server.db")
        environment = os.environ | {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--workers", "1"]
        command += ["--artifacts-destination", str(tmp_path / "served")]
        with Path(tmp_path, "server.log").open("w") as log:
            server = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=tmp_path
            )
        started.append(server)
        deadline = time.monotonic() + 60
        while not healthy(port):
            assert time.monotonic() < deadline, Path(tmp_path, "server.log").read_text()
            time.sleep(0.2)

    yield start
    for server in started:
        os.killpg(server.pid, 15)
        server.wait(90)


def healthy(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


@pytest.mark.slow
def test_a_server_that_comes_up_later_gets_every_event_once(tmp_path, start_server, monkeypatch):
    """What two jobs could not send is sent by the third, in order and once, artifacts included."""
    monkeypatch.setattr(journal, "_PAUSES", (0.01, 0.01))
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    out = tmp_path / "out"
    first = open_tracker(out, uri)
    first.run("t", name="t", params={"lr": 0.1}, tags={"dataset": "abc"})
    first.log("t", {"loss": 1.0}, step=1)
    first.close(timeout=20)
    second = open_tracker(out, uri)
    second.log("t", {"loss": 1 / 2}, step=2)
    second.close(timeout=20)
    assert len(list((out / "tracking").glob("*.jsonl"))) == 2

    start_server(port)
    with open_tracker(out, uri) as third:
        third.log("t", {"loss": 1 / 3}, step=3)
        third.artifact("t", "notes/summary.txt", text="three epochs")
        third.finish("t")

    check_the_run(uri)
    assert [path.read_text() for path in (tmp_path / "served").rglob("summary.txt")] == ["three epochs"]
    assert list((out / "tracking").glob("*.jsonl")) == []


def test_the_ui_command_can_be_pasted():
    """A store is opened by this environment's own command, bound to this machine."""
    command = ui_command("sqlite:////data/my runs/mlflow.db")
    program, *arguments = shlex.split(command)

    assert shutil.which(program), f"{program} is not there to be run"
    assert command.endswith("ui --backend-store-uri 'sqlite:////data/my runs/mlflow.db' --host 127.0.0.1 --port 5000")
    assert arguments[:2] == ["ui", "--backend-store-uri"]


def test_a_server_is_shown_by_its_address():
    """What to open in a browser, without the password."""
    assert ui_command("https://me:secret@mlflow.example.org:5000") == "https://mlflow.example.org:5000"
