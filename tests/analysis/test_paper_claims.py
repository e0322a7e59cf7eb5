"""Verdicts: planted data for which each claim must hold, must not hold, or is inconclusive; and what sentences say."""

import json

import numpy as np
import pytest

from easycore_ray.analysis.paper_claims import (
    CLAIMS,
    SampleGroup,
    agnostic_finding,
    attack_finding,
    class_mix,
    classified_finding,
    describe_group,
    distance_finding,
    joined,
    learned_finding,
    mix_finding,
    verdicts,
)
from easycore_ray.analysis.score_agreement import Pair, Run
from easycore_ray.config.experiments import AnalyzeConfig
from easycore_ray.core.trend_test import DOES_NOT_HOLD, HOLDS, INCONCLUSIVE, deciles
from easycore_ray.storage.artifact import Artifact

pytestmark = pytest.mark.slow

EPS = (0.5 / 255, 1 / 255, 2 / 255)
COUNT = 1000
IDS = np.arange(COUNT)


def rng(seed=0):
    return np.random.default_rng(seed)


def hardness(count=COUNT):
    return rng(0).gamma(2.0, 1.0, count)


def group(distance, correct=None, which="all", model="net", hard=None):
    hard = hardness(len(distance)) if hard is None else hard
    correct = np.ones(len(distance), bool) if correct is None else correct
    return SampleGroup(
        model, which, hard, deciles(hard, np.arange(len(hard))), correct, np.where(correct, distance, 0.0)
    )


def near_where_hard():
    """Distances that fall with hardness, around 1/255."""
    return 1 / 255 * 3 / (1 + hardness()) * rng(1).uniform(0.5, 1.5, COUNT)


def run(hard=None, labels=None, learned=None, network="net-1", seed=0, ids=None):
    hard = hardness() if hard is None else hard
    return Run(
        name=f"{network}, seed {seed}",
        hardness=Artifact("/nowhere", {"fingerprint": f"{network} {seed}"}),
        network=network,
        seed=seed,
        recipe={},
        sample_ids=np.arange(len(hard)) if ids is None else ids,
        labels=np.arange(len(hard)) % 5 if labels is None else labels,
        scores=hard,
        hard=hard,
        first_learned=learned,
    )


def pairs(seeds, networks):
    values = [("seed", value) for value in seeds] + [("architecture", value) for value in networks]
    return [Pair(0, number, kind, 0.5, value) for number, (kind, value) in enumerate(values, start=1)]


# ---------------------------------------------------------------- each claim, each outcome


def test_attack_and_distance_hold_where_they_were_planted():
    """Distances that fall with hardness: both claims hold; the sentence has both ends, the eps and the interval."""
    found = attack_finding(group(near_where_hard()), EPS, 0)
    assert found.outcome == HOLDS
    success = near_where_hard() <= found.numbers["eps"]
    decile = deciles(hardness(), IDS)
    low, high = (round(100 * success[decile == number].mean()) for number in (1, 10))
    assert f"goes from {low} % (easiest decile) to {high} % (hardest); Spearman 0." in found.sentence
    assert [entry["eps"] for entry in found.numbers["by_eps"]] == list(EPS)

    found = distance_finding(group(near_where_hard()), "linf", 0)
    assert found.outcome == HOLDS
    assert found.numbers["interval"][1] < 0
    assert "/255 (easiest decile) to" in found.sentence


def test_attack_and_distance_do_not_hold_where_hardness_says_nothing_or_the_opposite():
    """Shuffled distances, and distances that rise."""
    for distance in (rng(3).permutation(near_where_hard()), 1 / 255 * hardness() / 2):
        assert attack_finding(group(distance), EPS, 0).outcome == DOES_NOT_HOLD
        assert distance_finding(group(distance), "linf", 0).outcome == DOES_NOT_HOLD


def test_the_eps_that_tells_most_is_judged():
    """Not one at which all or no attacks succeed; where all do so, it is inconclusive."""
    distance = near_where_hard()
    found = attack_finding(group(distance), (1e-6, float(np.median(distance)), 0.5), 0)
    assert found.numbers["eps"] == float(np.median(distance))

    found = attack_finding(group(distance), (0.5,), 0)
    assert found.outcome == INCONCLUSIVE
    assert found.sentence == "it is the same for all samples"


def test_what_is_misclassified_already_counts_for_no_attack():
    """Hard samples wrong by construction, distances unrelated: accuracy falls with hardness, vulnerability does not."""
    decile = deciles(hardness(), IDS)
    correct = rng(5).random(COUNT) > 0.05 * decile
    mine = group(rng(6).uniform(0, 2 / 255, COUNT), correct)

    assert classified_finding(mine, 0).outcome == HOLDS
    assert attack_finding(mine, EPS, 0).outcome == DOES_NOT_HOLD
    assert distance_finding(mine, "linf", 0).outcome == DOES_NOT_HOLD


def test_clean_accuracy_that_does_not_fall_does_not_hold():
    """Errors spread evenly; and a model that makes none cannot tell."""
    evenly = np.argsort(np.argsort(hardness())) % 10 < 7
    found = classified_finding(group(near_where_hard(), evenly), 0)
    assert found.outcome == DOES_NOT_HOLD

    found = classified_finding(group(near_where_hard()), 0)
    assert (found.outcome, found.sentence) == (INCONCLUSIVE, "it is the same for all samples")


def test_samples_learned_later_where_hard():
    """Planted, shuffled, and not recorded."""
    decile = deciles(hardness(), IDS)
    learned = np.where(rng(1).random(COUNT) < 0.01 * decile, np.inf, 1.0 + rng(2).poisson(0.2 * decile))

    found = learned_finding(run(learned=learned), decile, 0)
    assert found.outcome == HOLDS
    assert "never learned" in found.sentence
    assert learned_finding(run(learned=rng(3).permutation(learned)), decile, 0).outcome == DOES_NOT_HOLD
    assert learned_finding(run(), decile, 0).outcome == INCONCLUSIVE


@pytest.mark.parametrize(
    ("seeds", "networks", "outcome", "words"),
    [
        ([0.86, 0.84, 0.85], [0.845, 0.86], HOLDS, "no less than seeds"),
        ([0.86, 0.84, 0.85], [0.70, 0.72], DOES_NOT_HOLD, "less than seeds by more"),
        ([0.85], [0.70], INCONCLUSIVE, "add a third seed"),
        ([0.80, 0.59], [0.58], INCONCLUSIVE, "seeds differ among themselves"),
        ([0.85], [0.86], HOLDS, "no less than seeds"),
        ([0.85], [0.51], DOES_NOT_HOLD, "less than seeds by more"),
        ([0.51, 0.50, 0.51], [0.51], DOES_NOT_HOLD, "not even seeds agree"),
        ([], [0.85], INCONCLUSIVE, "two runs that differ by the seed alone"),
        ([0.85], [], INCONCLUSIVE, "runs of two networks"),
    ],
)
def test_networks_are_measured_by_seeds(seeds, networks, outcome, words):
    """As good as seeds within their spread, worse, or without a yardstick."""
    found = agnostic_finding([run()], pairs(seeds, networks))
    assert found.outcome == outcome
    assert words in found.sentence


def test_the_share_of_agreement_left_is_counted_from_chance():
    """0.70 of 0.85 is 20 of 35 points beyond 0.5."""
    found = agnostic_finding([run()], pairs([0.86, 0.84], [0.70]))
    assert found.numbers["share_of_agreement_kept"] == pytest.approx(20 / 35)
    assert "57 % of the agreement beyond chance is left" in found.sentence


def test_class_mix_of_a_fair_and_of_a_skewed_half():
    """Drawn without looking at classes: kept, or too few to tell; one class easier than the others: skewed."""
    classes = list("abcde")
    many = run(rng(1).random(50_000))
    assert mix_finding(class_mix(many, 5), classes).outcome == HOLDS

    few = run(rng(1).random(200))
    assert mix_finding(class_mix(few, 5), classes).outcome == INCONCLUSIVE

    skewed = run(rng(1).random(COUNT) + 0.4 * (IDS % 5 == 3))
    found = mix_finding(class_mix(skewed, 5), classes)
    assert found.outcome == DOES_NOT_HOLD
    assert "(d)" in found.sentence.split(" to ")[0], "d is what the easiest half lacks"
    assert sum(entry["in_easiest_half"] for entry in class_mix(skewed, 5)) == COUNT // 2


# ---------------------------------------------------------------- together


def test_a_claim_holds_only_if_no_group_contradicts():
    """Groups that cannot tell do not count, a contradiction does, and every group is named."""
    good = attack_finding(group(near_where_hard()), EPS, 0)
    bad = attack_finding(group(rng(3).permutation(near_where_hard())), EPS, 0)
    dumb = attack_finding(group(near_where_hard()), (0.5,), 0)

    assert joined([("a", good), ("b", dumb)]).outcome == HOLDS
    assert joined([("a", dumb), ("b", dumb)]).outcome == INCONCLUSIVE
    found = joined([("a", good), ("b", bad), ("c", dumb)])
    assert found.outcome == DOES_NOT_HOLD
    assert "a: attack success" in found.sentence
    assert "[holds]; b: " in found.sentence
    assert joined([]).sentence == "needs a model; pass --checkpoint"


def test_every_claim_has_a_verdict_with_and_without_a_model():
    """JSON content without infinities or NaN, also where a whole decile was never fooled."""
    distance = np.where(deciles(hardness(), IDS) == 1, np.inf, near_where_hard())
    decile = deciles(hardness(), IDS)
    config = AnalyzeConfig(scores=("run",), out="out", eval_eps=tuple(EPS))
    groups = [group(distance), group(near_where_hard(), which="seen", model="other")]
    for some in (groups, []):
        found = verdicts(config, some, [run()], [], decile, list("abcde"))
        assert [entry["key"] for entry in found] == list(CLAIMS)
        json.dumps(found, allow_nan=False)
        json.dumps([describe_group(each, EPS) for each in some], allow_nan=False)
    assert "AIGN" in found[0]["claim"]
    assert found[0]["outcome"] == INCONCLUSIVE


def test_a_group_is_reported_by_decile():
    """Counts, clean accuracy, success among the right ones, robust accuracy among all."""
    correct = np.arange(COUNT) % 4 > 0
    found = describe_group(group(near_where_hard(), correct), EPS)
    entry = found["deciles"][3]
    mine = deciles(hardness(), IDS) == 4
    success = (near_where_hard() <= EPS[1])[mine & correct]

    assert [row["num_samples"] for row in found["deciles"]] == [100] * 10
    assert entry["num_correct"] == (mine & correct).sum()
    assert entry["clean_accuracy"]["share"] == pytest.approx(correct[mine].mean())
    assert entry["attack_success"][1]["share"] == pytest.approx(success.mean())
    low, high = entry["attack_success"][1]["interval"]
    assert low < success.mean() < high
    robust = (np.where(correct, near_where_hard(), 0)[mine] > EPS[1]).mean()
    assert entry["robust_accuracy"][1]["share"] == pytest.approx(robust)
