"""A training run as plain data: configuration resolved into steps, model arguments and the plan of the loop."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from easycore_ray.config.recipes import ObjectiveConfig, ScoringObjectiveConfig, SeededRecipeConfig
from easycore_ray.config.stages import ScoreConfig, TrainConfig
from easycore_ray.core.memory import RowLimit, default_rows
from easycore_ray.core.models import build_model
from easycore_ray.core.names import MODEL_NAMES, default_width
from easycore_ray.core.training_plan import TrainingPlan
from easycore_ray.data.coreset import Coreset
from easycore_ray.data.dataset import Dataset
from easycore_ray.engine.extra_data import ExtraData
from easycore_ray.engine.mixed_segments import MixedSegments
from easycore_ray.engine.segments import Segments
from easycore_ray.engine.shares import steps_per_epoch, training_steps
from easycore_ray.storage.artifact import Artifact
from easycore_ray.storage.errors import EasyCoreError


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A run, as plain data that can be sent to workers."""

    dataset: str
    coreset: Coreset | None
    """The samples to train on, whose ids every worker reads itself; None: the whole training split."""
    num_rows: int
    model: dict[str, Any]
    """Arguments of ``core.models.build_model``."""
    plan: TrainingPlan
    epochs: int
    """Passes over all samples; of pruned epochs there are more."""
    batch_size: int
    """Samples per step over all workers."""
    segment_images: int
    """Samples of a segment of an epoch, see ``engine.segments``."""
    commit_minutes: float
    """Time after which an end of a segment commits."""
    cache_gib: float
    threads: int
    record_scores: bool = False
    """Take fused scores in each training step."""
    compile: bool = False
    """Run training steps compiled; exact scores and validation never are."""
    cuda_graphs: bool = True
    """On a GPU, replay training steps from a CUDA graph."""
    keep_best: bool = False
    """Keep the weights of the epoch that does best in validation, if there is a validation split."""
    val_attack_steps: int = 0
    """Steps of the attack on the validation split after each epoch; 0: none."""
    score_batch_size: int | None = None
    """Samples in a batch of an exact scoring pass; by the size of the images if None."""
    prune_ratio: float | None = None
    """Share of the samples with a loss below the mean that an epoch leaves out, see ``core.pruning``; None: no epoch
    is pruned."""
    initial: Artifact | None = None
    """The checkpoint whose weights it starts from; random ones if None."""
    extra: ExtraData | None = None
    """Rows that are mixed into every batch."""

    def segments(self, world_size: int = 1) -> Segments:
        """How an epoch is cut and shared by so many workers."""
        cut = (self.num_rows, self.batch_size, self.segment_images, world_size)
        if self.extra is None:
            return Segments(*cut)
        return MixedSegments(*cut, extra_rows=self.extra.num_rows, extra_batch_rows=self.extra.batch_rows)

    @property
    def epoch_rows(self) -> int:
        """Rows that are trained on in an epoch, extra ones included."""
        segments = self.segments()
        return self.num_rows + (segments.extra_per_epoch if isinstance(segments, MixedSegments) else 0)

    def row_limit(self, batch_size: int | None = None) -> RowLimit:
        """A limit of so many rows without gradients of the weights, by default what the images' size says."""
        return RowLimit(batch_size or default_rows(math.prod(self.model["image_shape"])))

    def describe_sources(self, steps: int) -> dict[str, Any]:
        """Entry of a manifest, ``sources``, after so many steps: where rows came from, and how many; {} of one source.

        Of each source ``samples``, its rows in a whole epoch (``rows_per_epoch``), and in all steps (``rows``); of the
        extra one also its rows in a whole batch (``batch_rows``), and how often all its samples were seen (``passes``).
        """
        segments = self.segments()
        if self.extra is None or not isinstance(segments, MixedSegments):
            return {}
        main, extra = segments.rows_seen(steps)
        return {
            "sources": {
                "main": {"samples": self.num_rows, "rows_per_epoch": self.num_rows, "rows": main},
                "extra": {
                    "samples": self.extra.num_rows,
                    "batch_rows": self.extra.batch_rows,
                    "rows_per_epoch": segments.extra_per_epoch,
                    "rows": extra,
                    "passes": round(extra / self.extra.num_rows, 3),
                },
            }
        }

    def read_sample_ids(self) -> np.ndarray | None:
        """Ids of the samples to train on: int64 (num_rows,), ascending; None for the whole training split.

        Raises:
            EasyCoreError: they are not there any more, damaged, or another coreset's.
        """
        return _read_ids(self.coreset, self.num_rows)

    def read_extra_ids(self) -> np.ndarray | None:
        """The same of the extra data, of which there is some."""
        assert self.extra is not None
        return _read_ids(self.extra.coreset, self.extra.num_rows)

    @property
    def progress_unit(self) -> str:
        """What progress is counted in: how many images pruned epochs have is not known before."""
        return "images" if self.prune_ratio is None else "steps"

    @property
    def progress_total(self) -> int:
        """How many of them there are in all."""
        return self.epochs * self.epoch_rows if self.prune_ratio is None else self.plan.total_steps

    @property
    def selected_by(self) -> str:
        """The metric that the best epoch has the highest value of."""
        return "val_robust_accuracy" if self.val_attack_steps else "val_accuracy"


def _read_ids(coreset: Coreset | None, num_rows: int) -> np.ndarray | None:
    """Ids of a coreset that had so many samples when the run began; None without one."""
    if coreset is None:
        return None
    ids = coreset.sample_ids()
    if len(ids) != num_rows:
        raise EasyCoreError(
            f"{coreset.path} has {len(ids):,} samples, {num_rows:,} when the run began; it was replaced"
        )
    return ids


def model_arguments(recipe: SeededRecipeConfig, dataset: Dataset, initial: Artifact | None = None) -> dict[str, Any]:
    """Arguments of ``core.models.build_model`` for a recipe on a dataset.

    Args:
        recipe: of the run.
        dataset: its images.
        initial: the checkpoint it starts from, whose normalisation it keeps; else that of the dataset.

    Raises:
        EasyCoreError: for a user's or timm's model that cannot be built; found out here, before any work.
    """
    norm = {"mean": dataset.mean, "std": dataset.std} if initial is None else initial.manifest["model"]
    arguments = {
        "name": recipe.model,
        "num_classes": dataset.num_classes,
        "image_shape": tuple(dataset.image_shape),
        "width": recipe.width if recipe.width is not None else default_width(recipe.model),
        "mean": tuple(norm["mean"]),
        "std": tuple(norm["std"]),
        "seed": recipe.seed,
    }
    if recipe.model not in MODEL_NAMES:
        build(arguments)
    return arguments


def build(arguments: dict[str, Any]) -> nn.Module:
    """The untrained network of these arguments; one of others that cannot be built is an ``EasyCoreError``."""
    try:
        return build_model(**arguments)
    except ValueError as error:
        raise EasyCoreError(str(error)) from error


def make_fit(
    config: TrainConfig | ScoreConfig,
    dataset: Dataset,
    coreset: Artifact | None,
    *,
    initial: Artifact | None = None,
    objective: ObjectiveConfig | ScoringObjectiveConfig | None = None,
    extra: ExtraData | None = None,
    **details: Any,
) -> Fit:
    """The run of a configuration on a dataset.

    Args:
        config: recipe and resources.
        dataset: a finished one.
        coreset: whose samples are trained on; the whole training split if None.
        initial: the checkpoint it starts from, see ``run_inputs``; random weights if None.
        objective: what it trains for; standard training if None.
        extra: rows that are mixed into every batch, from ``extra_data.extra_data``; None without ``extra_dataset``.
        details: further fields of ``Fit``.
    """
    assert (extra is None) == (config.extra_dataset is None)
    num_rows = dataset.num_rows("train") if coreset is None else coreset.manifest["counts"]["samples"]
    per_epoch = steps_per_epoch(config, num_rows)
    steps = config.epochs * per_epoch if isinstance(config, ScoreConfig) else training_steps(config, num_rows)
    names = ("training", "beta", "eps", "norm", "attack_steps", "attack_step_size")
    fields = {} if objective is None else {name: getattr(objective, name) for name in names}
    fields |= {
        name: getattr(config, name) or 0.0 for name in ("ema", "awp", "label_smoothing") if hasattr(config, name)
    }
    fields |= {name: getattr(config, name) for name in ("clean_forwards", "input_space") if hasattr(config, name)}
    return Fit(
        dataset=dataset.path,
        coreset=None if coreset is None else Coreset(coreset.path, coreset.manifest),
        num_rows=num_rows,
        model=model_arguments(config, dataset, initial),
        initial=initial,
        plan=make_training_plan(config, total_steps=steps, **fields),
        epochs=-(-steps // per_epoch),
        batch_size=config.batch_size,
        segment_images=config.segment_images,
        commit_minutes=config.commit_minutes,
        cache_gib=config.cache_gib,
        threads=config.threads,
        compile=config.compile,
        cuda_graphs=config.cuda_graphs,
        extra=extra,
        **details,
    )


def make_training_plan(
    recipe: SeededRecipeConfig,
    *,
    total_steps: int,
    training: str = "standard",
    beta: float = 0.0,
    eps: float = 0.0,
    norm: str = "linf",
    attack_steps: int = 1,
    attack_step_size: float | None = None,
    **further: Any,
) -> TrainingPlan:
    """A recipe and an objective, resolved into the loop's plan, whose further fields are taken as they are."""
    if attack_step_size is None:
        attack_step_size = eps if training == "nfgsm" else 2.5 * eps / attack_steps
    return TrainingPlan(
        training=training,
        beta=beta,
        eps=eps,
        norm=norm,
        attack_steps=attack_steps,
        attack_step_size=attack_step_size,
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        schedule=recipe.schedule,
        warmup_steps=round(recipe.warmup_fraction * total_steps),
        total_steps=total_steps,
        augment=recipe.augment,
        crop_pad=recipe.crop_pad,
        crop_reflect=recipe.crop_reflect,
        precision=recipe.precision,
        seed=recipe.seed,
        milestones=recipe.milestones,
        final_lr=recipe.final_lr,
        # bf16 rounds a thousand times more coarsely than folding does; fp32 keeps the rounding of the plain network.
        fold=recipe.precision == "bf16" and not recipe.compile,
        **further,
    )
