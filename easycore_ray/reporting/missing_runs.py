"""Training runs that a table has no results of: those that diverged, and those that a sweep stopped early."""

from collections.abc import Sequence

from easycore_ray.reporting.figures import Row, arm_name, grouped, objective, percent


def lost_runs(diverged: Sequence[Row]) -> list[str]:
    """Runs without results, a sentence each; ``diverged`` as in a sweep's ``summary.json``."""
    return [f"{_arm_text(row)}, seed {row['seed']}: {row['problem']}" for row in diverged]


def stopped_runs(stopped: Sequence[Row]) -> list[str]:
    """Runs that were stopped early, a sentence for each arm; ``stopped`` as in a sweep's ``summary.json``.

    ``TRADES, β = 6, random, 10 %: seed 0 at 11.1 % of its steps (validation 31.2 %), …``
    """
    return [
        f"{arm}: "
        + ", ".join(
            f"seed {row['seed']} at {row['share'] / 10:g} % of its steps (validation {100 * row['validation']:.1f} %)"
            for row in rows
        )
        for arm, rows in grouped(stopped, _arm_text).items()
    ]


def _arm_text(row: Row) -> str:
    return f"{objective(row)}, {arm_name(row)}, {percent(row['fraction'])}"
