"""Features beside scores: what a scoring run records of its network's last layer, and what is refused."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from easycore_ray.config.stages import ScoreConfig
from easycore_ray.core.last_layer import check_last_layer, record_last_layer
from easycore_ray.core.models import build_model
from easycore_ray.core.passes import score_epoch
from easycore_ray.data.samples import read_split
from easycore_ray.inspection.verify import verify
from easycore_ray.scoring.feature_table import (
    FEATURE_TABLE,
    describe_features,
    open_features,
    read_features,
    write_feature_part,
)
from easycore_ray.scoring.reduce import reduce
from easycore_ray.scoring.reduce_task import make_plan, reduce_range
from easycore_ray.scoring.score_reader import open_table
from easycore_ray.scoring.score_table import ScorePart
from easycore_ray.storage.artifact import Artifact
from easycore_ray.storage.errors import EasyCoreError
from tests.artifacts import (
    draw_rows,
    edit_manifest,
    finish_features,
    finish_table,
    make_image_dataset,
    samples_of,
    write_parts,
)
from tests.soak.segments import Case

pytestmark = pytest.mark.usefixtures("same_threads")

LABELS = [number % 3 for number in range(49)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_image_dataset(tmp_path_factory.mktemp("features") / "dataset", LABELS).path


# ---------------------------------------------------------------- the last layer


@pytest.mark.parametrize("name", ["cnn", "resnet18", "preactresnet18", "wrn-28-10"])
def test_features_are_what_the_last_layer_takes(name):
    """Of networks with a head of their own kinds: its logits follow from them, and scores stay as they are."""
    model = build_model(name, num_classes=5, image_shape=(3, 8, 8), width=1, mean=[0.4] * 3, std=[0.2] * 3, seed=1)
    draws = torch.Generator().manual_seed(2)
    rows = (
        torch.arange(9),
        torch.randint(0, 256, (9, 3, 8, 8), generator=draws, dtype=torch.uint8),
        torch.arange(9) % 5,
    )
    plain, found = score_epoch(model, [rows]), score_epoch(model, [rows], also=("features",))

    assert all(found[name].tobytes() == plain[name].tobytes() for name in plain)
    assert found["features"].dtype == found["probabilities"].dtype == np.float16
    size, classes = check_last_layer(model, (3, 8, 8))
    assert found["features"].shape == (9, size)
    assert found["probabilities"].shape == (9, classes) == (9, 5)
    with torch.no_grad():
        logits = model.eval()(rows[1].float() / 255)
        layer = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        again = layer(torch.from_numpy(found["features"]).float())
    np.testing.assert_allclose(again, logits, atol=2e-2)
    np.testing.assert_allclose(found["probabilities"], logits.softmax(1), atol=1e-3)


def test_a_network_that_does_not_end_in_a_linear_layer_is_refused():
    """Naming what it lacks; nothing stays hooked to it."""
    shape = (3, 4, 4)
    convolution = nn.Sequential(nn.Conv2d(3, 2, 4), nn.Flatten())
    scaled = nn.Sequential(nn.Flatten(), nn.Linear(48, 2), nn.Softmax(dim=1))
    for model, message in ((convolution, "has no linear layer"), (scaled, "are not what its last linear layer gives")):
        with pytest.raises(ValueError, match=message):
            check_last_layer(model, shape)
    with record_last_layer(scaled), pytest.raises(RuntimeError):
        scaled(torch.zeros(1, 1))
    assert not any(module._forward_hooks for module in scaled.modules())


# ---------------------------------------------------------------- a run


def features_of(state, folder):
    """All features that a state lists, by id."""
    parts = [ScorePart.from_dict(entry) for entry in state.carried["feature_parts"]]
    where = f"{folder}/{FEATURE_TABLE}"
    sizes = describe_features(parts, where)
    table = Artifact(where, {"parts": state.carried["feature_parts"], "counts": {"samples": 49}, **sizes})
    return read_features(table)


@pytest.mark.slow
@pytest.mark.parametrize(("score_pass", "workers"), [("eval", 1), ("fused+eval", 2), ("eval", 3)])
def test_a_run_records_the_features_of_its_final_weights(dataset, tmp_path, score_pass, workers):
    """Every sample once, whatever the workers; killed and resumed to the same bits."""
    case = Case(dataset, workers, score_pass=score_pass, record=("features",), initial_pass=True, commit_minutes=0.0)
    whole, state = case.attempt(tmp_path / "whole")
    ids, features = features_of(state, tmp_path / "whole")
    model = build_model(**case.fit.model)
    model.load_state_dict(state.model)
    rows = read_split(case.dataset, "train", ids)
    plain = score_epoch(model, [tuple(rows)], also=("features",))

    assert ids.tolist() == list(range(49))
    assert features.values.dtype == np.float32
    np.testing.assert_allclose(features.values, plain["features"], atol=1e-3, rtol=1e-3)
    np.testing.assert_allclose(features.probabilities, plain["probabilities"], atol=1e-3)
    np.testing.assert_allclose(features.probabilities.sum(axis=1), 1.0, atol=5e-3)
    last = [at for at, name in enumerate(whole.names) if name[0] in ("commit", "half a commit", "committed")][-8::3]
    for number, event in enumerate(last):
        folder = tmp_path / str(number)
        assert case.attempt(folder, (0, event))[1] is None
        _, resumed = case.attempt(folder)
        again = features_of(resumed, folder)[1]
        assert again.values.tobytes() == features.values.tobytes()
        assert again.probabilities.tobytes() == features.probabilities.tobytes()
        assert case.outcome(resumed, folder) == case.outcome(state, tmp_path / "whole")


@pytest.mark.slow
def test_a_run_that_ends_early_has_the_features_of_the_weights_it_ends_with(dataset, tmp_path):
    """Its exact pass is the last one, whenever that is."""
    case = Case(dataset, 1, score_pass="fused+eval", record=("features",), epochs=9, stop_when_stable=0.05)
    _, state = case.attempt(tmp_path)
    ids, features = features_of(state, tmp_path)
    model = build_model(**case.fit.model)
    model.load_state_dict(state.model)
    plain = score_epoch(model, [tuple(read_split(case.dataset, "train", ids))], also=("features",))

    assert state.epoch < 9
    assert state.carried["feature_parts"][0]["epoch"] == state.epoch + 1
    np.testing.assert_allclose(features.values, plain["features"], atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_recording_changes_no_score(dataset, tmp_path):
    """Tables of a run with and without features are the same bits."""
    found = []
    for record in ((), ("features",)):
        case = Case(dataset, 2, score_pass="fused+eval", record=record)
        _, state = case.attempt(tmp_path / str(len(record)))
        found.append(case.outcome(state, tmp_path / str(len(record))))
    assert found[0] == found[1]
    assert "feature_parts" in state.carried


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(score_pass="fused"), "record features needs an exact pass of the final weights, got score_pass fused"),
        (dict(score_pass="eval", stop_when_stable=0.9), "does not know which pass is the last"),
        (dict(record=("feature",)), "record"),
    ],
)
def test_what_cannot_be_recorded_is_refused(fields, message):
    with pytest.raises(EasyCoreError, match=message):
        ScoreConfig(out="o", dataset="d", **{"record": ("features",)} | fields)


# ---------------------------------------------------------------- a table


@pytest.fixture
def run(tmp_path):
    """A finished run's two tables of 23 samples, the features in three parts."""
    ids, rng = np.random.default_rng(0).permutation(23) * 3 + 4, np.random.default_rng(1)
    labels = rng.integers(0, 3, 23)
    columns = {
        "sample_id": ids, "label": labels, "features": rng.normal(size=(23, 7)).astype(np.float16),
        "probabilities": rng.dirichlet(np.ones(3), 23).astype(np.float16),
    }  # fmt: skip
    finish_table(
        tmp_path, write_parts(tmp_path / "table", draw_rows(ids, labels, [1]), np.zeros(23)), samples_of(ids, labels)
    )
    finish_features(tmp_path, columns, np.arange(23) % 3)
    return tmp_path, columns


def test_a_table_is_read_in_the_order_of_ids(run):
    """Every number as it was written, in float32; nothing is wrong with it."""
    folder, columns = run
    table = open_features(str(folder), "method moderate")
    ids, features = read_features(table)
    order = np.argsort(columns["sample_id"])

    assert ids.tolist() == columns["sample_id"][order].tolist()
    assert features.values.tolist() == columns["features"][order].astype(np.float32).tolist()
    assert features.probabilities.tolist() == columns["probabilities"][order].astype(np.float32).tolist()
    assert verify(table) == []


def test_features_of_another_run_are_refused(run):
    folder, _ = run
    edit_manifest(folder / "table", identity="another")
    with pytest.raises(EasyCoreError, match=r"features holds features of another run than .*table; score anew"):
        open_features(str(folder), "method moderate")
    with pytest.raises(EasyCoreError, match=r"method moderate needs the features of the samples, and .* has none;"):
        open_features(str(folder / "elsewhere"), "method moderate")


@pytest.mark.parametrize("damage", ["gone", "changed", "count", "twice"])
def test_a_damaged_table_is_refused_and_found(run, damage):
    """By what reads it, and by ``inspect --verify``."""
    folder, _ = run
    table = open_features(str(folder), "x")
    part = folder / "features" / table.manifest["parts"][1]["path"]
    if damage == "gone":
        part.unlink()
    elif damage == "changed":
        content = bytearray(part.read_bytes())
        content[40] ^= 1
        part.write_bytes(content)
    elif damage == "count":
        edit_manifest(folder / "features", counts={"samples": 24})
    else:
        parts = table.manifest["parts"]
        edit_manifest(folder / "features", parts=[*parts, parts[1]],
                      counts={"samples": 23 + parts[1]["rows"]})  # fmt: skip
    table = open_features(str(folder), "x")
    message = {"gone": "cannot be read", "changed": "is damaged: its checksum",
               "count": "other rows than its 24 samples", "twice": "holds a sample twice"}[damage]  # fmt: skip
    with pytest.raises(EasyCoreError, match=message):
        read_features(table)
    assert verify(table)


def test_a_feature_beyond_half_precision_is_refused(tmp_path):
    columns = {"sample_id": np.array([3, 5]), "label": np.zeros(2, np.int64),
               "features": np.array([[1.0, 2.0], [np.inf, 0.0]], np.float16),
               "probabilities": np.ones((2, 1), np.float16)}  # fmt: skip
    with pytest.raises(EasyCoreError, match=r"features of 1 samples are beyond half precision.*first sample_ids: 5\)"):
        write_feature_part(str(tmp_path), columns, epoch=1, rank=0, attempt="a", segment=0)


# ---------------------------------------------------------------- GraNd


@pytest.mark.parametrize("num_ranges", [1, 3, 20])
def test_grand_joins_the_tables_by_id(run, num_ranges):
    """However ids are cut, and whatever order parts have."""
    folder, columns = run
    scores = draw_rows(columns["sample_id"], columns["label"], [1])[0]
    squares = (columns["features"].astype(np.float64) ** 2).sum(axis=1)
    plain = scores["el2n"].astype(np.float64) * np.sqrt(1 + squares)
    plan = make_plan(open_table(f"{folder}/table"), (1,), f"{folder}/cut", num_ranges, ("grand", "el2n"))
    files = [reduce_range(plan, number)["path"] for number in range(len(plan.ranges))]
    found = pa.concat_tables(pq.read_table(f"{folder}/cut/{file}") for file in files)

    order = np.argsort(columns["sample_id"])
    assert found["sample_id"].to_pylist() == columns["sample_id"][order].tolist()
    np.testing.assert_allclose(found["grand"], plain[order], rtol=1e-12)


def test_grand_needs_the_features_of_the_final_weights(run):
    """A coreset by it is made of a table of its own, whose parents are both tables."""
    folder, _ = run
    made = reduce(scores=str(folder), out=f"{folder}/own", only=("grand",))
    assert set(made.manifest["parents"]) == {"score_table", "feature_table"}
    with pytest.raises(EasyCoreError, match=r"score grand is of the final weights, got epoch_range 1:1; leave it out"):
        reduce(scores=str(folder), out=f"{folder}/some", only=("grand",), epoch_range="1:1")
    (folder / "features" / "manifest.json").unlink()
    with pytest.raises(EasyCoreError, match=r"score grand needs the features of the samples, and .* has none; score"):
        reduce(scores=str(folder), out=f"{folder}/none", only=("grand",))
