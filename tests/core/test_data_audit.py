"""What scores say of the data: against plain loops, whatever the order of the rows."""

import numpy as np
import pytest

from easycore_ray.core.data_audit import class_shares, first_equals, places_of_hardest, separability
from easycore_ray.core.selection import choose, class_quotas

COUNT = 97


def draw_scores(seed):
    """Ids with gaps, scores with many ties and infinities, labels of three of five classes."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(-9, 9, COUNT) / 4
    scores[rng.integers(0, COUNT, 3)] = np.inf
    return rng.permutation(np.arange(COUNT) * 3 + 5), scores, rng.choice([0, 1, 4], COUNT, p=[0.6, 0.3, 0.1])


@pytest.mark.parametrize("count", [0, 1, 30, COUNT])
def test_the_hardest_come_first_and_ties_go_by_the_id(count):
    """Like a sort of all rows, in any order of the rows."""
    ids, scores, _ = draw_scores(0)
    expected = [pair[1] for pair in sorted(zip(-scores, ids, strict=True))][:count]

    assert ids[places_of_hardest(scores, ids, count)].tolist() == expected
    assert ids[::-1][places_of_hardest(scores[::-1], ids[::-1], count)].tolist() == expected


def test_scores_without_a_rank_are_refused():
    """By their ids; so are more samples than there are."""
    ids, scores, labels = draw_scores(0)
    scores[7] = np.nan
    for call in (lambda: places_of_hardest(scores, ids, 3), lambda: class_shares(scores, ids, labels, 5, 0.5)):
        with pytest.raises(ValueError, match=rf"1 of 97 scores are NaN \(first ids: \[{ids[7]}\]"):
            call()
    with pytest.raises(ValueError, match=r"count must be in 0 \.\. 97"):
        places_of_hardest(np.zeros(COUNT), ids, COUNT + 1)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_shares_of_classes_are_those_of_the_coresets(fraction):
    """Kept: what ``easiest`` keeps of each class; the quota: what it keeps balanced by class."""
    ids, scores, labels = draw_scores(1)
    found = class_shares(scores, ids, labels, 5, fraction)
    rows = {"sample_id": ids, "label": labels}
    of = dict(zip(ids.tolist(), labels.tolist(), strict=True))
    kept = choose("easiest", sample_ids=rows["sample_id"], labels=labels, scores=scores, fraction=fraction)

    assert found.sizes.tolist() == np.bincount(labels, minlength=5).tolist()
    assert found.kept.tolist() == np.bincount([of[one] for one in kept.tolist()], minlength=5).tolist()
    assert {label: quota for label, quota in enumerate(found.quotas.tolist()) if quota} == class_quotas(
        labels, len(kept)
    )


def test_starved_classes_are_named_most_starved_first():
    """Below the share, not at it; a class without a quota is none."""
    labels = np.repeat([0, 1, 2, 4], 8)
    hardness = np.concatenate([np.arange(8), 3.5 + np.arange(8), 100 + np.arange(8), 50 + np.arange(8)])
    found = class_shares(hardness, np.arange(32), labels, 5, 0.5)

    assert found.quotas.tolist() == [4, 4, 4, 0, 4]
    assert found.kept.tolist() == [8, 8, 0, 0, 0]
    assert np.isnan(found.ratios[3])
    assert found.starved(0.5).tolist() == [2, 4]
    some = class_shares(hardness, np.arange(32), labels, 5, 0.75)
    assert some.kept.tolist() == [8, 8, 0, 0, 8]
    assert some.starved(0.5).tolist() == [2]
    exact = class_shares(np.arange(8.0), np.arange(8), np.array([0, 0, 0, 1, 1, 1, 0, 1]), 2, 0.5)
    assert exact.ratios.tolist() == [1.5, 0.5]
    assert exact.starved(0.5).tolist() == []


def plain_eta(scores, labels):
    """η² of the ranks by its definition."""
    ranks = np.array([np.mean(np.flatnonzero(np.sort(scores) == score)) for score in scores])
    between = sum(
        np.sum(labels == label) * (ranks[labels == label].mean() - ranks.mean()) ** 2 for label in set(labels.tolist())
    )
    return between / np.sum((ranks - ranks.mean()) ** 2)


def test_separability_is_the_share_of_variance_between_classes():
    """By definition; blind to any rescaling that keeps the order; 0 where all are equal."""
    ids, scores, labels = draw_scores(2)
    scores = np.minimum(scores, 5.0)
    found = separability(scores, labels)

    assert found == pytest.approx(plain_eta(scores, labels), rel=1e-12)
    order = np.argsort(ids)
    assert separability(scores[order], labels[order]) == pytest.approx(found, rel=1e-12)
    assert separability(np.exp(3 * scores), labels) == found
    assert separability(np.zeros(COUNT), labels) == 0.0
    # One class after the other: what is left within them is a ninth of the whole.
    assert separability(np.arange(90.0), np.repeat([0, 1, 2], 30)) == pytest.approx(1 - (30**2 - 1) / (90**2 - 1))


def test_equal_rows_are_told_by_the_first_of_them():
    """Of numbers and of text; a row without an equal is by itself."""
    assert first_equals(np.array([7, 3, 7, 1, 3, 7])).tolist() == [0, 1, 0, -1, 1, 0]
    assert first_equals(np.array(["b", "a", "b"])).tolist() == [0, -1, 0]
    assert first_equals(np.array([], np.uint64)).tolist() == []
    keys = np.random.default_rng(3).integers(0, 40, COUNT)
    plain = [int(np.flatnonzero(keys == key)[0]) if np.sum(keys == key) > 1 else -1 for key in keys]
    assert first_equals(keys).tolist() == plain
