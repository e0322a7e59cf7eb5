"""What Ray costs: epochs 2..E of the scoring job against the same loop in bare PyTorch, start-up, memory.

    python tests/benchmarks/bench_job.py --dataset data/cifar10 [--images 4000] [--epochs 5] [--workers 1]

The bare loop is this process: the same model, batches, threads and images in memory, no Ray. It runs before
and after the job, so that a drifting machine shows. Start-up is the job's wall time less its epochs.
"""

import argparse
import resource
import statistics
import tempfile
import time
from pathlib import Path

import torch

from easycore_ray import score, select
from easycore_ray.config import ScoreConfig
from easycore_ray.core.loop import make_optimizer, score_epoch, train_epoch
from easycore_ray.core.models import build_model
from easycore_ray.coreset import read_sample_ids
from easycore_ray.dataset import open_dataset, read_split
from easycore_ray.feeding import MemoryFeed, batches_per_epoch
from easycore_ray.scoring import make_fit


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True, help="folder of a prepared dataset")
    parser.add_argument("--images", type=int, default=4000, help="images to train on")
    parser.add_argument("--epochs", type=int, default=5, help="epochs; the first is not counted")
    parser.add_argument("--workers", type=int, default=1, help="Ray Train workers")
    parser.add_argument("--model", default="resnet18", help="network")
    parser.add_argument("--width", type=int, default=8, help="its width")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        dataset = open_dataset(options.dataset)
        fraction = options.images / dataset.num_rows("train")
        coreset = select(dataset=dataset.path, method="random", fraction=fraction, out=f"{folder}/coreset")
        config = ScoreConfig(
            dataset=dataset.path, coreset=coreset.path, out=f"{folder}/scores", model=options.model,
            width=options.width,
            epochs=options.epochs, num_workers=options.workers, threads_per_worker=2 // options.workers or 1,
            tracking_uri="none",
        )  # fmt: skip
        bare = _bare_epochs(config, dataset, read_sample_ids(coreset))
        started = time.perf_counter()
        run = score(config)
        wall = time.perf_counter() - started
        bare += _bare_epochs(config, dataset, read_sample_ids(coreset))
        state = Path(folder, "scores", "commits")
        kept = sum(path.stat().st_size for path in state.rglob("*") if path.is_file())

    job = [entry["train_seconds"] + entry["score_seconds"] for entry in run.manifest["epochs"]]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"{options.images:,} images, {options.model} width {options.width}, {options.workers} workers, "
          f"{2 // options.workers or 1} threads each")  # fmt: skip
    print(f"bare epoch (train + exact scores): {statistics.median(bare):.2f} s, one process, "
          f"{config.threads_per_worker} threads")  # fmt: skip
    print(f"job epochs 2..{options.epochs}: {statistics.median(job[1:]):.2f} s, "
          f"{statistics.median(job[1:]) / statistics.median(bare):.3f} × bare")  # fmt: skip
    print(f"job start-up and end: {wall - sum(job):.1f} s; driver peak memory {peak:,.0f} MiB; "
          f"checkpoints kept {kept / 2**20:.1f} MiB")  # fmt: skip


def _bare_epochs(config: ScoreConfig, dataset: object, sample_ids: object) -> list[float]:
    """Seconds of epochs 2.. of the same loop without Ray."""
    fit = make_fit(config, dataset, sample_ids)
    torch.set_num_threads(config.threads_per_worker)
    rows = read_split(dataset, "train", sample_ids)
    feed = MemoryFeed(rows, num_batches=batches_per_epoch(len(rows.labels), 1, config.batch_size), seed=0)
    model = build_model(**fit.model).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, fit.plan)
    seconds, step = [], 0
    for epoch in range(1, 4):
        started = time.perf_counter()
        step += train_epoch(model, optimizer, feed.shuffled(epoch), fit.plan, epoch=epoch, step=step).steps
        score_epoch(model, feed.ordered())
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


if __name__ == "__main__":
    main()
