"""The whole pipeline on real digits, as users start it."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

ROW_KEYS = {
    "method", "score", "balance", "fraction", "training", "beta", "scoring_seed", "seeds", "clean_accuracy_mean",
    "clean_accuracy_std", "robust_accuracy_pgd20_mean", "robust_accuracy_pgd20_std", "eps", "steps",
    "scoring_seconds", "training_seconds", "device",
}  # fmt: skip


def run_job(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True,
        timeout=800, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny pipeline that ``ray job submit`` ran on a real head; its folder, what was printed, the job's status.

    The only pipeline that is run whole: the other tests read its artifacts.
    """
    root = tmp_path_factory.mktemp("pipeline")
    port, client_port, gcs_port, agent_port = _free_ports(4)
    environment = os.environ | {"RAY_TMPDIR": str(_short_folder()), "EASYCORE_ROOT": str(root)}
    environment.pop("RAY_ADDRESS", None)
    ray = str(Path(sys.executable).with_name("ray"))
    # Its own ports, on loopback: another Ray may run on this machine.
    head = subprocess.Popen(
        [ray, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs_port}", "--num-cpus=3",
         "--dashboard-host=127.0.0.1", f"--dashboard-port={port}", f"--dashboard-agent-listen-port={agent_port}",
         f"--ray-client-server-port={client_port}", "--object-store-memory=300000000"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_for(f"{address}/api/version", head)
        command = [ray, "job", "submit", "--address", address, "--working-dir", ".", "--submission-id", "tiny",
                   "--runtime-env-json", json.dumps({"env_vars": {"EASYCORE_ROOT": str(root)}}), "--",
                   sys.executable, "-m", "jobs.pipeline", "--preset", "tiny", "--max-concurrent-trials", "1",
                   "--out", "tiny"]  # fmt: skip
        done = _submit(command, environment)
        assert done.returncode == 0, done.stdout + done.stderr
        status = subprocess.run([ray, "job", "status", "--address", address, "tiny"], env=environment,
                                capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    finally:
        _end_group(head)
    return root / "tiny", done, status.stdout + status.stderr


def test_a_submitted_job_succeeds(finished):
    """Ray calls it succeeded, and its artifacts lie under the root that its environment names."""
    out, _, status = finished

    assert "Job 'tiny' succeeded" in status
    assert (out / "report.html").exists()


def test_the_pipeline_ends_with_table_report_and_mlflow_line(finished):
    """The closing lines say what came out and where to look."""
    out, done, _ = finished

    assert "easycore" in done.stdout
    assert f"report: {out}/report.html" in done.stdout
    assert f"mlflow ui --backend-store-uri sqlite:///{out}/mlflow.db" in done.stdout


def test_progress_shows_rate_and_time_left(finished):
    """Long work says how far it is and how fast."""
    assert re.search(r"score: [\d,]+ of [\d,]+ images \(\d+ %\), [\d,.]+ images/s", finished[1].stdout)


def test_the_summary_has_every_arm_with_the_contracts_columns(finished):
    """Full and easycore, standard and TRADES, each with accuracies between 0 and 1, robust at most clean."""
    summary = json.loads((finished[0] / "summary.json").read_text())
    arms = {(row["method"], row["fraction"], row["training"], row["beta"]) for row in summary["rows"]}

    assert arms == {(method, fraction, training, beta) for method, fraction in (("full", 1.0), ("easycore", 0.5))
                    for training, beta in (("standard", None), ("trades", 6.0))}  # fmt: skip
    for row in summary["rows"]:
        assert set(row) >= ROW_KEYS
        assert 0 <= row["robust_accuracy_pgd20_mean"] <= row["clean_accuracy_mean"] <= 1
    assert summary["lineage"]["parents"]["dataset"]["fingerprint"]


def test_mlflow_holds_the_pipeline_the_sweep_and_its_trials(finished):
    """A run below another, with the accuracies of the summary, the data used, and what came out in words."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{finished[0]}/mlflow.db")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    by_kind = {kind: [run for run in runs if run.data.tags["kind"] == kind]
               for kind in ("pipeline", "scoring_run", "sweep", "trial")}  # fmt: skip
    (whole,), (sweep,), (scoring,), trials = (by_kind[k] for k in ("pipeline", "sweep", "scoring_run", "trial"))
    above = {run.info.run_id: run.data.tags.get("mlflow.parentRunId") for run in runs}
    summary = json.loads((finished[0] / "summary.json").read_text())
    measured = sorted(row["robust_accuracy_pgd20_mean"] for row in summary["rows"])

    assert len(trials) == 4
    assert {above[run.info.run_id] for run in trials} == {sweep.info.run_id}
    assert {above[sweep.info.run_id], above[scoring.info.run_id]} == {whole.info.run_id}
    assert sorted(run.data.metrics["robust_accuracy_pgd20"] for run in trials) == pytest.approx(measured)
    assert all(run.data.metrics["robust_accuracy_pgd20_worst_class"] <= run.data.metrics["robust_accuracy_pgd20"]
               for run in trials)  # fmt: skip
    assert all(run.info.status == "FINISHED" for run in runs)
    assert all(run.data.metrics["system/memory_usage_megabytes"] > 50 for run in (scoring, *trials))
    assert whole.info.run_name.endswith("/tiny")
    spent = {name: json.loads((finished[0] / name / "manifest.json").read_text())["device_seconds"]
             for name in ("scores", "sweep")}  # fmt: skip
    assert sweep.data.metrics["device_hours"] == pytest.approx(spent["sweep"] / 3600)
    assert whole.data.metrics["device_hours"] == pytest.approx(sum(spent.values()) / 3600)
    for run in (whole, sweep):
        assert run.data.metrics["best_robust_accuracy_mean"] == pytest.approx(max(measured))
        assert "easycore" in run.data.tags["mlflow.note.content"]
    for run in trials:
        assert {entry.dataset.name.split()[0] for entry in run.inputs.dataset_inputs} == {"dataset", "coreset"}
    models = client.search_logged_models([sweep.info.experiment_id])
    assert {model.name for model in models} == {f"easycore-{row['training']}" for row in summary["rows"]}
    assert {model.source_run_id for model in models} <= {run.info.run_id for run in trials}
    attached = {entry.path for entry in client.list_artifacts(whole.info.run_id)}
    assert attached == {"summary.json", "report.html", "plots"}
    pictures = {entry.path for entry in client.list_artifacts(whole.info.run_id, "plots")}
    assert pictures == {f"plots/{file.name}" for file in (finished[0] / "report" / "plots").glob("*.png")} != set()
    assert {entry.path for entry in client.list_artifacts(sweep.info.run_id)} == {"summary.json", "coresets"}


def test_the_report_needs_nothing_from_elsewhere(finished):
    """report.html is one file without references to other files or hosts."""
    page = (finished[0] / "report.html").read_text()
    references = re.findall(r"""(?:src|href)=["']([^"'#]+)""", page)

    assert "<table" in page
    assert all(reference.startswith("data:") for reference in references), references


def test_every_artifact_of_it_is_verified(finished):
    """All files reread, nothing wrong, exit code 0: on what the jobs really write, with the presets' score pass."""
    done = run_job("jobs.inspect", str(finished[0]), "--verify")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing wrong" in done.stdout


def test_run_again_it_finds_its_finished_artifacts(finished):
    """The same command ends in seconds, with the same table."""
    out, first, _ = finished
    started = time.monotonic()
    again = run_job("jobs.pipeline", "--preset", "tiny", "--out", str(out))

    assert again.returncode == 0, again.stderr
    assert f"pipeline: {out} is finished, reused" in again.stderr
    # The line with the command for MLflow names the program by its path, which a job's working directory changes.
    lines = {line for line in again.stdout.splitlines() if "mlflow ui" not in line}
    assert any("easycore" in line for line in lines)
    assert lines <= set(first.stdout.splitlines())
    assert time.monotonic() - started < 60


@pytest.fixture
def sweep_restored(finished, tmp_path):
    """The pipeline's folder, whose sweep is afterwards as it was: other tests read it too."""
    out = finished[0]
    shutil.copytree(out / "sweep", tmp_path / "sweep")
    yield out
    shutil.rmtree(out / "sweep")
    shutil.copytree(tmp_path / "sweep", out / "sweep")


@pytest.mark.soak
def test_a_sweep_with_a_lost_trial_runs_only_that_one(sweep_restored, ray_session):
    """Finished trials are recognised by their artifacts; only what is missing is trained, to the same result."""
    import ray

    out = sweep_restored
    evaluation = out / "sweep" / "trials" / "easycore_f0.5_standard_s0" / "evaluation" / "manifest.json"
    before = json.loads(evaluation.read_text())["fingerprint"]
    summary = (out / "sweep" / "summary.json").read_text()
    evaluation.unlink()
    (out / "sweep" / "manifest.json").unlink()
    again = run_job("jobs.sweep", "--preset", "tiny", "--dataset", str(out / "dataset"),
                    "--scores", str(out / "scores"), "--out", str(out / "sweep"),
                    RAY_ADDRESS=ray.get_runtime_context().gcs_address)  # fmt: skip

    assert again.returncode == 0, again.stderr
    assert "3 of 4 trials are finished already" in again.stderr
    assert json.loads(evaluation.read_text())["fingerprint"] == before
    assert json.loads((out / "sweep" / "summary.json").read_text())["rows"] == json.loads(summary)["rows"]


def _submit(command, environment, seconds=120):
    """Submit and follow a job; the head answers before its agent can take jobs, and says so."""
    deadline = time.monotonic() + seconds
    while True:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=700, check=False
        )
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            return done
        time.sleep(2)


def _free_ports(count):
    import socket

    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _short_folder():
    import tempfile

    # Unix socket paths are limited to some 100 characters, pytest's folders are too deep.
    return tempfile.mkdtemp(prefix="ej", dir="/tmp")


def _wait_for(url, process, seconds=120):
    deadline = time.monotonic() + seconds
    while True:
        assert process.poll() is None, "the head ended early"
        assert time.monotonic() < deadline, f"{url} did not answer"
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.5)


def _end_group(process):
    """End the head and all its processes: the group this test started."""
    import signal

    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
