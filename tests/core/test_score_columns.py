"""Scores of many batches: all rows in order, and a process that does not grow while they are gathered."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from easycore_ray.core.score_columns import ScoreColumns

# Trains on batches that a thread makes, as a loader does; prints the MiB by which the process has grown since step 40.
GROWTH = """
import queue, threading
from pathlib import Path
import torch
from easycore_ray.core.loop import make_optimizer, train_epoch
from easycore_ray.core.models import build_model
from tests.core.test_loop import make_plan

torch.set_num_threads(1)
ready, seen = queue.Queue(2), []

def make():
    for step in range(150):
        images = torch.randint(0, 256, (64, 3, 64, 64), dtype=torch.uint8)
        ready.put((torch.arange(64) + 64 * step, images, torch.randint(0, 10, (64,))))
    ready.put(None)

def look(rows):
    line = [line for line in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in line][0]
    seen.append(int(line.split()[1]) / 1024)

threading.Thread(target=make, daemon=True).start()
model = build_model("cnn", num_classes=10, image_shape=(3, 64, 64), width=4, mean=(0.5,) * 3, std=(0.25,) * 3, seed=0)
plan = make_plan()
how = {"epoch": 1, "step": 0, "record_scores": True, "on_step": look}
train_epoch(model, make_optimizer(model, plan), iter(ready.get, None), plan, **how)
print(max(seen[40:]) - seen[40])
"""


def test_all_rows_come_in_their_order():
    """Batches of any size, beyond any room there was."""
    rng, columns, expected = np.random.default_rng(0), ScoreColumns(), []
    for size in (1, 5, 1500, 0, 3000, 7):
        batch = {
            "sample_id": rng.integers(0, 1 << 40, size),
            "loss": rng.random(size, np.float32),
            "correct": rng.random(size) < 0.5,
        }
        expected.append(batch)
        columns.add({name: torch.from_numpy(values) for name, values in batch.items()})
    found = columns.to_numpy()
    for name in ("sample_id", "loss", "correct"):
        wanted = np.concatenate([batch[name] for batch in expected])
        assert found[name].dtype == wanted.dtype
        assert np.array_equal(found[name], wanted)


def test_no_rows_are_refused():
    """There is nothing to score then."""
    with pytest.raises(ValueError, match="there are no rows to score"):
        ScoreColumns().to_numpy()


@pytest.mark.soak
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_process_does_not_grow_while_it_gathers_scores():
    """By the scores of 7,040 rows, a quarter of a mebibyte; with a small tensor kept from each batch 90 to 370 MiB.

    They lie between the large ones, so that the C library finds no room for the next of those where others were.
    """
    done = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=False,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 60
