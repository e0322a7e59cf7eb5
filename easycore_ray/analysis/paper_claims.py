"""What the paper claims of easy samples, tested: for each claim an outcome, and a sentence with the numbers behind it.

Takes what became of attacked samples and how scoring runs agree, as plain data; gives plain data. An attack can only
succeed, and a distance only be measured, where the model is right, so these are taken over the samples it classifies
right. Otherwise hard samples would count as vulnerable because they are misclassified.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from easycore_ray.analysis.score_agreement import ARCHITECTURE, EASIEST, SEED, Pair, Run
from easycore_ray.config.experiments import AnalyzeConfig
from easycore_ray.core.eps import format_eps
from easycore_ray.core.metrics import wilson_interval
from easycore_ray.core.score_stability import in_sample
from easycore_ray.core.selection import budget, lowest
from easycore_ray.core.trend_test import CONFIDENCE, DECILES, DOES_NOT_HOLD, HOLDS, INCONCLUSIVE, Trend, trend
from easycore_ray.reporting.inspect_text import count_text

MIX_TOLERANCE = 0.10
"""A class share in the easiest half within ± 10 % of that in the data counts as kept."""
_BOOTSTRAP_ROWS = 20_000
_MUST_STAY = 0.5  # of the agreement of two seeds beyond chance

CLAIMS = {
    "attack": "Easy samples are less vulnerable: the success of attacks rises with {score}",
    "distance": "Easy samples lie farther from the decision boundary: the distance falls with {score}",
    "classified": "Easy samples are classified right: clean accuracy falls with {score}",
    "learned": "Easy samples are learned sooner: the first epoch that gets them right rises with {score}",
    "agnostic": "{score} is a property of the data: other networks agree as much as other seeds",
    "mix": "The easiest half keeps the mix of classes (our own check, no claim of the paper)",
}


@dataclass(frozen=True)
class SampleGroup:
    """Attacked samples of one model that are reported together: all of them, or those it was (not) trained on."""

    model: str
    which: str
    """``all``, ``seen``, ``unseen``: in training; ``unknown``: not known which."""
    hard: NDArray[np.float64]
    """Score, turned so that higher is harder."""
    deciles: NDArray[np.int64]
    """1 (easiest) .. 10, of all scored samples."""
    correct: NDArray[np.bool_]
    """Classified right without an attack."""
    distance: NDArray[np.float64]
    """To the nearest misclassified point found: 0 where wrong already, inf where none was found."""

    @property
    def name(self) -> str:
        """How sentences call it."""
        words = {
            "all": "",
            "seen": ", samples it was trained on",
            "unseen": ", samples it was not trained on",
            "unknown": ", not known which samples it was trained on",
        }
        return self.model + words[self.which]

    def right(self) -> "SampleGroup":
        """Those of the samples that are classified right."""
        rows = self.correct
        columns = (self.hard[rows], self.deciles[rows], self.correct[rows], self.distance[rows])
        return SampleGroup(self.model, self.which, *columns)


@dataclass(frozen=True)
class Finding:
    """A claim tested on one group."""

    outcome: str
    sentence: str
    numbers: dict[str, Any]


def describe_group(group: SampleGroup, eps: Sequence[float]) -> dict[str, Any]:
    """Figures of every decile of a group that has samples, as JSON content.

    Args:
        group: attacked samples of one model.
        eps: budgets in [0, 1] pixel units.

    Returns:
        ``model, which, name, num_samples`` and ``deciles``: shares in [0, 1] with intervals, quartiles of the distance.
    """
    return {
        "model": group.model,
        "which": group.which,
        "name": group.name,
        "num_samples": len(group.hard),
        "deciles": [_decile(group, number, eps) for number in range(1, DECILES + 1) if (group.deciles == number).any()],
    }


def _decile(group: SampleGroup, number: int, eps: Sequence[float]) -> dict[str, Any]:
    mine = group.deciles == number
    right = mine & group.correct
    distance = group.distance[right]
    return {
        "decile": number,
        "num_samples": int(mine.sum()),
        "num_correct": int(right.sum()),
        "clean_accuracy": _share(group.correct[mine]),
        "distance_quartiles": [finite(value) for value in _quartiles(distance)],
        "attack_success": [{"eps": each, **(_share(distance <= each) or {})} for each in eps] if len(distance) else [],
        "robust_accuracy": [{"eps": each, **(_share(group.distance[mine] > each) or {})} for each in eps],
    }


def attack_finding(group: SampleGroup, eps: Sequence[float], seed: int) -> Finding:
    """Whether the success of attacks rises with hardness, at the eps where about half of them succeed.

    Args:
        group: attacked samples of one model; those it classifies right are used.
        eps: budgets in [0, 1] pixel units, at least one.
        seed: of the bootstrap.
    """
    right = group.right()
    success = {each: right.distance <= each for each in eps}
    trends = {each: trend(right.hard, success[each], right.deciles, seed=seed) for each in eps}
    middle_eps = min(eps, key=lambda each: abs(float(np.mean(success[each])) - 0.5)) if len(right.hard) else eps[0]
    easy, harder = _ends(success[middle_eps], right.deciles)
    what, found = f"attack success at {format_eps(middle_eps)}", trends[middle_eps]
    sentence = _change(what, _percent(easy), _percent(harder), right.deciles, found)
    numbers = {"eps": middle_eps, "by_eps": [{"eps": each, **_numbers(other)} for each, other in trends.items()]}
    return _finding(found, sentence, numbers)


def distance_finding(group: SampleGroup, norm: str, seed: int) -> Finding:
    """Whether the distance to the boundary falls with hardness."""
    right = group.right()
    found = trend(right.hard, right.distance, right.deciles, rises=False, seed=seed)
    easy, harder = _ends(right.distance, right.deciles, np.median)
    sentence = _change("median distance", _length(easy, norm), _length(harder, norm), right.deciles, found)
    return _finding(found, sentence, {"median_easiest": finite(easy), "median_hardest": finite(harder)})


def classified_finding(group: SampleGroup, seed: int) -> Finding:
    """Whether clean accuracy falls with hardness."""
    found = trend(group.hard, group.correct, group.deciles, rises=False, seed=seed)
    easy, harder = _ends(group.correct, group.deciles)
    sentence = _change("clean accuracy", _percent(easy), _percent(harder), group.deciles, found)
    return _finding(found, sentence, {"easiest": easy, "hardest": harder})


def learned_finding(run: Run, deciles: NDArray[np.int64], seed: int) -> Finding:
    """Whether the first epoch that has a sample right rises with hardness, over all N scored samples.

    Args:
        run: the scoring run.
        deciles: int64 (N,), 1 .. 10.
        seed: of the bootstrap.
    """
    if run.first_learned is None:
        sentence = "the scoring run did not record when samples were learned, or it was reduced without (--only)"
        return Finding(INCONCLUSIVE, sentence, {})
    chosen = in_sample(run.sample_ids, len(run.sample_ids), _BOOTSTRAP_ROWS)
    found = trend(run.hard[chosen], run.first_learned[chosen], deciles[chosen], seed=seed)
    easy, harder = _ends(run.first_learned, deciles, np.median)
    never = np.isinf(run.first_learned)
    sentence = (
        f"median first epoch goes from {_epoch(easy)} (easiest decile) to {_epoch(harder)} (hardest), never learned "
        f"{_percent(float(never[deciles == 1].mean()))} and {_percent(float(never[deciles == DECILES].mean()))}; "
        f"{_correlation(found)}"
    )
    return _finding(found, sentence, {"median_easiest": finite(easy), "median_hardest": finite(harder)})


def agnostic_finding(runs: Sequence[Run], pairs: Sequence[Pair]) -> Finding:
    """Whether runs of two networks share as much of the easiest half as runs that differ by the seed.

    Holds: the mean over pairs of networks is no lower than the mean over pairs of seeds less their spread (standard
    deviation, or the sampling error of the overlap where that is more), and at least half of what seeds agree on beyond
    chance is left: a spread that excuses less shows nothing. With one pair of seeds the spread is not known, so that a
    lower overlap may be noise, unless it is chance. Does not hold, too: even seeds do not agree beyond chance.
    """
    by_kind = {kind: [pair for pair in pairs if pair.differ == kind] for kind in (SEED, ARCHITECTURE)}
    lacking = [
        text
        for kind, text in ((SEED, "two runs that differ by the seed alone"), (ARCHITECTURE, "runs of two networks"))
        if not by_kind[kind]
    ]
    if lacking:
        return Finding(INCONCLUSIVE, f"needs {' and '.join(lacking)} in --scores", {})
    seeds, networks = (np.array([pair.overlap for pair in by_kind[kind]]) for kind in (SEED, ARCHITECTURE))
    k = budget(len(runs[0].sample_ids), EASIEST)
    yardstick, reached = float(seeds.mean()), float(networks.mean())
    sampling = math.sqrt(yardstick * (1 - yardstick) / k)
    spread = max(float(seeds.std(ddof=1)) if len(seeds) > 1 else 0.0, sampling)
    chance = EASIEST + 2 * math.sqrt(EASIEST * (1 - EASIEST) / k)
    kept = (reached - EASIEST) / (yardstick - EASIEST) if yardstick > chance else None
    ranks = {kind: _mean([pair.rank_correlation for pair in found]) for kind, found in by_kind.items()}
    sizes = {kind: count_text(len(found), "pair") for kind, found in by_kind.items()}
    sentence = (
        f"two networks share {_points(reached)} % of the easiest half ({sizes[ARCHITECTURE]}, rank correlation "
        f"{_number(ranks[ARCHITECTURE])}), two seeds {_points(yardstick)} ± {_points(spread)} % ({sizes[SEED]}, "
        f"{_number(ranks[SEED])}), chance 50 %"
    )
    if kept is not None:
        sentence += f": {_percent(kept)} of the agreement beyond chance is left"
    if kept is None:
        outcome, reason = DOES_NOT_HOLD, "not even seeds agree beyond chance"
    elif reached >= yardstick - spread and kept < _MUST_STAY:
        outcome, reason = INCONCLUSIVE, "seeds differ among themselves by as much; train longer, or add seeds"
    elif reached >= yardstick - spread:
        outcome, reason = HOLDS, "no less than seeds, within their spread"
    elif reached <= chance or len(seeds) > 1:
        outcome, reason = DOES_NOT_HOLD, "less than seeds by more than their spread"
    else:
        outcome, reason = INCONCLUSIVE, "one pair of seeds does not give their spread; add a third seed"
    numbers = {
        "overlap_architectures": reached,
        "overlap_seeds": yardstick,
        "spread_seeds": spread,
        "share_of_agreement_kept": kept,
        "rank_correlation_architectures": ranks[ARCHITECTURE],
        "rank_correlation_seeds": ranks[SEED],
    }
    return Finding(outcome, f"{sentence} ({reason})", numbers)


def class_mix(run: Run, num_classes: int) -> list[dict[str, Any]]:
    """For each class in the data: its samples, those in the easiest half, and their ratio to the share expected.

    ``interval``: 95 % of the ratio for all classes together (Bonferroni), if the half were drawn at random within
    the class, by the normal approximation.

    Args:
        run: the scoring run; labels int64 (N,), hardness float64 (N,).
        num_classes: of the dataset; classes without a sample are left out.
    """
    k = budget(len(run.labels), EASIEST)
    rows = np.searchsorted(run.sample_ids, lowest(run.hard, run.sample_ids, k))
    there = np.bincount(run.labels, minlength=num_classes)
    kept = np.bincount(run.labels[rows], minlength=num_classes)
    limit = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2 / max(int((there > 0).sum()), 1))
    found = []
    for label in np.flatnonzero(there).tolist():
        count, share = int(there[label]), k / len(run.labels)
        ratio = kept[label] / (count * share)
        error = math.sqrt(share * (1 - share) * count) / (count * share)
        found.append(
            {
                "label": label,
                "samples": count,
                "in_easiest_half": int(kept[label]),
                "ratio": float(ratio),
                "interval": [float(ratio - limit * error), float(ratio + limit * error)],
            }
        )
    return found


def mix_finding(mix: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> Finding:
    """Whether no class is in the easiest half more or less often than in the data by more than 10 %."""
    low, high = 1 - MIX_TOLERANCE, 1 + MIX_TOLERANCE
    least, most = (end(mix, key=lambda entry: entry["ratio"]) for end in (min, max))
    off = [entry for entry in mix if entry["interval"][1] < low or entry["interval"][0] > high]
    if off:
        outcome = DOES_NOT_HOLD
    elif all(low <= entry["interval"][0] and entry["interval"][1] <= high for entry in mix):
        outcome = HOLDS
    else:
        outcome = INCONCLUSIVE
    sentence = (
        f"from {least['ratio']:.2f} × its share in the data ({classes[least['label']]}) to {most['ratio']:.2f} × "
        f"({classes[most['label']]}); {len(off)} of {len(mix)} classes are off by more than {_percent(MIX_TOLERANCE)} "
        "beyond chance"
    )
    return Finding(outcome, sentence, {"least": least["ratio"], "most": most["ratio"], "classes_off": len(off)})


def joined(findings: Sequence[tuple[str, Finding]]) -> Finding:
    """One verdict from those of several groups, each with the name of its group.

    Holds if it holds in every group with a conclusive outcome; does not hold as soon as one group contradicts.
    """
    if not findings:
        return Finding(INCONCLUSIVE, "needs a model; pass --checkpoint", {})
    outcomes = {finding.outcome for _, finding in findings} - {INCONCLUSIVE}
    outcome = DOES_NOT_HOLD if DOES_NOT_HOLD in outcomes else HOLDS if outcomes else INCONCLUSIVE
    if len(findings) == 1:
        return findings[0][1]
    parts = [f"{name}: {finding.sentence} [{finding.outcome}]" for name, finding in findings]
    numbers = [{"group": name, "outcome": finding.outcome, **finding.numbers} for name, finding in findings]
    return Finding(outcome, "; ".join(parts), {"groups": numbers})


def verdicts(
    config: AnalyzeConfig,
    groups: Sequence[SampleGroup],
    runs: Sequence[Run],
    pairs: Sequence[Pair],
    deciles: NDArray[np.int64],
    classes: Sequence[str],
) -> list[dict[str, Any]]:
    """Every claim with its outcome: ``key, claim, outcome, sentence, numbers, parts`` (group, outcome, sentence each).

    Args:
        config: its score, eps, norm and seed.
        groups: attacked samples; may be empty.
        runs: scoring runs; the first orders the samples.
        pairs: the runs compared.
        deciles: int64 (N,), 1 .. 10, of the first run's samples.
        classes: names in label order.
    """
    eps, norm, seed = sorted(config.eval_eps), config.norm, config.seed
    findings_by_claim: dict[str, list[tuple[str, Finding]]] = {
        "attack": [(group.name, attack_finding(group, eps, seed)) for group in groups],
        "distance": [(group.name, distance_finding(group, norm, seed)) for group in groups],
        "classified": [(group.name, classified_finding(group, seed)) for group in groups],
        "learned": [(runs[0].name, learned_finding(runs[0], deciles, seed))],
        "agnostic": [("", agnostic_finding(runs, pairs))],
        "mix": [(runs[0].name, mix_finding(class_mix(runs[0], len(classes)), classes))],
    }
    name = "AIGN" if config.score == "aign" else config.score
    found = []
    for key, findings in findings_by_claim.items():
        whole = joined(findings)
        found.append(
            {
                "key": key,
                "claim": CLAIMS[key].format(score=name),
                "outcome": whole.outcome,
                "sentence": whole.sentence,
                "numbers": whole.numbers,
                "parts": [
                    {"group": group, "outcome": finding.outcome, "sentence": finding.sentence}
                    for group, finding in findings
                ],
            }
        )
    return found


def _finding(found: Trend, sentence: str, numbers: Mapping[str, Any]) -> Finding:
    """The trend as a finding; without numbers where it could not be computed."""
    if found.rank_correlation is None:
        return Finding(found.outcome, found.reason, {**_numbers(found)})
    reason = "" if found.outcome == HOLDS else f" ({found.reason})"
    return Finding(found.outcome, sentence + reason, {**numbers, **_numbers(found)})


def _numbers(found: Trend) -> dict[str, Any]:
    return {
        "num_samples": found.count,
        "rank_correlation": found.rank_correlation,
        "interval": None if found.interval is None else list(found.interval),
        "trend": found.outcome,
    }


def _correlation(found: Trend) -> str:
    if found.rank_correlation is None or found.interval is None:
        return ""
    low, high = found.interval
    return f"Spearman {found.rank_correlation:.2f} [{low:.2f}, {high:.2f}] over {found.count:,} samples"


def _ends(values: NDArray[Any], deciles: NDArray[np.int64], summary: Any = np.mean) -> tuple[float, float]:
    """Of the easiest and of the hardest decile there is; NaN where there is none."""
    if not len(deciles):
        return math.nan, math.nan
    easy, harder = (float(summary(values[deciles == number])) for number in (deciles.min(), deciles.max()))
    return easy, harder


def _change(what: str, easy: str, harder: str, deciles: NDArray[np.int64], found: Trend) -> str:
    """A sentence: how a figure changes from the easiest to the hardest decile there is, and the correlation."""
    names = {1: "easiest decile", DECILES: "hardest"}
    ends = (int(deciles.min()), int(deciles.max())) if len(deciles) else (1, DECILES)
    first, last = (names.get(end, f"decile {end}") for end in ends)
    return f"{what} goes from {easy} ({first}) to {harder} ({last}); {_correlation(found)}"


def _share(kept: NDArray[np.bool_]) -> dict[str, Any] | None:
    """A share with its 95 % Wilson interval; None of nothing."""
    if not len(kept):
        return None
    return {"share": float(kept.mean()), "interval": list(wilson_interval(int(kept.sum()), len(kept)))}


def _quartiles(values: NDArray[np.float64]) -> list[float]:
    """Order statistics, so that infinite values do no harm."""
    return np.quantile(values, (0.25, 0.5, 0.75), method="lower").tolist() if len(values) else []


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


def finite(value: float) -> float | None:
    """The number for JSON, which has no infinity: None instead."""
    return float(value) if math.isfinite(value) else None


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if math.isfinite(share) else "–"


def _points(share: float) -> str:
    return f"{100 * share:.1f}"


def _length(distance: float, norm: str) -> str:
    if not math.isfinite(distance):
        return "none found"
    return f"{255 * distance:.2f}/255" if norm == "linf" else f"{distance:.3g}"


def _epoch(epoch: float) -> str:
    return f"{epoch:g}" if math.isfinite(epoch) else "never"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
