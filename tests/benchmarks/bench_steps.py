"""What scoring costs against a plain training epoch, what averaged weights and others cost against a TRADES epoch.

    python tests/benchmarks/bench_steps.py [--of scoring] [--images 4096] [--width 16] [--precision fp32] [--repeats 7]

All variants alternate in one process on the same images and threads; medians of the repeats are shown with
their spread, so that the ratios hold on a noisy machine.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from easycore_ray.core.averaging import AveragedWeights
from easycore_ray.core.loop import make_optimizer, train_epoch
from easycore_ray.core.models import build_model
from easycore_ray.core.passes import ScoreAttack, score_epoch
from easycore_ray.core.training_plan import TrainingPlan


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--of", choices=("scoring", "trades", "attacked"), default="scoring", help="what is compared")
    parser.add_argument("--images", type=int, default=4096, help="images per epoch")
    parser.add_argument("--width", type=int, default=16, help="width of the ResNet-18")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="training arithmetic")
    parser.add_argument("--repeats", type=int, default=7, help="repeats, alternating")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (options.images, 3, 32, 32), dtype=torch.uint8, generator=draws)
    labels = torch.randint(0, 10, (options.images,), generator=draws)
    batches = list(zip(torch.arange(options.images).split(128), images.split(128), labels.split(128), strict=True))
    model = build_model("resnet18", num_classes=10, image_shape=(3, 32, 32), width=options.width,
                        mean=(0.5,) * 3, std=(0.25,) * 3)  # fmt: skip
    model = model.to(options.device, memory_format=torch.channels_last)
    plain = _plan(options.precision)
    trades = replace(plain, training="trades", beta=6.0, eps=8 / 255, attack_steps=10, attack_step_size=2 / 255)
    optimizer = make_optimizer(model, plain)

    def epoch(plan: TrainingPlan, **more: Any) -> None:
        train_epoch(model, optimizer, batches, plan, epoch=1, step=0, **more)

    variants: dict[str, Callable[[], object]] = {
        "plain": lambda: epoch(plain),
        "fused": lambda: epoch(plain, record_scores=True),
        "eval pass": lambda: score_epoch(model, batches),
    }
    if options.of == "trades":
        averaged, nfgsm = AveragedWeights(model, 0.995, 0), replace(trades, training="nfgsm", attack_step_size=8 / 255)
        variants = {
            "trades": lambda: epoch(trades),
            "averaged": lambda: epoch(trades, on_step=averaged.update),
            "awp": lambda: epoch(replace(trades, awp=0.005)),
            "mart": lambda: epoch(replace(trades, training="mart")),
            "pgd": lambda: epoch(replace(trades, training="pgd")),
            "nfgsm": lambda: epoch(nfgsm),
            "standard": lambda: epoch(plain),
        }
    if options.of == "attacked":
        attack = ScoreAttack.of_plan(trades, 1)
        variants = {
            "plain": lambda: epoch(plain),
            "eval pass": lambda: score_epoch(model, batches),
            "trades": lambda: epoch(trades),
            "attacked eval pass": lambda: score_epoch(model, batches, attack=attack),
        }
    seconds = _alternate(variants, options.repeats, options.device)
    print(f"ResNet-18 width {options.width}, {options.images:,} images, {options.precision}, "
          f"{options.threads} threads, {options.device}, medians of {options.repeats}")  # fmt: skip
    first = next(iter(seconds))
    for name, times in seconds.items():
        ratios = [mine / theirs for mine, theirs in zip(times, seconds[first], strict=True)]
        rate = options.images / statistics.median(times)
        print(f"{name:>18}: {rate:8,.0f} images/s   {statistics.median(ratios):.3f} × {first} "
              f"[{min(ratios):.3f}, {max(ratios):.3f}]")  # fmt: skip


def _plan(precision: str) -> TrainingPlan:
    return TrainingPlan(
        training="standard", beta=0.0, eps=0.0, norm="linf", attack_steps=1, attack_step_size=0.0, lr=0.01,
        momentum=0.9, nesterov=True, weight_decay=5e-4, schedule="constant", warmup_steps=0, total_steps=10**9,
        augment="crop-flip", crop_pad=4, precision=precision, seed=0,
    )  # fmt: skip


def _alternate(variants: dict[str, Callable[[], object]], repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds of each variant, one of each in turn; the first round warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(repeats + 1):
        for name, work in variants.items():
            started = time.perf_counter()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    main()
