"""Signatures of the verbs, generated from the configurations by ``python -m tests.stubs``."""

from collections.abc import Sequence
from os import PathLike
from typing import Any, Literal, Protocol, overload

from easycore_ray.analysis.analyze import Analysis as Analysis
from easycore_ray.config.evaluation import EvaluateConfig
from easycore_ray.config.experiments import AnalyzeConfig, PipelineConfig, StudyConfig, SweepConfig
from easycore_ray.config.inspection import (
    AuditConfig, CleanConfig, ExportConfig, InspectConfig, ReportConfig, StatusConfig,
)
from easycore_ray.config.stages import CoresetConfig, PrepareConfig, ReduceConfig, ScoreConfig, TrainConfig
from easycore_ray.config.work_plan import WorkPlan as WorkPlan
from easycore_ray.data.coreset import Coreset as Coreset
from easycore_ray.data.dataset import Dataset as Dataset
from easycore_ray.engine.checkpoint import Checkpoint as Checkpoint
from easycore_ray.evaluation.evaluate import Evaluation as Evaluation
from easycore_ray.experiments.pipeline import Pipeline as Pipeline
from easycore_ray.experiments.study import Study as Study
from easycore_ray.experiments.sweep import Sweep as Sweep
from easycore_ray.inspection.audit import Audit as Audit
from easycore_ray.inspection.clean import Leftover
from easycore_ray.inspection.status import Status
from easycore_ray.reporting.report import Report as Report
from easycore_ray.scoring.hardness_table import HardnessTable as HardnessTable
from easycore_ray.scoring.score import ScoringRun as ScoringRun
from easycore_ray.storage.artifact import Artifact as Artifact

StrPath = str | PathLike[str]

__version__: str
__all__: list[str]

def open(path: StrPath) -> Any: ...

class _Prepare(Protocol):
    kind: type[PrepareConfig]
    @overload
    def __call__(self, config: PrepareConfig, /) -> Dataset: ...
    @overload
    def __call__(
        self,
        *,
        out: StrPath, overwrite: bool = False, take_over: bool = False, source: StrPath = "digits",
        format: Literal["auto", "imagefolder", "parquet", "webdataset"] = "auto", test_source: StrPath | None = None,
        classes: StrPath | None = None, val_fraction: float = 0.02, test_fraction: float = 0.2,
        image_size: int | None = None, resize_size: int | None = None, exif: Literal["rotate", "ignore"] = "rotate",
        store: Literal["auto", "pixels", "encoded", "resized"] = "auto", shard_mib: float = 256.0,
        on_bad_sample: Literal["error", "skip"] = "error", image_column: str | None = None,
        label_column: str | None = None, allow_one_class: bool = False,
        on_duplicate: Literal["keep", "drop", "error"] = "keep", source_check: bool = True, seed: int = 0,
    ) -> Dataset: ...
    @overload
    def plan(self, config: PrepareConfig, /, *, measure: bool = False) -> WorkPlan: ...
    @overload
    def plan(
        self,
        *,
        out: StrPath, overwrite: bool = False, take_over: bool = False, source: StrPath = "digits",
        format: Literal["auto", "imagefolder", "parquet", "webdataset"] = "auto", test_source: StrPath | None = None,
        classes: StrPath | None = None, val_fraction: float = 0.02, test_fraction: float = 0.2,
        image_size: int | None = None, resize_size: int | None = None, exif: Literal["rotate", "ignore"] = "rotate",
        store: Literal["auto", "pixels", "encoded", "resized"] = "auto", shard_mib: float = 256.0,
        on_bad_sample: Literal["error", "skip"] = "error", image_column: str | None = None,
        label_column: str | None = None, allow_one_class: bool = False,
        on_duplicate: Literal["keep", "drop", "error"] = "keep", source_check: bool = True, seed: int = 0,
        measure: bool = False,
    ) -> WorkPlan: ...

class _Score(Protocol):
    kind: type[ScoreConfig]
    @overload
    def __call__(self, config: ScoreConfig, /) -> ScoringRun: ...
    @overload
    def __call__(
        self,
        *,
        out: StrPath, dataset: StrPath, overwrite: bool = False, take_over: bool = False,
        cpus_per_worker: float | None = None, gpus_per_worker: float = 0.0, threads_per_worker: int | None = None,
        cluster_max: str | None = None, max_failures: int = 3, cache_gib: float = 2.0,
        num_workers: int | str | tuple[int, int] = 2, tracking_uri: str | None = None, experiment: str = "easycore",
        eps: float | str = 0.03137254901960784, norm: Literal["linf", "l2"] = "linf", attack_steps: int = 10,
        attack_step_size: float | str | None = None,
        training: Literal["standard", "trades", "pgd", "mart"] = "standard", beta: float = 6.0,
        model: str = "resnet18", width: int | None = None, batch_size: int = 128, segment_images: int = 65536,
        commit_minutes: float = 10.0, lr: float = 0.1, momentum: float = 0.9, nesterov: bool = True,
        weight_decay: float = 0.0005, schedule: Literal["constant", "cosine", "multistep"] = "cosine",
        milestones: float | Sequence[float] = (0.75, 0.9), final_lr: float = 0.0, warmup_fraction: float = 0.1,
        augment: Literal["none", "crop", "crop-flip", "imagenet"] = "crop-flip", crop_pad: int = 4,
        crop_reflect: bool = False, precision: Literal["fp32", "bf16"] = "fp32", compile: bool = False,
        cuda_graphs: bool = True, seed: int = 0, extra_dataset: StrPath | None = None,
        extra_coreset: StrPath | None = None, extra_fraction: float | None = None, init_from: StrPath | None = None,
        score_batch_size: int | None = None, coreset: StrPath | None = None, epochs: int = 20,
        score_pass: Literal["eval", "fused", "fused+eval"] = "fused+eval",
        input_space: Literal["pixel", "normalised"] = "pixel", score_every: int = 1, initial_pass: bool = False,
        stop_when_stable: float | None = None,
        record: Literal["features", "kd"] | Sequence[Literal["features", "kd"]] = (),
    ) -> ScoringRun: ...
    @overload
    def plan(self, config: ScoreConfig, /, *, measure: bool = False) -> WorkPlan: ...
    @overload
    def plan(
        self,
        *,
        out: StrPath, dataset: StrPath, overwrite: bool = False, take_over: bool = False,
        cpus_per_worker: float | None = None, gpus_per_worker: float = 0.0, threads_per_worker: int | None = None,
        cluster_max: str | None = None, max_failures: int = 3, cache_gib: float = 2.0,
        num_workers: int | str | tuple[int, int] = 2, tracking_uri: str | None = None, experiment: str = "easycore",
        eps: float | str = 0.03137254901960784, norm: Literal["linf", "l2"] = "linf", attack_steps: int = 10,
        attack_step_size: float | str | None = None,
        training: Literal["standard", "trades", "pgd", "mart"] = "standard", beta: float = 6.0,
        model: str = "resnet18", width: int | None = None, batch_size: int = 128, segment_images: int = 65536,
        commit_minutes: float = 10.0, lr: float = 0.1, momentum: float = 0.9, nesterov: bool = True,
        weight_decay: float = 0.0005, schedule: Literal["constant", "cosine", "multistep"] = "cosine",
        milestones: float | Sequence[float] = (0.75, 0.9), final_lr: float = 0.0, warmup_fraction: float = 0.1,
        augment: Literal["none", "crop", "crop-flip", "imagenet"] = "crop-flip", crop_pad: int = 4,
        crop_reflect: bool = False, precision: Literal["fp32", "bf16"] = "fp32", compile: bool = False,
        cuda_graphs: bool = True, seed: int = 0, extra_dataset: StrPath | None = None,
        extra_coreset: StrPath | None = None, extra_fraction: float | None = None, init_from: StrPath | None = None,
        score_batch_size: int | None = None, coreset: StrPath | None = None, epochs: int = 20,
        score_pass: Literal["eval", "fused", "fused+eval"] = "fused+eval",
        input_space: Literal["pixel", "normalised"] = "pixel", score_every: int = 1, initial_pass: bool = False,
        stop_when_stable: float | None = None,
        record: Literal["features", "kd"] | Sequence[Literal["features", "kd"]] = (), measure: bool = False,
    ) -> WorkPlan: ...

class _Reduce(Protocol):
    kind: type[ReduceConfig]
    @overload
    def __call__(self, config: ReduceConfig, /) -> HardnessTable: ...
    @overload
    def __call__(
        self,
        *,
        out: StrPath, scores: StrPath, overwrite: bool = False, take_over: bool = False,
        epoch_range: str | None = None, only: str | Sequence[str] | None = None, bucket_rows: int = 4000000,
    ) -> HardnessTable: ...
    @overload
    def plan(self, config: ReduceConfig, /, *, measure: bool = False) -> WorkPlan: ...
    @overload
    def plan(
        self,
        *,
        out: StrPath, scores: StrPath, overwrite: bool = False, take_over: bool = False,
        epoch_range: str | None = None, only: str | Sequence[str] | None = None, bucket_rows: int = 4000000,
        measure: bool = False,
    ) -> WorkPlan: ...

class _Select(Protocol):
    kind: type[CoresetConfig]
    @overload
    def __call__(self, config: CoresetConfig, /) -> Coreset: ...
    @overload
    def __call__(
        self,
        *,
        out: StrPath, overwrite: bool = False, take_over: bool = False, tracking_uri: str | None = None,
        experiment: str = "easycore", scores: StrPath | None = None, dataset: StrPath | None = None,
        user_scores: StrPath | None = None, method: str = "easycore", epoch_range: str | None = None,
        score: str | None = None, fraction: float = 0.5, balance: Literal["none", "class"] = "none",
        cutoff: float = 0.0, cutoff_score: str | None = None, band: tuple[float, float] = (0.25, 0.75),
        option: str | Sequence[str] = (), seed: int = 0, exclude: StrPath | None = None,
        exclude_kind: Literal["label_error", "label_conflict", "duplicate"] | Sequence[Literal["label_error", "label_conflict", "duplicate"]] = (),
        materialize: bool = False,
    ) -> Coreset: ...
    @overload
    def plan(self, config: CoresetConfig, /, *, measure: bool = False) -> WorkPlan: ...
    @overload
    def plan(
        self,
        *,
        out: StrPath, overwrite: bool = False, take_over: bool = False, tracking_uri: str | None = None,
        experiment: str = "easycore", scores: StrPath | None = None, dataset: StrPath | None = None,
        user_scores: StrPath | None = None, method: str = "easycore", epoch_range: str | None = None,
        score: str | None = None, fraction: float = 0.5, balance: Literal["none", "class"] = "none",
        cutoff: float = 0.0, cutoff_score: str | None = None, band: tuple[float, float] = (0.25, 0.75),
        option: str | Sequence[str] = (), seed: int = 0, exclude: StrPath | None = None,
        exclude_kind: Literal["label_error", "label_conflict", "duplicate"] | Sequence[Literal["label_error", "label_conflict", "duplicate"]] = (),
        materialize: bool = False, measure: bool = False,
    ) -> WorkPlan: ...

class _Train(Protocol):
    kind: type[TrainConfig]
    @overload
    def __call__(self, config: TrainConfig, /) -> Checkpoint: ...
    @overload
    def __call__(
        self,
        *,
        out: StrPath, dataset: StrPath, overwrite: bool = False, take_over: bool = False,
        cpus_per_worker: float | None = None, gpus_per_worker: float = 0.0, threads_per_worker: int | None = None,
        cluster_max: str | None = None, max_failures: int = 3, cache_gib: float = 2.0,
        num_workers: int | str | tuple[int, int] = 2, tracking_uri: str | None = None, experiment: str = "easycore",
        eps: float | str = 0.03137254901960784, norm: Literal["linf", "l2"] = "linf", attack_steps: int = 10,
        attack_step_size: float | str | None = None,
        training: Literal["standard", "trades", "pgd", "mart", "nfgsm"] = "standard", beta: float = 6.0,
        val_attack_steps: int = 10, ema: float | None = None, awp: float | None = None, label_smoothing: float = 0.0,
        clean_forwards: bool = False, model: str = "resnet18", width: int | None = None, batch_size: int = 128,
        segment_images: int = 65536, commit_minutes: float = 10.0, lr: float = 0.1, momentum: float = 0.9,
        nesterov: bool = True, weight_decay: float = 0.0005,
        schedule: Literal["constant", "cosine", "multistep"] = "cosine",
        milestones: float | Sequence[float] = (0.75, 0.9), final_lr: float = 0.0, warmup_fraction: float = 0.1,
        augment: Literal["none", "crop", "crop-flip", "imagenet"] = "crop-flip", crop_pad: int = 4,
        crop_reflect: bool = False, precision: Literal["fp32", "bf16"] = "fp32", compile: bool = False,
        cuda_graphs: bool = True, seed: int = 0, extra_dataset: StrPath | None = None,
        extra_coreset: StrPath | None = None, extra_fraction: float | None = None, init_from: StrPath | None = None,
        coreset: StrPath | None = None, epochs: int = 20, steps: int | None = None,
        device_seconds: float | None = None, steps_fraction: float | None = None,
        pruning: Literal["none", "infobatch"] = "none", prune_ratio: float = 0.5, charged_steps: int = 0,
    ) -> Checkpoint: ...
    @overload
    def plan(self, config: TrainConfig, /, *, measure: bool = False) -> WorkPlan: ...
    @overload
    def plan(
        self,
        *,
        out: StrPath, dataset: StrPath, overwrite: bool = False, take_over: bool = False,
        cpus_per_worker: float | None = None, gpus_per_worker: float = 0.0, threads_per_worker: int | None = None,
        cluster_max: str | None = None, max_failures: int = 3, cache_gib: float = 2.0,
        num_workers: int | str | tuple[int, int] = 2, tracking_uri: str | None = None, experiment: str = "easycore",
        eps: float | str = 0.03137254901960784, norm: Literal["linf", "l2"] = "linf", attack_steps: int = 10,
        attack_step_size: float | str | None = None,
        training: Literal["standard", "trades", "pgd", "mart", "nfgsm"] = "standard", beta: float = 6.0,
        val_attack_steps: int = 10, ema: float | None = None, awp: float | None = None, label_smoothing: float = 0.0,
        clean_forwards: bool = False, model: str = "resnet18", width: int | None = None, batch_size: int = 128,
        segment_images: int = 65536, commit_minutes: float = 10.0, lr: float = 0.1, momentum: float = 0.9,
        nesterov: bool = True, weight_decay: float = 0.0005,
        schedule: Literal["constant", "cosine", "multistep"] = "cosine",
        milestones: float | Sequence[float] = (0.75, 0.9), final_lr: float = 0.0, warmup_fraction: float = 0.1,
        augment: Literal["none", "crop", "crop-flip", "imagenet"] = "crop-flip", crop_pad: int = 4,
        crop_reflect: bool = False, precision: Literal["fp32", "bf16"] = "fp32", compile: bool = False,
        cuda_graphs: bool = True, seed: int = 0, extra_dataset: StrPath | None = None,
        extra_coreset: StrPath | None = None, extra_fraction: float | None = None, init_from: StrPath | None = None,
        coreset: StrPath | None = None, epochs: int = 20, steps: int | None = None,
        device_seconds: float | None = None, steps_fraction: float | None = None,
        pruning: Literal["none", "infobatch"] = "none", prune_ratio: float = 0.5, charged_steps: int = 0,
        measure: bool = False,
    ) -> WorkPlan: ...

class _Evaluate(Protocol):
    kind: type[EvaluateConfig]
    @overload
    def __call__(self, config: EvaluateConfig, /) -> Evaluation: ...
    @overload
    def __call__(
        self,
        *,
        out: StrPath, dataset: StrPath, overwrite: bool = False, take_over: bool = False,
        cpus_per_worker: float | None = None, gpus_per_worker: float = 0.0, threads_per_worker: int | None = None,
        cluster_max: str | None = None, max_failures: int = 3, cache_gib: float = 2.0,
        num_workers: int | str | tuple[int, int] = 2, tracking_uri: str | None = None, experiment: str = "easycore",
        eval_batch_size: int | None = None, pgd_restarts: int = 1, corruptions: str | Sequence[str] = (),
        checkpoint: StrPath | None = None, weights_file: StrPath | None = None, model: str | None = None,
        width: int | None = None,
        normalise: Literal["none", "half", "cifar10", "pytorch-cifar", "cifar100", "imagenet", "dataset", "file"] | None = None,
        weights: Literal["last", "best", "averaged"] = "last", split: Literal["test", "val"] = "test",
        attack: str | Sequence[str] = ("pgd20",),
        eval_eps: float | str | Sequence[float | str] = (0.03137254901960784,),
        norm: Literal["linf", "l2", "l1"] = "linf", num_eval_samples: int | None = None, seed: int = 0,
        claim: StrPath | None = None,
    ) -> Evaluation: ...
    @overload
    def plan(self, config: EvaluateConfig, /, *, measure: bool = False) -> WorkPlan: ...
    @overload
    def plan(
        self,
        *,
        out: StrPath, dataset: StrPath, overwrite: bool = False, take_over: bool = False,
        cpus_per_worker: float | None = None, gpus_per_worker: float = 0.0, threads_per_worker: int | None = None,
        cluster_max: str | None = None, max_failures: int = 3, cache_gib: float = 2.0,
        num_workers: int | str | tuple[int, int] = 2, tracking_uri: str | None = None, experiment: str = "easycore",
        eval_batch_size: int | None = None, pgd_restarts: int = 1, corruptions: str | Sequence[str] = (),
        checkpoint: StrPath | None = None, weights_file: StrPath | None = None, model: str | None = None,
        width: int | None = None,
        normalise: Literal["none", "half", "cifar10", "pytorch-cifar", "cifar100", "imagenet", "dataset", "file"] | None = None,
        weights: Literal["last", "best", "averaged"] = "last", split: Literal["test", "val"] = "test",
        attack: str | Sequence[str] = ("pgd20",),
        eval_eps: float | str | Sequence[float | str] = (0.03137254901960784,),
        norm: Literal["linf", "l2", "l1"] = "linf", num_eval_samples: int | None = None, seed: int = 0,
        claim: StrPath | None = None, measure: bool = False,
    ) -> WorkPlan: ...

class _Sweep(Protocol):
    kind: type[SweepConfig]
    @overload
    def __call__(self, config: SweepConfig, /) -> Sweep: ...
    @overload
    def __call__(
        self,
        *,
        out: StrPath, dataset: StrPath, scores: StrPath, overwrite: bool = False, take_over: bool = False,
        cpus_per_worker: float | None = None, gpus_per_worker: float = 0.0, threads_per_worker: int | None = None,
        cluster_max: str | None = None, max_failures: int = 3, cache_gib: float = 2.0, tracking_uri: str | None = None,
        experiment: str = "easycore", model: str = "resnet18", width: int | None = None, batch_size: int = 128,
        segment_images: int = 65536, commit_minutes: float = 10.0, lr: float = 0.1, momentum: float = 0.9,
        nesterov: bool = True, weight_decay: float = 0.0005,
        schedule: Literal["constant", "cosine", "multistep"] = "cosine",
        milestones: float | Sequence[float] = (0.75, 0.9), final_lr: float = 0.0, warmup_fraction: float = 0.1,
        augment: Literal["none", "crop", "crop-flip", "imagenet"] = "crop-flip", crop_pad: int = 4,
        crop_reflect: bool = False, precision: Literal["fp32", "bf16"] = "fp32", compile: bool = False,
        cuda_graphs: bool = True, eps: float | str = 0.03137254901960784, norm: Literal["linf", "l2"] = "linf",
        attack_steps: int = 10, attack_step_size: float | str | None = None, extra_dataset: StrPath | None = None,
        extra_coreset: StrPath | None = None, extra_fraction: float | None = None, ema: float | None = None,
        awp: float | None = None, label_smoothing: float = 0.0, clean_forwards: bool = False,
        eval_batch_size: int | None = None, pgd_restarts: int = 1, corruptions: str | Sequence[str] = (),
        train_epochs: int = 20, adversarial_epochs: int | None = None, num_eval_samples: int | None = None,
        trial_workers: int = 1, max_concurrent_trials: int | None = None, keep_going: bool = False,
        scheduler: Literal["none", "asha"] = "none", reduction_factor: float = 3.0, grace_fraction: float = 0.111,
        method: str | Sequence[str] = ("easycore", "easycore/class", "random", "hardest"),
        fraction: float | Sequence[float] = (0.3, 0.5), cutoff: float = 0.0,
        training: Literal["standard", "trades", "pgd", "mart", "nfgsm"] | Sequence[Literal["standard", "trades", "pgd", "mart", "nfgsm"]] = ("standard", "trades"),
        beta: float | Sequence[float] = (1.0, 6.0), seeds: int | Sequence[int] = (0, 1), steps: int | None = None,
        device_seconds: float | None = None, count_scoring: bool = False, attack: str | Sequence[str] = ("pgd20",),
        val_attack_steps: int = 10, eval_eps: float | str | Sequence[float | str] = (0.03137254901960784,),
        register: str | None = None, search: Literal["none", "optuna"] = "none", num_trials: int = 20,
    ) -> Sweep: ...
    @overload
    def plan(self, config: SweepConfig, /, *, measure: bool = False) -> WorkPlan: ...
    @overload
    def plan(
        self,
        *,
        out: StrPath, dataset: StrPath, scores: StrPath, overwrite: bool = False, take_over: bool = False,
        cpus_per_worker: float | None = None, gpus_per_worker: float = 0.0, threads_per_worker: int | None = None,
        cluster_max: str | None = None, max_failures: int = 3, cache_gib: float = 2.0, tracking_uri: str | None = None,
        experiment: str = "easycore", model: str = "resnet18", width: int | None = None, batch_size: int = 128,
        segment_images: int = 65536, commit_minutes: float = 10.0, lr: float = 0.1, momentum: float = 0.9,
        nesterov: bool = True, weight_decay: float = 0.0005,
        schedule: Literal["constant", "cosine", "multistep"] = "cosine",
        milestones: float | Sequence[float] = (0.75, 0.9), final_lr: float = 0.0, warmup_fraction: float = 0.1,
        augment: Literal["none", "crop", "crop-flip", "imagenet"] = "crop-flip", crop_pad: int = 4,
        crop_reflect: bool = False, precision: Literal["fp32", "bf16"] = "fp32", compile: bool = False,
        cuda_graphs: bool = True, eps: float | str = 0.03137254901960784, norm: Literal["linf", "l2"] = "linf",
        attack_steps: int = 10, attack_step_size: float | str | None = None, extra_dataset: StrPath | None = None,
        extra_coreset: StrPath | None = None, extra_fraction: float | None = None, ema: float | None = None,
        awp: float | None = None, label_smoothing: float = 0.0, clean_forwards: bool = False,
        eval_batch_size: int | None = None, pgd_restarts: int = 1, corruptions: str | Sequence[str] = (),
        train_epochs: int = 20, adversarial_epochs: int | None = None, num_eval_samples: int | None = None,
        trial_workers: int = 1, max_concurrent_trials: int | None = None, keep_going: bool = False,
        scheduler: Literal["none", "asha"] = "none", reduction_factor: float = 3.0, grace_fraction: float = 0.111,
        method: str | Sequence[str] = ("easycore", "easycore/class", "random", "hardest"),
        fraction: float | Sequence[float] = (0.3, 0.5), cutoff: float = 0.0,
        training: Literal["standard", "trades", "pgd", "mart", "nfgsm"] | Sequence[Literal["standard", "trades", "pgd", "mart", "nfgsm"]] = ("standard", "trades"),
        beta: float | Sequence[float] = (1.0, 6.0), seeds: int | Sequence[int] = (0, 1), steps: int | None = None,
        device_seconds: float | None = None, count_scoring: bool = False, attack: str | Sequence[str] = ("pgd20",),
        val_attack_steps: int = 10, eval_eps: float | str | Sequence[float | str] = (0.03137254901960784,),
        register: str | None = None, search: Literal["none", "optuna"] = "none", num_trials: int = 20,
        measure: bool = False,
    ) -> WorkPlan: ...

class _Report(Protocol):
    kind: type[ReportConfig]
    @overload
    def __call__(self, config: ReportConfig, /) -> Report: ...
    @overload
    def __call__(
        self,
        *,
        out: StrPath, sweep: StrPath, overwrite: bool = False, take_over: bool = False,
        title: str = "EasyCore: coresets for robust models", note: str = "",
    ) -> Report: ...
    @overload
    def plan(self, config: ReportConfig, /, *, measure: bool = False) -> WorkPlan: ...
    @overload
    def plan(
        self,
        *,
        out: StrPath, sweep: StrPath, overwrite: bool = False, take_over: bool = False,
        title: str = "EasyCore: coresets for robust models", note: str = "", measure: bool = False,
    ) -> WorkPlan: ...

class _Study(Protocol):
    kind: type[StudyConfig]
    @overload
    def __call__(self, config: StudyConfig, /) -> Study: ...
    @overload
    def __call__(
        self,
        *,
        out: StrPath, dataset: StrPath, overwrite: bool = False, take_over: bool = False,
        cpus_per_worker: float | None = None, gpus_per_worker: float = 0.0, threads_per_worker: int | None = None,
        cluster_max: str | None = None, max_failures: int = 3, cache_gib: float = 2.0, num_workers: int = 1,
        tracking_uri: str | None = None, experiment: str = "easycore", model: str = "resnet18",
        width: int | None = None, batch_size: int = 128, segment_images: int = 65536, commit_minutes: float = 10.0,
        lr: float = 0.1, momentum: float = 0.9, nesterov: bool = True, weight_decay: float = 0.0005,
        schedule: Literal["constant", "cosine", "multistep"] = "cosine",
        milestones: float | Sequence[float] = (0.75, 0.9), final_lr: float = 0.0, warmup_fraction: float = 0.1,
        augment: Literal["none", "crop", "crop-flip", "imagenet"] = "crop-flip", crop_pad: int = 4,
        crop_reflect: bool = False, precision: Literal["fp32", "bf16"] = "fp32", compile: bool = False,
        cuda_graphs: bool = True, eps: float | str = 0.03137254901960784, norm: Literal["linf", "l2"] = "linf",
        attack_steps: int = 10, attack_step_size: float | str | None = None, ema: float | None = None,
        score_batch_size: int | None = None, subset: int | None = None, score_epochs: int = 20,
        score_pass: Literal["eval", "fused", "fused+eval"] = "fused+eval",
        input_space: Literal["pixel", "normalised"] = "pixel", score_every: int = 1, initial_pass: bool = False,
        stop_when_stable: float | None = None,
        record: Literal["features", "kd"] | Sequence[Literal["features", "kd"]] = (),
        eval_batch_size: int | None = None, train_epochs: int = 20, adversarial_epochs: int | None = None,
        num_eval_samples: int | None = None, trial_workers: int = 1, max_concurrent_trials: int | None = None,
        keep_going: bool = False, results: StrPath | None = None,
        parts: Literal["standard", "trades", "fractions", "autoattack", "half", "half-autoattack", "half-others", "half-others-autoattack", "30-percent", "30-percent-autoattack", "10-percent", "10-percent-autoattack", "standard-half", "standard-half-autoattack", "half-autoattack-500"] | Sequence[Literal["standard", "trades", "fractions", "autoattack", "half", "half-autoattack", "half-others", "half-others-autoattack", "30-percent", "30-percent-autoattack", "10-percent", "10-percent-autoattack", "standard-half", "standard-half-autoattack", "half-autoattack-500"]] = ("standard", "trades", "fractions", "autoattack"),
        seeds: int | Sequence[int] = (0, 1, 2), beta: float = 6.0,
        standard_eval_eps: float | str | Sequence[float | str] = (0.000980392156862745, 0.00196078431372549, 0.00392156862745098, 0.00784313725490196, 0.01568627450980392, 0.03137254901960784),
        eval_eps: float | str | Sequence[float | str] = (0.00784313725490196, 0.01568627450980392, 0.03137254901960784),
        num_autoattack_samples: int | None = None, autoattack_eval_eps: float | str = 0.00392156862745098,
    ) -> Study: ...
    @overload
    def plan(self, config: StudyConfig, /, *, measure: bool = False) -> WorkPlan: ...
    @overload
    def plan(
        self,
        *,
        out: StrPath, dataset: StrPath, overwrite: bool = False, take_over: bool = False,
        cpus_per_worker: float | None = None, gpus_per_worker: float = 0.0, threads_per_worker: int | None = None,
        cluster_max: str | None = None, max_failures: int = 3, cache_gib: float = 2.0, num_workers: int = 1,
        tracking_uri: str | None = None, experiment: str = "easycore", model: str = "resnet18",
        width: int | None = None, batch_size: int = 128, segment_images: int = 65536, commit_minutes: float = 10.0,
        lr: float = 0.1, momentum: float = 0.9, nesterov: bool = True, weight_decay: float = 0.0005,
        schedule: Literal["constant", "cosine", "multistep"] = "cosine",
        milestones: float | Sequence[float] = (0.75, 0.9), final_lr: float = 0.0, warmup_fraction: float = 0.1,
        augment: Literal["none", "crop", "crop-flip", "imagenet"] = "crop-flip", crop_pad: int = 4,
        crop_reflect: bool = False, precision: Literal["fp32", "bf16"] = "fp32", compile: bool = False,
        cuda_graphs: bool = True, eps: float | str = 0.03137254901960784, norm: Literal["linf", "l2"] = "linf",
        attack_steps: int = 10, attack_step_size: float | str | None = None, ema: float | None = None,
        score_batch_size: int | None = None, subset: int | None = None, score_epochs: int = 20,
        score_pass: Literal["eval", "fused", "fused+eval"] = "fused+eval",
        input_space: Literal["pixel", "normalised"] = "pixel", score_every: int = 1, initial_pass: bool = False,
        stop_when_stable: float | None = None,
        record: Literal["features", "kd"] | Sequence[Literal["features", "kd"]] = (),
        eval_batch_size: int | None = None, train_epochs: int = 20, adversarial_epochs: int | None = None,
        num_eval_samples: int | None = None, trial_workers: int = 1, max_concurrent_trials: int | None = None,
        keep_going: bool = False, results: StrPath | None = None,
        parts: Literal["standard", "trades", "fractions", "autoattack", "half", "half-autoattack", "half-others", "half-others-autoattack", "30-percent", "30-percent-autoattack", "10-percent", "10-percent-autoattack", "standard-half", "standard-half-autoattack", "half-autoattack-500"] | Sequence[Literal["standard", "trades", "fractions", "autoattack", "half", "half-autoattack", "half-others", "half-others-autoattack", "30-percent", "30-percent-autoattack", "10-percent", "10-percent-autoattack", "standard-half", "standard-half-autoattack", "half-autoattack-500"]] = ("standard", "trades", "fractions", "autoattack"),
        seeds: int | Sequence[int] = (0, 1, 2), beta: float = 6.0,
        standard_eval_eps: float | str | Sequence[float | str] = (0.000980392156862745, 0.00196078431372549, 0.00392156862745098, 0.00784313725490196, 0.01568627450980392, 0.03137254901960784),
        eval_eps: float | str | Sequence[float | str] = (0.00784313725490196, 0.01568627450980392, 0.03137254901960784),
        num_autoattack_samples: int | None = None, autoattack_eval_eps: float | str = 0.00392156862745098,
        measure: bool = False,
    ) -> WorkPlan: ...

class _Pipeline(Protocol):
    kind: type[PipelineConfig]
    @overload
    def __call__(self, config: PipelineConfig, /) -> Pipeline: ...
    @overload
    def __call__(
        self,
        *,
        out: StrPath, overwrite: bool = False, take_over: bool = False, cpus_per_worker: float | None = None,
        gpus_per_worker: float = 0.0, threads_per_worker: int | None = None, cluster_max: str | None = None,
        max_failures: int = 3, cache_gib: float = 2.0, num_workers: int | str | tuple[int, int] = 2,
        tracking_uri: str | None = None, experiment: str = "easycore", model: str = "resnet18",
        width: int | None = None, batch_size: int = 128, segment_images: int = 65536, commit_minutes: float = 10.0,
        lr: float = 0.1, momentum: float = 0.9, nesterov: bool = True, weight_decay: float = 0.0005,
        schedule: Literal["constant", "cosine", "multistep"] = "cosine",
        milestones: float | Sequence[float] = (0.75, 0.9), final_lr: float = 0.0, warmup_fraction: float = 0.1,
        augment: Literal["none", "crop", "crop-flip", "imagenet"] = "crop-flip", crop_pad: int = 4,
        crop_reflect: bool = False, precision: Literal["fp32", "bf16"] = "fp32", compile: bool = False,
        cuda_graphs: bool = True, seed: int = 0, score_batch_size: int | None = None, subset: int | None = None,
        score_epochs: int = 20, score_pass: Literal["eval", "fused", "fused+eval"] = "fused+eval",
        input_space: Literal["pixel", "normalised"] = "pixel", score_every: int = 1, initial_pass: bool = False,
        stop_when_stable: float | None = None,
        record: Literal["features", "kd"] | Sequence[Literal["features", "kd"]] = (),
        eps: float | str = 0.03137254901960784, norm: Literal["linf", "l2"] = "linf", attack_steps: int = 10,
        attack_step_size: float | str | None = None, extra_dataset: StrPath | None = None,
        extra_coreset: StrPath | None = None, extra_fraction: float | None = None, ema: float | None = None,
        awp: float | None = None, label_smoothing: float = 0.0, clean_forwards: bool = False,
        eval_batch_size: int | None = None, pgd_restarts: int = 1, corruptions: str | Sequence[str] = (),
        train_epochs: int = 20, adversarial_epochs: int | None = None, num_eval_samples: int | None = None,
        trial_workers: int = 1, max_concurrent_trials: int | None = None, keep_going: bool = False,
        scheduler: Literal["none", "asha"] = "none", reduction_factor: float = 3.0, grace_fraction: float = 0.111,
        method: str | Sequence[str] = ("easycore", "easycore/class", "random", "hardest"),
        fraction: float | Sequence[float] = (0.3, 0.5), cutoff: float = 0.0,
        training: Literal["standard", "trades", "pgd", "mart", "nfgsm"] | Sequence[Literal["standard", "trades", "pgd", "mart", "nfgsm"]] = ("standard", "trades"),
        beta: float | Sequence[float] = (1.0, 6.0), seeds: int | Sequence[int] = (0, 1), steps: int | None = None,
        device_seconds: float | None = None, count_scoring: bool = False, attack: str | Sequence[str] = ("pgd20",),
        val_attack_steps: int = 10, eval_eps: float | str | Sequence[float | str] = (0.03137254901960784,),
        register: str | None = None, dataset: StrPath | None = None, source: StrPath = "digits",
        format: Literal["auto", "imagefolder", "parquet", "webdataset"] = "auto", test_source: StrPath | None = None,
        image_size: int | None = None, resize_size: int | None = None, exif: Literal["rotate", "ignore"] = "rotate",
        store: Literal["auto", "pixels", "encoded", "resized"] = "auto", shard_mib: float = 256.0,
        image_column: str | None = None, label_column: str | None = None, allow_one_class: bool = False,
        on_duplicate: Literal["keep", "drop", "error"] = "keep", source_check: bool = True, note: str = "",
    ) -> Pipeline: ...
    @overload
    def plan(self, config: PipelineConfig, /, *, measure: bool = False) -> WorkPlan: ...
    @overload
    def plan(
        self,
        *,
        out: StrPath, overwrite: bool = False, take_over: bool = False, cpus_per_worker: float | None = None,
        gpus_per_worker: float = 0.0, threads_per_worker: int | None = None, cluster_max: str | None = None,
        max_failures: int = 3, cache_gib: float = 2.0, num_workers: int | str | tuple[int, int] = 2,
        tracking_uri: str | None = None, experiment: str = "easycore", model: str = "resnet18",
        width: int | None = None, batch_size: int = 128, segment_images: int = 65536, commit_minutes: float = 10.0,
        lr: float = 0.1, momentum: float = 0.9, nesterov: bool = True, weight_decay: float = 0.0005,
        schedule: Literal["constant", "cosine", "multistep"] = "cosine",
        milestones: float | Sequence[float] = (0.75, 0.9), final_lr: float = 0.0, warmup_fraction: float = 0.1,
        augment: Literal["none", "crop", "crop-flip", "imagenet"] = "crop-flip", crop_pad: int = 4,
        crop_reflect: bool = False, precision: Literal["fp32", "bf16"] = "fp32", compile: bool = False,
        cuda_graphs: bool = True, seed: int = 0, score_batch_size: int | None = None, subset: int | None = None,
        score_epochs: int = 20, score_pass: Literal["eval", "fused", "fused+eval"] = "fused+eval",
        input_space: Literal["pixel", "normalised"] = "pixel", score_every: int = 1, initial_pass: bool = False,
        stop_when_stable: float | None = None,
        record: Literal["features", "kd"] | Sequence[Literal["features", "kd"]] = (),
        eps: float | str = 0.03137254901960784, norm: Literal["linf", "l2"] = "linf", attack_steps: int = 10,
        attack_step_size: float | str | None = None, extra_dataset: StrPath | None = None,
        extra_coreset: StrPath | None = None, extra_fraction: float | None = None, ema: float | None = None,
        awp: float | None = None, label_smoothing: float = 0.0, clean_forwards: bool = False,
        eval_batch_size: int | None = None, pgd_restarts: int = 1, corruptions: str | Sequence[str] = (),
        train_epochs: int = 20, adversarial_epochs: int | None = None, num_eval_samples: int | None = None,
        trial_workers: int = 1, max_concurrent_trials: int | None = None, keep_going: bool = False,
        scheduler: Literal["none", "asha"] = "none", reduction_factor: float = 3.0, grace_fraction: float = 0.111,
        method: str | Sequence[str] = ("easycore", "easycore/class", "random", "hardest"),
        fraction: float | Sequence[float] = (0.3, 0.5), cutoff: float = 0.0,
        training: Literal["standard", "trades", "pgd", "mart", "nfgsm"] | Sequence[Literal["standard", "trades", "pgd", "mart", "nfgsm"]] = ("standard", "trades"),
        beta: float | Sequence[float] = (1.0, 6.0), seeds: int | Sequence[int] = (0, 1), steps: int | None = None,
        device_seconds: float | None = None, count_scoring: bool = False, attack: str | Sequence[str] = ("pgd20",),
        val_attack_steps: int = 10, eval_eps: float | str | Sequence[float | str] = (0.03137254901960784,),
        register: str | None = None, dataset: StrPath | None = None, source: StrPath = "digits",
        format: Literal["auto", "imagefolder", "parquet", "webdataset"] = "auto", test_source: StrPath | None = None,
        image_size: int | None = None, resize_size: int | None = None, exif: Literal["rotate", "ignore"] = "rotate",
        store: Literal["auto", "pixels", "encoded", "resized"] = "auto", shard_mib: float = 256.0,
        image_column: str | None = None, label_column: str | None = None, allow_one_class: bool = False,
        on_duplicate: Literal["keep", "drop", "error"] = "keep", source_check: bool = True, note: str = "",
        measure: bool = False,
    ) -> WorkPlan: ...

class _Analyze(Protocol):
    kind: type[AnalyzeConfig]
    @overload
    def __call__(self, config: AnalyzeConfig, /) -> Analysis: ...
    @overload
    def __call__(
        self,
        *,
        out: StrPath, scores: StrPath | Sequence[StrPath], overwrite: bool = False, take_over: bool = False,
        cpus_per_worker: float | None = None, gpus_per_worker: float = 0.0, threads_per_worker: int | None = None,
        cluster_max: str | None = None, max_failures: int = 3, cache_gib: float = 2.0,
        num_workers: int | str | tuple[int, int] = 2, tracking_uri: str | None = None, experiment: str = "easycore",
        eval_batch_size: int | None = None, checkpoint: StrPath | Sequence[StrPath] = (),
        dataset: StrPath | None = None, score: str = "aign",
        eval_eps: float | str | Sequence[float | str] = (0.000980392156862745, 0.00196078431372549, 0.00392156862745098, 0.00784313725490196, 0.01568627450980392, 0.03137254901960784),
        norm: Literal["linf", "l2"] = "linf", num_train_samples: int = 2000, seed: int = 0,
    ) -> Analysis: ...
    @overload
    def plan(self, config: AnalyzeConfig, /, *, measure: bool = False) -> WorkPlan: ...
    @overload
    def plan(
        self,
        *,
        out: StrPath, scores: StrPath | Sequence[StrPath], overwrite: bool = False, take_over: bool = False,
        cpus_per_worker: float | None = None, gpus_per_worker: float = 0.0, threads_per_worker: int | None = None,
        cluster_max: str | None = None, max_failures: int = 3, cache_gib: float = 2.0,
        num_workers: int | str | tuple[int, int] = 2, tracking_uri: str | None = None, experiment: str = "easycore",
        eval_batch_size: int | None = None, checkpoint: StrPath | Sequence[StrPath] = (),
        dataset: StrPath | None = None, score: str = "aign",
        eval_eps: float | str | Sequence[float | str] = (0.000980392156862745, 0.00196078431372549, 0.00392156862745098, 0.00784313725490196, 0.01568627450980392, 0.03137254901960784),
        norm: Literal["linf", "l2"] = "linf", num_train_samples: int = 2000, seed: int = 0, measure: bool = False,
    ) -> WorkPlan: ...

class _Audit(Protocol):
    kind: type[AuditConfig]
    @overload
    def __call__(self, config: AuditConfig, /) -> Audit: ...
    @overload
    def __call__(
        self,
        *,
        out: StrPath, scores: StrPath, overwrite: bool = False, take_over: bool = False,
        dataset: StrPath | None = None, score: str = "aum", label_errors: float = 0.02, cut_score: str = "aign",
        fraction: float = 0.5, starved: float = 0.5,
    ) -> Audit: ...
    @overload
    def plan(self, config: AuditConfig, /, *, measure: bool = False) -> WorkPlan: ...
    @overload
    def plan(
        self,
        *,
        out: StrPath, scores: StrPath, overwrite: bool = False, take_over: bool = False,
        dataset: StrPath | None = None, score: str = "aum", label_errors: float = 0.02, cut_score: str = "aign",
        fraction: float = 0.5, starved: float = 0.5, measure: bool = False,
    ) -> WorkPlan: ...

class _Export(Protocol):
    kind: type[ExportConfig]
    @overload
    def __call__(self, config: ExportConfig, /) -> str: ...
    @overload
    def __call__(
        self,
        *,
        checkpoint: StrPath, out: StrPath, format: Literal["weights", "pt2", "onnx"] = "weights",
        weights: Literal["last", "best", "averaged"] = "last", overwrite: bool = False,
    ) -> str: ...
    @overload
    def plan(self, config: ExportConfig, /, *, measure: bool = False) -> WorkPlan: ...
    @overload
    def plan(
        self,
        *,
        checkpoint: StrPath, out: StrPath, format: Literal["weights", "pt2", "onnx"] = "weights",
        weights: Literal["last", "best", "averaged"] = "last", overwrite: bool = False, measure: bool = False,
    ) -> WorkPlan: ...

class _Inspect(Protocol):
    kind: type[InspectConfig]
    @overload
    def __call__(self, config: InspectConfig, /) -> dict[str, Any]: ...
    @overload
    def __call__(
        self,
        *,
        path: StrPath, verify: bool = False, score: str | None = None, count: int = 10, images: StrPath | None = None,
        json: bool = False,
    ) -> dict[str, Any]: ...

class _Clean(Protocol):
    kind: type[CleanConfig]
    @overload
    def __call__(self, config: CleanConfig, /) -> list[Leftover]: ...
    @overload
    def __call__(
        self,
        *,
        path: StrPath, yes: bool = False, older_than: float = 24.0,
    ) -> list[Leftover]: ...

class _Status(Protocol):
    kind: type[StatusConfig]
    @overload
    def __call__(self, config: StatusConfig, /) -> Status: ...
    @overload
    def __call__(
        self,
        *,
        path: StrPath,
    ) -> Status: ...

prepare: _Prepare
score: _Score
reduce: _Reduce
select: _Select
train: _Train
evaluate: _Evaluate
sweep: _Sweep
report: _Report
study: _Study
pipeline: _Pipeline
analyze: _Analyze
audit: _Audit
export: _Export
inspect: _Inspect
clean: _Clean
status: _Status
