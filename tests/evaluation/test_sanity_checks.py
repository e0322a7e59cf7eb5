"""Signs of overestimated robustness: each is found, and sound figures raise none."""

import pytest

from easycore_ray.evaluation.sanity_checks import suspicious


def row(attack, eps, accuracy):
    return {"attack": attack, "eps": eps, "accuracy": accuracy}


SOUND = [row("pgd20", 0.1, 0.6), row("autoattack", 0.1, 0.55), row("pgd20", 0.2, 0.3), row("autoattack", 0.2, 0.28)]


def test_sound_figures_raise_nothing():
    """Falling with eps, AutoAttack lowest, nothing left at a large eps."""
    assert suspicious(SOUND, 0.9, 1000, (2, 100)) == []
    assert suspicious([], 0.9, 1000) == []


@pytest.mark.parametrize(
    ("rows", "clean", "large_eps", "words"),
    [
        ([row("pgd20", 0.1, 0.5), row("autoattack", 0.1, 0.6)], 0.9, None, "stronger attack"),
        ([row("pgd20", 0.1, 0.5)], 0.4, None, "more than the clean"),
        ([row("fgsm", 0.2, 0.5), row("fgsm", 0.1, 0.4)], 0.9, None, "more room"),
        (SOUND, 0.9, (11, 100), "masked"),
    ],
)
def test_each_sign_is_found_alone(rows, clean, large_eps, words):
    """One sentence, about the sign that is there."""
    (found,) = suspicious(rows, clean, 1000, large_eps)

    assert words in found


def test_chance_raises_nothing():
    """Less than two standard errors of the difference (here 0.045) is no sign, more is one."""
    rows = [row("pgd20", 0.1, 0.5), row("autoattack", 0.1, 0.54)]
    assert suspicious(rows, 0.9, 1000) == []

    rows[1]["accuracy"] = 0.55
    assert len(suspicious(rows, 0.9, 1000)) == 1
