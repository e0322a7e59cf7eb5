"""Does bf16 training cost robust accuracy? TRADES on handwritten digits in both precisions, over seeds.

    python tests/benchmarks/study_precision.py [--seeds 6] [--epochs 10] [--model cnn] [--width 8]

Each seed trains one model in fp32 and one in bf16, from the same weights, order, augmentation and noise, with
``core.loop.train_epoch`` as every job does (under bf16 the attack's batch norm is folded). Both are attacked with
PGD-20 in fp32. Shown are mean and standard deviation over seeds, and the mean of the paired differences with its
standard error: bf16 loses nothing beyond seed noise if that is within about two of it.
"""

import argparse
import math
import statistics
import time

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from easycore_ray.core.attacks import pgd20
from easycore_ray.core.augment import to_float
from easycore_ray.core.loop import Plan, make_optimizer, train_epoch
from easycore_ray.core.models import build_model
from easycore_ray.core.seeding import generator
from easycore_ray.dataset import Rows
from easycore_ray.feeding import MemoryFeed

EPS, BATCH = 0.125, 64


def main() -> None:
    """Train, attack and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=6, help="seeds, each trained in both precisions")
    parser.add_argument("--epochs", type=int, default=10, help="epochs of each training run")
    parser.add_argument("--model", default="cnn", help="network")
    parser.add_argument("--width", type=int, default=8, help="its width")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    train, test = _digits()
    found: dict[str, list[tuple[float, float]]] = {"fp32": [], "bf16": []}
    started = time.process_time()
    for seed in range(options.seeds):
        for precision, results in found.items():
            results.append(_run(options, precision, seed, train, test))
            clean, robust = results[-1]
            print(f"seed {seed}, {precision}: clean {100 * clean:.1f} %, PGD-20 {100 * robust:.1f} %", flush=True)
    print(f"digits, {options.model} width {options.width}, TRADES (beta 6, eps {EPS}, 5 steps), {options.epochs} "
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


def _digits() -> tuple[Rows, Rows]:
    """Training rows (1,347) and test rows (450) of scikit-learn's digits, as bytes."""
    digits = load_digits()
    images = torch.from_numpy(digits.images * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(digits.target).long()
    split = train_test_split(torch.arange(len(labels)).numpy(), test_size=0.25, random_state=0, stratify=labels.numpy())
    train, test = (Rows(torch.arange(len(rows)), images[rows], labels[rows]) for rows in split)
    return train, test


def _run(options: argparse.Namespace, precision: str, seed: int, train: Rows, test: Rows) -> tuple[float, float]:
    """Clean and PGD-20 accuracy of one training run."""
    model = build_model(options.model, num_classes=10, image_shape=(1, 8, 8), width=options.width, mean=(0.3,),
                        std=(0.37,), seed=seed)  # fmt: skip
    feed = MemoryFeed(train, num_batches=math.ceil(len(train.labels) / BATCH), seed=seed)
    plan = Plan(
        training="trades", beta=6.0, eps=EPS, norm="linf", attack_steps=5, attack_step_size=EPS / 2, lr=0.1,
        momentum=0.9, nesterov=True, weight_decay=5e-4, schedule="cosine", warmup_steps=10,
        total_steps=options.epochs * feed.num_batches, augment="crop", crop_pad=1, precision=precision, seed=seed,
        fold=precision == "bf16",
    )  # fmt: skip
    optimizer, step = make_optimizer(model, plan), 0
    for epoch in range(1, options.epochs + 1):
        step += train_epoch(model, optimizer, feed.shuffled(epoch), plan, epoch=epoch, step=step).steps
    model.eval()
    inputs = to_float(test.images)
    attacked = pgd20(model, inputs, test.labels, eps=EPS, generator=generator("attack", seed))
    with torch.no_grad():
        right = [(model(points).argmax(dim=1) == test.labels).double().mean().item() for points in (inputs, attacked)]
    return right[0], right[1]


def _spread(values: tuple[float, ...]) -> str:
    return f"{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values):.1f}"


if __name__ == "__main__":
    main()
