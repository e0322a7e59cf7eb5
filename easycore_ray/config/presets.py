"""Presets: whole pipelines as functions; derive one by calling another and changing fields.

A preset fills in what a command line leaves out; every field can still be given. Numbers carry where
they come from.
"""

from collections.abc import Callable
from typing import Any

from easycore_ray.config.experiments import PipelineConfig, StudyConfig

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
        num_eval_samples=50,
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
        method=("easycore", "easycore/class", "random", "hardest"),
        fraction=(0.5,),
        training=("standard", "trades"),
        beta=(6.0,),
        seeds=(0, 1),
        train_epochs=5,
        # A third of the passes, with 3 attack steps instead of 10: what half an hour allows.
        adversarial_epochs=2,
        attack_steps=3,
        eps=8 / 255,
        # Standard models have no accuracy left at 8/255, so a small budget is needed to tell them apart.
        eval_eps=(2 / 255, 8 / 255),
        num_eval_samples=1_000,
        note=CIFAR_CPU_NOTE,
    )


def cifar10(out: str = "runs/cifar10-full") -> PipelineConfig:
    """CIFAR-10 at the scale of papers: ResNet-18 on GPUs, all images, three seeds.

    Training with the numbers of the DeepCore benchmark (Guo et al. 2022): SGD 0.1, Nesterov momentum 0.9, weight decay
    5e-4, batches of 256, 200 epochs of a cosine to 1e-4, crops padded by reflection. Not as there: bf16, pixels are
    normalised by the measured mean and deviation, 2 % of the training images are held out, a scoring run has two
    workers, each with the batch norm of its half, and what is compared is the last epoch and the best by validation,
    not the best by test. Scores are those of its 200 epochs; DeepCore scores in 40 epochs of their own.

    TRADES with β = 1 and 6, 10 steps of 2/255 (0.007 in the source) and eps 8/255 instead of 0.031 (Zhang et al. 2019).
    Of Pang et al. 2021 it has the 110 epochs alone; all else is as for standard training. ``trades-official`` and
    ``bag-of-tricks-trades`` have the numbers of these sources.
    """
    return PipelineConfig(
        out=out,
        source="torchvision:CIFAR10",
        model="resnet18",
        batch_size=256,
        num_workers=2,
        gpus_per_worker=1.0,
        lr=0.1,
        final_lr=1e-4,
        warmup_fraction=0.0,
        crop_reflect=True,
        precision="bf16",
        score_epochs=200,
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
        adversarial_epochs=110,
        eps=8 / 255,
        attack_step_size=2 / 255,
        eval_eps=(0.25 / 255, 0.5 / 255, 1 / 255, 2 / 255, 4 / 255, 8 / 255),
    )


def trades_official(out: str = "runs/trades-official") -> PipelineConfig:
    """TRADES on CIFAR-10 with the numbers of its official script, train_trades_cifar10.py (Zhang et al. 2019).

    WRN-34-10; SGD 0.1, momentum 0.9 without Nesterov, weight decay 2e-4, batches of 128; 76 epochs, ×0.1 from epoch
    75 on (the script's later drops, at 90 and 100, are never reached); eps 0.031 (not 8/255, it is 7.9/255), 10 steps
    of 0.007, β = 6. The authors' checkpoint: 84.92 % clean, 56.43 % under PGD-20, 53.08 % under AutoAttack.
    Not as there: pixels are normalised by the measured mean and deviation (there not at all), 2 % of the training
    images are held out.
    """
    return _from_source(
        out,
        model="wrn-34-10",
        weight_decay=2e-4,
        schedule="multistep",
        milestones=(74 / 76,),
        training=("trades",),
        train_epochs=76,
        eps=0.031,
        attack_step_size=0.007,
        eval_eps=(0.031,),
    )


def bag_of_tricks_trades(out: str = "runs/bag-of-tricks-trades") -> PipelineConfig:
    """TRADES on CIFAR-10 as Bag of Tricks for AT advises (Pang et al. 2021).

    WRN-34-10; SGD 0.1, momentum 0.9 without Nesterov, weight decay 5e-4, batches of 128; 110 epochs, ×0.1 after 100
    and after 105; eps 8/255, 10 steps of 2/255 in evaluation mode, β = 6 (that of the TRADES script). They report
    85.48 % clean and 53.80 % under AutoAttack. Not as there: pixels are normalised by the measured mean and deviation
    (in their TRADES code, ShawnXYang/AT_HE, not at all), 2 % of the training images are held out.
    """
    return _from_source(
        out,
        model="wrn-34-10",
        schedule="multistep",
        milestones=(100 / 110, 105 / 110),
        training=("trades",),
        train_epochs=110,
        eps=8 / 255,
        attack_step_size=2 / 255,
        eval_eps=(8 / 255,),
    )


def bag_of_tricks_pgd(out: str = "runs/bag-of-tricks-pgd") -> PipelineConfig:
    """PGD-AT on CIFAR-10: the baseline of Bag of Tricks for AT (Pang et al. 2021), with their pre-activation ResNet-18.

    Numbers of their train_cifar.py with --BNeval: those of ``bag_of_tricks_trades``, with cross-entropy on the attacked
    images, from a uniform random start; crops padded by reflection; the clean batch is forwarded in training mode
    before and after each update, so that running statistics see three batches a step. Not as there: pixels are
    normalised by the measured mean and deviation (there by fixed ones, nearly the same), 2 % of the training
    images are held out and choose the best epoch (there the test images do), the rate drops with the first step of an
    epoch (there a step earlier).
    """
    return bag_of_tricks_trades(out).replace(
        model="preactresnet18", training=("pgd",), crop_reflect=True, clean_forwards=True
    )


def csl_mem(out: str = "runs/csl-mem") -> PipelineConfig:
    """AIGN on CIFAR-10 with the numbers of CSL-Mem, which EasyCore's group published for the same quantity.

    No code of EasyCore itself was found. DeepakTatachar/CSL-Mem (Ravikumar et al. 2025) averages the L2 norm of the
    loss gradient at the input over the epochs of a training run. ResNet-18; SGD 0.1, momentum 0.9 without Nesterov,
    weight decay 1e-4, batches of 128, 200 epochs, ×0.1 from 60 % and 80 % of them on, zero-padded crops and flips;
    scored after every epoch in evaluation mode, on clean images, with respect to the normalised input (view and input
    are those of its other scoring scripts; none calls the function). Not as there: pixels are normalised by the
    measured mean and deviation (there by a deviation of 0.20), 2 % of the training images are held out. Ours: the
    models of the comparison are trained alike, and evaluated at small eps, as in ``cifar10``.
    """
    return _from_source(
        out,
        model="resnet18",
        weight_decay=1e-4,
        schedule="multistep",
        milestones=(0.6, 0.8),
        score_epochs=200,
        score_pass="eval",
        input_space="normalised",
        training=("standard",),
        train_epochs=200,
        eps=8 / 255,
        eval_eps=(0.25 / 255, 0.5 / 255, 1 / 255, 2 / 255, 4 / 255, 8 / 255),
    )


def standard_cifar(out: str = "runs/standard-cifar") -> PipelineConfig:
    """Standard training on CIFAR-10 with the numbers of kuangliu/pytorch-cifar.

    ResNet-18; SGD 0.1, momentum 0.9 without Nesterov, weight decay 5e-4, batches of 128, 200 epochs of a cosine (per
    step here, per epoch there). Its README says 93.02 %, of an older schedule. Not as there: pixels are normalised by
    the measured mean and deviation (there by a deviation of 0.20), 2 % of the training images are held out. Evaluated
    at small eps, as in ``cifar10``.
    """
    return _from_source(
        out,
        model="resnet18",
        schedule="cosine",
        training=("standard",),
        train_epochs=200,
        eps=8 / 255,
        eval_eps=(0.25 / 255, 0.5 / 255, 1 / 255, 2 / 255, 4 / 255, 8 / 255),
    )


def standard_imagenet(out: str = "runs/imagenet") -> PipelineConfig:
    """Standard training on ImageNet with the numbers of torchvision's reference script for ResNets (v1 weights).

    ResNet-50; SGD 0.1, momentum 0.9 without Nesterov, weight decay 1e-4, batches of 256 over 8 GPUs; 90 epochs, ×0.1
    from epochs 31 and 61 on. Random parts of 8 to 100 % resized to 224 and flips in training; shorter side to 256 and
    the centre 224 for scores and evaluation. The authors' checkpoint: 76.13 % clean. Not as there: pixels are
    normalised by the dataset's own mean, 2 % of the training images are held out. Set ``--source``.
    """
    return PipelineConfig(
        out=out,
        source="/data/imagenet",
        image_size=224,
        resize_size=256,
        model="resnet50-imagenet",
        batch_size=256,
        num_workers=8,
        trial_workers=8,
        gpus_per_worker=1.0,
        lr=0.1,
        momentum=0.9,
        nesterov=False,
        weight_decay=1e-4,
        schedule="multistep",
        milestones=(30 / 90, 60 / 90),
        warmup_fraction=0.0,
        augment="imagenet",
        score_epochs=20,
        method=("easycore", "random"),
        fraction=(0.3, 0.5),
        training=("standard",),
        seeds=(0,),
        train_epochs=90,
        eps=4 / 255,
        eval_eps=(0.5 / 255, 1 / 255, 4 / 255),
    )


def _from_source(out: str, **recipe: Any) -> PipelineConfig:
    """A published recipe for one objective around which the coresets of ``cifar10`` are compared.

    What the sources share: batches of 128 on one device, SGD without Nesterov or warm-up, zero-padded crops and flips,
    10 steps.
    """
    shared = {
        "augment": "crop-flip",
        "crop_pad": 4,
        "crop_reflect": False,
        "final_lr": 0.0,
        "batch_size": 128,
        "lr": 0.1,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 5e-4,
        "warmup_fraction": 0.0,
        "precision": "fp32",
        "attack_steps": 10,
        "beta": (6.0,),
        "adversarial_epochs": None,
        # Batch norm sees the whole batch, as there.
        "num_workers": 1,
        "score_epochs": 20,
    }
    return cifar10(out).replace(**{**shared, **recipe})


PRESETS: dict[str, Callable[[str], PipelineConfig]] = {
    "digits": digits,
    "tiny": tiny,
    "cifar10-cpu": cifar10_cpu,
    "cifar10": cifar10,
    "trades-official": trades_official,
    "bag-of-tricks-trades": bag_of_tricks_trades,
    "bag-of-tricks-pgd": bag_of_tricks_pgd,
    "csl-mem": csl_mem,
    "standard-cifar": standard_cifar,
    "standard-imagenet": standard_imagenet,
}


def cifar10_cpu_study(out: str, dataset: str) -> StudyConfig:
    """The comparison of coresets at what two CPU cores can do in two hours: a narrow ResNet, 15,000 images.

    Six epochs (standard) and two with five attack steps (TRADES), attacks on 1,000 fixed test images. Equal epochs: a
    coreset of half the size takes half the steps.
    """
    return StudyConfig(
        out=out,
        dataset=dataset,
        subset=15_000,
        model="resnet18",
        width=8,
        batch_size=64,
        lr=0.1,
        cpus_per_worker=1.0,
        threads_per_worker=1,
        score_epochs=6,
        num_workers=2,
        train_epochs=6,
        adversarial_epochs=2,
        attack_steps=5,
        num_eval_samples=1_000,
        num_autoattack_samples=250,
    )


def cifar10_study(out: str, dataset: str) -> StudyConfig:
    """The same comparison on GPUs: ResNet-18, all images; TRADES for 50 epochs with the attack of Zhang et al. 2019."""
    return StudyConfig(
        out=out,
        dataset=dataset,
        model="resnet18",
        batch_size=128,
        lr=0.1,
        precision="bf16",
        gpus_per_worker=1.0,
        score_epochs=30,
        train_epochs=60,
        adversarial_epochs=50,
        attack_step_size=2 / 255,
        num_autoattack_samples=1_000,
    )


def every_method(out: str, dataset: str) -> StudyConfig:
    """Every family of methods at half of the steps of TRADES, under AutoAttack: hours on two cores.

    20,000 images, a ResNet-18 of width 16, scores of 30 epochs, TRADES for 5 epochs (β = 6) on all data as reference
    and half as many steps for everything else, three seeds. Models are compared after their last epoch, under
    AutoAttack on 250 images of each; averaged weights are beside, under PGD. bf16 is for CPUs that have it
    (``avx512_bf16`` or ``amx_bf16`` in /proc/cpuinfo); pass ``--precision fp32`` on others, from the start.
    docs/methods.md has the commands for more seeds, methods and budgets, which go on in the same results.
    """
    return cifar10_cpu_study(out, dataset).replace(
        subset=20_000,
        width=16,
        batch_size=128,
        precision="bf16",
        ema=0.995,
        parts=("half", "half-autoattack"),
        score_epochs=30,
        train_epochs=10,
        adversarial_epochs=5,
    )


STUDIES: dict[str, Callable[[str, str], StudyConfig]] = {
    "cifar10-cpu": cifar10_cpu_study,
    "cifar10": cifar10_study,
    "every-method": every_method,
}
"""Presets of ``easycore study``, called with (out, dataset)."""
