"""What the shards of an evaluation take of their machines: images a second and memory.

It differs from run to run of the same work, so it is kept apart from the outcomes and is part of no fingerprint.
"""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import torch

from easycore_ray.engine.machine_use import peak_memory_megabytes

_COST = b"easycore.cost"  # in the metadata of a shard's table; the outcomes of all shards come without


def with_cost(attack: Callable[[], pa.Table], device: str) -> pa.Table:
    """The outcomes of a shard with what they took, in the metadata.

    Args:
        attack: makes them, in this process.
        device: ``cpu`` or ``cuda``.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.monotonic()
    table = attack()
    cost = {"seconds": time.monotonic() - started, "megabytes": peak_memory_megabytes(torch.device(device))}
    return table.replace_schema_metadata({**(table.schema.metadata or {}), _COST: json.dumps(cost)})


def cost_of(shards: Sequence[pa.Table]) -> dict[str, Any]:
    """``images_per_second`` of one worker, all attacks together, and ``peak_memory_megabytes`` of the largest one.

    Memory is that of tensors on the GPU with one, else the largest resident set of the process. {} if a shard of an
    earlier version is among them.
    """
    costs = [json.loads((shard.schema.metadata or {}).get(_COST, "null")) for shard in shards]
    if not all(costs):
        return {}
    seconds = sum(cost["seconds"] for cost in costs)
    return {
        "images_per_second": round(sum(shard.num_rows for shard in shards) / max(seconds, 1e-9), 3),
        "peak_memory_megabytes": round(max(cost["megabytes"] for cost in costs), 1),
    }
