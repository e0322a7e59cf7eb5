"""What Ray costs: epochs 2..E of a job against the same loop in bare PyTorch, start-up, memory.

    python tests/benchmarks/bench_job.py --dataset data/cifar10 [--job scores|standard|trades] [--images 4000]
        [--epochs 5] [--workers 1] [--precision bf16]

The bare loop is this process: the same model, batches, threads and images in memory, validation included, no Ray.
It runs before and after the job, so that a drifting machine shows. Two figures of the job: its epochs by their own
clock (training, scores, validation), and wall time from one epoch's end to the next as MLflow has it, which holds
the commit of checkpoint and score table as well. Start-up is the job's wall time less its epochs.
"""

import argparse
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import mlflow
import torch

from easycore_ray import score, select, train
from easycore_ray.config.stages import ScoreConfig, TrainConfig
from easycore_ray.core.loop import make_optimizer, train_epoch
from easycore_ray.core.models import build_model
from easycore_ray.core.passes import score_epoch, validate
from easycore_ray.data.dataset import open_dataset
from easycore_ray.data.samples import read_split
from easycore_ray.engine.loader import MemoryLoader
from easycore_ray.engine.segments import Segments
from easycore_ray.scoring.score import make_scoring_fit as make_scoring_fit
from easycore_ray.training.train import make_training_fit as make_training_fit


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True, help="folder of a prepared dataset")
    parser.add_argument("--job", choices=("scores", "standard", "trades"), default="scores", help="what is trained")
    parser.add_argument("--images", type=int, default=4000, help="images to train on")
    parser.add_argument("--epochs", type=int, default=5, help="epochs; the first is not counted")
    parser.add_argument("--workers", type=int, default=1, help="Ray Train workers")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of each worker, and of the bare loop; by "
                        "default 2 shared by the workers")  # fmt: skip
    parser.add_argument("--model", default="resnet18", help="network")
    parser.add_argument("--width", type=int, default=8, help="its width")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of training")
    options = parser.parse_args()
    threads = options.threads or 2 // options.workers or 1

    with tempfile.TemporaryDirectory() as folder:
        dataset = open_dataset(options.dataset)
        fraction = options.images / dataset.num_rows("train")
        coreset = select(dataset=dataset.path, method="random", fraction=fraction, out=f"{folder}/coreset")
        store = f"sqlite:///{folder}/mlflow.db"
        shared: dict[str, Any] = dict(
            dataset=dataset.path, coreset=coreset.path, out=f"{folder}/out", model=options.model, width=options.width,
            epochs=options.epochs, num_workers=options.workers, threads_per_worker=threads,
            precision=options.precision, tracking_uri=store,
        )  # fmt: skip
        if options.job == "scores":
            config, verb, make_fit = ScoreConfig(**shared, score_pass="eval"), score, make_scoring_fit
        else:
            config, verb, make_fit = TrainConfig(**shared, training=options.job), train, make_training_fit
        fit = make_fit(config, dataset, coreset)
        scoring = options.job == "scores"
        bare = _bare_epochs(fit, dataset, scoring=scoring)
        started = time.perf_counter()
        artifact = verb(config)
        wall = time.perf_counter() - started
        bare += _bare_epochs(fit, dataset, scoring=scoring)
        between = _seconds_between_epochs(store, config.experiment)
        kept = sum(path.stat().st_size for path in Path(folder, "out").rglob("*") if path.is_file())

    parts = ("train_seconds", "score_seconds", "val_seconds")
    job = [sum(entry.get(part, 0.0) for part in parts) for entry in artifact.manifest["epochs"]]
    stall = statistics.median(entry["stall_share"] for entry in artifact.manifest["epochs"][1:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    usual = statistics.median(bare)
    print(f"{options.job}: {options.images:,} images, {options.model} width {options.width}, {options.precision}, "
          f"{options.workers} workers, {threads} threads each")  # fmt: skip
    print(f"bare epoch: {usual:.2f} s [{min(bare):.2f}, {max(bare):.2f}], one process, {threads} threads")
    print(f"job epochs 2..{options.epochs}: {statistics.median(job[1:]):.2f} s, "
          f"{statistics.median(job[1:]) / usual:.3f} × bare; {100 * stall:.2f} % waiting for data")  # fmt: skip
    print(f"from end to end, with commits: {between:.2f} s, {between / usual:.3f} × bare")
    print(f"job start-up and end: {wall - sum(job):.1f} s; driver peak memory {peak:,.0f} MiB; "
          f"files kept {kept / 2**20:.1f} MiB")  # fmt: skip


def _bare_epochs(fit: Any, dataset: Any, *, scoring: bool) -> list[float]:
    """Seconds of epochs 2 to 4 of the same loop without Ray."""
    torch.set_num_threads(fit.threads)
    rows = read_split(dataset, "train", fit.read_sample_ids())
    count = len(rows.labels)
    feed = MemoryLoader(rows, segments=Segments(count, fit.batch_size, count), seed=0)
    held_out = read_split(dataset, "val")
    blocks = list(zip(*(column.split(128) for column in held_out), strict=True))
    model = build_model(**fit.model).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, fit.plan)
    seconds, step = [], 0
    for epoch in range(1, 5):
        started = time.perf_counter()
        step += train_epoch(model, optimizer, feed.shuffled(epoch, 0), fit.plan, epoch=epoch, step=step).steps
        if scoring:
            score_epoch(model, feed.ordered(0))
        validate(model, blocks, eps=fit.plan.eps, norm=fit.plan.norm, steps=fit.val_attack_steps)
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def _seconds_between_epochs(store: str, experiment: str) -> float:
    """Mean wall time from the end of one epoch to that of the next, by the times of the metrics in MLflow."""
    client = mlflow.MlflowClient(tracking_uri=store)
    found = client.get_experiment_by_name(experiment)
    (run,) = client.search_runs([found.experiment_id])
    ends = [metric.timestamp / 1000 for metric in client.get_metric_history(run.info.run_id, "train_seconds")]
    return (max(ends) - min(ends)) / (len(ends) - 1)


if __name__ == "__main__":
    main()
