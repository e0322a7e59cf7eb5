"""A scoring run on real Ray that records features, and every method that goes by them."""

from pathlib import Path

import numpy as np
import pytest

from easycore_ray import inspect, prepare, reduce, score, select, sweep
from easycore_ray.config.experiments import SweepConfig
from easycore_ray.core.selection import METHODS, choose
from easycore_ray.experiments.plans import open_sweep_inputs
from easycore_ray.scoring.feature_table import open_features, read_features
from easycore_ray.scoring.hardness_table import open_hardness, read_hardness
from easycore_ray.storage.errors import EasyCoreError

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

FEATURE_METHODS = [name for name, method in METHODS.items() if method.needs_features]


@pytest.fixture(scope="module")
def scores(ray_session, tmp_path_factory):
    """Of the digits, by two workers."""
    folder = tmp_path_factory.mktemp("features")
    dataset = prepare(source="digits", out=f"{folder}/dataset")
    return score(dataset=dataset, out=f"{folder}/scores", model="cnn", width=4, epochs=3, batch_size=100, num_workers=2,
                 score_pass="eval", augment="none", record=("features", "kd"), tracking_uri="none")  # fmt: skip


def test_the_run_is_whole_and_says_what_it_has(scores):
    """The feature table is a parent of the run, with a row for every sample; all of it is verified."""
    facts = inspect(path=scores.path, verify=True)
    verified = {found["path"]: found["problems"] for found in facts["verified"]}
    table = open_features(scores.path, "x")

    assert verified[f"{scores.path}/features"] == []
    assert not any(verified.values())
    assert table.manifest["counts"]["samples"] == scores.manifest["counts"]["samples"]
    assert (table.manifest["num_features"], table.manifest["num_classes"]) == (16, 10)
    assert scores.manifest["parents"]["feature_table"]["fingerprint"] == table.fingerprint


def test_changes_of_the_softmax_are_recorded_and_what_they_were_made_of_is_gone(scores, tmp_path):
    """TDDS is made of them; CLD of the validation losses of the same run."""
    table = reduce(scores=scores, only=("tdds:window=3", "grand", "cld"), out=f"{tmp_path}/own").table()
    assert not Path(scores.path, "softmax").exists()
    for name in ("tdds:window=3", "grand"):
        assert min(table[name].to_pylist()) > 0
    assert -1.0 <= min(table["cld"].to_pylist()) < max(table["cld"].to_pylist()) <= 1.0


@pytest.mark.parametrize("method", FEATURE_METHODS)
def test_a_coreset_is_what_the_method_keeps_of_the_table(scores, tmp_path, method):
    """With class balance, of the whole training split; read from files, as from memory."""
    coreset = select(scores=scores, method=method, fraction=0.1, balance="class", out=f"{tmp_path}/c")
    ids, features = read_features(open_features(scores.path, "x"))
    table = read_hardness(open_hardness(scores.path))
    plain = choose(method, sample_ids=ids, labels=table["label"].to_numpy(), scores=table["el2n"].to_numpy(),
                   score="el2n", features=features, fraction=0.1, balance="class")  # fmt: skip

    assert table["sample_id"].to_numpy().tolist() == ids.tolist()
    assert np.array_equal(coreset.sample_ids(), plain)
    assert {"hardness_table", "feature_table", "dataset"} <= set(coreset.manifest["parents"])


def test_a_sweep_takes_arms_by_features_where_they_were_recorded(scores, tmp_path):
    """It trains on them; without features it is refused before anything is trained."""
    dataset = scores.manifest["parents"]["dataset"]["path"]
    fields = dict(dataset=dataset, model="cnn", width=2, batch_size=100, augment="none", training=("standard",),
                  beta=(), method=("moderate/class",), fraction=(0.1,), seeds=(0,), attack=("pgd20",),
                  num_eval_samples=20, train_epochs=1, tracking_uri="none")  # fmt: skip
    rows = sweep(scores=scores, out=f"{tmp_path}/sweep", **fields).rows()
    assert {row["method"] for row in rows} == {"full", "moderate"}
    bare = score(dataset=dataset, out=f"{tmp_path}/bare", model="cnn", width=2, epochs=1, batch_size=100,
                 augment="none", num_workers=1, tracking_uri="none")  # fmt: skip
    with pytest.raises(EasyCoreError, match=r"method moderate/class needs what .*; score with --record features"):
        open_sweep_inputs(SweepConfig(scores=bare.path, out=f"{tmp_path}/no", **fields))
