"""What an analysis looks at: scoring runs, checkpoints and a draw of samples, opened and checked without torch."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from easycore_ray.analysis.score_agreement import Run, network_name, open_runs
from easycore_ray.config.experiments import AnalyzeConfig
from easycore_ray.core.trend_test import DECILES, deciles, draw_from_deciles
from easycore_ray.data.coreset import read_sample_ids
from easycore_ray.data.dataset import Dataset, open_dataset
from easycore_ray.evaluation.threats import check_fits
from easycore_ray.storage.artifact import Artifact, open_artifact
from easycore_ray.storage.errors import EasyCoreError

LEAST_PER_DECILE = 5


@dataclass(frozen=True)
class Model:
    """A checkpoint whose training samples are attacked."""

    name: str
    artifact: Artifact
    seen: NDArray[np.int64] | None
    """Sorted ids it was trained on; None if that is not known."""

    @functools.cached_property
    def network(self) -> Any:
        """The network, in evaluation mode; read when it is first asked for.

        Raises:
            EasyCoreError: the weights are damaged or not there.
        """
        from easycore_ray.engine.checkpoint import open_checkpoint  # imports torch, which a dry run does without

        return open_checkpoint(self.artifact.path)[1]


@dataclass(frozen=True)
class Inputs:
    """Everything an analysis looks at, opened and checked."""

    dataset: Dataset
    runs: list[Run]
    models: list[Model]
    deciles: NDArray[np.int64]
    """1 .. 10 of each of the first run's samples."""
    drawn: NDArray[np.int64]
    """Sorted ids of the samples that are attacked."""
    warnings: list[str]

    @property
    def parents(self) -> dict[str, Artifact]:
        """Artifacts by role; the first scores and checkpoint without a number."""
        found: dict[str, Artifact] = {"dataset": self.dataset}
        for role, artifacts in (
            ("hardness_table", [run.hardness for run in self.runs]),
            ("checkpoint", [model.artifact for model in self.models]),
        ):
            for number, artifact in enumerate(artifacts, start=1):
                found[role if number == 1 else f"{role}_{number}"] = artifact
        return found

    def read_networks(self) -> list[Any]:
        """The networks of the models, in order."""
        return [model.network for model in self.models]


def open_analysis(config: AnalyzeConfig) -> Inputs:
    """Open everything, check that it belongs together, and draw the samples.

    Raises:
        EasyCoreError: says what does not fit.
    """
    runs = open_runs(config.scores, config.score)
    theirs = runs[0].hardness.manifest["dataset"]
    dataset = open_dataset(config.dataset or theirs["path"])
    if dataset.fingerprint != theirs["fingerprint"]:
        raise EasyCoreError(
            f"{runs[0].hardness.path} holds scores of {theirs['path']} (fingerprint {theirs['fingerprint'][:12]}), "
            f"not of {dataset.path} ({dataset.fingerprint[:12]}); pass the dataset that was scored"
        )
    count, present = len(runs[0].labels), len(np.unique(runs[0].labels))
    if present < 2:
        raise EasyCoreError(f"all {count:,} scored samples are of one class; an attack needs another to lead to")
    if count < LEAST_PER_DECILE * DECILES:
        raise EasyCoreError(
            f"{count:,} samples are scored, {LEAST_PER_DECILE * DECILES} are needed: {LEAST_PER_DECILE} for each decile"
        )
    warnings: list[str] = []
    models = _assign_names([_open_model(path, dataset, warnings) for path in config.checkpoint])
    by_hardness = deciles(runs[0].hard, runs[0].sample_ids)
    drawn = draw_from_deciles(by_hardness, runs[0].sample_ids, config.num_train_samples, config.seed)
    return Inputs(dataset, runs, models, by_hardness, drawn, warnings)


def _open_model(path: str, dataset: Dataset, warnings: list[str]) -> Model:
    artifact = open_artifact(path, "checkpoint")
    check_fits(artifact, dataset)
    parents, config, model = artifact.manifest["parents"], artifact.manifest["config"], artifact.manifest["model"]
    name = f"{config.get('training', 'model')} {network_name(model['name'], model['width'])}"
    if "coreset" in parents:
        name += f" on {artifact.manifest['counts']['samples']:,}"
    seen, problem = None, ""
    if parents.get("dataset", {}).get("fingerprint") != dataset.fingerprint:
        problem = "was trained on another dataset"
    elif "coreset" not in parents:
        seen = dataset.index("train", ["sample_id"])["sample_id"].to_numpy()
    else:
        try:
            coreset = open_artifact(parents["coreset"]["path"], "coreset")
            if coreset.fingerprint == parents["coreset"]["fingerprint"]:
                seen = read_sample_ids(coreset)
        except EasyCoreError:
            pass
        problem = "" if seen is not None else f"was trained on the coreset {parents['coreset']['path']}, which is gone"
    if problem:
        warnings.append(
            f"{artifact.path} {problem}: which samples it has seen is not known, so they are not reported apart"
        )
    return Model(name, artifact, seen)


def _assign_names(models: Sequence[Model]) -> list[Model]:
    """The models with names that differ: by seed where that helps, else by number."""
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        names = [
            f"{name}, seed {model.artifact.manifest['config'].get('seed')}"
            for name, model in zip(names, models, strict=True)
        ]
    if len(set(names)) < len(names):
        names = [f"{name} (model {number})" for number, name in enumerate(names, start=1)]
    return [replace(model, name=name) for name, model in zip(names, models, strict=True)]
