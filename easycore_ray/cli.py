"""The one way a job runs: preset or saved configuration first, then flags, then the verb.

Mistakes of the person at the keyboard end in one line on standard error (the parser's own in a box) and exit code
2; anything else that escapes is a bug and keeps its traceback.
"""

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from easycore_ray.config.base import JobConfig, from_dict
from easycore_ray.config.experiments import AnalyzeConfig, PipelineConfig, StudyConfig, SweepConfig
from easycore_ray.config.presets import PRESETS, STUDIES
from easycore_ray.config.stages import EvaluateConfig, PrepareConfig, ScoreConfig, TrainConfig
from easycore_ray.data.ingest.sources import is_path
from easycore_ray.storage import paths
from easycore_ray.storage.errors import EasyCoreError

_SOURCES = {"source", "test_source"}
_PATHS = {
    "out", "dataset", "scores", "coreset", "checkpoint", "sweep", "user_scores", "classes", "path", "images",
    "results",
} | _SOURCES  # fmt: skip

_FIRST = """
Besides the options below: --preset {{{names}}} fills in what is left out, and
--config PATH/manifest.json repeats the run that made that artifact.
"""


def run(kind: type[Any], verb: Callable[[Any], Any], argv: Sequence[str] | None = None) -> Any:
    """Parse a command line into ``kind``, call ``verb`` with it; exits with code 2 on a user's mistake."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return verb(parse(kind, arguments))
    except EasyCoreError as error:
        # One line, also where a library's message inside it has more.
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        raise SystemExit(130) from None


def show(text: str) -> None:
    """Print a result; no error if the reader (``| head``) has seen enough."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parse(kind: type[Any], arguments: list[str]) -> Any:
    """The configuration a command line describes."""
    if not issubclass(kind, JobConfig):
        return _parse(kind, arguments, {}, kind.__doc__ or "")
    preset, arguments = _take(arguments, "--preset")
    saved, arguments = _take(arguments, "--config")
    if preset is not None and saved is not None:
        raise EasyCoreError("--preset and --config are both given; pass one of them")
    fields: dict[str, Any] = {}
    if preset is not None:
        fields = preset_fields(kind, preset)
    if saved is not None:
        fields = saved_fields(kind, saved)
    names = ",".join(STUDIES if kind is StudyConfig else PRESETS)
    return _parse(kind, arguments, fields, (kind.__doc__ or "") + "\n" + _FIRST.format(names=names))


def _parse(kind: type[Any], arguments: list[str], fields: dict[str, Any], description: str) -> Any:
    """The flags, with other defaults for some fields."""
    name = f"python -m jobs.{kind.__name__.removesuffix('Config').lower()}"
    parsed = tyro.cli(_unchecked(kind, fields), args=arguments, prog=name, description=description)
    return kind(**{key: _from_here(key, value) for key, value in vars(parsed).items()})


def _from_here(name: str, value: Any) -> Any:
    """Paths absolute, so that they mean the same to every process and in the saved configuration."""
    if isinstance(value, tuple):
        return tuple(_from_here(name, entry) for entry in value)
    named = name in _SOURCES and isinstance(value, str) and not is_path(value)
    return paths.absolute(value) if name in _PATHS and value is not None and not named else value


def saved_fields(kind: type[Any], path: str) -> dict[str, Any]:
    """What the configuration in a manifest says of a job.

    Raises:
        EasyCoreError: if there is none, or it is another job's.
    """
    path = paths.absolute(path)
    paths.reach(path)
    manifest = paths.read_json(path)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("config"), dict):
        raise EasyCoreError(f"{path} holds no configuration; pass the manifest.json of an artifact")
    config = from_dict(kind, manifest["config"])
    return {key: value for key, value in vars(config).items() if value is not None and key != "overwrite"}


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
        "overwrite",
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
        found |= {"attack": config.attack, "eval_eps": config.eval_eps, "num_eval_samples": config.num_eval_samples}
    if kind is AnalyzeConfig:
        found |= {"eval_eps": config.eval_eps}
    return found


def _study_fields(preset: str) -> dict[str, Any]:
    """What a study's preset says."""
    if preset not in STUDIES:
        raise EasyCoreError(f"unknown preset {preset!r} of a study; allowed are {', '.join(STUDIES)}")
    config = STUDIES[preset]("pending", "pending")
    return {key: value for key, value in vars(config).items() if key not in ("out", "dataset", "overwrite")}


def _unchecked(kind: type[Any], fields: dict[str, Any]) -> type[Any]:
    """``kind`` with other defaults, so that the help shows what will be used, and without its checks.

    The parser would wrap what they say in words and a frame of its own.
    """
    specs = {spec.name: spec for spec in dataclasses.fields(kind)}
    changed = [(name, specs[name].type, dataclasses.field(default=value)) for name, value in fields.items()]
    body = {"__post_init__": lambda self: None, "__doc__": kind.__doc__}  # noqa: ARG005
    return dataclasses.make_dataclass(kind.__name__, changed, bases=(kind,), namespace=body, frozen=True, kw_only=True)


def _take(arguments: list[str], flag: str) -> tuple[str | None, list[str]]:
    """The value of ``--flag VALUE`` or ``--flag=VALUE``, and the arguments without it."""
    rest: list[str] = []
    value: str | None = None
    waiting = False
    for argument in arguments:
        if waiting:
            value, waiting = argument, False
        elif argument == flag:
            waiting = True
        elif argument.startswith(flag + "="):
            value = argument.removeprefix(flag + "=")
        else:
            rest.append(argument)
    if waiting:
        raise EasyCoreError(f"{flag} needs a value")
    return value, rest
