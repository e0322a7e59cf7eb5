"""The whole pipeline on ``s3://``, from a source in the store to the report, its driver killed on the way."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

pytest.importorskip("moto")

from sklearn.datasets import load_digits

from easycore_ray.config.base import from_dict
from easycore_ray.config.stages import ScoreConfig
from easycore_ray.data.dataset import open_dataset
from easycore_ray.data.samples import read_split
from easycore_ray.engine.run import fit_here
from easycore_ray.engine.worker_group import LocalContext
from easycore_ray.scoring.score import ScoreRecorder, make_scoring_fit
from easycore_ray.scoring.score_reader import open_table
from easycore_ray.scoring.score_table import fingerprint, id_checksum, read_part_lists
from easycore_ray.storage import artifact, paths
from tests.object_store import CREDENTIALS, environment, running_store

ROOT = Path(__file__).parents[2]
BUCKET = "bucket-of-tests"
HOME = f"s3://{BUCKET}/project"
EPOCHS = 4
PIPELINE = [
    *("--preset", "tiny", "--source", f"{HOME}/images", "--out", f"{HOME}/run", "--score-epochs", str(EPOCHS)),
    *("--training", "standard", "--num-workers", "1", "--threads-per-worker", "1"),
]
pytestmark = [pytest.mark.ray, pytest.mark.soak, pytest.mark.timeout(600)]

# The pipeline as its job runs it, then the jobs it has no need of, on the same Ray.
_JOBS = """
import sys
from easycore_ray import evaluate, reduce, report, select, train
from easycore_ray.config.experiments import PipelineConfig
from easycore_ray.cli.command import run
from easycore_ray.cli.results import run_pipeline

if __name__ == "__main__":
    home, *arguments = sys.argv[1:]
    run(PipelineConfig, run_pipeline, arguments)
    inputs = dict(dataset=f"{home}/run/dataset")
    core = select(scores=f"{home}/run/scores", method="hardest", fraction=0.3, out=f"{home}/more/coreset", **inputs)
    model = train(coreset=core.path, out=f"{home}/more/model", model="cnn", width=4, steps=3, num_workers=1, **inputs)
    evaluate(checkpoint=model.path, out=f"{home}/more/evaluation", num_eval_samples=20, num_workers=1, **inputs)
    reduce(scores=f"{home}/run/scores", out=f"{home}/more/hardness")
    report(sweep=f"{home}/run/sweep", out=f"{home}/more/report", title="again")
"""


@pytest.fixture(scope="module")
def store():
    with running_store(BUCKET) as running:
        yield running


@pytest.fixture(scope="module")
def surroundings(store, tmp_path_factory):
    """This process's and its children's environment: the store, and a home without settings of this machine."""
    ours = environment(store.url) | {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ours.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def finished(store, surroundings, tmp_path_factory):
    """What a pipeline printed that was run again after its driver was killed, and the objects there at the kill."""
    digits = load_digits()
    for number in range(200):
        buffer = io.BytesIO()
        Image.fromarray((digits.images[number] * 15).astype("uint8")).save(buffer, "PNG")
        split = "train" if number < 160 else "test"
        paths.write_bytes(f"{HOME}/images/{split}/{digits.target[number]}/{number}.png", buffer.getvalue())
    script = tmp_path_factory.mktemp("jobs") / "all_jobs.py"
    script.write_text(_JOBS)
    # Short, because the paths of Unix sockets are limited to some 100 characters.
    folder = Path(tempfile.mkdtemp(prefix="ec", dir="/tmp"))
    command = [sys.executable, str(script), HOME, *PIPELINE]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(folder)}
    log = script.with_suffix(".log")
    with log.open("w") as stream:
        driver = subprocess.Popen(command, env=environ, start_new_session=True, stdout=stream, stderr=stream)
        deadline = time.monotonic() + 240
        while not committed(store, 1):
            assert driver.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    at_kill = store.keys(BUCKET)
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    yield done, at_kill
    shutil.rmtree(folder, ignore_errors=True)


def committed(store, epoch):
    """True if Ray Train's own record names the commit of an epoch."""
    keys = store.keys(BUCKET, "project/run/scores/commits/")
    records = [key for key in keys if key.endswith("checkpoint_manager_snapshot.json")]
    contents = [store.client.get_object(Bucket=BUCKET, Key=key)["Body"].read().decode() for key in records]
    return any(f"epoch-{epoch:05d}-" in content for content in contents)


def parts(keys, epoch):
    """Keys of an epoch's parts."""
    return [key for key in keys if f"/run/scores/table/epoch={epoch:05d}/" in key]


def test_every_artifact_is_finished_in_the_store(finished, store):
    """Every stage's folder has its manifest; the report is there, the database is not."""
    done, _ = finished
    kinds = {
        "run/dataset": "dataset", "run/scores": "scoring_run", "run/scores/table": "score_table",
        "run/scores/hardness": "hardness_table", "run/sweep": "sweep", "run/report": "report", "run": "pipeline",
        "more/coreset": "coreset", "more/model": "checkpoint", "more/evaluation": "evaluation",
        "more/hardness": "hardness_table", "more/report": "report",
    }  # fmt: skip
    found = {name: artifact.open_artifact(f"{HOME}/{name}").kind for name in kinds}

    assert found == kinds
    assert paths.read_bytes(f"{HOME}/run/report.html").lstrip().lower().startswith(b"<!doctype html")
    assert f"report: {HOME}/run/report.html" in done.stdout
    assert open_dataset(f"{HOME}/run/dataset").manifest["counts"]["test"] == 40


def test_tracking_is_off_and_says_so(finished):
    """One line at the start, and none at the end that names a database."""
    done, _ = finished

    assert f"tracking is off: {HOME}/run cannot hold a database; pass --tracking-uri" in done.stderr
    assert "mlflow" not in done.stdout


def test_a_killed_driver_goes_on_from_its_commit_to_the_same_table(finished, store, tmp_path):
    """Epoch 1 is not scored again, and the table equals, bit for bit, one made in this process without Ray."""
    _, at_kill = finished
    assert parts(at_kill, 1)
    assert not any(key.endswith("scores/table/manifest.json") for key in at_kill), "the kill came too late"
    assert [parts(store.keys(BUCKET), epoch) for epoch in (0, 1)] == [parts(at_kill, epoch) for epoch in (0, 1)]

    scores = artifact.open_artifact(f"{HOME}/run/scores", "scoring_run")
    config = from_dict(ScoreConfig, scores.manifest["config"])
    dataset = open_dataset(f"{HOME}/run/dataset")
    rows = read_split(dataset, "train")
    fit = make_scoring_fit(config, dataset, None)
    each = ScoreRecorder(table=str(tmp_path), lists=str(tmp_path), epochs=EPOCHS, every=config.score_every,
                          score_pass=config.score_pass,
                          initial_pass=config.initial_pass,
                          num_samples=fit.num_rows, checksum=id_checksum(rows.sample_ids.numpy()))  # fmt: skip
    threads = torch.get_num_threads()
    try:
        state = fit_here(fit, rows, LocalContext(), each)
    finally:
        torch.set_num_threads(threads)
    expected = fingerprint(read_part_lists(str(tmp_path), state.carried["part_lists"]))

    assert open_table(f"{HOME}/run/scores/table").artifact.fingerprint == expected


def test_no_object_holds_credentials(finished, store):
    """Neither manifests nor what Ray keeps beside them."""
    for key in store.keys(BUCKET):
        content = store.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        assert CREDENTIALS["AWS_SECRET_ACCESS_KEY"].encode() not in content, key
    assert json.loads(paths.read_bytes(f"{HOME}/run/manifest.json"))["config"]["tracking_uri"] == "none"
