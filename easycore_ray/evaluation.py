"""evaluate(): clean and robust accuracy of a checkpoint.

Images are attacked in fixed shards of 250 by ``sample_id``, each with a seed of its own, so that the
outcome of every image is the same on any number of workers. The headline is the pointwise worst: an
image counts as robust if it stays correct under every attack that was run.
"""

import io
import json
import time
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from easycore_ray import cluster, paths
from easycore_ray.autoattack import AUTOATTACK, autoattack, check_autoattack
from easycore_ray.config import EvaluateConfig, identity_fields, to_dict, verb
from easycore_ray.core.attacks import ATTACKS
from easycore_ray.core.loop import prepare_inputs
from easycore_ray.core.metrics import wilson_interval, worst_class_accuracy
from easycore_ray.core.seeding import derive_seed, generator
from easycore_ray.core.threat import format_eps
from easycore_ray.dataset import Dataset, Rows, draw_ids, open_dataset, read_split
from easycore_ray.errors import EasyCoreError
from easycore_ray.manifest import Artifact, Claim, claim, content_hash, finish, giving_back, identity
from easycore_ray.progress import say
from easycore_ray.shard_tasks import ShardTask, read_shard, run_shard_tasks, shard_folder, write_shard
from easycore_ray.suspicion import LARGE_EPS, LARGE_EPS_IMAGES, SuspiciousEvaluation, suspicious, verdict
from easycore_ray.training import check_budget, open_checkpoint

SHARD_ROWS = 250
_NOTES = b"easycore"  # what shards say besides their outcomes, in the metadata of their tables


@dataclass(frozen=True, kw_only=True)
class Threats:
    """What images are attacked with."""

    attack: tuple[str, ...]
    eps: tuple[float, ...]
    norm: str
    seed: int

    def columns(self) -> list[str]:
        """Names of the outcome columns, e.g. ``robust_pgd20_8/255``."""
        return [outcome_column(name, eps) for name in self.attack for eps in self.eps]


def outcome_column(attack: str, eps: float) -> str:
    """Name of the column that says whether an image stays correct under an attack."""
    return f"robust_{attack}_{format_eps(eps)}"


@verb(EvaluateConfig)
def evaluate(config: EvaluateConfig) -> Artifact | None:
    """Attack a checkpoint and write what became of every image.

    The folder holds ``outcomes.parquet`` (``sample_id, label, clean_correct``, one boolean column per
    attack and eps) and ``summary.json`` (see ``summarise``).

    Returns:
        The evaluation, or None with ``dry_run``.

    Warns:
        SuspiciousEvaluation: if its own figures say that it flatters the model, also when it is reused.

    Raises:
        EasyCoreError: for a missing checkpoint or dataset, one of other classes or image shape, an eps wider than
            the images, best weights where there are none, or tasks that were lost too often.
    """
    started = time.monotonic()
    checkpoint, model = open_checkpoint(config.checkpoint, config.weights)
    dataset = open_dataset(config.dataset)
    check_fits(checkpoint, dataset)
    threats = threats_of(config)
    check_threats(threats, dataset.image_shape)
    sample_ids = evaluation_ids(dataset, config.split, config.num_samples, config.seed)
    out = paths.absolute(config.out)
    if config.dry_run:
        say(f"evaluate: would attack {len(sample_ids):,} images {len(threats.columns())} times → {out}")
        return None
    parents = {"checkpoint": checkpoint, "dataset": dataset.artifact}
    made = claim_evaluation(config, parents)
    if isinstance(made, Artifact):
        say(f"evaluate: {out} is finished, reused")
        _warn(made)
        return made
    with giving_back(made):
        cluster.connect()
        cpus = config.cpus_per_worker or 1.0
        cluster.preflight(cluster.Demand(num_workers=1, cpus_per_worker=cpus, gpus_per_worker=config.gpus_per_worker))
    outcomes = _attack_on_ray(config, made, model, dataset, sample_ids, threats)
    artifact = finish_evaluation(config, made, parents, outcomes, time.monotonic() - started)
    summary = artifact.manifest["summary"]
    for row in summary["robust"]:
        robust = _percent(row["accuracy"], row["interval"])
        say(f"evaluate: {row['attack']} at eps {format_eps(row['eps'])}: {robust}")
    for text in summary["warnings"]:
        say(f"evaluate: warning: {text}")
    clean = _percent(summary["clean_accuracy"], summary["clean_interval"])
    say(f"evaluate: clean {clean}, {len(sample_ids):,} images → {out}")
    _warn(artifact)
    return artifact


def _warn(evaluation: Artifact) -> None:
    """Say loudly what is suspicious in a finished evaluation."""
    signs = evaluation.manifest["summary"]["suspicious"]
    if signs:
        # Points at the line that called evaluate(), past its wrapper.
        warnings.warn(verdict(signs, evaluation.path), SuspiciousEvaluation, stacklevel=4)


def check_threats(threats: Threats, image_shape: tuple[int, ...]) -> None:
    """Refuse, before any work, budgets wider than the images and attacks that cannot run here.

    Raises:
        EasyCoreError: says which and what is allowed.
    """
    for eps in threats.eps:
        check_budget(eps, threats.norm, image_shape)
    if AUTOATTACK in threats.attack:
        check_autoattack(tuple(image_shape), threats.norm)


def threats_of(config: EvaluateConfig) -> Threats:
    """The threats a configuration names."""
    attack = tuple(name for name in config.attack if name != "none")
    return Threats(attack=attack, eps=config.eps, norm=config.norm, seed=config.seed)


def claim_evaluation(config: EvaluateConfig, parents: dict[str, Artifact]) -> Artifact | Claim:
    """Claim ``config.out`` for this evaluation; the finished one if it is there."""
    key = identity("evaluation", identity_fields(config), {role: p.fingerprint for role, p in parents.items()})
    return claim(paths.absolute(config.out), "evaluation", key, overwrite=config.overwrite)


def finish_evaluation(
    config: EvaluateConfig, made: Claim, parents: dict[str, Artifact], outcomes: pa.Table, seconds: float
) -> Artifact:
    """Write outcomes, summary and manifest."""
    summary = summarise(outcomes, threats_of(config), len(parents["dataset"].manifest["classes"]))
    buffer = io.BytesIO()
    pq.write_table(outcomes, buffer, compression="zstd")
    paths.write_bytes(paths.join(made.path, "outcomes.parquet"), buffer.getbuffer())
    paths.write_json(paths.join(made.path, "summary.json"), summary)
    artifact = finish(
        made,
        fingerprint=content_hash(buffer.getvalue()),
        config=to_dict(config),
        parents=parents,
        counts={"samples": outcomes.num_rows},
        wall_seconds=seconds,
        summary=summary,
    )
    paths.delete_tree(shard_folder(made))  # not before: hours of AutoAttack may be in it
    return artifact


def check_fits(checkpoint: Artifact, dataset: Dataset) -> None:
    """Refuse a checkpoint of other classes or image shape.

    Raises:
        EasyCoreError: names what differs.
    """
    model = checkpoint.manifest["model"]
    if tuple(model["image_shape"]) != tuple(dataset.image_shape) or model["num_classes"] != dataset.num_classes:
        raise EasyCoreError(
            f"{checkpoint.path} takes images of shape {tuple(model['image_shape'])} in {model['num_classes']} classes, "
            f"{dataset.path} has {tuple(dataset.image_shape)} in {dataset.num_classes}; "
            "pass the dataset it was trained on"
        )


def evaluation_ids(dataset: Dataset, split: str, num_samples: int | None, seed: int) -> np.ndarray:
    """Ids to attack: all of the split, or a fixed class-balanced draw."""
    total = dataset.num_rows(split)
    if total == 0:
        raise EasyCoreError(f"{dataset.path} has no {split} split; prepare it with one, or pass another --split")
    if num_samples is None or num_samples >= total:
        return dataset.index(split)["sample_id"].to_numpy()
    return draw_ids(dataset, split, num_samples, seed)


def attack_rows(
    model: nn.Module, rows: Rows, threats: Threats, *, device: str = "cpu", made: Claim | None = None
) -> pa.Table:
    """Outcomes of a set of rows, shard by shard, in this process.

    Args:
        model: returns logits of pixels in [0, 1].
        rows: images to attack, sorted by ``sample_id``; shards start at every 250th row.
        threats: attacks, budgets, seed.
        device: where to compute.
        made: the claim they are made under, to keep finished shards until all are: for AutoAttack, which takes hours.

    Returns:
        ``sample_id, label, clean_correct`` and one boolean column per attack and eps.
    """
    model = model.eval()
    shards = []
    for start in range(0, len(rows.labels), SHARD_ROWS):
        table = read_shard(made, _shard_name(start)) if made is not None else None
        if table is None:
            shard = Rows(*(column[start : start + SHARD_ROWS] for column in rows))
            table = attack_shard(model, shard, threats, device=device, first=start == 0)
            if made is not None and AUTOATTACK in threats.attack:
                write_shard(made, _shard_name(start), table)
        shards.append(table)
    return merge_shards(shards)


def _shard_name(start: int) -> str:
    return f"{start:09d}"


def merge_shards(shards: list[pa.Table]) -> pa.Table:
    """The shards' outcomes in one table, and what they noted: warnings with the number of shards they came from."""
    counts: dict[str, int] = {}
    for shard in shards:
        for text in _notes(shard)["warnings"]:
            counts[text] = counts.get(text, 0) + 1
    found = [f"{text} ({counts[text]} of {len(shards)} shards)" for text in sorted(counts)]
    large_eps = next((_notes(shard)["large_eps"] for shard in shards if _notes(shard)["large_eps"]), None)
    plain = [shard.replace_schema_metadata(None) for shard in shards]
    return _with_notes(pa.concat_tables(plain), found, large_eps)


def _with_notes(table: pa.Table, found: list[str], large_eps: list[int] | None) -> pa.Table:
    return table.replace_schema_metadata({_NOTES: json.dumps({"warnings": found, "large_eps": large_eps})})


def _notes(table: pa.Table) -> dict[str, Any]:
    """``warnings`` and ``large_eps`` (kept, attacked) of a table; empty for one that was written without."""
    return json.loads((table.schema.metadata or {}).get(_NOTES, '{"warnings": [], "large_eps": null}'))


def attack_shard(model: nn.Module, rows: Rows, threats: Threats, *, device: str, first: bool = False) -> pa.Table:
    """Outcomes of one shard; depends on the shard's ids and the threats alone.

    The first shard of an evaluation also tries a budget so large that nothing can withstand it (see
    ``suspicion``); what it finds and what AutoAttack warns of is in the table's metadata.
    """
    # AutoAttack hands on images channels first: convolutions follow their weights, and take 1 / 1.2 of the time.
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs, labels = prepare_inputs(rows.images, torch.device(device)), rows.labels.to(device)
    correct = _correct(model, inputs, labels)
    columns: dict[str, Any] = {
        "sample_id": rows.sample_ids.numpy(),
        "label": rows.labels.numpy().astype(np.int32),
    }
    columns["clean_correct"] = correct.cpu().numpy()
    start = int(rows.sample_ids[0])
    said: list[str] = []
    for name in threats.attack:
        for eps in threats.eps:
            robust = correct.clone()
            if correct.any():
                # What is wrong already needs no attack.
                picked, truth = inputs[correct], labels[correct]
                adversarial, found = _attacked(model, picked, truth, name, eps, threats, start)
                said += [f"{name} at eps {format_eps(eps)}: {text}" for text in found]
                robust[correct] = _correct(model, adversarial, truth)
            columns[outcome_column(name, eps)] = robust.cpu().numpy()
    large_eps = (
        _at_large_eps(model, inputs[correct], labels[correct], threats.seed) if first and threats.attack else None
    )
    return _with_notes(pa.table(columns), said, large_eps)


def _attacked(
    model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, name: str, eps: float, threats: Threats, start: int
) -> tuple[torch.Tensor, list[str]]:
    """Adversarial inputs of one attack, seeded by the shard's first id, and its warnings."""
    if name == AUTOATTACK:
        seed = derive_seed("evaluate", threats.seed, name, start)
        return autoattack(model, inputs, labels, eps=eps, norm=threats.norm, seed=seed)
    draws = generator("evaluate", threats.seed, name, start)
    return ATTACKS[name](model, inputs, labels, eps=eps, norm=threats.norm, generator=draws), []


def _at_large_eps(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, seed: int) -> list[int]:
    """How many of at most 100 images stay correct under PGD at a hopeless eps, and how many were tried."""
    inputs, labels = inputs[:LARGE_EPS_IMAGES], labels[:LARGE_EPS_IMAGES]
    if len(labels) == 0:
        return [0, 0]
    draws = generator("evaluate", seed, "large eps")
    adversarial = ATTACKS["pgd20"](model, inputs, labels, eps=LARGE_EPS, norm="linf", generator=draws)
    return [int(_correct(model, adversarial, labels).sum()), len(labels)]


@torch.no_grad()
def _correct(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return model(inputs).argmax(dim=1) == labels


def summarise(outcomes: pa.Table, threats: Threats, num_classes: int) -> dict[str, Any]:
    """Accuracies with 95 % Wilson intervals.

    Returns:
        ``num_samples, clean_accuracy, clean_interval, worst_class_clean_accuracy`` and ``robust``: one
        entry per attack and eps, then, with several attacks, one per eps named ``worst`` (pointwise).
        ``robust_accuracy, robust_interval``: of the images correct under all attacks at all eps, None
        without an attack. ``warnings`` of AutoAttack; ``suspicious``: see the module of that name.
    """
    labels = outcomes["label"].to_numpy()
    clean = outcomes["clean_correct"].to_numpy()
    robust = []
    for eps in threats.eps:
        each = {name: outcomes[outcome_column(name, eps)].to_numpy() for name in threats.attack}
        if len(each) > 1:
            each["worst"] = np.logical_and.reduce(list(each.values()))
        robust += [{"attack": name, "eps": eps, **_accuracy(kept, labels, num_classes)} for name, kept in each.items()]
    whole = _accuracy(clean, labels, num_classes)
    columns = [outcomes[name].to_numpy() for name in threats.columns()]
    headline = _accuracy(np.logical_and.reduce(columns), labels, num_classes) if columns else None
    notes = _notes(outcomes)
    return {
        "num_samples": len(labels),
        "clean_accuracy": whole["accuracy"],
        "clean_interval": whole["interval"],
        "worst_class_clean_accuracy": whole["worst_class_accuracy"],
        "robust": robust,
        "robust_accuracy": headline and headline["accuracy"],
        "robust_interval": headline and headline["interval"],
        "warnings": notes["warnings"],
        "suspicious": suspicious(robust, whole["accuracy"], len(labels), notes["large_eps"]),
    }


def _accuracy(kept: np.ndarray, labels: np.ndarray, num_classes: int) -> dict[str, Any]:
    return {
        "accuracy": float(kept.mean()),
        "interval": [float(bound) for bound in wilson_interval(int(kept.sum()), len(kept))],
        "worst_class_accuracy": float(worst_class_accuracy(kept, labels, num_classes)),
    }


def _attack_on_ray(
    config: EvaluateConfig, made: Claim, model: nn.Module, dataset: Dataset, sample_ids: np.ndarray, threats: Threats
) -> pa.Table:
    """One Ray task per shard that is not there yet, at most ``num_workers`` at a time; outcomes in id order."""
    import ray

    device = "cuda" if config.gpus_per_worker else "cpu"
    threads = config.threads_per_worker or max(1, int(config.cpus_per_worker or 1.0))
    shared = ray.put(model)
    shards = []
    for start in range(0, len(sample_ids), SHARD_ROWS):
        chunk = sample_ids[start : start + SHARD_ROWS]
        args = (shared, dataset.path, config.split, chunk, threats, device, threads, start == 0)
        shards.append(ShardTask(_shard_name(start), len(chunk), args))
    return merge_shards(
        run_shard_tasks(_attack_task, shards, made=made, config=config, label="evaluate", unit="images")
    )


def _attack_task(
    model: nn.Module,
    path: str,
    split: str,
    sample_ids: np.ndarray,
    threats: Threats,
    device: str,
    threads: int,
    first: bool,
) -> pa.Table:
    """What each Ray task runs: read a shard's images, attack them."""
    torch.set_num_threads(threads)
    rows = read_split(open_dataset(path), split, sample_ids)
    return attack_shard(model, rows, threats, device=device, first=first)


def _percent(value: float, interval: list[float]) -> str:
    return f"{100 * value:.1f} % [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
