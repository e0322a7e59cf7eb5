"""Reduction of trajectory scores: those of the whole table at once, however rows and ids are cut; refusals."""

from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from easycore_ray.config.stages import ReduceConfig
from easycore_ray.core.trajectory import RunFacts
from easycore_ray.core.trajectory_scores import RunningNorm, parse_trajectory_score
from easycore_ray.inspection.verify import verify
from easycore_ray.scoring import score_table
from easycore_ray.scoring.hardness_table import open_hardness, read_hardness
from easycore_ray.scoring.reduce import reduce
from easycore_ray.scoring.reduce_task import make_plan, reduce_range, sum_range
from easycore_ray.scoring.score_reader import open_table
from easycore_ray.scoring.trajectories import exact_mean, exact_sum
from easycore_ray.storage.errors import EasyCoreError
from tests.artifacts import draw_rows, finish_table, samples_of, write_parts
from tests.hardness import population

EPOCHS = [0, *range(1, 13)]
SCORES = (
    "dyn_unc:window=4", "dyn_unc", "dual:window=3,epochs=7", "dual", "confidence:epochs=5", "frequency",
    "learning_time", "margin_std", "grad_norm_std", "correctness",
)  # fmt: skip


@pytest.fixture
def scored(tmp_path):
    """A run whose workers have other rows in every epoch, and its rows."""
    ids, labels = population()
    rows, rng = draw_rows(ids, labels, EPOCHS), np.random.default_rng(1)
    parts = []
    for columns in rows:
        order = rng.permutation(len(ids))
        shuffled = {name: values[order] for name, values in columns.items()}
        parts += write_parts(tmp_path / "table", [shuffled], rng.integers(0, 3, len(ids)))
    finish_table(tmp_path, parts, samples_of(ids, labels))
    return tmp_path, rows


def at_once(text, rows):
    """The score of all samples, in the order of their ids, from whole epochs."""
    score, trained = parse_trajectory_score(text), [columns for columns in rows if columns["epoch"][0] > 0]
    order = np.argsort(rows[0]["sample_id"])

    def through(score, run):
        state = score.begin(len(order), run)
        for number, columns in enumerate(trained):
            score.add(state, {name: columns[name][order] for name in score.COLUMNS}, number, run)
        return score.finish(state, run)

    run = RunFacts(count=len(trained))
    if text == "learning_time":
        means = [Fraction(value) for value in through(RunningNorm(), run).tolist()]
        run = RunFacts(count=len(trained), threshold=float(sum(means) / len(means)))
    return through(score, run)


@pytest.mark.parametrize("text", SCORES)
def test_a_reduction_equals_all_rows_at_once(scored, text):
    run, rows = scored
    table = read_hardness(reduce(scores=str(run), out=f"{run}/own", only=(text,)))
    assert np.array_equal(table[text].to_numpy(), at_once(text, rows))
    assert table["sample_id"].to_pylist() == sorted(rows[0]["sample_id"].tolist())
    assert not verify(open_hardness(f"{run}/own"))


def test_several_scores_come_from_one_pass(scored):
    run, rows = scored
    table = read_hardness(reduce(scores=str(run), out=f"{run}/own", only=("aign", *SCORES)))
    whole = read_hardness(reduce(scores=str(run), out=f"{run}/hardness"))
    assert table["aign"].equals(whole["aign"])
    assert all(np.array_equal(table[text].to_numpy(), at_once(text, rows)) for text in SCORES)
    assert pq.read_schema(next(run.glob("own/*.parquet"))).names == ["sample_id", "label", "aign", *SCORES]


@pytest.mark.parametrize("num_ranges", [1, 2, 7, 40])
def test_they_do_not_depend_on_how_ids_are_cut(scored, num_ranges):
    run, rows = scored
    table, epochs = open_table(f"{run}/table"), tuple(EPOCHS[1:])
    plan = make_plan(table, epochs, f"{run}/cut", num_ranges, ("aign",))
    total = sum(sum_range(plan, number) for number in range(len(plan.ranges)))
    facts = RunFacts(count=len(epochs), threshold=exact_mean(total, len(rows[0]["sample_id"])))
    plan = make_plan(table, epochs, f"{run}/cut", num_ranges, SCORES, facts)
    files = [reduce_range(plan, number)["path"] for number in range(len(plan.ranges))]
    whole = pa.concat_tables(pq.read_table(f"{run}/cut/{file}") for file in files)
    for text in SCORES:
        assert np.array_equal(whole[text].to_numpy(), at_once(text, rows)), text


def test_only_epochs_of_a_range_are_in_a_trajectory(scored):
    run, rows = scored
    table = read_hardness(reduce(scores=str(run), out=f"{run}/own", only=("dyn_unc:window=3",), epoch_range="4:9"))
    some = [columns for columns in rows if 4 <= columns["epoch"][0] <= 9]
    assert np.array_equal(table["dyn_unc:window=3"].to_numpy(), at_once("dyn_unc:window=3", some))


@given(st.lists(st.floats(0, 2**29), min_size=1, max_size=50), st.integers(0, 50))
def test_sums_are_exact_and_add_up(values, cut):
    array = np.array(values)
    assert exact_sum(array[:cut]) + exact_sum(array[cut:]) == exact_sum(array)
    exact = float(sum(map(Fraction, values)) / len(values))
    assert exact_mean(exact_sum(array), len(values)) == pytest.approx(exact, rel=1e-15, abs=2**-51)


def test_too_few_epochs_are_refused(scored):
    run, _ = scored
    with pytest.raises(EasyCoreError, match=r"score dual needs at least 10 scored epochs, there are 3: .*; score more"):
        reduce(scores=str(run), out=f"{run}/own", only=("dual",), epoch_range="1:3")


def test_a_score_that_is_not_finite_is_named(tmp_path, monkeypatch):
    """The writer refuses it; a part written by something else is refused here."""
    monkeypatch.setattr(score_table, "_refuse_non_finite", lambda *_: None)
    ids, labels = population()
    rows = draw_rows(ids, labels, EPOCHS)
    rows[3]["loss"][5] = np.nan
    finish_table(tmp_path, write_parts(tmp_path / "table", rows, np.zeros(len(ids))), samples_of(ids, labels))
    with pytest.raises(
        EasyCoreError, match=rf"epoch 3: loss is not finite for 1 samples .*: {rows[3]['sample_id'][5]}\)"
    ):
        reduce(scores=str(tmp_path), out=f"{tmp_path}/own", only=("dual",))


@pytest.mark.parametrize("text", ["dual:window=1", "dual:windows=3", "dule"])
def test_a_score_that_cannot_be_is_refused_before_any_work(scored, text):
    run, _ = scored
    with pytest.raises(EasyCoreError, match=r"dual:window must be at least 2|no option 'windows'|unknown score 'dule'"):
        ReduceConfig(out=f"{run}/own", scores=str(run), only=(text,))


def test_options_with_their_default_are_the_same_score(scored):
    run, _ = scored
    config = ReduceConfig(out=f"{run}/own", scores=str(run), only=("dual:window=10,epochs=30",))
    assert config.only == ("dual",)
