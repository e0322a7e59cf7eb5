"""Presets: whole pipelines as functions; derive one by calling another and changing fields.

A preset fills in what a command line leaves out; every field can still be given. Numbers carry where
they come from.
"""

from collections.abc import Callable

from easycore_ray.config import PipelineConfig

CIFAR_CPU_NOTE = (
    "A ResNet-18 of width 8 on a class-balanced draw of 10,000 training images, a few epochs, attacks on 1,000 "
    "fixed test images: made to fit two CPU cores, not to be compared with published figures."
)


def digits(out: str = "runs/digits") -> PipelineConfig:
    """1,797 handwritten digits (8 × 8 pixels, 16 grey levels) that come with scikit-learn: minutes on a laptop."""
    return PipelineConfig(
        out=out,
        source="digits",
        model="cnn",
        width=16,
        batch_size=64,
        lr=0.1,
        augment="crop",
        crop_pad=1,
        score_epochs=15,
        score_pass="fused+eval",
        method=("easycore", "easycore/class", "random", "hardest"),
        fraction=(0.3, 0.6),
        training=("standard", "trades"),
        beta=(1.0, 6.0),
        seeds=(0, 1),
        # Equal steps for every fraction: smaller coresets are seen more often, not trained less.
        steps=150,
        # Two of the sixteen grey levels.
        eps=0.125,
        eval_eps=(0.125,),
        attack_steps=5,
        note="scikit-learn's digits: 8 × 8 pixels, a small convolutional network, 150 steps per run.",
    )


def tiny(out: str = "runs/tiny") -> PipelineConfig:
    """The digits pipeline cut to two arms and a few steps: for tests and first submissions to a cluster."""
    return digits(out).replace(
        width=4,
        score_epochs=2,
        method=("easycore",),
        fraction=(0.5,),
        beta=(6.0,),
        seeds=(0,),
        steps=10,
        attack_steps=2,
        num_test_samples=50,
        note="A smoke test: far too short to compare methods.",
    )


def cifar10_cpu(out: str = "runs/cifar10") -> PipelineConfig:
    """CIFAR-10 in half an hour on two cores: a narrow ResNet on 10,000 images, attacks on 1,000."""
    return PipelineConfig(
        out=out,
        source="torchvision:CIFAR10",
        subset=10_000,
        model="resnet18",
        width=8,
        batch_size=64,
        lr=0.1,
        score_epochs=5,
        score_pass="fused+eval",
        method=("easycore", "easycore/class", "random", "hardest"),
        fraction=(0.5,),
        training=("standard", "trades"),
        beta=(6.0,),
        seeds=(0, 1),
        train_epochs=5,
        # A third of the passes, with 3 attack steps instead of 10: what half an hour allows.
        trades_epochs=2,
        attack_steps=3,
        eps=8 / 255,
        # Standard models have no accuracy left at 8/255, so a small budget is needed to tell them apart.
        eval_eps=(2 / 255, 8 / 255),
        num_test_samples=1_000,
        note=CIFAR_CPU_NOTE,
    )


def cifar10(out: str = "runs/cifar10-full") -> PipelineConfig:
    """CIFAR-10 at the scale of papers: ResNet-18 on GPUs, all images, three seeds.

    Training as in the DeepCore benchmark (SGD 0.1, Nesterov, weight decay 5e-4, cosine; 200 epochs);
    TRADES with β = 6, 10 steps of 0.007 ≈ 2/255 and eps 8/255 (Zhang et al. 2019), for the 110 epochs of
    Pang et al. 2021.
    """
    return PipelineConfig(
        out=out,
        source="torchvision:CIFAR10",
        model="resnet18",
        batch_size=128,
        num_workers=2,
        gpus_per_worker=1.0,
        lr=0.1,
        precision="bf16",
        score_epochs=200,
        # Measured in docs/schedules: for a seventh of the cost of exact passes, as good an agreement across seeds.
        score_pass="fused+eval",
        method=(
            "easycore",
            "easycore/class",
            "random",
            "random/class",
            "hardest",
            "easiest:el2n",
            "easiest:aum",
        ),
        fraction=(0.3, 0.5, 0.7),
        training=("standard", "trades"),
        beta=(1.0, 6.0),
        seeds=(0, 1, 2),
        train_epochs=200,
        trades_epochs=110,
        eps=8 / 255,
        attack_step_size=2 / 255,
        eval_eps=(0.25 / 255, 0.5 / 255, 1 / 255, 2 / 255, 4 / 255, 8 / 255),
        trial_num_workers=1,
    )


PRESETS: dict[str, Callable[[str], PipelineConfig]] = {
    "digits": digits,
    "tiny": tiny,
    "cifar10-cpu": cifar10_cpu,
    "cifar10": cifar10,
}
