"""What every job and verb is told: one flat, frozen, keyword-only dataclass per job.

The same word means the same thing everywhere. Each field's text below becomes its ``--help``; all
problems of a configuration are reported together, on construction, before any work. What changes
the result is part of an artifact's identity; where it is computed, watched or stored is not
(``_NOT_IDENTITY``), and inputs enter by fingerprint, not by path.
"""

import dataclasses
import difflib
import functools
import itertools
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, get_type_hints

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from easycore_ray import paths
from easycore_ray.core.attacks import ATTACKS
from easycore_ray.core.methods import describe
from easycore_ray.core.models import FIXED_WIDTHS, MODELS, is_users
from easycore_ray.core.selection import HIGHER_IS_HARDER, METHODS
from easycore_ray.core.threat import check_eps, format_eps, parse_eps
from easycore_ray.errors import EasyCoreError, FieldsError
from easycore_ray.field_types import settle

Eps = Annotated[
    float,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="EPS",
        instance_from_str=lambda args: parse_eps(args[0]),
        is_instance=lambda value: isinstance(value, float),
        str_from_instance=lambda value: [format_eps(value)],
    ),
]


def parse_workers(text: str) -> int | tuple[int, int]:
    """``4`` as 4, ``2:8`` as (2, 8).

    Raises:
        ValueError: anything else.
    """
    low, colon, high = text.partition(":")
    try:
        return (int(low), int(high)) if colon else int(low)
    except ValueError:
        raise ValueError(f"must be N or MIN:MAX, e.g. 4 or 2:8, got {text!r}") from None


def format_workers(value: int | tuple[int, int]) -> str:
    """4 as ``4``, (2, 8) as ``2:8``."""
    return f"{value[0]}:{value[1]}" if isinstance(value, tuple) else str(value)


Workers = Annotated[
    int | tuple[int, int],
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="N|MIN:MAX",
        instance_from_str=lambda args: parse_workers(args[0]),
        is_instance=lambda value: isinstance(value, int | tuple),
        str_from_instance=lambda value: [format_workers(value)],
    ),
]


def _one_of_spec(names: Iterable[str], metavar: str | None = None) -> PrimitiveConstructorSpec[str]:
    """A string option whose help lists a registry, so that a new entry needs no further edit."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar or "{" + ",".join(names) + "}",
        # Checked on construction, where the message can say more than a parser's.
        instance_from_str=lambda args: args[0],
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [value],
    )


ModelName = Annotated[str, _one_of_spec((), "{" + ",".join(MODELS) + "}|MODULE:FUNCTION")]
# Every method's own first line: a new method explains itself.
_METHOD_HELP = f"How to choose. {describe()}"
MethodName = Annotated[str, _one_of_spec(METHODS)]
ScoreName = Annotated[str, _one_of_spec(HIGHER_IS_HARDER)]
SWEEP_ATTACKS = (*ATTACKS, "autoattack")
EVALUATION_ATTACKS = ("none", *SWEEP_ATTACKS)
AttackName = Annotated[str, _one_of_spec(EVALUATION_ATTACKS)]
ArmName = Annotated[str, _one_of_spec((), "{" + ",".join(METHODS) + "}[:SCORE][/class]")]
Training = Literal["standard", "trades", "pgd"]
ADVERSARIAL = {"trades", "pgd"}
"""Objectives that train against an attacker."""
ScorePass = Literal["eval", "fused", "fused+eval"]
Balance = Literal["none", "class"]
Norm = Literal["linf", "l2"]
StudyPart = Literal["standard", "trades", "fractions", "autoattack"]

# Fields that say where and how a job runs, not what it computes.
_NOT_IDENTITY = {
    "out", "overwrite", "dry_run", "num_workers", "cpus_per_worker", "gpus_per_worker", "threads_per_worker",
    "max_failures", "max_concurrent_trials", "keep_going", "materialize", "cache_gib", "tracking_uri", "experiment",
    # inputs: their fingerprints are part of the identity instead
    "source", "test_source", "classes", "dataset", "scores", "coreset", "checkpoint", "sweep", "user_scores", "results",
}  # fmt: skip
# Fields that came later: at their default they are left out, so that what was made before is still recognised.
_LATER = {
    "RecipeConfig": {"compile"},
    "EvaluateConfig": {"weights"},
    "SweepConfig": {"attack"},
    "PipelineConfig": {"attack"},
}


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


def identity_fields(config: Any) -> dict[str, Any]:
    """The fields that change what a job computes."""
    fields = to_dict(config)
    unused = set() if fields.get("schedule") == "multistep" else {"milestones"}
    later = set().union(*(_LATER.get(base.__name__, set()) for base in type(config).__mro__))
    unused |= {spec.name for spec in dataclasses.fields(config)
               if spec.name in later and getattr(config, spec.name) == spec.default}  # fmt: skip
    if not ADVERSARIAL & {*_as_list(fields.get("training"))} or not fields.get("val_attack_steps"):
        unused.add("val_attack_steps")
    if "trades" in _as_list(fields.get("training")) or isinstance(config, StudyConfig):
        # Before, the clean batch was counted once in the running statistics: such runs are not these.
        fields["trades_running_statistics"] = "natural, adversarial, natural"
    return {key: value for key, value in fields.items() if key not in _NOT_IDENTITY | unused}


def verb(kind: type[Any]) -> Callable[[Callable[[Any], Any]], Callable[..., Any]]:
    """Let a function of one configuration also be called with that configuration's fields as keywords.

    The object stores it names are asked first (see ``paths.reach``).
    """

    def decorate(function: Callable[[Any], Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(config: Any = None, /, **fields: Any) -> Any:
            if config is not None and fields:
                raise TypeError(f"pass a {kind.__name__} or keywords to {function.__name__}, not both")
            if config is None:
                _check_names(function.__name__, kind, fields)
            config = kind(**fields) if config is None else config
            paths.reach(*vars(config).values())
            return function(config)

        return call

    return decorate


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


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


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
    dry_run: bool = False
    """Say what would be done, how much it is and where it would be written; do nothing."""

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
        found = super().problems() + _workers_problems(self.num_workers)
        found += _at_least("gpus_per_worker", self.gpus_per_worker, 0)
        found += _at_least("max_failures", self.max_failures, 0)
        found += _at_least("cache_gib", self.cache_gib, 0)
        if self.cpus_per_worker is not None and not self.cpus_per_worker > 0:
            found.append(f"cpus_per_worker must be > 0, got {self.cpus_per_worker:g}; leave it out for an equal share")
        if self.threads_per_worker is not None:
            found += _at_least("threads_per_worker", self.threads_per_worker, 1)
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


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """How a model is trained, apart from the objective."""

    model: ModelName = "resnet18"
    """Network: cnn is small and made for tiny images; resnet18, preactresnet18 and wrn-* are the CIFAR
    variants; *-imagenet take large images. Or your own, package.module:function, called as
    function(num_classes=10, image_shape=(3, 32, 32)); it gets normalised pixels and gives logits. A run is known by
    its name, not its code: after changing it take another --out."""
    width: int | None = None
    """Channels of the first block (widen factor for wrn-*); the network's own default if left out."""
    batch_size: int = 128
    """Samples per step and worker."""
    lr: float = 0.1
    """Peak learning rate of SGD."""
    momentum: float = 0.9
    """Momentum of SGD."""
    nesterov: bool = True
    """Nesterov momentum."""
    weight_decay: float = 5e-4
    """L2 penalty; robust accuracy is sensitive to it (Pang et al. 2021)."""
    schedule: Literal["constant", "cosine", "multistep"] = "cosine"
    """Learning rate over optimizer steps: constant, cosine to 0, or ×0.1 at every one of --milestones."""
    milestones: tuple[float, ...] = (0.75, 0.9)
    """Shares of the steps, each in (0, 1) and rising, at which multistep drops; other schedules ignore them."""
    warmup_fraction: float = 0.1
    """Share of the steps in which the learning rate rises linearly from 0."""
    augment: Literal["none", "crop", "crop-flip"] = "crop-flip"
    """Training views: zero-padded random crop, and horizontal flip."""
    crop_pad: int = 4
    """Pixels of zero padding for the random crop."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Training arithmetic; bf16 is autocast with float32 weights and loss. Scores and evaluation are always fp32 (on
    GPUs evaluation, like fp32 training, with torch's default of TF32 convolutions; exact scores without)."""
    compile: bool = False
    """Run training steps through torch.compile: minutes at every start, for steps that may be quicker (docs/speed.md).
    Rounds otherwise, so it is another run. Needs a C++ compiler on every node, and on GPUs Triton."""

    def recipe_problems(self) -> list[str]:
        """What is wrong with the recipe, one sentence each."""
        found = [] if is_users(self.model) else _one_of("model", self.model, MODELS)
        if found:
            found[0] += ", or your own as package.module:function"
        elif is_users(self.model) and self.width is not None:
            found.append(f"width is for the built-in networks, got {self.width} with {self.model}; leave it out")
        found += _at_least("batch_size", self.batch_size, 1)
        found += _at_least("crop_pad", self.crop_pad, 0)
        found += _at_least("momentum", self.momentum, 0)
        found += _at_least("weight_decay", self.weight_decay, 0)
        if not (self.lr > 0 and math.isfinite(self.lr)):
            found.append(f"lr must be a positive number, got {self.lr:g}")
        rising = all(before < after for before, after in itertools.pairwise((0.0, *self.milestones, 1.0)))
        if not (self.milestones and rising):
            found.append(
                f"milestones must be rising shares of the run in (0, 1), e.g. 0.75 0.9, got {self.milestones}; "
                "epoch 100 of 110 is 0.909"
            )
        if not 0 <= self.warmup_fraction < 1:
            found.append(f"warmup_fraction must be in [0, 1), got {self.warmup_fraction:g}")
        if self.width is not None:
            found += _at_least("width", self.width, 1)
            if self.width != FIXED_WIDTHS.get(self.model, self.width):
                fixed = FIXED_WIDTHS[self.model]
                found.append(
                    f"width of {self.model} is {fixed}, got {self.width}; pass --width {fixed}, or another --model"
                )
        return found


@dataclass(frozen=True, kw_only=True)
class SeededRecipeConfig(RecipeConfig):
    """A recipe for one training run."""

    seed: int = 0
    """Seed of weights, order, augmentation and attacks."""

    def recipe_problems(self) -> list[str]:
        """What is wrong with the recipe, one sentence each."""
        return super().recipe_problems() + _at_least("seed", self.seed, 0)


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What a model is trained for, and against which threat."""

    training: Training = "standard"
    """standard: cross-entropy. trades: cross-entropy + beta · KL of the adversarial output (Zhang et al. 2019).
    pgd: cross-entropy on PGD examples alone (PGD-AT, Madry et al. 2018); its train_accuracy is that on them."""
    beta: float = 6.0
    """Weight of the TRADES robustness term, usually in [1, 10]; ignored by standard and pgd."""
    eps: Eps = 8 / 255
    """Largest perturbation, in [0, 1] pixel units, e.g. 8/255: of the training attack, and of the evaluation
    where nothing else is said."""
    norm: Norm = "linf"
    """Norm in which the perturbation is bounded."""
    attack_steps: int = 10
    """Gradient steps of the training attack (trades, pgd)."""
    attack_step_size: Eps | None = None
    """Size of one such step, in pixel units; by default 2.5 · eps / attack_steps."""
    val_attack_steps: int = 10
    """Gradient steps of the attack on the validation split after each epoch (trades, pgd), at --eps: the best epoch is
    the one most robust under it. 0: no attack, the best epoch is that of the highest clean accuracy. Never changes
    the last weights."""

    def objective_problems(self) -> list[str]:
        """What is wrong with the objective, one sentence each."""
        found = _eps_problem("eps", self.eps, self.norm) + _at_least("attack_steps", self.attack_steps, 1)
        found += _at_least("val_attack_steps", self.val_attack_steps, 0)
        if not (self.beta >= 0 and math.isfinite(self.beta)):
            found.append(f"beta must be a number >= 0, got {self.beta:g}")
        if self.attack_step_size is not None:
            found += _eps_problem("attack_step_size", self.attack_step_size, self.norm)
        return found


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(JobConfig):
    """Import images into sharded Parquet with fixed sample ids, a manifest and an index."""

    source: str = "digits"
    """digits (1,797 handwritten digits that come with scikit-learn), torchvision:NAME (e.g. torchvision:CIFAR10),
    or the path of image folders, Parquet files or WebDataset tars."""
    format: Literal["auto", "imagefolder", "parquet", "webdataset"] = "auto"
    """Layout of a path source: CLASS/image files, Hugging Face-style Parquet (image or img, label), or tar shards."""
    test_source: str | None = None
    """Test split, in the same layout; by default the source's own test split, else --test-fraction of the source."""
    classes: str | None = None
    """Text or JSON file with the class names in label order, where the source does not name them."""
    val_fraction: float = 0.02
    """Share of the training images held out for validation, seeded and class-balanced; 0 keeps all for training."""
    test_fraction: float = 0.2
    """Share held out for testing where the source has no test split of its own, seeded and class-balanced."""
    image_size: int | None = None
    """Pixels: shorter side is resized to this and the centre cropped. Needed where images differ in size."""
    rows_per_shard: int = 10_000
    """Most rows in one shard (Parquet file); shards of a split differ by at most one row."""
    on_bad_sample: Literal["error", "skip"] = "error"
    """A corrupt image or unknown label stops the import (error), or is left out and listed in the manifest (skip)."""
    seed: int = 0
    """Seed of the splits and of the placement of rows in shards."""

    def problems(self) -> list[str]:
        """See ``JobConfig.problems``."""
        found = super().problems()
        for name, value in (("val_fraction", self.val_fraction), ("test_fraction", self.test_fraction)):
            if not 0 <= value < 1:
                found.append(f"{name} must be in [0, 1), got {value:g}")
        if self.image_size is not None:
            found += _at_least("image_size", self.image_size, 1)
        return found + _at_least("rows_per_shard", self.rows_per_shard, 1) + _at_least("seed", self.seed, 0)


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(SeededRecipeConfig, TrackingConfig, ComputeConfig):
    """Train on all samples and record every sample's input gradient norm after each epoch; then reduce."""

    dataset: str
    """Folder of a prepared dataset."""
    coreset: str | None = None
    """Score only these samples (folder of a coreset); all training samples if left out."""
    epochs: int = 20
    """Training epochs of the scoring run."""
    score_pass: ScorePass = "eval"
    """eval: exact scores of the clean images in evaluation mode after the epoch. fused: the training step's own
    input gradients (augmented view, training mode), nearly free. fused+eval: fused, and one exact pass with the
    final weights, which counts as one more epoch: agrees with another seed's exact scores as well as they do."""
    score_every: int = 1
    """Score every this many epochs, counted back from the last one."""
    stop_when_stable: float | None = None
    """End the run once the easiest half by AIGN changes less than this from one scored epoch to the next: the share
    that stays, e.g. 0.98, in (0, 1]. Never, if left out."""

    def problems(self) -> list[str]:
        """See ``JobConfig.problems``."""
        found = super().problems() + self.recipe_problems()
        if self.stop_when_stable is not None and not 0 < self.stop_when_stable <= 1:
            found.append(
                f"stop_when_stable must be in (0, 1], got {self.stop_when_stable:g}; it is the share of the easiest "
                "half that stays from one scored epoch to the next"
            )
        return found + _at_least("epochs", self.epochs, 1) + _at_least("score_every", self.score_every, 1)


@dataclass(frozen=True, kw_only=True)
class ReduceConfig(JobConfig):
    """Reduce a score table to one row of hardness per sample."""

    scores: str
    """Folder of a scoring run (holds table/)."""
    score_epochs: str | None = None
    """Use the scores of these training epochs only: A:B, both inclusive, 1 <= A <= B; all if left out."""
    only: tuple[ScoreName, ...] | None = None
    """Only these scores, e.g. aign: the columns of the others are not read, which takes a part of the time on huge
    tables. The others are empty in the result."""
    bucket_rows: int = 4_000_000
    """Most samples in one reduction task: sets its memory (about 200 bytes a sample), not the result."""

    def problems(self) -> list[str]:
        """See ``JobConfig.problems``."""
        found = super().problems() + _at_least("bucket_rows", self.bucket_rows, 1)
        for name in self.only or ():
            found += _one_of("only", name, HIGHER_IS_HARDER)
        if self.only == ():
            found.append("only needs at least one score; leave it out for all")
        if self.score_epochs is not None:
            try:
                parse_epochs(self.score_epochs)
            except EasyCoreError as error:
                found.append(str(error))
        return found


@dataclass(frozen=True, kw_only=True)
class CoresetConfig(JobConfig):
    """Select the samples to keep."""

    scores: str | None = None
    """Folder of a scoring run (holds hardness/): the samples to choose from."""
    dataset: str | None = None
    """Folder of the dataset; needed without --scores, otherwise only to check that they belong together."""
    user_scores: str | None = None
    """Your own scores: a Parquet file of sample_id, score (higher = harder), used instead of --score."""
    method: Annotated[MethodName, tyro.conf.arg(help=_METHOD_HELP)] = "easycore"
    score_epochs: str | None = None
    """Go by the scores of these epochs only, A:B (both included); needs the folder of a scoring run in --scores."""
    score: ScoreName | None = None
    """Column that orders the samples: aign, el2n, loss, aum, forgetting, …; the method's own if left out."""
    fraction: float = 0.5
    """Share of the samples that is kept, in (0, 1]."""
    balance: Balance = "none"
    """none: over all samples. class: the same share of every class."""
    cutoff: float = 0.0
    """Share of the hardest samples that stratified drops first, in [0, 1) (the hard cut-off of CCS)."""
    band: tuple[float, float] = (0.25, 0.75)
    """Hardness quantiles between which the method band draws."""
    option: tuple[str, ...] = ()
    """Further options of the method, NAME=VALUE each, e.g. strata=20."""
    seed: int = 0
    """Seed of random draws."""
    materialize: bool = False
    """Also write the kept images as a dataset of their own, OUT/dataset, to train on without --coreset: worth it where
    a small part of many images is read often, or elsewhere. Ids stay those of --dataset; val and test come along."""

    def problems(self) -> list[str]:
        """See ``JobConfig.problems``."""
        found = super().problems() + _one_of("method", self.method, METHODS) + _at_least("seed", self.seed, 0)
        found += _fraction_problem(self.fraction)
        if self.score is not None:
            found += _one_of("score", self.score, HIGHER_IS_HARDER) or _easycore_problem(self.method, self.score)
        if self.scores is None and self.dataset is None:
            found.append("scores and dataset are both missing; pass --scores, or --dataset for methods without scores")
        if not 0 <= self.cutoff < 1:
            found.append(f"cutoff must be in [0, 1), got {self.cutoff:g}")
        if not 0 <= self.band[0] < self.band[1] <= 1:
            found.append(f"band must be two quantiles 0 <= LO < HI <= 1, got {self.band[0]:g} {self.band[1]:g}")
        if self.method in METHODS:
            found += [problem for text in self.option for problem in _option_problem(self.method, text)]
        if self.score_epochs is not None:
            found += _epochs_problem(self.score_epochs)
            if self.scores is None:
                found.append("score_epochs goes with --scores, the folder of a scoring run")
        return found


@dataclass(frozen=True, kw_only=True)
class TrainConfig(SeededRecipeConfig, ObjectiveConfig, TrackingConfig, ComputeConfig):
    """Train one model on one coreset: standard, TRADES or PGD-AT."""

    dataset: str
    """Folder of a prepared dataset."""
    coreset: str | None = None
    """Folder of a coreset; all training samples if left out."""
    epochs: int = 20
    """Passes over the coreset."""
    steps: int | None = None
    """Optimizer steps, instead of --epochs: the same number whatever the size of the coreset."""

    def problems(self) -> list[str]:
        """See ``JobConfig.problems``."""
        found = super().problems() + self.recipe_problems() + self.objective_problems()
        if self.steps is not None:
            found += _at_least("steps", self.steps, 1)
            if isinstance(self.num_workers, tuple):
                found.append("steps needs one number of workers, got MIN:MAX; pass --epochs, or --num-workers N")
        return found + _at_least("epochs", self.epochs, 1)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ComputeConfig):
    """Clean and robust accuracy of a checkpoint; images are attacked in fixed shards over Ray tasks."""

    checkpoint: str
    """Folder of a trained model."""
    weights: Literal["last", "best"] = "last"
    """Weights after the last epoch, or after the one that did best on the validation split."""
    dataset: str
    """Folder of a prepared dataset."""
    split: Literal["test", "val"] = "test"
    """Split that is attacked."""
    attack: tuple[AttackName, ...] = ("pgd20",)
    """Attacks to run; robust means correct under all of them. none: clean accuracy only; autoattack: the standard
    version, slow, needs the package pyautoattack."""
    eps: tuple[Eps, ...] = (8 / 255,)
    """Largest perturbations, in [0, 1] pixel units; 0 is the clean accuracy."""
    norm: Norm = "linf"
    """Norm in which the perturbation is bounded."""
    num_samples: int | None = None
    """Attack only this many images, drawn once by --seed; all if left out."""
    seed: int = 0
    """Seed of the drawn images and of the attacks' random starts."""

    def problems(self) -> list[str]:
        """See ``JobConfig.problems``."""
        found = super().problems() + _at_least("seed", self.seed, 0)
        for name in self.attack:
            found += _one_of("attack", name, EVALUATION_ATTACKS)
        if "none" in self.attack and len(self.attack) > 1:
            found.append(f"attack none stands alone, got {', '.join(self.attack)}; the clean accuracy is always given")
        for eps in self.eps:
            found += _eps_problem("eps", eps, self.norm)
        if not self.eps or not self.attack:
            found.append("attack and eps need at least one value each")
        if self.num_samples is not None:
            found += _at_least("num_samples", self.num_samples, 1)
        return found


@dataclass(frozen=True, kw_only=True)
class AnalyzeConfig(ComputeConfig):
    """Test the paper's claims on your own data: are easy samples safer, learned sooner, and easy for any model?"""

    scores: tuple[str, ...]
    """Folders of scoring runs of one dataset. The first gives the tenths that are drawn; with several, of other seeds
    and networks, their agreement tells whether hardness depends on the model."""
    checkpoint: tuple[str, ...] = ()
    """Folders of trained models whose training samples are attacked; without one, only what the scores alone tell."""
    dataset: str | None = None
    """Folder of the dataset; by default the one that was scored."""
    score: ScoreName = "aign"
    """Score that orders the samples."""
    eps: tuple[Eps, ...] = (0.25 / 255, 0.5 / 255, 1 / 255, 2 / 255, 4 / 255, 8 / 255)
    """Perturbations at which the success of attacks is given, in [0, 1] pixel units."""
    norm: Norm = "linf"
    """Norm in which perturbations and distances are measured."""
    num_samples: int = 2000
    """Training samples that are attacked with each model, equally many of every tenth, drawn once by --seed."""
    seed: int = 0
    """Seed of the drawn samples, of the attacks' random starts and of the intervals."""

    def problems(self) -> list[str]:
        """See ``JobConfig.problems``."""
        found = super().problems() + _at_least("seed", self.seed, 0) + _one_of("score", self.score, HIGHER_IS_HARDER)
        for eps in self.eps:
            found += _eps_problem("eps", eps, self.norm)
        for name in ("scores", "eps"):
            if not getattr(self, name):
                found.append(f"{name} needs at least one value")
        for name in ("scores", "checkpoint", "eps"):
            values = getattr(self, name)
            found += [f"{name} names {value} twice" for value in dict.fromkeys(values) if values.count(value) > 1]
        if self.num_samples < 50:
            found.append(f"num_samples must be >= 50, five for each tenth, got {self.num_samples}")
        return found


@dataclass(frozen=True, kw_only=True)
class SweepConfig(RecipeConfig, TrackingConfig, ComputeConfig):
    """Train and evaluate every arm × fraction × training × seed; the full data is always among them."""

    dataset: str
    """Folder of a prepared dataset."""
    scores: str
    """Folder of a scoring run (holds hardness/)."""
    method: tuple[ArmName, ...] = ("easycore", "easycore/class", "random", "hardest")
    """Arms: METHOD, METHOD:SCORE (e.g. easiest:el2n), either with /class for class-balanced selection."""
    fraction: tuple[float, ...] = (0.3, 0.5)
    """Shares of the samples that are kept, each in (0, 1]."""
    training: tuple[Training, ...] = ("standard", "trades")
    """Objectives to train for."""
    beta: tuple[float, ...] = (1.0, 6.0)
    """TRADES weights to train with; standard and pgd have none."""
    seeds: tuple[int, ...] = (0, 1)
    """One training run per seed; random arms draw anew with each."""
    train_epochs: int = 20
    """Passes over the coreset in each training run."""
    trades_epochs: int | None = None
    """The same for adversarial runs (trades, pgd); as --train-epochs if left out."""
    steps: int | None = None
    """Optimizer steps in each training run instead of epochs: the same for every fraction."""
    eps: Eps = 8 / 255
    """Perturbation of the training attack (trades, pgd), in [0, 1] pixel units."""
    norm: Norm = "linf"
    """Norm in which perturbations are bounded."""
    attack_steps: int = 10
    """Gradient steps of the training attack (trades, pgd)."""
    attack_step_size: Eps | None = None
    """Size of one such step, in pixel units; by default 2.5 · eps / attack_steps."""
    attack: tuple[AttackName, ...] = ("pgd20",)
    """Attacks of the evaluation, pgd20 among them; the robust accuracy is that under all. autoattack: the standard
    version, slow, needs the package pyautoattack."""
    val_attack_steps: int = 10
    """Gradient steps of the attack on the validation split after each epoch (trades, pgd): it picks the best epoch,
    which is evaluated beside the last. 0: the clean accuracy picks it."""
    eval_eps: tuple[Eps, ...] = (8 / 255,)
    """Perturbations of the evaluation; one result row for each."""
    num_test_samples: int | None = None
    """Attack only this many test images, the same for every run; all if left out."""
    num_workers: Workers = 1
    """Training processes per trial, one number; 1 trains in the trial's own process, which saves seconds each."""
    max_concurrent_trials: int | None = None
    """Trials at the same time; by default as many as the cluster can run."""
    keep_going: bool = False
    """Finish although training diverged in some trials: they are named, and their seeds missing in the means."""

    def problems(self) -> list[str]:
        """See ``JobConfig.problems``."""
        found = super().problems() + self.recipe_problems() + _eps_problem("eps", self.eps, self.norm)
        if isinstance(self.num_workers, tuple):
            found.append(f"num_workers must be one number in a sweep, got {format_workers(self.num_workers)}")
        for arm in self.method:
            found += arm_problems(arm)
        for value in self.fraction:
            found += _fraction_problem(value)
        for value in self.eval_eps:
            found += _eps_problem("eval_eps", value, self.norm)
        for name in self.attack:
            found += _one_of("attack", name, SWEEP_ATTACKS)
        if "pgd20" not in self.attack:
            found.append(f"attack must include pgd20, the attack all sweeps share, got {' '.join(self.attack)!r}")
        for beta in self.beta:
            if not (beta >= 0 and math.isfinite(beta)):
                found.append(f"beta must be a number >= 0, got {beta:g}")
        for name in ("fraction", "training", "seeds", "eval_eps"):
            if not getattr(self, name):
                found.append(f"{name} needs at least one value")
        if "trades" in self.training and not self.beta:
            found.append("beta needs at least one value for trades")
        for name in ("train_epochs", "attack_steps"):
            found += _at_least(name, getattr(self, name), 1)
        found += _at_least("val_attack_steps", self.val_attack_steps, 0)
        for name in ("steps", "trades_epochs", "num_test_samples", "max_concurrent_trials"):
            if getattr(self, name) is not None:
                found += _at_least(name, getattr(self, name), 1)
        return found


@dataclass(frozen=True, kw_only=True)
class StudyConfig(RecipeConfig, TrackingConfig, ComputeConfig):
    """Compare coresets over whole repetitions: for each seed a scoring run, coresets from it, models, attacks."""

    dataset: str
    """Folder of a prepared dataset."""
    results: str | None = None
    """JSON file in which finished trials are kept: they are never run again, also when their artifacts are gone. By
    default results.json in --out. Tables and plots are drawn beside it."""
    parts: tuple[StudyPart, ...] = ("standard", "trades", "fractions", "autoattack")
    """What to run, in this order. standard: standard training on all data and on seven coresets of half the size.
    trades: TRADES on all data and on three of them. fractions: standard with 30 % and 70 %. autoattack: AutoAttack on
    the first seed's models of standard and trades."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One whole repetition per seed, its own scoring run included."""
    subset: int | None = None
    """Work on this many training samples only, a class-balanced random draw; all if left out."""
    score_epochs: int = 20
    """Training epochs of each scoring run."""
    score_pass: ScorePass = "fused+eval"
    """How scores are taken: see score."""
    score_workers: int = 1
    """Training processes of a scoring run, which share a batch."""
    train_epochs: int = 20
    """Passes over the coreset in standard training."""
    trades_epochs: int = 20
    """Passes over the coreset in TRADES."""
    beta: float = 6.0
    """Weight of the TRADES robustness term."""
    eps: Eps = 8 / 255
    """Perturbation of TRADES' attack, in [0, 1] pixel units."""
    norm: Norm = "linf"
    """Norm in which perturbations are bounded."""
    attack_steps: int = 10
    """Gradient steps of TRADES' attack."""
    attack_step_size: Eps | None = None
    """Size of one such step, in pixel units; by default 2.5 · eps / attack_steps."""
    standard_eps: tuple[Eps, ...] = (0.25 / 255, 0.5 / 255, 1 / 255, 2 / 255, 4 / 255, 8 / 255)
    """Perturbations under which standard models are evaluated; at 8/255 they have no accuracy left."""
    trades_eps: tuple[Eps, ...] = (2 / 255, 4 / 255, 8 / 255)
    """Perturbations under which TRADES models are evaluated."""
    num_test_samples: int | None = None
    """Attack only this many test images, the same for every model; all if left out."""
    num_autoattack_samples: int | None = None
    """The same for AutoAttack, which takes minutes per hundred images on a CPU."""
    autoattack_eps: Eps = 1 / 255
    """Perturbation of AutoAttack on standard models; on TRADES models it is --eps."""
    num_workers: Workers = 1
    """Training processes per trial, one number; 1 trains in the trial's own process, which saves seconds each."""
    max_concurrent_trials: int | None = None
    """Trials at the same time; by default as many as the cluster can run."""
    keep_going: bool = False
    """Finish although training diverged in some trials: they are named, and their seeds missing in the means."""

    def problems(self) -> list[str]:
        """See ``JobConfig.problems``."""
        found = super().problems() + self.recipe_problems()
        for name in ("seeds", "parts", "standard_eps", "trades_eps"):
            if not getattr(self, name):
                found.append(f"{name} needs at least one value")
        found += _eps_problem("autoattack_eps", self.autoattack_eps, self.norm)
        for name in ("score_workers", "subset", "num_test_samples", "num_autoattack_samples"):
            if getattr(self, name) is not None:
                found += _at_least(name, getattr(self, name), 1)
        if self.batch_size % max(self.score_workers, 1):
            found.append(f"score_workers must divide batch_size {self.batch_size}, got {self.score_workers}")
        for stage in (lambda: self.score_config("dataset", 0), lambda: self.sweep_config("scores", 0, ("random",))):
            try:
                stage()
            except FieldsError as error:
                found += [problem for problem in error.problems if problem not in found]
        return found

    def score_config(self, out: str, seed: int, coreset: str | None = None) -> ScoreConfig:
        """The scoring run of one seed."""
        return self._stage(
            ScoreConfig,
            out=out,
            coreset=coreset,
            epochs=self.score_epochs,
            num_workers=self.score_workers,
            batch_size=self.batch_size // max(self.score_workers, 1),
            seed=seed,
        )

    def sweep_config(self, scores: str, seed: int, method: tuple[str, ...], **fields: Any) -> SweepConfig:
        """One seed of one part, as a sweep."""
        return self._stage(
            SweepConfig,
            out=f"{self.out}/seed-{seed}",
            scores=scores,
            seeds=(seed,),
            method=method,
            val_attack_steps=0,  # models are compared after their last epoch
            **{"beta": (self.beta,), **fields},
        )

    def _stage(self, kind: type[Any], **fields: Any) -> Any:
        """The fields a stage shares with the study, completed by those given."""
        names = {spec.name for spec in dataclasses.fields(kind)}
        return kind(**{**{key: value for key, value in vars(self).items() if key in names}, **fields})


@dataclass(frozen=True, kw_only=True)
class ReportConfig(JobConfig):
    """Draw a sweep: tables, plots, easiest and hardest images, in one self-contained HTML page."""

    sweep: str
    """Folder of a finished sweep."""
    title: str = "EasyCore: coresets for robust models"
    """Heading of the page."""
    note: str = ""
    """A sentence shown under the heading, e.g. what the data cannot be compared with."""


@dataclass(frozen=True, kw_only=True)
class InspectConfig(Checked):
    """Tell what an artifact is: how it was made, what is in it, and whether all of it is still there."""

    path: tyro.conf.Positional[str]
    """Folder of any artifact, finished or not: local path, s3:// or gs://."""
    verify: bool = False
    """Reread everything: checksums, rows, schema, coverage; exit code 1 if anything is wrong."""
    score: ScoreName = "aign"
    """Score the easiest and hardest samples are shown by."""
    count: int = 10
    """How many of the easiest and hardest samples to show; 0 for none."""
    images: str | None = None
    """Draw these samples with their scores and labels into this PNG file."""
    json: bool = False
    """Print JSON instead of text."""

    def problems(self) -> list[str]:
        """See ``Checked.problems``."""
        problems = _one_of("score", self.score, HIGHER_IS_HARDER) + _at_least("count", self.count, 0)
        if self.images is not None and not self.images.endswith(".png"):
            problems.append(f"images must end in .png, got {self.images!r}")
        if self.images is not None and not 1 <= self.count <= 100:
            problems.append(f"count must be in 1..100 to draw images, got {self.count}")
        return problems


@dataclass(frozen=True, kw_only=True)
class CleanConfig(Checked):
    """List, and with --yes remove, what no artifact in a folder needs: orphaned parts, old training states."""

    path: tyro.conf.Positional[str]
    """Folder of any artifact, finished or not; the artifacts inside it are cleaned as well."""
    yes: bool = False
    """Remove what is listed; otherwise it is only listed."""
    older_than: float = 24.0
    """Hours a file of an unfinished artifact must have been left alone: a writer may be at work."""

    def problems(self) -> list[str]:
        """See ``Checked.problems``."""
        return [] if self.older_than >= 0 else [f"older_than must be >= 0 hours, got {self.older_than:g}"]


@dataclass(frozen=True, kw_only=True)
class PipelineConfig(SeededRecipeConfig, TrackingConfig, ComputeConfig):
    """Everything: prepare, score, reduce, select, sweep (train and evaluate), report."""

    dataset: str | None = None
    """Folder of a prepared dataset; if left out, --source is imported."""
    source: str = "digits"
    """What to import: see prepare."""
    format: Literal["auto", "imagefolder", "parquet", "webdataset"] = "auto"
    """Layout of the source: see prepare."""
    test_source: str | None = None
    """Test split of the source: see prepare."""
    image_size: int | None = None
    """Pixels of the resized and cropped image, where images differ in size: see prepare."""
    subset: int | None = None
    """Work on this many training samples only, a class-balanced random draw; all if left out."""
    score_epochs: int = 20
    """Training epochs of the scoring run."""
    score_pass: ScorePass = "eval"
    """How scores are taken: see score."""
    score_every: int = 1
    """Score every this many epochs."""
    stop_when_stable: float | None = None
    """End the scoring run once the easiest half is this stable: see score."""
    method: tuple[ArmName, ...] = ("easycore", "easycore/class", "random", "hardest")
    """Arms of the sweep: METHOD, METHOD:SCORE, either with /class for class-balanced selection."""
    fraction: tuple[float, ...] = (0.3, 0.5)
    """Shares of the samples that are kept, each in (0, 1]."""
    training: tuple[Training, ...] = ("standard", "trades")
    """Objectives to train for."""
    beta: tuple[float, ...] = (1.0, 6.0)
    """TRADES weights to train with; standard and pgd have none."""
    seeds: tuple[int, ...] = (0, 1)
    """One training run per seed."""
    train_epochs: int = 20
    """Passes over the coreset in each training run."""
    trades_epochs: int | None = None
    """The same for adversarial runs (trades, pgd); as --train-epochs if left out."""
    steps: int | None = None
    """Optimizer steps in each training run instead of epochs."""
    eps: Eps = 8 / 255
    """Perturbation of the training attack (trades, pgd), in [0, 1] pixel units."""
    norm: Norm = "linf"
    """Norm in which perturbations are bounded."""
    attack_steps: int = 10
    """Gradient steps of the training attack (trades, pgd)."""
    attack_step_size: Eps | None = None
    """Size of one such step; by default 2.5 · eps / attack_steps."""
    attack: tuple[AttackName, ...] = ("pgd20",)
    """Attacks of the evaluation, pgd20 among them; the robust accuracy is that under all. autoattack: the standard
    version, slow, needs the package pyautoattack."""
    val_attack_steps: int = 10
    """Gradient steps of the attack on the validation split that picks the best epoch (trades, pgd): see train."""
    eval_eps: tuple[Eps, ...] = (8 / 255,)
    """Perturbations of the evaluation; one result row for each."""
    num_test_samples: int | None = None
    """Attack only this many test images; all if left out."""
    trial_num_workers: int = 1
    """Training processes per trial of the sweep."""
    max_concurrent_trials: int | None = None
    """Trials at the same time; by default as many as the cluster can run."""
    keep_going: bool = False
    """Finish although training diverged in some trials: they are named, and their seeds missing in the means."""
    note: str = ""
    """A sentence shown in the report."""

    def problems(self) -> list[str]:
        """See ``JobConfig.problems``: those of the stages."""
        found = super().problems()
        if self.subset is not None:
            found += _at_least("subset", self.subset, 1)
        for stage in (self.score_config, self.sweep_config):
            try:
                stage("dataset", "scores")
            except FieldsError as error:
                found += [problem for problem in error.problems if problem not in found]
        return found

    def prepare_config(self) -> PrepareConfig:
        """The import this pipeline makes."""
        return self._stage(PrepareConfig, out=f"{self.out}/dataset")

    def score_config(self, dataset: str, coreset: str | None = None) -> ScoreConfig:
        """The scoring run this pipeline makes."""
        return self._stage(
            ScoreConfig, out=f"{self.out}/scores", dataset=dataset, coreset=coreset, epochs=self.score_epochs
        )

    def sweep_config(self, dataset: str, scores: str) -> SweepConfig:
        """The sweep this pipeline makes."""
        return self._stage(
            SweepConfig,
            out=f"{self.out}/sweep",
            dataset=dataset,
            scores=scores,
            num_workers=self.trial_num_workers,
        )

    def _stage(self, kind: type[Any], **fields: Any) -> Any:
        """The fields a stage shares with the pipeline, completed by those given."""
        names = {spec.name for spec in dataclasses.fields(kind)}
        shared = {key: value for key, value in vars(self).items() if key in names}
        return kind(**{**shared, **fields})


@dataclass(frozen=True)
class Arm:
    """A way to select: method, score that orders the samples (None: not needed), balance."""

    method: str
    score: str | None
    balance: Balance

    @property
    def name(self) -> str:
        """The arm as it is written on the command line, e.g. ``easiest:el2n/class``."""
        default = METHODS[self.method].default_score
        score = f":{self.score}" if self.score not in (None, default) else ""
        return f"{self.method}{score}{'/class' if self.balance == 'class' else ''}"


def parse_arm(text: str) -> Arm:
    """``METHOD[:SCORE][/class]`` as an ``Arm``.

    Raises:
        EasyCoreError: says which part is unknown and what is allowed.
    """
    problems = arm_problems(text)
    if problems:
        raise EasyCoreError(problems[0])
    name, _, balance = text.partition("/")
    method, _, score = name.partition(":")
    return Arm(method, score or METHODS[method].default_score, "class" if balance else "none")


def arm_problems(text: str) -> list[str]:
    """What is wrong with an arm's name."""
    name, slash, balance = text.partition("/")
    method, colon, score = name.partition(":")
    found = _one_of("method", method, METHODS)
    if slash and balance != "class":
        found.append(f"method may end in /class only, got {text!r}")
    if colon:
        found += _one_of("score", score, HIGHER_IS_HARDER)
        if not found and METHODS[method].default_score is None:
            found.append(f"method {method} uses no score, got {text!r}; write {method}")
        found += _easycore_problem(method, score)
    return found


def method_options(config: CoresetConfig) -> dict[str, Any]:
    """The method's own options: those with a flag of their own where it has them, and those of --option."""
    known = METHODS[config.method].options
    found = {name: getattr(config, name) for name in _FLAGS if name in known}
    for text in config.option:
        name, _, value = text.partition("=")
        found[name] = known[name].parse(value)
    return found


# Options of methods that have a flag of their own.
_FLAGS = ("cutoff", "band")


def _option_problem(method: str, text: str) -> list[str]:
    name, equals, value = text.partition("=")
    options = METHODS[method].options
    if not equals:
        return [f"option must be NAME=VALUE, got {text!r}"]
    if name in _FLAGS:
        return [f"option {name} has a flag of its own; pass --{name}"]
    if name not in options:
        mine = ", ".join(other for other in options if other not in _FLAGS) or "none"
        return [f"method {method} has no option {name!r}; its options are: {mine}"]
    try:
        options[name].parse(value)
    except ValueError as error:
        kind = getattr(options[name].kind, "__name__", str(options[name].kind))
        return [f"option {name} must be {kind}, got {value!r} ({error})"]
    return []


def _epochs_problem(text: str) -> list[str]:
    try:
        parse_epochs(text)
    except EasyCoreError as error:
        return [str(error)]
    return []


def _easycore_problem(method: str, score: str) -> list[str]:
    # The name stands for the paper's method; a lowest-EL2N coreset under it would mislead.
    if method != "easycore" or score == "aign":
        return []
    return [f"method easycore goes by aign, got score {score!r}; write easiest for another score"]


def _workers_problems(value: int | tuple[int, int]) -> list[str]:
    if not isinstance(value, tuple):
        return _at_least("num_workers", value, 1)
    if len(value) == 2 and 1 <= value[0] <= value[1]:
        return []
    return [f"num_workers must be N >= 1 or MIN:MAX with 1 <= MIN <= MAX, got {':'.join(map(str, value))}"]


def parse_epochs(text: str) -> tuple[int, int]:
    """``A:B``, a range of scored epochs, both ends inclusive, as two numbers.

    Raises:
        EasyCoreError: if the text is no such range or not 1 <= A <= B.
    """
    found = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", text.strip())
    first, last = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= first <= last:
        raise EasyCoreError(
            f"score_epochs must be A:B with 1 <= A <= B, got {text!r}; e.g. 1:10 for the first ten epochs"
        )
    return first, last


def _at_least(name: str, value: float, least: float) -> list[str]:
    return [] if value >= least else [f"{name} must be >= {least:g}, got {value:g}"]


def _one_of(name: str, value: str, allowed: Any) -> list[str]:
    return [] if value in allowed else [f"unknown {name} {value!r}; allowed are {', '.join(sorted(allowed))}"]


def _fraction_problem(value: float) -> list[str]:
    if 0 < value <= 1:
        return []
    return [f"fraction must be in (0, 1], got {value:g}; it is the share kept: to drop 30 % of the data pass 0.7"]


def _eps_problem(name: str, value: float, norm: str) -> list[str]:
    try:
        check_eps(value, norm)
    except ValueError as error:
        # The message begins with the word eps; --eval-eps and --attack-step-size say which one is meant.
        return [str(error) if name == "eps" else f"{name}: {error}"]
    return []
