"""analyze(): the paper's claims, tested on the user's own data and models.

Takes scoring runs and checkpoints of one dataset; attacks a draw of the training samples, equally many of every decile
by AIGN, and compares the runs with each other; gives a verdict per claim, tables, pictures and a page. A sample is
attacked for its distance to the decision boundary, and everything about attacks follows from that one number, so that
curves at all eps and the distance cannot contradict each other.
"""

import io
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from easycore_ray.analysis.inputs import Inputs, Model, open_analysis
from easycore_ray.analysis.paper_claims import SampleGroup, class_mix, describe_group, finite, verdicts
from easycore_ray.analysis.plans import plan_analyze
from easycore_ray.analysis.score_agreement import Run, compare
from easycore_ray.config.base import to_dict, verb
from easycore_ray.config.experiments import AnalyzeConfig
from easycore_ray.config.identity import identity_fields
from easycore_ray.core.attacks import pgd20
from easycore_ray.core.distance import boundary_distance, distances
from easycore_ray.core.eps import format_eps
from easycore_ray.core.loop import prepare_inputs
from easycore_ray.core.memory import RowLimit, default_rows
from easycore_ray.core.passes import predicted_right
from easycore_ray.core.seeding import generator
from easycore_ray.core.trend_test import DECILES
from easycore_ray.data.dataset import image_bytes_per_row, open_dataset
from easycore_ray.data.samples import Samples, read_split
from easycore_ray.evaluation.attack_shards import SHARD_ROWS, TaskDevice, task_demand
from easycore_ray.reporting.inspect_text import count_text
from easycore_ray.runtime import cluster
from easycore_ray.runtime.claims import claim_artifact
from easycore_ray.runtime.console import duration, say
from easycore_ray.runtime.tasks import KeptResults, LongLived, map_tasks, worker_resources
from easycore_ray.scoring.score_reader import input_space_of
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import (
    Artifact,
    Claim,
    finish,
    giving_back,
)
from easycore_ray.storage.hashes import content_hash
from easycore_ray.tracking.mlflow import track_if_named
from easycore_ray.tracking.runs import TrackedRun, data_of, describe_job

ANALYSIS_PAGE = "analysis.html"
SAMPLES, SUMMARY = "samples.parquet", "summary.json"


class Analysis(Artifact):
    """A finished analysis."""

    @property
    def page(self) -> str:
        """Path of the HTML page."""
        return paths.join(self.path, ANALYSIS_PAGE)

    @property
    def claims(self) -> list[dict[str, str]]:
        """A verdict for each claim: ``key, claim, outcome, sentence``."""
        return self.manifest["claims"]


@verb(AnalyzeConfig, gives=Analysis, plan=plan_analyze)
def analyze(config: AnalyzeConfig) -> Artifact:
    """Test the claims and write what was found.

    The folder holds ``samples.parquet`` (a row for each attacked sample and model: ``model, sample_id, label, score,
    decile, seen, clean_correct, distance`` and ``robust_<eps>``), ``summary.json`` (every number behind the page),
    ``plots/*.png`` and ``analysis.html``.

    Returns:
        The analysis.

    Raises:
        EasyCoreError: inputs that are missing, do not belong together or are too few, or workers the cluster cannot
            give.
    """
    started = time.monotonic()
    inputs = open_analysis(config)
    out = paths.absolute(config.out)
    made = claim_artifact("analysis", config, inputs.parents)
    if isinstance(made, Artifact):
        say(f"analyze: {out} is finished, reused")
        track_if_named(config, made.path, lambda _: _describe(config, made))
        return made
    if inputs.models:
        with giving_back(made):
            inputs.read_networks()
            cluster.connect()
            cluster.preflight(task_demand(config), "analyze")
    samples = attack_samples(config, inputs, made)
    artifact = finish_analysis(config, made, inputs, samples, started)
    for text in artifact.manifest["warnings"]:
        say(f"analyze: warning: {text}")
    count = count_text(len(artifact.manifest["claims"]), "claim")
    say(f"analyze: {count} tested in {duration(time.monotonic() - started)} → {out}")
    track_if_named(config, artifact.path, lambda _: _describe(config, artifact))
    return artifact


def _describe(config: AnalyzeConfig, analysis: Artifact) -> TrackedRun:
    """The MLflow run of a finished analysis: what became of each claim as tags, its page and pictures as files."""
    manifest = analysis.manifest
    return describe_job(
        analysis.path,
        "analysis",
        "analyze",
        to_dict(config),
        points={0: dict(manifest["counts"])},
        tags={f"claim.{entry['key']}": entry["outcome"] for entry in manifest["claims"]}
        | {"mlflow.note.content": "\n".join(f"- {entry['sentence']}" for entry in manifest["claims"])},
        files={name: paths.join(analysis.path, name) for name in manifest["files"] if not name.endswith(".parquet")},
        data=data_of(manifest["parents"], "evaluation"),
    )


def finish_analysis(config: AnalyzeConfig, made: Claim, inputs: Inputs, samples: pa.Table, started: float) -> Artifact:
    """Test the claims on the attacked samples, write everything, and the manifest.

    Args:
        config: as given.
        made: the claim on the folder.
        inputs: opened.
        samples: what ``attack_samples`` gives.
        started: reading of ``time.monotonic`` when the work began.
    """
    summary = summarise_claims(config, inputs, samples)
    files = _write(config, inputs, samples, summary, made.path)
    artifact = finish(
        made,
        fingerprint=content_hash(*(content_hash(name, content) for name, content in files.items())),
        config=to_dict(config),
        parents=inputs.parents,
        counts={"samples": samples.num_rows, "models": len(inputs.models), "scoring_runs": len(inputs.runs)},
        wall_seconds=time.monotonic() - started,
        files=list(files),
        claims=[{key: entry[key] for key in ("key", "claim", "outcome", "sentence")} for entry in summary["claims"]],
        warnings=summary["warnings"],
    )
    paths.delete_tree(KeptResults(made).folder)  # not before: hours of attacks may be in it
    return artifact


# --- attacks ------------------------------------------------------------------------------------


def attack_samples(config: AnalyzeConfig, inputs: Inputs, made: Claim | None = None) -> pa.Table:
    """``samples.parquet``: every model and shard of 250 drawn samples, attacked.

    Args:
        config: attacks and resources.
        inputs: opened.
        made: the claim they are attacked under: by Ray actors, and each result is kept until all are there. Without
            one, they are attacked one after the other in this process.
    """
    if not inputs.models:
        return _samples(inputs, [], config)
    networks: list[Any] = inputs.read_networks()
    if made is not None:
        import ray

        networks = [ray.put(network) for network in networks]
    attacker = LongLived(SampleAttacker, (inputs.dataset.path, config, *networks))
    chunks = [inputs.drawn[start : start + SHARD_ROWS] for start in range(0, len(inputs.drawn), SHARD_ROWS)]
    items = [(number, chunk) for number in range(len(networks)) for chunk in chunks]
    names = [f"{number:03d}-{chunk[0]:012d}" for number in range(len(networks)) for chunk in chunks]

    def fits(number: int, table: pa.Table) -> bool:
        ids = chunks[number % len(chunks)]
        return "sample_id" in table.column_names and np.array_equal(table["sample_id"].to_numpy(), ids)

    tables = map_tasks(
        attacker,
        items,
        label="analyze",
        resources=None if made is None else worker_resources(config),
        rows=[len(chunk) for _ in networks for chunk in chunks],
        unit="images",
        kept=None if made is None else KeptResults(made, names, fits),
    )
    starts = range(0, len(tables), len(chunks))
    return _samples(inputs, [pa.concat_tables(tables[start : start + len(chunks)]) for start in starts], config)


class SampleAttacker:
    """Attacks shard after shard of training samples in one process, which loads networks and libraries once.

    Args:
        path: folder of the dataset.
        config: attacks and resources.
        networks: return logits.
    """

    def __init__(self, path: str, config: AnalyzeConfig, *networks: nn.Module) -> None:
        device = TaskDevice.from_config(config)
        torch.set_num_threads(device.threads)
        self._dataset, self._config, self._device, self._networks = open_dataset(path), config, device.name, networks
        self._limit = RowLimit(config.eval_batch_size or default_rows(image_bytes_per_row(self._dataset)))

    def __call__(self, number: int, sample_ids: NDArray[np.int64]) -> pa.Table:
        """What ``measure_shard`` finds of the samples of these ids, int64 (n,), with the network of this number."""
        rows, config = read_split(self._dataset, "train", sample_ids), self._config
        network = self._networks[number].to(self._device)
        return measure_shard(
            network, rows, config.eval_eps, norm=config.norm, seed=config.seed, device=self._device, limit=self._limit
        )


def measure_shard(
    network: nn.Module,
    rows: Samples,
    eps: Sequence[float],
    *,
    norm: str,
    seed: int,
    device: str = "cpu",
    limit: RowLimit | None = None,
) -> pa.Table:
    """Distances to the decision boundary of one shard; they depend on its ids and these arguments alone.

    Args:
        network: returns logits; put in evaluation mode.
        rows: images uint8 (B, C, H, W) with ids and labels int64 (B,).
        eps: budgets at which PGD-20 searches below the distance found, in [0, 1] pixel units.
        norm: one of ``threat.NORMS``.
        seed: of PGD's random starts.
        device: ``cpu`` or ``cuda``.
        limit: images that go through the network at once; by default what ``memory.default_rows`` says.

    Returns:
        B rows: sample_id int64, label int32, clean_correct bool, distance float64 (0 where the clean image is wrong).
    """
    inputs, labels = prepare_inputs(rows.images, torch.device(device)), rows.labels.to(device)
    network, limit = network.eval(), limit or RowLimit(default_rows(rows.images[:1].numel()))
    correct = predicted_right(network, inputs, labels, limit)
    distance = torch.zeros(len(labels), device=device)
    if correct.any():
        start = int(rows.sample_ids[0])
        distance[correct] = nearest_error(
            network, inputs[correct], labels[correct], eps, norm=norm, seed=seed, start=start, limit=limit
        )
    columns = {
        "sample_id": rows.sample_ids.numpy(),
        "label": rows.labels.numpy().astype(np.int32),
        "clean_correct": correct.cpu().numpy(),
        "distance": distance.double().cpu().numpy(),
    }
    return pa.table(columns)


def nearest_error(
    network: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    eps: Sequence[float],
    *,
    norm: str,
    seed: int,
    start: int,
    limit: RowLimit | None = None,
) -> Tensor:
    """Distance to the nearest point that any attack finds wrong: the minimum-norm attack, then PGD-20 at every eps.

    PGD attacks the samples not fooled so far, at rising eps: a sample fooled within an eps is fooled within all larger.

    Args:
        network: returns logits; gets all of ``inputs`` right.
        inputs: (B, …) float pixels in [0, 1].
        labels: int64 (B,).
        eps: budgets of PGD, in [0, 1] pixel units.
        norm: one of ``threat.NORMS``.
        seed: of PGD's random starts, with ``start``.
        start: first id of the shard.
        limit: images that go through the network at once; by default what ``memory.default_rows`` says.

    Returns:
        Float (B,), in pixel units of the norm; inf where nothing was found.
    """
    limit = limit or RowLimit(default_rows(inputs[:1].numel()))
    nearest = limit.map(lambda *some: boundary_distance(network, *some, norm=norm)[0], inputs, labels)
    found = torch.cat(nearest)
    for number, radius in enumerate(sorted(eps)):
        left = torch.nonzero(found > radius)[:, 0]
        if radius == 0 or len(left) == 0:
            continue
        draws = generator("analyze", seed, "pgd20", number, start)
        points = pgd20(network, inputs[left], labels[left], eps=radius, norm=norm, generator=draws, limit=limit)
        wrong = ~predicted_right(network, points, labels[left], limit)
        # Rounding may carry a point past its ball by a hair; it was found within it.
        reached = distances(points, inputs[left], norm).clamp(max=radius)
        found[left] = torch.where(wrong, torch.minimum(reached, found[left]), found[left])
    return found


def _samples(inputs: Inputs, attacked: Sequence[pa.Table], config: AnalyzeConfig) -> pa.Table:
    """The attacked samples of all models, with score, decile, whether seen in training, and robustness at each eps."""
    run = inputs.runs[0]
    rows = np.searchsorted(run.sample_ids, inputs.drawn)
    parts = []
    for number, table in enumerate(attacked):
        seen = inputs.models[number].seen
        columns: dict[str, Any] = {
            "model": pa.array(np.full(table.num_rows, number, np.int32)),
            "sample_id": table["sample_id"],
            "label": table["label"],
            "score": pa.array(run.scores[rows]),
            "decile": pa.array(inputs.deciles[rows].astype(np.int32)),
            "seen": pa.nulls(table.num_rows, pa.bool_()) if seen is None else pa.array(np.isin(inputs.drawn, seen)),
            "clean_correct": table["clean_correct"],
            "distance": table["distance"],
        }
        distance = table["distance"].to_numpy()
        columns |= {f"robust_{format_eps(eps)}": pa.array(distance > eps) for eps in sorted(config.eval_eps)}
        parts.append(pa.table(columns))
    return pa.concat_tables(parts) if parts else pa.table({"sample_id": pa.array([], pa.int64())})


# --- what was found -----------------------------------------------------------------------------


def groups_of(inputs: Inputs, samples: pa.Table) -> list[SampleGroup]:
    """For each model its attacked samples, apart for those it was trained on and those not, where it has both."""
    run, found = inputs.runs[0], []
    hard = run.hard[np.searchsorted(run.sample_ids, inputs.drawn)]
    for number, model in enumerate(inputs.models):
        mine = samples.filter(pa.array(samples["model"].to_numpy() == number))
        columns = [mine[name].to_numpy() for name in ("decile", "clean_correct", "distance")]
        if model.seen is None:
            parts = {"unknown": np.ones(len(hard), bool)}
        else:
            seen = mine["seen"].to_numpy()
            parts = {"seen": seen, "unseen": ~seen} if seen.any() and not seen.all() else {}
            parts = parts or {"all" if seen.all() else "unseen": np.ones(len(hard), bool)}
        for which, rows in parts.items():
            decile, correct, distance = (column[rows] for column in columns)
            found.append(SampleGroup(model.name, which, hard[rows], decile.astype(np.int64), correct, distance))
    return found


def summarise_claims(config: AnalyzeConfig, inputs: Inputs, samples: pa.Table) -> dict[str, Any]:
    """Every number behind the page, as JSON content."""
    run, eps = inputs.runs[0], sorted(config.eval_eps)
    groups, pairs = groups_of(inputs, samples), compare(inputs.runs)
    return {
        "score": config.score,
        "norm": config.norm,
        "eps": eps,
        "num_scored_samples": len(run.sample_ids),
        "num_samples": len(inputs.drawn) if inputs.models else 0,
        "scoring_runs": [_describe_run(each) for each in inputs.runs],
        "models": [_describe_model(each, inputs.drawn) for each in inputs.models],
        "claims": verdicts(config, groups, inputs.runs, pairs, inputs.deciles, inputs.dataset.classes),
        "groups": [describe_group(group, eps) for group in groups],
        "score_deciles": [_describe_score_decile(inputs, number) for number in range(1, DECILES + 1)],
        "class_mix": class_mix(run, inputs.dataset.num_classes),
        "pairs": [vars(pair) for pair in pairs],
        "warnings": inputs.warnings,
    }  # fmt: skip


def _describe_run(run: Run) -> dict[str, Any]:
    recipe = run.recipe or {}
    known = {name: recipe.get(name) for name in ("epochs", "score_pass")}
    known |= {"network": run.network, "seed": run.seed, "input_space": input_space_of(run.hardness)}
    return {"name": run.name, "path": run.hardness.path, **known}


def _describe_model(model: Model, drawn: NDArray[np.int64]) -> dict[str, Any]:
    seen = None if model.seen is None else int(np.isin(drawn, model.seen).sum())
    return {"name": model.name, "path": model.artifact.path, "drawn_seen": seen}


def _describe_score_decile(inputs: Inputs, number: int) -> dict[str, Any]:
    run = inputs.runs[0]
    mine = inputs.deciles == number
    entry: dict[str, Any] = {
        "decile": number,
        "samples": int(mine.sum()),
        "score_range": [finite(run.scores[mine].min()), finite(run.scores[mine].max())],
        "class_histogram": np.bincount(run.labels[mine], minlength=inputs.dataset.num_classes).tolist(),
    }
    if run.first_learned is not None:
        learned = run.first_learned[mine]
        epochs, counts = np.unique(learned, return_counts=True)
        names = [f"{epoch:.0f}" if np.isfinite(epoch) else "never" for epoch in epochs]
        entry["first_learned"] = dict(zip(names, counts.tolist(), strict=True))
    return entry


def _write(
    config: AnalyzeConfig, inputs: Inputs, samples: pa.Table, summary: dict[str, Any], out: str
) -> dict[str, bytes]:
    """Write all files; their content by name."""
    from easycore_ray.reporting.analysis_page import render_analysis

    buffer = io.BytesIO()
    pq.write_table(samples, buffer, compression="zstd")
    lineage = {
        "parents": {role: parent.as_parent() for role, parent in inputs.parents.items()},
        "config": identity_fields(config),
    }
    files = {SAMPLES: buffer.getvalue(), **render_analysis(summary, inputs.dataset.classes, lineage, ANALYSIS_PAGE)}
    for name, content in files.items():
        paths.write_bytes(paths.join(out, name), content)
    paths.write_json(paths.join(out, SUMMARY), summary)
    files[SUMMARY] = paths.read_bytes(paths.join(out, SUMMARY))
    return files
