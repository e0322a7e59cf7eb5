"""Runs on real Ray that mix a second dataset into every batch: both are scored, selected from, and survive kills."""

import pytest

from easycore_ray import inspect, prepare, reduce, score, select, train
from easycore_ray.reporting.inspect_text import to_text
from easycore_ray.scoring.hardness_table import open_hardness, read_hardness
from easycore_ray.scoring.score_reader import open_table
from easycore_ray.storage.errors import EasyCoreError
from tests.distributed.test_faults import assert_same_tables, run_driver

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
# Samples of the extra data.
EXTRA = 61


@pytest.fixture(scope="session")
def extra(ray_session, shared):
    """Other splits of the digits, and 61 of them."""
    fields = dict(source="digits", val_fraction=0.0, test_fraction=0.5, seed=9)
    dataset = shared("extra", lambda out: prepare(out=out, **fields))
    fraction = EXTRA / dataset.manifest["counts"]["train"]
    few = shared("extra_few", lambda out: select(dataset=dataset.path, method="random", fraction=fraction, out=out))
    return {"extra_dataset": dataset.path, "extra_coreset": few.path}


def test_both_sources_are_scored_selected_and_trained_on(settings, extra, tmp_path):
    """The extra scores are a scoring run of the extra dataset, with which everything works as with any other."""
    run = score(**settings(tmp_path / "run", **extra))
    own = f"{run.path}/extra"
    tables = [open_table(f"{path}/table").artifact.manifest["counts"] for path in (run.path, own)]
    assert [counts["rows"] for counts in tables] == [3 * 97, 3 * EXTRA]
    ids = read_hardness(open_hardness(own), ["sample_id"])["sample_id"].to_pylist()
    fields = {"scores": own, "dataset": extra["extra_dataset"], "fraction": 0.5}
    kept = select(**fields, out=f"{tmp_path}/kept")
    assert len(ids) == EXTRA
    assert set(kept.sample_ids().tolist()) < set(ids)
    assert len(kept.sample_ids()) == 31
    assert reduce(scores=own, out=f"{tmp_path}/reduced").fingerprint == open_hardness(own).fingerprint
    with pytest.raises(EasyCoreError, match=r"holds scores of .*pass the dataset that was scored"):
        select(**fields | {"dataset": settings("o")["dataset"]}, out=f"{tmp_path}/wrong")

    facts = inspect(path=run.path, verify=True)
    assert {found["path"] for found in facts["verified"]} >= {run.path, own, f"{own}/table", f"{own}/hardness"}
    assert [found["problems"] for found in facts["verified"] if found["problems"]] == []
    assert "61 extra samples, 11 in each whole batch" in " ".join(to_text(facts).split())

    names = ("dataset", "coreset", "model", "width", "batch_size", "augment", "crop_pad", "tracking_uri")
    small = {name: value for name, value in settings("o").items() if name in names}
    model = train(**small, **extra | {"extra_coreset": kept.path}, epochs=1, out=f"{tmp_path}/model")
    # 97 samples, 5 in each of 20 batches, take 97 * 11 / 5 extra rows.
    assert model.manifest["sources"] == {
        "main": {"samples": 97, "rows_per_epoch": 97, "rows": 97},
        "extra": {"samples": 31, "batch_rows": 11, "rows_per_epoch": 214, "rows": 214, "passes": round(214 / 31, 3)},
    }
    assert "31 extra samples, 11 in each whole batch" in " ".join(to_text(inspect(path=model.path)).split())


@pytest.mark.soak
def test_lost_workers_and_drivers_cost_no_row_of_either_table(settings, extra, tmp_path):
    """Workers die beside a part of either table, the driver while it writes manifests: the same tables."""
    fields = dict(segment_images=32, commit_minutes=0.0, max_failures=5, **extra)
    whole = score(**settings(tmp_path / "whole", **fields))
    kills = [
        {"point": "before_part", "epoch": 1, "segment": 4, "rank": 0, "marker": str(tmp_path / "a")},
        {"point": "after_part", "epoch": 1, "segment": 1, "rank": 1, "marker": str(tmp_path / "b")},
        {"point": "half_commit", "epoch": 1, "rank": 0, "marker": str(tmp_path / "c")},
        {"point": "freeze", "marker": str(tmp_path / "d")},
        {"point": "reduce", "marker": str(tmp_path / "e")},
    ]
    statuses = [run_driver(settings(tmp_path / "run", **fields), kills)[0] for _ in range(3)]
    assert statuses[-1] == 0
    assert {path.name[0] for path in tmp_path.glob("?*") if len(path.name) < 4 and path.name != "run"} == set("abcde")
    run = score(**settings(tmp_path / "run", **fields))
    assert_same_tables(run, whole)
    assert (
        open_table(f"{run.path}/extra/table").artifact.fingerprint
        == open_table(f"{whole.path}/extra/table").artifact.fingerprint
    )
    assert read_hardness(open_hardness(f"{run.path}/extra")).equals(read_hardness(open_hardness(f"{whole.path}/extra")))
