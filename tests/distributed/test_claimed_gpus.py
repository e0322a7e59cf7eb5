"""GPUs that a node claims and does not have, and GPUs in fractions: a sentence, wherever they are asked for."""

import os
import subprocess
import sys

import pytest
import torch

from easycore_ray import score
from easycore_ray.storage.errors import EasyCoreError
from tests.artifacts import make_checkpoint, make_image_dataset, make_scoring_run

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

LABELS = [number % 3 for number in range(60)]
# A Ray that was told of two GPUs, as with "ray start --num-gpus 2".
COMMANDS = """
import sys
import ray
from easycore_ray.cli.command import main

ray.init(address="local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False,
         object_store_memory=100_000_000)
root = sys.argv[1]
small = ["--gpus-per-worker", "1", "--cpus-per-worker", "1"]
net = ["--model", "cnn", "--width", "4", "--augment", "none", "--batch-size", "12", "--tracking-uri", "none"]
data = ["--dataset", f"{root}/dataset"]
for line in (
    ["score", *data, "--out", f"{root}/score", "--epochs", "1", *net, *small],
    ["evaluate", *data, "--checkpoint", f"{root}/model", "--out", f"{root}/evaluation", *small],
    ["sweep", *data, "--scores", f"{root}/scores", "--out", f"{root}/sweep", "--method", "easycore", "--fraction",
     "0.5", "--training", "standard", "--seeds", "0", "--train-epochs", "1", *net, *small],
):
    if line[0] not in sys.argv[2:]:
        continue
    try:
        code = main(line)
    except SystemExit as ended:
        code = ended.code
    print(f"{line[0]} gave {code}", file=sys.stderr, flush=True)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("verbs", [("evaluate",), pytest.param(("score", "sweep"), marks=pytest.mark.soak)])
def test_a_node_without_the_gpus_it_claims_is_named(tmp_path, verbs):
    """By training workers, by evaluation and by trials, at once and once; torch would say a dozen other things."""
    dataset = make_image_dataset(tmp_path / "dataset", LABELS, LABELS)
    make_checkpoint(tmp_path / "model", dataset.path)
    make_scoring_run(tmp_path / "scores", dataset, LABELS)
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_TMPDIR")}
    command = [sys.executable, "-c", COMMANDS, str(tmp_path), *verbs]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr

    lines = done.stderr.splitlines()
    said = [line for line in lines if "was started with GPUs, but torch" in line]
    assert [line.partition(" gave ")[0] for line in lines if line.endswith(" gave 2")] == [*verbs]
    assert len(said) == len(verbs), done.stderr
    assert all(line.endswith("or pass --gpus-per-worker 0") or "finished trials are kept" in line for line in said)
    assert "Traceback" not in done.stderr


def test_workers_that_would_share_a_gpu_are_refused(ray_session, settings, tmp_path):
    """Before any work."""
    with pytest.raises(EasyCoreError, match=r"2 workers with 0\.5 GPUs each would share one, over which NCCL"):
        score(**settings(tmp_path / "run", gpus_per_worker=0.5, num_workers=2))
    assert not (tmp_path / "run").exists()
    with pytest.raises(EasyCoreError, match=r"must be a whole number or below 1, got 1\.5; pass 2"):
        score(**settings(tmp_path / "run", gpus_per_worker=1.5))
