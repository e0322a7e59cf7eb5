"""Coresets as views on a dataset: the ids of the samples that are kept."""

import io
from collections.abc import Mapping

import numpy as np

from easycore_ray.data.dataset import Dataset, open_dataset
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Artifact, open_artifact
from easycore_ray.storage.errors import EasyCoreError


class Coreset(Artifact):
    """The kept samples of a dataset; their ids are int64 (samples,), ascending."""

    def sample_ids(self) -> np.ndarray:
        """The kept ids: int64 (samples,), ascending."""
        return read_sample_ids(self)


def open_coreset(path: str, dataset: Dataset) -> Coreset:
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
    return Coreset(coreset.path, coreset.manifest)


def open_run_data(dataset: str, coreset: str | None) -> tuple[Dataset, dict[str, Artifact]]:
    """The dataset a training or scoring run reads, and its parents by role: ``dataset`` and, if given, ``coreset``.

    Raises:
        EasyCoreError: one is missing, unfinished or does not belong to the other.
    """
    opened = open_dataset(dataset)
    parents: dict[str, Artifact] = {"dataset": opened}
    if coreset is not None:
        parents["coreset"] = open_coreset(coreset, opened)
    return opened, parents


def count_run_rows(dataset: Dataset, parents: Mapping[str, Artifact]) -> int:
    """Samples of a run with these parents: those of the coreset, else the whole training split."""
    coreset = parents.get("coreset")
    return dataset.num_rows("train") if coreset is None else coreset.manifest["counts"]["samples"]


def read_sample_ids(coreset: Artifact) -> np.ndarray:
    """The kept ids: int64 (k,), ascending.

    Raises:
        EasyCoreError: their file is missing or damaged.
    """
    where = paths.join(coreset.path, "sample_ids.npy")
    try:
        return np.load(io.BytesIO(paths.read_bytes(where)), allow_pickle=False)
    except EasyCoreError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise EasyCoreError(f"{where} cannot be read ({error}); it is damaged") from error
