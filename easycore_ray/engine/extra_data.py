"""The extra data of a run: a second dataset whose classes are matched by name with those of the main one; no torch."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from easycore_ray.config.recipes import ExtraDataConfig, extra_batch_rows
from easycore_ray.data.coreset import Coreset, open_coreset
from easycore_ray.data.dataset import Dataset, open_dataset
from easycore_ray.storage.artifact import Artifact
from easycore_ray.storage.errors import EasyCoreError

EXTRA_DATASET, EXTRA_CORESET = "extra_dataset", "extra_coreset"
"""Roles among a run's parents."""
_MOST_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class ExtraData:
    """Extra rows of a run, as plain data that can be sent to workers."""

    dataset: str
    coreset: Coreset | None
    """Its samples that are mixed in; None: its whole training split."""
    num_rows: int
    batch_rows: int
    """Extra rows of a global batch."""
    labels: tuple[int, ...]
    """The label in the main dataset of each of its own."""
    lacking: tuple[str, ...]
    """Classes of the main dataset that it does not have."""

    def describe(self, batch_size: int) -> str:
        """What is mixed in, for people."""
        text = f"{self.batch_rows:,} of {batch_size:,} rows of each batch are of {self.num_rows:,} in {self.dataset}"
        return text + (f", which has no class {_name_some(self.lacking)}" if self.lacking else "")


def open_extra(config: ExtraDataConfig) -> dict[str, Artifact]:
    """The extra dataset of a configuration and, if given, its coreset, by role; nothing without extra data.

    Raises:
        EasyCoreError: one is missing or unfinished, or they do not belong together.
    """
    if config.extra_dataset is None:
        return {}
    extra = open_dataset(config.extra_dataset)
    found: dict[str, Artifact] = {EXTRA_DATASET: extra}
    if config.extra_coreset is not None:
        found[EXTRA_CORESET] = open_coreset(config.extra_coreset, extra)
    return found


def open_extra_parents(config: ExtraDataConfig, dataset: Dataset) -> dict[str, Artifact]:
    """What ``open_extra`` gives, if it goes with the main dataset.

    Raises:
        EasyCoreError: also for images of another shape, and for classes that the main dataset does not have.
    """
    parents = open_extra(config)
    if not parents:
        return {}
    extra = Dataset(parents[EXTRA_DATASET].path, parents[EXTRA_DATASET].manifest)
    if extra.image_shape != dataset.image_shape:
        theirs, ours = ("x".join(map(str, each.image_shape)) for each in (extra, dataset))
        raise EasyCoreError(
            f"--extra-dataset {extra.path} has images of {theirs}, {dataset.path} of {ours}; prepare it with "
            f"--image-size {dataset.image_shape[-1]}, from images with as many channels"
        )
    match_classes(extra, dataset)
    if not extra.num_rows("train"):
        raise EasyCoreError(f"--extra-dataset {extra.path} has no training samples; prepare it with fewer held out")
    return parents


def extra_data(config: ExtraDataConfig, dataset: Dataset, parents: Mapping[str, Artifact]) -> ExtraData | None:
    """The extra rows of a run.

    Args:
        config: of the run.
        dataset: the main one.
        parents: of the run, by role.
    """
    if EXTRA_DATASET not in parents:
        return None
    extra = Dataset(parents[EXTRA_DATASET].path, parents[EXTRA_DATASET].manifest)
    coreset = parents.get(EXTRA_CORESET)
    labels = match_classes(extra, dataset)
    return ExtraData(
        dataset=extra.path,
        coreset=None if coreset is None else Coreset(coreset.path, coreset.manifest),
        num_rows=count_extra_rows(parents),
        batch_rows=extra_batch_rows(config),
        labels=labels,
        lacking=tuple(name for label, name in enumerate(dataset.classes) if label not in {*labels}),
    )


def count_extra_rows(parents: Mapping[str, Artifact]) -> int:
    """Extra samples of a run with these parents; 0 without extra data."""
    if EXTRA_DATASET not in parents:
        return 0
    if EXTRA_CORESET in parents:
        return int(parents[EXTRA_CORESET].manifest["counts"]["samples"])
    return int(parents[EXTRA_DATASET].manifest["counts"]["train"])


def match_classes(extra: Dataset, dataset: Dataset) -> tuple[int, ...]:
    """The label in the main dataset of each label of the extra one: by name or, where neither names its classes, equal.

    Raises:
        EasyCoreError: the extra dataset has a class that the main one does not have, or neither has names and their
            numbers of classes differ.
    """
    if not _is_named(extra) and not _is_named(dataset) and extra.num_classes != dataset.num_classes:
        raise EasyCoreError(
            f"--extra-dataset {extra.path} has {extra.num_classes:,} classes, {dataset.path} {dataset.num_classes:,}, "
            "and neither has names for them to be matched by; prepare both with --classes FILE"
        )
    known = {name: label for label, name in enumerate(dataset.classes)}
    foreign = [name for name in extra.classes if name not in known]
    if foreign:
        raise EasyCoreError(
            f"--extra-dataset {extra.path} has classes that {dataset.path} does not have: {_name_some(foreign)}; it "
            f"has {_name_some(dataset.classes)}: prepare the extra data with --classes FILE that names them so, or "
            "leave those images out"
        )
    return tuple(known[name] for name in extra.classes)


def own_labels(labels: np.ndarray, of_main: tuple[int, ...]) -> np.ndarray:
    """Main labels (n,) as labels of the extra dataset, int64 (n,); ``of_main`` as from ``match_classes``."""
    found = np.full(max(of_main) + 1, -1)
    found[list(of_main)] = np.arange(len(of_main))
    return found[labels]


def _is_named(dataset: Dataset) -> bool:
    """Whether its classes have names; else they are called by their numbers."""
    return bool(dataset.manifest.get("names_from", True))


def _name_some(names: tuple[str, ...] | list[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(map(str, names[:_MOST_NAMED])) + (f" and {more:,} more" if more > 0 else "")
