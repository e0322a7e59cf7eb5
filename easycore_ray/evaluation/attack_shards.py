"""Attacks in fixed shards of the evaluated images, by Ray actors or in this process."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from easycore_ray.config.base import ComputeConfig, ResourceConfig
from easycore_ray.config.evaluation import EvaluateConfig
from easycore_ray.core.attacks import ATTACKS, carries_gradient
from easycore_ray.core.calibration import add_bins, calibration_bins
from easycore_ray.core.eps import format_eps
from easycore_ray.core.loop import prepare_inputs
from easycore_ray.core.memory import RowLimit, default_rows
from easycore_ray.core.passes import predict, predicted_right
from easycore_ray.core.seeding import derive_seed, generator
from easycore_ray.data.dataset import Dataset, image_bytes_per_row, open_dataset
from easycore_ray.data.samples import Samples, read_split
from easycore_ray.evaluation.autoattack import autoattack
from easycore_ray.evaluation.corrupted import corrupted_outcomes
from easycore_ray.evaluation.machine_cost import with_cost
from easycore_ray.evaluation.sanity_checks import LARGE_EPS, LARGE_EPS_IMAGES
from easycore_ray.evaluation.threats import AUTOATTACK, Threats, outcome_column
from easycore_ray.runtime.cluster import Demand
from easycore_ray.runtime.devices import check_device
from easycore_ray.runtime.tasks import KeptResults, LongLived, map_tasks, worker_resources
from easycore_ray.storage.artifact import Claim

SHARD_ROWS = 250
_NOTES = b"easycore"  # what shards say besides their outcomes, in the metadata of their tables


@dataclass(frozen=True)
class TaskDevice:
    """Where a Ray task or actor computes."""

    name: str
    """``cpu`` or ``cuda``."""
    threads: int
    """CPU threads of the task."""

    @classmethod
    def from_config(cls, config: ComputeConfig) -> "TaskDevice":
        """A GPU if tasks are given any; as many threads as the configuration says."""
        return cls(config.device, config.threads)


def task_demand(config: ResourceConfig) -> Demand:
    """What a single task or one-worker trial must at least be given."""
    return Demand(1, config.cpus_per_worker or 1.0, config.gpus_per_worker, most=config.most)


def attack_rows(
    model: nn.Module, rows: Samples, threats: Threats, *, device: str = "cpu", made: Claim | None = None
) -> pa.Table:
    """Outcomes of a set of rows in one table, see ``attack_in_shards``."""
    return merge_shards(attack_in_shards(model, rows, threats, device=device, made=made))


def attack_in_shards(
    model: nn.Module, rows: Samples, threats: Threats, *, device: str = "cpu", made: Claim | None = None
) -> list[pa.Table]:
    """Outcomes of a set of rows, shard by shard, in this process, each with its cost (``machine_cost``).

    Args:
        model: returns logits of pixels in [0, 1].
        rows: images to attack, sorted by ``sample_id``; shards start at every 250th row.
        threats: attacks, budgets, seed.
        device: where to compute.
        made: the claim they are made under, to keep finished shards until all are: for AutoAttack, which takes hours.

    Returns:
        ``sample_id, label, clean_correct`` and one boolean column per attack and eps, then per corruption and severity.
    """
    model, limit = model.eval(), limit_of(threats, rows.images[:1].numel())
    starts = range(0, len(rows.labels), SHARD_ROWS)

    def attack(start: int) -> pa.Table:
        shard = Samples(*(column[start : start + SHARD_ROWS] for column in rows))
        return with_cost(
            lambda: attack_shard(model, shard, threats, device=device, first=start == 0, limit=limit), device
        )

    chunks = [rows.sample_ids[start : start + SHARD_ROWS].numpy() for start in starts]
    kept = kept_shards(made, threats, chunks) if made is not None and AUTOATTACK in threats.attack else None
    return map_tasks(attack, [(start,) for start in starts], label="evaluate", kept=kept)


def limit_of(threats: Threats, image_bytes: int) -> RowLimit:
    """How many images go through the model at once: what the threats say, else what their size (bytes) does."""
    return RowLimit(threats.batch_size or default_rows(image_bytes))


def kept_shards(made: Claim, threats: Threats, chunks: Sequence[np.ndarray]) -> KeptResults:
    """Where the outcomes of shards are kept until all are made, by the ids (int64) of each shard."""
    columns = ["sample_id", "label", "clean_correct", *threats.columns(), *threats.corruption_columns()]

    def fits(number: int, table: pa.Table) -> bool:
        return table.column_names == columns and np.array_equal(table["sample_id"].to_numpy(), chunks[number])

    return KeptResults(made, [f"{number * SHARD_ROWS:09d}" for number in range(len(chunks))], fits)


def merge_shards(shards: list[pa.Table]) -> pa.Table:
    """The shards' outcomes in one table, and what they noted: warnings with the number of shards they came from."""
    counts: dict[str, int] = {}
    for shard in shards:
        for text in notes_of(shard)["warnings"]:
            counts[text] = counts.get(text, 0) + 1
    found = [f"{text} ({counts[text]} of {len(shards)} shards)" for text in sorted(counts)]
    notes = list(map(notes_of, shards))
    large_eps = next((note["large_eps"] for note in notes if note["large_eps"]), None)
    bins = [note["calibration"] for note in notes]
    plain = [shard.replace_schema_metadata(None) for shard in shards]
    return with_notes(
        pa.concat_tables(plain),
        warnings=found,
        large_eps=large_eps,
        no_gradient=any(note["no_gradient"] for note in notes),
        calibration=add_bins(bins) if all(bins) else None,
    )


def with_notes(table: pa.Table, **notes: Any) -> pa.Table:
    """The table with what its shard noted beside the outcomes, see ``notes_of``."""
    noted = {name: value for name, value in notes.items() if name in ("warnings", "large_eps") or value}
    return table.replace_schema_metadata({_NOTES: json.dumps(noted)})


def notes_of(table: pa.Table) -> dict[str, Any]:
    """What a table says beside its outcomes; as little as it was written with.

    ``warnings``; ``large_eps`` (kept, attacked) and ``no_gradient``, see ``sanity_checks``; ``calibration`` of the
    clean predictions, see ``core.calibration``: None in a table of an earlier version.
    """
    written = json.loads((table.schema.metadata or {}).get(_NOTES, "{}"))
    return {"warnings": [], "large_eps": None, "no_gradient": False, "calibration": None} | written


def attack_shard(
    model: nn.Module,
    rows: Samples,
    threats: Threats,
    *,
    device: str,
    first: bool = False,
    limit: RowLimit | None = None,
) -> pa.Table:
    """Outcomes of one shard; they depend on the shard's ids and the threats alone.

    The first shard of an evaluation also runs the sanity checks of the model (eps = 0.5, any gradient at all; see
    ``sanity_checks``). Their results, the warnings of AutoAttack and the calibration of the clean predictions are
    stored in the table's metadata.

    Args:
        model: returns logits; moved to the device.
        rows: images uint8 (B, C, H, W) with ids and labels int64 (B,).
        threats: attacks and budgets.
        device: ``cpu`` or ``cuda``.
        first: whether to run the sanity checks.
        limit: images that go through the model at once; that of the threats if None. Where it was halved for want of
            memory, the shard's warnings say so.

    Returns:
        B rows: sample_id int64, label int32, clean_correct bool, a bool column per attack and eps, then per corruption
        and severity.
    """
    # AutoAttack hands on images channels first: convolutions follow their weights, and take 1 / 1.2 of the time.
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs, labels = prepare_inputs(rows.images, torch.device(device)), rows.labels.to(device)
    limit = limit or limit_of(threats, rows.images[:1].numel())
    correct, confidence = predict(model, inputs, labels, limit)
    columns: dict[str, Any] = {
        "sample_id": rows.sample_ids.numpy(),
        "label": rows.labels.numpy().astype(np.int32),
    }
    columns["clean_correct"] = correct.cpu().numpy()
    robust, messages = _attack_all(model, (inputs, labels, correct), threats, int(rows.sample_ids[0]), limit)
    columns |= robust
    columns |= corrupted_outcomes(model, rows, threats, device=device, limit=limit)
    large_eps = (
        _at_large_eps(model, inputs[correct], labels[correct], threats.seed, limit)
        if first and threats.attack
        else None
    )
    no_gradient = first and bool(threats.attack) and not carries_gradient(model, inputs[:1])
    messages += [limit.message] * bool(limit.message)
    bins = calibration_bins(confidence.cpu().numpy(), columns["clean_correct"])
    return with_notes(
        pa.table(columns), warnings=messages, large_eps=large_eps, no_gradient=no_gradient, calibration=bins
    )


def _attack_all(
    model: nn.Module,
    clean: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    threats: Threats,
    start: int,
    limit: RowLimit,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """A column per attack and eps, and what the attacks warn of.

    Args:
        model: returns logits.
        clean: inputs, labels, and which are right; what is wrong already needs no attack.
        threats: attacks and budgets.
        start: the shard's first id.
        limit: images that go through the model at once.
    """
    inputs, labels, correct = clean
    columns, messages = {}, []
    for name in threats.attack:
        for eps in threats.eps:
            robust = correct.clone()
            if correct.any():
                picked, truth = inputs[correct], labels[correct]
                adversarial, found = _attacked(model, picked, truth, (name, eps), threats, start, limit)
                messages += [f"{name} at eps {format_eps(eps)}: {text}" for text in found]
                robust[correct] = predicted_right(model, adversarial, truth, limit)
            columns[outcome_column(name, eps)] = robust.cpu().numpy()
    return columns, messages


def _attacked(
    model: nn.Module,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    attack: tuple[str, float],
    threats: Threats,
    start: int,
    limit: RowLimit,
) -> tuple[torch.Tensor, list[str]]:
    """Adversarial inputs of one attack (name, eps), seeded by the shard's first id, and its warnings."""
    name, eps = attack
    if name == AUTOATTACK:
        seed = derive_seed("evaluate", threats.seed, name, start)
        return autoattack(model, inputs, labels, eps=eps, norm=threats.norm, seed=seed, limit=limit)
    draws = generator("evaluate", threats.seed, name, start)
    more = {"restarts": threats.pgd_restarts} if name == "pgd20" else {}
    return ATTACKS[name](model, inputs, labels, eps=eps, norm=threats.norm, generator=draws, limit=limit, **more), []


def _at_large_eps(
    model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, seed: int, limit: RowLimit
) -> list[int]:
    """How many of at most 100 images stay correct under PGD at a hopeless eps, and how many were tried."""
    inputs, labels = inputs[:LARGE_EPS_IMAGES], labels[:LARGE_EPS_IMAGES]
    if len(labels) == 0:
        return [0, 0]
    draws = generator("evaluate", seed, "large eps")
    adversarial = ATTACKS["pgd20"](model, inputs, labels, eps=LARGE_EPS, norm="linf", generator=draws, limit=limit)
    return [int(predicted_right(model, adversarial, labels, limit).sum()), len(labels)]


def _attack_on_ray(
    config: EvaluateConfig, made: Claim, model: nn.Module, dataset: Dataset, sample_ids: np.ndarray, threats: Threats
) -> list[pa.Table]:
    """Shards that are not there yet, on ``num_workers`` long-lived actors; all in id order."""
    import ray

    starts = range(0, len(sample_ids), SHARD_ROWS)
    chunks = [sample_ids[start : start + SHARD_ROWS] for start in starts]
    items = [(chunk, start == 0) for start, chunk in zip(starts, chunks, strict=True)]
    attacker = LongLived(
        ShardAttacker, (ray.put(model), dataset.path, config.split, threats, TaskDevice.from_config(config))
    )
    return map_tasks(
        attacker, items, label="evaluate", resources=worker_resources(config), rows=list(map(len, chunks)),
        unit="images", kept=kept_shards(made, threats, chunks),
    )  # fmt: skip


class ShardAttacker:
    """Attacks shard after shard in one process, which loads model and libraries once.

    Args:
        model: returns logits.
        path: folder of the dataset.
        split: of the images.
        threats: attacks and budgets.
        device: where to compute.
    """

    def __init__(self, model: nn.Module, path: str, split: str, threats: Threats, device: TaskDevice) -> None:
        torch.set_num_threads(device.threads)
        check_device(device.name)
        self._dataset, self._split, self._threats, self._device = open_dataset(path), split, threats, device.name
        self._model = model.to(device.name)
        self._limit = limit_of(threats, image_bytes_per_row(self._dataset))

    def __call__(self, sample_ids: np.ndarray, first: bool) -> pa.Table:
        """Outcomes of the shard of these ids, int64 (n,); the first one also runs the sanity checks."""
        rows = read_split(self._dataset, self._split, sample_ids)
        device, limit = self._device, self._limit
        return with_cost(
            lambda: attack_shard(self._model, rows, self._threats, device=device, first=first, limit=limit), device
        )
