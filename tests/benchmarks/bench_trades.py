"""TRADES throughput: our training step against the cost of the official algorithm, in one process.

    python tests/benchmarks/bench_trades.py [--width 16] [--images 512] [--threads 2] [--folded] [--compile]

``official`` is what the official code computes in each step, written here from its description: a clean forward
pass beside the adversarial one in each of the 10 attack steps, the clean batch forwarded twice more for the loss,
channels first, float32. ``ours`` is ``core.loop.train_epoch``, as every job runs it. All variants alternate on the
same images, augmentation and threads; medians of the repeats and their spread are shown, so that the ratios hold on
a noisy machine.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from easycore_ray.core.augment import augment, to_float
from easycore_ray.core.loop import make_optimizer, train_epoch
from easycore_ray.core.models import build_model, compiled
from easycore_ray.core.training_plan import TrainingPlan

EPS, STEP_SIZE, STEPS, BETA = 8 / 255, 2 / 255, 10, 6.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet18", help="network")
    parser.add_argument("--width", type=int, default=16, help="its width")
    parser.add_argument("--batch", type=int, default=128, help="images per step")
    parser.add_argument("--images", type=int, default=512, help="images per epoch")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--repeats", type=int, default=5, help="repeats, alternating; one more warms up")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="measure bf16 as well")
    parser.add_argument("--compile", action="store_true", help="measure compiled models as well")
    parser.add_argument("--folded", action="store_true", help="measure fp32 with folded batch norm as well")
    parser.add_argument("--standard", action="store_true", help="measure standard training as well")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall",
                        help="cpu: count CPU time of all threads, where others use the machine too")  # fmt: skip
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    variants = _variants(options)
    seconds, peaks = _alternate(variants, options)
    print(f"{options.model} width {options.width}, batch {options.batch}, {options.images:,} images, {options.threads} "
          f"threads, {options.device}, medians of {options.repeats}, {options.clock} time")  # fmt: skip
    for name, times in seconds.items():
        ratios = [theirs / mine for mine, theirs in zip(times, seconds["official"], strict=True)]
        rate = options.images / statistics.median(times)
        peak = f"   peak {peaks[name] / 2**20:,.0f} MiB" if options.device == "cuda" else ""
        print(f"{name:>18}: {rate:8,.1f} images/s   {statistics.median(ratios):.2f} × official "
              f"[{min(ratios):.2f}, {max(ratios):.2f}]{peak}")  # fmt: skip


def _variants(options: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """What is timed, by name: one epoch each, all from the same weights."""
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (options.images, 3, 32, 32), dtype=torch.uint8, generator=draws)
    labels = torch.randint(0, 10, (options.images,), generator=draws)
    columns = (torch.arange(options.images), images, labels)
    batches = list(zip(*(column.split(options.batch) for column in columns), strict=True))
    model = build_model(options.model, num_classes=10, image_shape=(3, 32, 32), width=options.width,
                        mean=(0.5,) * 3, std=(0.25,) * 3).to(options.device)  # fmt: skip

    def ours(training: str, precision: str, *, fold: bool = False, compiling: bool = False) -> Callable[[], object]:
        mine = copy.deepcopy(model).to(memory_format=torch.channels_last)
        if compiling:
            mine = compiled(mine, torch.device(options.device))
        plan = _plan(training, precision, fold=fold)
        optimizer = make_optimizer(mine, plan)
        return lambda: train_epoch(mine, optimizer, batches, plan, epoch=1, step=0)

    variants = {"official": _official(copy.deepcopy(model), batches), "ours fp32": ours("trades", "fp32")}
    if options.bf16:
        variants["ours bf16"] = ours("trades", "bf16", fold=True)
    if options.folded:
        variants["folded fp32"] = ours("trades", "fp32", fold=True)
    if options.compile:
        variants["compiled fp32"] = ours("trades", "fp32", compiling=True)
        if options.bf16:
            variants["compiled bf16"] = ours("trades", "bf16", compiling=True)
    if options.standard:
        variants["standard fp32"] = ours("standard", "fp32")
    return variants


def _official(model: nn.Module, batches: list[tuple[Tensor, Tensor, Tensor]]) -> Callable[[], None]:
    """An epoch at the official algorithm's cost."""
    device = next(model.parameters()).device
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=2e-4)
    divergence = nn.KLDivLoss(reduction="sum")

    def epoch() -> None:
        for sample_ids, images, labels in batches:
            views = augment(images, sample_ids, "crop-flip", seed=0, epoch=1)
            inputs, labels = to_float(views).to(device), labels.to(device)
            model.eval()
            points = inputs + 0.001 * torch.randn(inputs.shape, device=device)
            for _ in range(STEPS):
                points.requires_grad_()
                loss = divergence(F.log_softmax(model(points), dim=1), F.softmax(model(inputs), dim=1))
                (gradient,) = torch.autograd.grad(loss, [points])
                points = points.detach() + STEP_SIZE * gradient.sign()
                points = torch.min(torch.max(points, inputs - EPS), inputs + EPS).clamp(0.0, 1.0)
            model.train()
            optimizer.zero_grad()
            natural = F.cross_entropy(model(inputs), labels)
            robust = divergence(F.log_softmax(model(points), dim=1), F.softmax(model(inputs), dim=1))
            (natural + BETA / len(labels) * robust).backward()
            optimizer.step()

    return epoch


def _plan(training: str, precision: str, *, fold: bool) -> TrainingPlan:
    return TrainingPlan(
        training=training, beta=BETA, eps=EPS, norm="linf", attack_steps=STEPS, attack_step_size=STEP_SIZE, lr=0.01,
        momentum=0.9, nesterov=False, weight_decay=2e-4, schedule="constant", warmup_steps=0, total_steps=10**9,
        augment="crop-flip", crop_pad=4, precision=precision, seed=0,
        fold=fold,
    )  # fmt: skip


def _alternate(
    variants: dict[str, Callable[[], object]], options: argparse.Namespace
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds and peak bytes (on CUDA) of each, one of each in turn; the first round warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    peaks = dict.fromkeys(variants, 0)
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    cuda = options.device == "cuda"
    for repeat in range(options.repeats + 1):
        for name, work in variants.items():
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            started = clock()
            work()
            if cuda:
                torch.cuda.synchronize()
                peaks[name] = max(peaks[name], torch.cuda.max_memory_allocated())
            if repeat:
                seconds[name].append(clock() - started)
    return seconds, peaks


if __name__ == "__main__":
    main()
