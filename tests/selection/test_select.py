"""Coresets: the choice of a full sort, exact counts, readable exports, and no other dataset's scores."""

import shutil
from fractions import Fraction

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from easycore_ray.config.arms import parse_arm
from easycore_ray.core import selection
from easycore_ray.core.selection import HIGHER_IS_HARDER, METHODS
from easycore_ray.data.coreset import open_coreset, read_sample_ids
from easycore_ray.data.dataset import check_same_dataset, open_dataset
from easycore_ray.scoring.feature_table import open_features, read_features
from easycore_ray.scoring.hardness_table import open_hardness, read_hardness
from easycore_ray.scoring.reduce import reduce
from easycore_ray.selection.select import arm_config, select
from easycore_ray.storage.artifact import Artifact
from easycore_ray.storage.errors import EasyCoreError
from tests.artifacts import (
    draw_rows,
    edit_manifest,
    finish_features,
    finish_table,
    make_dataset,
    samples_of,
    write_parts,
)

COUNT = 101
RANKING = [
    ("easycore", "aign"),
    *((method, score) for method in ("easiest", "hardest", "middle") for score in HIGHER_IS_HARDER),
]


def labels_of(count, seed=0):
    """Four classes of unequal size."""
    return np.random.default_rng(seed).choice(4, count, p=[0.5, 0.25, 0.2, 0.05])


def make_scores(run, dataset, ids, labels, *, ties=True, seed=0):
    """A scoring run of these samples with its hardness table; scores repeat if there are to be ties."""
    rows = draw_rows(ids, labels, [0, 1, 2, 3], seed, attacked=True)
    if ties:
        for columns in rows:
            for name in ("grad_norm", "loss", "margin", "el2n", "adv_loss"):
                columns[name] = np.round(columns[name] / 2).astype(np.float32)
    parts = write_parts(f"{run}/table", rows, np.arange(len(ids)) % 2)
    finish_table(run, parts, samples_of(ids, labels), dataset, training="pgd")
    rng = np.random.default_rng(seed)
    vectors = {"features": rng.normal(size=(len(ids), 6)), "probabilities": rng.dirichlet(np.ones(4), len(ids))}
    columns = {name: values.astype(np.float16) for name, values in vectors.items()}
    finish_features(run, {"sample_id": ids, "label": labels, **columns}, np.arange(len(ids)) % 3)
    return reduce(out=f"{run}/hardness", scores=str(run))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A dataset of 101 samples and a scoring run of it, with many tied scores."""
    folder = tmp_path_factory.mktemp("inputs")
    labels = labels_of(COUNT)
    dataset = make_dataset(folder / "dataset", labels.tolist())
    ids = np.random.default_rng(1).permutation(COUNT)
    make_scores(folder / "scores", dataset, ids, labels[ids])
    return folder


def choose(inputs, out, **options):
    """A coreset of the fixture's scoring run, and its ids."""
    coreset = select(out=str(out), **({"scores": f"{inputs}/scores"} | options))
    return coreset, read_sample_ids(coreset)


# ---------------------------------------------------------------- the choice


def hardness_of(inputs, score):
    """(hardness, id, label) of every sample, higher = harder, straight from the hardness table."""
    table = read_hardness(open_hardness(f"{inputs}/scores")).to_pylist()
    rows = []
    for row in table:
        if score == "forgetting":
            never = row["first_learned_epoch"] == -1
            value = row["num_scores"] + 1 if never else row["forgetting_events"]
        else:
            value = row[score]
        rows.append((value if HIGHER_IS_HARDER[score] else -value, row["sample_id"], row["label"]))
    return rows


def by_sorting(method, rows, k):
    """The k ids that a full sort by (rank, id) puts first."""
    median = float(np.median([value for value, _, _ in rows]))
    rank = {
        "easycore": lambda value: value,
        "easiest": lambda value: value,
        "hardest": lambda value: -value,
        "middle": lambda value: abs(value - median),
    }[method]
    return sorted(sample_id for _, sample_id in sorted((rank(value), i) for value, i, _ in rows)[:k])


def largest_remainder(rows, k):
    """Samples of each class out of k, in exact fractions."""
    sizes = {label: sum(row[2] == label for row in rows) for label in sorted({row[2] for row in rows})}
    shares = {label: Fraction(size * k, len(rows)) for label, size in sizes.items()}
    quotas = {label: int(share) for label, share in shares.items()}
    for label in sorted(sizes, key=lambda label: (quotas[label] - shares[label], label))[: k - sum(quotas.values())]:
        quotas[label] += 1
    return quotas


@pytest.mark.parametrize("balance", ["none", "class"])
@pytest.mark.parametrize(("method", "score"), RANKING)
def test_it_is_the_choice_of_a_full_sort(inputs, tmp_path, method, score, balance):
    """On every method that ranks, by every score, over all samples and class by class; ties go to the lower id."""
    rows = hardness_of(inputs, score)
    _, ids = choose(inputs, tmp_path / "c", method=method, score=score, balance=balance, fraction=0.3)

    if balance == "none":
        assert ids.tolist() == by_sorting(method, rows, 30)
    else:
        quotas = largest_remainder(rows, 30)
        parts = (by_sorting(method, [row for row in rows if row[2] == label], k) for label, k in quotas.items())
        assert ids.tolist() == sorted(i for part in parts for i in part)


def test_the_fixture_has_ties_where_the_cut_is(inputs):
    """Otherwise the test above would not show how they are broken."""
    values = sorted(value for value, _, _ in hardness_of(inputs, "aign"))

    assert values[29] == values[30]
    values = sorted(value for value, _, _ in hardness_of(inputs, "forgetting"))
    assert values[29] == values[30]


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"full"}))
@pytest.mark.parametrize("balance", ["none", "class"])
@pytest.mark.parametrize("fraction", [0.005, 0.25])
def test_the_count_is_exact(inputs, tmp_path, method, balance, fraction):
    """floor(fraction · N + 0.5) samples, whatever the method, and their classes as the histogram says."""
    options = {"score": "dual:window=2,epochs=3"} if METHODS[method].default_score == "dual" else {"band": (0.0, 1.0)}
    coreset, ids = choose(inputs, tmp_path / "c", method=method, balance=balance, fraction=fraction, **options)
    labels = labels_of(COUNT)

    assert len(ids) == {0.005: 1, 0.25: 25}[fraction]
    assert coreset.manifest["counts"] == {"samples": len(ids), "of": COUNT}
    assert coreset.manifest["class_histogram"] == np.bincount(labels[ids], minlength=4).tolist()


def test_never_learned_samples_are_the_hardest_to_remember(inputs, tmp_path):
    """By forgetting, those that were never right rank above those that were forgotten every time."""
    table = read_hardness(open_hardness(f"{inputs}/scores"))
    never = table.filter(pa.compute.equal(table["first_learned_epoch"], -1))["sample_id"].to_pylist()
    _, hardest = choose(inputs, tmp_path / "h", method="hardest", score="forgetting", fraction=len(never) / COUNT)

    assert 0 < len(never) < 30
    assert hardest.tolist() == never


@pytest.mark.parametrize(
    ("method", "balance", "golden"),
    [
        ("easycore", "none", [0, 11, 22, 41, 52, 71, 82, 93]),
        ("easycore", "class", [0, 11, 22, 41, 52, 55, 71, 82]),
        ("random", "none", [4, 29, 32, 44, 47, 58, 59, 97]),
        ("random", "class", [4, 10, 29, 32, 47, 59, 90, 97]),
        # A draw is a hash of the seed and the sample's id: the ids of random, stratified and band are those since.
        ("stratified", "none", [5, 21, 62, 72, 75, 78, 94, 98]),
        ("band", "class", [29, 37, 39, 48, 50, 67, 86, 100]),
    ],
)
def test_chosen_ids_are_golden(tmp_path, method, balance, golden):
    """A refactor leaves coresets as they are; a change of method regenerates these and says why."""
    ids = np.arange(COUNT)
    make_dataset(tmp_path / "d", (ids * ids % 5).tolist())
    scores = write_user_scores(tmp_path / "mine.parquet", ids, ids * 37 % 101 // 8)
    coreset = select(out=f"{tmp_path}/c", dataset=f"{tmp_path}/d", user_scores=scores, method=method,
                     balance=balance, fraction=0.08, seed=1)  # fmt: skip

    assert read_sample_ids(coreset).tolist() == golden


def test_random_draws_anew_with_each_seed_and_needs_no_scores(inputs, tmp_path):
    """From the dataset alone it is the same draw as from the scores."""
    draws = [choose(inputs, tmp_path / f"{seed}", method="random", seed=seed)[1].tolist() for seed in (0, 1)]
    alone = select(out=str(tmp_path / "alone"), dataset=f"{inputs}/dataset", method="random", seed=1)

    assert draws[0] != draws[1]
    assert read_sample_ids(alone).tolist() == draws[1]
    assert alone.manifest["score"] is None


def test_scores_of_a_part_of_the_dataset_choose_within_it(inputs, tmp_path):
    """A scoring run on a coreset ranks its samples only, by the dataset's ids, labels and keys."""
    labels = labels_of(COUNT)
    ids = np.arange(5, 100, 7)
    dataset = open_dataset(f"{inputs}/dataset")
    make_scores(tmp_path / "scores", dataset, ids, labels[ids])
    coreset, chosen = choose(inputs, tmp_path / "c", scores=f"{tmp_path}/scores", fraction=0.5)
    rows = pq.read_table(tmp_path / "c" / "coreset.parquet").to_pylist()

    assert coreset.manifest["counts"] == {"samples": 7, "of": 14}
    assert set(chosen) < set(ids)
    assert [(row["label"], row["key"]) for row in rows] == [(labels[i], f"{labels[i]}/{i}.png") for i in chosen]


# ---------------------------------------------------------------- the artifact and its exports


def test_exports_are_read_by_numpy_pyarrow_and_pandas(inputs, tmp_path):
    """Ids, the scores that chose them, labels and source keys, in one order."""
    coreset, ids = choose(inputs, tmp_path / "c", method="easiest", score="aum", fraction=0.2)
    table = pq.read_table(f"{coreset.path}/coreset.parquet")
    frame = pd.read_parquet(f"{coreset.path}/coreset.parquet")
    hardness = read_hardness(open_hardness(f"{inputs}/scores")).to_pandas().set_index("sample_id")
    labels = labels_of(COUNT)

    assert ids.dtype == np.int64
    assert (np.diff(ids) > 0).all()
    np.testing.assert_array_equal(np.load(f"{coreset.path}/sample_ids.npy"), ids)
    assert table["sample_id"].to_pylist() == frame["sample_id"].tolist() == ids.tolist()
    np.testing.assert_array_equal(frame["score"], hardness.loc[ids, "aum"])
    assert frame["label"].tolist() == labels[ids].tolist()
    assert frame["key"].tolist() == [f"{labels[i]}/{i}.png" for i in ids]
    assert (tmp_path / "c" / "keys.txt").read_text().splitlines() == frame["key"].tolist()


def test_methods_without_a_score_leave_it_empty(inputs, tmp_path):
    """Null, so that no one ranks by it."""
    choose(inputs, tmp_path / "c", method="random")

    assert pq.read_table(tmp_path / "c" / "coreset.parquet")["score"].null_count == 51


def test_the_manifest_says_what_was_chosen_and_from_what(inputs, tmp_path):
    """Method, score, balance, fraction, classes, and the fingerprints of both parents."""
    coreset, _ = choose(inputs, tmp_path / "c", balance="class", fraction=0.4)
    content = coreset.manifest

    assert (content["method"], content["score"], content["balance"], content["fraction"]) == (
        "easycore", "aign", "class", 0.4,
    )  # fmt: skip
    assert content["classes"] == ["class 0", "class 1", "class 2", "class 3"]
    assert {role: parent["fingerprint"] for role, parent in content["parents"].items()} == {
        "dataset": open_dataset(f"{inputs}/dataset").fingerprint,
        "hardness_table": open_hardness(f"{inputs}/scores").fingerprint,
    }


def test_the_fingerprint_is_that_of_the_ids(inputs, tmp_path):
    """Equal choices are equal coresets, however they were made."""
    one, _ = choose(inputs, tmp_path / "1", method="easycore")
    same, _ = choose(inputs, tmp_path / "2", method="easiest", score="aign")
    other, _ = choose(inputs, tmp_path / "3", method="hardest")

    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_a_finished_coreset_is_reused_and_another_is_refused(inputs, tmp_path, capsys):
    """The same words find it; other words need --overwrite."""
    coreset, _ = choose(inputs, tmp_path / "c", fraction=0.3)

    assert choose(inputs, tmp_path / "c", fraction=0.3)[0] == coreset
    assert "is finished, reused" in capsys.readouterr().err
    with pytest.raises(EasyCoreError, match="made with another configuration"):
        choose(inputs, tmp_path / "c", fraction=0.4)
    assert choose(inputs, tmp_path / "c", fraction=0.4, overwrite=True)[0].manifest["fraction"] == 0.4


def test_a_plan_says_how_many_and_writes_nothing(inputs, tmp_path):
    """With the same refusals as the run itself."""
    plan = select.plan(out=f"{tmp_path}/c", scores=f"{inputs}/scores", fraction=0.3)
    assert (plan.samples, plan.work) == (30, "keep 30 of 101 samples by easycore")
    with pytest.raises(EasyCoreError, match="keeps none"):
        select.plan(out=f"{tmp_path}/c", scores=f"{inputs}/scores", fraction=0.001)
    assert not (tmp_path / "c").exists()


def test_an_arm_of_a_sweep_is_a_selection(inputs, tmp_path):
    """Its name, a fraction and a seed say all there is to say."""
    arm = parse_arm("easiest:el2n/class")
    config = arm_config(arm, out=f"{tmp_path}/c", scores=f"{inputs}/scores", dataset=f"{inputs}/dataset",
                        fraction=0.3, seed=4)  # fmt: skip
    swept = select(config)
    alone, _ = choose(inputs, tmp_path / "d", method="easiest", score="el2n", balance="class", fraction=0.3, seed=4)

    assert swept.fingerprint == alone.fingerprint
    assert swept.manifest["identity"] == alone.manifest["identity"]


# ---------------------------------------------------------------- refusals


def refuse(inputs, out, message, **options):
    """One line, and the folder stays free for the corrected call."""
    with pytest.raises(EasyCoreError, match=message) as caught:
        choose(inputs, out, **options)
    assert "\n" not in str(caught.value)
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "full"}, "keeps all 101 samples, not 51"),
        ({"fraction": 0.001}, "of 101 samples keeps none"),
        ({"method": "band", "band": (0.1, 0.2)}, "fewer than the budget"),
        ({"method": "stratified", "cutoff": 0.9}, "leaves 10 of 101 samples"),
    ],
)
def test_what_cannot_be_chosen_is_refused(inputs, tmp_path, options, message):
    """And can be corrected in the same folder."""
    refuse(inputs, tmp_path / "c", message, **options)
    choose(inputs, tmp_path / "c")


def test_epochs_of_a_run_choose_alone(inputs, tmp_path):
    """--epoch-range goes by the scores of these epochs, reduced beside the run's own; kept for the next call."""
    run = tmp_path / "scores"
    shutil.copytree(inputs / "scores", run)
    epochs = {"scores": str(run), "epoch_range": "2:3", "fraction": 0.3}
    coreset, ids = choose(inputs, tmp_path / "c", **epochs)
    rows = read_hardness(open_hardness(f"{run}/hardness-epochs-2-3")).to_pylist()
    every, _ = choose(inputs, tmp_path / "every", scores=str(run), fraction=0.3)

    assert ids.tolist() == by_sorting("easycore", [(row["aign"], row["sample_id"], 0) for row in rows], 30)
    assert coreset.fingerprint != every.fingerprint
    assert coreset.manifest["parents"]["hardness_table"]["path"] == f"{run}/hardness-epochs-2-3"
    assert choose(inputs, tmp_path / "c", **epochs)[0] == coreset


def test_epochs_need_a_scoring_run(inputs, tmp_path):
    """A hardness table alone has forgotten them, and a dataset never knew."""
    shutil.copytree(inputs / "scores" / "hardness", tmp_path / "hardness")
    options = {"scores": f"{tmp_path}/hardness", "epoch_range": "1:2"}
    refuse(inputs, tmp_path / "c", "has no finished table/; pass the folder of a scoring run as --scores", **options)
    with pytest.raises(EasyCoreError, match="epoch_range goes with --scores"):
        select(out=f"{tmp_path}/c", dataset=f"{inputs}/dataset", method="random", epoch_range="1:2")
    refuse(inputs, tmp_path / "c", "epoch_range must be A:B", epoch_range="3:1")


def test_what_is_left_out_has_no_features_either(inputs, tmp_path):
    """A method by features chooses from the rest as if the others had never been scored."""
    gone = np.arange(0, COUNT, 3)
    pq.write_table(pa.table({"sample_id": gone}), f"{tmp_path}/gone.parquet")
    _, kept = choose(inputs, tmp_path / "c", method="k_center", fraction=0.3, exclude=f"{tmp_path}/gone.parquet")
    ids, features = read_features(open_features(f"{inputs}/scores", "k_center"))
    left = np.setdiff1d(np.arange(COUNT), gone)
    plain = selection.choose("k_center", sample_ids=ids[left], labels=left, fraction=0.3, features=features.take(left))
    assert kept.tolist() == plain.tolist()


def test_a_plan_reduces_no_epochs(inputs, tmp_path):
    """It says that they would be."""
    run = tmp_path / "scores"
    shutil.copytree(inputs / "scores", run)
    plan = select.plan(out=f"{tmp_path}/c", scores=str(run), epoch_range="1:2")
    assert plan.work.startswith(f"reduce → {run}/hardness-epochs-1-2, and ")
    assert plan.makes == (f"{run}/hardness-epochs-1-2", f"{tmp_path}/c")
    assert not (run / "hardness-epochs-1-2").exists()


def test_scores_that_do_not_exist_are_refused(inputs, tmp_path):
    """A method that ranks needs a scoring run; a score that was not recorded cannot rank."""
    with pytest.raises(EasyCoreError, match=r"method easycore needs scores; pass --scores RUN or --user-scores FILE"):
        select(out=f"{tmp_path}/c", dataset=f"{inputs}/dataset")
    labels = labels_of(20)
    dataset = make_dataset(tmp_path / "d", labels.tolist())
    rows = draw_rows(np.arange(20), labels, [1])
    parts = write_parts(tmp_path / "s" / "table", rows, np.zeros(20))
    finish_table(tmp_path / "s", parts, samples_of(np.arange(20), labels), dataset)
    reduce(out=f"{tmp_path}/s/hardness", scores=f"{tmp_path}/s")

    options = {"scores": f"{tmp_path}/s", "method": "hardest", "score": "aign_epoch0"}
    refuse(inputs, tmp_path / "c", "did not record aign_epoch0, or it was reduced without it", **options)
    for score in ("adv_loss", "problematic"):
        needed = rf"did not record {score}, which needs .* \(score --training trades --score-pass eval\), or it was"
        refuse(inputs, tmp_path / "c", needed, **options | {"score": score})


def test_another_datasets_scores_are_refused(inputs, tmp_path):
    """By fingerprint, naming both: ids alone would fit."""
    make_dataset(tmp_path / "d", labels_of(COUNT, seed=1).tolist())

    refuse(inputs, tmp_path / "c", rf"holds scores of {inputs}/dataset .*, not of {tmp_path}/d",
           dataset=f"{tmp_path}/d")  # fmt: skip
    with pytest.raises(EasyCoreError, match="pass the dataset that was scored"):
        check_same_dataset(open_hardness(f"{inputs}/scores"), open_dataset(f"{tmp_path}/d"))
    check_same_dataset(open_hardness(f"{inputs}/scores"), open_dataset(f"{inputs}/dataset"))


def test_a_dataset_that_was_replaced_is_refused(tmp_path):
    """The path in the manifest may hold something else by now."""
    labels = labels_of(30)
    dataset = make_dataset(tmp_path / "d", labels.tolist())
    make_scores(tmp_path / "s", dataset, np.arange(30), labels)
    edit_manifest(tmp_path / "d", fingerprint="0" * 64)

    with pytest.raises(EasyCoreError, match="pass the dataset that was scored"):
        select(out=f"{tmp_path}/c", scores=f"{tmp_path}/s")


def test_another_datasets_coreset_is_refused(inputs, tmp_path):
    """Training on it would take other images."""
    coreset, _ = choose(inputs, tmp_path / "c")
    make_dataset(tmp_path / "d", labels_of(COUNT, seed=1).tolist())

    assert open_coreset(coreset.path, open_dataset(f"{inputs}/dataset")) == coreset
    with pytest.raises(EasyCoreError, match=rf"was selected from {inputs}/dataset .*not from {tmp_path}/d"):
        open_coreset(coreset.path, open_dataset(f"{tmp_path}/d"))


# ---------------------------------------------------------------- a user's own scores


def write_user_scores(path, ids, scores, **columns):
    pq.write_table(pa.table({"sample_id": ids, "score": scores, **columns}), path)
    return str(path)


@pytest.mark.parametrize("source", ["scores", "dataset"])
def test_a_users_own_scores_rank(inputs, tmp_path, source):
    """Higher is harder, in any order of rows, with further columns; from a scoring run or the dataset."""
    ids = np.random.default_rng(2).permutation(COUNT)
    values = (ids * 37 % 101).astype(np.int32)
    path = write_user_scores(tmp_path / "mine.parquet", ids, values, note=["x"] * len(ids))
    coreset = select(out=f"{tmp_path}/c", user_scores=path, method="easiest", fraction=0.1,
                     **{source: f"{inputs}/{source}"})  # fmt: skip
    rows = [(sample_id * 37 % 101, sample_id, 0) for sample_id in range(COUNT)]

    assert read_sample_ids(coreset).tolist() == by_sorting("easiest", rows, 10)
    assert coreset.manifest["score"] == "user"
    assert isinstance(coreset, Artifact)


def test_changed_scores_are_another_coreset(inputs, tmp_path):
    """The file's content is part of the identity, not its path."""
    scores = np.random.default_rng(0).random(COUNT)
    path = write_user_scores(tmp_path / "a.parquet", np.arange(COUNT), scores)
    copy = write_user_scores(tmp_path / "b.parquet", np.arange(COUNT), scores)
    coreset, _ = choose(inputs, tmp_path / "c", user_scores=path)
    assert choose(inputs, tmp_path / "c", user_scores=copy)[0] == coreset

    write_user_scores(tmp_path / "a.parquet", np.arange(COUNT), -scores)
    with pytest.raises(EasyCoreError, match="made with another configuration or input"):
        choose(inputs, tmp_path / "c", user_scores=path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"sample_id": range(4, COUNT), "score": range(4, COUNT)}, r"lacks scores of 4 samples \(first sample_id: 0\)"),
        ({"sample_id": [*range(COUNT), 7], "score": range(COUNT + 1)}, "more than one score for some sample_id"),
        ({"id": range(COUNT), "score": range(COUNT)}, "needs sample_id and score"),
        ({"sample_id": range(COUNT), "score": ["a"] * COUNT}, "numbers in score"),
        ({"sample_id": [0.5] * COUNT, "score": range(COUNT)}, "whole numbers in sample_id"),
        ({"sample_id": [*range(COUNT), None], "score": range(COUNT + 1)}, "whole numbers in sample_id"),
        (
            {"sample_id": range(COUNT), "score": [None, *range(1, COUNT)]},
            r"1 of 101 scores are NaN \(first ids: \[0\]\)",
        ),
    ],
)
def test_user_scores_that_do_not_fit_are_refused(inputs, tmp_path, columns, message):
    """Missing, doubled, unnamed, not numbers, not there: each with its sentence."""
    pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), tmp_path / "mine.parquet")

    refuse(inputs, tmp_path / "c", message, user_scores=f"{tmp_path}/mine.parquet", method="easiest")


def test_a_file_that_is_no_parquet_is_refused(inputs, tmp_path):
    """Or no file at all."""
    (tmp_path / "mine.csv").write_text("sample_id,score\n0,1\n")

    refuse(inputs, tmp_path / "c", "is not a Parquet file", user_scores=f"{tmp_path}/mine.csv")
    refuse(inputs, tmp_path / "c", "cannot be read", user_scores=f"{tmp_path}/nowhere.parquet")
