"""What every part of the GPU suite is given, and how it measures."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from easycore_ray.core.models import build_model
from easycore_ray.core.training_plan import TrainingPlan

Row = dict[str, Any]
"""``what`` was measured, its ``value``, the ``unit``, and whether it is as it must be (``passed``), if it must."""


@dataclass(frozen=True)
class Setup:
    """Where a part runs, and how much of it."""

    device: torch.device
    tiny: bool
    """Small networks and few images: to see that it runs."""
    seconds: float
    """Time of the part."""
    folder: Path
    """For its data."""

    @property
    def gpus(self) -> float:
        """GPUs of a worker."""
        return 1.0 if self.device.type == "cuda" else 0.0

    def choose(self, whole: Any, tiny: Any) -> Any:
        """One of two sizes."""
        return tiny if self.tiny else whole

    def network(self, name: str = "resnet18", size: int = 32) -> nn.Module:
        """A network on the device, channels last."""
        model = build_model(name, num_classes=10, image_shape=(3, size, size), width=self.choose(None, 4)
                            if name == "resnet18" else None, mean=(0.5,) * 3, std=(0.25,) * 3)  # fmt: skip
        return model.to(self.device, memory_format=torch.channels_last)

    def batches(self, count: int, rows: int, size: int = 32) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Batches as loaders give them: ids, bytes and labels on the CPU."""
        draws = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (count * rows, 3, size, size), dtype=torch.uint8, generator=draws)
        labels = torch.randint(0, 10, (count * rows,), generator=draws)
        columns = (torch.arange(count * rows), images, labels)
        return list(zip(*(column.split(rows) for column in columns), strict=True))


def plan_of(training: str = "trades", **changes: Any) -> TrainingPlan:
    """TRADES as its authors trained CIFAR-10, or another objective."""
    fields: dict[str, Any] = dict(
        training=training, beta=6.0, eps=8 / 255, norm="linf", attack_steps=10, attack_step_size=2 / 255, lr=0.01,
        momentum=0.9, nesterov=True, weight_decay=5e-4, schedule="constant", warmup_steps=0, total_steps=10**9,
        augment="crop-flip", crop_pad=4, precision="fp32", seed=0,
    )  # fmt: skip
    return TrainingPlan(**fields | changes)


def seconds_of(work: Callable[[], object], setup: Setup, box: float) -> float:
    """Median seconds of some work, repeated for ``box`` seconds after one time that warms up; twice at least."""
    work()
    _wait(setup)
    ended, taken = time.perf_counter() + box, list[float]()
    while len(taken) < setup.choose(2, 1) or (time.perf_counter() < ended and len(taken) < 50):
        started = time.perf_counter()
        work()
        _wait(setup)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def _wait(setup: Setup) -> None:
    if setup.device.type == "cuda":
        torch.cuda.synchronize()


def watched(batches: list[Any], setup: Setup) -> Iterator[Any]:
    """The batches; from the fourth on, which a graph may have replayed, waiting for the device is an error."""
    cuda = setup.device.type == "cuda"
    try:
        for number, batch in enumerate(batches):
            if cuda and number == 3:
                torch.cuda.set_sync_debug_mode("error")
            yield batch
    finally:
        if cuda:
            torch.cuda.set_sync_debug_mode("default")


def row(what: str, value: Any, unit: str = "", passed: bool | None = None) -> Row:
    """A row of the table."""
    return {"what": what, "value": value, "unit": unit, "passed": passed}
