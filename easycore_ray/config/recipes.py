"""Configuration of training: the recipe, and what a model is trained for."""

import dataclasses
import itertools
from collections.abc import Collection
from typing import Any, Literal

from easycore_ray.config.base import Checked, configuration, eps_problems, if_given, if_set, setting
from easycore_ray.config.fields import (
    ADVERSARIAL,
    WEIGHTED,
    Count,
    Decay,
    Eps,
    Flag,
    ModelName,
    Natural,
    NonNegative,
    Norm,
    Number,
    PartialShare,
    Positive,
    ScoringTraining,
    Several,
    Text,
    Training,
    Weight,
)
from easycore_ray.core.names import FIXED_WIDTHS, MODEL_NAMES


def uses_milestones(config: Any) -> bool:
    """Whether the learning rate of this configuration drops at milestones."""
    return config.schedule == "multistep"


def width_problems(model: str, width: int | None) -> list[str]:
    """What is wrong with the width of a model, a sentence each."""
    if width is None:
        return []
    if model not in MODEL_NAMES:
        return [f"width is for the built-in networks, got {width} with {model}; leave it out"]
    fixed = FIXED_WIDTHS.get(model, width)
    return [f"width of {model} is {fixed}, got {width}; pass --width {fixed}, or another --model"] * (width != fixed)


def attacks_validation(config: Any) -> bool:
    """Whether the validation split is attacked: there is an adversarial objective, and steps for it."""
    trained: Collection[str] = (config.training,) if isinstance(config.training, str) else config.training
    return bool(ADVERSARIAL & {*trained}) and config.val_attack_steps > 0


@configuration
class RecipeConfig(Checked):
    """How a model is trained, apart from the objective."""

    model: ModelName = setting(default="resnet18", identity=True, group="model")
    """Network: cnn is small and made for tiny images; resnet18, preactresnet18, preactresnet18-nobn (without the last
    batch norm, as in pytorch-cifar), preactresnet18-fast (that of Wong et al. 2020), wrn-28-10 and wrn-34-10 are the
    CIFAR variants; resnet18-imagenet and resnet50-imagenet take large images. timm:NAME is an architecture of timm (the
    extra timm), untrained, made for the dataset's image size and classes. Or your own, package.module:function, called
    as function(num_classes=10, image_shape=(3, 32, 32)); it gets normalised pixels and gives logits. A run is known by
    its name, not its code: after changing it take another --out."""
    width: Count | None = setting(default=None, identity=True, group="model")
    """Channels of the first block (widen factor for wrn-*); the network's own default if left out."""
    batch_size: Count = setting(default=128, identity=True, group="training")
    """Samples per optimizer step, over all workers: each takes an equal part, so it must be divisible by their
    number. Another number of workers takes the same steps at the same learning rate."""
    segment_images: Count = setting(default=65_536, identity=True, group="training")
    """Samples of a segment: an epoch is a list of them, each of whole batches, and work is saved at their ends. Random
    draws begin anew with each, and workers get equal running statistics of batch norm there, so another size is another
    run."""
    commit_minutes: NonNegative = setting(default=10.0, identity=False, group="compute")
    """Work is saved at the first end of a segment after so many minutes, and always at the end of an epoch. What is
    killed loses at most this and a segment, or the epoch under way where --num-workers is MIN:MAX and another number
    goes on. 0 saves at every end of a segment."""
    lr: Positive = setting(default=0.1, identity=True, group="training")
    """Peak learning rate of SGD."""
    momentum: NonNegative = setting(default=0.9, identity=True, group="training")
    """Momentum of SGD."""
    nesterov: Flag = setting(default=True, identity=True, group="training")
    """Nesterov momentum."""
    weight_decay: NonNegative = setting(default=5e-4, identity=True, group="training")
    """L2 penalty; robust accuracy is sensitive to it (Pang et al. 2021)."""
    schedule: Literal["constant", "cosine", "multistep"] = setting(default="cosine", identity=True, group="training")
    """Learning rate over optimizer steps: constant, cosine to --final-lr, or ×0.1 at every one of --milestones."""
    milestones: Several[Number] = setting(default=(0.75, 0.9), identity=uses_milestones, group="training")
    """Shares of the steps, each in (0, 1) and rising, at which multistep drops; other schedules ignore them."""
    final_lr: NonNegative = setting(default=0.0, identity=if_set("final_lr"), group="training")
    """Learning rate at the end of cosine; other schedules ignore it."""
    warmup_fraction: PartialShare = setting(default=0.1, identity=True, group="training")
    """Share of the steps in which the learning rate rises linearly from 0."""
    augment: Literal["none", "crop", "crop-flip", "imagenet"] = setting(
        default="crop-flip", identity=True, group="training"
    )
    """Training views: random crop of the padded image, and horizontal flip; imagenet: a random part, resized, and flip.
    Views for imagenet are made where images are decoded, so images are streamed even if they would fit in memory."""
    crop_pad: Natural = setting(default=4, identity=True, group="training")
    """Pixels of padding for the random crop."""
    crop_reflect: Flag = setting(default=False, identity=if_set("crop_reflect"), group="training")
    """Pad by reflection, as DeepCore and Bag of Tricks for AT do; with zeros if not."""
    precision: Literal["fp32", "bf16"] = setting(default="fp32", identity=True, group="training")
    """Training arithmetic; bf16 is autocast with float32 weights and loss. Scores and evaluation are always fp32 (on
    GPUs evaluation, like fp32 training, with torch's default of TF32 convolutions; exact scores without)."""
    compile: Flag = setting(default=False, identity=True, group="training")
    """Run training steps through torch.compile: minutes at every start, for steps that may be quicker (docs/speed.md).
    Rounds otherwise, so it is another run. Needs a C++ compiler on every node, and on GPUs Triton."""
    cuda_graphs: Flag = setting(default=True, identity=False, group="training")
    """On a GPU, replay training steps from a CUDA graph: the same kernels, started at once. Takes the memory of another
    step; a network that cannot be recorded is trained without, which is said."""

    def problems(self) -> list[str]:
        """See ``Checked.problems``."""
        found = super().problems()
        rising = all(before < after for before, after in itertools.pairwise((0.0, *self.milestones, 1.0)))
        if not (self.milestones and rising):
            found.append(
                f"milestones must be rising shares of the run in (0, 1), e.g. 0.75 0.9, got {self.milestones}; "
                "epoch 100 of 110 is 0.909"
            )
        if self.final_lr > self.lr:
            found.append(f"final_lr must be at most lr {self.lr:g}, got {self.final_lr:g}")
        return found + width_problems(self.model, self.width)


@configuration
class SeededRecipeConfig(RecipeConfig):
    """A recipe for one training run."""

    seed: Natural = setting(default=0, identity=True, group="training")
    """Seed of weights, order, augmentation and attacks."""


@configuration
class InitialWeightsConfig(Checked):
    """What a single run starts from."""

    init_from: Text | None = setting(default=None, identity=False, group="model")
    """Folder of a finished checkpoint, whose last weights and normalisation the run starts from instead of random
    weights. It must be of the same network, for images and classes like those of the dataset. Known by its content."""


# Wang et al. 2023 mix in generated images at this share.
_EXTRA_FRACTION = 0.7


def extra_fraction_of(config: Any) -> float:
    """Share of extra rows in a batch, in (0, 1), where there is an extra dataset."""
    return _EXTRA_FRACTION if config.extra_fraction is None else float(config.extra_fraction)


def extra_batch_rows(config: Any) -> int:
    """Extra rows of a global batch: their share of it to the nearest row, never none nor all; 0 without extra data."""
    if config.extra_dataset is None:
        return 0
    return max(1, min(config.batch_size - 1, round(extra_fraction_of(config) * config.batch_size)))


@configuration
class ExtraDataConfig(Checked):
    """A second dataset that is mixed into every batch."""

    extra_dataset: Text | None = setting(default=None, identity=False, group="data")
    """Folder of a second prepared dataset, e.g. of generated images, mixed into every batch of training at a fixed
    share. Images of the same shape; its classes are matched by name. An epoch stays one pass over --dataset, in more
    steps."""
    extra_coreset: Text | None = setting(default=None, identity=False, group="data")
    """Folder of a coreset of --extra-dataset, whose samples alone are mixed in; all of its training samples if left
    out."""
    extra_fraction: Number | None = setting(
        default=None, identity=if_given("extra_dataset"), group="data", held=extra_fraction_of
    )
    """Share of the rows of each batch that come from --extra-dataset, in (0, 1), to the nearest row; 0.7 if left
    out."""

    def problems(self) -> list[str]:
        """See ``Checked.problems``."""
        found = super().problems()
        if self.extra_dataset is None:
            return found + [
                f"{name} goes with extra_dataset, which is missing; pass --extra-dataset as well, or leave it out"
                for name in ("extra_coreset", "extra_fraction")
                if getattr(self, name) is not None
            ]
        if not 0 < extra_fraction_of(self) < 1:
            found.append(
                f"extra_fraction must be in (0, 1), got {self.extra_fraction:g}; it is the share of a batch that "
                "comes from the extra dataset"
            )
        if getattr(self, "batch_size", 2) < 2:
            found.append("batch_size 1 has no room for extra rows beside others; pass 2 or more with --extra-dataset")
        return found


@configuration
class AveragedWeightsConfig(Checked):
    """Averaged weights beside those of the last epoch."""

    ema: Decay | None = setting(default=None, identity=if_given("ema"), group="training")
    """Also keep an exponential average of the weights, with this decay per step, e.g. 0.995, from the end of the
    warm-up on: often more robust than any epoch's, and less prone to robust overfitting (Gowal et al. 2020). The
    training itself is the same. None, if left out."""


@configuration
class RobustnessConfig(AveragedWeightsConfig):
    """What is done in training beside the objective, most of it for more robustness."""

    awp: Positive | None = setting(default=None, identity=if_given("awp"), group="training")
    """Adversarial weight perturbation of this size, e.g. 0.005: every update is made for the worst weights nearby (Wu
    et al. 2020), at the cost of one more pass forward and back. Adversarial training only. None, if left out."""
    label_smoothing: PartialShare = setting(default=0.0, identity=if_set("label_smoothing"), group="training")
    """Share of each label that is spread evenly over all classes in the cross-entropy that is trained on, e.g. 0.1;
    attacks go by the labels as they are. mart has none."""
    clean_forwards: Flag = setting(default=False, identity=if_set("clean_forwards"), group="training")
    """Show the running statistics of batch norm the clean batch as well, before and after each update, as the code of
    Bag of Tricks for AT does (Pang et al. 2021): two more forward passes a step. For pgd, which forwards attacked
    images alone."""


def objective_problems(config: Any) -> list[str]:
    """What is wrong with the objectives of a ``RobustnessConfig`` that is a ``ThreatConfig``, a sentence each."""
    trained = (config.training,) if isinstance(config.training, str) else config.training
    found = []
    if config.awp is not None and "standard" in trained:
        found.append(
            f"awp {config.awp:g} perturbs weights in adversarial training, and training is standard; pass --training "
            "trades (or pgd, mart, nfgsm), or leave --awp out"
        )
    if config.label_smoothing and "mart" in trained:
        found.append(f"label_smoothing is {config.label_smoothing:g}, and mart has no smoothed form; leave it out")
    if config.clean_forwards and {*trained} != {"pgd"}:
        found.append(
            f"clean_forwards is for training pgd alone, got {' '.join(trained)}; pass --training pgd, or leave "
            "--clean-forwards out"
        )
    if "nfgsm" in trained and config.norm != "linf":
        found.append(f"nfgsm steps along the sign of the gradient, for norm linf alone; got {config.norm!r}")
    return found


def budget_problems(config: Any) -> list[str]:
    """What is wrong with the steps of a configuration that may have device-seconds instead, a sentence each."""
    if config.device_seconds is None:
        return []
    found = []
    if config.steps is not None:
        found.append(f"steps is {config.steps} and device_seconds {config.device_seconds:g}; pass one of them")
    if config.compile:
        found.append("device_seconds times plain steps before the start, not compiled ones; pass --steps instead")
    return found


@configuration
class ThreatConfig(Checked):
    """The attack that adversarial objectives (trades, pgd, mart, nfgsm) train against."""

    eps: Eps = setting(default=8 / 255, identity=True, group="attack")
    """Largest perturbation of the training attack (adversarial training), in [0, 1] pixel units, e.g. 8/255."""
    norm: Norm = setting(default="linf", identity=True, group="attack")
    """Norm in which perturbations are bounded."""
    attack_steps: Count = setting(default=10, identity=True, group="attack")
    """Gradient steps of the training attack (trades, pgd, mart); nfgsm takes one."""
    attack_step_size: Eps | None = setting(default=None, identity=True, group="attack")
    """Size of one such step, in [0, 1] pixel units; by default 2.5 · eps / attack_steps, eps for nfgsm."""

    def problems(self) -> list[str]:
        """See ``Checked.problems``."""
        found = super().problems() + eps_problems("eps", self.eps, self.norm)
        if self.attack_step_size is not None:
            found += eps_problems("attack_step_size", self.attack_step_size, self.norm)
        return found


@configuration
class ObjectiveConfig(ThreatConfig):
    """What a model is trained for, and against which threat."""

    training: Training = setting(default="standard", identity=True, group="training")
    """standard: cross-entropy. trades: cross-entropy + beta · KL of the adversarial output (Zhang et al. 2019).
    pgd: cross-entropy on PGD examples alone (PGD-AT, Madry et al. 2018); its train_accuracy is that on them.
    mart: like trades, with an eye to what is misclassified anyway (Wang et al. 2020). nfgsm: one step from strong noise
    (N-FGSM, de Jorge et al. 2022), at a quarter of the cost; validation watches for catastrophic overfitting."""
    beta: Weight = setting(default=6.0, identity=True, group="training")
    """Weight of the robustness term of trades and mart, usually in [1, 10]; the others have none."""
    val_attack_steps: Natural = setting(default=10, identity=attacks_validation, group="attack")
    """Gradient steps of the attack on the validation split after each epoch (adversarial training), at --eps: the best
    epoch is the one most robust under it. 0: no attack, the best epoch is that of the highest clean accuracy. Never
    changes the last weights."""


def scores_attacked(config: Any) -> bool:
    """Identity of the threat of a scoring run, which decides nothing in standard training."""
    return bool(config.training != "standard")


def scores_weighted(config: Any) -> bool:
    """Identity of beta in a scoring run."""
    return config.training in WEIGHTED


@configuration
class ScoringObjectiveConfig(ThreatConfig):
    """What the model of a scoring run is trained for, and the attack under which samples are scored as well."""

    training: ScoringTraining = setting(default="standard", identity=scores_attacked, group="training")
    """standard: cross-entropy. trades, pgd, mart: adversarial training, see train; needs --score-pass eval. The exact
    pass then also records each sample's loss under attack and whether it is classified right there, from which reduce
    makes the scores adv_loss and problematic; all others stay those of the clean images."""
    beta: Weight = setting(default=6.0, identity=scores_weighted, group="training")
    """Weight of the robustness term of trades and mart, usually in [1, 10]; the others have none."""
    eps: Eps = setting(default=8 / 255, identity=scores_attacked, group="attack")
    """Largest perturbation of the attack, in training and in scoring (adversarial training), in [0, 1] pixel units,
    e.g. 8/255."""
    norm: Norm = setting(default="linf", identity=scores_attacked, group="attack")
    """Norm in which perturbations are bounded."""
    attack_steps: Count = setting(default=10, identity=scores_attacked, group="attack")
    """Gradient steps of the attack, in training and in scoring. With 10 a step of trades costs 9 times a standard one,
    and an exact pass 10 times one without attack: 2 forward passes more for each step, and 1."""
    attack_step_size: Eps | None = setting(default=None, identity=scores_attacked, group="attack")
    """Size of one such step, in [0, 1] pixel units; by default 2.5 · eps / attack_steps."""

    def problems(self) -> list[str]:
        """See ``Checked.problems``."""
        found = super().problems()
        for spec in dataclasses.fields(ScoringObjectiveConfig):
            value = getattr(self, spec.name)
            if spec.name == "training" or value == spec.default or spec.metadata["identity"](self):
                continue
            shown = f"{value:g}" if isinstance(value, float) else value
            meant = "trades or mart" if spec.name == "beta" else "trades, pgd or mart"
            found.append(
                f"{spec.name} {shown} decides nothing where scores are taken in {self.training} training; pass "
                f"--training {meant}, or leave it out"
            )
        return found
