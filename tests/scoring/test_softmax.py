"""Changes of the softmax from scored epoch to scored epoch: against files and weights, whatever is killed."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from easycore_ray.config.stages import ScoreConfig
from easycore_ray.core.models import build_model
from easycore_ray.core.passes import score_epoch
from easycore_ray.data.samples import read_split
from easycore_ray.scoring import softmax_table
from easycore_ray.scoring.reduce import reduce
from easycore_ray.scoring.softmax_table import SOFTMAX, change, read_softmax, write_softmax
from easycore_ray.storage.errors import EasyCoreError
from tests.artifacts import draw_rows, edit_manifest, finish_table, make_image_dataset, samples_of, write_parts
from tests.hardness import population
from tests.soak.segments import Case, rows_of

pytestmark = pytest.mark.usefixtures("same_threads")

LABELS = [number % 3 for number in range(49)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_image_dataset(tmp_path_factory.mktemp("softmax") / "dataset", LABELS).path


def test_a_change_is_the_sum_of_its_source():
    """Class by class in plain Python; none where nothing has changed."""
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(4), 9).astype(np.float32), rng.dirichlet(np.ones(4), 9).astype(np.float32)
    q[0] = [1.0, 0.0, 0.0, 0.0]
    plain = [
        sum(abs(a * (np.log(a + 1e-8) - np.log(b + 1e-8))) for a, b in zip(*row, strict=True))
        for row in zip(p.astype(float).tolist(), q.astype(float).tolist(), strict=True)
    ]
    np.testing.assert_allclose(change(p, q), plain, rtol=1e-6)
    assert change(p, q).dtype == np.float32
    assert change(q, q).tolist() == [0.0] * 9


@pytest.mark.parametrize("last", [0, 1, 2])
def test_softmax_is_found_whatever_part_it_is_in(tmp_path, last):
    """Parts in any order, ids in any order; what is in none is refused, and so is a damaged part."""
    rng = np.random.default_rng(1)
    ids, values = rng.permutation(20) * 5, rng.dirichlet(np.ones(3), 20).astype(np.float32)
    parts = [
        write_softmax(str(tmp_path), {"sample_id": ids[rank::3], "softmax": values[rank::3]}, epoch=1, rank=rank,
                      attempt="a", segment=0)
        for rank in range(3)
    ]  # fmt: skip
    parts.append(parts.pop(last))
    asked = rng.permutation(20)[:11]
    assert np.array_equal(read_softmax(str(tmp_path), parts, ids[asked]), values[asked])
    with pytest.raises(EasyCoreError, match=r"lacks the softmax of 1 samples"):
        read_softmax(str(tmp_path), parts, np.array([3, 5]))
    (tmp_path / parts[0].path).rename(tmp_path / "elsewhere")
    with pytest.raises(EasyCoreError, match=r"r0000\d\.parquet cannot be read: .*; pass --overwrite to begin again"):
        read_softmax(str(tmp_path), parts, ids)
    (tmp_path / parts[0].path).write_bytes(b"torn")
    with pytest.raises(EasyCoreError, match=r"r0000\d\.parquet is damaged; pass --overwrite"):
        read_softmax(str(tmp_path), parts, ids)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "score_every"), [(1, 1), (2, 2), (3, 1)])
def test_a_run_compares_each_scored_epoch_with_the_one_before(dataset, tmp_path, workers, score_every):
    """The last change follows from the files of both epochs, and its softmax from the final weights."""
    fields = dict(score_pass="eval", record=("kd",), epochs=4, score_every=score_every, initial_pass=True)
    case = Case(dataset, workers, commit_minutes=0.0, **fields)
    whole, state = case.attempt(tmp_path / "whole")
    rows = {epoch: table.sort_by("sample_id")
            for epoch, table in rows_of(case.parts(state, tmp_path / "whole"), tmp_path / "whole").items()}  # fmt: skip
    folder = tmp_path / "whole" / SOFTMAX
    now, before = (
        pa.concat_tables(map(pq.read_table, folder.glob(f"epoch={epoch:05d}/*"))).sort_by("sample_id")
        for epoch in (4, 4 - score_every)
    )
    vectors = [np.frombuffer(b"".join(table["softmax"].to_pylist()), "<f4").reshape(49, 3) for table in (now, before)]
    model = build_model(**case.fit.model)
    model.load_state_dict(state.model)
    plain = score_epoch(model, [tuple(read_split(case.dataset, "train", np.arange(49)))], also=("kd",))

    assert now["sample_id"].to_pylist() == before["sample_id"].to_pylist() == list(range(49))
    np.testing.assert_allclose(vectors[0], plain["softmax"], atol=1e-5)
    assert rows[4]["kd_prev"].to_pylist() == change(*vectors).tolist()
    assert min(rows[4]["kd_prev"].to_pylist()) > 0
    first = min(epoch for epoch in rows if epoch)
    assert set(rows[first]["kd_prev"].to_pylist()) == set(rows[0]["kd_prev"].to_pylist()) == {0.0}
    # Only what the next epoch is compared with, and what that was compared with, is kept.
    assert sorted(path.name for path in folder.iterdir()) == [f"epoch={epoch:05d}" for epoch in (4 - score_every, 4)]
    commits = [at for at, name in enumerate(whole.names) if name[0] in ("commit", "half a commit", "committed")]
    for number, event in enumerate(commits[2::9]):
        again = tmp_path / str(number)
        assert case.attempt(again, (0, event))[1] is None
        _, resumed = case.attempt(again)
        assert case.outcome(resumed, again) == case.outcome(state, tmp_path / "whole")


@pytest.mark.slow
def test_recording_leaves_all_other_columns_as_they_are(dataset, tmp_path):
    """To the bit."""
    tables = []
    for record in ((), ("kd",), ("kd", "features")):
        folder = tmp_path / "-".join(["run", *record])
        case = Case(dataset, 2, score_pass="eval", epochs=2, record=record)
        _, state = case.attempt(folder)
        tables.append(rows_of(case.parts(state, folder), folder)[2].sort_by("sample_id"))
    assert tables[1].drop(["kd_prev"]) == tables[0]
    assert tables[1] == tables[2]


@pytest.mark.parametrize("score_pass", ["fused", "fused+eval"])
def test_training_steps_are_not_compared(score_pass):
    with pytest.raises(EasyCoreError, match=r"record kd compares the softmax of exact passes, got score_pass fused"):
        ScoreConfig(out="o", dataset="d", record=("kd",), score_pass=score_pass)


def test_a_softmax_that_is_too_large_is_refused(dataset, monkeypatch):
    """With its size, before anything is trained."""
    monkeypatch.setattr(softmax_table, "MOST_BYTES", 500)
    with pytest.raises(EasyCoreError, match=r"record kd keeps the softmax .* for 49 samples of 3 classes"):
        Case(dataset, 1, score_pass="eval", record=("kd",))


def test_tdds_needs_what_was_recorded(tmp_path):
    """It is refused in one line without; with it, it is the sum over windows of the table's own numbers."""
    ids, labels = population()
    rows, rng = draw_rows(ids, labels, range(1, 7)), np.random.default_rng(2)
    parts = write_parts(tmp_path / "bare" / "table", rows, np.zeros(len(ids)))
    finish_table(tmp_path / "bare", parts, samples_of(ids, labels))
    with pytest.raises(EasyCoreError, match=r"score tdds:window=4 needs kd_prev, which .*; score with --record kd"):
        reduce(scores=f"{tmp_path}/bare", out=f"{tmp_path}/bare/own", only=("tdds:window=4",))
    for columns in rows:
        columns["kd_prev"] = rng.gamma(1.0, 1.0, len(ids)).astype(np.float32)
    finish_table(tmp_path, write_parts(tmp_path / "table", rows, np.zeros(len(ids))), samples_of(ids, labels))
    edit_manifest(tmp_path / "table", config={"score_pass": "eval", "training": "standard", "record": ["kd"]})
    found = reduce(scores=str(tmp_path), out=f"{tmp_path}/own", only=("tdds:window=4", "aign"))
    table = found.table()
    kd = np.array([columns["kd_prev"][np.argsort(ids)] for columns in rows], np.float64)
    spreads = [np.sqrt(((kd[at : at + 3] - kd[at : at + 3].mean(axis=0)) ** 2).sum(axis=0)) for at in (1, 2, 3)]
    plain = sum(0.9 * 0.1**back * spread for back, spread in enumerate(reversed(spreads)))
    np.testing.assert_allclose(table["tdds:window=4"], plain, rtol=1e-12)
