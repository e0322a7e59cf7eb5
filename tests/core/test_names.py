"""Names that command lines offer without loading torch are those of the functions they stand for."""

import inspect
import re

import pytest

from easycore_ray.config.signatures import field_docs
from easycore_ray.config.stages import TrainConfig
from easycore_ray.core.attacks import ATTACKS
from easycore_ray.core.models import MODELS
from easycore_ray.core.names import (
    ATTACK_NAMES,
    DEFAULT_WIDTHS,
    FIXED_WIDTHS,
    MODEL_NAMES,
    is_timm_model,
    is_user_model,
)


def test_every_name_has_its_function_and_every_function_its_name():
    """Neither list can be forgotten when something is added."""
    assert list(MODELS) == list(MODEL_NAMES)
    assert list(ATTACKS) == list(ATTACK_NAMES)
    assert set(FIXED_WIDTHS) <= set(MODELS)


def test_widths_are_those_of_the_functions():
    """By their signatures; where a network comes in one width, it is that one."""
    assert {name: inspect.signature(make).parameters["width"].default for name, make in MODELS.items()} == (
        DEFAULT_WIDTHS
    )
    assert DEFAULT_WIDTHS | FIXED_WIDTHS == DEFAULT_WIDTHS


def test_every_network_is_named_in_the_help():
    """The option shows no list of its own."""
    text = field_docs(TrainConfig)["model"]
    assert all(re.search(rf"(?<![\w-]){name}(?![\w-])", text) for name in MODEL_NAMES)


@pytest.mark.parametrize(
    ("name", "timm", "user"),
    [
        ("timm:resnet18", True, False),
        ("timm:resnet18.a1_in1k", False, False),  # a tag names pretrained weights, which are not loaded
        ("timm:", False, False),
        ("timm.models:resnet18", False, True),
        ("timms:resnet18", False, True),
        ("resnet18", False, False),
    ],
)
def test_a_name_is_timms_or_a_users_or_neither(name, timm, user):
    """By how it is written alone."""
    assert (is_timm_model(name), is_user_model(name)) == (timm, user)
