"""Does bf16 training cost robust accuracy? TRADES in both precisions, over seeds.

    python tests/benchmarks/study_precision.py [--seeds 6] [--epochs 10] [--model cnn] [--width 8]
    python tests/benchmarks/study_precision.py --dataset data/cifar10 --model resnet18 --width 16 [--images 10000]

Each seed trains one model in fp32 and one in bf16, from the same weights, order, augmentation and noise, with
``core.loop.train_epoch`` as every job does (under bf16 the attack's batch norm is folded). Both are attacked with
PGD-20 in fp32. Shown are mean and standard deviation over seeds, and the mean of the paired differences with its
standard error: bf16 loses nothing beyond seed noise if that is within about two of it. Without --dataset:
scikit-learn's handwritten digits.
"""

import argparse
import math
import statistics
import time
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from easycore_ray.core.attacks import pgd20
from easycore_ray.core.loop import make_optimizer, prepare_inputs, train_epoch
from easycore_ray.core.models import build_model
from easycore_ray.core.seeding import generator
from easycore_ray.core.training_plan import TrainingPlan
from easycore_ray.data.dataset import open_dataset
from easycore_ray.data.samples import Samples, read_split
from easycore_ray.engine.loader import MemoryLoader
from easycore_ray.engine.segments import Segments


@dataclass(frozen=True)
class Task:
    """What is learned, and against which attack."""

    name: str
    train: Samples
    test: Samples
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: str
    crop_pad: int
    eps: float
    attack_steps: int


def main() -> None:
    """Train, attack and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", help="folder of a prepared dataset of 32x32 images; digits if left out")
    parser.add_argument("--images", type=int, default=10_000, help="training images drawn from it, the same for all")
    parser.add_argument("--test-images", type=int, default=1_000, help="test images drawn from it, the same for all")
    parser.add_argument("--seeds", type=int, default=6, help="seeds, each trained in both precisions")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of each training run")
    parser.add_argument("--batch", type=int, default=64, help="images per step")
    parser.add_argument("--model", default="cnn", help="network")
    parser.add_argument("--width", type=int, default=8, help="its width")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    task = _digits() if options.dataset is None else _drawn(options)
    found: dict[str, list[tuple[float, float]]] = {"fp32": [], "bf16": []}
    started = time.process_time()
    for seed in range(options.seeds):
        for precision, results in found.items():
            results.append(_run(options, precision, seed, task))
            clean, robust = results[-1]
            print(f"seed {seed}, {precision}: clean {100 * clean:.1f} %, PGD-20 {100 * robust:.1f} %", flush=True)
    print(f"{task.name}, {options.model} width {options.width}, TRADES (beta 6, eps {task.eps:.4f}, "
          f"{task.attack_steps} steps), {options.epochs} "
          f"epochs, {options.seeds} seeds, {time.process_time() - started:.0f} s of CPU")  # fmt: skip
    print(f"{'':>10}  {'clean, %':>12}  {'PGD-20, %':>12}")
    for precision, results in found.items():
        print(f"{precision:>10}  " + "  ".join(f"{_spread(column):>12}" for column in zip(*results, strict=True)))
    pairs = zip(*found.values(), strict=True)
    differences = [tuple(100 * (half - full) for full, half in zip(*pair, strict=True)) for pair in pairs]
    errors = [
        f"{statistics.mean(column):+.2f} ± {statistics.stdev(column) / math.sqrt(len(column)):.2f}"
        for column in zip(*differences, strict=True)
    ]
    print(f"{'difference':>10}  " + "  ".join(f"{text:>12}" for text in errors) + "   (mean ± standard error)")


def _digits() -> Task:
    """Training rows (1,347) and test rows (450) of scikit-learn's digits, as bytes."""
    digits = load_digits()
    images = torch.from_numpy(digits.images * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(digits.target).long()
    split = train_test_split(torch.arange(len(labels)).numpy(), test_size=0.25, random_state=0, stratify=labels.numpy())
    train, test = (Samples(torch.arange(len(rows)), images[rows], labels[rows]) for rows in split)
    return Task("digits", train, test, (0.3,), (0.37,), "crop", 1, 0.125, 5)


def _drawn(options: argparse.Namespace) -> Task:
    """Random rows of a dataset, against the usual attack on 32x32 colour images."""
    dataset = open_dataset(options.dataset)
    train, test = (
        read_split(dataset, split, np.sort(np.random.default_rng(0).permutation(dataset.num_rows(split))[:count]))
        for split, count in (("train", options.images), ("test", options.test_images))
    )
    train = Samples(torch.arange(len(train.labels)), train.images, train.labels)
    name = f"{len(train.labels):,} images of {options.dataset}"
    return Task(name, train, test, (0.5,) * 3, (0.25,) * 3, "crop-flip", 4, 8 / 255, 10)


def _run(options: argparse.Namespace, precision: str, seed: int, task: Task) -> tuple[float, float]:
    """Clean and PGD-20 accuracy of one training run."""
    train, test, eps = task.train, task.test, task.eps
    shape = tuple(train.images.shape[1:])
    model = build_model(options.model, num_classes=10, image_shape=shape, width=options.width, mean=task.mean,
                        std=task.std, seed=seed).to(memory_format=torch.channels_last)  # fmt: skip
    segments = Segments(len(train.labels), options.batch, len(train.labels))
    feed = MemoryLoader(train, segments=segments, seed=seed)
    steps = options.epochs * segments.num_batches
    plan = TrainingPlan(
        training="trades", beta=6.0, eps=eps, norm="linf", attack_steps=task.attack_steps,
        attack_step_size=2.5 * eps / task.attack_steps, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4,
        schedule="cosine", warmup_steps=steps // 10, total_steps=steps, augment=task.augment,
        crop_pad=task.crop_pad, precision=precision, seed=seed, fold=precision == "bf16",
    )  # fmt: skip
    optimizer, step = make_optimizer(model, plan), 0
    for epoch in range(1, options.epochs + 1):
        step += train_epoch(model, optimizer, feed.shuffled(epoch, 0), plan, epoch=epoch, step=step).steps
    model.eval()
    inputs, draws, right = prepare_inputs(test.images, torch.device("cpu")), generator("attack", seed), torch.zeros(2)
    for points, labels in zip(inputs.split(500), test.labels.split(500), strict=True):
        attacked = pgd20(model, points, labels, eps=eps, generator=draws)
        with torch.no_grad():
            right += torch.tensor([float((model(seen).argmax(1) == labels).sum()) for seen in (points, attacked)])
    clean, robust = (right / len(test.labels)).tolist()
    return clean, robust


def _spread(values: tuple[float, ...]) -> str:
    return f"{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values):.1f}"


if __name__ == "__main__":
    main()
