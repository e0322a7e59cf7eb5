"""What train() would do, without doing it."""

import math

from easycore_ray.config.fields import ADVERSARIAL, format_workers
from easycore_ray.config.stages import TrainConfig
from easycore_ray.config.work_plan import WorkPlan, plan_for
from easycore_ray.core.eps import check_eps
from easycore_ray.data.coreset import count_run_rows
from easycore_ray.data.dataset import Dataset
from easycore_ray.engine.budget import plan_steps, with_steps, without_steps
from easycore_ray.engine.run_identity import run_identity
from easycore_ray.engine.run_inputs import open_run_inputs
from easycore_ray.engine.shares import batches_per_epoch, training_steps
from easycore_ray.engine.throughput import Work, assumed_rates, checkpoint_bytes, estimates_of, network_of
from easycore_ray.storage.artifact import Artifact
from easycore_ray.storage.errors import EasyCoreError


def open_training(config: TrainConfig) -> tuple[Dataset, dict[str, Artifact]]:
    """The dataset a run trains on, and its parents by role.

    Raises:
        EasyCoreError: one is missing or foreign, or the attack in training is wider than the images.
    """
    dataset, parents = open_run_inputs(config)
    check_training(config, dataset.image_shape)
    return dataset, parents


def plan_train(config: TrainConfig, measure: bool = False) -> WorkPlan:
    """The plan of a training run."""
    dataset, parents = open_training(config)
    num_rows = count_run_rows(dataset, parents)
    settled, known = config, True
    if config.device_seconds is not None:
        planned = plan_steps(config.out, config, [config.training], config.device_seconds, dataset, measure)
        settled, known = with_steps(config, (planned or {}).get(config.training, 1)), planned is not None
    steps = training_steps(settled, num_rows)
    works = training_works(settled, num_rows, dataset.num_rows("val"))
    network = network_of(config, dataset.image_shape)
    length = f"{steps:,} steps" if config.device_seconds is None else f"{config.device_seconds:g} device-seconds"
    plan = plan_for(
        "train",
        config,
        "checkpoint",
        run_identity("checkpoint", config, parents),
        work=f"train {config.model} ({config.training}) for {length} on {num_rows:,} samples with "
        f"{format_workers(config.num_workers)} workers",
        steps=steps,
        samples=num_rows,
        bytes_written=checkpoint_bytes(config.model, config.width),
        estimates=estimates_of(works, assumed_rates(network, config.batch_size), config.max_workers),
    )
    if measure:
        from easycore_ray.engine.measure import measure_plan

        plan = measure_plan(plan, config, dataset, works)
    return plan if known else without_steps(plan)


def training_works(config: TrainConfig, num_rows: int, num_val: int) -> list[Work]:
    """What images go through in a run: training steps and, after each epoch, validation."""
    steps_per_epoch = batches_per_epoch(num_rows, config.batch_size)
    steps = training_steps(config, num_rows)
    adversarial = config.training in ADVERSARIAL
    # A validation attack of k steps costs as much as PGD-AT's attack without its update.
    val_steps = config.val_attack_steps if adversarial else 0
    return [
        Work(
            config.training,
            round(steps / steps_per_epoch * num_rows),
            config.attack_steps if adversarial else 0,
            perturbs=config.awp is not None,
        ),
        Work("validation", -(-steps // steps_per_epoch) * num_val, val_steps),
    ]


def check_training(config: TrainConfig, image_shape: tuple[int, ...]) -> None:
    """Refuse, before any work, an attack in training that is wider than the images."""
    if config.training in ADVERSARIAL:
        check_budget(config.eps, config.norm, image_shape)


def check_budget(eps: float, norm: str, image_shape: tuple[int, ...]) -> None:
    """Refuse an eps by which no image of this shape can be changed: 8 for 8/255, above all.

    Raises:
        EasyCoreError: says what is allowed.
    """
    try:
        check_eps(eps, norm, num_pixels=math.prod(image_shape))
    except ValueError as error:
        raise EasyCoreError(str(error)) from error
