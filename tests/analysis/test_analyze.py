"""analyze in this process: exact distances of a plane, what is refused, the files, and what inspect says of them."""

import json
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from easycore_ray import analyze, inspect, select
from easycore_ray.analysis.analyze import (
    ANALYSIS_PAGE,
    attack_samples,
    finish_analysis,
    measure_shard,
)
from easycore_ray.analysis.inputs import open_analysis
from easycore_ray.config.base import to_dict
from easycore_ray.config.experiments import AnalyzeConfig
from easycore_ray.config.stages import TrainConfig
from easycore_ray.core.models import build_model
from easycore_ray.data.samples import Samples
from easycore_ray.engine.checkpoint import write_model
from easycore_ray.reporting.analysis_page import make_analysis_plots, render_analysis, render_analysis_page
from easycore_ray.reporting.inspect_text import to_text
from easycore_ray.runtime.claims import claim_artifact
from easycore_ray.storage import artifact, hashes, paths
from easycore_ray.storage.artifact import Claim
from easycore_ray.storage.errors import EasyCoreError
from tests.artifacts import edit_manifest, make_dataset, make_image_dataset, make_scoring_run
from tests.tracking.stores import client_of, runs_of, store_of

LABELS = [number % 3 for number in range(300)]
EPS = (1 / 255, 8 / 255, 32 / 255)
MODEL = dict(name="cnn", num_classes=3, image_shape=[1, 4, 4], width=2, mean=[0.5], std=[0.25], seed=0)


def make_checkpoint(folder, parents, samples=300, **changes):
    """A model with its initial weights, as a finished training run leaves it."""
    model = MODEL | changes
    shape = {key: tuple(model[key]) for key in ("image_shape", "mean", "std")}
    content = write_model(str(folder), build_model(**model | shape).state_dict())
    config = TrainConfig(out=str(folder), dataset=parents["dataset"].path, seed=model["seed"])
    return artifact.finish(
        Claim(str(folder), "checkpoint", "i" * 64, "nonce", resumed=False), config=to_dict(config), parents=parents,
        fingerprint=hashes.content_hash(content), counts={"samples": samples}, wall_seconds=1.0, model=model,
    )  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A dataset, a scoring run, models trained on all and on half of it."""
    root = tmp_path_factory.mktemp("world")
    dataset = make_image_dataset(root / "dataset", LABELS)
    scores = make_scoring_run(root / "scores", dataset, LABELS)
    coreset = select(out=f"{root}/coreset", scores=scores.path, fraction=0.5)
    make_checkpoint(root / "whole", {"dataset": dataset})
    make_checkpoint(root / "half", {"dataset": dataset, "coreset": coreset}, samples=150, seed=1)
    return root


def config_of(world, out="unused", **changes):
    fields = dict(scores=(f"{world}/scores",), checkpoint=(f"{world}/whole", f"{world}/half"), eval_eps=EPS,
                  out=str(out), num_train_samples=200)  # fmt: skip
    return AnalyzeConfig(**fields | changes)


@pytest.fixture(scope="module")
def done(world, tmp_path_factory):
    """An analysis made without Ray."""
    out = str(tmp_path_factory.mktemp("done") / "analysis")
    config = config_of(world, out)
    inputs = open_analysis(config)
    made = Claim(out, "analysis", "i" * 64, "nonce", resumed=False)
    return finish_analysis(config, made, inputs, attack_samples(config, inputs), time.monotonic())


# ---------------------------------------------------------------- attacks


class Plane(nn.Module):
    """Two classes apart by a plane; distances are |side| over the dual norm."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, generator=torch.Generator().manual_seed(1)))

    def forward(self, inputs):
        side = (inputs - 0.5).flatten(1) @ self.weight
        return torch.stack([side, -side], dim=1)


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_distances_of_a_plane_are_exact_and_wrong_images_are_at_0(norm, dual):
    """Mid-grey images, so that no pixel range is in the way: within 3 %, never below."""
    images = torch.randint(90, 166, (300, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    model = Plane().eval()
    with torch.no_grad():
        logits = model(images / 255)
    labels = logits.argmax(1)
    labels[::5] = 1 - labels[::5]
    exact = (logits[:, 0].abs() / model.weight.norm(p=dual)).detach().numpy()
    exact[::5] = 0.0
    rows = Samples(torch.arange(300), images, labels)
    found = measure_shard(model, rows, EPS, norm=norm, seed=0)

    assert found["clean_correct"].to_numpy().tolist() == [number % 5 > 0 for number in range(300)]
    distance = found["distance"].to_numpy()
    assert (distance >= exact * (1 - 1e-4) - 1e-7).all()
    assert (distance <= exact * 1.03 + 1e-6).all()


@pytest.mark.slow
def test_each_row_says_whether_it_was_seen_and_is_robust_where_its_distance_says_so(done, world):
    """Score and decile as in the hardness table; seen as in the coreset; robust at eps if farther than eps."""
    rows = pq.read_table(f"{done.path}/samples.parquet")
    coreset = set(np.load(f"{world}/coreset/sample_ids.npy").tolist())
    distance = rows["distance"].to_numpy()
    ids = rows["sample_id"].to_numpy()

    assert rows.column_names[:8] == [
        "model", "sample_id", "label", "score", "decile", "seen", "clean_correct", "distance",
    ]  # fmt: skip
    assert rows["model"].to_pylist() == [0] * 200 + [1] * 200
    assert ids[:200].tolist() == ids[200:].tolist() == sorted(set(ids.tolist()))
    assert rows["seen"].to_pylist() == [True] * 200 + [number in coreset for number in ids[200:].tolist()]
    assert np.bincount(rows["decile"].to_numpy()[:200]).tolist() == [0] + [20] * 10
    for name, eps in zip(rows.column_names[8:], EPS, strict=True):
        assert np.array_equal(rows[name].to_numpy(), distance > eps)
    assert np.array_equal(rows["clean_correct"].to_numpy(), distance > 0)
    assert 0.1 < rows["clean_correct"].to_numpy().mean() < 0.9


@pytest.mark.slow
def test_pgd_only_ever_brings_a_sample_nearer(world):
    """With more eps to look at, no distance grows."""
    few, many = (attack_samples(c, open_analysis(c)) for c in (config_of(world, eval_eps=EPS[:1]), config_of(world)))
    assert (many["distance"].to_numpy() <= few["distance"].to_numpy()).all()


# ---------------------------------------------------------------- what is written


@pytest.mark.slow
def test_the_summary_counts_what_the_samples_say(done):
    """Groups apart for seen and unseen; deciles, verdicts and the manifest agree; no NaN anywhere."""
    rows = pq.read_table(f"{done.path}/samples.parquet")
    summary = json.loads(paths.read_bytes(f"{done.path}/summary.json"), parse_constant=lambda word: pytest.fail(word))
    half = rows.filter(pa.array(rows["model"].to_numpy() == 1))
    seen = half["seen"].to_numpy()

    assert [group["which"] for group in summary["groups"]] == ["all", "seen", "unseen"]
    assert [group["num_samples"] for group in summary["groups"]] == [200, seen.sum(), (~seen).sum()]
    for group, mine in zip(summary["groups"][1:], (seen, ~seen), strict=True):
        for entry in group["deciles"]:
            at = mine & (half["decile"].to_numpy() == entry["decile"])
            assert entry["num_samples"] == at.sum()
            assert entry["clean_accuracy"]["share"] == half["clean_correct"].to_numpy()[at].mean()
    assert [claim["outcome"] for claim in summary["claims"]] == [claim["outcome"] for claim in done.manifest["claims"]]
    assert [claim["key"] for claim in summary["claims"]] == [
        "attack", "distance", "classified", "learned", "agnostic", "mix",
    ]  # fmt: skip
    assert summary["models"][1]["drawn_seen"] == seen.sum()


@pytest.mark.slow
def test_random_scores_of_an_untrained_model_are_not_said_to_hold(done):
    """No claim comes out of noise."""
    assert all(claim["outcome"] != "holds" for claim in done.manifest["claims"])


@pytest.mark.slow
def test_the_page_is_whole_and_loads_nothing(done):
    """Every verdict, model, plot and rule is in it; no address but of namespaces; plots are PNG files."""
    page = paths.read_bytes(f"{done.path}/{ANALYSIS_PAGE}").decode()

    for claim in done.manifest["claims"]:
        assert claim["claim"].replace("'", "&#x27;") in page
    assert page.count("here</b>") == 6
    for name in ("attack_success", "distance", "learning", "classes", "rules", "lineage"):
        assert f'<section id="{name}">' in page
    assert 'id="agreement"' not in page, "one run agrees with nothing"
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    for name in done.manifest["files"]:
        if name.endswith(".png"):
            assert paths.read_bytes(f"{done.path}/{name}").startswith(b"\x89PNG")


@pytest.mark.slow
def test_equal_findings_give_equal_files(done):
    """A page can be compared with another by its hash."""
    summary = json.loads(paths.read_bytes(f"{done.path}/summary.json"))
    summary["groups"] = summary["groups"][:1]
    one, two = (render_analysis(summary, ["a", "b", "c"], {"parents": {}}, ANALYSIS_PAGE) for _ in range(2))
    assert one == two


@pytest.mark.slow
def test_what_a_user_named_is_not_taken_for_markup(done):
    """Names of models, runs and warnings are escaped."""
    summary = json.loads(paths.read_bytes(f"{done.path}/summary.json"))
    summary["groups"][0]["name"] = summary["models"][0]["name"] = "<script>x"
    summary["warnings"] = ["<script>y"]
    summary["claims"][0]["sentence"] = summary["claims"][0]["parts"][0]["group"] = "<script>z"
    page = render_analysis_page(summary, [], {"parents": {"<script>v": {}}})

    assert len(re.findall("<script>", page)) == 1, "the page's own"


@pytest.mark.slow
def test_without_a_model_only_scores_are_looked_at(world, tmp_path, monkeypatch):
    """No Ray, no attack; two runs are compared; what needs a model is inconclusive."""
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray was started"))
    dataset = artifact.open_artifact(f"{world}/dataset")
    other = make_scoring_run(tmp_path / "other", dataset, LABELS, epochs=3)
    done = analyze(scores=(f"{world}/scores", other.path), out=str(tmp_path / "a"))
    claims = {claim["key"]: claim for claim in done.manifest["claims"]}
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())

    assert claims["attack"]["sentence"] == "needs a model; pass --checkpoint"
    assert claims["agnostic"]["outcome"] == "inconclusive"
    assert len(summary["pairs"]) == 1
    assert [plot.name for plot in make_analysis_plots(summary, "abc")] == ["learning", "classes", "agreement"]
    assert done.manifest["counts"] == {"samples": 0, "models": 0, "scoring_runs": 2}
    assert analyze(scores=(f"{world}/scores", other.path), out=str(tmp_path / "a")).manifest == done.manifest


# ---------------------------------------------------------------- refused, warned, told


def test_a_plan_says_what_would_be_done(world, tmp_path):
    """Numbers, and nothing written."""
    plan = analyze.plan(config_of(world, tmp_path / "a"))
    assert plan.work == "compare 1 scoring run and attack 200 training samples with each of 2 models"
    assert not (tmp_path / "a").exists()


def test_inputs_that_do_not_belong_together_are_refused(world, tmp_path):
    """Before anything is written: another dataset, another shape, one class, too few samples, no such score."""
    dataset = artifact.open_artifact(f"{world}/dataset")
    foreign = make_dataset(tmp_path / "foreign", LABELS[:200])
    single = make_image_dataset(tmp_path / "single", [0] * 200)
    few = make_image_dataset(tmp_path / "few", LABELS[:49])
    for name, data, labels in (("one", single, [0] * 200), ("little", few, LABELS[:49])):
        make_scoring_run(tmp_path / name, data, labels)
    make_checkpoint(tmp_path / "wide", {"dataset": dataset}, num_classes=4)
    cases = [
        ({"dataset": foreign.path}, r"holds scores of .*; pass the dataset that was scored"),
        ({"checkpoint": (f"{tmp_path}/wide",)}, r"takes images of shape \(1, 4, 4\) in 4 classes"),
        ({"scores": (f"{tmp_path}/one",), "checkpoint": ()}, r"all 200 scored samples are of one class"),
        ({"scores": (f"{tmp_path}/little",), "checkpoint": ()}, r"49 samples are scored, 50 are needed"),
        ({"scores": (f"{world}/scores", f"{tmp_path}/one")}, r"pass scoring runs of one dataset"),
        ({"checkpoint": (f"{world}/dataset",)}, r"holds a dataset, not a checkpoint"),
    ]
    for changes, words in cases:
        with pytest.raises(EasyCoreError, match=words):
            analyze(config_of(world, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_dry_run_reads_no_weights_and_loads_no_torch(world, tmp_path):
    """It says how much there is to do after a look at manifests and scores."""
    words = ["--scores", f"{world}/scores", "--checkpoint", f"{world}/whole", "--eval-eps", "0.1", "--dry-run"]
    code = "import sys; from easycore_ray.cli import main; main(sys.argv[1:]); print(*sys.modules)"
    call = [sys.executable, "-c", code, "analyze", *words, "--out", f"{tmp_path}/a"]
    done = subprocess.run(call, capture_output=True, text=True, check=True, timeout=60)
    *said, modules = done.stdout.splitlines()

    assert "compare 1 scoring run and attack 300 training samples with each of 1 model" in said[0]
    assert not {"torch", "ray", "mlflow", "matplotlib"} & set(modules.split())


def test_a_model_of_unknown_training_data_is_not_told_apart_and_said_so(world, tmp_path):
    """Its coreset is gone, or it was trained on another dataset."""
    dataset = artifact.open_artifact(f"{world}/dataset")
    gone = artifact.Artifact(f"{tmp_path}/gone", {"kind": "coreset", "fingerprint": "c" * 64})
    other = artifact.Artifact(dataset.path, dataset.manifest | {"fingerprint": "d" * 64})
    make_checkpoint(tmp_path / "lost", {"dataset": dataset, "coreset": gone})
    make_checkpoint(tmp_path / "elsewhere", {"dataset": other})
    config = config_of(world, checkpoint=(f"{tmp_path}/lost", f"{tmp_path}/elsewhere"))
    inputs = open_analysis(config)

    assert [model.seen for model in inputs.models] == [None, None]
    assert re.search(r"coreset .*gone, which is gone", inputs.warnings[0])
    assert "was trained on another dataset" in inputs.warnings[1]
    assert attack_samples(config, inputs)["seen"].null_count == 400


@pytest.mark.slow
def test_inspect_tells_the_verdicts_and_finds_damage(done, tmp_path):
    """Every claim in a line of at most 100 columns; a changed plot or sample is found."""
    facts = inspect(path=done.path, verify=True)
    text = to_text(facts)

    assert facts["kind"] == "analysis"
    assert [entry["problems"] for entry in facts["verified"]] == [[]]
    assert "attack" in text
    assert "does not hold: " in text or "inconclusive: " in text
    assert max(map(len, text.splitlines())) <= 100
    assert "--num-train-samples" in text

    for name in done.manifest["files"]:
        content = paths.read_bytes(f"{done.path}/{name}")
        paths.write_bytes(f"{tmp_path}/copy/{name}", content)
    paths.copy_file(f"{done.path}/manifest.json", f"{tmp_path}/copy/manifest.json")
    edit_manifest(f"{tmp_path}/copy", counts={"samples": 7})
    paths.write_bytes(f"{tmp_path}/copy/plots/distance.png", b"x")
    found = inspect(path=f"{tmp_path}/copy", verify=True)["verified"][0]["problems"]
    assert re.search("they were changed", found[0])
    assert re.search("rows of samples.parquet: 400 instead of 7", found[1])


@pytest.mark.slow
def test_an_analysis_is_tracked_where_the_user_says(done, world, tmp_path, empty_store):
    """What became of each claim as a tag, page and pictures as files; the samples stay in their folder."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    config = config_of(world, tmp_path / "again", tracking_uri=store_of(tmp_path))
    inputs = open_analysis(config)
    made = claim_artifact("analysis", config, inputs.parents)
    finish_analysis(config, made, inputs, attack_samples(config, inputs), time.monotonic())
    analyze(config)
    (run,) = runs_of(store_of(tmp_path)).values()

    claims = done.manifest["claims"]
    assert {name: value for name, value in run.data.tags.items() if name.startswith("claim.")} == {
        f"claim.{claim['key']}": claim["outcome"] for claim in claims
    }
    assert claims[0]["sentence"] in run.data.tags["mlflow.note.content"]
    attached = {entry.path for entry in client_of(store_of(tmp_path)).list_artifacts(run.info.run_id)}
    assert attached == {"analysis.html", "summary.json", "plots"}
