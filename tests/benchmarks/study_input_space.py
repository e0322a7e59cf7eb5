"""Does AIGN rank alike at pixels and at normalised inputs? Rank correlation and the easiest half, on real images.

    python -m tests.benchmarks.study_input_space --source data/cifar10/train [--images 3000] [--epochs 10] [--width 8]

The recipe is that of the preset csl-mem, shorter and narrower: each epoch is followed by an exact pass in both input
spaces, of the same weights. Images are the first of the Parquet files in the folder (``img`` with ``bytes``, and
``label``). Another seed is the yardstick. Figures are in docs/analysis.md.
"""

import argparse
import io
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from easycore_ray.config.presets import PRESETS
from easycore_ray.core.loop import make_optimizer, train_epoch
from easycore_ray.core.lowest import lowest
from easycore_ray.core.metrics import overlap, spearman
from easycore_ray.core.models import build_model
from easycore_ray.core.passes import score_epoch
from easycore_ray.core.scores import INPUT_SPACES
from easycore_ray.data.samples import Samples
from easycore_ray.engine.plan import make_training_plan
from easycore_ray.runtime.console import say


def read_images(source: Path, count: int) -> Samples:
    """The first images of a folder of Parquet files: ids, uint8 (count, 3, H, W) and labels."""
    images: list[np.ndarray] = []
    labels: list[int] = []
    for path in sorted(source.glob("*.parquet")):
        for row in pq.read_table(path, columns=["img", "label"]).slice(0, count - len(images)).to_pylist():
            pixels = np.asarray(Image.open(io.BytesIO(row["img"]["bytes"])).convert("RGB"))
            images.append(pixels.transpose(2, 0, 1))
            labels.append(row["label"])
    return Samples(torch.arange(len(images)), torch.from_numpy(np.stack(images)), torch.tensor(labels))


def measure_aign(rows: Samples, options: argparse.Namespace, seed: int) -> dict[str, np.ndarray]:
    """AIGN of every row in each input space, float64 (N,), of one training run."""
    recipe = PRESETS["csl-mem"]("unused").replace(seed=seed)
    batch_size, count = recipe.batch_size, len(rows.labels)
    plan = make_training_plan(recipe, total_steps=options.epochs * -(-count // batch_size))
    pixels = rows.images.double().div(255).transpose(0, 1).flatten(1)
    mean, std = pixels.mean(1).tolist(), pixels.std(1).tolist()
    model = build_model(recipe.model, num_classes=10, image_shape=tuple(rows.images.shape[1:]), width=options.width,
                        mean=mean, std=std, seed=seed)  # fmt: skip
    optimizer, draws, step = make_optimizer(model, plan), torch.Generator().manual_seed(seed), 0
    sums = {space: np.zeros(count) for space in INPUT_SPACES}
    for epoch in range(1, options.epochs + 1):
        order = torch.randperm(count, generator=draws).split(batch_size)
        batches = [(rows.sample_ids[part], rows.images[part], rows.labels[part]) for part in order]
        result = train_epoch(model, optimizer, batches, plan, epoch=epoch, step=step)
        step += result.steps
        for space in INPUT_SPACES:
            sums[space] += score_epoch(model, [tuple(rows)], input_space=space)["grad_norm"]
        say(f"seed {seed}, epoch {epoch}: {result.num_correct / count:.1%} right in training")
    say(f"seed {seed}: deviations of the channels {', '.join(f'{value:.4f}' for value in std)}")
    return {space: total / options.epochs for space, total in sums.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, started = read_images(options.source, options.images), time.perf_counter()
    found = {
        (seed, space): aign
        for seed in range(options.seeds)
        for space, aign in measure_aign(rows, options, seed).items()
    }
    ids, half = rows.sample_ids.numpy(), len(rows.labels) // 2
    for one, other in combinations(found, 2):
        easiest = [lowest(found[key], ids, half) for key in (one, other)]
        print(f"{one} {other}: Spearman {spearman(found[one], found[other]):.5f}, easiest half {overlap(*easiest):.2%}")
    print(f"{len(ids):,} images, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
