"""Configurations of the stages: one flat, frozen, keyword-only dataclass for each."""

from typing import Annotated, Any, Literal

import tyro

from easycore_ray.config.arms import bound_score_problem
from easycore_ray.config.base import (
    Checked,
    ComputeConfig,
    JobConfig,
    TrackingConfig,
    batch_size_problems,
    configuration,
    if_given,
    if_normalised,
    if_set,
    setting,
)
from easycore_ray.config.fields import (
    METHOD_HELP,
    Balance,
    Count,
    EpochRange,
    FindingKind,
    Flag,
    Fraction,
    InputSpace,
    MethodName,
    Natural,
    Number,
    OnDuplicate,
    PartialShare,
    Positive,
    Recorded,
    ScoreName,
    ScorePass,
    Several,
    SourceFormat,
    Text,
)
from easycore_ray.config.recipes import (
    ExtraDataConfig,
    InitialWeightsConfig,
    ObjectiveConfig,
    RobustnessConfig,
    ScoringObjectiveConfig,
    SeededRecipeConfig,
    budget_problems,
    objective_problems,
)
from easycore_ray.core.selection import METHODS


@configuration
class PrepareConfig(JobConfig):
    """Import images into sharded Parquet with fixed sample ids, a manifest and an index."""

    source: Text = setting(default="digits", identity=False, group="data")
    """digits (1,797 handwritten digits that come with scikit-learn), torchvision:NAME (e.g. torchvision:CIFAR10),
    or the path of image folders, Parquet files or WebDataset tars."""
    format: SourceFormat = setting(default="auto", identity=True, group="data")
    """Layout of a path source: CLASS/image files, Hugging Face-style Parquet (image or img, label), or tar shards."""
    test_source: Text | None = setting(default=None, identity=False, group="data")
    """Test split, in the same layout; by default the source's own test split, else --test-fraction of the source."""
    classes: Text | None = setting(default=None, identity=False, group="data")
    """Text or JSON file with the class names in label order, where the source does not name them."""
    val_fraction: PartialShare = setting(default=0.02, identity=True, group="data")
    """Share of the training images held out for validation, seeded and class-balanced; 0 keeps all for training."""
    test_fraction: PartialShare = setting(default=0.2, identity=True, group="data")
    """Share held out for testing where the source has no test split of its own, seeded and class-balanced."""
    image_size: Count | None = setting(default=None, identity=True, group="data")
    """Pixels: shorter side is resized to this and the centre cropped. Needed where images differ in size."""
    resize_size: Count | None = setting(default=None, identity=if_given("resize_size"), group="data")
    """Pixels: what the shorter side is resized to before a centre square of --image-size is cropped, e.g. 256 for 224;
    --image-size if left out."""
    exif: Literal["rotate", "ignore"] = setting(default="rotate", identity=True, group="data")
    """rotate: photos are turned upright by the orientation in their metadata. ignore: pixels as they are stored."""
    store: Literal["auto", "pixels", "encoded", "resized"] = setting(default="auto", identity=True, group="data")
    """What is kept of each image. pixels: as they are trained on, which need no decoding. encoded: the file as it
    came. resized: a JPEG of quality 95 whose shorter side is 8/7 of --image-size, where that is smaller than the file.
    auto: pixels up to 64 KiB an image, files beyond."""
    shard_mib: Positive = setting(default=256.0, identity=True, group="data")
    """Size of a shard (Parquet file), about, in MiB of images; shards of a split differ by at most one row."""
    on_bad_sample: Literal["error", "skip"] = setting(default="error", identity=True, group="data")
    """A corrupt image or unknown label stops the import (error), or is left out and listed in the manifest (skip)."""
    image_column: Text | None = setting(default=None, identity=if_given("image_column"), group="data")
    """Column of the images in Parquet files; image or img if left out."""
    label_column: Text | None = setting(default=None, identity=if_given("label_column"), group="data")
    """Column of the labels in Parquet files, e.g. fine_label; label if left out."""
    allow_one_class: Flag = setting(default=False, identity=False, group="data")
    """Import a source of a single class, which is otherwise taken for a wrong folder."""
    on_duplicate: OnDuplicate = setting(
        default="keep", identity=lambda config: config.on_duplicate == "drop", group="data"
    )
    """Images that are there more than once, by content: keep all of them and say how many, drop all but one (that of
    the test split if it has one; ids change), or stop (error)."""
    source_check: Flag = setting(default=True, identity=False, group="data")
    """Where --out is finished already: compare names, sizes and times of the source's files with those of the import,
    and stop if they differ. --no-source-check reuses the dataset as it is."""
    seed: Natural = setting(default=0, identity=True, group="data")
    """Seed of the splits and of the placement of rows in shards."""

    def problems(self) -> list[str]:
        """See ``Checked.problems``."""
        found = super().problems()
        if self.store == "resized" and self.image_size is None:
            found.append("store resized needs an image_size, from which the size of the files follows")
        if self.resize_size is not None and self.image_size is None:
            found.append("resize_size goes with image_size, the side of the square that is cropped afterwards")
        if self.resize_size is not None and self.resize_size < (self.image_size or 0):
            found.append(
                f"resize_size must be at least image_size {self.image_size}, got {self.resize_size}; the square is "
                "cropped from what is resized"
            )
        return found


@configuration
class ScoreBatchConfig(Checked):
    """How many samples are scored at once."""

    # By default it follows from the images, and a batch that was halved for want of memory is the same run.
    score_batch_size: Count | None = setting(default=None, identity=if_given("score_batch_size"), group="compute")
    """Samples in a batch of an exact scoring pass: by default 256, fewer of large images (64 at 224 x 224 pixels). What
    does not fit into a device's memory is halved. Changes scores by rounding only."""


@configuration
class ScoreConfig(
    ScoreBatchConfig,
    InitialWeightsConfig,
    ExtraDataConfig,
    SeededRecipeConfig,
    ScoringObjectiveConfig,
    TrackingConfig,
    ComputeConfig,
):
    """Train on all samples and record every sample's input gradient norm; then reduce."""

    dataset: Text = setting(identity=False, group="data")
    """Folder of a prepared dataset."""
    coreset: Text | None = setting(default=None, identity=False, group="data")
    """Folder of a coreset, whose samples alone are used; all training samples if left out."""
    epochs: Count = setting(default=20, identity=True, group="training")
    """Passes over the samples."""
    score_pass: ScorePass = setting(default="fused+eval", identity=True, group="training")
    """eval: exact scores of the clean images in evaluation mode after the epoch. fused: the training step's own
    input gradients (augmented view, training mode), nearly free. fused+eval: fused, and one exact pass with the
    final weights, which counts as one more epoch: agrees with another seed's exact scores as well as they do."""
    input_space: InputSpace = setting(default="pixel", identity=if_normalised, group="training")
    """Inputs that gradients are taken with respect to. pixel: pixels in [0, 1]. normalised: what the network makes of
    them first, (pixel - mean) / deviation, so that each channel's gradient is multiplied by its deviation, as in
    CSL-Mem. Scores of different spaces are never mixed."""
    score_every: Count = setting(default=1, identity=True, group="training")
    """Score every this many epochs, counted back from the last one."""
    initial_pass: Flag = setting(default=False, identity=True, group="training")
    """Also score the untrained network (epoch 0): a control, aign_epoch0, that never enters AIGN."""
    stop_when_stable: Number | None = setting(default=None, identity=True, group="training")
    """End the run once the easiest half by AIGN changes less than this from one scored epoch to the next: the share
    that stays, e.g. 0.98, in (0, 1]. Never, if left out."""
    record: Several[Recorded] = setting(default=(), identity=if_set("record"), group="training")
    """What is recorded besides scores. features: penultimate features and softmax of every sample, in half precision,
    in the exact pass of the final weights: what methods such as moderate, k_center or craig go by. kd: with score_pass
    eval, how much each sample's softmax has changed since the scored epoch before, for the score tdds."""

    def problems(self) -> list[str]:
        """See ``Checked.problems``."""
        found = super().problems() + batch_size_problems(self.batch_size, self.num_workers)
        if self.stop_when_stable is not None and not 0 < self.stop_when_stable <= 1:
            found.append(
                f"stop_when_stable must be in (0, 1], got {self.stop_when_stable:g}; it is the share of the easiest "
                "half that stays from one scored epoch to the next"
            )
        if "kd" in self.record and self.score_pass != "eval":
            found.append(
                f"record kd compares the softmax of exact passes, got score_pass {self.score_pass}; pass --score-pass "
                "eval"
            )
        if "features" in self.record and self.score_pass == "fused":
            found.append(
                "record features needs an exact pass of the final weights, got score_pass fused; pass fused+eval"
            )
        if "features" in self.record and self.score_pass == "eval" and self.stop_when_stable is not None:
            found.append(
                "record features does not know which pass is the last with score_pass eval and stop_when_stable; pass "
                "--score-pass fused+eval"
            )
        if self.training != "standard" and self.score_pass != "eval":
            found.append(
                f"score_pass must be eval with training {self.training}, got {self.score_pass!r}: a training step's "
                "input gradient is not that of the clean loss; pass --score-pass eval"
            )
        if self.extra_dataset is not None and self.score_pass != "eval":
            found.append(
                f"score_pass {self.score_pass} scores rows as they are trained on, and of extra_dataset not every row "
                "is in an epoch; pass --score-pass eval"
            )
        return found


@configuration
class ReduceConfig(JobConfig):
    """Reduce a score table to one row of hardness per sample."""

    scores: Text = setting(identity=False, group="data")
    """Folder of a scoring run."""
    epoch_range: EpochRange | None = setting(default=None, identity=True, group="data")
    """Use the scores of these training epochs only: A:B, both inclusive, 1 <= A <= B; all if left out."""
    only: Several[ScoreName] | None = setting(default=None, identity=True, group="data")
    """Only these scores, e.g. aign: the columns of the others are not read, which takes a part of the time on huge
    tables. The others are empty in the result."""
    bucket_rows: Count = setting(default=4_000_000, identity=False, group="compute")
    """Most samples in one reduction task: sets its memory (about 200 bytes a sample), not the result."""

    def problems(self) -> list[str]:
        """See ``Checked.problems``."""
        empty = self.only == ()
        return super().problems() + ["only needs at least one score; leave it out for all"] * empty


@configuration
class CoresetConfig(TrackingConfig, JobConfig):
    """Select the samples to keep."""

    scores: Text | None = setting(default=None, identity=False, group="data")
    """Folder of a scoring run."""
    dataset: Text | None = setting(default=None, identity=False, group="data")
    """Folder of a prepared dataset; needed without --scores, otherwise only to check that they belong together."""
    user_scores: Text | None = setting(default=None, identity=False, group="data")
    """Your own scores: a Parquet file of sample_id, score (higher = harder), used instead of --score."""
    method: Annotated[MethodName, tyro.conf.arg(help=METHOD_HELP)] = setting(
        default="easycore", identity=True, group="data"
    )
    epoch_range: EpochRange | None = setting(default=None, identity=True, group="data")
    """Use the scores of these training epochs only: A:B, both inclusive, 1 <= A <= B; all if left out."""
    score: ScoreName | None = setting(default=None, identity=True, group="data")
    """Column that orders the samples: aign, el2n, loss, aum, forgetting, …; the method's own if left out."""
    fraction: Fraction = setting(default=0.5, identity=True, group="data")
    """Share of the samples that is kept, in (0, 1]."""
    balance: Balance = setting(default="none", identity=True, group="data")
    """none: over all samples. class: the same share of every class."""
    cutoff: PartialShare = setting(default=0.0, identity=True, group="data")
    """Share of the hardest samples that stratified drops first, in [0, 1) (the hard cut-off of CCS)."""
    cutoff_score: ScoreName | None = setting(default=None, identity=if_given("cutoff_score"), group="data")
    """Score by which stratified drops them, e.g. aum, as CCS always does; by --score if left out."""
    band: tuple[Number, Number] = setting(default=(0.25, 0.75), identity=True, group="data")
    """Hardness quantiles between which the method band draws."""
    option: Several[Text] = setting(default=(), identity=True, group="data")
    """Further options of the method, NAME=VALUE each, e.g. strata=20."""
    seed: Natural = setting(default=0, identity=True, group="data")
    """Seed of random draws."""
    # Known by the ids that are left out.
    exclude: Text | None = setting(default=None, identity=False, group="data")
    """Leave these samples out before choosing: the folder of an audit, all of whose findings are left out, or a Parquet
    file with a column sample_id. --fraction counts on what is left."""
    exclude_kind: Several[FindingKind] = setting(default=(), identity=if_set("exclude_kind"), group="data")
    """Of --exclude, leave out findings of these kinds only, by the column kind; all if left out."""
    materialize: Flag = setting(default=False, identity=False, group="output")
    """Also write the kept images as a dataset of their own, OUT/dataset, to train on without --coreset: worth it where
    a small part of many images is read often, or elsewhere. Ids stay those of --dataset; val and test come along."""

    def problems(self) -> list[str]:
        """See ``Checked.problems``."""
        found = super().problems()
        if problem := bound_score_problem(self.method, self.score):
            found.append(problem)
        if self.scores is None and self.dataset is None:
            found.append("scores and dataset are both missing; pass --scores, or --dataset for methods without scores")
        if not 0 <= self.band[0] < self.band[1] <= 1:
            found.append(f"band must be two quantiles 0 <= LO < HI <= 1, got {self.band[0]:g} {self.band[1]:g}")
        found += [problem for text in self.option if (problem := _option_problem(self.method, text))]
        if self.cutoff_score is not None and self.method != "stratified":
            found.append(f"cutoff_score is for method stratified, got {self.method}; leave it out")
        if self.exclude_kind and self.exclude is None:
            found.append("exclude_kind goes with --exclude, the findings it picks from")
        for name in ("epoch_range", "cutoff_score"):
            if getattr(self, name) is not None and self.scores is None:
                found.append(f"{name} goes with --scores, the folder of a scoring run")
        return found


# Options of methods that have a flag of their own.
_FLAGS = ("cutoff", "band")


def method_options(config: CoresetConfig) -> dict[str, Any]:
    """The method's own options: those with a flag of their own where it has them, and those of --option."""
    known = METHODS[config.method].options
    found = {name: getattr(config, name) for name in _FLAGS if name in known}
    for text in config.option:
        name, _, value = text.partition("=")
        found[name] = known[name].parse(value)
    return found


def _option_problem(method: str, text: str) -> str:
    name, equals, value = text.partition("=")
    options = METHODS[method].options
    if not equals:
        return f"option must be NAME=VALUE, got {text!r}"
    if name in _FLAGS:
        return f"option {name} has a flag of its own; pass --{name}"
    if name not in options:
        mine = ", ".join(other for other in options if other not in _FLAGS) or "none"
        return f"method {method} has no option {name!r}; its options are: {mine}"
    try:
        options[name].parse(value)
    except ValueError as error:
        kind = getattr(options[name].kind, "__name__", str(options[name].kind))
        return f"option {name} must be {kind}, got {value!r} ({error})"
    return ""


def _is_pruned(config: Any) -> bool:
    return bool(config.pruning != "none")


@configuration
class TrainConfig(
    InitialWeightsConfig,
    ExtraDataConfig,
    SeededRecipeConfig,
    RobustnessConfig,
    ObjectiveConfig,
    TrackingConfig,
    ComputeConfig,
):
    """Train one model on one coreset: standard, TRADES or PGD-AT."""

    dataset: Text = setting(identity=False, group="data")
    """Folder of a prepared dataset."""
    coreset: Text | None = setting(default=None, identity=False, group="data")
    """Folder of a coreset, whose samples alone are used; all training samples if left out."""
    epochs: Count = setting(default=20, identity=True, group="training")
    """Passes over the samples."""
    steps: Count | None = setting(default=None, identity=True, group="training")
    """Optimizer steps of a training run instead of epochs: the same number whatever the size of the coreset."""
    device_seconds: Positive | None = setting(default=None, identity=if_given("device_seconds"), group="training")
    """Seconds of training, of all workers together, instead of epochs or steps: a step is timed once before the start,
    and as many are taken as fit. Recorded in --out, so that a run that is resumed has the same steps."""
    steps_fraction: Fraction | None = setting(default=None, identity=if_given("steps_fraction"), group="training")
    """As many steps as a coreset of this share of the samples takes in --epochs; as all of them, if left out. All data
    with 0.5 is repeated random sampling (RS2): in each pass over a half another half, till all were seen."""
    pruning: Literal["none", "infobatch"] = setting(default="none", identity=_is_pruned, group="training")
    """infobatch: leave out samples whose last loss is below the mean, each with probability --prune-ratio, anew in each
    epoch, and weigh those that stay for those that went (InfoBatch, Qin et al. 2024); all samples in the first epoch
    and in the last eighth of the steps. The steps are the same with and without it, so that there are more, shorter
    epochs. An epoch in which some worker would have less than two samples in some step has all. On a GPU, pruned
    epochs are computed without a CUDA graph, since the sizes of their batches change."""
    prune_ratio: PartialShare = setting(default=0.5, identity=_is_pruned, group="training")
    """Share of the samples with a loss below the mean that infobatch leaves out of an epoch, in (0, 1)."""
    charged_steps: Natural = setting(default=0, identity=lambda config: config.charged_steps > 0, group="training")
    """Steps that are taken off, for what scoring cost: see --count-scoring of sweep."""

    def problems(self) -> list[str]:
        """See ``Checked.problems``."""
        found = super().problems() + objective_problems(self)
        found += budget_problems(self)
        if self.steps is not None and self.steps_fraction is not None:
            found.append(f"steps is {self.steps} and steps_fraction {self.steps_fraction:g}; pass one of them")
        if self.device_seconds is not None and self.steps_fraction is not None:
            both = f"device_seconds is {self.device_seconds:g} and steps_fraction {self.steps_fraction:g}"
            found.append(f"{both}; pass one of them")
        if self.pruning != "none":
            found += _pruning_problems(self)
        return found + batch_size_problems(self.batch_size, self.num_workers)


def _pruning_problems(config: TrainConfig) -> list[str]:
    found = []
    if config.prune_ratio == 0:
        found.append("prune_ratio must be in (0, 1), got 0; leave --pruning out to train on all samples")
    if config.batch_size < 4 * config.max_workers:
        found.append(
            f"pruning {config.pruning} needs at least four samples a worker in a batch, got batch_size "
            f"{config.batch_size} for {config.max_workers} workers; raise --batch-size or lower --num-workers"
        )
    if config.extra_dataset is not None:
        found.append(
            f"pruning {config.pruning} leaves rows out by their losses, and extra_dataset has a share of every batch; "
            "pass one of them"
        )
    return found
