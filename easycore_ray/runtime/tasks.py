"""Fixed shards of work over Ray tasks; a finished one is kept as a file, so that a killed job goes on where it was.

Takes what each shard is and a function that makes its table; gives the tables in the order of the shards. The one
decision: what a shard is, and its seed, are settled by the caller before anything runs, so that the tables are the
same on any number of workers and after any interruption.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from easycore_ray.config.base import ComputeConfig
from easycore_ray.runtime.console import Progress, say
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Claim
from easycore_ray.storage.errors import EasyCoreError


@dataclass(frozen=True)
class ShardTask:
    """One shard: the name of its file, how many rows it has, and what the function is called with."""

    name: str
    rows: int
    args: tuple[Any, ...]


def shard_folder(made: Claim) -> str:
    """Where finished shards wait until all are; named by the claim, so that no other attempt's are taken for ours."""
    return paths.join(made.path, f"shards-{made.nonce}")


def run_shard_tasks(
    function: Callable[..., pa.Table],
    shards: Sequence[ShardTask],
    *,
    made: Claim,
    config: ComputeConfig,
    label: str,
    unit: str,
) -> list[pa.Table]:
    """The table of every shard, in their order; those of an earlier attempt are read, the others made.

    At most ``config.max_workers`` run at the same time.

    Args:
        function: called as a Ray task with a shard's arguments.
        shards: their names must be unique.
        made: the claim they are made under; finished ones are kept in its ``shard_folder``.
        config: resources of a task.
        label: what the progress line says is being done.
        unit: plural name of a row.

    Raises:
        EasyCoreError: one that the function raised, without the traceback of its task; or a task's process was lost
            more often than ``config.max_failures``.
    """
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    found = {shard.name: read_shard(made, shard.name) for shard in shards}
    tables = {name: table for name, table in found.items() if table is not None}
    if tables:
        say(f"{label}: {len(tables)} of {len(shards)} shards are there, going on with the others")
    task = ray.remote(
        num_cpus=config.cpus_per_worker or 1.0,
        num_gpus=config.gpus_per_worker,
        max_retries=config.max_failures,
        # A trial of a sweep reserves next to nothing for itself; without this its tasks would have to fit in there.
        scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=None),
    )(function)
    waiting = [shard for shard in shards if shard.name not in tables]
    running: dict[Any, ShardTask] = {}
    total = sum(shard.rows for shard in shards)
    progress = Progress(label, total, unit)
    progress.update(total - sum(shard.rows for shard in waiting))
    try:
        while running or waiting:
            while waiting and len(running) < config.max_workers:
                shard = waiting.pop(0)
                running[task.remote(*shard.args)] = shard
            done, _ = ray.wait(list(running))
            shard = running.pop(done[0])
            tables[shard.name] = ray.get(done[0])
            write_shard(made, shard.name, tables[shard.name])
            progress.update(sum(other.rows for other in shards if other.name in tables))
    except ray.exceptions.RayTaskError as error:
        # Our own sentence, without the task's traceback around it.
        if isinstance(error.cause, EasyCoreError):
            raise error.cause from None
        raise
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        raise EasyCoreError(
            f"{label}: the process of a shard was lost {config.max_failures + 1} times (for want of memory?); finished "
            "shards are kept, run the same command again to go on"
        ) from error
    finally:
        for ref in running:
            ray.cancel(ref)
        progress.close()
    return [tables[shard.name] for shard in shards]


def read_shard(made: Claim, name: str) -> pa.Table | None:
    """The table of a shard that an earlier attempt finished, or None."""
    path = _file(made, name)
    if not made.resumed or not paths.exists(path):
        return None
    return pq.read_table(pa.BufferReader(paths.read_bytes(path)))


def write_shard(made: Claim, name: str, table: pa.Table) -> None:
    """Keep the table of a finished shard."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    paths.write_bytes(_file(made, name), buffer.getbuffer())


def _file(made: Claim, name: str) -> str:
    return paths.join(shard_folder(made), f"{name}.parquet")
