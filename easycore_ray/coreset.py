"""select(): hardness table → coreset, the samples to keep.

A coreset names ids of its dataset; it holds no images. The choice is exact: k = floor(fraction · N + 0.5)
samples, ties broken by ``sample_id``, whatever the order of rows.
"""

import io
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from easycore_ray import paths
from easycore_ray.config import Arm, CoresetConfig, identity_fields, to_dict, verb
from easycore_ray.core.selection import HIGHER_IS_HARDER, METHODS, choose
from easycore_ray.dataset import Dataset, open_dataset
from easycore_ray.errors import EasyCoreError
from easycore_ray.hardness_table import open_hardness, read_hardness
from easycore_ray.manifest import Artifact, claim, content_hash, finish, giving_back, identity, open_artifact
from easycore_ray.progress import say

# Where each score stands in the hardness table.
_COLUMNS = {name: name for name in HIGHER_IS_HARDER} | {"forgetting": "forgetting_events"}
_USER_SCHEMA = pa.schema([pa.field("sample_id", pa.int64(), nullable=False), pa.field("score", pa.float64())])


@verb(CoresetConfig)
def select(config: CoresetConfig) -> Artifact | None:
    """Select the samples to keep and write them as a coreset.

    The folder holds ``coreset.parquet`` (``sample_id, score, label, key``, sorted by id; score is null
    for methods that use none), ``sample_ids.npy`` and ``keys.txt`` for use elsewhere.

    Returns:
        The coreset, or None with ``dry_run``.

    Raises:
        EasyCoreError: if scores and dataset do not belong together, a score is missing or not a number,
            or the fraction keeps nothing.
    """
    started = time.monotonic()
    parents, dataset = _open_inputs(config)
    fingerprints = {role: parent.fingerprint for role, parent in parents.items()}
    if config.user_scores is not None:
        content = paths.read_bytes(paths.absolute(config.user_scores))
        fingerprints["user_scores"] = content_hash(content)
    out = paths.absolute(config.out)
    if config.dry_run:
        population = _population(config, parents, dataset)
        kept = len(_choose(config, population))
        say(f"select: would keep {kept:,} of {population.num_rows:,} samples by {config.method} → {out}")
        return None
    made = claim(out, "coreset", identity("coreset", identity_fields(config), fingerprints), overwrite=config.overwrite)
    if isinstance(made, Artifact):
        say(f"select: {out} is finished, reused")
        return made
    with giving_back(made):
        population = _population(config, parents, dataset)
        chosen = _choose(config, population)
    rows = _chosen_rows(population, chosen, dataset)
    _write_files(out, rows)
    labels = rows["label"].to_numpy()
    artifact = finish(
        made,
        fingerprint=content_hash(chosen.astype("<i8").tobytes()),
        config=to_dict(config),
        parents=parents,
        counts={"samples": len(chosen), "of": population.num_rows},
        wall_seconds=time.monotonic() - started,
        method=config.method,
        score=_score_name(config),
        balance=config.balance,
        fraction=config.fraction,
        classes=list(dataset.classes),
        class_histogram=np.bincount(labels, minlength=dataset.num_classes).tolist(),
    )
    say(f"select: {len(chosen):,} of {population.num_rows:,} samples by {config.method} → {out}")
    return artifact


def open_coreset(path: str, dataset: Dataset) -> Artifact:
    """Open a coreset and make sure that it names samples of this dataset.

    Raises:
        EasyCoreError: if it is missing, unfinished or belongs to another dataset.
    """
    coreset = open_artifact(path, "coreset")
    theirs = coreset.manifest["parents"]["dataset"]
    if theirs["fingerprint"] != dataset.fingerprint:
        raise EasyCoreError(
            f"{coreset.path} was selected from {theirs['path']} (fingerprint {theirs['fingerprint'][:12]}), "
            f"not from {dataset.path} ({dataset.fingerprint[:12]}); pass the dataset it belongs to"
        )
    return coreset


def read_sample_ids(coreset: Artifact) -> np.ndarray:
    """The kept ids: int64, ascending."""
    return np.load(io.BytesIO(paths.read_bytes(paths.join(coreset.path, "sample_ids.npy"))), allow_pickle=False)


def check_same_dataset(artifact: Artifact, dataset: Dataset) -> None:
    """Refuse a score or hardness table of another dataset.

    Raises:
        EasyCoreError: names both datasets.
    """
    theirs = artifact.manifest["parents"].get("dataset") or artifact.manifest["dataset"]
    if theirs["fingerprint"] != dataset.fingerprint:
        raise EasyCoreError(
            f"{artifact.path} holds scores of {theirs['path']} (fingerprint {theirs['fingerprint'][:12]}), "
            f"not of {dataset.path} ({dataset.fingerprint[:12]}); pass the dataset that was scored"
        )


def arm_config(arm: Arm, *, out: str, scores: str, dataset: str, fraction: float, seed: int) -> CoresetConfig:
    """The selection an arm of a sweep stands for."""
    return CoresetConfig(
        out=out,
        scores=scores,
        dataset=dataset,
        method=arm.method,
        score=arm.score,
        balance=arm.balance,
        fraction=fraction,
        seed=seed,
    )


def _open_inputs(config: CoresetConfig) -> tuple[dict[str, Artifact], Dataset]:
    """Parents by role, and the dataset the ids belong to."""
    parents: dict[str, Artifact] = {}
    if config.scores is not None:
        parents["hardness_table"] = open_hardness(config.scores)
        where = config.dataset or parents["hardness_table"].manifest["dataset"]["path"]
    else:
        assert config.dataset is not None
        where = config.dataset
        if _score_name(config) not in (None, "user"):
            raise EasyCoreError(f"method {config.method} needs scores; pass --scores RUN or --user-scores FILE")
    dataset = open_dataset(where)
    if "hardness_table" in parents:
        check_same_dataset(parents["hardness_table"], dataset)
    parents["dataset"] = dataset.artifact
    return parents, dataset


def _score_name(config: CoresetConfig) -> str | None:
    """The score that orders the samples: ``user``, a column's name, or None where none is needed."""
    if not METHODS[config.method].needs_score:
        return None
    return "user" if config.user_scores is not None else config.score or METHODS[config.method].default_score or "aign"


def _population(config: CoresetConfig, parents: dict[str, Artifact], dataset: Dataset) -> pa.Table:
    """The samples to choose from: ``sample_id, label`` and, where one is used, ``score``."""
    name = _score_name(config)
    if "hardness_table" in parents:
        table = read_hardness(parents["hardness_table"])
    else:
        table = dataset.index("train").select(["sample_id", "label"])
    columns = {"sample_id": table["sample_id"], "label": table["label"]}
    if name == "user":
        assert config.user_scores is not None
        columns["score"] = _user_scores(paths.absolute(config.user_scores), table["sample_id"])
    elif name is not None:
        columns["score"] = hardness_column(table, name)
    return pa.table(columns)


def hardness_column(table: pa.Table, score: str) -> pa.Array:
    """A score of every row, float64, in the score's own direction (see ``HIGHER_IS_HARDER``).

    ``forgetting`` counts events; samples that were never learned rank above all others, not among the
    easiest as in some reference implementations.

    Raises:
        EasyCoreError: if the table does not hold the score.
    """
    column = table[_COLUMNS[score]]
    if column.null_count:
        raise EasyCoreError(f"the scoring run did not record {score}; choose another --score")
    values = column.cast(pa.float64())
    if score == "forgetting":
        never = pc.equal(table["first_learned_epoch"], -1)
        values = pc.if_else(never, pc.add(table["num_scores"].cast(pa.float64()), 1.0), values)
    return values


def _user_scores(path: str, sample_ids: pa.ChunkedArray) -> pa.Array:
    try:
        table = pq.read_table(pa.BufferReader(paths.read_bytes(path)))
    except pa.ArrowInvalid as error:
        raise EasyCoreError(f"{path} is not a Parquet file ({error}); it needs columns sample_id and score") from error
    if not {"sample_id", "score"} <= set(table.column_names):
        raise EasyCoreError(f"{path} has columns {table.column_names}; it needs sample_id and score")
    try:
        table = table.select(["sample_id", "score"]).cast(_USER_SCHEMA)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise EasyCoreError(f"{path} needs whole numbers in sample_id and numbers in score: {error}") from error
    ids = table["sample_id"].to_numpy()
    order = np.argsort(ids, kind="stable")
    wanted = sample_ids.to_numpy()
    if len(np.unique(ids)) != len(ids):
        raise EasyCoreError(f"{path} has more than one score for some sample_id; it needs exactly one each")
    missing = np.setdiff1d(wanted, ids)
    if len(missing):
        raise EasyCoreError(f"{path} lacks scores of {len(missing):,} samples (first sample_id: {missing[0]})")
    at = order[np.searchsorted(ids[order], wanted)]
    return pa.array(table["score"].to_numpy()[at])


def _choose(config: CoresetConfig, population: pa.Table) -> np.ndarray:
    name = _score_name(config)
    try:
        return choose(
            config.method,
            sample_ids=population["sample_id"].to_numpy(),
            labels=population["label"].to_numpy(),
            fraction=config.fraction,
            scores=population["score"].to_numpy() if name is not None else None,
            score=None if name == "user" else name,
            balance=config.balance,
            seed=config.seed,
            cutoff=config.cutoff,
            band=config.band,
        )
    except ValueError as error:
        raise EasyCoreError(str(error)) from error


def _chosen_rows(population: pa.Table, chosen: np.ndarray, dataset: Dataset) -> pa.Table:
    """``sample_id, score, label, key`` of the chosen samples, sorted by id."""
    index = dataset.index("train")
    at = np.searchsorted(population["sample_id"].to_numpy(), chosen)
    key_at = np.searchsorted(index["sample_id"].to_numpy(), chosen)
    rows = population.take(at)
    score: Any = rows["score"] if "score" in rows.column_names else pa.nulls(len(chosen), pa.float64())
    return pa.table(
        {
            "sample_id": rows["sample_id"],
            "score": score,
            "label": rows["label"],
            "key": index["key"].take(key_at),
        }
    )


def _write_files(out: str, rows: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, compression="zstd")
    paths.write_bytes(paths.join(out, "coreset.parquet"), buffer.getbuffer())
    ids = io.BytesIO()
    np.save(ids, rows["sample_id"].to_numpy(), allow_pickle=False)
    paths.write_bytes(paths.join(out, "sample_ids.npy"), ids.getbuffer())
    paths.write_bytes(paths.join(out, "keys.txt"), ("\n".join(rows["key"].to_pylist()) + "\n").encode())
