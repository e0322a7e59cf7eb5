"""What training workers take of their machines: metrics that MLflow shows as system metrics."""

import os
import resource
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch

from easycore_ray.engine.worker_group import Context

SYSTEM = "system/"
"""How their names begin: what differs from run to run of the same work."""

_MEGABYTE = 1e6


class _Use(NamedTuple):
    """Of one worker since it was asked last."""

    cpu_percent: float
    memory: float
    peak_memory: float
    gpu_memory: float | None


class MachineUse:
    """CPU and memory of this process, a training worker, and of its GPU; tasks beside it are not in it.

    Args:
        device: on which it computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cpu, self._wall = time.process_time(), time.monotonic()

    def measure(self, context: Context) -> dict[str, float]:
        """Metrics of all workers since this was called last; called by all together.

        Returns:
            ``system/cpu_utilization_percentage``, the mean over workers of CPU time per time, 100 for one core;
            ``system/memory_usage_megabytes``, of the process that holds most, and ``system/peak_memory_megabytes``, of
            the one that held most at any time; with GPUs ``system/gpu_memory_usage_megabytes``, the peak of tensors on
            the GPU that held most. 1 MB is 10^6 bytes.
        """
        uses: list[_Use] = context.gather(self._take())
        found = {
            f"{SYSTEM}cpu_utilization_percentage": fmean(use.cpu_percent for use in uses),
            f"{SYSTEM}memory_usage_megabytes": max(use.memory for use in uses),
            f"{SYSTEM}peak_memory_megabytes": max(use.peak_memory for use in uses),
        }
        on_gpus = [use.gpu_memory for use in uses if use.gpu_memory is not None]
        return found | ({f"{SYSTEM}gpu_memory_usage_megabytes": max(on_gpus)} if on_gpus else {})

    def _take(self) -> _Use:
        cpu, wall = time.process_time(), time.monotonic()
        percent = 100 * (cpu - self._cpu) / max(wall - self._wall, 1e-9)
        self._cpu, self._wall = cpu, wall
        gpu = None
        if self._device.type == "cuda":
            gpu = peak_memory_megabytes(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
        return _Use(percent, _resident_bytes() / _MEGABYTE, peak_memory_megabytes(torch.device("cpu")), gpu)


def peak_memory_megabytes(device: torch.device) -> float:
    """The most memory this process has held at any time, in 10^6 bytes.

    Args:
        device: a CPU: the largest resident set of the process (``getrusage``). A GPU: the most that tensors took on it
            since its statistics were reset.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _MEGABYTE
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _MEGABYTE


def _resident_bytes() -> float:
    """Of this process; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0.0
    return float(pages * os.sysconf("SC_PAGE_SIZE"))
