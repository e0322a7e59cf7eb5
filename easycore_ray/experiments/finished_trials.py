"""What the trials of a sweep have made: the manifest of each artifact, read once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from easycore_ray.data.dataset import Dataset
from easycore_ray.engine.run_identity import claim_run, run_identity
from easycore_ray.engine.run_inputs import open_run_inputs
from easycore_ray.experiments.trials import Trial
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import MANIFEST, Artifact, from_manifest, open_artifact
from easycore_ray.storage.read_ahead import read_ahead


@dataclass(frozen=True)
class FinishedTrial:
    """A trial and what it has made."""

    trial: Trial
    checkpoint: Artifact
    evaluations: tuple[Artifact, ...]
    """Of the last epoch, and of its other weights; see ``Trial.evaluations``."""

    @classmethod
    def open(cls, trial: Trial) -> "FinishedTrial":
        """Of one that is known to be finished.

        Raises:
            EasyCoreError: it is not.
        """
        checkpoint = open_artifact(trial.train.out, "checkpoint")
        evaluations = [open_artifact(each.out, "evaluation") for each in trial.evaluations(checkpoint.manifest)]
        return cls(trial, checkpoint, tuple(evaluations))

    @property
    def summaries(self) -> dict[str, dict[str, Any]]:
        """What the evaluations found, by their weights, ``last`` first; see ``evaluate.summarise_outcomes``."""
        configs = self.trial.evaluations(self.checkpoint.manifest)
        return {
            config.weights: each.manifest["summary"] for config, each in zip(configs, self.evaluations, strict=True)
        }


def read_finished(trials: Iterable[Trial]) -> dict[str, FinishedTrial]:
    """Those of the trials that are finished, by ``Trial.place``, in their order.

    Folders are listed once for all trials in them, and files read several at a time: on an object store a request for
    each artifact.

    Raises:
        EasyCoreError: one was made by another configuration, or from other inputs.
    """
    trials = list(trials)
    manifests = _list_manifests(trials)
    listed = [trial for trial in trials if {trial.train.out, trial.evaluate.out} <= manifests.keys()]
    reads = ((manifests[trial.train.out].size, partial(_read, trial, manifests)) for trial in listed)
    found = [each for each in read_ahead(reads) if each is not None]
    _check_made_by(found)
    return {each.trial.place: each for each in found}


def _list_manifests(trials: Sequence[Trial]) -> dict[str, paths.Entry]:
    """The manifests in the folders of trials, by the path of their artifact."""
    above = dict.fromkeys(trial.train.out.rpartition("/")[0].rpartition("/")[0] for trial in trials)
    entries = (entry for folder in above for entry in paths.entries(folder))
    return {entry.path.removesuffix(f"/{MANIFEST}"): entry for entry in entries if entry.path.endswith(f"/{MANIFEST}")}


def _read(trial: Trial, manifests: dict[str, paths.Entry]) -> FinishedTrial | None:
    """A trial whose checkpoint and first evaluation are there; None if another is missing."""

    def read(out: str, kind: str) -> Artifact:
        return from_manifest(out, paths.read_listed_json(manifests[out]), kind)

    checkpoint = read(trial.train.out, "checkpoint")
    evaluations = [config.out for config in trial.evaluations(checkpoint.manifest)]
    if not manifests.keys() >= set(evaluations):
        return None
    return FinishedTrial(trial, checkpoint, tuple(read(out, "evaluation") for out in evaluations))


def _check_made_by(found: Sequence[FinishedTrial]) -> None:
    """Refuse checkpoints of other configurations or inputs; those that trials share are opened once."""
    opened: dict[tuple[str | None, ...], tuple[Dataset, dict[str, Artifact]]] = {}
    for each in found:
        config = each.trial.train
        inputs = config.dataset, config.coreset, config.extra_dataset, config.extra_coreset
        if inputs not in opened:
            opened[inputs] = open_run_inputs(config)
        _, parents = opened[inputs]
        if each.checkpoint.manifest["identity"] != run_identity("checkpoint", config, parents):
            claim_run("checkpoint", config, parents)  # says what is there
