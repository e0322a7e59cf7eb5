"""What train() would do, without doing it."""

from easycore_ray.config.fields import ADVERSARIAL, format_workers
from easycore_ray.config.stages import TrainConfig
from easycore_ray.config.work_plan import WorkPlan, plan_for
from easycore_ray.data.coreset import count_run_rows
from easycore_ray.engine.budget import plan_steps, with_steps, without_steps
from easycore_ray.engine.extra_data import count_extra_rows
from easycore_ray.engine.run_identity import run_identity
from easycore_ray.engine.run_inputs import open_run_inputs
from easycore_ray.engine.shares import describe_rows, rows_per_epoch, steps_per_epoch, training_steps
from easycore_ray.engine.throughput import Work, assumed_rates, checkpoint_bytes, estimates_of, network_of


def plan_train(config: TrainConfig, measure: bool = False) -> WorkPlan:
    """The plan of a training run."""
    dataset, parents = open_run_inputs(config)
    num_rows = count_run_rows(dataset, parents)
    settled, known = config, True
    if config.device_seconds is not None:
        planned = plan_steps(config.out, config, [config.training], config.device_seconds, dataset, measure)
        settled, known = with_steps(config, (planned or {}).get(config.training, 1)), planned is not None
    steps, rows = training_steps(settled, num_rows), describe_rows(config, num_rows, count_extra_rows(parents))
    works = training_works(settled, num_rows, dataset.num_rows("val"))
    network = network_of(config, dataset.image_shape)
    length = f"{steps:,} steps" if config.device_seconds is None else f"{config.device_seconds:g} device-seconds"
    plan = plan_for(
        "train",
        config,
        "checkpoint",
        run_identity("checkpoint", config, parents),
        work=f"train {config.model} ({config.training}) for {length} on {rows} with "
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
    per_epoch = steps_per_epoch(config, num_rows)
    steps = training_steps(config, num_rows)
    adversarial = config.training in ADVERSARIAL
    # A validation attack of k steps costs as much as PGD-AT's attack without its update.
    val_steps = config.val_attack_steps if adversarial else 0
    return [
        Work(
            config.training,
            round(steps / per_epoch * rows_per_epoch(config, num_rows)),
            config.attack_steps if adversarial else 0,
            perturbs=config.awp is not None,
        ),
        Work("validation", -(-steps // per_epoch) * num_val, val_steps),
    ]
