"""What the models of a comparison may cost, in words: equal epochs, steps or device-seconds."""

from collections.abc import Sequence

from easycore_ray.config.arms import DYNAMIC
from easycore_ray.reporting.figures import Row, grouped


def budget_text(rows: Sequence[Row]) -> str:
    """What the models of a comparison have in common: steps, or epochs and so the steps of a coreset's size."""
    by_training = grouped(rows, lambda row: row["training"]).values()
    equal = all(len({row["steps"] for row in members}) == 1 for members in by_training)
    charged = sorted({row["charged_steps"] for row in rows if row.get("charged_steps")})
    text = "budget: equal steps" if equal else "budget: equal epochs, a smaller coreset takes fewer steps"
    if rows and all("budget_device_seconds" in row for row in rows):
        text = f"budget: equal device-seconds: {rows[0]['budget_device_seconds']:g} s a model, {_step_budgets(rows)}"
    if dynamic := [name for name in DYNAMIC if any(row["method"] == name for row in rows)]:
        text += f"; {' and '.join(dynamic)}: all data, for the steps of a coreset"
    if charged:
        steps = " to ".join(f"{count:,}" for count in dict.fromkeys((charged[0], charged[-1])))
        text += f"; for scoring, {steps} steps are taken off a model that goes by scores"
    return text


def _step_budgets(rows: Sequence[Row]) -> str:
    """Steps of each objective, and the seconds that one was measured to take."""
    found = []
    for training, members in grouped(rows, lambda row: row["training"]).items():
        steps = max(row["steps"] + row.get("charged_steps", 0) for row in members)
        found.append(f"{steps:,} steps of {training} at {members[0]['seconds_per_step']:.3g} s")
    return ", ".join(found)
