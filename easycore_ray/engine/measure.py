"""Dry runs that measure: a few real steps in this process, and what the cluster has, within a minute."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from easycore_ray.config.base import ComputeConfig
from easycore_ray.config.fields import ADVERSARIAL
from easycore_ray.config.work_plan import WorkPlan
from easycore_ray.core.attacks import fgsm, pgd
from easycore_ray.core.gradients import GraphedGradients, compute_gradients
from easycore_ray.core.loop import make_optimizer, prepare_inputs, train_epoch
from easycore_ray.core.passes import ScoreAttack, score_epoch
from easycore_ray.core.seeding import generator
from easycore_ray.core.training_plan import TrainingPlan
from easycore_ray.data.dataset import Dataset
from easycore_ray.data.samples import Samples, read_split
from easycore_ray.engine.plan import build, make_training_plan, model_arguments
from easycore_ray.engine.throughput import Rates, Work, device_of, estimates_of
from easycore_ray.runtime import cluster
from easycore_ray.storage.errors import EasyCoreError

# Of the 60 s a dry run may take: the rest is for Ray, torch and the data.
_SECONDS = 24.0
# No single step may take longer than this; slower networks are measured with smaller batches.
_STEP_SECONDS = 4.0
_PROBE_ROWS = 8

Step = Callable[[Samples], object]


def measure_plan(
    plan: WorkPlan, config: Any, dataset: Dataset, works: list[Work], model: nn.Module | None = None
) -> WorkPlan:
    """The plan with figures measured on the configured data, and warnings of what the cluster lacks or leaves idle.

    Args:
        plan: with assumed figures.
        config: recipe, objective and resources; of an evaluation the resources and the threat.
        dataset: whose images are taken.
        works: what is estimated.
        model: the network of an evaluation; otherwise an untrained one of the recipe. PGD never stops early here, as
            it does for images that are fooled, so that its figures are upper bounds of the time.

    Raises:
        EasyCoreError: no cluster answers, or the network cannot be built.
    """
    warnings = ask_cluster(config)
    device = device_of(config.gpus_per_worker)
    if device == "cuda" and not torch.cuda.is_available():
        warnings.append("this process has no GPU, so nothing was measured; run it on a node that has one")
        return plan.replace(warnings=(*plan.warnings, *warnings))
    rates = measure_rates(config, dataset, works, device, model)
    workers = plan.estimates[0].workers if plan.estimates else config.max_workers
    estimates = estimates_of(works, rates, workers)
    return plan.replace(estimates=estimates, warnings=(*plan.warnings, *warnings), measured=True)


def ask_cluster(config: ComputeConfig) -> list[str]:
    """What is idle or missing on this cluster."""
    cluster.connect()
    return idle_or_missing(config, cluster.capacity(config.most))


def idle_or_missing(config: ComputeConfig, there: cluster.Capacity) -> list[str]:
    """The same of a cluster that has, or may come to have, so much."""
    gpus, warnings = there.ever.get("GPU", 0.0), []
    if gpus and not config.gpus_per_worker:
        warnings.append(f"the cluster has {gpus:g} GPUs that would stay idle; pass --gpus-per-worker 1 to use them")
    cpus = cluster.cpus_per_worker(config.max_workers, config.cpus_per_worker, config.gpus_per_worker, there=there)
    demand = cluster.Demand(config.max_workers, cpus, config.gpus_per_worker, most=config.most)
    try:
        cluster.check_demand(demand, there)
    except EasyCoreError as error:
        warnings.append(f"the run would be refused: {error}")
    return warnings


def measure_rates(
    config: Any,
    dataset: Dataset,
    works: list[Work],
    device: str,
    model: nn.Module | None = None,
    seconds: float | None = None,
) -> Rates:
    """Images per second of this process for each kind of work, measured for so many seconds in all, by default 24.

    On a worker's threads. AutoAttack, which takes minutes, is not measured.
    """
    seconds = _SECONDS if seconds is None else seconds
    kinds = list({(work.task, work.attack_steps): work for work in works if work.images}.values())
    batch_size = getattr(config, "batch_size", 128)
    batch_size = max(1, batch_size // config.max_workers) if model is None else batch_size
    rows = _first_rows(dataset, batch_size)
    network = model if model is not None else build(model_arguments(config, dataset))
    network = network.to(device).to(memory_format=torch.channels_last)
    found: dict[tuple[str, int, bool], tuple[float | None, str]] = {}
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        for work in kinds:
            if work.task == "autoattack":
                found[work.kind] = (None, "not measured: AutoAttack takes minutes")
                continue
            rate, size = _images_per_second(_step_of(work, config, network, device), rows, device, seconds / len(kinds))
            where = "a GPU" if device == "cuda" else f"a CPU with {config.threads} threads"
            found[work.kind] = (rate, f"measured in this process: {where}, batch {size}")
    finally:
        torch.set_num_threads(before)
    return lambda work: found[work.kind]


def _first_rows(dataset: Dataset, count: int) -> Samples:
    ids = dataset.index("train", ["sample_id"])["sample_id"].to_numpy()[: max(count, _PROBE_ROWS)]
    return read_split(dataset, "train", ids)


def _step_of(work: Work, config: Any, model: nn.Module, device: str) -> Step:
    """One batch of a kind of work."""
    if work.task == "exact":
        training = config.training if work.attack_steps else "standard"
        attack = ScoreAttack.of_plan(_loop_plan(replace(work, task=training), config), 1)
        return lambda rows: score_epoch(model, [rows], attack=attack)
    if work.task in ("validation", "clean", "fgsm", "pgd20"):
        return lambda rows: _attack(work, config, model, rows, torch.device(device))
    plan = _loop_plan(work, config)
    optimizer = make_optimizer(model, plan)
    fused = work.task == "fused"
    graphed = device == "cuda" and config.cuda_graphs and getattr(config, "pruning", "none") == "none"
    gradients = GraphedGradients() if graphed else compute_gradients
    return lambda rows: train_epoch(model, optimizer, [rows], plan, epoch=1, step=0, record_scores=fused,
                                    gradients=gradients)  # fmt: skip


def _loop_plan(work: Work, config: Any) -> TrainingPlan:
    """The loop's plan for a kind of training; never reaches its end."""
    threat = {}
    if work.task in ADVERSARIAL:
        threat = {
            "training": work.task, "beta": config.beta, "eps": config.eps, "norm": config.norm,
            "attack_steps": work.attack_steps, "attack_step_size": config.attack_step_size,
            "awp": config.awp if work.perturbs else 0.0, "clean_forwards": getattr(config, "clean_forwards", False),
        }  # fmt: skip
    # A learning rate of nearly 0: the network stays as it is, whatever is measured next.
    return replace(make_training_plan(config, total_steps=10**6, **threat), lr=1e-12)


def _attack(work: Work, config: Any, model: nn.Module, rows: Samples, device: torch.device) -> None:
    """Classify a batch and attack it."""
    inputs, labels = prepare_inputs(rows.images, device), rows.labels.to(device)
    model.eval()
    with torch.no_grad():
        model(inputs)
    steps = {"pgd20": 20, "validation": work.attack_steps}.get(work.task, 0)
    draws = generator("measure")
    eps = config.eval_eps[-1] if hasattr(config, "eval_eps") else config.eps
    if work.task == "fgsm":
        fgsm(model, inputs, labels, eps=eps, norm=config.norm, generator=draws)
    elif steps:
        pgd(model, inputs, labels, eps=eps, norm=config.norm, steps=steps, generator=draws)


def _images_per_second(step: Step, rows: Samples, device: str, seconds: float) -> tuple[float, int]:
    """Rate of a kind of work after a warm-up, and the batch size it was measured with."""
    probe = Samples(*(column[:_PROBE_ROWS] for column in rows))
    _timed(step, probe, device)
    per_image = _timed(step, probe, device) / len(probe.labels)
    # Of one image, batch norm may have a single value for each channel, which it refuses.
    size = min(len(rows.labels), max(2, int(min(_STEP_SECONDS, seconds) / per_image)))
    batch = Samples(*(column[:size] for column in rows))
    # Later steps may find memory and kernels ready that the first one had to make. The third records a CUDA graph.
    for _ in range(3 if device == "cuda" else 0):
        _timed(step, batch, device)
    taken, done = _timed(step, batch, device), 1
    if taken < seconds / 3:
        started, done = time.perf_counter(), 0
        while time.perf_counter() - started < seconds - taken:
            _timed(step, batch, device)
            done += 1
        taken = time.perf_counter() - started
    return done * size / taken, size


def _timed(step: Step, rows: Samples, device: str) -> float:
    started = time.perf_counter()
    step(rows)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
