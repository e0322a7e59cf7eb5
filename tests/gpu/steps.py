"""Parts of the GPU suite in this process: steps that do not wait, their rates, scores, attacks."""

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from easycore_ray.core.attacks import pgd20
from easycore_ray.core.loop import make_optimizer, prepare_inputs, train_epoch
from easycore_ray.core.models import compiled
from easycore_ray.core.passes import score_epoch
from easycore_ray.evaluation.autoattack import autoattack
from tests.benchmarks.bench_trades import _official
from tests.gpu.setup import Row, Setup, plan_of, row, seconds_of, watched


def no_step_waits(setup: Setup) -> Iterator[Row]:
    """(a) Steps of every objective while torch makes waiting for the device an error."""
    batches = setup.batches(setup.choose(70, 3), setup.choose(64, 8))
    for training, norm, scores, precision in (
        ("standard", "linf", True, "fp32"), ("standard", "linf", False, "bf16"), ("trades", "linf", False, "fp32"),
        ("trades", "l2", False, "bf16"), ("trades", "linf", True, "fp32"), ("pgd", "linf", False, "fp32"),
        ("pgd", "l2", False, "fp32"),
    ):  # fmt: skip
        model, plan = setup.network(), plan_of(training, norm=norm, precision=precision, attack_steps=2)
        what = f"{training} {norm} {precision}{' fused' if scores else ''}"
        try:
            done = train_epoch(model, make_optimizer(model, plan), watched(batches, setup), plan, epoch=1, step=0,
                               record_scores=scores)  # fmt: skip
            yield row(what, done.steps, "steps", True)
        except RuntimeError as error:
            yield row(what, str(error).splitlines()[0][:100], passed=False)


def trades_rates(setup: Setup) -> Iterator[Row]:
    """(c) TRADES against the cost of the official algorithm, and memory."""
    official: dict[int, float] = {}
    variants: list[tuple[str, dict[str, Any], str]] = [
        ("official", {}, ""), ("fp32", {}, ""), ("bf16", {"precision": "bf16", "fold": True}, ""),
        ("bf16 compiled", {"precision": "bf16"}, "default"), ("fp32 compiled", {}, "default"),
        ("bf16 CUDA graphs", {"precision": "bf16"}, "reduce-overhead"),
    ]  # fmt: skip
    variants = variants if setup.device.type == "cuda" else variants[:3]
    sizes = setup.choose((128, 512), (4,))
    box = setup.seconds / (4 * len(variants) * len(sizes))
    for (name, changes, mode), size in itertools.product(variants, sizes):
        batches = setup.batches(setup.choose(1024 // size, 1), size)
        try:
            if setup.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            work = _trades(setup, batches, name, changes, mode)
            rate = sum(len(ids) for ids, _, _ in batches) / seconds_of(work, setup, box)
        except Exception as error:  # a variant that does not run here is a result
            yield row(f"TRADES {name}, batch {size}", f"{type(error).__name__}: {str(error)[:90]}", passed=False)
            continue
        official.setdefault(size, rate)
        yield row(f"TRADES {name}, batch {size}", round(rate, 1), "images/s")
        yield row(f"TRADES {name}, batch {size}", round(rate / official[size], 2), "x official")
        if setup.device.type == "cuda":
            yield row(f"TRADES {name}, batch {size}", round(torch.cuda.max_memory_allocated() / 2**20), "MiB")


def _trades(setup: Setup, batches: list[Any], name: str, changes: dict[str, Any], mode: str) -> Callable[[], object]:
    model = setup.network()
    if name == "official":
        return _official(model.to(memory_format=torch.contiguous_format), batches)
    trained: nn.Module = model
    if mode == "default":
        trained = compiled(model, setup.device)
    elif mode:
        trained = torch.compile(model, mode=mode)  # type: ignore[assignment]
    plan = plan_of("trades", **changes)
    optimizer = make_optimizer(model, plan)
    return lambda: train_epoch(trained, optimizer, batches, plan, epoch=1, step=0)


def scoring_rates(setup: Setup) -> Iterator[Row]:
    """(d) A fused step against a plain one, and the exact pass."""
    batches = setup.batches(setup.choose(32, 2), setup.choose(128, 8))
    count, rates = sum(len(ids) for ids, _, _ in batches), dict[str, float]()
    for name in ("plain", "fused", "exact pass"):
        model, plan = setup.network(), plan_of("standard")
        optimizer = make_optimizer(model, plan)

        def work(name: str = name, model: nn.Module = model, optimizer: Any = optimizer, plan: Any = plan) -> object:
            if name == "exact pass":
                return score_epoch(model, batches)
            return train_epoch(model, optimizer, batches, plan, epoch=1, step=0, record_scores=name == "fused")

        rates[name] = count / seconds_of(work, setup, setup.seconds / 6)
        yield row(f"standard, {name}", round(rates[name], 1), "images/s")
    yield row("fused / plain step, time", round(rates["plain"] / rates["fused"], 3))


def attack_rates(setup: Setup) -> Iterator[Row]:
    """(g) PGD-20 and AutoAttack on a network that has learned a little."""
    model, plan = setup.network(setup.choose("resnet18", "cnn")), plan_of("trades", attack_steps=2)
    batches = setup.batches(setup.choose(40, 1), setup.choose(250, 8))
    train_epoch(model, make_optimizer(model, plan), batches[: setup.choose(20, 1)], plan, epoch=1, step=0)
    model = model.eval()
    images = torch.cat([images for _, images, _ in batches[: setup.choose(4, 1)]])
    inputs = prepare_inputs(images, setup.device)
    with torch.no_grad():
        labels = torch.cat([model(part).argmax(dim=1) for part in inputs.split(250)])

    def attack() -> None:
        for some, truth in zip(inputs.split(250), labels.split(250), strict=True):
            pgd20(model, some, truth, eps=1 / 255, generator=torch.Generator().manual_seed(0))

    yield row("PGD-20, eps 1/255", round(len(labels) / seconds_of(attack, setup, setup.seconds / 5), 1), "images/s")
    some = setup.choose(64, 1)
    # Once, and not warmed up: Square alone takes 5,000 forward passes.
    started = time.perf_counter()
    autoattack(model, inputs[:some], labels[:some], eps=1 / 255, norm="linf", seed=0)
    taken = time.perf_counter() - started
    yield row(f"AutoAttack, eps 1/255, {some} at a time", round(some / taken, 2), "images/s")
