"""What reduction must give: hardness tables by a plain loop, made-up runs, and refusals."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from easycore_ray.config.stages import ReduceConfig
from easycore_ray.scoring.hardness_table import ADVERSARIAL_HARDNESS_SCHEMA, HARDNESS_SCHEMA, read_hardness
from easycore_ray.scoring.reduce import reduce
from easycore_ray.scoring.reduce_task import make_plan, reduce_range
from easycore_ray.scoring.score_reader import open_table
from easycore_ray.storage.errors import EasyCoreError

EPOCHS = [0, 1, 3, 5, 7]


def population(count=37, seed=0):
    """Ids with gaps in random order, and labels."""
    rng = np.random.default_rng(seed)
    return rng.permutation(np.arange(count) * 3 + 11), rng.integers(0, 4, count)


def expected(rows, samples):
    """The hardness table by a plain loop over samples and their rows, in order of epochs."""
    attacked = "adv_loss" in rows[0]
    schema = ADVERSARIAL_HARDNESS_SCHEMA if attacked else HARDNESS_SCHEMA
    found = {name: [] for name in schema.names}
    for sample in samples.to_pylist():
        mine = []
        for columns in sorted(rows, key=lambda columns: columns["epoch"][0]):
            at = columns["sample_id"].tolist().index(sample["sample_id"])
            mine.append({name: values[at].item() for name, values in columns.items()})
        control = [row["grad_norm"] for row in mine if row["epoch"] == 0]
        mine = [row for row in mine if row["epoch"] > 0]
        learned = [row["epoch"] for row in mine if row["correct"]]
        sums = dict.fromkeys(("grad_norm", "el2n", "loss", "margin", *["adv_loss"] * attacked), 0.0)
        forgotten, before = 0, False
        for row in mine:
            for name in sums:
                sums[name] += row[name]
            forgotten += before and not row["correct"]
            before = row["correct"]
        row = {
            "sample_id": sample["sample_id"],
            "label": sample["label"],
            "num_scores": len(mine),
            "aign": sums["grad_norm"] / len(mine),
            "el2n": sums["el2n"] / len(mine),
            "loss": sums["loss"] / len(mine),
            "aum": sums["margin"] / len(mine),
            "forgetting_events": forgotten,
            "first_learned_epoch": learned[0] if learned else -1,
            "input_norm": np.float32(sample["input_norm"]).item(),
            "aign_epoch0": control[0] if control else None,
        }
        if attacked:
            row["adv_loss"] = sums["adv_loss"] / len(mine)
            row["problematic"] = sum(not each["adv_correct"] for each in mine)
        for name in schema.names:
            found[name].append(row[name])
    return pa.table(found, schema=schema)


def reduced(run, **options):
    """The hardness table of a run."""
    artifact = reduce(ReduceConfig(out=f"{run}/hardness", scores=str(run), **options))
    return read_hardness(artifact)


# ---------------------------------------------------------------- values


def in_ranges(run, num_ranges, numbers=None, out="hardness"):
    """What the tasks of a plan write, put together in id order; the tasks run here."""
    table = open_table(f"{run}/table")
    plan = make_plan(table, tuple(table.epochs()), f"{run}/{out}", num_ranges)
    entries = [reduce_range(plan, number) for number in numbers or range(len(plan.ranges))]
    return pa.concat_tables(pq.read_table(f"{run}/{out}/{entry['path']}") for entry in entries)


# ---------------------------------------------------------------- damage


def part_file(run, epoch=3, rank=1):
    """A part's file."""
    return run / "table" / f"epoch={epoch:05d}" / f"part-00000-a-r{rank:05d}.parquet"


def refuse(run, message, **options):
    """Reducing fails with this one line, and nothing is finished."""
    with pytest.raises(EasyCoreError, match=message) as caught:
        reduced(run, **options)
    assert "\n" not in str(caught.value)
    assert not (run / "hardness" / "manifest.json").exists()
