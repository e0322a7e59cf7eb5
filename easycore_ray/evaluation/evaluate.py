"""evaluate(): clean and robust accuracy of a model.

Images are attacked in fixed shards of 250 by ``sample_id``, each with a seed of its own, so that the
outcome of every image is the same on any number of workers. The headline is the pointwise worst: an
image counts as robust if it stays correct under every attack that was run.
"""

import io
import math
import time
import warnings
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from easycore_ray.config.base import to_dict, verb
from easycore_ray.config.evaluation import EvaluateConfig
from easycore_ray.core.calibration import expected_calibration_error
from easycore_ray.core.eps import format_eps, parse_eps
from easycore_ray.core.metrics import wilson_interval, worst_class_accuracy
from easycore_ray.data.dataset import Dataset, draw_ids, open_dataset
from easycore_ray.evaluation.attack_shards import _attack_on_ray, merge_shards, notes_of, task_demand
from easycore_ray.evaluation.attacked_model import load_attacked, open_attacked
from easycore_ray.evaluation.claim import check_claim, write_claim
from easycore_ray.evaluation.corrupted import corruption_text, summarise_corruptions
from easycore_ray.evaluation.machine_cost import cost_of
from easycore_ray.evaluation.plans import plan_evaluate
from easycore_ray.evaluation.sanity_checks import SuspiciousEvaluation, suspicious, verdict
from easycore_ray.evaluation.threats import (
    Threats,
    check_split,
    check_threats,
    outcome_column,
    threats_of,
)
from easycore_ray.evaluation.tracked_evaluation import describe_evaluation
from easycore_ray.runtime import cluster
from easycore_ray.runtime.claims import claim_artifact
from easycore_ray.runtime.console import say
from easycore_ray.runtime.tasks import KeptResults
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Artifact, Claim, finish, giving_back
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.storage.hashes import content_hash
from easycore_ray.tracking.mlflow import track_if_named


class Evaluation(Artifact):
    """What became of the attacked images. Accuracies are shares in [0, 1]."""

    @property
    def summary(self) -> dict[str, Any]:
        """All figures, see ``summarise_outcomes``."""
        return self.manifest["summary"]

    @property
    def clean_accuracy(self) -> float:
        """Share of the images classified right without an attack."""
        return self.summary["clean_accuracy"]

    def robust_accuracy(self, eps: float | str, attack: str | None = None) -> float:
        """Share of the images still right under the attack at an eps.

        Args:
            eps: in [0, 1] pixel units, one of those evaluated; a number or text such as ``8/255``.
            attack: name of one; by default the pointwise worst of all that were run.

        Raises:
            EasyCoreError: names what was evaluated.
        """
        wanted = parse_eps(eps) if isinstance(eps, str) else eps
        # The last row of an eps is the pointwise worst, with several attacks, or the only one.
        rows = {row["attack"]: row for row in self.summary["robust"] if math.isclose(row["eps"], wanted)}
        if rows and attack is None:
            return list(rows.values())[-1]["accuracy"]
        if attack not in rows:
            there = ", ".join(f"{row['attack']} at {format_eps(row['eps'])}" for row in self.summary["robust"])
            raise EasyCoreError(
                f"{self.path} has no {attack or 'robust'} accuracy at eps {format_eps(wanted)}; "
                f"it has {there or 'none'}"
            )
        return rows[attack]["accuracy"]

    def outcomes(self) -> pa.Table:
        """One row per image: sample_id int64, label int32, clean_correct bool, a bool column per attack and eps."""
        return pq.read_table(io.BytesIO(paths.read_bytes(paths.join(self.path, "outcomes.parquet"))))


@verb(EvaluateConfig, gives=Evaluation, plan=plan_evaluate)
def evaluate(config: EvaluateConfig) -> Artifact:
    """Attack a checkpoint, or weights of others, and write what became of every image.

    The folder holds ``outcomes.parquet`` (``sample_id, label, clean_correct``, one boolean column per
    attack and eps, one per corruption and severity) and ``summary.json`` (see ``summarise_outcomes``).

    Returns:
        The evaluation.

    Warns:
        SuspiciousEvaluation: if its own figures suggest overestimated robustness, also when it is reused.

    Raises:
        EasyCoreError: for a missing checkpoint or dataset, one of other classes or image shape, weights that do not
            fit or hold code, an eps wider than the images, best weights where there are none, or tasks that were lost
            too often.
    """
    started = time.monotonic()
    dataset = open_dataset(config.dataset)
    attacked = open_attacked(config, dataset)
    if config.claim is not None:
        check_claim(paths.absolute(config.claim))
    (model,) = (load_attacked(config, each) for each in attacked.values())
    threats = threats_of(config)
    check_threats(threats, dataset.image_shape)
    sample_ids = evaluation_ids(dataset, config.split, config.num_eval_samples, config.seed)
    out = paths.absolute(config.out)
    parents = attacked | {"dataset": dataset}
    made = claim_artifact("evaluation", config, parents)
    if isinstance(made, Artifact):
        say(f"evaluate: {out} is finished, reused")
        _claim(config, made, attacked, dataset)
        track_if_named(config, made.path, lambda _: describe_evaluation(config, made.path))
        _warn(made)
        return made
    with giving_back(made):
        cluster.connect()
        cluster.preflight(task_demand(config), "evaluate")
    shards = _attack_on_ray(config, made, model, dataset, sample_ids, threats)
    artifact = finish_evaluation(config, made, parents, shards, time.monotonic() - started)
    summary = artifact.manifest["summary"]
    for row in summary["robust"]:
        robust = _percent(row["accuracy"], row["interval"])
        say(f"evaluate: {row['attack']} at eps {format_eps(row['eps'])}: {robust}")
    if "corruptions" in summary:
        say(f"evaluate: corrupted: {corruption_text(summary)}")
    for text in summary["warnings"]:
        say(f"evaluate: warning: {text}")
    clean = _percent(summary["clean_accuracy"], summary["clean_interval"])
    ece = f", calibration error {100 * summary['clean_ece']:.1f} %" if "clean_ece" in summary else ""
    say(f"evaluate: clean {clean}{ece}, {len(sample_ids):,} images → {out}")
    _claim(config, artifact, attacked, dataset)
    track_if_named(config, artifact.path, lambda _: describe_evaluation(config, artifact.path))
    _warn(artifact)
    return artifact


def _claim(config: EvaluateConfig, evaluation: Artifact, attacked: dict[str, Artifact], dataset: Dataset) -> None:
    """Write the claim that was asked for, and say what is left to fill in."""
    if config.claim is None:
        return
    where = paths.absolute(config.claim)
    (model,) = attacked.values()
    missing = write_claim(where, evaluation, model, dataset)
    say(f"evaluate: claim → {where}" + (f"; left to fill in: {', '.join(missing)}" if missing else ""))


def _warn(evaluation: Artifact) -> None:
    """Report loudly what is suspicious in a finished evaluation."""
    signs = evaluation.manifest["summary"]["suspicious"]
    if signs:
        # Points at the line that called evaluate(), past its wrapper.
        warnings.warn(verdict(signs, evaluation.path), SuspiciousEvaluation, stacklevel=4)


def finish_evaluation(
    config: EvaluateConfig, made: Claim, parents: dict[str, Artifact], shards: list[pa.Table], seconds: float
) -> Artifact:
    """Write outcomes, summary and manifest, which says what the shards took (``machine_cost.cost_of``)."""
    outcomes = merge_shards(shards)
    summary = summarise_outcomes(outcomes, threats_of(config), len(parents["dataset"].manifest["classes"]))
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
        machine_cost=cost_of(shards),
    )
    paths.delete_tree(KeptResults(made).folder)  # not before: hours of AutoAttack may be in it
    return artifact


def evaluation_ids(dataset: Dataset, split: str, num_samples: int | None, seed: int) -> np.ndarray:
    """Ids of the images to attack: all of the split, or a fixed class-balanced draw.

    Args:
        dataset: a finished one.
        split: train, val or test.
        num_samples: size of the draw; all if None.
        seed: of the draw.

    Returns:
        int64 (n,).
    """
    total = check_split(dataset, split)
    if num_samples is None or num_samples >= total:
        return dataset.index(split, ["sample_id"])["sample_id"].to_numpy()
    return draw_ids(dataset, split, num_samples, seed)


def summarise_outcomes(outcomes: pa.Table, threats: Threats, num_classes: int) -> dict[str, Any]:
    """Accuracies with 95 % Wilson intervals.

    Returns:
        ``num_samples, clean_accuracy, clean_interval, worst_class_clean_accuracy``, ``clean_ece`` (expected calibration
        error, see ``core.calibration``; not for outcomes of an earlier version) and ``robust``: one
        entry per attack and eps, then, with several attacks, one per eps named ``worst`` (pointwise).
        ``robust_accuracy, robust_interval``: of the images correct under all attacks at all eps, None
        without an attack. With corruptions ``corruption_accuracy`` and ``corruptions``, see
        ``summarise_corruptions``. ``warnings`` of AutoAttack; ``suspicious``: see ``sanity_checks``.
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
    notes = notes_of(outcomes)
    return {
        "num_samples": len(labels),
        "clean_accuracy": whole["accuracy"],
        "clean_interval": whole["interval"],
        "worst_class_clean_accuracy": whole["worst_class_accuracy"],
        **({"clean_ece": expected_calibration_error(notes["calibration"])} if notes["calibration"] else {}),
        "robust": robust,
        "robust_accuracy": headline and headline["accuracy"],
        "robust_interval": headline and headline["interval"],
        **summarise_corruptions(outcomes, threats),
        "warnings": notes["warnings"],
        "suspicious": suspicious(
            robust, whole["accuracy"], len(labels), notes["large_eps"], no_gradient=notes["no_gradient"]
        ),
    }


def _accuracy(kept: np.ndarray, labels: np.ndarray, num_classes: int) -> dict[str, Any]:
    return {
        "accuracy": float(kept.mean()),
        "interval": [float(bound) for bound in wilson_interval(int(kept.sum()), len(kept))],
        "worst_class_accuracy": float(worst_class_accuracy(kept, labels, num_classes)),
    }


def _percent(value: float, interval: list[float]) -> str:
    return f"{100 * value:.1f} % [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
