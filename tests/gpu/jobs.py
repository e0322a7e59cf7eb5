"""Parts of the GPU suite that run as jobs: scores and training through Ray, the loader, whole comparisons."""

import itertools
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from easycore_ray import pipeline, score, train
from easycore_ray.config.stages import TrainConfig
from easycore_ray.core.gradients import GraphedGradients, compute_gradients
from easycore_ray.core.loop import make_optimizer, train_epoch
from easycore_ray.core.models import build_model
from easycore_ray.data.samples import read_split
from easycore_ray.engine.loader import MemoryLoader, open_loader
from easycore_ray.engine.segments import Segments
from easycore_ray.experiments.sweep import Sweep
from easycore_ray.runtime.cluster import connect
from easycore_ray.scoring.score_reader import open_table
from easycore_ray.storage.artifact import open_artifact
from easycore_ray.training.train import make_training_fit
from tests.gpu.data import photos, small_images
from tests.gpu.setup import Row, Setup, row


def scores_agree(setup: Setup) -> Iterator[Row]:
    """(b) Exact scores of the same weights through Ray, on one GPU and on the CPU."""
    dataset = small_images(setup.folder / "dataset", train=setup.choose(200, 60), held_out=20)
    found = {}
    for name, gpus in (("gpu", setup.gpus), ("cpu", 0.0)):
        run = score(dataset=dataset.path, out=str(setup.folder / name), model="resnet18", width=setup.choose(16, 4),
                    epochs=1, score_pass="eval", initial_pass=True, num_workers=1, gpus_per_worker=gpus,
                    threads_per_worker=2, cpus_per_worker=1, batch_size=20, tracking_uri="none")  # fmt: skip
        table = open_table(f"{run.path}/table")
        parts = [pq.ParquetFile(f"{table.path}/{part.path}").read() for part in table.of_epoch(0)]
        found[name] = {column: parts[0][column].to_numpy() for column in ("sample_id", "grad_norm", "loss", "el2n")}
    assert (found["gpu"]["sample_id"] == found["cpu"]["sample_id"]).all()
    for column in ("grad_norm", "loss", "el2n"):
        ours, theirs = found["gpu"][column], found["cpu"][column]
        worst = float(np.max(np.abs(ours - theirs) / np.maximum(np.abs(theirs), 1e-6)))
        yield row(f"{column}, GPU against CPU, worst relative difference", f"{worst:.1e}", passed=worst <= 1e-4)


def ray_against_bare(setup: Setup) -> Iterator[Row]:
    """(e) Epochs of a TRADES job on Ray against the same steps without it."""
    dataset = small_images(setup.folder / "dataset", train=setup.choose(10_000, 60), held_out=100)
    epochs = setup.choose(4, 3)
    config = TrainConfig(
        dataset=dataset.path, out=str(setup.folder / "out"), model="resnet18", width=setup.choose(64, 4),
        training="trades", beta=6.0, attack_steps=setup.choose(10, 1), epochs=epochs, precision="bf16",
        batch_size=setup.choose(128, 20), num_workers=1, gpus_per_worker=setup.gpus, tracking_uri="none",
        val_attack_steps=0,
    )  # fmt: skip
    fit = make_training_fit(config, dataset, None)
    bare = _bare_seconds(fit, dataset, setup)
    started = time.perf_counter()
    job = train(config)
    wall = time.perf_counter() - started
    seconds = [entry["train_seconds"] for entry in job.manifest["epochs"]]
    yield row("bare epoch", round(bare, 3), "s")
    yield row("Ray job's epoch", round(statistics.median(seconds[1:]), 3), "s")
    yield row("Ray job against bare PyTorch, time", round(statistics.median(seconds[1:]) / bare, 3))
    yield row("start and end of the job", round(wall - sum(seconds), 1), "s")


def _bare_seconds(fit: Any, dataset: Any, setup: Setup) -> float:
    rows = read_split(dataset, "train")
    count = len(rows.labels)
    feed = MemoryLoader(rows, segments=Segments(count, fit.batch_size, count), seed=0)
    model = setup.network() if not fit.model else _network(fit, setup)
    optimizer, seconds, step = make_optimizer(model, fit.plan), [], 0
    gradients = GraphedGradients() if setup.gpus else compute_gradients
    for epoch in range(1, 4):
        started = time.perf_counter()
        step += train_epoch(model, optimizer, feed.shuffled(epoch, 0), fit.plan, epoch=epoch, step=step,
                            gradients=gradients).steps  # fmt: skip
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def _network(fit: Any, setup: Setup) -> Any:
    import torch

    return build_model(**fit.model).to(setup.device, memory_format=torch.channels_last)


def loader_feeds(setup: Setup) -> Iterator[Row]:
    """(f) JPEG files decoded by Ray Data for a ResNet-50 at 224 × 224 pixels."""
    size = setup.choose(224, 32)
    dataset = photos(setup.folder / "photos", setup.choose(32_000, 40), image_size=size, side=setup.choose(400, 48))
    connect()
    config = TrainConfig(
        dataset=dataset.path, out=str(setup.folder / "out"),
        model=setup.choose("resnet50-imagenet", "resnet18"), width=setup.choose(None, 4), training="standard", epochs=1,
        precision="bf16", batch_size=setup.choose(256, 8), num_workers=1, gpus_per_worker=setup.gpus, cache_gib=0.0,
        augment="imagenet", tracking_uri="none",
    )  # fmt: skip
    fit = make_training_fit(config, dataset, None)
    model = _network(fit, setup)
    optimizer, plan = make_optimizer(model, fit.plan), replace(fit.plan, total_steps=10**9)
    gradients = GraphedGradients() if setup.gpus else compute_gradients

    def train_on(batches: Iterable[Any]) -> tuple[float, float]:
        started = time.perf_counter()
        result = train_epoch(model, optimizer, batches, plan, epoch=1, step=0, gradients=gradients)
        return result.num_rows / (time.perf_counter() - started), result.stall_share

    one = setup.batches(1, config.batch_size, size)
    train_on(one * 5)
    yield row("ResNet-50 at 224, fed from memory", round(train_on(one * 20)[0], 1), "images/s")
    loader = open_loader(fit)
    for epoch in (1, 2, 3):
        started = time.perf_counter()
        batches = loader.shuffled(epoch, 0)
        first = next(batches)
        yield row(f"first batch of epoch {epoch}", round(time.perf_counter() - started, 1), "s")
        started = time.perf_counter()
        if epoch == 2:
            rate = sum(len(batch.labels) for batch in batches) / (time.perf_counter() - started)
            yield row("the loader alone, after its first batch", round(rate, 1), "images/s")
        else:
            rate, waited = train_on(itertools.chain([first], batches))
            yield row(f"ResNet-50 at 224, fed by the loader, epoch {epoch}", round(rate, 1), "images/s")
            yield row(f"time spent waiting for data, epoch {epoch}", round(100 * waited, 1), "%")


def coresets_compare(setup: Setup) -> Iterator[Row]:
    """(h) All data, the easier half and a random half under TRADES."""
    dataset = small_images(setup.folder / "dataset", train=setup.choose(5000, 100), held_out=setup.choose(500, 40))
    sizes: dict[str, Any] = setup.choose(
        {"width": 32, "score_epochs": 4, "train_epochs": 8, "batch_size": 128},
        {"width": 4, "score_epochs": 1, "train_epochs": 1, "batch_size": 20, "attack_steps": 1},
    )
    done = pipeline(
        dataset=dataset.path, out=str(setup.folder / "out"), model="resnet18", method=("easycore", "random"),
        fraction=(0.5,), training=("trades",), beta=(6.0,), seeds=(0,), val_attack_steps=0, num_workers=1,
        gpus_per_worker=setup.gpus, precision="bf16", tracking_uri="none", **sizes,
    )  # fmt: skip
    found = open_artifact(f"{done.path}/sweep", "sweep")
    for entry in Sweep(found.path, found.manifest).rows():
        what = f"TRADES on {entry['method']} {entry['fraction']:g}"
        yield row(f"{what}, clean", round(100 * entry["clean_accuracy_mean"], 1), "%")
        yield row(f"{what}, PGD-20 at 8/255", round(100 * entry["robust_accuracy_pgd20_mean"], 1), "%")
