"""Configuration of training: recipe and objective."""

import itertools
import math
from dataclasses import dataclass
from typing import Literal

from easycore_ray.config.fields import Eps, ModelName, Norm, Training, at_least, eps_problem, one_of
from easycore_ray.core.models import FIXED_WIDTHS, MODELS, is_users


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
        found = [] if is_users(self.model) else one_of("model", self.model, MODELS)
        if found:
            found[0] += ", or your own as package.module:function"
        elif is_users(self.model) and self.width is not None:
            found.append(f"width is for the built-in networks, got {self.width} with {self.model}; leave it out")
        found += at_least("batch_size", self.batch_size, 1)
        found += at_least("crop_pad", self.crop_pad, 0)
        found += at_least("momentum", self.momentum, 0)
        found += at_least("weight_decay", self.weight_decay, 0)
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
            found += at_least("width", self.width, 1)
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
        return super().recipe_problems() + at_least("seed", self.seed, 0)


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
        found = eps_problem("eps", self.eps, self.norm) + at_least("attack_steps", self.attack_steps, 1)
        found += at_least("val_attack_steps", self.val_attack_steps, 0)
        if not (self.beta >= 0 and math.isfinite(self.beta)):
            found.append(f"beta must be a number >= 0, got {self.beta:g}")
        if self.attack_step_size is not None:
            found += eps_problem("attack_step_size", self.attack_step_size, self.norm)
        return found
