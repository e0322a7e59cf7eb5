"""Names that command lines offer without loading torch are those of the functions they stand for."""

import inspect

from easycore_ray.core.attacks import ATTACKS
from easycore_ray.core.models import MODELS
from easycore_ray.core.names import ATTACK_NAMES, DEFAULT_WIDTHS, FIXED_WIDTHS, MODEL_NAMES


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
