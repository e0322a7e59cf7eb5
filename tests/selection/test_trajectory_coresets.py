"""Coresets by what a run's hardness table does not have: scores of trajectories, and a second score."""

from pathlib import Path

import numpy as np
import pytest

from easycore_ray import inspect
from easycore_ray.core.selection import choose
from easycore_ray.data.coreset import read_sample_ids
from easycore_ray.scoring.hardness_table import open_hardness, read_hardness
from easycore_ray.scoring.reduce import reduce
from easycore_ray.selection.select import select
from easycore_ray.storage.errors import EasyCoreError
from tests.artifacts import draw_rows, finish_table, make_dataset, samples_of, write_parts

COUNT = 101


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """A scoring run of 101 samples and four epochs."""
    folder = tmp_path_factory.mktemp("trajectories")
    labels = np.random.default_rng(0).integers(0, 3, COUNT)
    ids = np.random.default_rng(1).permutation(COUNT)
    parts = write_parts(folder / "scores" / "table", draw_rows(ids, labels[ids], [1, 2, 3, 4]), ids % 2)
    dataset = make_dataset(folder / "dataset", labels.tolist())
    finish_table(folder / "scores", parts, samples_of(ids, labels[ids]), dataset)
    reduce(out=f"{folder}/scores/hardness", scores=f"{folder}/scores")
    return f"{folder}/scores"


def kept_of(coreset):
    return read_sample_ids(coreset).tolist()


@pytest.mark.parametrize(("second", "folder"), [("aum", "hardness"), ("correctness", "hardness-correctness")])
def test_stratified_drops_by_another_score(scores, tmp_path, second, folder):
    """Of the run's table or of its trajectories; the manifest names both scores and both tables."""
    options = dict(scores=scores, method="stratified", fraction=0.3, score="el2n", cutoff=0.2, option=("strata=9",))
    coreset = select(out=f"{tmp_path}/c", cutoff_score=second, **options)
    table, other = read_hardness(open_hardness(scores)), read_hardness(open_hardness(f"{scores}/{folder}"))
    plain = choose(
        "stratified", sample_ids=table["sample_id"].to_numpy(), labels=table["label"].to_numpy(), fraction=0.3,
        scores=table["el2n"].to_numpy(), score="el2n", second=other[second].to_numpy(), second_score=second,
        cutoff=0.2, strata=9,
    )  # fmt: skip

    assert kept_of(coreset) == plain.tolist()
    assert kept_of(coreset) != kept_of(select(out=f"{tmp_path}/alone", **options))
    assert coreset.manifest["config"]["cutoff_score"] == second
    assert coreset.manifest["parents"]["second_hardness_table"]["path"] == f"{scores}/{folder}"


def test_a_trajectory_is_reduced_once(scores, tmp_path):
    """A second method of the same score takes the table that is there."""
    options = dict(scores=scores, score="dyn_unc:window=2", fraction=0.3)
    coreset = select(out=f"{tmp_path}/c", method="easiest", **options)
    folder = Path(scores, "hardness-dyn_unc-window-2")
    table = read_hardness(open_hardness(str(folder)))
    order = np.lexsort([table["sample_id"].to_numpy(), table["dyn_unc:window=2"].to_numpy()])

    assert kept_of(coreset) == np.sort(table["sample_id"].to_numpy()[order[:30]]).tolist()
    assert coreset.manifest["score"] == "dyn_unc:window=2"
    made = (folder / "manifest.json").stat().st_mtime_ns
    select(out=f"{tmp_path}/d", method="hardest", **options)
    assert (folder / "manifest.json").stat().st_mtime_ns == made


def test_a_table_of_trajectories_is_looked_at_by_its_own_scores(scores, tmp_path):
    """Quantiles of each, extremes by the first; what it was not made for is named."""
    reduce(out=f"{tmp_path}/own", scores=scores, only=("correctness", "dyn_unc:window=3", "loss"))
    found = inspect(path=f"{tmp_path}/own", count=3)["scores"]
    table = read_hardness(open_hardness(f"{tmp_path}/own"))

    assert set(found["quantiles"]) == {"correctness", "dyn_unc:window=3", "loss"}
    assert found["score"] == "correctness"
    assert [row["score"] for row in found["hardest"]] == sorted(table["correctness"].to_pylist())[:3]
    assert inspect(path=f"{tmp_path}/own", score="dyn_unc:window=3")["scores"]["hardest"][0]["score"] == max(
        table["dyn_unc:window=3"].to_pylist()
    )
    with pytest.raises(EasyCoreError, match=r"reduced without dual, which is made when asked for: easycore"):
        inspect(path=f"{tmp_path}/own", score="dual")


def test_csl_is_the_loss(scores, tmp_path):
    """CSL is its sum over epochs; one coreset, under either name."""
    found = [select(out=f"{tmp_path}/{name}", scores=scores, method="easiest", score=name) for name in ("csl", "loss")]
    assert found[0].fingerprint == found[1].fingerprint
    assert found[0].manifest["score"] == "loss"


def test_dual_beta_takes_its_confidence_from_the_same_epochs(scores, tmp_path):
    """Of the epochs that the score is of, and of the range that is asked for."""
    coreset = select(out=f"{tmp_path}/c", scores=scores, method="dual_beta", score="dual:window=2,epochs=3",
                     fraction=0.2, epoch_range="1:4", seed=4)  # fmt: skip
    folders = {role: Path(parent["path"]).name for role, parent in coreset.manifest["parents"].items()}
    assert folders["hardness_table"] == "hardness-epochs-1-4-dual-window-2-epochs-3"
    assert folders["second_hardness_table"] == "hardness-epochs-1-4-confidence-epochs-3"
    one, two = (
        read_hardness(open_hardness(f"{scores}/{folders[role]}"))
        for role in ("hardness_table", "second_hardness_table")
    )
    plain = choose(
        "dual_beta", sample_ids=one["sample_id"].to_numpy(), labels=one["label"].to_numpy(), fraction=0.2,
        scores=one["dual:window=2,epochs=3"].to_numpy(), second=two["confidence:epochs=3"].to_numpy(), seed=4,
    )  # fmt: skip
    assert kept_of(coreset) == plain.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(method="easiest", score="dual"), "score dual needs at least 10 scored epochs, there are 4"),
        (dict(method="easiest", score="cld"), "holds no validation losses; they need a dataset with a validation"),
        (dict(method="easiest", cutoff_score="aum"), "cutoff_score is for method stratified, got easiest"),
        (dict(method="dual_beta", score="aign"), "method dual_beta goes by dual, got score 'aign'"),
        (dict(method="easiest", score="dual:windows=3"), "score dual has no option 'windows'; its options are: window"),
    ],
)
def test_what_cannot_be_is_refused(scores, tmp_path, options, message):
    """In one line, and nothing is left behind."""
    with pytest.raises(EasyCoreError, match=message):
        select(out=f"{tmp_path}/c", scores=scores, **options)
    assert not (tmp_path / "c").exists()
