"""Configurations of evaluations, and of what evaluates at the end of other work."""

from typing import Literal

from easycore_ray.config.base import (
    Checked,
    ComputeConfig,
    TrackingConfig,
    configuration,
    eps_problems,
    if_given,
    setting,
)
from easycore_ray.config.fields import (
    AttackName,
    CorruptionName,
    Count,
    Eps,
    EvaluationNorm,
    ModelName,
    Natural,
    Normalisation,
    Several,
    Text,
    WeightsName,
)
from easycore_ray.config.recipes import (
    width_problems,
)
from easycore_ray.core.names import chosen_corruptions


@configuration
class EvalBatchConfig(Checked):
    """How many images are attacked at once."""

    eval_batch_size: Count | None = setting(default=None, identity=if_given("eval_batch_size"), group="compute")
    """Images of a shard of 250 that are attacked at once in an evaluation: by default all, fewer of large images (64 at
    224 x 224 pixels). What does not fit into a device's memory is halved. Changes rounding, and the draws of
    autoattack."""


@configuration
class EvalMeasureConfig(EvalBatchConfig):
    """What an evaluation measures beyond one run of each attack."""

    pgd_restarts: Count = setting(default=1, identity=lambda config: config.pgd_restarts > 1, group="attack")
    """Random starts of pgd20 in an evaluation; an image is robust if it withstands all. More never leave more, and cost
    time for the images that withstood the others."""
    corruptions: Several[CorruptionName] = setting(
        default=(),
        identity=lambda config: bool(config.corruptions),
        group="attack",
        held=lambda config: list(chosen_corruptions(config.corruptions)),
    )
    """Also classify the images corrupted in these ways, each at five severities (Hendrycks & Dietterich 2019); all:
    every one of them. A pass without an attack for each."""


OF_WEIGHTS_FILE = ("model", "width")
"""Fields of an evaluation that are of a file of weights, and none of what a preset or sweep trains."""


@configuration
class EvaluateConfig(EvalMeasureConfig, TrackingConfig, ComputeConfig):
    """Clean and robust accuracy of a model; images are attacked in fixed shards by long-lived workers."""

    checkpoint: Text | None = setting(default=None, identity=False, group="model")
    """Folder of a trained model."""
    weights_file: Text | None = setting(default=None, identity=False, group="model")
    """Instead of --checkpoint: a .pt, .pth or .safetensors file that others trained, with --model and --normalise.
    Names of TRADES, robust_overfitting, Bag of Tricks, pytorch-cifar and RobustBench are understood, and a state dict
    under state_dict, model_state_dict, net, model or last. Read as data: pickled code in it is refused."""
    model: ModelName | None = setting(default=None, identity=if_given("model"), group="model")
    """Network of --weights-file, as of train --model: cnn, resnet18, preactresnet18, preactresnet18-nobn,
    preactresnet18-fast, wrn-28-10, wrn-34-10, resnet18-imagenet, resnet50-imagenet, timm:NAME or your own."""
    width: Count | None = setting(default=None, identity=if_given("width"), group="model")
    """Width of that network (widen factor for wrn-*); its own default if left out."""
    normalise: Normalisation | None = setting(default=None, identity=if_given("normalise"), group="model")
    """What --weights-file was trained to get: none (pixels in [0, 1], as TRADES), half (in [-1, 1]), cifar10
    (robust_overfitting, Bag of Tricks), pytorch-cifar, cifar100, imagenet, dataset (mean and std of --dataset), or file
    (those the file brings). A wrong one gives a wrong accuracy, not an error."""
    weights: WeightsName = setting(default="last", identity=True, group="model")
    """Weights after the last epoch, after the one that did best on the validation split, or averaged over the steps
    (train --ema)."""
    dataset: Text = setting(identity=False, group="data")
    """Folder of a prepared dataset."""
    split: Literal["test", "val"] = setting(default="test", identity=True, group="data")
    """Split that is attacked."""
    attack: Several[AttackName] = setting(default=("pgd20",), identity=True, group="attack")
    """Attacks to run; robust means correct under all of them. none: clean accuracy only; autoattack: the standard
    version, slow, needs the package pyautoattack."""
    eval_eps: Several[Eps] = setting(default=(8 / 255,), identity=True, group="attack")
    """Perturbations of the evaluation, in [0, 1] pixel units, one result for each; 0 is the clean accuracy."""
    norm: EvaluationNorm = setting(default="linf", identity=True, group="attack")
    """Norm in which perturbations are bounded; l1, the sum of all changes, is for evaluations alone."""
    num_eval_samples: Count | None = setting(default=None, identity=True, group="data")
    """Attack only this many images in an evaluation, the same for every model; all if left out."""
    seed: Natural = setting(default=0, identity=True, group="attack")
    """Seed of the drawn images and of the attacks' random starts."""
    claim: Text | None = setting(default=None, identity=False, group="output")
    """Also write the claim that RobustBench asks for into this JSON file: needs autoattack, one --eval-eps and the test
    split. Title, authors, links are left empty to fill in; what is filled in stays when it is written again."""

    def problems(self) -> list[str]:
        """See ``Checked.problems``."""
        found = super().problems() + eps_problems("eval_eps", self.eval_eps, self.norm)
        if "none" in self.attack and len(self.attack) > 1:
            found.append(f"attack none stands alone, got {', '.join(self.attack)}; the clean accuracy is always given")
        if not self.eval_eps or not self.attack:
            found.append("attack and eval_eps need at least one value each")
        return found + self._model_problems() + self._claim_problems()

    def _claim_problems(self) -> list[str]:
        """What is wrong with an evaluation whose result is claimed."""
        if self.claim is None:
            return []
        found = []
        if "autoattack" not in self.attack:
            found.append(
                f"claim needs autoattack among the attacks, got {', '.join(self.attack)}: RobustBench compares by it; "
                "pass --attack autoattack"
            )
        if len(self.eval_eps) != 1:
            found.append(f"claim is of one eval_eps, got {len(self.eval_eps)}; pass the one that is claimed")
        if self.split != "test":
            found.append(f"claim is of the test split, got {self.split}; leave --split out")
        if not self.claim.endswith(".json"):
            found.append(f"claim must end in .json, got {self.claim!r}")
        return found

    def _model_problems(self) -> list[str]:
        """What is wrong with the fields that say what is attacked."""
        given = [name for name in ("model", "width", "normalise") if getattr(self, name) is not None]
        if (self.checkpoint is None) == (self.weights_file is None):
            both = "both given" if self.checkpoint is not None else "both missing"
            return [
                f"checkpoint and weights_file are {both}; pass --checkpoint, or --weights-file with --model and "
                "--normalise"
            ]
        if self.checkpoint is not None:
            named = " and ".join(given)
            return [f"{named} go with weights_file; a checkpoint knows its network: leave them out"] * bool(given)
        missing = [name for name in ("model", "normalise") if name not in given]
        if missing:
            return [f"weights_file needs {' and '.join(missing)} as well, which the file does not say"]
        if self.weights != "last":
            return [f"weights {self.weights} is of a checkpoint; a weights_file holds one set of weights"]
        assert self.model is not None
        return width_problems(self.model, self.width)
