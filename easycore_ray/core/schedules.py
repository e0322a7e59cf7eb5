"""Learning rates as a function of the optimizer step.

Takes a step and gives its learning rate. Schedules count steps, never epochs, so that a small coreset and the full
set can be compared at equal steps under the same curve.
"""

import math
from collections.abc import Sequence

SCHEDULES = ("constant", "cosine", "multistep")


def learning_rate(
    step: int,
    *,
    total_steps: int,
    base: float,
    kind: str,
    warmup_steps: int = 0,
    milestones: Sequence[float] = (),
    final: float = 0.0,
) -> float:
    """The learning rate of optimizer step ``step``, counted from 0.

    Args:
        step: 0 .. total_steps; total_steps itself is the end of the curve, where cosine is ``final``.
        total_steps: optimizer steps of the whole run, at least 1.
        base: the highest learning rate.
        kind: one of SCHEDULES. "cosine" falls from base after the warm-up to ``final`` at total_steps; "multistep"
            multiplies by 0.1 at every milestone.
        warmup_steps: the first steps rise linearly to base, the last of them reaching it.
        milestones: for "multistep", shares of total_steps in (0, 1).
        final: for "cosine", the learning rate at the end, in 0 .. base.

    Raises:
        ValueError: an unknown kind, a step outside the run, or a milestone or warm-up that does not fit.
    """
    _check(step, total_steps, kind=kind, warmup_steps=warmup_steps, milestones=milestones)
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps
    if kind == "cosine":
        share = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
        return final + (base - final) * 0.5 * (1.0 + math.cos(math.pi * share))
    if kind == "multistep":
        passed = sum(step >= math.floor(milestone * total_steps + 0.5) for milestone in milestones)
        return base * 0.1**passed
    return base


def _check(step: int, total_steps: int, *, kind: str, warmup_steps: int, milestones: Sequence[float]) -> None:
    """Refuses a schedule that cannot be meant."""
    if kind not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {kind!r}")
    if total_steps < 1 or not 0 <= step <= total_steps:
        raise ValueError(f"step must be in 0 .. total_steps, got step {step} of {total_steps}")
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"warmup_steps must be in 0 .. total_steps ({total_steps}), got {warmup_steps}")
    if any(not 0 < milestone < 1 for milestone in milestones):
        raise ValueError(f"milestones are shares of the run in (0, 1), got {tuple(milestones)}")
