"""Sanity checks: signs of overestimated robustness in the figures of an evaluation.

Takes the accuracies of an evaluation and gives one sentence for each sign. Signs are stored and reported loudly,
since a sign is a reason to look, not a proof. ``evaluate`` warns, its job ends with exit code 1, and tables mark the
rows. The checks follow Carlini et al. 2019, "On evaluating adversarial robustness".
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from easycore_ray.core.eps import format_eps

STANDARD_ERRORS = 2.0
LARGE_EPS = 0.5  # linf: every image can become plain gray
LARGE_EPS_IMAGES = 100
NEAR_ZERO = 0.1

_NO_GRADIENT = (
    "the logits carry no gradient to the pixels (detached, or classes instead of logits?): attacks by gradient got "
    "zeros, so what they leave is no measure of robustness"
)


class SuspiciousEvaluation(UserWarning):
    """An evaluation whose figures should not be believed as they are; its result is written all the same."""


def verdict(signs: Sequence[str], where: str) -> str:
    """One line about an evaluation with signs of overestimated robustness: what, why, where, what to do."""
    return (
        f"this evaluation is suspicious: {'; '.join(signs)}; its results are kept in {where}, do not quote them before "
        "you know why (docs/evaluation.md)"
    )


def suspicious(
    robust: Sequence[Mapping[str, Any]],
    clean: float,
    num_samples: int,
    large_eps: tuple[int, int] | None = None,
    *,
    no_gradient: bool = False,
) -> list[str]:
    """What in these figures cannot be, or should not be, of a sound evaluation.

    Args:
        robust: entries with ``attack, eps, accuracy``.
        clean: accuracy without an attack.
        num_samples: images each accuracy is of.
        large_eps: images still correct under PGD at ``LARGE_EPS``, and images attacked, where that was tried.
        no_gradient: whether the logits carry no gradient to the pixels.

    Returns:
        One sentence for each sign; empty if there is none.
    """
    return [
        *([_NO_GRADIENT] if no_gradient else []),
        *_above_clean(robust, clean),
        *_autoattack_beaten(robust, num_samples),
        *_rising(robust, num_samples),
        *_large_eps(large_eps),
    ]


def _above_clean(robust: Sequence[Mapping[str, Any]], clean: float) -> list[str]:
    return [
        f"{_describe_attack(row)} leaves {_percent(row['accuracy'])}, more than the clean {_percent(clean)}"
        for row in robust
        if row["accuracy"] > clean
    ]


def _autoattack_beaten(robust: Sequence[Mapping[str, Any]], num_samples: int) -> list[str]:
    strongest = {row["eps"]: row["accuracy"] for row in robust if row["attack"] == "autoattack"}
    return [
        f"{_describe_attack(row)} leaves {_percent(row['accuracy'])}, autoattack {_percent(strongest[row['eps']])}: "
        "the stronger attack should leave less; its gradients may be masked"
        for row in robust
        if row["attack"] in ("fgsm", "pgd20")
        and row["eps"] in strongest
        and _higher(strongest[row["eps"]], row["accuracy"], num_samples)
    ]


def _rising(robust: Sequence[Mapping[str, Any]], num_samples: int) -> list[str]:
    found = []
    for attack in dict.fromkeys(row["attack"] for row in robust):
        rows = sorted((row for row in robust if row["attack"] == attack), key=lambda row: row["eps"])
        for index, row in enumerate(rows):
            least = min(rows[:index], key=lambda other: other["accuracy"], default=row)
            if _higher(row["accuracy"], least["accuracy"], num_samples):
                found.append(
                    f"{attack} leaves {_percent(row['accuracy'])} at eps {format_eps(row['eps'])}, but "
                    f"{_percent(least['accuracy'])} at the smaller {format_eps(least['eps'])}: more room should help it"
                )
    return found


def _large_eps(large_eps: tuple[int, int] | None) -> list[str]:
    if large_eps is None or large_eps[1] == 0 or large_eps[0] / large_eps[1] <= NEAR_ZERO:
        return []
    kept, attacked = large_eps
    return [
        f"pgd20 at linf eps {LARGE_EPS:g} leaves {kept} of {attacked} images correct, where nearly none can be: "
        "the gradients are masked, or the model gives one answer to everything"
    ]


def _higher(one: float, other: float, num_samples: int) -> bool:
    """True if ``one`` is above ``other`` by more than STANDARD_ERRORS of their difference, taken as independent."""
    variance = (one * (1 - one) + other * (1 - other)) / num_samples
    return one - other > STANDARD_ERRORS * math.sqrt(variance)


def _describe_attack(row: Mapping[str, Any]) -> str:
    return f"{row['attack']} at eps {format_eps(row['eps'])}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
