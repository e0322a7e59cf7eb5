"""What all configurations share: checked construction, conversion to JSON content, verbs called with keywords."""

import dataclasses
import difflib
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar, get_type_hints

from easycore_ray.config.field_types import settle
from easycore_ray.config.fields import Workers, at_least, workers_problems
from easycore_ray.config.signatures import describe_verb
from easycore_ray.config.work_plan import WorkPlan
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Artifact
from easycore_ray.storage.errors import EasyCoreError, FieldsError

T_co = TypeVar("T_co", covariant=True)


def to_dict(config: Any) -> dict[str, Any]:
    """All fields as JSON content (tuples become lists)."""
    return {key: _plain(value) for key, value in dataclasses.asdict(config).items()}


def from_dict(kind: type[Any], content: dict[str, Any]) -> Any:
    """The configuration a manifest holds; lists become tuples again, unknown fields are refused."""
    known = {spec.name for spec in dataclasses.fields(kind)}
    unknown = sorted(set(content) - known)
    if unknown:
        raise EasyCoreError(f"unknown fields {', '.join(unknown)} for {kind.__name__}; is this another job's manifest?")
    try:
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in content.items()})
    except TypeError as error:
        raise EasyCoreError(f"this is no whole {kind.__name__}: {error}; is the manifest damaged?") from error


class Verb(Protocol[T_co]):
    """A function of one configuration that is also called with that configuration's fields as keywords."""

    __name__: str
    kind: type[Any]
    """Its configuration."""

    def __call__(self, config: Any = None, /, **fields: Any) -> T_co:
        """Do it, or find that it was done before."""
        ...

    def plan(self, config: Any = None, /, *, measure: bool = False, **fields: Any) -> WorkPlan:
        """What it would do, without doing it."""
        ...


def verb(
    kind: type[Any], *, gives: Callable[..., T_co], plan: Callable[[Any, bool], WorkPlan] | None = None
) -> Callable[[Callable[[Any], Any]], Verb[T_co]]:
    """Make a verb of a function of one configuration. The object stores it names are asked first (``paths.reach``).

    Args:
        kind: the configuration.
        gives: class of the handle it returns, made from the path and manifest of the artifact; a plain type for a verb
            that returns no artifact.
        plan: says what it would do, from the configuration and whether to measure; the attribute ``plan`` calls it.
    """

    def decorate(function: Callable[[Any], Any]) -> Verb[T_co]:
        @functools.wraps(function)
        def call(config: Any = None, /, **fields: Any) -> Any:
            done = function(_configure(function.__name__, kind, config, fields))
            return gives(done.path, done.manifest) if isinstance(done, Artifact) else done

        def call_plan(config: Any = None, /, *, measure: bool = False, **fields: Any) -> WorkPlan:
            assert plan is not None
            return plan(_configure(function.__name__, kind, config, fields), measure)

        if plan is not None:
            call.plan = call_plan  # type: ignore[attr-defined]
        return describe_verb(call, kind, gives)

    return decorate


def _configure(verb: str, kind: type[Any], config: Any, fields: dict[str, Any]) -> Any:
    """The configuration a verb was called with, once the object stores it names have answered."""
    if config is not None and fields:
        raise TypeError(f"pass a {kind.__name__} or keywords to {verb}, not both")
    if config is None:
        _check_names(verb, kind, fields)
    config = kind(**fields) if config is None else config
    paths.reach(*vars(config).values())
    return config


def _check_names(verb: str, kind: type[Any], given: Iterable[str]) -> None:
    """Refuse keywords that are no fields, and fields without a default that are missing."""
    specs = dataclasses.fields(kind)
    names = [spec.name for spec in specs]
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"its fields are {', '.join(names)}"
            raise TypeError(f"{verb}() has no field {name!r}; {hint}")
    missing = [spec.name for spec in specs if spec.default is dataclasses.MISSING and spec.name not in given]
    if missing:
        raise TypeError(f"{verb}() needs {' and '.join(missing)} as well")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


class Checked:
    """A dataclass whose fields are checked when it is made."""

    def __post_init__(self) -> None:
        """Bring every field into its type (see ``field_types.settle``) and check it; all problems in one message.

        Raises:
            EasyCoreError: names each field, the value seen and what is allowed.
        """
        problems = []
        for name, hint in _hints(type(self)).items():  # type: ignore[arg-type]  # a class can be hashed
            try:
                object.__setattr__(self, name, settle(name, getattr(self, name), hint))
            except ValueError as error:
                problems.append(str(error))
        problems = problems or self.problems()  # ranges of what is no number cannot be checked
        if problems:
            raise FieldsError(problems)

    def problems(self) -> list[str]:
        """What is wrong with the values, one sentence each."""
        return []


@functools.cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    """The type hint of every field of a dataclass."""
    hints = get_type_hints(kind, include_extras=True)
    return {spec.name: hints[spec.name] for spec in dataclasses.fields(kind)}


@dataclass(frozen=True, kw_only=True)
class JobConfig(Checked):
    """Fields of every job."""

    out: str
    """Folder of the result: local path, s3:// or gs://. New, empty, or an earlier run of the same job."""
    overwrite: bool = False
    """Replace a result in --out that was made with another configuration or input."""

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True, kw_only=True)
class ComputeConfig(JobConfig):
    """Where distributed work runs. Changes no result of given weights."""

    num_workers: Workers = 2
    """Processes that work at the same time; MIN:MAX lets a training run go on with what the cluster has, from one
    epoch to the next. A training run records it: per-worker batch norm makes another number of workers another run;
    an evaluation has the same outcome with any."""
    cpus_per_worker: float | None = None
    """CPUs reserved for each worker; by default an equal share that leaves room for Ray Data."""
    gpus_per_worker: float = 0.0
    """GPUs reserved for each worker: 0 trains on the CPU, 1 is the usual choice on GPU nodes."""
    threads_per_worker: int | None = None
    """CPU threads torch uses in each worker; by default the reserved CPUs rounded up."""
    max_failures: int = 3
    """How often lost workers are replaced before the job gives up (it can be resumed by running it again)."""
    cache_gib: float = 2.0
    """A worker keeps its share of the images in memory up to this size (GiB) and streams them otherwise.
    0 always streams."""

    def problems(self) -> list[str]:
        """See ``JobConfig.problems``."""
        found = super().problems() + workers_problems(self.num_workers)
        found += at_least("gpus_per_worker", self.gpus_per_worker, 0)
        found += at_least("max_failures", self.max_failures, 0)
        found += at_least("cache_gib", self.cache_gib, 0)
        if self.cpus_per_worker is not None and not self.cpus_per_worker > 0:
            found.append(f"cpus_per_worker must be > 0, got {self.cpus_per_worker:g}; leave it out for an equal share")
        if self.threads_per_worker is not None:
            found += at_least("threads_per_worker", self.threads_per_worker, 1)
        return found

    @property
    def min_workers(self) -> int:
        """Fewest processes a run goes on with."""
        return self.num_workers[0] if isinstance(self.num_workers, tuple) else self.num_workers

    @property
    def max_workers(self) -> int:
        """Most processes a run uses."""
        return self.num_workers[1] if isinstance(self.num_workers, tuple) else self.num_workers


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where runs are tracked. Never changes, stops or slows a run."""

    tracking_uri: str | None = None
    """MLflow server (http://…) or store (sqlite:////abs/mlflow.db); by default mlflow.db in --out.
    'none' switches tracking off."""
    experiment: str = "easycore"
    """MLflow experiment the runs are filed under."""
