"""audit: findings against plain loops, on any number of files; what the page shows; what leaves it to a coreset."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from easycore_ray import audit, reduce, select
from easycore_ray import open as open_handle
from easycore_ray.core.selection import choose
from easycore_ray.data import index as dataset_index
from easycore_ray.scoring.hardness_table import open_hardness, read_hardness, write_hardness
from easycore_ray.storage.artifact import open_artifact
from easycore_ray.storage.errors import EasyCoreError
from tests.artifacts import (
    draw_rows,
    edit_manifest,
    finish_table,
    make_image_dataset,
    make_scoring_run,
    samples_of,
    write_parts,
)

COUNT, WRONG = 120, 12
# Two copies of sample 3 with its label, one of sample 4 with another, and one of each label of sample 9.
COPIES = {33: 3, 63: 3, 55: 4, 39: 9, 40: 9}
LABELS = np.arange(COUNT) % 3


def score_with_wrong_labels(run, dataset, wrong, seed=0):
    """A scoring run in which the samples with a wrong label have low margins and high losses, most of the time."""
    ids = np.arange(COUNT)
    rows = draw_rows(ids, LABELS, [1, 2, 3, 4], seed)
    rng = np.random.default_rng(seed)
    for columns in rows:
        columns["margin"] = rng.normal(np.where(wrong, -3, 4), 3).astype(np.float32)
        columns["loss"] = np.log1p(np.exp(-columns["margin"])).astype(np.float32)
        # Class 2 is harder than the others, sample by sample.
        columns["grad_norm"] = (rng.random(COUNT) + 5 * (LABELS == 2)).astype(np.float32)
    parts = write_parts(f"{run}/table", rows, ids % 2)
    finish_table(run, parts, samples_of(ids, LABELS), dataset)
    reduce(out=f"{run}/hardness", scores=str(run))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A dataset with copies, scores of it in which twelve labels are wrong, and an audit."""
    root = tmp_path_factory.mktemp("audit")
    dataset = make_image_dataset(root / "dataset", LABELS.tolist(), copies=COPIES)
    edit_manifest(dataset.path, classes=["cat", "dog & <co>", "$hip"])
    score_with_wrong_labels(root / "scores", open_artifact(dataset.path), wrong_labels())
    audit(out=root / "audit", scores=root / "scores", label_errors=WRONG / COUNT)
    return root


def wrong_labels():
    """Which labels are wrong: bool (COUNT,)."""
    found = np.zeros(COUNT, bool)
    found[np.random.default_rng(5).choice(COUNT, WRONG, replace=False)] = True
    return found


def table_of(run):
    """The hardness table by column, with the ids."""
    rows = read_hardness(open_hardness(str(run)))
    return {name: rows[name].to_numpy() for name in ("sample_id", "aum", "loss", "aign")}


def rows_of(artifact, kind):
    """Findings of a kind."""
    return [row for row in artifact.findings().to_pylist() if row["kind"] == kind]


@pytest.mark.parametrize(("score", "column", "sign"), [("aum", "aum", 1), ("csl", "loss", -1), ("aign", "aign", -1)])
def test_likely_label_errors_are_the_hardest_in_order(world, tmp_path, score, column, sign):
    """Low AUM, high loss and high AIGN, by a plain sort; with label, source key and the score as stored."""
    made = audit(out=f"{tmp_path}/a", scores=f"{world}/scores", score=score, label_errors=0.2)
    table = table_of(world / "scores")
    order = sorted(range(COUNT), key=lambda at: (sign * table[column][at], at))[:24]
    found = rows_of(made, "label_error")

    assert [row["sample_id"] for row in found] == order
    assert [row["score"] for row in found] == table[column][order].tolist()
    assert [row["rank"] for row in found] == list(range(1, 25))
    assert [row["label"] for row in found] == LABELS[order].tolist()
    assert [row["key"] for row in found] == [f"class {LABELS[at]}/{at}.png" for at in order]
    assert all(row["group"] is None for row in found)
    assert made.summary["score"] == column


def test_injected_wrong_labels_are_found(world):
    """By AUM and by the loss most of them, as many as there are being listed; few by AIGN, here blind to them."""
    wrong = set(np.flatnonzero(wrong_labels()).tolist())
    recall = {}
    for score in ("aum", "csl", "aign"):
        made = audit(out=f"{world}/by-{score}", scores=f"{world}/scores", score=score, label_errors=WRONG / COUNT)
        listed = {row["sample_id"] for row in rows_of(made, "label_error")}
        assert len(listed) == WRONG
        recall[score] = len(listed & wrong) / WRONG

    assert recall["aum"] >= 0.75
    assert recall["csl"] >= 0.75
    assert recall["aign"] < 0.5


def test_equal_images_are_copies_or_conflicts(world):
    """All of a group with several labels, of one with a single label all but the first."""
    made = open_audit(world)
    labels = {at: int(LABELS[at]) for at in (3, 33, 63, 4, 55, 9, 39, 40)}
    conflicts, copies = ([(row["group"], row["sample_id"], row["rank"]) for row in rows_of(made, kind)]
                         for kind in ("label_conflict", "duplicate"))  # fmt: skip

    # 3, 33 and 63 are of class 0, as are 9 and 39; 40, 4 and 55 of class 1.
    assert labels == {3: 0, 33: 0, 63: 0, 4: 1, 55: 1, 9: 0, 39: 0, 40: 1}
    assert conflicts == [(9, 9, 1), (9, 39, 2), (9, 40, 3)]
    assert copies == [(3, 33, 1), (3, 63, 2), (4, 55, 3)]
    assert made.summary["label_conflicts"] == {"groups": 1, "samples": 3}
    assert made.summary["duplicates"] == {"groups": 2, "samples": 3}


def open_audit(world):
    """The audit of the world, as its handle."""
    return open_handle(world / "audit")


def test_a_class_that_a_cut_starves_is_named(world):
    """The third is harder throughout: the easiest half has none of it. Another fraction and threshold count."""
    found = open_audit(world).summary["classes"]
    by_label = {row["label"]: row for row in found["rows"]}

    assert found["starved"] == [2]
    assert found["rows"][0]["label"] == 2
    assert (by_label[2]["samples"], by_label[2]["quota"], by_label[2]["kept"]) == (40, 20, 0)
    assert found["separability"] > 0.6
    assert any("starves 1 of 3 classes: $hip (0 % of its quota)" in text for text in open_audit(world).sentences)
    loose = audit(out=f"{world}/loose", scores=f"{world}/scores", fraction=0.9, starved=0.5)
    assert loose.summary["classes"]["starved"] == []
    assert any("starves no class: $hip keeps least, 78 % of its quota" in text for text in loose.sentences)
    strict = audit(out=f"{world}/strict", scores=f"{world}/scores", fraction=0.9, starved=0.8)
    assert strict.summary["classes"]["starved"] == [2]
    other = audit(out=f"{world}/other", scores=f"{world}/scores", cut_score="aum")
    assert other.summary["classes"]["starved"] == []


def test_findings_do_not_depend_on_the_files_of_the_table(world, tmp_path):
    """One or seven: the same content, bit for bit."""
    hardness = reduce(out=f"{tmp_path}/hardness", scores=f"{world}/scores")
    rows, files = read_hardness(hardness).combine_chunks(), []
    for entry in hardness.manifest["files"]:
        Path(hardness.path, entry["path"]).unlink()
    for number, start in enumerate(range(0, COUNT, 19)):
        files.append(write_hardness(hardness.path, number, rows.slice(start, 19), count=7))
    edit_manifest(hardness.path, files=files)
    made = audit(out=f"{tmp_path}/a", scores=hardness.path, label_errors=WRONG / COUNT)

    assert len(files) == 7
    assert made.fingerprint == open_audit(world).fingerprint
    assert made.findings().equals(open_audit(world).findings())


def test_of_a_part_only_what_was_scored_is_looked_at(world, tmp_path):
    """A copy of a sample that was not scored is none; shares are of the part."""
    ids = np.array([3, 9, 33, 39, 50, 60, 70, 80])
    dataset = open_artifact(f"{world}/dataset")
    parts = write_parts(tmp_path / "s" / "table", draw_rows(ids, LABELS[ids], [1, 2]), ids % 2)
    finish_table(tmp_path / "s", parts, samples_of(ids, LABELS[ids]), dataset)
    reduce(out=f"{tmp_path}/s/hardness", scores=f"{tmp_path}/s")
    made = audit(out=f"{tmp_path}/a", scores=f"{tmp_path}/s", label_errors=0.0)

    assert made.summary["samples"] == 8
    assert [(row["kind"], row["sample_id"], row["group"]) for row in made.findings().to_pylist()] == [
        ("duplicate", 33, 3),
        ("duplicate", 39, 9),
    ]


def test_the_page_shows_the_pictures_and_loads_nothing(world):
    """A picture for each shown sample, every class, what was found; names of classes are text."""
    made = open_audit(world)
    page = Path(made.page).read_text()
    listed = [row["sample_id"] for row in rows_of(made, "label_error")]

    assert all(f"<span>id {sample_id}</span>" in page for sample_id in (*listed, 3, 33, 63, 4, 55, 9, 39, 40))
    assert page.count("data:image/png") == len(listed) + 8
    assert page.count("data:image/svg+xml") == 1
    assert "dog &amp; &lt;co&gt;" in page
    assert "<co>" not in page
    for sentence in made.sentences:
        assert sentence.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)


def test_nothing_to_find_is_said(tmp_path):
    """No image twice, no label asked for: sentences, empty sections, an empty table of the same columns."""
    dataset = make_image_dataset(tmp_path / "d", [0, 1] * 15)
    scores = make_scoring_run(tmp_path / "s", dataset, [0, 1] * 15)
    made = audit(out=f"{tmp_path}/a", scores=scores.path, label_errors=0)
    page = Path(made.page).read_text()

    assert made.findings().num_rows == 0
    assert made.sentences[:3] == [
        "0 samples of 30 listed as likely label errors, hardest by aum",
        "no image is there with different labels",
        "no image is there more than once with one label",
    ]
    assert page.count("<p>None.</p>") == 2
    assert "None are listed" in page
    left = select(out=f"{tmp_path}/c", scores=scores.path, exclude=made)
    assert left.manifest["excluded"]["samples"] == 0


def test_an_audit_is_reused_and_refused(world, capsys):
    """Like every artifact: the same is not made twice, another one not over it; a plan says so."""
    fields = dict(out=f"{world}/audit", scores=f"{world}/scores", label_errors=WRONG / COUNT)
    before = Path(world, "audit", "manifest.json").read_bytes()
    audit(**fields)

    assert "is finished, reused" in capsys.readouterr().err
    assert Path(world, "audit", "manifest.json").read_bytes() == before
    assert "do nothing" in audit.plan(**fields).work
    with pytest.raises(EasyCoreError, match="made with another configuration or input"):
        audit(**fields | {"label_errors": 0.5})
    assert "120 samples" in audit.plan(**fields | {"out": f"{world}/new"}).work
    assert not Path(world, "new").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label_errors": 1.0}, r"label_errors must be in \[0, 1\), got 1"),
        ({"fraction": 0.0}, r"fraction must be in \(0, 1\], got 0"),
        ({"fraction": 0.001}, "fraction 0.001 of 120 samples keeps none"),
        ({"score": "hardness"}, "unknown score 'hardness'; allowed are"),
        ({"score": "dual"}, "reduced without dual, which is made when asked for: easycore reduce --only dual"),
        ({"cut_score": "aign_epoch0"}, "did not record aign_epoch0"),
        ({"scores": "/nowhere"}, "/nowhere does not exist"),
    ],
)
def test_what_cannot_be_audited_is_refused(world, tmp_path, fields, message):
    """In one line, and nothing is left behind."""
    with pytest.raises(EasyCoreError, match=message) as caught:
        audit(**{"out": f"{tmp_path}/a", "scores": f"{world}/scores", **fields})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a").exists()


def test_tables_that_do_not_fit_their_dataset_are_damaged(tmp_path):
    """A class too few, or a scored sample that the index lacks."""
    dataset = make_image_dataset(tmp_path / "d", [0, 1, 2] * 10)
    make_scoring_run(tmp_path / "s", dataset, [0, 1, 2] * 10)
    edit_manifest(dataset.path, classes=["a", "b"])
    with pytest.raises(EasyCoreError, match=r"labels must be 0 \.\. 1, the dataset's classes; .* has 0 \.\. 2"):
        audit(out=f"{tmp_path}/a", scores=f"{tmp_path}/s")
    edit_manifest(dataset.path, classes=["a", "b", "c"])
    index = dataset_index.read_index(dataset.path, "train")
    dataset_index.write_index(index.slice(1), dataset.path)
    with pytest.raises(EasyCoreError, match="has 29 of 30 scored samples; do they belong together"):
        audit(out=f"{tmp_path}/a", scores=f"{tmp_path}/s")
    assert not (tmp_path / "a").exists()


def test_scores_of_another_dataset_are_refused(world, tmp_path):
    """As inputs of an audit, and an audit of another dataset as what to leave out."""
    other = make_image_dataset(tmp_path / "other", [0, 1] * 15)
    scores = make_scoring_run(tmp_path / "s", other, [0, 1] * 15)

    with pytest.raises(EasyCoreError, match=r"holds scores of .*pass the dataset that was scored"):
        audit(out=f"{tmp_path}/a", scores=f"{world}/scores", dataset=other.path)
    with pytest.raises(EasyCoreError, match=r"is an audit of .*/dataset .*, not of .*other .*; audit scores of this"):
        select(out=f"{tmp_path}/c", scores=scores.path, exclude=f"{world}/audit")
    findings = f"{world}/audit/findings.parquet"
    with pytest.raises(EasyCoreError, match=r"ids that are no training sample|other keys than"):
        select(out=f"{tmp_path}/c", scores=scores.path, exclude=findings)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("kinds", [(), ("label_error",), ("duplicate", "label_conflict")])
def test_findings_are_left_out_of_a_coreset(world, tmp_path, kinds):
    """All, or those of some kinds: what is kept is the choice among the others; the audit is a parent."""
    gone = {row["sample_id"] for row in open_audit(world).findings().to_pylist() if not kinds or row["kind"] in kinds}
    made = select(out=f"{tmp_path}/c", scores=f"{world}/scores", fraction=0.5, exclude=f"{world}/audit",
                  exclude_kind=kinds, balance="class")  # fmt: skip
    table = table_of(world / "scores")
    stays = ~np.isin(table["sample_id"], list(gone))
    plain = choose("easycore", sample_ids=table["sample_id"][stays], labels=LABELS[stays],
                   scores=table["aign"][stays], fraction=0.5, balance="class")  # fmt: skip

    assert made.sample_ids().tolist() == plain.tolist()
    assert made.manifest["counts"]["of"] == COUNT - len(gone)
    assert made.manifest["parents"]["audit"]["fingerprint"] == open_audit(world).fingerprint
    assert json.loads((tmp_path / "c" / "manifest.json").read_text())["excluded"]["samples"] == len(gone)
