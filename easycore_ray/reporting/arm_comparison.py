"""Every arm of a study's budget against rs2 and random, and what a model costs: the numbers.

Takes the records of single trials. Arms are compared within a seed, on the same images, after the last epoch; p-values
are those of paired t-tests, corrected for the number of arms of a budget. Only budgets with rs2 among their arms are
compared: in training it costs what a coreset costs, and nothing before.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from easycore_ray.config.arms import Arm
from easycore_ray.core.eps import format_eps
from easycore_ray.core.paired_differences import (
    CONFIDENCE_LEVEL,
    PairedDifference,
    holm_adjusted,
    paired_difference,
)
from easycore_ray.reporting.figures import ATTACK_TITLES, arm_name, grouped, objective, percent, split_full

Record = Mapping[str, Any]

REFERENCES = ("rs2", "random")
"""What every arm is compared with."""
# Below this, in [0, 1], full data have no robust accuracy left that would tell arms apart.
_ALIVE = 0.1


@dataclass(frozen=True)
class Lead:
    """How far an arm is ahead of another, over seeds."""

    difference: PairedDifference
    """In points of accuracy."""
    p_value: float
    """Corrected for the number of arms."""

    @property
    def is_known(self) -> bool:
        """Whether it is beyond chance, in either direction."""
        return self.p_value <= 1 - CONFIDENCE_LEVEL


@dataclass(frozen=True)
class ArmResult:
    """An arm over its seeds: means."""

    arm: str
    seeds: tuple[int, ...]
    accuracy: float
    """Robust, in per cent."""
    std: float | None
    """Of the same, over seeds; None for a single seed."""
    clean_accuracy: float
    """In per cent."""
    steps: int
    training_seconds: float
    """Device-seconds of one model."""
    scoring_seconds: float
    """Device-seconds of one model's share in the scoring runs of its seeds; 0 where it goes by no scores."""
    leads: Mapping[str, Lead]
    """Against each of ``REFERENCES`` that there is, but for itself."""

    @property
    def seconds(self) -> float:
        """What a model costs, scoring counted."""
        return self.training_seconds + self.scoring_seconds


@dataclass(frozen=True)
class BudgetComparison:
    """The arms of one objective and size."""

    objective: str
    fraction: float
    attack: str
    eps: float
    """In [0, 1] pixel units."""
    num_images: int
    arms: tuple[ArmResult, ...]
    """The most robust first."""
    full: ArmResult | None
    """All data for all steps; None where they have not been attacked so."""
    not_attacked: tuple[str, ...]
    """Arms that have models, but no result under this attack."""
    num_scored: int
    """The most models of a seed, of any budget, that share its scoring run."""

    @property
    def title(self) -> str:
        """What is compared."""
        return f"{self.objective}, {percent(self.fraction)} of the steps"

    @property
    def attack_text(self) -> str:
        """Under what."""
        return f"{ATTACK_TITLES[self.attack]} at ε = {format_eps(self.eps)}"


def compare_budgets(records: Sequence[Record], scoring: Mapping[str, Mapping[str, Any]]) -> list[BudgetComparison]:
    """The comparisons that the records of a study allow, by objective, the largest budget first.

    AutoAttack's accuracy is compared as soon as rs2 and another arm have it: of several sets of images that of the most
    models. Else that under PGD-20, at the largest eps that leaves all data a tenth of robust accuracy.

    Args:
        records: of single trials, as in a study's results.
        scoring: what the scoring run of each seed cost, by seed.
    """
    sharing = _sharing_models(records)
    found = []
    for members in grouped(records, objective).values():
        full, others = split_full(members)
        for fraction in sorted({record["fraction"] for record in others}, reverse=True):
            mine = [record for record in others if record["fraction"] == fraction]
            # Records of release 0.1.0, which had no rs2, lack what is read of the others.
            chosen = _choose_attack(mine, full) if any(record["method"] == "rs2" for record in mine) else None
            if chosen is not None:
                found.append(_compare(mine, full, chosen, scoring, sharing))
    return found


def _sharing_models(records: Sequence[Record]) -> dict[int, int]:
    """How many models of each seed go by its scores, whatever they were attacked with."""
    models = {
        (*_identity(record), record["training"], record["beta"], record["fraction"], record["seed"])
        for record in records
        if _uses_scores(record)
    }
    seeds = [model[-1] for model in models]
    return {seed: seeds.count(seed) for seed in set(seeds)}


def _identity(record: Record) -> tuple[Any, ...]:
    return record["method"], record["score"], record["balance"]


def _uses_scores(record: Record) -> bool:
    return Arm(*_identity(record)).needs_score


def _accuracies(records: Sequence[Record], attack: str, eps: float, num_images: int) -> list[tuple[Record, float]]:
    """Records that have an accuracy under this attack, and it, in [0, 1]."""
    return [
        (record, entry["accuracy"])
        for record in records
        if record["num_eval_samples"] == num_images and (_is_plain(record) or attack == "autoattack")
        for entry in record["robust"]
        if (entry["attack"], entry["eps"]) == (attack, eps)
    ]


def _is_plain(record: Record) -> bool:
    return all(entry["attack"] == "pgd20" for entry in record["robust"])


def _choose_attack(records: Sequence[Record], full: Sequence[Record]) -> tuple[str, float, int] | None:
    """Attack, eps and number of images that the arms of a budget are compared by; None without rs2 and another arm."""
    sets = [
        (entry["attack"], entry["eps"], record["num_eval_samples"])
        for record in records
        for entry in record["robust"]
        if entry["attack"] == "autoattack" or _is_plain(record)
    ]
    usable = []
    for chosen in dict.fromkeys(sets):
        arms = {arm_name(record) for record, _ in _accuracies(records, *chosen)}
        if "rs2" in arms and len(arms) > 1:
            usable.append(chosen)
    attacked = [chosen for chosen in usable if chosen[0] == "autoattack"]
    if attacked:
        return max(attacked, key=lambda chosen: (sets.count(chosen), chosen[2]))
    alive = [chosen for chosen in usable if _mean_accuracy(full, chosen) >= _ALIVE]
    return (
        max(alive, key=lambda chosen: chosen[1]) if alive else min(usable, key=lambda chosen: chosen[1], default=None)
    )


def _mean_accuracy(records: Sequence[Record], chosen: tuple[str, float, int]) -> float:
    values = [accuracy for _, accuracy in _accuracies(records, *chosen)]
    return statistics.fmean(values) if values else 0.0


def _compare(
    records: Sequence[Record],
    full: Sequence[Record],
    chosen: tuple[str, float, int],
    scoring: Mapping[str, Mapping[str, Any]],
    sharing: Mapping[int, int],
) -> BudgetComparison:
    # Of a model's records the one without AutoAttack, which is usually of more images, counts.
    ordered = sorted((*records, *full), key=_is_plain)
    cleans = {(arm_name(record), record["seed"]): record["clean_accuracy"] for record in ordered}
    by_arm = grouped(_accuracies(records, *chosen), lambda pair: arm_name(pair[0]))
    leads = _leads({arm: {record["seed"]: value for record, value in mine} for arm, mine in by_arm.items()})

    def result(arm: str, mine: Sequence[tuple[Record, float]]) -> ArmResult:
        attacked = [record for record, _ in mine]
        values = [100.0 * value for _, value in mine]
        clean = [cleans[arm, record["seed"]] for record in attacked]
        shares = [_share(record, scoring, sharing) for record in attacked]
        return ArmResult(
            arm=arm,
            seeds=tuple(sorted(record["seed"] for record in attacked)),
            accuracy=statistics.fmean(values),
            std=statistics.stdev(values) if len(values) > 1 else None,
            clean_accuracy=100 * statistics.fmean(clean),
            steps=attacked[0]["steps"],
            training_seconds=statistics.fmean(record["training_seconds"] for record in attacked),
            scoring_seconds=statistics.fmean(shares),
            leads=leads.get(arm, {}),
        )

    arms = [result(arm, mine) for arm, mine in by_arm.items()]
    whole = _accuracies(full, *chosen)
    return BudgetComparison(
        objective=objective(records[0]),
        fraction=records[0]["fraction"],
        attack=chosen[0],
        eps=chosen[1],
        num_images=chosen[2],
        arms=tuple(sorted(arms, key=lambda each: -each.accuracy)),
        full=result("full", whole) if whole else None,
        not_attacked=tuple(arm for arm in dict.fromkeys(map(arm_name, records)) if arm not in by_arm),
        num_scored=max(sharing.values(), default=0),
    )


def _share(record: Record, scoring: Mapping[str, Mapping[str, Any]], sharing: Mapping[int, int]) -> float:
    """A model's part of the scoring run of its seed, in device-seconds, as ``--count-scoring`` of sweeps divides it."""
    seed = record["seed"]
    return scoring[str(seed)]["device_seconds"] / sharing[seed] if _uses_scores(record) else 0.0


def _leads(values: Mapping[str, Mapping[int, float]]) -> dict[str, dict[str, Lead]]:
    """By arm and reference; ``values``: accuracies in [0, 1] by arm and seed."""
    found: dict[str, dict[str, Lead]] = {}
    for reference in REFERENCES:
        theirs = values.get(reference, {})
        differences = {}
        for arm, mine in values.items():
            points = [100 * (mine[seed] - theirs[seed]) for seed in sorted(mine) if seed in theirs]
            if arm != reference and points:
                differences[arm] = paired_difference(points)
        p_values = holm_adjusted([difference.p_value for difference in differences.values()])
        for (arm, difference), p_value in zip(differences.items(), p_values, strict=True):
            found.setdefault(arm, {})[reference] = Lead(difference, p_value)
    return found


def recommended_arm(comparison: BudgetComparison) -> str | None:
    """The arm to take: of those whose lead over rs2 is beyond chance the one of the largest, rs2 if there is none.

    None where a single seed tells nothing of chance.
    """
    leads = {each.arm: each.leads["rs2"] for each in comparison.arms if "rs2" in each.leads}
    better = [arm for arm, lead in leads.items() if lead.is_known and lead.difference.mean > 0]
    if better:
        return max(better, key=lambda arm: leads[arm].difference.mean)
    return "rs2" if any(lead.difference.count > 1 for lead in leads.values()) else None
