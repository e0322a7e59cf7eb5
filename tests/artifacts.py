"""Small finished artifacts for tests, written with the package's own writers but without images or training."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from easycore_ray.config.base import to_dict
from easycore_ray.config.stages import ScoreConfig, TrainConfig
from easycore_ray.data import shards, views
from easycore_ray.data.index import INDEX_SCHEMA, dataset_fingerprint, shard_details, shard_path, write_index
from easycore_ray.engine.run_identity import claim_run
from easycore_ray.scoring import score_table
from easycore_ray.scoring.feature_table import describe_features, write_feature_part
from easycore_ray.scoring.reduce import reduce
from easycore_ray.scoring.score_table import ScorePart, write_part_list
from easycore_ray.storage import artifact
from easycore_ray.storage.artifact import Artifact, Claim


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
        schema=INDEX_SCHEMA,
    )
    write_index(index, str(folder))
    return artifact.finish(
        Claim(str(folder), "dataset", "identity", "nonce", resumed=False),
        fingerprint=dataset_fingerprint(index),
        config={},
        parents={},
        counts={"train": count, "val": 0, "test": 0},
        wall_seconds=0.0,
        classes=[f"class {label}" for label in range(max(labels) + 1)],
    )


def draw_rows(
    ids: np.ndarray, labels: np.ndarray, epochs: Sequence[int], seed: int = 0, *, attacked: bool = False
) -> list[dict[str, np.ndarray]]:
    """Random score rows of every (sample, epoch): one dict of columns per epoch, in the order of ``ids``.

    If attacked, with the columns of adversarial training; the others are the same.
    """
    rng, count = np.random.default_rng(seed), len(ids)
    rows = [
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
    for columns in rows if attacked else ():
        columns["adv_loss"] = rng.gamma(2.0, 1.0, count).astype(np.float32)
        columns["adv_correct"] = rng.random(count) < 0.4
    return rows


def write_parts(table: Path | str, rows: list[dict[str, np.ndarray]], rank_of_row: np.ndarray) -> list[ScorePart]:
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
    parts: list[ScorePart],
    samples: pa.Table,
    dataset: Artifact | None = None,
    *,
    num_samples: int | None = None,
    training: str = "standard",
) -> None:
    """Complete ``run/table`` with its samples and its manifest."""
    table = f"{run}/table"
    score_table.write_samples(table, samples)
    parent = dataset or Artifact("/nowhere", {"kind": "dataset", "fingerprint": "f" * 64})
    artifact.finish(
        Claim(table, "score_table", "identity", "nonce", resumed=False),
        fingerprint=score_table.fingerprint(parts),
        config={"score_pass": "eval", "training": training},
        parents={"dataset": parent},
        counts={"samples": samples.num_rows if num_samples is None else num_samples},
        wall_seconds=0.0,
        parts=[part.to_dict() for part in parts],
    )


def finish_features(run: Path | str, columns: dict[str, np.ndarray], rank_of_row: np.ndarray) -> None:
    """Write ``run/features`` in a part for each of three ranks; columns as for ``write_feature_part``."""
    parts = []
    for rank in range(3):
        mine = {name: values[rank_of_row == rank] for name, values in columns.items()}
        parts.append(write_feature_part(f"{run}/features", mine, epoch=1, rank=rank, attempt="a", segment=0))
    artifact.finish(
        Claim(f"{run}/features", "feature_table", "identity", "nonce", resumed=False),
        fingerprint=score_table.fingerprint(parts),
        config={},
        parents={},
        counts={"samples": len(rank_of_row)},
        wall_seconds=0.0,
        parts=[part.to_dict() for part in parts],
        **describe_features(parts, f"{run}/features"),
    )


def samples_of(ids: np.ndarray, labels: np.ndarray) -> pa.Table:
    """What a score table keeps of its population, sorted by id; ``input_norm`` is the square root of the id."""
    order = np.argsort(ids)
    columns = {"sample_id": ids[order], "label": labels[order], "input_norm": np.sqrt(ids[order])}
    return pa.table(columns)


def edit_manifest(folder: Path | str, **changes: Any) -> None:
    """Replace entries of a finished artifact's manifest."""
    path = Path(folder) / artifact.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def make_image_dataset(
    folder: Path | str,
    labels: Sequence[int],
    test_labels: Sequence[int] = (),
    *,
    val_labels: Sequence[int] = (),
    encoded: bool = False,
    copies: Mapping[int, int] | None = None,
) -> Artifact:
    """A whole dataset: images of 1 × 4 × 4 random pixels, train and test in two shards each, val in one.

    If encoded, greyscale JPEG files of 12 × 9 pixels, seen at 4 × 4. ``copies``: training samples with another's image.
    """
    layout = shards.Layout("raw", (1, 4, 4), None)
    if encoded:
        layout = shards.Layout("encoded", (1, 4, 4), 4, "rotate", 5, views.VIEW_VERSION)
    rng = np.random.default_rng(7)
    splits = {
        "train": (labels, 2, rng),
        "val": (val_labels, 1, np.random.default_rng(8)),
        "test": (test_labels, 2, rng),
    }
    sizes: dict[str, list[int]] = {}
    tables = []
    for split, (truth, num_shards, draws) in splits.items():
        images = [image.tobytes() for image in draws.integers(0, 256, (len(truth), 16), np.uint8)]
        if encoded:
            images = [_jpeg(draws.integers(0, 256, (9, 12), np.uint8)) for _ in images]
        for copy, original in (copies or {}).items() if split == "train" else ():
            images[copy] = images[original]
        sizes[split] = [
            _write_shard(
                f"{folder}/{shard_path(split, number)}", layout, images, truth, slice(number, None, num_shards)
            )
            for number in range(num_shards if images else 0)
        ]
        columns = {
            "split": [split] * len(truth),
            "sample_id": range(len(truth)),
            "key": [f"class {label}/{number}.png" for number, label in enumerate(truth)],
            "label": truth,
            "sha256": [hashlib.sha256(image).hexdigest() for image in images],
            "input_norm": [_norm(image, layout) for image in images],
            "shard": [number % num_shards for number in range(len(truth))],
            "row": [number // num_shards for number in range(len(truth))],
        }
        tables.append(pa.table(columns, schema=INDEX_SCHEMA))
    index = pa.concat_tables(tables)
    write_index(index, str(folder))
    classes = [f"class {label}" for label in range(max(labels) + 1)]
    made = Claim(str(folder), "dataset", "identity", "nonce", resumed=False)
    return artifact.finish(
        made, fingerprint=dataset_fingerprint(index), config={}, parents={},
        counts={"train": len(labels), "val": len(val_labels), "test": len(test_labels)},
        wall_seconds=1.5,
        classes=classes,
        **layout._asdict(),
        mean=[0.5], std=[0.25],
        shards=shard_details(index, sizes, len(classes)),
    )  # fmt: skip


def _write_shard(path: str, layout: shards.Layout, images: list[bytes], labels: Sequence[int], mine: slice) -> int:
    columns = {
        "sample_id": pa.array(range(len(images))[mine], pa.int64()),
        "label": pa.array(labels[mine], pa.int32()),
        "image": pa.array(images[mine], layout.schema.field("image").type),
    }
    return shards.write_rows(path, layout, pa.table(columns))


def _jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def _norm(image: bytes, layout: shards.Layout) -> float:
    pixels = np.frombuffer(image, np.uint8)
    if layout.storage == "encoded":
        pixels = views.center_view(image, layout.image_size, layout.resize_size)
    return float(np.linalg.norm(pixels.reshape(-1) / 255))


def make_checkpoint(folder: Path | str, dataset: str, **fields: Any) -> Artifact:
    """A checkpoint trained in this process, for one step unless the fields say more."""
    from easycore_ray.data.samples import read_split
    from easycore_ray.engine.run_inputs import open_run_inputs
    from easycore_ray.training import train as training

    config = TrainConfig(**{"out": str(folder), "dataset": dataset, "model": "cnn", "width": 4, "steps": 1,
                            "augment": "none", "num_workers": 1, **fields})  # fmt: skip
    opened, parents = open_run_inputs(config)
    made = claim_run("checkpoint", config, parents)
    assert isinstance(made, Claim)
    fit = training.make_training_fit(config, opened, parents.get("coreset"), parents.get("init_from"))
    state = training.train_here(fit, read_split(opened, "train", fit.read_sample_ids()))
    return training.finish_checkpoint(config, made, parents, fit, state, 0.0)


def weights_trained_here(config: TrainConfig) -> dict[str, Any]:
    """The last weights of a training run in this process, whose number of threads is put back."""
    import torch

    from easycore_ray.data.samples import read_split
    from easycore_ray.engine.run_inputs import open_run_inputs
    from easycore_ray.training import train as training

    dataset, parents = open_run_inputs(config)
    threads = torch.get_num_threads()
    try:
        fit = training.make_training_fit(config, dataset, parents.get("coreset"), parents.get("init_from"))
        return training.train_here(fit, read_split(dataset, "train", fit.read_sample_ids())).model
    finally:
        torch.set_num_threads(threads)


def make_scoring_run(run: Path | str, dataset: Artifact, labels: Sequence[int], epochs: int = 2) -> Artifact:
    """A finished scoring run of a dataset: table and hardness, made-up scores, a training state for each of two epochs.

    The training states lie where Ray Train puts them, with files of its own sort and its list of what is registered.
    """
    ids = np.arange(len(labels))
    config = to_dict(
        ScoreConfig(dataset=dataset.path, out=str(run), epochs=epochs, score_pass="eval", initial_pass=True)
    )
    made = artifact.claim(str(run), "scoring_run", "0123456789abcdef" * 4)
    assert isinstance(made, Claim)
    rows = draw_rows(ids, np.asarray(labels), range(epochs + 1))
    parts = write_parts(f"{run}/table", rows, ids % 2)
    write_commits(run, parts, epochs)
    finish_table(run, parts, samples_of(ids, np.asarray(labels)), dataset)
    edit_manifest(f"{run}/table", config=config, epochs=[{"epoch": 1, "train_loss": 2.0}])
    table = artifact.open_artifact(f"{run}/table")
    hardness = reduce(out=f"{run}/hardness", scores=str(run))
    return artifact.finish(
        made,
        fingerprint=hardness.fingerprint,
        config=config,
        parents={"dataset": dataset, "score_table": table, "hardness_table": hardness},
        counts=table.manifest["counts"],
        wall_seconds=3.0,
        epochs=[{"epoch": 1, "train_loss": 2.0}],
    )


ATTEMPT = "a" * 12
"""Name of an attempt."""


def commits_of(run: Path | str) -> Path:
    """Where a scoring run keeps its training states."""
    claim = json.loads((Path(run) / "run.json").read_text())
    return Path(run) / "commits" / f"score-{claim['identity'][:12]}-{claim['nonce']}"


def write_commits(run: Path | str, parts: Sequence[ScorePart], epoch: int) -> None:
    """Training states of the last two epochs, registered as Ray Train 2.60 does it, and lists of the parts so far."""
    names = []
    lists = [
        write_part_list(
            str(commits_of(run)), [part for part in parts if part.epoch == done], epoch=done, attempt=ATTEMPT
        )
        for done in sorted({part.epoch for part in parts})
    ]
    for done in range(max(1, epoch - 1), epoch + 1):
        names.append(f"epoch-{done:05d}-{ATTEMPT}")
        folder = commits_of(run) / names[-1]
        folder.mkdir(parents=True)
        listed = [entry for entry in lists if entry["epoch"] <= done]
        state = {"epoch": done, "step": done, "history": [{"epoch": e, "train_loss": 2.0} for e in range(1, done + 1)]}
        (folder / "state.json").write_text(json.dumps(state | {"carried": {"part_lists": listed}}))
        for name in ("model.safetensors", "optimizer.safetensors"):
            (folder / name).write_bytes(b"weights")
    results = [{"checkpoint_dir_name": name, "metrics": {}} for name in names]
    snapshot = {"ray_version": "2.60.0", "checkpoint_results": results, "latest_checkpoint_result": results[-1]}
    (commits_of(run) / "checkpoint_manager_snapshot.json").write_text(json.dumps(snapshot))
    (commits_of(run) / ".validate_storage_marker").touch()
