"""What all configurations share: checked construction, conversion to JSON content, verbs called with keywords.

A configuration is a flat, frozen, keyword-only dataclass. The same word means the same thing everywhere. Each field's
text becomes its ``--help``; all problems of a configuration are reported together, on construction, before any work.
"""

import dataclasses
import difflib
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, Protocol, Self, TypeVar, dataclass_transform
from urllib.parse import urlsplit

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from easycore_ray.config.fields import (
    Amounts,
    Count,
    Flag,
    Natural,
    NonNegative,
    Number,
    Text,
    Workers,
    parse_amounts,
)
from easycore_ray.config.signatures import describe_verb
from easycore_ray.config.work_plan import WorkPlan
from easycore_ray.core.eps import check_eps
from easycore_ray.storage.errors import EasyCoreError, FieldsError

Kind = TypeVar("Kind", bound=type)
T_co = TypeVar("T_co", covariant=True)
Group = Literal["output", "data", "model", "training", "attack", "compute", "tracking"]
"""Headings under which ``--help`` lists the options."""
_WORDS = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be True or False",
    "string_type": "must be text",
    "tuple_type": "must be several values",
}


def setting(
    *,
    default: Any = dataclasses.MISSING,
    identity: bool | Callable[[Any], bool],
    group: Group,
    held: Callable[[Any], Any] | None = None,
) -> Any:
    """A field of a configuration.

    Args:
        default: what it is where nothing is given; required if left out.
        identity: whether it changes what is computed, see ``identity.identity_fields``; a function of the
            configuration where that depends on other fields.
        group: heading of its option in ``--help``.
        held: what the identity holds of it, a function of the configuration; its value if left out.
    """
    return dataclasses.field(default=default, metadata={"identity": identity, "group": group, "held": held})


def trains(config: Any) -> bool:
    """Identity of what changes a training and nothing else: whether a configuration trains a network."""
    return hasattr(config, "batch_size")


def decides_loading(config: Any) -> bool:
    """Identity of the cache's size, where parts of a job are trained whose sizes it does not know itself.

    A single run holds in its identity whether it streams (``engine.run_identity``).
    """
    return hasattr(config, "score_epochs") or hasattr(config, "trial_workers")


def if_given(name: str) -> Callable[[Any], bool]:
    """Identity of a field that decides nothing while it is left out (None)."""
    return lambda config: getattr(config, name) is not None


def if_set(name: str) -> Callable[[Any], bool]:
    """Identity of a flag or number that decides nothing while it is False or 0, its default."""
    return lambda config: bool(getattr(config, name))


def if_normalised(config: Any) -> bool:
    """Identity of the input space, which is that of pixels by default."""
    return bool(config.input_space == "normalised")


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(setting,))
def configuration(kind: Kind) -> Kind:
    """Make a class a configuration: fields are brought into their types and checked, then ``problems()`` is asked.

    Raises (on construction):
        FieldsError: one sentence for each problem, with the field, the value seen and what is allowed.
    """
    made: Any = pydantic_dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))(kind)
    validate = made.__init__

    @functools.wraps(validate)
    def __init__(self: Any, **fields: Any) -> None:  # noqa: N807
        try:
            validate(self, **fields)
        except ValidationError as error:
            raise FieldsError(list(dict.fromkeys(_sentence(one) for one in error.errors()))) from None
        if type(self) is made and (problems := list(dict.fromkeys(self.problems()))):
            raise FieldsError(problems)

    made.__init__ = __init__
    return made


def _sentence(error: Any) -> str:
    """One of pydantic's findings in our words."""
    name, kind, value = str(error["loc"][0]) if error["loc"] else "", error["type"], error["input"]
    context = error.get("ctx", {})
    if kind == "value_error":
        text = str(context["error"])
        return (
            text if text.startswith("unknown") else f"{name} {text}" if text.startswith("must") else f"{name}: {text}"
        )
    if kind == "greater_than_equal":
        return f"{name} must be >= {context['ge']:g}, got {value:g}"
    if kind == "literal_error":
        allowed = context["expected"].replace("'", "").replace(" or ", ", ")
        return f"{name} must be one of {allowed}, got {value!r}"
    if kind == "missing":
        return f"{name} is missing"
    if kind == "unexpected_keyword_argument":
        return f"{name} is no field"
    if kind in ("too_short", "too_long"):
        return f"{name} must be {context.get('min_length', context.get('max_length'))} values, got {value!r}"
    return f"{name} {_WORDS.get(kind, error['msg'])}, got {value!r}"


def to_dict(config: Any) -> dict[str, Any]:
    """All fields as JSON content (tuples become lists)."""
    return {key: _to_json(value) for key, value in dataclasses.asdict(config).items()}


def from_dict(kind: type[Any], content: dict[str, Any]) -> Any:
    """The configuration a manifest holds; lists become tuples again, unknown fields are refused."""
    known = {spec.name for spec in dataclasses.fields(kind)}
    unknown = sorted(set(content) - known)
    if unknown:
        raise EasyCoreError(f"unknown fields {', '.join(unknown)} for {kind.__name__}; is this another job's manifest?")
    try:
        return kind(**content)
    except FieldsError as error:
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
    """Make a verb of a function of one configuration. First the object stores it names must answer (``paths.reach``).

    Args:
        kind: the configuration.
        gives: class of the handle it returns, made from the path and manifest of the artifact; a plain type for a verb
            that returns no artifact.
        plan: says what it would do, from the configuration and whether to measure; the attribute ``plan`` calls it.
    """

    def decorate(function: Callable[[Any], Any]) -> Verb[T_co]:
        @functools.wraps(function)
        def call(config: Any = None, /, **fields: Any) -> Any:
            from easycore_ray.storage.artifact import Artifact
            from easycore_ray.storage.lease import released_at_the_end

            with released_at_the_end():
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
    from easycore_ray.storage import paths

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


def _to_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


class Checked:
    """A configuration; see ``configuration``."""

    def problems(self) -> list[str]:
        """What is wrong with fields that are right one by one, a sentence each."""
        return []

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]


@configuration
class JobConfig(Checked):
    """Fields of every job."""

    out: Text = setting(identity=False, group="output")
    """Folder of the result: local path, s3:// or gs://. New, empty, or an earlier run of the same job."""
    overwrite: Flag = setting(default=False, identity=False, group="output")
    """Replace a result in --out that was made with another configuration or input."""
    take_over: Flag = setting(default=False, identity=False, group="output")
    """Go on in --out also where another command is at work: that one ends at its next commit."""


@configuration
class ResourceConfig(JobConfig):
    """What each worker of distributed work is given. Threads and the kind of device change how sums are rounded."""

    cpus_per_worker: Number | None = setting(default=None, identity=False, group="compute")
    """CPUs reserved for each worker; by default an equal share that leaves room for Ray Data."""
    gpus_per_worker: NonNegative = setting(
        default=0.0, identity=True, group="compute", held=lambda config: config.device
    )
    """GPUs reserved for each worker: 0 trains on the CPU, 1 is the usual choice on GPU nodes."""
    threads_per_worker: Count | None = setting(
        default=None, identity=True, group="compute", held=lambda config: config.threads
    )
    """CPU threads torch uses in each worker. By default as many as the whole CPUs of --cpus-per-worker, 1 without it:
    never what a machine happens to have, since another number of threads gives other roundings, and another run."""
    cluster_max: Amounts | None = setting(default=None, identity=False, group="compute")
    """What an autoscaling cluster may grow to, e.g. CPU=128,GPU=4, where its autoscaler does not say: more is refused
    at once, and --cpus-per-worker is a share of it."""
    max_failures: Natural = setting(default=3, identity=False, group="compute")
    """How often lost workers are replaced before the job gives up (it can be resumed by running it again)."""
    cache_gib: NonNegative = setting(default=2.0, identity=decides_loading, group="compute")
    """A training worker keeps its share of the images in memory up to this size (GiB) and streams them otherwise, in
    another order: another run. 0 always streams."""

    @property
    def device(self) -> str:
        """Where workers compute: ``cpu`` or ``cuda``."""
        return "cuda" if self.gpus_per_worker else "cpu"

    @property
    def most(self) -> dict[str, float] | None:
        """``cluster_max`` by name."""
        return None if self.cluster_max is None else parse_amounts(self.cluster_max)

    @property
    def threads(self) -> int:
        """CPU threads of each worker."""
        return self.threads_per_worker or max(1, int(self.cpus_per_worker or 1))

    def problems(self) -> list[str]:
        """See ``Checked.problems``."""
        found = super().problems()
        if self.cpus_per_worker is not None and not self.cpus_per_worker > 0:
            found.append(f"cpus_per_worker must be > 0, got {self.cpus_per_worker:g}; leave it out for an equal share")
        gpus = self.gpus_per_worker
        if gpus > 1 and gpus != int(gpus):
            found.append(f"gpus_per_worker must be a whole number or below 1, got {gpus:g}; pass {math.ceil(gpus)}")
        return found


@configuration
class ComputeConfig(ResourceConfig):
    """Where distributed work runs."""

    num_workers: Workers = setting(default=2, identity=trains, group="compute")
    """Processes that work at the same time; MIN:MAX lets a training run continue with what the cluster has, from one
    epoch to the next, and records the number of each. Another number, or range, is another training run, since batch
    norm is per worker; an evaluation has the same outcome with any."""

    @property
    def min_workers(self) -> int:
        """Fewest processes a run continues with."""
        return self.num_workers[0] if isinstance(self.num_workers, tuple) else self.num_workers

    @property
    def max_workers(self) -> int:
        """Most processes a run uses."""
        return self.num_workers[1] if isinstance(self.num_workers, tuple) else self.num_workers


@configuration
class TrackingConfig(Checked):
    """Where runs are tracked. Never changes, stops or slows a run."""

    tracking_uri: Text | None = setting(default=None, identity=False, group="tracking")
    """MLflow server (http://…) or store (sqlite:////abs/mlflow.db); by default MLFLOW_TRACKING_URI of the environment,
    else mlflow.db in --out (coreset, evaluate, analyze: nowhere). 'none' switches tracking off."""
    experiment: Text = setting(default="easycore", identity=False, group="tracking")
    """MLflow experiment the runs are filed under."""

    def problems(self) -> list[str]:
        """See ``Checked.problems``."""
        found = super().problems()
        if self.tracking_uri is not None and urlsplit(self.tracking_uri).password is not None:
            # It would be kept in manifests and in MLflow's own parameters.
            found.append(
                "tracking_uri holds a password; pass the address alone, and the rest in the environment: "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD for a server, PGPASSWORD and the like for a "
                "database"
            )
        return found


def batch_size_problems(batch_size: int, workers: int | tuple[int, int]) -> list[str]:
    """What is wrong with a global batch that not every number of workers can share equally; names the nearest."""
    low, high = workers if isinstance(workers, tuple) else (workers, workers)
    unit = math.lcm(*range(low, high + 1))
    if batch_size % unit == 0:
        return []
    below = batch_size // unit * unit
    nearest = f"the nearest that are: {below}, {below + unit}" if below else f"the least that is: {unit}"
    sharers = f"{low} workers" if low == high else f"every number of workers in {low}:{high}"
    return [f"batch_size {batch_size} is not divisible by {sharers}; {nearest}"]


def eps_problems(name: str, eps: float | Iterable[float], norm: str) -> list[str]:
    """What is wrong with perturbations in a norm, a sentence each."""
    found = []
    for value in eps if isinstance(eps, Iterable) else (eps,):
        try:
            check_eps(value, norm)
        except ValueError as error:
            found.append(str(error) if name == "eps" else f"{name}: {error}")
    return found
