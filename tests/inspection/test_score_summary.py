"""Quantiles and extremes of hardness tables, one file of a table at a time."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from easycore_ray import inspect
from easycore_ray.core.selection import HIGHER_IS_HARDER
from easycore_ray.inspection import score_summary
from easycore_ray.inspection.score_summary import QUANTILES, summarise_scores
from easycore_ray.reporting.inspect_text import to_text
from easycore_ray.scoring.hardness_table import ADVERSARIAL_HARDNESS_SCHEMA, write_hardness
from easycore_ray.storage.artifact import Artifact
from easycore_ray.storage.errors import EasyCoreError


def make_table(folder, columns, cuts):
    """A hardness table of these columns in files cut at these places."""
    count = len(columns["sample_id"])
    schema = ADVERSARIAL_HARDNESS_SCHEMA
    zeros = {spec.name: np.zeros(count) for spec in schema}
    table = pa.table({name: pa.array(values) for name, values in (zeros | columns).items()}).cast(schema)
    edges = [0, *cuts, count]
    files = [
        write_hardness(str(folder), number, table.slice(low, high - low))
        for number, (low, high) in enumerate(pairwise(edges))
    ]
    content = {"kind": "hardness_table", "fingerprint": "f", "counts": {"samples": count}, "files": files}
    return Artifact(str(folder), content)


def draw_columns(count, *, ties=False):
    """Random scores, as often equal as wanted."""
    rng = np.random.default_rng(count)
    found = {"sample_id": np.sort(rng.choice(10 * count, count, replace=False)), "label": rng.integers(0, 5, count)}
    for name in ("aign", "el2n", "loss", "aum", "input_norm", "aign_epoch0", "adv_loss"):
        values = rng.normal(0, 1, count).astype(np.float32)
        found[name] = np.round(values) if ties else values
    found |= {"num_scores": np.full(count, 4), "forgetting_events": rng.integers(0, 3, count)}
    return found | {"first_learned_epoch": rng.integers(-1, 3, count), "problematic": rng.integers(0, 5, count)}


@pytest.mark.parametrize("cuts", [[], [1], [100, 100, 700]])
def test_quantiles_are_those_of_the_whole_table(tmp_path, cuts):
    """However it is cut into files, empty ones too."""
    columns = draw_columns(999)
    found = summarise_scores(make_table(tmp_path, columns, cuts))

    never = columns["first_learned_epoch"] == -1
    columns["forgetting"] = np.where(never, 5, columns["forgetting_events"])
    assert set(found.quantiles) == set(HIGHER_IS_HARDER)
    for name, values in found.quantiles.items():
        np.testing.assert_allclose(values, np.quantile(columns[name].astype(float), [0, *QUANTILES, 1]), rtol=1e-12)
    assert found.sampled_rows == found.rows == 999


@pytest.mark.parametrize("score", HIGHER_IS_HARDER)
@pytest.mark.parametrize("count", [0, 1, 7, 500])
def test_extremes_are_those_of_a_full_sort(tmp_path, score, count):
    """By hardness, ties by id, at both ends; never more than there are."""
    columns = draw_columns(200, ties=True)
    found = summarise_scores(make_table(tmp_path, columns, [3, 90]), score=score, count=count)

    columns["forgetting"] = np.where(columns["first_learned_epoch"] == -1, 5, columns["forgetting_events"])
    hardness = columns[score] if HIGHER_IS_HARDER[score] else -columns[score]
    for rows, rank in ((found.easiest, hardness), (found.hardest, -hardness)):
        at = sorted(range(200), key=lambda i: (rank[i], columns["sample_id"][i]))[:count]
        assert rows.sample_ids.tolist() == columns["sample_id"][at].tolist()
        assert rows.labels.tolist() == columns["label"][at].tolist()
        assert rows.values.tolist() == columns[score][at].tolist()


def test_a_large_table_is_sampled_the_same_however_it_is_cut(tmp_path, monkeypatch):
    """Close to the truth, ends exact, and said."""
    monkeypatch.setattr(score_summary, "EXACT_ROWS", 10_000)
    monkeypatch.setattr(score_summary, "SAMPLED_ROWS", 5_000)
    columns = draw_columns(40_000)
    whole = summarise_scores(make_table(tmp_path / "a", columns, []))
    cut = summarise_scores(make_table(tmp_path / "b", columns, [13, 20_000]))
    truth = np.quantile(columns["aign"], [0, *QUANTILES, 1])

    assert whole.quantiles == cut.quantiles
    assert 4_700 < whole.sampled_rows == cut.sampled_rows < 5_300
    assert [whole.quantiles["aign"][0], whole.quantiles["aign"][-1]] == [truth[0], truth[-1]]
    np.testing.assert_allclose(whole.quantiles["aign"][2:-2], truth[2:-2], atol=0.08)
    assert whole.easiest.values[0] == truth[0]


def test_a_large_table_is_read_a_file_at_a_time(tmp_path, monkeypatch):
    """Never two files at once, and no file twice."""
    table = make_table(tmp_path, draw_columns(300), [100, 200])
    asked = []
    real = score_summary.read_hardness_file

    def read(folder, entry, columns):
        asked.append(entry["path"])
        return real(folder, entry, columns)

    monkeypatch.setattr(score_summary, "read_hardness_file", read)
    summarise_scores(table)

    assert asked == [entry["path"] for entry in table.manifest["files"]]


def test_the_text_says_that_quantiles_are_sampled(made, monkeypatch):
    """Exact or not, and from how many."""
    assert "Scores of 60 samples, quantiles exact" in to_text(inspect(path=f"{made}/scores"))
    monkeypatch.setattr(score_summary, "EXACT_ROWS", 10)
    monkeypatch.setattr(score_summary, "SAMPLED_ROWS", 30)
    assert "quantiles from a fixed sample of" in to_text(inspect(path=f"{made}/scores"))


def test_a_score_that_was_not_recorded_is_refused_by_name(tmp_path):
    """The others are told without it."""
    columns = draw_columns(20)
    columns["aign_epoch0"] = pa.nulls(20, pa.float32())
    table = make_table(tmp_path, columns, [])

    assert "aign_epoch0" not in summarise_scores(table).quantiles
    with pytest.raises(EasyCoreError, match="did not record aign_epoch0, or it was reduced without it"):
        summarise_scores(table, score="aign_epoch0")
