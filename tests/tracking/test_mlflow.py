"""Tracking against a real SQLite store and a real MLflow server on loopback."""

import contextlib
import math
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time

import pytest

from easycore_ray.config.base import TrackingConfig
from easycore_ray.tracking import mlflow as tracking
from easycore_ray.tracking.addresses import default_uri, ui_command
from easycore_ray.tracking.mlflow import (
    CHANGED,
    NON_FINITE,
    Tracker,
    reconcile,
    track,
)
from easycore_ray.tracking.runs import TrackedRun
from tests.tracking.stores import EXPERIMENT, client_of, free_port, history, runs_of, serve, store_of


@pytest.fixture
def out(tmp_path, empty_store):
    """The folder of a job, with its database set up."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return tmp_path


def bring(uri, *runs):
    Tracker(uri, EXPERIMENT).close(runs)


def finished_run(epochs=3, **changes):
    points = {epoch: {"loss": 1 / epoch} for epoch in range(1, epochs + 1)}
    fields = dict(params={"lr": 0.1}, tags={"dataset": "abc"}, points=points, status="FINISHED")
    return TrackedRun("t", "t", **fields | changes)


def check_the_run(uri, epochs=3):
    run = runs_of(uri)["t"]
    assert history(uri, run, "loss") == [(epoch, 1 / epoch) for epoch in range(1, epochs + 1)]
    assert run.data.params == {"lr": "0.1"}
    assert run.data.tags["dataset"] == "abc"
    assert run.info.status == "FINISHED"
    assert run.info.start_time <= run.info.end_time


@pytest.mark.slow
def test_a_sweep_is_a_parent_with_children(out):
    """Trials are children of the sweep's run, with their own parameters, tags and status."""
    sweep = TrackedRun("sweep", "sweep digits", {"fraction": (0.3, 0.5)}, {"dataset": "abc"}, status="FINISHED")
    bring(
        store_of(out),
        sweep,
        TrackedRun("trial-0", "easycore 0.3", {"fraction": 0.3}, parent=sweep, status="FAILED"),
        TrackedRun("trial-1", "random 0.3", {"fraction": 0.3}, parent=sweep, status="KILLED"),
    )
    runs = runs_of(store_of(out))

    assert set(runs) == {"sweep", "trial-0", "trial-1"}
    assert runs["sweep"].info.run_id == runs["trial-0"].data.tags["mlflow.parentRunId"]
    assert runs["sweep"].info.run_id == runs["trial-1"].data.tags["mlflow.parentRunId"]
    assert "mlflow.parentRunId" not in runs["sweep"].data.tags
    assert [runs[k].info.status for k in ("sweep", "trial-0", "trial-1")] == ["FINISHED", "FAILED", "KILLED"]
    assert runs["sweep"].data.params == {"fraction": "0.3, 0.5"}
    assert runs["sweep"].data.tags["dataset"] == "abc"
    assert runs["trial-0"].info.run_name == "easycore 0.3"
    assert runs["trial-0"].data.tags["mlflow.user"]


@pytest.mark.slow
def test_metrics_are_stored_as_they_were_logged(out):
    """Every point of every metric arrives once with its step and its exact value, logged live and reconciled."""
    losses = {epoch: math.exp(-epoch / 7) for epoch in range(1, 21)}
    whole = finished_run(points={epoch: {"loss": loss, "accuracy": 1 - loss} for epoch, loss in losses.items()})
    tracker = Tracker(store_of(out), EXPERIMENT)
    for epoch in losses:
        tracker.send(finished_run(points={epoch: whole.points[epoch]}, status="RUNNING"))
    tracker.close([whole])
    run = runs_of(store_of(out))["t"]

    assert list(losses.items()) == history(store_of(out), run, "loss")
    assert [(epoch, 1 - loss) for epoch, loss in losses.items()] == history(store_of(out), run, "accuracy")


@pytest.mark.slow
def test_what_was_dropped_is_added_at_the_end(out):
    """Whatever subset was logged live, by this process or an earlier one: in the end each point is there once."""
    for sent in ([1], [1, 3]):
        tracker = Tracker(store_of(out), EXPERIMENT)
        for epoch in sent:
            tracker.send(finished_run(points={epoch: {"loss": 1 / epoch}}, status="RUNNING"))
        tracker.close()
    bring(store_of(out), finished_run())
    bring(store_of(out), finished_run())

    run = runs_of(store_of(out))["t"]
    assert sorted(history(store_of(out), run, "loss")) == [(1, 1.0), (2, 1 / 2), (3, 1 / 3)]


@pytest.mark.slow
def test_a_run_in_line_takes_one_request(out, monkeypatch, capfd):
    """A command that finds everything finished and sent asks for the run and changes nothing."""
    bring(store_of(out), finished_run())
    before = runs_of(store_of(out))["t"]
    monkeypatch.setattr(tracking._Store, "_batch", None)  # called by whatever is written
    monkeypatch.setattr(tracking._Store, "_points", None)  # and by whatever asks for points
    bring(store_of(out), finished_run())

    assert capfd.readouterr().err == ""
    assert runs_of(store_of(out))["t"].info.end_time == before.info.end_time


@pytest.mark.slow
def test_values_that_are_not_finite_are_left_out_and_counted(out):
    """NaN and infinity are counted in a tag, once however often; None was not measured."""
    points = {1: {"loss": float("nan"), "norm": float("inf"), "accuracy": 0.5, "val_accuracy": None},
              2: {"loss": float("-inf"), "accuracy": 0.6}}  # fmt: skip
    for _ in range(2):
        bring(store_of(out), finished_run(points=points))
    run = runs_of(store_of(out))["t"]

    assert run.data.tags[NON_FINITE] == "3"
    assert run.data.metrics == {"accuracy": 0.6}
    assert history(store_of(out), run, "accuracy") == [(1, 0.5), (2, 0.6)]


@pytest.mark.slow
def test_parameters_are_flattened_and_cut(out):
    """Nested parameters get dotted names, long values end at 500 characters, any number of them fits."""
    params = {"model": {"name": "cnn", "width": 8}, "note": "x" * 2000, "beta": None}
    bring(store_of(out), finished_run(params={**params, **{f"p{i}": i for i in range(150)}}))
    stored = runs_of(store_of(out))["t"].data.params

    assert stored["model.name"] == "cnn"
    assert stored["model.width"] == "8"
    assert stored["note"] == "x" * 500
    assert stored["beta"] == "None"
    assert {f"p{i}": str(i) for i in range(150)}.items() <= stored.items()


@pytest.mark.slow
def test_a_restart_continues_the_same_run(out):
    """The second process resumes the first one's run; parameters are written once, and changes are named."""
    bring(store_of(out), finished_run(2, params={"lr": 0.1, "num_workers": 2}, status="FAILED"))
    tracker = Tracker(store_of(out), EXPERIMENT)
    tracker.send(finished_run(params={"lr": 0.1, "num_workers": 4, "new": 1}, status="RUNNING"))
    tracker.close()
    run = runs_of(store_of(out))["t"]

    assert history(store_of(out), run, "loss") == [(1, 1.0), (2, 1 / 2), (3, 1 / 3)]
    assert run.info.status == "RUNNING"
    assert run.data.params == {"lr": "0.1", "num_workers": "2", "new": "1"}
    assert run.data.tags[CHANGED] == "num_workers: 2 → 4"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (None, "FINISHED")]
)
def test_a_run_ends_as_its_job_ends(out, error, status):
    """The description is asked for with the status the job ended with."""
    config = TrackingConfig(tracking_uri=store_of(out), experiment=EXPERIMENT)
    followed = track(config, str(out), lambda ended: [finished_run(status=ended)])
    with contextlib.suppress(ValueError, KeyboardInterrupt), followed:
        if error is not None:
            raise error

    assert runs_of(store_of(out))["t"].info.status == status


@pytest.mark.slow
def test_a_server_that_is_away_costs_no_time_and_the_next_command_brings_all(out, capfd):
    """Nobody there for the whole run: one line without credentials, and a command that finds it finished brings it."""
    away = f"http://user:secret@127.0.0.1:{free_port()}"
    tracker = Tracker(away, EXPERIMENT)
    started = time.monotonic()
    for epoch in range(1, 4):
        tracker.send(finished_run(points={epoch: {"loss": 1 / epoch}}, status="RUNNING"))
    assert time.monotonic() - started < 0.5
    tracker.close([finished_run()])
    assert time.monotonic() - started < 20
    said = capfd.readouterr().err

    assert said.count("is away (connection refused)") <= 1
    assert said.count("not up to date") == 1
    assert "1 of 1 runs are not up to date" in said
    assert "the next command with this --out brings them" in said
    assert "secret" not in said
    assert "Retry" not in said
    assert [path.name for path in out.iterdir()] == ["mlflow.db"]

    reconcile(TrackingConfig(tracking_uri=store_of(out), experiment=EXPERIMENT), str(out), lambda _: [finished_run()])
    check_the_run(store_of(out))


@pytest.mark.slow
def test_a_server_that_never_answers_holds_no_job_up(monkeypatch, capfd):
    """Connections are taken and nothing comes: calls return at once, and the end waits for 10 s, here 1, at most."""
    assert tracking._SERVER_SECONDS == 10
    monkeypatch.setattr(tracking, "_SERVER_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracker = Tracker(f"http://127.0.0.1:{silent.getsockname()[1]}", EXPERIMENT)
        started = time.monotonic()
        for epoch in range(2 * tracking._QUEUE_SIZE):
            tracker.send(finished_run(points={epoch: {"loss": 1.0}}, status="RUNNING"))
        assert time.monotonic() - started < 1
        ending = time.monotonic()
        tracker.close([finished_run()])
        assert 0.9 < time.monotonic() - ending < 3

    assert "1 of 1 runs are not up to date" in capfd.readouterr().err


@pytest.mark.slow
def test_files_are_attached_once_beside_the_database(out, capfd):
    """Files are found under the name they are given; one that cannot be read does not hold up the metrics."""
    (out / "report.html").write_text("<p>hello")
    files = {"a.html": str(out / "nowhere.html"), "report/report.html": str(out / "report.html")}
    for status in ("FAILED", "FINISHED"):
        bring(store_of(out), finished_run(files=files, status=status))
    found = {path.name: path.read_text() for path in (out / "mlflow_artifacts").rglob("*") if path.is_file()}

    assert found == {"report.html": "<p>hello"}
    assert "a.html is left out" in capfd.readouterr().err
    check_the_run(store_of(out))


@pytest.mark.slow
@pytest.mark.parametrize("metrics", [{"a?%": 1.0}, {"loss": "high"}])
def test_metrics_that_cannot_be_stored_cost_only_themselves(out, metrics, capfd):
    """A bad name or value is named and left out."""
    bring(store_of(out), finished_run(points={1: {**metrics, "accuracy": 0.5}, 2: {"loss": 2.0}}))

    assert runs_of(store_of(out))["t"].data.metrics == {"loss": 2.0, "accuracy": 0.5}
    assert "left out" in capfd.readouterr().err


@pytest.mark.slow
def test_a_deleted_run_is_made_anew(out):
    """A run that someone deletes while the job works is made again by its end, whole."""
    tracker = Tracker(store_of(out), EXPERIMENT)
    tracker.send(finished_run(1, status="RUNNING"))
    while True:
        with contextlib.suppress(Exception):
            run = runs_of(store_of(out))["t"]
            if history(store_of(out), run, "loss"):
                break
        time.sleep(0.05)
    client_of(store_of(out)).delete_run(run.info.run_id)
    tracker.close([finished_run()])

    check_the_run(store_of(out))


def test_none_tracks_nothing(tmp_path):
    """With 'none' every call is accepted, nothing is described and no file is written."""
    config = TrackingConfig(tracking_uri="none")
    with track(config, str(tmp_path), lambda _: pytest.fail("described")) as tracker:
        tracker.send(finished_run())

    assert tracker.uri is None
    assert list(tmp_path.iterdir()) == []


def test_a_remote_out_has_no_default_store(capfd):
    """An object store cannot hold a database: tracking is off, and the user is told what to pass."""
    assert default_uri("s3://bucket/runs") == "none"
    assert "--tracking-uri" in capfd.readouterr().err


@pytest.mark.slow
def test_a_description_that_cannot_be_made_fails_no_job(out, capfd):
    """Broken manifests are the business of the job, not of tracking."""
    reconcile(TrackingConfig(tracking_uri=store_of(out)), str(out), lambda _: [][0])

    assert "cannot be described" in capfd.readouterr().err


FRESH = """
import os, sys, time
from easycore_ray.tracking.mlflow import Tracker
from easycore_ray.tracking.runs import TrackedRun
assert "mlflow" not in sys.modules
tracker = Tracker(f"sqlite:///{sys.argv[1]}/mlflow.db", "easycore")
started = time.monotonic()
tracker.send(TrackedRun("t", "t", points={1: {"loss": 1.0}}))
print(time.monotonic() - started)
tracker.close([TrackedRun(sys.argv[2], sys.argv[2], points={1: {"loss": 1.0}}, status="FINISHED")])
print(os.environ["MLFLOW_DISABLE_TELEMETRY"])
"""


@pytest.mark.slow
def test_two_processes_make_the_same_fresh_store(tmp_path):
    """Importing MLflow and setting up its database slow no caller, make no noise, and two processes may do it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
    started = [
        subprocess.Popen([sys.executable, "-c", FRESH, str(tmp_path), key], stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True, env=environment)
        for key in ("a", "b")
    ]  # fmt: skip
    for process in started:
        printed, said = process.communicate(timeout=300)
        seconds, telemetry_off = printed.split()
        assert said == ""
        assert float(seconds) < 0.5  # importing MLflow alone takes 2 s
        assert telemetry_off == "true"
    runs = runs_of(store_of(tmp_path))

    assert {"t", "a", "b"} == set(runs)
    assert runs["a"].data.metrics == {"loss": 1.0}


@pytest.mark.slow
def test_a_server_that_comes_up_later_gets_everything_once(tmp_path, empty_store):
    """Away for the first job and the second one: the third, which finds the finished artifact, brings it."""
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    (tmp_path / "summary.txt").write_text("three epochs")
    run = finished_run(files={"notes/summary.txt": str(tmp_path / "summary.txt")})
    bring(uri, finished_run(1, status="FAILED"))
    bring(uri, run)
    with serve(tmp_path, port, empty_store):
        for _ in range(2):
            bring(uri, run)
        check_the_run(uri)
    assert [path.read_text() for path in (tmp_path / "served").rglob("summary.txt")] == ["three epochs"]


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


@pytest.mark.slow
def test_what_a_broken_request_has_left_out_is_brought_by_the_next_command(out, monkeypatch):
    """Of a run that was whole before, with more points than a request takes: what says that all is there comes last."""
    from mlflow import MlflowClient

    uri, log_batch, requests = store_of(out), MlflowClient.log_batch, []
    bring(uri, finished_run())

    def break_off(client, *arguments, **content):
        requests.append(len(content["metrics"]))
        if len(requests) == 2:
            raise ConnectionError("the network broke")
        return log_batch(client, *arguments, **content)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", break_off)
        bring(uri, finished_run(epochs=1000))
    assert requests == [800, 197]
    assert len(history(uri, runs_of(uri)["t"], "loss")) == 803
    bring(uri, finished_run(epochs=1000))
    check_the_run(uri, epochs=1000)
