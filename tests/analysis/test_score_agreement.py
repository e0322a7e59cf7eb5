"""Scoring runs side by side: what differs is read off their configurations; foreign and repeated scores are refused."""

import json
import shutil

import numpy as np
import pytest
from scipy.stats import spearmanr

from easycore_ray.analysis.score_agreement import compare, open_runs
from easycore_ray.scoring.hardness_table import open_hardness, read_hardness
from easycore_ray.scoring.reduce import reduce
from easycore_ray.storage import artifact
from easycore_ray.storage.errors import EasyCoreError
from tests.artifacts import draw_rows, finish_table, make_dataset, samples_of, write_parts

LABELS = np.arange(120) % 3


def make_run(folder, dataset, draw=0, labels=LABELS, **config):
    """A scoring run with random scores; its configuration as a scoring run has it."""
    ids = np.arange(len(labels))
    parts = write_parts(folder / "table", draw_rows(ids, labels, (1, 2), seed=draw), ids % 2)
    finish_table(folder, parts, samples_of(ids, labels), dataset)
    fields = {"dataset": dataset.path, "out": str(folder), "score_pass": "eval", **config}
    path = folder / "table" / artifact.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"config": fields}))
    reduce(out=str(folder / "hardness"), scores=str(folder))
    return str(folder)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "dataset", LABELS.tolist())


@pytest.fixture(scope="module")
def folders(dataset, tmp_path_factory):
    """Two seeds of one network, another network, the first again for more epochs, one that does not say."""
    root = tmp_path_factory.mktemp("runs")
    configs = [
        dict(model="cnn", seed=0), dict(model="cnn", width=16, seed=1), dict(model="resnet18", width=8, seed=0),
        dict(model="cnn", seed=0, epochs=40), dict(words="unknown"),
    ]  # fmt: skip
    return [make_run(root / f"run{at}", dataset, at, **config) for at, config in enumerate(configs)]


def test_runs_of_different_input_spaces_are_refused_together(dataset, folders, tmp_path):
    """Of one space they are compared; a table that does not say is of pixels."""
    other = [
        make_run(tmp_path / f"run{at}", dataset, 7 + at, model="cnn", seed=at, input_space="normalised")
        for at in (0, 1)
    ]
    assert len(compare(open_runs(other, "aign"))) == 1
    message = r"holds gradients with respect to normalised pixels, .*/run0/hardness with respect to pixels; pass "
    with pytest.raises(EasyCoreError, match=message):
        open_runs([folders[0], other[0]], "aign")


def test_names_and_pairs_say_what_differs(folders):
    """A width that is the network's own is no other network; a run without a configuration goes by its folder."""
    runs = open_runs(folders, "aign")
    found = {(pair.first, pair.second): pair.differ for pair in compare(runs)}

    assert [run.name for run in runs] == [
        "cnn-16, seed 0 (run 1)", "cnn-16, seed 1", "resnet18-8, seed 0", "cnn-16, seed 0 (run 4)", "run4",
    ]  # fmt: skip
    assert found[0, 1] == "seed"
    assert found[0, 2] == found[1, 2] == found[2, 3] == "architecture"
    assert found[0, 3] == found[1, 3] == "recipe"
    assert all(kind == "recipe" for (_, second), kind in found.items() if second == 4)


@pytest.mark.parametrize("score", ["aign", "aum", "forgetting"])
def test_pairs_agree_with_a_plain_count(folders, score):
    """Rank correlation as SciPy's, ties included; overlap as two sorted lists have it, in the score's direction."""
    runs = open_runs(folders[:2], score)
    (pair,) = compare(runs)
    ranked = [sorted(run.sample_ids.tolist(), key=lambda at, run=run: (run.hard[at], at))[:60] for run in runs]

    assert pair.rank_correlation == pytest.approx(spearmanr(runs[0].scores, runs[1].scores).statistic)
    assert pair.overlap == len(set(ranked[0]) & set(ranked[1])) / 60
    assert compare(runs[:1]) == []


def test_never_learned_is_later_than_any_epoch(folders):
    """−1 in the table, infinity here."""
    (run,) = open_runs(folders[:1], "aign")
    stored = read_hardness(open_hardness(folders[0]))["first_learned_epoch"].to_numpy()

    assert np.array_equal(np.isinf(run.first_learned), stored == -1)
    assert (stored == -1).any()


def test_foreign_repeated_and_lacking_scores_are_refused(folders, dataset, tmp_path):
    """One sentence that names both folders, or the score."""
    other = make_dataset(tmp_path / "other", (LABELS[::-1]).tolist())
    foreign = make_run(tmp_path / "foreign", other, 9)
    part = make_run(tmp_path / "part", dataset, 9, labels=LABELS[:60])
    copy = shutil.copytree(folders[0], tmp_path / "copy")
    reduce(out=str(tmp_path / "lean"), scores=folders[0], only=("el2n",))

    with pytest.raises(EasyCoreError, match="pass scoring runs of one dataset"):
        open_runs([folders[0], foreign], "aign")
    with pytest.raises(EasyCoreError, match=r"scores 60 samples, .* 120, not the same ones"):
        open_runs([folders[0], part], "aign")
    with pytest.raises(EasyCoreError, match=r"copy/hardness and .*run0/hardness are the same scores"):
        open_runs([folders[0], str(copy)], "aign")
    with pytest.raises(EasyCoreError, match=r"lean: the scoring run did not record aign"):
        open_runs([str(tmp_path / "lean")], "aign")
    with pytest.raises(EasyCoreError, match="does not exist; pass the folder of a finished hardness table"):
        open_runs([str(tmp_path / "nowhere")], "aign")


def test_a_table_reduced_without_first_learned_has_none(folders, tmp_path):
    """It can still be compared by what it has."""
    reduce(out=str(tmp_path / "lean"), scores=folders[0], only=("aign",))
    (run,) = open_runs([str(tmp_path / "lean")], "aign")

    assert run.first_learned is None
    assert run.name == "cnn-16, seed 0"
