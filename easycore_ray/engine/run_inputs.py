"""What a training or scoring run is made from: its dataset, coreset and the checkpoint it starts from; no torch."""

import math
from typing import Any

from easycore_ray.config.fields import ADVERSARIAL
from easycore_ray.config.stages import ScoreConfig, TrainConfig
from easycore_ray.core.eps import check_eps
from easycore_ray.core.names import default_width
from easycore_ray.data.coreset import open_run_data
from easycore_ray.data.dataset import Dataset
from easycore_ray.engine.extra_data import open_extra_parents
from easycore_ray.storage.artifact import Artifact, open_artifact
from easycore_ray.storage.errors import EasyCoreError

INIT_FROM = "init_from"
"""Role of the checkpoint that a run starts from, among its parents."""


def open_run_inputs(config: TrainConfig | ScoreConfig) -> tuple[Dataset, dict[str, Artifact]]:
    """The dataset a run reads, and its parents by role.

    They are ``dataset`` and, if given, ``coreset``, ``init_from``, ``extra_dataset`` and ``extra_coreset``.

    Raises:
        EasyCoreError: one is missing, unfinished or does not belong to the others, or the attack in training is wider
            than the images.
    """
    dataset, parents = open_run_data(config.dataset, config.coreset)
    check_training(config, dataset.image_shape)
    if config.init_from is not None:
        parents[INIT_FROM] = _open_initial(config, config.init_from, dataset)
    return dataset, parents | open_extra_parents(config, dataset)


def check_training(config: TrainConfig | ScoreConfig, image_shape: tuple[int, ...]) -> None:
    """Refuse, before any work, an attack in training that is wider than the images."""
    if config.training in ADVERSARIAL:
        check_budget(config.eps, config.norm, image_shape)


def check_budget(eps: float, norm: str, image_shape: tuple[int, ...]) -> None:
    """Refuse an eps by which no image of this shape can be changed: 8 for 8/255, above all.

    Raises:
        EasyCoreError: says what is allowed.
    """
    try:
        check_eps(eps, norm, num_pixels=math.prod(image_shape))
    except ValueError as error:
        raise EasyCoreError(str(error)) from error


def _open_initial(config: TrainConfig | ScoreConfig, path: str, dataset: Dataset) -> Artifact:
    """The checkpoint that a run starts from, if the run's network is of its kind."""
    checkpoint = open_artifact(path, "checkpoint")
    width = config.width if config.width is not None else default_width(config.model)
    wanted = _network(config.model, width, dataset.num_classes, dataset.image_shape)
    model = checkpoint.manifest["model"]
    there = _network(model["name"], model["width"], model["num_classes"], model["image_shape"])
    differing = [name for name in wanted if wanted[name] != there[name]]
    if differing:
        theirs, ours = (", ".join(f"{name} {each[name]}" for name in differing) for each in (there, wanted))
        raise EasyCoreError(
            f"{checkpoint.path} does not fit as --init-from: it has {theirs}, this run {ours}; pass the --model, "
            "--width and dataset that it was trained with, or another checkpoint"
        )
    return checkpoint


def _network(name: str, width: int | None, num_classes: int, image_shape: Any) -> dict[str, Any]:
    return {"model": name, "width": width, "classes": num_classes, "image shape": tuple(image_shape)}
