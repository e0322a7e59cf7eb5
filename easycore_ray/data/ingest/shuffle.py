"""The shuffle: checked rows from where they were read to the shards they belong to.

Takes blocks in Ray's object store and the place of every row, writes the shards. Two rounds of plain Ray tasks, deal
and write, with parts so large that their number, and what this process keeps of them, stay small; no image passes
through this process.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from easycore_ray.data import shards
from easycore_ray.data.index import shard_path
from easycore_ray.data.ingest.splits import Placement
from easycore_ray.data.shards import Layout, Written
from easycore_ray.runtime.tasks import TaskResources, map_tasks
from easycore_ray.storage import paths

# Ray keeps smaller results (up to 100 KB) in the process that requested them.
_PART_BYTES = 1024 * 1024
_GROUP_BYTES = 32 * 1024 * 1024


def write_shards(
    blocks: list[Any], sizes: Sequence[int], rows: pa.Table, placed: Placement, *, layout: Layout, out: str
) -> list[Written]:
    """Write all shards below ``out``.

    Args:
        blocks: references of tables of ``readers.CHECKED_SCHEMA``; the list is emptied, so that each block is freed
            as soon as it has been dealt out.
        sizes: of the blocks, in bytes.
        rows: ``block``, ``offset`` (row in the block) and ``label`` of the rows to write.
        placed: where they go.
        layout: of the dataset.
        out: folder of the dataset.

    Returns:
        The result of each shard, in order of ``placed.names``.
    """
    parts: list[list[Any]] = [[] for _ in placed.names]
    num_shards = len(placed.names)
    scatter = ray.remote(shards.scatter).options(num_returns=num_shards)
    places = _places(rows, placed, len(blocks))
    for group in _groups(sizes, max(_GROUP_BYTES, num_shards * _PART_BYTES)):
        chosen = [blocks[block] for block in group]
        dealt = scatter.remote([places[block] for block in group], layout, num_shards, *chosen)
        for shard, part in enumerate(dealt if num_shards > 1 else [dealt]):
            parts[shard].append(part)
    blocks.clear()
    counts = np.bincount(placed.shard, minlength=num_shards)
    # Parts are given up as they are handed on, so that each is freed once its shard is written.
    items = ((paths.join(out, shard_path(*name)), layout, *parts.pop(0)) for name in placed.names)
    return map_tasks(
        shards.write_dealt_shard, items, label="write", resources=TaskResources(), rows=counts.tolist(), unit="images"
    )


def _places(rows: pa.Table, placed: Placement, num_blocks: int) -> list[pa.Table]:
    """For each block, the rows that are kept and where they go (see ``shards.scatter``)."""
    columns = {
        "offset": rows["offset"],
        "shard": placed.shard,
        "row": placed.row,
        "sample_id": placed.sample_id,
        "label": rows["label"].cast(pa.int32()),
    }
    order = np.argsort(rows["block"].to_numpy(), kind="stable")
    table = pa.table(columns).take(pa.array(order)).combine_chunks()
    counts = np.bincount(rows["block"].to_numpy(), minlength=num_blocks)
    starts = np.cumsum(counts) - counts
    return [table.slice(start, count) for start, count in zip(starts.tolist(), counts.tolist(), strict=True)]


def _groups(sizes: Sequence[int], least: int) -> Iterator[list[int]]:
    """Consecutive blocks, put together until they have ``least`` bytes."""
    group: list[int] = []
    held = 0
    for block, size in enumerate(sizes):
        group.append(block)
        held += size
        if held >= least:
            yield group
            group, held = [], 0
    if group:
        yield group
