"""Configurations of what runs many stages: sweep, study, pipeline, analysis."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar

from easycore_ray.config.arms import ArmName, parse_arm, trajectory_problems
from easycore_ray.config.base import (
    Checked,
    ComputeConfig,
    ResourceConfig,
    TrackingConfig,
    batch_size_problems,
    configuration,
    eps_problems,
    if_given,
    if_normalised,
    if_set,
    setting,
)
from easycore_ray.config.evaluation import OF_WEIGHTS_FILE, EvalBatchConfig, EvalMeasureConfig, EvaluateConfig
from easycore_ray.config.fields import (
    WEIGHTED,
    Count,
    Eps,
    Flag,
    Fraction,
    InputSpace,
    Natural,
    Norm,
    Number,
    OnDuplicate,
    PartialShare,
    Positive,
    Recorded,
    ScorePass,
    Several,
    SourceFormat,
    StudyPart,
    SweepAttackName,
    TableScoreName,
    Text,
    Training,
    Weight,
)
from easycore_ray.config.recipes import (
    AveragedWeightsConfig,
    ExtraDataConfig,
    RecipeConfig,
    RobustnessConfig,
    ScoringObjectiveConfig,
    SeededRecipeConfig,
    ThreatConfig,
    attacks_validation,
    budget_problems,
    objective_problems,
)
from easycore_ray.config.stages import PrepareConfig, ScoreBatchConfig, ScoreConfig
from easycore_ray.config.study_parts import PARTS, trained_parts
from easycore_ray.config.trial_choice import (
    EarlyStoppingConfig,
    SearchConfig,
    early_stopping_problems,
    search_problems,
)
from easycore_ray.core.selection import ADVERSARIAL_SCORES
from easycore_ray.storage.errors import FieldsError

Stage = TypeVar("Stage", bound=Checked)


@configuration
class AnalyzeConfig(EvalBatchConfig, TrackingConfig, ComputeConfig):
    """Test the paper's claims on your own data: are easy samples safer, learned sooner, and easy for any model?"""

    scores: Several[Text] = setting(identity=False, group="data")
    """Folders of scoring runs of one dataset. The first gives the deciles that are drawn; with several, of other seeds
    and networks, their agreement tells whether hardness depends on the model."""
    checkpoint: Several[Text] = setting(default=(), identity=False, group="model")
    """Folders of trained models whose training samples are attacked; without one, only what the scores alone tell."""
    dataset: Text | None = setting(default=None, identity=False, group="data")
    """Folder of a prepared dataset; by default the one that was scored."""
    score: TableScoreName = setting(default="aign", identity=True, group="data")
    """Score that orders the samples."""
    eval_eps: Several[Eps] = setting(
        default=(0.25 / 255, 0.5 / 255, 1 / 255, 2 / 255, 4 / 255, 8 / 255), identity=True, group="attack"
    )
    """Perturbations of the evaluation, in [0, 1] pixel units, one result for each; 0 is the clean accuracy."""
    norm: Norm = setting(default="linf", identity=True, group="attack")
    """Norm in which perturbations are bounded."""
    num_train_samples: Count = setting(default=2000, identity=True, group="data")
    """Training samples that are attacked with each model, equally many of every decile, drawn once by --seed."""
    seed: Natural = setting(default=0, identity=True, group="attack")
    """Seed of the drawn samples, of the attacks' random starts and of the intervals."""

    def problems(self) -> list[str]:
        """See ``Checked.problems``."""
        found = super().problems() + eps_problems("eval_eps", self.eval_eps, self.norm)
        found += _needs_values(self, "scores", "eval_eps")
        for name in ("scores", "checkpoint", "eval_eps"):
            values = getattr(self, name)
            found += [f"{name} names {value} twice" for value in dict.fromkeys(values) if values.count(value) > 1]
        if self.num_train_samples < 50:
            found.append(f"num_train_samples must be >= 50, five for each decile, got {self.num_train_samples}")
        return found


@configuration
class TrialsConfig(EvalBatchConfig):
    """How the models of a comparison are trained and attacked."""

    train_epochs: Count = setting(default=20, identity=True, group="training")
    """Passes over the coreset in standard training."""
    adversarial_epochs: Count | None = setting(default=None, identity=True, group="training")
    """Passes over the coreset in adversarial training; as --train-epochs if left out."""
    num_eval_samples: Count | None = setting(default=None, identity=True, group="data")
    """Attack only this many images in an evaluation, the same for every model; all if left out."""
    trial_workers: Count = setting(default=1, identity=True, group="compute")
    """Training processes of each trial; 1 trains in the trial's own process, which saves seconds each."""
    max_concurrent_trials: Count | None = setting(default=None, identity=False, group="compute")
    """Trials at the same time; by default as many as the cluster can run."""
    keep_going: Flag = setting(default=False, identity=False, group="output")
    """Finish although training diverged in some trials: they are named, and their seeds missing in the means."""


@configuration
class GridConfig(EarlyStoppingConfig, TrialsConfig, EvalMeasureConfig, RobustnessConfig, ExtraDataConfig, ThreatConfig):
    """What a sweep and a pipeline train: arms × fractions × objectives × seeds."""

    method: Several[ArmName] = setting(
        default=("easycore", "easycore/class", "random", "hardest"), identity=True, group="data"
    )
    """Arms: METHOD, METHOD:SCORE (e.g. easiest:el2n), either with /class for class-balanced selection. Or, for the
    steps of a coreset: rs2, all data, in another order each time; infobatch, all data, those of low loss less often
    (see --pruning of train)."""
    fraction: Several[Fraction] = setting(default=(0.3, 0.5), identity=True, group="data")
    """Shares of the samples that are kept, each in (0, 1]."""
    cutoff: PartialShare = setting(default=0.0, identity=if_set("cutoff"), group="data")
    """Share of the hardest samples that arms of stratified drop first, in [0, 1) (the hard cut-off of CCS)."""
    training: Several[Training] = setting(default=("standard", "trades"), identity=True, group="training")
    """Objectives to train for."""
    beta: Several[Weight] = setting(default=(1.0, 6.0), identity=True, group="training")
    """Weights of trades and mart to train with; the others have none."""
    seeds: Several[Natural] = setting(default=(0, 1), identity=True, group="training")
    """One training run per seed; random arms draw anew with each."""
    steps: Count | None = setting(default=None, identity=True, group="training")
    """Optimizer steps of a training run instead of epochs: the same number whatever the size of the coreset."""
    device_seconds: Positive | None = setting(default=None, identity=if_given("device_seconds"), group="training")
    """Seconds of training of each model instead of epochs or steps: a step of each objective is timed once before the
    start, and as many are taken as fit, the same number whatever the size of the coreset. Recorded in --out, so that a
    sweep that is resumed has the same steps. With several workers, seconds of all together."""
    count_scoring: Flag = setting(default=False, identity=lambda config: config.count_scoring, group="training")
    """Take off the steps of models whose coresets go by scores what the scoring run cost, in passes through the
    network, divided by the number of those models."""
    attack: Several[SweepAttackName] = setting(default=("pgd20",), identity=True, group="attack")
    """Attacks of the evaluation, pgd20 among them; the robust accuracy is that under all. autoattack: the standard
    version, slow, needs the package pyautoattack."""
    val_attack_steps: Natural = setting(default=10, identity=attacks_validation, group="attack")
    """Gradient steps of the attack on the validation split after each epoch (adversarial training), at --eps: it picks
    the best epoch, which is evaluated beside the last. 0: the clean accuracy picks it."""
    eval_eps: Several[Eps] = setting(default=(8 / 255,), identity=True, group="attack")
    """Perturbations of the evaluation, in [0, 1] pixel units, one result for each; 0 is the clean accuracy."""
    register: Text | None = setting(default=None, identity=False, group="tracking")
    """Name in MLflow's model registry: NAME-OBJECTIVE gets the most robust model of each objective as a version."""

    def problems(self) -> list[str]:
        """See ``Checked.problems``."""
        found = super().problems() + eps_problems("eval_eps", self.eval_eps, self.norm)
        found += _needs_values(self, "fraction", "training", "seeds", "eval_eps")
        found += objective_problems(self) + early_stopping_problems(self)
        if WEIGHTED & {*self.training} and not self.beta:
            found.append("beta needs at least one value for trades and mart")
        if "infobatch" in self.method and self.extra_dataset is not None:
            found.append("method infobatch cannot go with extra_dataset, whose rows have a share of every batch")
        if "pgd20" not in self.attack:
            found.append(f"attack must include pgd20, the attack all sweeps share, got {' '.join(self.attack)!r}")
        return found + self._cutoff_problems()

    def _cutoff_problems(self) -> list[str]:
        """What is wrong with the share of the hardest samples that is dropped."""
        if not self.cutoff:
            return []
        if all(parse_arm(name).method != "stratified" for name in self.method):
            return [f"cutoff {self.cutoff:g} is for arms of stratified, got {' '.join(self.method)}; leave it out"]
        return [
            f"cutoff {self.cutoff:g} leaves less than the fraction {fraction:g} that is kept; lower one of them"
            for fraction in self.fraction
            if fraction > 1 - self.cutoff + 1e-9
        ]


@configuration
class SweepConfig(SearchConfig, GridConfig, RecipeConfig, TrackingConfig, ResourceConfig):
    """Train and evaluate every arm × fraction × training × seed; the full data is always among them."""

    dataset: Text = setting(identity=False, group="data")
    """Folder of a prepared dataset."""
    scores: Text = setting(identity=False, group="data")
    """Folder of a scoring run."""

    def problems(self) -> list[str]:
        """See ``Checked.problems``."""
        found = super().problems() + search_problems(self) + budget_problems(self)
        return found + batch_size_problems(self.batch_size, self.trial_workers)


@configuration
class ScoringConfig(ScoreBatchConfig):
    """How pipelines and studies score."""

    subset: Count | None = setting(default=None, identity=True, group="data")
    """Work on this many training samples only, a class-balanced random draw; all if left out."""
    score_epochs: Count = setting(default=20, identity=True, group="training")
    """Training epochs of a scoring run."""
    score_pass: ScorePass = setting(default="fused+eval", identity=True, group="training")
    """How scores are taken: see score."""
    input_space: InputSpace = setting(default="pixel", identity=if_normalised, group="training")
    """Inputs that gradients are taken with respect to: see score."""
    score_every: Count = setting(default=1, identity=True, group="training")
    """Score every this many epochs, counted back from the last one."""
    initial_pass: Flag = setting(default=False, identity=True, group="training")
    """Also score the untrained network (epoch 0): a control, aign_epoch0, that never enters AIGN."""
    stop_when_stable: Number | None = setting(default=None, identity=True, group="training")
    """End a scoring run once the easiest half by AIGN is this stable: see score."""
    record: Several[Recorded] = setting(default=(), identity=if_set("record"), group="training")
    """What scoring records besides scores, e.g. features: see score."""

    def trajectory_problems_of(self, arms: Iterable[str]) -> list[str]:
        """Arms whose score takes more scored epochs than a scoring run has, or what it does not record."""
        scored, chosen = len(range(self.score_epochs, 0, -self.score_every)), list(map(parse_arm, arms))
        found = trajectory_problems(chosen, scored + (self.score_pass == "fused+eval"))
        for arm in chosen:
            if missing := " ".join(name for name in arm.needs_recorded if name not in self.record):
                found.append(f"method {arm.name} needs what scoring records on request; pass --record {missing}")
        return found


@configuration
class StudyConfig(
    TrialsConfig, ScoringConfig, AveragedWeightsConfig, ThreatConfig, RecipeConfig, TrackingConfig, ComputeConfig
):
    """Compare coresets over whole repetitions: for each seed a scoring run, coresets from it, models, attacks."""

    dataset: Text = setting(identity=False, group="data")
    """Folder of a prepared dataset."""
    results: Text | None = setting(default=None, identity=False, group="output")
    """JSON file in which finished trials are kept: they are never run again, also when their artifacts are gone. By
    default results.json in --out. Tables and plots are drawn beside it."""
    parts: Several[StudyPart] = setting(
        default=("standard", "trades", "fractions", "autoattack"), identity=True, group="training"
    )
    """What to run, in this order. standard: standard training on all data and on seven coresets of half the size.
    trades: TRADES on all data and on three of them. fractions: standard with 30 % and 70 %. autoattack: AutoAttack on
    the first seed's models of standard and trades.

    half, 30-percent, 10-percent: TRADES on all data and with rs2, random, easycore, easycore/class, easiest:el2n,
    easiest:aum, dual_beta and stratified (CCS, with the cut-off of its authors), each for this share of the steps.
    half-others: the other methods and scores. standard-half: half in standard training. PART-autoattack: AutoAttack on
    the models of a part, of all seeds; half-autoattack-500: on 500 images of each."""
    seeds: Several[Natural] = setting(default=(0, 1, 2), identity=True, group="training")
    """One whole repetition per seed, its own scoring run included."""
    beta: Weight = setting(default=6.0, identity=True, group="training")
    """Weight of the TRADES robustness term."""
    standard_eval_eps: Several[Eps] = setting(
        default=(0.25 / 255, 0.5 / 255, 1 / 255, 2 / 255, 4 / 255, 8 / 255), identity=True, group="attack"
    )
    """Perturbations of the evaluation of standard models; at 8/255 they have no accuracy left."""
    eval_eps: Several[Eps] = setting(default=(2 / 255, 4 / 255, 8 / 255), identity=True, group="attack")
    """Perturbations of the evaluation, in [0, 1] pixel units, one result for each; 0 is the clean accuracy."""
    num_autoattack_samples: Count | None = setting(default=None, identity=True, group="data")
    """The same for AutoAttack, which takes minutes per hundred images on a CPU."""
    autoattack_eval_eps: Eps = setting(default=1 / 255, identity=True, group="attack")
    """Perturbation of AutoAttack on standard models; on TRADES models it is --eps."""
    num_workers: Count = setting(default=1, identity=True, group="compute")
    """Training processes of a scoring run."""

    def problems(self) -> list[str]:
        """See ``Checked.problems``."""
        found = super().problems() + _needs_values(self, "seeds", "parts", "standard_eval_eps", "eval_eps")
        arms = dict.fromkeys(arm for part in self.parts for name in trained_parts(part) for arm in PARTS[name].method)
        found += self.trajectory_problems_of(arms)
        found += eps_problems("autoattack_eval_eps", self.autoattack_eval_eps, self.norm)
        found += _stage_problems(
            lambda: self.score_config("dataset", 0), lambda: self.sweep_config("scores", 0, ("random",))
        )
        return found

    def score_config(self, out: str, seed: int, coreset: str | None = None) -> ScoreConfig:
        """The scoring run of one seed."""
        return stage_config(self, ScoreConfig, out=out, coreset=coreset, epochs=self.score_epochs, seed=seed)

    def sweep_config(self, scores: str, seed: int, method: tuple[str, ...], **fields: Any) -> SweepConfig:
        """One seed of one part, as a sweep; models are compared after their last epoch."""
        own = {"out": f"{self.out}/seed-{seed}", "scores": scores, "seeds": (seed,), "method": method}
        return stage_config(self, SweepConfig, **{"beta": (self.beta,), "val_attack_steps": 0, **own, **fields})


@configuration
class PipelineConfig(GridConfig, ScoringConfig, SeededRecipeConfig, TrackingConfig, ComputeConfig):
    """Everything: prepare, score, reduce, select, sweep (train and evaluate), report."""

    dataset: Text | None = setting(default=None, identity=False, group="data")
    """Folder of a prepared dataset; if left out, --source is imported."""
    source: Text = setting(default="digits", identity=False, group="data")
    """What to import: see prepare."""
    format: SourceFormat = setting(default="auto", identity=True, group="data")
    """Layout of the source: see prepare."""
    test_source: Text | None = setting(default=None, identity=False, group="data")
    """Test split of the source: see prepare."""
    image_size: Count | None = setting(default=None, identity=True, group="data")
    """Pixels of the resized and cropped image, where images differ in size: see prepare."""
    resize_size: Count | None = setting(default=None, identity=if_given("resize_size"), group="data")
    """Pixels of the shorter side before it is cropped: see prepare."""
    exif: Literal["rotate", "ignore"] = setting(default="rotate", identity=True, group="data")
    """Whether photos are turned upright by their metadata: see prepare."""
    store: Literal["auto", "pixels", "encoded", "resized"] = setting(default="auto", identity=True, group="data")
    """What is kept of each image: see prepare."""
    shard_mib: Positive = setting(default=256.0, identity=True, group="data")
    """Size of a shard, about, in MiB of images: see prepare."""
    image_column: Text | None = setting(default=None, identity=if_given("image_column"), group="data")
    """Column of the images in Parquet files: see prepare."""
    label_column: Text | None = setting(default=None, identity=if_given("label_column"), group="data")
    """Column of the labels in Parquet files: see prepare."""
    allow_one_class: Flag = setting(default=False, identity=False, group="data")
    """Import a source of a single class: see prepare."""
    on_duplicate: OnDuplicate = setting(
        default="keep", identity=lambda config: config.on_duplicate == "drop", group="data"
    )
    """Images that are there more than once: see prepare."""
    source_check: Flag = setting(default=True, identity=False, group="data")
    """Stop if the source has changed since it was imported: see prepare."""
    note: Text = setting(default="", identity=True, group="output")
    """A sentence shown in the report, e.g. what the data cannot be compared with."""

    def problems(self) -> list[str]:
        """See ``Checked.problems``: those of the stages."""
        found = super().problems()
        for arm in map(parse_arm, self.method):
            if arm.score in ADVERSARIAL_SCORES:
                found.append(
                    f"method {arm.name} needs scores of adversarial training, and a pipeline scores in standard "
                    "training; run score --training trades --score-pass eval, then a sweep"
                )
        found += self.trajectory_problems_of(self.method)
        stages: list[Callable[[], Any]] = [
            lambda: self.score_config("dataset"),
            lambda: self.sweep_config("dataset", "scores"),
        ]
        if self.dataset is None:
            stages.insert(0, self.prepare_config)
        return found + [problem for problem in _stage_problems(*stages) if problem not in found]

    def prepare_config(self) -> PrepareConfig:
        """The import this pipeline makes."""
        return stage_config(self, PrepareConfig, out=f"{self.out}/dataset")

    def score_config(self, dataset: str, coreset: str | None = None) -> ScoreConfig:
        """The scoring run this pipeline makes; extra data is for the models that are compared."""
        own = {"out": f"{self.out}/scores", "dataset": dataset, "coreset": coreset, "extra_dataset": None,
               "extra_coreset": None, "extra_fraction": None}  # fmt: skip
        return stage_config(self, ScoreConfig, **own, epochs=self.score_epochs)

    def sweep_config(self, dataset: str, scores: str) -> SweepConfig:
        """The sweep this pipeline makes."""
        return stage_config(self, SweepConfig, out=f"{self.out}/sweep", dataset=dataset, scores=scores)


def stage_config(config: Any, kind: type[Stage], **own: Any) -> Stage:
    """The configuration of a stage: fields it shares with ``config``, completed and overruled by its own.

    Raises:
        FieldsError: what is wrong with it.
    """
    names = {spec.name for spec in dataclasses.fields(kind)}  # type: ignore[arg-type]
    names -= set(OF_WEIGHTS_FILE) if kind is EvaluateConfig else set()
    if kind is ScoreConfig:
        # A sweep's or study's objectives are those of the models it compares; scores are taken in standard training.
        names -= {spec.name for spec in dataclasses.fields(ScoringObjectiveConfig)}
    return kind(**{**{name: value for name, value in vars(config).items() if name in names}, **own})


def _stage_problems(*stages: Any) -> list[str]:
    found: list[str] = []
    for stage in stages:
        try:
            stage()
        except FieldsError as error:
            found += error.problems
    return found


def _needs_values(config: Any, *names: str) -> list[str]:
    return [f"{name} needs at least one value" for name in names if not getattr(config, name)]
