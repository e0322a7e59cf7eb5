"""Where the values of a command line start: a preset, or the configuration saved in a manifest."""

import dataclasses
from collections.abc import Callable
from typing import Any

from easycore_ray.config.base import from_dict
from easycore_ray.config.evaluation import OF_WEIGHTS_FILE, EvaluateConfig
from easycore_ray.config.experiments import AnalyzeConfig, PipelineConfig, StudyConfig, SweepConfig
from easycore_ray.config.presets import PRESETS, STUDIES
from easycore_ray.config.stages import PrepareConfig, ScoreConfig, TrainConfig
from easycore_ray.storage.errors import EasyCoreError

# What is said of the folder as it is found, never of the result.
_OF_ONE_CALL = ("overwrite", "take_over")


def saved_fields(kind: type[Any], path: str) -> dict[str, Any]:
    """What the configuration in a manifest says of a job.

    Raises:
        EasyCoreError: if there is none, or it is another job's.
    """
    from easycore_ray.storage import paths

    path = paths.absolute(path)
    paths.reach(path)
    manifest = paths.read_json(path)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("config"), dict):
        raise EasyCoreError(f"{path} holds no configuration; pass the manifest.json of an artifact")
    config = from_dict(kind, manifest["config"])
    return {key: value for key, value in vars(config).items() if value is not None and key not in _OF_ONE_CALL}


def preset_fields(kind: type[Any], preset: str) -> dict[str, Any]:
    """What a preset says of a job: its own fields of the pipeline, or of the pipeline's stage."""
    if kind is StudyConfig:
        return _study_fields(preset)
    if preset not in PRESETS:
        raise EasyCoreError(f"unknown preset {preset!r}; allowed are {', '.join(PRESETS)}")
    config = PRESETS[preset]("pending")
    stages: dict[type[Any], Callable[[], Any]] = {
        PipelineConfig: lambda: config,
        PrepareConfig: config.prepare_config,
        ScoreConfig: lambda: config.score_config("pending"),
        SweepConfig: lambda: config.sweep_config("pending", "pending"),
    }
    source = stages[kind]() if kind in stages else config
    names = {spec.name for spec in dataclasses.fields(kind)} - {
        "out",
        "dataset",
        "scores",
        "coreset",
        "extra_dataset",
        "extra_coreset",
        *_OF_ONE_CALL,
    }
    found = {key: value for key, value in vars(source).items() if key in names}
    if kind in stages:
        return found
    # A job that trains or selects once has no use for the sweep's lists.
    found = {key: value for key, value in found.items() if not isinstance(value, tuple)}
    if kind is TrainConfig:
        found |= {"epochs": config.train_epochs, "milestones": config.milestones}
        # A preset of one objective says it to a single run, too.
        if len(config.training) == 1:
            found |= {"training": config.training[0], **({"beta": config.beta[0]} if len(config.beta) == 1 else {})}
    if kind is EvaluateConfig:
        found = {key: value for key, value in found.items() if key not in OF_WEIGHTS_FILE}
        found |= {"attack": config.attack, "eval_eps": config.eval_eps, "num_eval_samples": config.num_eval_samples}
    if kind is AnalyzeConfig:
        found |= {"eval_eps": config.eval_eps}
    return found


def _study_fields(preset: str) -> dict[str, Any]:
    """What a study's preset says."""
    if preset not in STUDIES:
        raise EasyCoreError(f"unknown preset {preset!r} of a study; allowed are {', '.join(STUDIES)}")
    config = STUDIES[preset]("pending", "pending")
    return {key: value for key, value in vars(config).items() if key not in ("out", "dataset", *_OF_ONE_CALL)}
