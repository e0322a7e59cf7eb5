"""What workers take of their machine, as metrics of an epoch."""

import time

import pytest
import torch

from easycore_ray.engine.machine_use import SYSTEM, MachineUse
from easycore_ray.engine.worker_group import LocalContext

CPU, MEMORY = f"{SYSTEM}cpu_utilization_percentage", f"{SYSTEM}memory_usage_megabytes"
PEAK = f"{SYSTEM}peak_memory_megabytes"


class Together(LocalContext):
    """A worker with another one, which took twice the CPU and half the memory."""

    def gather(self, value):
        half = {"memory": value.memory / 2, "peak_memory": value.peak_memory / 2}
        return [value, value._replace(cpu_percent=2 * value.cpu_percent, **half)]


def test_a_busy_process_takes_a_core_and_an_idle_one_none():
    """Since it was asked last."""
    use = MachineUse(torch.device("cpu"))
    ended = time.process_time() + 0.3
    while time.process_time() < ended:
        pass
    busy = use.measure(LocalContext())
    time.sleep(0.3)
    idle = use.measure(LocalContext())

    assert busy[CPU] > 20 > 10 > idle[CPU] >= 0
    assert idle.keys() == {CPU, MEMORY, PEAK}


def test_memory_is_that_of_the_process():
    """It grows by what is held."""
    use = MachineUse(torch.device("cpu"))
    before = use.measure(LocalContext())[MEMORY]
    held = torch.ones(50_000_000)

    assert use.measure(LocalContext())[MEMORY] - before == pytest.approx(200, abs=20)
    assert len(held) == 50_000_000


def test_workers_are_one_metric():
    """The mean of their CPUs, the largest of their memories."""
    use = MachineUse(torch.device("cpu"))
    sum(number**2 for number in range(300_000))
    one = use._take()
    use._take = lambda: one

    assert use.measure(Together()) == {
        CPU: pytest.approx(1.5 * one.cpu_percent), MEMORY: one.memory, PEAK: one.peak_memory,
    }  # fmt: skip


def test_the_peak_stays_when_memory_is_given_back():
    """It rises with what is held, and does not fall; never below what is held now."""
    use = MachineUse(torch.device("cpu"))
    before = use.measure(LocalContext())
    held = torch.ones(100_000_000)
    during = use.measure(LocalContext())
    del held
    after = use.measure(LocalContext())

    assert during[PEAK] >= max(before[PEAK], during[MEMORY] - 1)
    assert after[PEAK] >= during[PEAK] > after[MEMORY] + 300
