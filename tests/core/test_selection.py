"""Selection: exact counts, ties by id, quotas, and one contract for every method."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from easycore_ray.core import selection_methods
from easycore_ray.core.feature_selection import Features
from easycore_ray.core.selection import METHODS, budget, choose, class_quotas, lowest, ranking_method, selection_method

FRACTIONS = {name: 1.0 if name == "full" else 0.3 for name in METHODS}


def population(n=101, seed=0):
    """Ids with gaps in random order, three unequal classes, scores with many ties."""
    rng = np.random.default_rng(seed)
    return {
        "sample_ids": rng.permutation(np.arange(n) * 3 + 5),
        "labels": rng.choice([0, 1, 4], n, p=[0.6, 0.3, 0.1]),
        "scores": rng.integers(0, 12, n) / 4,
    }


def also(name, n=101, seed=0):
    """The second score of methods that read two, and features of those that go by them."""
    rng, found = np.random.default_rng(seed), {}
    if METHODS[name].second_score:
        found["second"] = rng.random(n)
    if METHODS[name].needs_features:
        found["features"] = Features(*(rng.random((n, 5)).astype(np.float32) for _ in range(2)))
    return found


# ---------------------------------------------------------------- every method


@pytest.mark.parametrize("balance", ["none", "class"])
@pytest.mark.parametrize("name", sorted(METHODS))
class TestEveryMethod:
    """What holds for each registered method, with and without class balance."""

    def choose(self, name, balance, rows, **options):
        """The method's choice from these rows."""
        return choose(name, fraction=FRACTIONS[name], balance=balance, **(rows | also(name) | options))

    @pytest.mark.parametrize("n", [1, 2, 10, 101])
    def test_keeps_exactly_the_budget(self, name, balance, n):
        """The choice is k different ids of the population, sorted, int64."""
        rows = population(n) | also(name, n)
        fraction = max(FRACTIONS[name], 0.5 / n)
        ids = choose(name, fraction=fraction, balance=balance, **rows)
        assert ids.dtype == np.int64
        assert len(ids) == budget(n, fraction)
        assert (np.diff(ids) > 0).all()
        assert np.isin(ids, rows["sample_ids"]).all()

    def test_fraction_one_keeps_everything(self, name, balance):
        """The whole population is the largest coreset of every method that is free to take it."""
        rows = population()
        options = {"band": (0.0, 1.0)} if "band" in METHODS[name].options else {}
        ids = choose(name, fraction=1.0, balance=balance, **options, **rows, **also(name))
        assert np.array_equal(ids, np.sort(rows["sample_ids"]))

    @pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, float("nan"), 1e-6])
    def test_impossible_fractions_are_refused(self, name, balance, fraction):
        """Nothing kept, or more than there is, is an error."""
        with pytest.raises(ValueError, match="fraction"):
            choose(name, fraction=fraction, balance=balance, **population(), **also(name))

    def test_one_class_is_enough(self, name, balance):
        """Data of a single class is chosen from as any other."""
        rows = population() | {"labels": np.zeros(101, dtype=np.int32)}
        assert len(self.choose(name, balance, rows)) == budget(101, FRACTIONS[name])

    def test_equal_scores_are_no_problem(self, name, balance):
        """Where all samples are equally hard the count is still exact."""
        rows = population() | {"scores": np.full(101, -2.5)}
        assert len(self.choose(name, balance, rows)) == budget(101, FRACTIONS[name])


@pytest.mark.parametrize(
    ("name", "balance", "ids"),
    [
        ("random", "none", [0, 3, 4, 8, 10, 14]),
        ("random", "class", [0, 3, 4, 8, 10, 14]),
        ("easiest", "none", [0, 2, 4, 13, 15, 17]),
        ("easiest", "class", [0, 2, 4, 13, 15, 17]),
        ("easycore", "none", [0, 2, 4, 13, 15, 17]),
        ("easycore", "class", [0, 2, 4, 13, 15, 17]),
        ("hardest", "none", [3, 5, 7, 9, 11, 18]),
        ("hardest", "class", [5, 7, 9, 11, 16, 18]),
        ("middle", "none", [1, 3, 8, 10, 12, 14]),
        ("middle", "class", [1, 3, 8, 10, 12, 14]),
        ("stratified", "none", [1, 3, 13, 15, 17, 19]),
        ("stratified", "class", [0, 2, 4, 13, 15, 17]),
        ("band", "none", [1, 3, 8, 12, 16, 19]),
        ("band", "class", [3, 8, 14, 15, 16, 19]),
    ],
)
def test_chosen_ids_are_golden(name, balance, ids):
    """A refactor leaves these coresets identical; a change of method regenerates them and says why."""
    rows = {"sample_ids": np.arange(20), "labels": np.arange(20) % 3, "scores": (np.arange(20) * 7 % 13) / 8}
    assert choose(name, fraction=0.3, balance=balance, seed=1, **rows).tolist() == ids


# ---------------------------------------------------------------- ranking


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-50, 50)), unique_by=lambda row: row[1]), st.data())
def test_lowest_equals_a_full_sort(rows, data):
    """The k lowest by (score, id), however many tie."""
    k = data.draw(st.integers(0, len(rows)))
    scores = np.array([score for score, _ in rows], dtype=np.float64)
    ids = np.array([sample_id for _, sample_id in rows], dtype=np.int64)
    assert lowest(scores, ids, k).tolist() == sorted(sample_id for _, sample_id in sorted(rows)[:k])


def test_infinite_scores_have_a_rank():
    """Infinity is the hardest, minus infinity the easiest; neither is an error."""
    scores = np.array([np.inf, 0.0, -np.inf, np.inf])
    assert lowest(scores, np.arange(4), 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize("k", [-1, 3])
def test_lowest_refuses_more_than_there_is(k):
    """Two samples hold neither three nor minus one."""
    with pytest.raises(ValueError, match=r"0 \.\. 2"):
        lowest(np.zeros(2), np.arange(2), k)


def test_easycore_is_the_lowest_aign():
    """The paper's method is easiest by aign, and nothing else goes by its name."""
    rows = population()
    ids = choose("easycore", fraction=0.3, **rows)
    by_hand = sorted(zip(rows["scores"], rows["sample_ids"], strict=True))[:30]
    assert ids.tolist() == sorted(sample_id for _, sample_id in by_hand)
    assert np.array_equal(ids, choose("easiest", fraction=0.3, score="aign", **rows))
    with pytest.raises(ValueError, match="easiest"):
        choose("easycore", fraction=0.3, score="el2n", **rows)


def test_hardest_and_easiest_take_opposite_ends():
    """Without ties two halves make the whole."""
    rows = population(100) | {"scores": np.random.default_rng(3).random(100)}
    halves = [choose(name, fraction=0.5, **rows) for name in ("easiest", "hardest")]
    assert np.array_equal(np.sort(np.concatenate(halves)), np.sort(rows["sample_ids"]))


def test_hardest_breaks_ties_by_the_lower_id():
    """Ties go to the lower id at both ends."""
    rows = {"sample_ids": np.arange(4), "labels": np.zeros(4), "scores": np.ones(4)}
    assert choose("hardest", fraction=0.5, **rows).tolist() == [0, 1]


def test_aum_is_read_the_other_way_round():
    """A high margin is easy, so the easiest by aum have the highest."""
    rows = {"sample_ids": np.arange(4), "labels": np.zeros(4), "scores": np.array([3.0, -1.0, 7.0, 0.0])}
    assert choose("easiest", fraction=0.5, score="aum", **rows).tolist() == [0, 2]
    assert choose("easiest", fraction=0.5, score="el2n", **rows).tolist() == [1, 3]
    assert choose("easiest", fraction=0.5, score="my own", **rows).tolist() == [1, 3]


def test_middle_surrounds_the_median():
    """Scores 0 .. 10 have the median 5; three samples are 4, 5 and 6."""
    rows = {"sample_ids": np.arange(11), "labels": np.zeros(11), "scores": np.arange(11.0)}
    assert choose("middle", fraction=3 / 11, **rows).tolist() == [4, 5, 6]


# ---------------------------------------------------------------- drawing


@pytest.mark.parametrize("balance", ["none", "class"])
def test_random_needs_no_scores_and_follows_its_seed(balance):
    """Scores do not matter; one seed repeats, another draws anew."""
    rows = population(400)
    scores = rows.pop("scores")
    first, again, other = (choose("random", fraction=0.5, seed=s, balance=balance, **rows) for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert np.array_equal(first, choose("random", fraction=0.5, seed=1, balance=balance, scores=scores, **rows))
    assert 0.35 < np.isin(first, other).mean() < 0.65


def test_smaller_random_coresets_are_part_of_larger_ones():
    """Along a curve over fractions with one seed, the only change is what is added."""
    small, large = (choose("random", fraction=f, seed=4, **population()) for f in (0.2, 0.6))
    assert np.isin(small, large).all()


def test_random_draws_every_sample_equally_often():
    """Over many seeds no id is favoured."""
    counts = np.zeros(20)
    for seed in range(600):
        counts[choose("random", sample_ids=np.arange(20), labels=np.zeros(20), fraction=0.25, seed=seed)] += 1
    assert counts.min() > 100
    assert counts.max() < 200


def test_stratified_takes_evenly_from_every_stratum():
    """Strata of 2, 10, 10 and 78 samples and a budget of 42: 2, then 10, 10, then the remaining 20."""
    scores = np.repeat([-8.0, -6.0, -4.0, -2.0], [2, 10, 10, 78])  # negative: harder is nearer to 0
    labels, ids = np.zeros(100), np.arange(100)
    kept = selection_methods.stratified(scores, ids, labels, 42, uniform=np.random.default_rng(0).random(100), strata=4)
    values, counts = np.unique(scores[kept], return_counts=True)
    assert dict(zip(values, counts, strict=True)) == {-8.0: 2, -6.0: 10, -4.0: 10, -2.0: 20}


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.data())
def test_strata_share_the_budget_as_evenly_as_they_can(sizes, data):
    """Exact in total, never over a stratum's size, and only a full stratum gets clearly less than another."""
    k = data.draw(st.integers(0, sum(sizes)))
    quotas = selection_methods.fill_evenly(np.array(sizes), k)
    assert sum(quotas) == k
    assert all(quota <= size for quota, size in zip(quotas, sizes, strict=True))
    open_strata = [quota for quota, size in zip(quotas, sizes, strict=True) if quota < size]
    assert all(max(quotas) - quota <= 1 for quota in open_strata)


def test_cutoff_drops_the_hardest():
    """With a cut-off of 0.2 none of the hardest fifth is kept, by the score's own direction."""
    rows = {"sample_ids": np.arange(100), "labels": np.zeros(100), "scores": np.arange(100.0)}
    assert choose("stratified", fraction=0.8, score="loss", cutoff=0.2, **rows).tolist() == list(range(80))
    assert choose("stratified", fraction=0.8, score="aum", cutoff=0.2, **rows).tolist() == list(range(20, 100))


def test_band_draws_between_its_quantiles():
    """A band as wide as the fraction is the band; a wider one is drawn from."""
    rows = {"sample_ids": np.arange(100), "labels": np.zeros(100), "scores": np.arange(100.0)}
    assert choose("band", fraction=0.3, band=(0.1, 0.4), **rows).tolist() == list(range(10, 40))
    wide = choose("band", fraction=0.3, band=(0.1, 0.9), **rows)
    assert wide.min() >= 10
    assert wide.max() < 90
    assert not np.array_equal(wide, choose("band", fraction=0.3, band=(0.1, 0.9), seed=1, **rows))


@given(st.integers(1, 200), st.integers(0, 9), st.integers(1, 10))
def test_a_band_as_wide_as_the_fraction_always_holds_enough(n, low, high):
    """Rounding never makes a sensible band too small."""
    if low >= high or (high - low) / 10 * n < 1:
        return
    rows = {"sample_ids": np.arange(n), "labels": np.zeros(n), "scores": np.arange(float(n))}
    fraction = (high - low) / 10
    assert len(choose("band", fraction=fraction, band=(low / 10, high / 10), **rows)) == budget(n, fraction)


# ---------------------------------------------------------------- counts


@pytest.mark.parametrize(("n", "fraction", "k"), [(10, 0.25, 3), (10, 0.24, 2), (50_000, 0.3, 15_000), (7, 1, 7)])
def test_budget_rounds_half_up(n, fraction, k):
    """floor(fraction · N + 0.5), not the even-odd rounding of Python."""
    assert budget(n, fraction) == k


@pytest.mark.parametrize("fraction", [0, -1, 1.5, float("nan"), float("inf")])
def test_budget_refuses_fractions_outside_zero_to_one(fraction):
    """The message shows how to drop 30 %."""
    with pytest.raises(ValueError, match=r"in \(0, 1\].*pass 0.7"):
        budget(100, fraction)


def test_budget_refuses_to_keep_nothing():
    """A fraction that rounds to no sample at all is an error."""
    with pytest.raises(ValueError, match="keeps none"):
        budget(100, 0.004)


@given(st.lists(st.integers(0, 5), max_size=60), st.data())
def test_quotas_are_exact_and_proportional(labels, data):
    """They add up to k, never exceed a class, and are within one of the proportional share."""
    k = data.draw(st.integers(0, len(labels)))
    quotas = class_quotas(np.array(labels, dtype=np.int64), k)
    assert sum(quotas.values()) == k
    assert list(quotas) == sorted(set(labels))
    for label, quota in quotas.items():
        assert quota <= labels.count(label)
        assert abs(quota - k * labels.count(label) / len(labels)) < 1


def test_quota_ties_go_to_the_lower_class():
    """Three equal classes and four samples: the first class gets the odd one."""
    assert class_quotas(np.array([2, 1, 0] * 3), 4) == {0: 2, 1: 1, 2: 1}


# ---------------------------------------------------------------- refusals and the registry


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "easyest"}, "easycore, easiest.*got 'easyest'"),
        ({"strata": 3}, "method 'easiest' has no option 'strata'; its options are: none"),
        ({"method": "stratified", "stratta": 3}, "no option 'stratta'; its options are: cutoff, strata"),
        ({"balance": "classes"}, "none, class"),
        ({"scores": None}, "needs scores, usually 'aign'"),
        ({"labels": np.zeros(3)}, r"one length, got \[101, 3, 101\]"),
        ({"sample_ids": np.zeros(101, dtype=np.int64)}, "unique, 100 repeat"),
        ({"method": "full"}, "keeps all 101 samples"),
        ({"method": "stratified", "cutoff": 0.8}, "leaves 20 of 101"),
        ({"method": "stratified", "cutoff": 1.0}, "cutoff must be in"),
        ({"method": "band", "band": (0.5, 0.4)}, "two quantiles"),
        ({"method": "band", "band": (0.1, 0.2)}, "fewer than the budget"),
        ({"method": "middle", "scores": np.full(101, np.inf)}, "finite"),
        ({"method": "stratified", "scores": np.full(101, np.inf)}, "finite"),
    ],
)
def test_what_cannot_be_chosen_is_refused(change, message):
    """Each mistake has its own sentence."""
    arguments = population() | {"method": "easiest", "fraction": 0.3} | change
    with pytest.raises(ValueError, match=message):
        choose(**arguments)


def test_a_user_s_own_score_is_never_turned():
    """Also by a method whose usual score counts the other way: higher is harder, as documented."""
    rows = {"sample_ids": np.arange(100), "labels": np.zeros(100), "scores": np.arange(100.0)}
    assert choose("stratified", fraction=0.8, score="user", cutoff=0.2, **rows).tolist() == list(range(80))


def test_names_are_taken_once():
    """A second method of a name would silently replace the first."""
    for register in (selection_method, ranking_method):
        with pytest.raises(ValueError, match="exists already"):
            register("random")


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [(int, "20", 20), (float, "0.5", 0.5), (str, "a", "a"), (bool, "true", True), (bool, "False", False),
     (tuple[float, float], "0.1,0.9", (0.1, 0.9)), (tuple[int, str], "3,x", (3, "x"))],
)  # fmt: skip
def test_an_option_is_read_by_its_annotation(kind, text, value):
    """As the function's signature says."""
    assert selection_methods.Option(kind, None).parse(text) == value


@pytest.mark.parametrize(("kind", "text"), [(int, "2.5"), (float, "x"), (bool, "1"), (tuple[float, float], "0.1")])
def test_an_option_of_another_type_is_refused(kind, text):
    """No rounding, no guessing."""
    with pytest.raises(ValueError):
        selection_methods.Option(kind, None).parse(text)


def test_every_method_explains_itself():
    """Help and the README's table come from these lines: one sentence each, every option with its default."""
    text, table = selection_methods.describe(), selection_methods.markdown_table()
    for name, method in METHODS.items():
        assert re.fullmatch(r"[A-Z].*\.", method.doc)
        assert f"{name}: {method.doc[0].lower()}{method.doc[1:]}".replace("``", "") in text
        assert f"| `{name}` | {method.doc} |" in table
        for option, spec in method.options.items():
            assert f"`{option}` ({spec.default})" in table


# ---------------------------------------------------------------- two scores


def beta_weights(dual, confidence, k, exponent=4.0):
    """DUAL's weights of a draw, one sample after the other, with the density written out."""
    highest = sorted(range(len(dual)), key=lambda row: -dual[row])[:10]
    mean = sum(confidence[row] for row in highest) / len(highest)
    b = 15 * (1 - mean) * (1 - (1 - k / len(dual)) ** exponent)
    a = 16 - b
    scale = math.gamma(a + b) / (math.gamma(a) * math.gamma(b))
    return np.array([score * scale * q ** (a - 1) * (1 - q) ** (b - 1)
                     for score, q in zip(dual, confidence, strict=True)])  # fmt: skip


def drawn(dual, confidence, k, seed, **options):
    ids = np.arange(len(dual)) * 3
    kept = choose("dual_beta", sample_ids=ids, labels=ids % 2, fraction=k / len(ids), scores=dual, second=confidence,
                  seed=seed, **options)  # fmt: skip
    return kept // 3


@pytest.mark.parametrize("k", [1, 3])
def test_dual_beta_draws_by_its_weights_without_replacement(k):
    """Shares over 4,000 seeds are those of one draw after the other from what is left."""
    rng = np.random.default_rng(5)
    dual, confidence = rng.gamma(1.0, 0.1, 12), rng.uniform(0.3, 0.95, 12)
    weights = beta_weights(dual, confidence, k)
    found = np.zeros(12)
    for seed in range(4000):
        found[drawn(dual, confidence, k, seed)] += 1
    plain = np.zeros(12)
    for _ in range(4000):
        plain[rng.choice(12, k, replace=False, p=weights / weights.sum())] += 1

    assert np.abs(found - plain).max() / 4000 < 0.05
    assert plain.max() - plain.min() > 400


def test_dual_beta_prefers_easier_samples_the_fewer_it_keeps():
    """Its density moves to higher confidence; a larger exponent, to lower."""
    rng = np.random.default_rng(6)
    dual, confidence = rng.gamma(1.0, 0.1, 2000), rng.uniform(0.05, 0.95, 2000)
    few, many = (confidence[drawn(dual, confidence, k, 0)].mean() for k in (100, 1000))
    assert few > many + 0.05
    assert (
        confidence[drawn(dual, confidence, 300, 0, exponent=12.0)].mean()
        < confidence[drawn(dual, confidence, 300, 0)].mean()
    )


def test_dual_beta_takes_what_has_no_weight_last():
    """Samples without variation have none, and certain ones an infinite density."""
    dual, confidence = np.array([0.0, 0.2, 0.0, 0.1, 0.3]), np.array([1.0, 1.0, 0.0, 0.5, 0.6])
    assert drawn(dual, confidence, 3, 0).tolist() == [1, 3, 4]
    assert {tuple(drawn(dual, confidence, 4, seed).tolist()) for seed in range(20)} == {(0, 1, 3, 4), (1, 2, 3, 4)}


def test_stratified_drops_the_hardest_by_another_score():
    """As CCS drops by AUM whatever it stratifies by; strata are those of what is left."""
    rng = np.random.default_rng(7)
    ids, el2n, aum = np.arange(200), rng.random(200), rng.normal(size=200)
    options = dict(sample_ids=ids, labels=ids % 2, fraction=0.3, score="el2n", cutoff=0.25, strata=10)
    kept = choose("stratified", scores=el2n, second=aum, second_score="aum", **options)
    left = np.sort(np.argsort(aum)[50:])

    assert set(kept) <= set(left.tolist())
    alone = choose("stratified", scores=el2n[left], **options | dict(sample_ids=left, labels=left % 2, fraction=0.4,
                                                                    cutoff=0.0))  # fmt: skip
    assert kept.tolist() == alone.tolist()
    assert kept.tolist() != choose("stratified", scores=el2n, **options).tolist()
