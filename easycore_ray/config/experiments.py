"""Configurations of what runs many stages: sweep, study, pipeline, analysis."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from easycore_ray.config.base import ComputeConfig, TrackingConfig
from easycore_ray.config.fields import (
    SWEEP_ATTACKS,
    ArmName,
    AttackName,
    Eps,
    Norm,
    ScoreName,
    ScorePass,
    StudyPart,
    Training,
    Workers,
    arm_problems,
    at_least,
    eps_problem,
    format_workers,
    fraction_problem,
    one_of,
)
from easycore_ray.config.recipes import RecipeConfig, SeededRecipeConfig
from easycore_ray.config.stages import PrepareConfig, ScoreConfig
from easycore_ray.core.selection import HIGHER_IS_HARDER
from easycore_ray.storage.errors import FieldsError


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
        found = super().problems() + at_least("seed", self.seed, 0) + one_of("score", self.score, HIGHER_IS_HARDER)
        for eps in self.eps:
            found += eps_problem("eps", eps, self.norm)
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
        found = super().problems() + self.recipe_problems() + eps_problem("eps", self.eps, self.norm)
        if isinstance(self.num_workers, tuple):
            found.append(f"num_workers must be one number in a sweep, got {format_workers(self.num_workers)}")
        for arm in self.method:
            found += arm_problems(arm)
        for value in self.fraction:
            found += fraction_problem(value)
        for value in self.eval_eps:
            found += eps_problem("eval_eps", value, self.norm)
        for name in self.attack:
            found += one_of("attack", name, SWEEP_ATTACKS)
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
            found += at_least(name, getattr(self, name), 1)
        found += at_least("val_attack_steps", self.val_attack_steps, 0)
        for name in ("steps", "trades_epochs", "num_test_samples", "max_concurrent_trials"):
            if getattr(self, name) is not None:
                found += at_least(name, getattr(self, name), 1)
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
        found += eps_problem("autoattack_eps", self.autoattack_eps, self.norm)
        for name in ("score_workers", "subset", "num_test_samples", "num_autoattack_samples"):
            if getattr(self, name) is not None:
                found += at_least(name, getattr(self, name), 1)
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
            found += at_least("subset", self.subset, 1)
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
