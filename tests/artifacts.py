"""Small finished artifacts for tests, written with the package's own writers but without images or training."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from easycore_ray import dataset_index, manifest, score_table
from easycore_ray.manifest import Artifact, Claim
from easycore_ray.score_table import Part


def make_dataset(folder: Path | str, labels: Sequence[int], *, ids: Sequence[int] | None = None) -> Artifact:
    """A dataset of these labels: manifest and index only; keys are ``class/id.png``, ids 0.. unless given."""
    count = len(labels)
    sample_ids = np.arange(count) if ids is None else np.asarray(ids)
    index = pa.table(
        {
            "split": ["train"] * count,
            "sample_id": sample_ids,
            "key": [f"{label}/{sample_id}.png" for label, sample_id in zip(labels, sample_ids, strict=True)],
            "label": labels,
            "sha256": [f"{sample_id:064x}" for sample_id in sample_ids],
            "input_norm": np.sqrt(sample_ids + 1.0),
            "shard": [0] * count,
            "row": range(count),
        },
        schema=dataset_index.SCHEMA,
    )
    dataset_index.write(index, str(folder))
    return manifest.finish(
        Claim(str(folder), "dataset", "identity", "nonce", resumed=False),
        fingerprint=dataset_index.fingerprint(index),
        config={},
        parents={},
        counts={"train": count, "val": 0, "test": 0},
        wall_seconds=0.0,
        classes=[f"class {label}" for label in range(max(labels) + 1)],
    )


def draw_rows(ids: np.ndarray, labels: np.ndarray, epochs: Sequence[int], seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Random score rows of every (sample, epoch): one dict of columns per epoch, in the order of ``ids``."""
    rng = np.random.default_rng(seed)
    count = len(ids)
    return [
        {
            "sample_id": np.asarray(ids, np.int64),
            "epoch": np.full(count, epoch, np.int32),
            "label": np.asarray(labels, np.int32),
            "grad_norm": rng.gamma(1.0, 1.0, count).astype(np.float32),
            "loss": rng.gamma(0.5, 1.0, count).astype(np.float32),
            "margin": rng.normal(0, 3, count).astype(np.float32),
            "el2n": rng.random(count).astype(np.float32),
            "correct": rng.random(count) < 0.6,
        }
        for epoch in epochs
    ]


def write_parts(table: Path | str, rows: list[dict[str, np.ndarray]], rank_of_row: np.ndarray) -> list[Part]:
    """Write each epoch's rows as one part per rank; row i of every epoch is that of ``rank_of_row[i]``."""
    parts = []
    for columns in rows:
        for rank in np.unique(rank_of_row.astype(int)).tolist():
            mine = {name: values[rank_of_row == rank] for name, values in columns.items()}
            parts.append(
                score_table.write_part(str(table), mine, epoch=int(columns["epoch"][0]), rank=rank, attempt="a")
            )
    return parts


def finish_table(
    run: Path | str,
    parts: list[Part],
    samples: pa.Table,
    dataset: Artifact | None = None,
    *,
    num_samples: int | None = None,
) -> None:
    """Complete ``run/table`` with its samples and its manifest."""
    table = f"{run}/table"
    score_table.write_samples(table, samples)
    parent = dataset or Artifact("/nowhere", {"kind": "dataset", "fingerprint": "f" * 64})
    manifest.finish(
        Claim(table, "score_table", "identity", "nonce", resumed=False),
        fingerprint=score_table.fingerprint(parts),
        config={"score_pass": "eval"},
        parents={"dataset": parent},
        counts={"samples": samples.num_rows if num_samples is None else num_samples},
        wall_seconds=0.0,
        parts=[part.to_dict() for part in parts],
    )


def samples_of(ids: np.ndarray, labels: np.ndarray) -> pa.Table:
    """What a score table keeps of its population, sorted by id; ``input_norm`` is the square root of the id."""
    order = np.argsort(ids)
    columns = {"sample_id": ids[order], "label": labels[order], "input_norm": np.sqrt(ids[order])}
    return pa.table(columns)


def edit_manifest(folder: Path | str, **changes: Any) -> None:
    """Replace entries of a finished artifact's manifest."""
    path = Path(folder) / manifest.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
