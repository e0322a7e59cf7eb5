"""What does not belong together is refused by name, before Ray starts and before anything is written."""

import json
import re

import numpy as np
import pytest

from easycore_ray import evaluate, inspect, pipeline, reduce, score, select, sweep, train
from easycore_ray.cli.command import run
from easycore_ray.config.evaluation import EvaluateConfig
from easycore_ray.config.identity import identity_fields
from easycore_ray.config.stages import ScoreConfig
from easycore_ray.data.dataset import open_dataset
from easycore_ray.reporting.inspect_text import to_text
from easycore_ray.scoring.hardness_table import open_hardness
from easycore_ray.scoring.score_reader import input_space_of, open_table
from easycore_ray.storage import artifact
from easycore_ray.storage.artifact import Claim
from easycore_ray.storage.errors import EasyCoreError
from tests.artifacts import (
    draw_rows,
    edit_manifest,
    make_checkpoint,
    make_image_dataset,
    make_scoring_run,
    write_parts,
)

pytestmark = pytest.mark.slow

LABELS = [number % 3 for number in range(30)]
OTHER = [number % 3 for number in range(1, 31)]


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    """Nothing here may come so far."""

    def never(*arguments, **options):
        raise AssertionError("Ray was started")

    monkeypatch.setattr("ray.init", never)


@pytest.fixture
def root(tmp_path):
    """Two datasets of equal shape, a scoring run and a coreset of the first."""
    dataset = make_image_dataset(tmp_path / "dataset", LABELS)
    make_image_dataset(tmp_path / "other", OTHER)
    scores = make_scoring_run(tmp_path / "scores", dataset, LABELS)
    select(out=f"{tmp_path}/coreset", scores=scores.path, fraction=0.5)
    return tmp_path


def refuse(message, verb, **fields):
    """The verb ends in this sentence."""
    with pytest.raises(EasyCoreError, match=message):
        verb(**fields)


def test_another_datasets_coreset_trains_and_scores_nothing(root):
    """Its ids would name other images."""
    wrong = (
        rf"{root}/coreset was selected from {root}/dataset .*, not from {root}/other .*pass the dataset it belongs to"
    )
    for verb in (train, score):
        refuse(wrong, verb, out=f"{root}/new", dataset=f"{root}/other", coreset=f"{root}/coreset")
    assert not (root / "new").exists()


def test_another_datasets_scores_sweep_and_select_nothing(root):
    """Both datasets are named."""
    wrong = (
        rf"{root}/scores/hardness holds scores of {root}/dataset .*, not of {root}/other .*pass the dataset that was"
    )
    refuse(wrong, sweep, out=f"{root}/new", dataset=f"{root}/other", scores=f"{root}/scores")
    refuse(wrong, select, out=f"{root}/new", dataset=f"{root}/other", scores=f"{root}/scores")
    assert not (root / "new").exists()


def test_a_dataset_that_was_imported_anew_no_longer_fits_its_scores(root):
    """Same path, other images: what was made from it says so, and nothing more is made from both."""
    (root / "dataset").rename(root / "before")
    make_image_dataset(root / "dataset", OTHER)

    refuse("not of .*/dataset .*pass the dataset that was scored", select, out=f"{root}/new", scores=f"{root}/scores")
    refuse("not from .*/dataset", train, out=f"{root}/new", dataset=f"{root}/dataset", coreset=f"{root}/coreset")
    facts = inspect(path=f"{root}/scores", verify=True, count=0)
    assert {line["role"]: line["state"] for line in facts["parents"]}["dataset"] == "changed"
    assert any("which is changed since" in problem for entry in facts["verified"] for problem in entry["problems"])
    assert not (root / "new").exists()


def test_a_table_of_a_newer_release_is_refused_wherever_it_is_read(root):
    """Score and hardness table, by the number of the format."""
    newer = "has format_version 3, this release reads up to 2; upgrade easycore-ray"
    edit_manifest(root / "scores" / "table", format_version=3)
    refuse(newer, reduce, out=f"{root}/new", scores=f"{root}/scores")
    refuse(newer, inspect, path=f"{root}/scores/table")
    edit_manifest(root / "scores" / "hardness", format_version=3)
    refuse(newer, select, out=f"{root}/new", scores=f"{root}/scores")
    refuse(newer, sweep, out=f"{root}/new", dataset=f"{root}/dataset", scores=f"{root}/scores")
    assert not (root / "new").exists()


def test_artifacts_of_0_1_are_refused_in_one_line_and_left_as_they_are(root):
    """As inputs, as results to be reused, resumed or, also with --overwrite, replaced; by the plan as well."""
    old = {"easycore-ray": "0.1.0"}
    for folder in ("dataset", "scores", "scores/table", "scores/hardness", "coreset"):
        edit_manifest(root / folder, format_version=1, versions=old)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    new, dataset, scores = f"{root}/new", f"{root}/dataset", f"{root}/scores"
    words = r"was made by 0\.1\.0 \(format 1\); run again into another --out$"

    refuse(words, score, out=new, dataset=dataset)
    refuse(words, train, out=new, dataset=dataset, coreset=f"{root}/coreset")
    refuse(words, reduce, out=new, scores=scores)
    refuse(words, select, out=new, scores=scores)
    refuse(words, sweep, out=new, dataset=dataset, scores=scores)
    for overwrite in (False, True):
        fields = {"out": f"{root}/coreset", "dataset": f"{root}/other", "method": "random", "overwrite": overwrite}
        refuse(words, select, **fields)
        refuse(words, select.plan, **fields)
    assert not (root / "new").exists()
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_an_unfinished_run_of_0_1_is_not_resumed(root):
    """Its claim had no number of the format."""
    claim = {"kind": "coreset", "identity": "i" * 64, "nonce": "n" * 8, "created": "2026-11-01T00:00:00+00:00"}
    (root / "young").mkdir()
    (root / "young" / "run.json").write_text(json.dumps(claim))

    for overwrite in (False, True):
        refuse(r"young was made by 0\.1\.0 \(format 1\)", select, out=f"{root}/young", dataset=f"{root}/other",
               method="random", overwrite=overwrite)  # fmt: skip
    assert json.loads((root / "young" / "run.json").read_text()) == claim


def test_a_run_that_goes_on_is_still_being_written(root):
    """Claimed, with parts, but without its manifest: the run, its table and its hardness are all refused as such."""
    claimed = artifact.claim(str(root / "young"), "scoring_run", "i" * 64)
    assert isinstance(claimed, Claim)
    ids, labels = np.arange(30), np.array(LABELS)
    write_parts(root / "young" / "table", draw_rows(ids, labels, [0, 1]), ids % 2)

    for opened in (open_table, open_hardness):
        where = f"{root}/young/table" if opened is open_table else f"{root}/young"
        with pytest.raises(EasyCoreError, match=r"is still being written; pass the folder of a finished"):
            opened(where)
    refuse("young/table is still being written", reduce, out=f"{root}/new", scores=f"{root}/young")
    refuse("is still being written", select, out=f"{root}/new", scores=f"{root}/young")
    refuse("is still being written", sweep, out=f"{root}/new", dataset=f"{root}/dataset", scores=f"{root}/young")
    assert not (root / "new").exists()


def test_a_run_does_not_go_on_with_another_score_pass(root):
    """Exact and fused scores never come into one table: an interrupted run of one is no run of the other."""
    config = ScoreConfig(out=f"{root}/young", dataset=f"{root}/dataset", score_pass="eval")
    fingerprints = {"dataset": open_dataset(config.dataset).fingerprint}
    key = artifact.identity("scoring_run", identity_fields(config), fingerprints)
    artifact.claim(config.out, "scoring_run", key)

    refuse("made with another configuration or input", score, **vars(config.replace(score_pass="fused")))
    resumed = artifact.claim(config.out, "scoring_run", key)
    assert isinstance(resumed, Claim)
    assert resumed.resumed


def test_every_table_says_how_its_scores_were_taken(root):
    """So that whoever looks at two can tell; reduction hands it on."""
    edit_manifest(root / "scores" / "table", config={"score_pass": "fused"}, fingerprint="e" * 64)
    again = reduce(out=f"{root}/again", scores=f"{root}/scores")

    assert open_hardness(f"{root}/scores").manifest["score_pass"] == "eval"
    assert again.manifest["score_pass"] == "fused"
    assert inspect(path=f"{root}/again")["scores"]["score_pass"] == "fused"


def test_a_run_does_not_go_on_in_another_input_space(root):
    """Gradients at pixels and at normalised pixels never come into one table."""
    config = ScoreConfig(out=f"{root}/young", dataset=f"{root}/dataset")
    fingerprints = {"dataset": open_dataset(config.dataset).fingerprint}
    artifact.claim(config.out, "scoring_run", artifact.identity("scoring_run", identity_fields(config), fingerprints))

    refuse("made with another configuration or input", score, **vars(config.replace(input_space="normalised")))


def test_every_table_says_in_what_input_space_its_gradients_are(root):
    """Reduction hands it on, and inspect shows it; tables that do not say are of pixels."""
    config = {"score_pass": "eval", "input_space": "normalised"}
    edit_manifest(root / "scores" / "table", config=config, fingerprint="e" * 64)
    again = reduce(out=f"{root}/again", scores=f"{root}/scores")
    found = inspect(path=f"{root}/again")

    assert input_space_of(open_hardness(f"{root}/scores")) == "pixel"
    assert again.manifest["input_space"] == input_space_of(again) == found["scores"]["input_space"] == "normalised"
    assert "score pass    eval, input space normalised" in to_text(found)
    assert "input space" not in to_text(inspect(path=f"{root}/scores/hardness"))


@pytest.mark.parametrize(
    ("labels", "shape", "arguments", "message"),
    [
        (range(7), [1, 4, 4], [], r"takes images of shape \(1, 4, 4\) in 7 classes, .* has \(1, 4, 4\) in 3; pass"),
        (
            LABELS,
            [1, 8, 8],
            [],
            r"takes images of shape \(1, 8, 8\) in 3 classes, .*pass the dataset it was trained on",
        ),
        (LABELS, [1, 4, 4], ["--norm", "l2", "--eval-eps", "8"], r"at most 4 in l2; got 8.0: did you mean 8/255\?"),
        (LABELS, [1, 4, 4], ["--norm", "l2", "--attack", "autoattack"], r"at least 5 × 5 pixels, got \(4, 4\)"),
        (LABELS, [1, 4, 4], ["--split", "val"], "has no val split; prepare it with one, or pass another --split"),
    ],
    ids=["classes", "shape", "l2 eps in 0..255", "images too small", "no such split"],
)
def test_an_evaluation_that_cannot_be_is_one_line(root, capsys, labels, shape, arguments, message):
    """On the command line: what differs or is too much, exit code 2, nothing written."""
    dataset = make_image_dataset(root / "tested", LABELS, OTHER)
    trained = make_checkpoint(root / "model", make_image_dataset(root / "trained", labels).path)
    edit_manifest(root / "model", model=trained.manifest["model"] | {"image_shape": shape})
    arguments = ["--checkpoint", f"{root}/model", "--dataset", dataset.path, "--out", f"{root}/new", *arguments]
    with pytest.raises(SystemExit) as caught:
        run(EvaluateConfig, evaluate, arguments)
    said = capsys.readouterr().err

    assert caught.value.code == 2
    assert re.fullmatch(r"error: .*\n", said)
    assert re.search(message, said), said
    assert not (root / "new").exists()


def test_a_sweep_and_a_pipeline_without_the_package_of_autoattack_say_so_first(root, monkeypatch):
    """Before anything is selected or scored."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    fields = {"out": f"{root}/new", "dataset": f"{root}/dataset", "attack": ("pgd20", "autoattack")}

    refuse("pip install 'pyautoattack", sweep, scores=f"{root}/scores", **fields)
    refuse("pip install 'pyautoattack", pipeline, **fields)
    assert not (root / "new").exists()
