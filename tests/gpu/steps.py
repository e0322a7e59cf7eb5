"""Parts of the GPU suite in this process: steps that do not wait, their rates, scores, attacks."""

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from easycore_ray.core.attacks import pgd20
from easycore_ray.core.gradients import GraphedGradients, compute_gradients
from easycore_ray.core.loop import make_optimizer, prepare_inputs, train_epoch
from easycore_ray.core.models import compiled
from easycore_ray.core.passes import score_epoch
from easycore_ray.evaluation.autoattack import autoattack
from tests.benchmarks.bench_trades import _official
from tests.gpu.setup import Row, Setup, plan_of, row, seconds_of, watched

_OBJECTIVES = (
    ("standard", "linf", True, "fp32"), ("standard", "linf", False, "bf16"), ("trades", "linf", False, "fp32"),
    ("trades", "l2", False, "bf16"), ("trades", "linf", True, "fp32"), ("pgd", "linf", False, "fp32"),
    ("pgd", "l2", False, "fp32"),
)  # fmt: skip
"""Training, norm, whether scores are fused, precision."""


def no_step_waits(setup: Setup) -> Iterator[Row]:
    """(a) Steps of every objective, plain and graphed, while torch makes waiting for the device an error."""
    batches = setup.batches(setup.choose(40, 5), setup.choose(64, 8))
    torch.backends.cudnn.deterministic = True
    for training, norm, scores, precision in _OBJECTIVES:
        plan = plan_of(training, norm=norm, precision=precision, attack_steps=2, fold=precision == "bf16",
                       clean_forwards=training == "pgd", crop_reflect=norm == "l2",
                       input_space="normalised" if scores else "pixel")  # fmt: skip
        what, trained = f"{training} {norm} {precision}{' fused' if scores else ''}", []
        for how, gradients in _ways(setup):
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = setup.network()
            try:
                done = train_epoch(model, make_optimizer(model, plan), watched(batches, setup), plan, epoch=1, step=0,
                                   record_scores=scores, gradients=gradients)  # fmt: skip
                yield row(f"{what}, {how}", done.steps, "steps", not getattr(gradients, "message", ""))
            except RuntimeError as error:
                yield row(f"{what}, {how}", str(error).splitlines()[0][:100], passed=False)
            trained.append(list(model.state_dict().values()))
        if len(trained) == 2:
            differ = sum(not torch.equal(mine, other) for mine, other in zip(*trained, strict=True))
            yield row(f"{what}, tensors that differ with a graph", differ, passed=differ == 0)
    yield from _unrecordable(setup, batches)


def _ways(setup: Setup) -> list[tuple[str, Any]]:
    graphed = [("graphed", GraphedGradients())] if setup.device.type == "cuda" else []
    return [("plain", compute_gradients), *graphed]


class _Asking(nn.Module):
    """A network that asks the device for a number, and draws others."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.dropout = model, nn.Dropout(0.1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of the network."""
        logits: Tensor = self.model(self.dropout(inputs))
        return logits if float(inputs.sum()) > -1 else -logits


def _unrecordable(setup: Setup, batches: list[Any]) -> Iterator[Row]:
    if setup.device.type == "cpu":
        return
    model, plan, gradients = _Asking(setup.network()), plan_of(attack_steps=2), GraphedGradients()
    try:
        for epoch in (1, 2):
            train_epoch(model, make_optimizer(model, plan), batches[:5], plan, epoch=epoch, step=0, gradients=gradients)
        yield row("a network that waits", gradients.message, passed=bool(gradients.message))
    except RuntimeError as error:
        yield row("a network that waits", str(error).splitlines()[0][:100], passed=False)


def trades_rates(setup: Setup) -> Iterator[Row]:
    """(c) TRADES against the cost of the official algorithm, and memory."""
    official: dict[int, float] = {}
    variants: list[tuple[str, dict[str, Any], str]] = [
        ("official", {}, ""), ("fp32", {}, ""), ("bf16", {"precision": "bf16", "fold": True}, ""),
        ("fp32 graphed", {}, "graphed"), ("bf16 graphed", {"precision": "bf16", "fold": True}, "graphed"),
        ("bf16 compiled graphed", {"precision": "bf16"}, "compiled graphed"),
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
    torch.compiler.reset()
    trained = compiled(model, setup.device) if "compiled" in mode else model
    plan = plan_of("trades", **changes)
    optimizer = make_optimizer(model, plan)
    gradients = GraphedGradients() if "graphed" in mode else compute_gradients
    return lambda: train_epoch(trained, optimizer, batches, plan, epoch=1, step=0, gradients=gradients)


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
