"""Device-seconds of a training run turned into optimizer steps, once, before anything is trained.

Before the start a step of each objective is timed on the device that will train, and what it takes is recorded in the
folder of the result. Whoever resumes reads the record and never times again, so that a run is known by its steps. A
device-second is a second of one worker that trains: neither waiting for data, nor validation, nor evaluation, nor what
workers say to each other is in it.
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import TypeVar

from easycore_ray.config.experiments import SweepConfig
from easycore_ray.config.fields import ADVERSARIAL
from easycore_ray.config.stages import TrainConfig
from easycore_ray.config.work_plan import WorkPlan
from easycore_ray.data.dataset import Dataset, open_dataset
from easycore_ray.engine.throughput import Rates, Work, assumed_rates, network_of
from easycore_ray.runtime.actors import TaskResources
from easycore_ray.runtime.console import say
from easycore_ray.runtime.tasks import map_tasks
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Claim, work_folder
from easycore_ray.storage.errors import EasyCoreError

Budgeted = TypeVar("Budgeted", TrainConfig, SweepConfig)

_FILE = "budget.json"
# A step is timed for a tenth of the budget of a run, within these bounds.
_LEAST_SECONDS, _MOST_SECONDS = 2.0, 12.0


@dataclass(frozen=True)
class StepBudget:
    """Steps of a training run of one objective."""

    steps: int
    seconds_per_step: float
    """Device-seconds of one step, all workers together."""


def read_budget(folder: str, device_seconds: float) -> dict[str, StepBudget] | None:
    """What was recorded of these device-seconds in the folder of a result, by objective; None if nothing was."""
    file = paths.join(folder, _FILE)
    found = paths.read_json(file) if paths.exists(file) else {}
    if found.get("device_seconds") != device_seconds:
        return None
    return {name: StepBudget(**entry) for name, entry in found["objectives"].items()}


def settle_budget(
    label: str, made: Claim, config: TrainConfig, objectives: Collection[str], device_seconds: float
) -> dict[str, StepBudget]:
    """The steps of each objective, as recorded, or timed now and recorded.

    Args:
        label: verb, for messages.
        made: the claim of the result, in whose folder they are recorded.
        config: a run of one of the objectives; the others are alike.
        objectives: to time.
        device_seconds: of each run.

    Raises:
        EasyCoreError: not even one step fits.
    """
    if (recorded := read_budget(made.path, device_seconds)) is not None:
        return recorded
    resources = TaskResources(config.cpus_per_worker or 1.0, config.gpus_per_worker, 1, config.max_failures)
    names = sorted(objectives)
    [(seconds, device)] = map_tasks(
        _time_steps, [(config, names, device_seconds)], label=f"{label}: timing a step", resources=resources
    )
    found = {name: StepBudget(int(device_seconds / seconds[name]), seconds[name]) for name in names}
    for name, entry in found.items():
        if not entry.steps:
            raise EasyCoreError(
                f"device_seconds is {device_seconds:g}, and one step of {name} takes {entry.seconds_per_step:.3g} s on "
                f"{device}; pass at least --device-seconds {2 * entry.seconds_per_step:.2g}"
            )
    made.check()
    objects = {name: asdict(entry) for name, entry in found.items()}
    content = {"device_seconds": device_seconds, "device": device, "objectives": objects}
    paths.write_json(paths.join(made.path, _FILE), content)
    words = ", ".join(f"{entry.steps:,} of {name} at {entry.seconds_per_step:.3g} s" for name, entry in found.items())
    say(f"{label}: {device_seconds:g} device-seconds a training run are these steps on {device}: {words}")
    return found


def plan_steps(
    out: str,
    config: TrainConfig,
    objectives: Collection[str],
    device_seconds: float,
    dataset: Dataset,
    measure: bool = False,
) -> dict[str, int] | None:
    """About how many steps there will be, as recorded, measured in this process, or assumed; None if nobody knows."""
    recorded = read_budget(work_folder(paths.absolute(out)), device_seconds)
    if recorded is not None:
        return {name: entry.steps for name, entry in recorded.items()}
    if measure:
        rates = _measure(config, dataset, objectives, device_seconds)
    else:
        rates = assumed_rates(network_of(config, dataset.image_shape), config.batch_size)
    if rates is None:
        return None
    found = {name: rates(_step_work(config, name))[0] for name in objectives}
    if any(rate is None for rate in found.values()):
        return None
    return {name: max(1, int(device_seconds * rate / config.batch_size)) for name, rate in found.items() if rate}


def with_steps(config: Budgeted, steps: int | None) -> Budgeted:
    """The same run or sweep, of so many steps instead of device-seconds; of its epochs if None."""
    return config.replace(steps=steps, device_seconds=None)


def without_steps(plan: WorkPlan) -> WorkPlan:
    """The plan of a run whose steps nobody knows yet."""
    text = "steps and time are known once a step of each objective was timed; --measure does so in this process"
    return plan.replace(steps=0, estimates=(), warnings=(*plan.warnings, text))


def _step_work(config: TrainConfig, training: str) -> Work:
    attack_steps = config.attack_steps if training in ADVERSARIAL else 0
    return Work(training, 1, attack_steps, perturbs=config.awp is not None and training in ADVERSARIAL)


def _measure(config: TrainConfig, dataset: Dataset, objectives: Collection[str], device_seconds: float) -> Rates | None:
    """Rates of one worker in this process; None if it has no such device."""
    from easycore_ray.engine.measure import measure_rates
    from easycore_ray.runtime.devices import problem_of

    if problem_of(config.device) is not None:
        return None
    works = [_step_work(config, name) for name in objectives]
    seconds = len(works) * min(max(device_seconds / 10, _LEAST_SECONDS), _MOST_SECONDS)
    return measure_rates(config, dataset, works, config.device, seconds=seconds)


def _time_steps(
    config: TrainConfig, objectives: Collection[str], device_seconds: float
) -> tuple[dict[str, float], str]:
    """In a process with the resources of a worker: device-seconds of a step of each objective, and of what device."""
    import torch

    from easycore_ray.runtime.devices import check_device
    from easycore_ray.storage.machine import cpu

    check_device(config.device)
    rates = _measure(config, open_dataset(config.dataset), objectives, device_seconds)
    assert rates is not None
    found = {}
    for name in objectives:
        rate = rates(_step_work(config, name))[0]
        assert rate is not None
        found[name] = config.batch_size / rate
    return found, torch.cuda.get_device_name() if config.device == "cuda" else cpu()
