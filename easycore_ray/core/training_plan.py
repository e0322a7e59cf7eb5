"""Every setting that changes the numbers of a training run, as plain data."""

from dataclasses import dataclass

from easycore_ray.core.augment import AUGMENTATIONS
from easycore_ray.core.eps import DENSE_NORMS
from easycore_ray.core.schedules import SCHEDULES
from easycore_ray.core.scores import INPUT_SPACES

TRAINING = ("standard", "trades", "pgd", "mart", "nfgsm")
"""What a network can be trained for, see ``core.objectives``."""
_CHOICES = {
    "training": TRAINING,
    "norm": DENSE_NORMS,
    "schedule": SCHEDULES,
    "augment": AUGMENTATIONS,
    "precision": ("fp32", "bf16"),
    "input_space": INPUT_SPACES,
}


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Every setting that changes the numbers of a training run, resolved (no None left).

    ``eps`` and ``attack_step_size`` are in [0, 1] pixel units, ``lr`` is that of the peak, ``beta`` the weight of
    the KL term of TRADES (arXiv 1901.08573) or MART. ``warmup_steps`` and ``total_steps`` count optimizer steps,
    ``crop_pad`` pixels.
    ``precision`` is ``fp32`` or ``bf16``; weights are float32 in both.
    """

    training: str
    beta: float
    eps: float
    norm: str
    attack_steps: int
    attack_step_size: float
    lr: float
    momentum: float
    nesterov: bool
    weight_decay: float
    schedule: str
    warmup_steps: int
    total_steps: int
    augment: str
    crop_pad: int
    precision: str
    seed: int
    crop_reflect: bool = False
    """Pad crops by reflection; with zeros if not."""
    milestones: tuple[float, ...] = ()
    """Shares of the steps at which multistep drops."""
    final_lr: float = 0.0
    """Learning rate that cosine ends at."""
    label_smoothing: float = 0.0
    """Share of a label that is spread over all classes in the cross-entropy that is trained on, in [0, 1)."""
    clean_forwards: bool = False
    """Forward the clean batch in training mode before and after each update, see ``gradients.forward_clean``."""
    awp: float = 0.0
    """Size of the adversarial weight perturbation, see ``core.weight_perturbation``; 0: none."""
    ema: float = 0.0
    """Decay of the averaged weights, see ``averaging.AveragedWeights``; 0: none are kept."""
    input_space: str = "pixel"
    """Inputs that recorded gradients are taken with respect to, see ``scores.pixel_scale``."""
    fold: bool = False
    """Fold batch norm into the convolutions for the training attack: another rounding, less work."""

    def __post_init__(self) -> None:
        """Refuse words that no branch of the loop knows, each of which would be taken for another.

        Raises:
            ValueError: names the field, the value and what is allowed.
        """
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
