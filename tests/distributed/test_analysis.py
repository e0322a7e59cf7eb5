"""analyze on Ray: scoring runs and models made by the real jobs; the same outcomes on any number of workers."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from easycore_ray import analyze, score
from easycore_ray.analysis import analyze as analysis
from easycore_ray.config.experiments import AnalyzeConfig
from easycore_ray.scoring.hardness_table import open_hardness, read_hardness
from easycore_ray.storage.artifact import identity
from easycore_ray.storage.errors import EasyCoreError
from tests.artifacts import make_checkpoint

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def inputs(digits, population, settings, two_workers, tmp_path_factory):
    """Fields of an analysis: two scoring runs that differ by the seed, a model trained on what they scored."""
    root = tmp_path_factory.mktemp("analysis")
    other = score(**settings(root / "other", seed=4))
    model = make_checkpoint(f"{root}/model", digits.path, coreset=population.path, steps=None, epochs=8, batch_size=16)
    return dict(
        scores=(two_workers.path, other.path), checkpoint=(model.path,), eval_eps=(0.02, 0.1), num_train_samples=80
    )


@pytest.fixture(scope="module")
def one_worker(inputs, tmp_path_factory):
    return analyze(**inputs, out=str(tmp_path_factory.mktemp("one") / "analysis"), num_workers=1)


@pytest.fixture(scope="module")
def three_shards(inputs, tmp_path_factory):
    """The same analysis in shards of 30."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analysis, "SHARD_ROWS", 30)
        return analyze(**inputs, out=str(tmp_path_factory.mktemp("three") / "analysis"), num_workers=1)


def test_outcomes_are_those_of_the_same_shards_in_this_process(one_worker, three_shards, inputs, monkeypatch, tmp_path):
    """Shards of 30 on one worker, on two, and one after the other here: the same files, whatever their number."""
    monkeypatch.setattr(analysis, "SHARD_ROWS", 30)
    config = AnalyzeConfig(**inputs, out=str(tmp_path / "two"), num_workers=2)
    two = analyze(config)
    here = analysis.attack_samples(config, analysis.open_analysis(config))

    assert two.fingerprint == three_shards.fingerprint
    assert pq.read_table(f"{two.path}/samples.parquet").equals(here)
    assert here.num_rows == 80
    assert not list(Path(two.path).glob("shards-*"))
    # The first was attacked in one shard: other batches round otherwise, and PGD starts elsewhere.
    assert pq.read_table(f"{one_worker.path}/samples.parquet")["sample_id"].equals(here["sample_id"])


def easiest_half(run):
    """Ids of the 49 of 97 samples with the lowest AIGN."""
    rows = read_hardness(open_hardness(run)).select(["sample_id", "aign"]).to_pylist()
    return {row["sample_id"] for row in sorted(rows, key=lambda row: (row["aign"], row["sample_id"]))[:49]}


def test_the_runs_are_compared_by_what_differs(one_worker, inputs):
    """Two seeds: a yardstick without another network; the claim is inconclusive, and says what to add."""
    summary = json.loads((Path(one_worker.path) / "summary.json").read_text())
    (pair,) = summary["pairs"]
    claims = {claim["key"]: claim for claim in one_worker.manifest["claims"]}

    assert pair["differ"] == "seed"
    assert pair["overlap"] == len(set.intersection(*map(easiest_half, inputs["scores"]))) / 49
    assert claims["agnostic"]["outcome"] == "inconclusive"
    assert "runs of two networks" in claims["agnostic"]["sentence"]
    assert set(one_worker.manifest["parents"]) == {"dataset", "hardness_table", "hardness_table_2", "checkpoint"}
    assert summary["models"][0]["drawn_seen"] == 80


@pytest.mark.soak
def test_a_killed_analysis_goes_on_with_the_shards_that_are_there(three_shards, inputs, monkeypatch, tmp_path, capsys):
    """Only what is missing is attacked; the result is that of an uninterrupted one."""
    monkeypatch.setattr(analysis, "SHARD_ROWS", 30)
    fields = dict(inputs, out=str(tmp_path / "analysis"), num_workers=1)
    monkeypatch.setattr(analysis, "finish_analysis", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        analyze(**fields)
    monkeypatch.undo()
    monkeypatch.setattr(analysis, "SHARD_ROWS", 30)
    shards = sorted((tmp_path / "analysis").glob("shards-*/*.parquet"))
    shards[0].unlink()
    capsys.readouterr()
    again = analyze(**fields)

    assert len(shards) == 3
    assert "resuming, 2 of 3 shards exist already" in capsys.readouterr().err
    assert again.fingerprint == three_shards.fingerprint
    assert again.manifest["identity"] == three_shards.manifest["identity"] != identity("analysis", {}, {})


def test_what_the_cluster_cannot_give_is_refused_and_the_folder_left_free(inputs, tmp_path):
    """Before any attack; the corrected command may use the same folder."""
    with pytest.raises(EasyCoreError, match="GPUs are wanted"):
        analyze(**inputs, out=str(tmp_path / "a"), gpus_per_worker=1.0)
    assert not (tmp_path / "a").exists()
