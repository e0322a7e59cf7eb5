"""Names that command lines offer without loading torch are those of the functions they stand for."""

from easycore_ray.core.attacks import ATTACKS
from easycore_ray.core.models import MODELS
from easycore_ray.core.names import ATTACK_NAMES, FIXED_WIDTHS, MODEL_NAMES


def test_every_name_has_its_function_and_every_function_its_name():
    """Neither list can be forgotten when something is added."""
    assert list(MODELS) == list(MODEL_NAMES)
    assert list(ATTACKS) == list(ATTACK_NAMES)
    assert set(FIXED_WIDTHS) <= set(MODELS)
