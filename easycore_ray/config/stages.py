"""Configurations of the stages: one flat, frozen, keyword-only dataclass for each."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from easycore_ray.config.base import Checked, ComputeConfig, JobConfig, TrackingConfig
from easycore_ray.config.fields import (
    EVALUATION_ATTACKS,
    METHOD_HELP,
    AttackName,
    Balance,
    Eps,
    MethodName,
    Norm,
    ScoreName,
    ScorePass,
    at_least,
    easycore_problem,
    epochs_problem,
    eps_problem,
    fraction_problem,
    one_of,
    parse_epochs,
)
from easycore_ray.config.recipes import ObjectiveConfig, SeededRecipeConfig
from easycore_ray.core.selection import HIGHER_IS_HARDER, METHODS
from easycore_ray.storage.errors import EasyCoreError


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
            found += at_least("image_size", self.image_size, 1)
        return found + at_least("rows_per_shard", self.rows_per_shard, 1) + at_least("seed", self.seed, 0)


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
        return found + at_least("epochs", self.epochs, 1) + at_least("score_every", self.score_every, 1)


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
        found = super().problems() + at_least("bucket_rows", self.bucket_rows, 1)
        for name in self.only or ():
            found += one_of("only", name, HIGHER_IS_HARDER)
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
    method: Annotated[MethodName, tyro.conf.arg(help=METHOD_HELP)] = "easycore"
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
        found = super().problems() + one_of("method", self.method, METHODS) + at_least("seed", self.seed, 0)
        found += fraction_problem(self.fraction)
        if self.score is not None:
            found += one_of("score", self.score, HIGHER_IS_HARDER) or easycore_problem(self.method, self.score)
        if self.scores is None and self.dataset is None:
            found.append("scores and dataset are both missing; pass --scores, or --dataset for methods without scores")
        if not 0 <= self.cutoff < 1:
            found.append(f"cutoff must be in [0, 1), got {self.cutoff:g}")
        if not 0 <= self.band[0] < self.band[1] <= 1:
            found.append(f"band must be two quantiles 0 <= LO < HI <= 1, got {self.band[0]:g} {self.band[1]:g}")
        if self.method in METHODS:
            found += [problem for text in self.option for problem in _option_problem(self.method, text)]
        if self.score_epochs is not None:
            found += epochs_problem(self.score_epochs)
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
            found += at_least("steps", self.steps, 1)
            if isinstance(self.num_workers, tuple):
                found.append("steps needs one number of workers, got MIN:MAX; pass --epochs, or --num-workers N")
        return found + at_least("epochs", self.epochs, 1)


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
        found = super().problems() + at_least("seed", self.seed, 0)
        for name in self.attack:
            found += one_of("attack", name, EVALUATION_ATTACKS)
        if "none" in self.attack and len(self.attack) > 1:
            found.append(f"attack none stands alone, got {', '.join(self.attack)}; the clean accuracy is always given")
        for eps in self.eps:
            found += eps_problem("eps", eps, self.norm)
        if not self.eps or not self.attack:
            found.append("attack and eps need at least one value each")
        if self.num_samples is not None:
            found += at_least("num_samples", self.num_samples, 1)
        return found


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
class ExportConfig(Checked):
    """Write a trained model into one file for use elsewhere; it takes pixels in [0, 1] and normalises them itself."""

    checkpoint: str
    """Folder of a trained model."""
    out: str
    """File that is written."""
    format: Literal["weights", "pt2", "onnx"] = "weights"
    """weights: safetensors, normalisation included. pt2: a torch.export program, which needs nothing of this package.
    onnx: checked with onnxruntime to 1e-4; needs the extra export. Both take batches of any size."""
    weights: Literal["last", "best"] = "last"
    """Weights after the last epoch, or after the one that did best on the validation split."""
    overwrite: bool = False
    """Replace a file that is there."""


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
        problems = one_of("score", self.score, HIGHER_IS_HARDER) + at_least("count", self.count, 0)
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
