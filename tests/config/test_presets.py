"""Presets against the sources they name: the numbers written down here once more, and what they come to in steps."""

import pytest

from easycore_ray.cli.start_values import preset_fields
from easycore_ray.config.evaluation import EvaluateConfig
from easycore_ray.config.experiments import PipelineConfig, SweepConfig
from easycore_ray.config.presets import PRESETS
from easycore_ray.config.stages import PrepareConfig, ScoreConfig, TrainConfig
from easycore_ray.core.schedules import learning_rate
from easycore_ray.engine.plan import make_training_plan

# What the sources' own code says, fields by their names here; "normalised" is by what mean and deviation pixels are.
SHARED = {"source": "torchvision:CIFAR10", "batch_size": 128, "num_workers": 1, "trial_workers": 1, "lr": 0.1,
          "momentum": 0.9, "nesterov": False, "warmup_fraction": 0.0, "augment": "crop-flip", "crop_pad": 4,
          "crop_reflect": False, "clean_forwards": False, "precision": "fp32", "final_lr": 0.0,
          "norm": "linf", "steps": None, "adversarial_epochs": None, "val_fraction": 0.0}  # fmt: skip
SOURCES = {
    # PatrickZH/DeepCore, main.py and README: its ResNet18, its defaults.
    "cifar10": {
        "model": "resnet18", "weight_decay": 5e-4, "nesterov": True, "batch_size": 256, "schedule": "cosine",
        "final_lr": 1e-4, "crop_reflect": True, "train_epochs": 200, "training": ("standard",), "normalised": "fixed",
    },
    # yaodongyu/TRADES, train_trades_cifar10.py.
    "trades-official": {
        "model": "wrn-34-10", "weight_decay": 2e-4, "schedule": "multistep", "training": ("trades",), "beta": (6.0,),
        "train_epochs": 76, "eps": 0.031, "attack_steps": 10, "attack_step_size": 0.007, "eval_eps": (0.031,),
        "normalised": "not",
    },
    # The paper's numbers in ShawnXYang/AT_HE, which P2333/Bag-of-Tricks-for-AT names as its code for TRADES.
    "bag-of-tricks-trades": {
        "model": "wrn-34-10", "weight_decay": 5e-4, "schedule": "multistep", "training": ("trades",), "beta": (6.0,),
        "train_epochs": 110, "eps": 8 / 255, "attack_steps": 10, "attack_step_size": 2 / 255, "eval_eps": (8 / 255,),
        "normalised": "not",
    },
    # P2333/Bag-of-Tricks-for-AT, train_cifar.py and utils.py, with the README's --BNeval.
    "bag-of-tricks-pgd": {
        "model": "preactresnet18", "weight_decay": 5e-4, "schedule": "multistep", "training": ("pgd",),
        "train_epochs": 110, "eps": 8 / 255, "attack_steps": 10, "attack_step_size": 2 / 255, "eval_eps": (8 / 255,),
        "crop_reflect": True, "clean_forwards": True, "normalised": "fixed",
    },
    # DeepakTatachar/CSL-Mem: train.py's defaults, scores.py, clean loaders of its scoring scripts, a state per epoch.
    "csl-mem": {
        "model": "resnet18", "weight_decay": 1e-4, "schedule": "multistep", "milestones": (0.6, 0.8),
        "training": ("standard",), "train_epochs": 200, "score_epochs": 200, "score_pass": "eval", "score_every": 1,
        "initial_pass": False, "input_space": "normalised", "normalised": "fixed",
    },
    # kuangliu/pytorch-cifar, main.py.
    "standard-cifar": {
        "model": "resnet18", "weight_decay": 5e-4, "schedule": "cosine", "training": ("standard",),
        "train_epochs": 200, "normalised": "fixed",
    },
}  # fmt: skip
HELD_OUT = {"val_fraction": "2 % of the training images are held out", "normalised": "measured mean and deviation"}
# What a preset changes, and the words in its docstring that say so.
CHANGED = dict.fromkeys(SOURCES, HELD_OUT) | {
    "cifar10": HELD_OUT | {"precision": "bf16", "num_workers": "two workers", "training": "TRADES with β = 1 and 6",
                           "adversarial_epochs": "110 epochs alone"},
}  # fmt: skip
# Learning rate in an epoch, counted from 1: the last before and the first after each drop.
RATES = {
    "trades-official": {1: 0.1, 74: 0.1, 75: 0.01, 76: 0.01},
    "bag-of-tricks-trades": {1: 0.1, 100: 0.1, 101: 0.01, 105: 0.01, 106: 0.001, 110: 0.001},
    "bag-of-tricks-pgd": {1: 0.1, 100: 0.1, 101: 0.01, 105: 0.01, 106: 0.001, 110: 0.001},
    "standard-cifar": {1: 0.1, 101: 0.05},
    "csl-mem": {1: 0.1, 120: 0.1, 121: 0.01, 160: 0.01, 161: 0.001, 200: 0.001},
    "cifar10": {1: 0.1, 101: 0.05005, 201: 1e-4},
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_preset_is_its_source_or_says_where_it_is_not(name):
    """Every number that the source gives is the preset's, but for those that its docstring names."""
    config = PRESETS[name]("o")
    expected = SHARED | SOURCES[name]
    ours = vars(config) | {"val_fraction": config.prepare_config().val_fraction, "normalised": "measured"}
    said = " ".join(PRESETS[name].__doc__.split())

    assert {key for key, value in expected.items() if ours[key] != value} == set(CHANGED[name])
    assert [words for words in CHANGED[name].values() if words not in said] == []


@pytest.mark.parametrize("steps_per_epoch", [383, 391, 12])
@pytest.mark.parametrize("name", RATES)
def test_the_rate_drops_in_the_epochs_of_the_source(name, steps_per_epoch):
    """First and last step of an epoch train at the source's rate, whatever the size of the coreset."""
    config = PRESETS[name]("o")
    plan = make_training_plan(config, total_steps=config.train_epochs * steps_per_epoch)

    def rate(step):
        return learning_rate(step, total_steps=plan.total_steps, base=plan.lr, kind=plan.schedule,
                             warmup_steps=plan.warmup_steps, milestones=plan.milestones,
                             final=plan.final_lr)  # fmt: skip

    for epoch, expected in RATES[name].items():
        first = (epoch - 1) * steps_per_epoch
        assert rate(first) == pytest.approx(expected)
        if plan.schedule == "multistep":
            assert rate(first + steps_per_epoch - 1) == pytest.approx(expected)


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "cifar10"])
def test_a_single_run_takes_objective_and_milestones_from_the_preset(name):
    """``train --preset`` and ``evaluate --preset`` mean the source's objective, schedule, length and eps."""
    config = PRESETS[name]("o")
    run = TrainConfig(out="o", dataset="d", **preset_fields(TrainConfig, name))

    assert (run.training, run.epochs, run.milestones) == (config.training[0], config.train_epochs, config.milestones)
    assert (run.beta, run.eps, run.nesterov) == (6.0, config.eps, False)
    assert (run.crop_reflect, run.clean_forwards) == (config.crop_reflect, config.clean_forwards)
    assert preset_fields(EvaluateConfig, name)["eval_eps"] == config.eval_eps
    assert preset_fields(SweepConfig, name)["training"] == config.training


def test_a_scoring_run_takes_its_recipe_from_the_preset():
    """``score --preset csl-mem`` is the whole of what its source says of scores."""
    run = ScoreConfig(out="o", dataset="d", **preset_fields(ScoreConfig, "csl-mem"))

    assert (run.epochs, run.score_pass, run.score_every, run.input_space) == (200, "eval", 1, "normalised")
    assert (run.weight_decay, run.nesterov, run.milestones) == (1e-4, False, (0.6, 0.8))


def test_a_preset_of_several_objectives_leaves_a_single_run_its_own():
    """Where a sweep has both, one run keeps its default."""
    assert "training" not in preset_fields(TrainConfig, "cifar10")
    assert isinstance(PRESETS["cifar10"]("o"), PipelineConfig)


def test_the_imagenet_preset_has_torchvisions_numbers():
    """From import to training: 256 and 224 pixels, parts of photographs, 90 epochs in steps of 30."""
    config, prepared = PRESETS["standard-imagenet"]("o"), preset_fields(PrepareConfig, "standard-imagenet")

    assert (prepared["image_size"], prepared["resize_size"]) == (224, 256)
    run = TrainConfig(out="o", dataset="d", **preset_fields(TrainConfig, "standard-imagenet"))
    assert (run.model, run.augment, run.batch_size, run.epochs) == ("resnet50-imagenet", "imagenet", 256, 90)
    assert (run.lr, run.momentum, run.nesterov, run.weight_decay) == (0.1, 0.9, False, 1e-4)
    plan = make_training_plan(run, total_steps=9000)
    rates = [
        learning_rate(step, base=plan.lr, kind=plan.schedule, total_steps=9000, warmup_steps=plan.warmup_steps,
                      milestones=plan.milestones)
        for step in (0, 2999, 3000, 5999, 6000)
    ]  # fmt: skip
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])
    assert config.prepare_config().resize_size == 256
