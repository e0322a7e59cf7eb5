"""inspect: says of every artifact what it is, finds every kind of damage, and needs one file of a table at a time."""

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from easycore_ray import inspect
from easycore_ray.cli.command import run
from easycore_ray.cli.options import parse
from easycore_ray.cli.results import run_inspect
from easycore_ray.config.inspection import InspectConfig
from easycore_ray.reporting.inspect_text import WIDTH, to_text
from easycore_ray.scoring.hardness_table import open_hardness, read_hardness
from easycore_ray.storage import artifact
from easycore_ray.storage.errors import EasyCoreError
from tests.artifacts import edit_manifest, make_image_dataset, write_commits

KINDS = {
    "dataset": "dataset",
    "scores": "scoring_run",
    "scores/table": "score_table",
    "scores/hardness": "hardness_table",
    "coreset": "coreset",
    "audit": "audit",
    "checkpoint": "checkpoint",
    "evaluation": "evaluation",
    "report": "report",
    "sweep": "sweep",
    "study": "study",
    ".": "pipeline",
}


def hardness_file(folder):
    """The only file of a hardness table."""
    (found,) = folder.glob("hardness-*.parquet")
    return found


def problems(path):
    """What verification finds, in one string."""
    facts = inspect(path=str(path), verify=True, count=0)
    return "\n".join(problem for entry in facts["verified"] for problem in entry["problems"])


# ---------------------------------------------------------------- what it says


@pytest.mark.parametrize(("where", "kind"), KINDS.items())
def test_every_kind_is_told_and_verified(made, where, kind):
    """Kind, size, counts; nothing wrong; as text of at most 100 columns, and as JSON."""
    facts = inspect(path=f"{made}/{where}", verify=True)
    size = sum(path.stat().st_size for path in (made / where).rglob("*") if path.is_file())

    assert (facts["kind"], facts["state"], facts["bytes"]) == (kind, "finished", size)
    assert facts["counts"] == json.loads((made / where / "manifest.json").read_text())["counts"]
    assert [entry["problems"] for entry in facts["verified"]] == [[]] * (1 + len(facts["inside"]))
    assert json.loads(json.dumps(facts)) == facts
    for line in to_text(facts).splitlines():
        assert len(line) <= WIDTH or " " not in line.strip(), line


def test_the_text_says_what_matters(made):
    """Coverage, method, accuracies, configuration, what is inside: a word of each."""
    said = {where: to_text(inspect(path=f"{made}/{where}")) for where in KINDS}

    assert "2 scored epochs (1, 2) and the control 0 × 60 samples = 180 rows in 6 parts" in said["scores"]
    assert "every sample once per epoch, by the manifest" in " ".join(said["scores/table"].split())
    assert "easycore, by aign, fraction 0.4" in said["coreset"]
    assert "24 of 60 samples" in said["coreset"]
    assert "--eps      4/255" in said["checkpoint"]
    assert "clean         75.0 %" in said["evaluation"]
    assert "pgd20         25.0 %" in said["evaluation"]
    assert "2.0 h wall" in said["evaluation"]
    assert "class 0: 20, class 1: 20, class 2: 20" in said["dataset"]
    assert "trials/t/evaluation  evaluation      clean 75.0 %, pgd20 25.0 %" in said["sweep"]
    assert "./scores/hardness" in said["."]


def test_only_what_differs_from_the_defaults_is_shown(made):
    """And what has no default."""
    config = inspect(path=f"{made}/checkpoint")["config"]

    assert config == {"dataset": f"{made}/dataset", "coreset": f"{made}/coreset", "eps": 4 / 255}


def test_easiest_and_hardest_come_with_class_and_key(made):
    """As the dataset knows them; in order of the score."""
    found = inspect(path=f"{made}/scores", count=4)["scores"]
    table = read_hardness(open_hardness(f"{made}/scores")).sort_by("aign").to_pylist()

    assert [row["sample_id"] for row in found["easiest"]] == [row["sample_id"] for row in table[:4]]
    assert [row["sample_id"] for row in found["hardest"]] == [row["sample_id"] for row in table[:-5:-1]]
    for row in found["easiest"] + found["hardest"]:
        label = row["sample_id"] % 3
        assert (row["label"], row["class"]) == (label, f"class {label}")
        assert row["key"] == f"class {label}/{row['sample_id']}.png"


def test_a_dataset_says_what_its_import_found(tmp_path):
    """Duplicates and what became of them, where the class names are from, what was passed over."""
    dataset = make_image_dataset(tmp_path / "dataset", [0, 1, 0, 1])
    counted = {"images": 3, "samples": 7, "in_train_and_test": 2, "with_different_labels": 1, "dropped": 4}
    edit_manifest(dataset.path, duplicates=counted, names_from="/a/classes.txt", passed_over={".txt": 1200, ".md": 1})
    text = " ".join(to_text(inspect(path=dataset.path)).split())

    assert (
        "duplicates 3 images are there more than once (7 samples), 2 of them in train and test, 1 with different"
        in text
    )
    assert "labels; 4 copies dropped" in text
    assert "class names from /a/classes.txt" in text
    assert "passed over 1,200 .txt, 1 .md" in text
    edit_manifest(dataset.path, duplicates=counted | {"dropped": 0}, names_from="", passed_over={})
    text = " ".join(to_text(inspect(path=dataset.path)).split())
    assert "different labels; all kept" in text
    assert "class names their labels" in text
    assert "passed over" not in text


def test_without_its_dataset_a_table_is_still_told(own):
    """Ids, labels and scores; that names are missing is said; images cannot be drawn."""
    before = inspect(path=f"{own}/scores")["scores"]
    shutil.rmtree(own / "dataset")
    facts = inspect(path=f"{own}/scores")

    assert [row["sample_id"] for row in facts["scores"]["easiest"]] == [row["sample_id"] for row in before["easiest"]]
    assert facts["scores"]["easiest"][0]["key"] is None
    assert "no class names and source keys" in to_text(facts)
    with pytest.raises(EasyCoreError, match=r"images cannot be drawn: the dataset .*/dataset is gone or another one"):
        inspect(path=f"{own}/scores", images=f"{own}/x.png")


def test_a_damaged_table_is_still_told(own):
    """What cannot be read of it is said in place of the scores."""
    hardness_file(own / "scores" / "hardness").unlink()
    text = to_text(inspect(path=f"{own}/scores"))

    assert "Scores cannot be read" in text
    assert "easycore" in text
    with pytest.raises(EasyCoreError, match="is listed in the manifest but cannot be read"):
        inspect(path=f"{own}/scores", images=f"{own}/x.png")


@pytest.mark.slow
def test_images_are_drawn_into_the_file(made, tmp_path):
    """Easiest and hardest: two rows more images make a higher picture, and the file is a PNG."""
    sizes = []
    for count in (5, 12):
        inspect(path=f"{made}/scores", images=f"{tmp_path}/{count}.png", count=count)
        sizes.append(Image.open(io.BytesIO((tmp_path / f"{count}.png").read_bytes())).size)

    assert sizes[0][0] == sizes[1][0]
    assert sizes[1][1] > 1.8 * sizes[0][1]
    with pytest.raises(EasyCoreError, match="holds no finished hardness table to draw images by"):
        inspect(path=f"{made}/dataset", images=f"{tmp_path}/x.png")


def test_lineage_says_what_has_become_of_each_parent(own):
    """Unchanged, changed, gone, unfinished; parents of parents too."""

    def states(path):
        def walk(lines):
            for line in lines:
                yield Path(line["path"]).name, line["state"]
                yield from walk(line.get("parents", []))

        return dict(walk(inspect(path=str(path), count=0)["parents"]))

    assert states(own / "checkpoint") == {
        "dataset": "unchanged", "coreset": "unchanged", "hardness": "unchanged", "table": "unchanged",
    }  # fmt: skip
    edit_manifest(own / "dataset", fingerprint="0" * 64)
    assert states(own / "checkpoint")["dataset"] == "changed"
    shutil.rmtree(own / "scores" / "table")
    assert states(own / "checkpoint")["table"] == "gone"
    (own / "coreset" / "manifest.json").unlink()
    assert states(own / "checkpoint")["coreset"] == "unfinished"
    assert "CHANGED" in to_text(inspect(path=f"{own}/checkpoint"))


def test_an_unfinished_run_says_how_far_it_is(own):
    """Epochs and rows of the newest commit; that there is nothing to verify; no scores."""
    (own / "scores" / "manifest.json").unlink()
    (own / "scores" / "table" / "manifest.json").unlink()
    shutil.rmtree(own / "scores" / "hardness")
    facts = inspect(path=f"{own}/scores", verify=True)

    assert (facts["kind"], facts["state"]) == ("scoring_run", "unfinished")
    assert facts["progress"]["committed_epochs"] == 2
    assert facts["progress"]["committed_rows"] == 180
    assert facts["progress"]["seconds_since_last_write"] < 100
    assert "committed     2 epochs, 180 score rows" in to_text(facts)
    assert "is unfinished" in facts["verified"][0]["problems"][0]
    shutil.rmtree(own / "scores" / "commits")
    assert inspect(path=f"{own}/scores")["progress"]["committed_epochs"] == 0


def test_a_table_that_ended_early_is_whole_only_if_it_was_allowed_to(own):
    """Two of six planned epochs: all there is if the scores had settled, too few if nothing was said of that."""
    table = own / "scores" / "table"
    config = json.loads((table / "manifest.json").read_text())["config"] | {"epochs": 6}
    edit_manifest(table, config=config | {"stop_when_stable": 0.9}, epochs=[{"epoch": 1}, {"epoch": 2}])

    assert "scored epochs" not in problems(table)
    edit_manifest(table, config=config | {"stop_when_stable": None})
    assert "scored epochs: [0, 1, 2] instead of [0, 1, 2, 3, 4, 5, 6]" in problems(table)


def test_a_diverged_run_says_why_it_is_not_finished(own):
    """And does not advise the same command again, which would diverge again."""
    (own / "checkpoint" / "manifest.json").unlink()
    (own / "checkpoint" / "run.json").write_text(json.dumps({"kind": "checkpoint", "identity": "i", "nonce": "n"}))
    note = {"identity": "i", "problem": "training diverged: the loss is nan in step 7", "device_seconds": 1.0}
    (own / "checkpoint" / "diverged.json").write_text(json.dumps(note))
    facts = inspect(path=f"{own}/checkpoint", verify=True)
    text = to_text(facts)
    within = inspect(path=str(own), verify=True)

    assert facts["verified"][0]["problems"] == ["is unfinished; nothing to verify yet"], "there is no model"
    assert "checkpoint, DIVERGED" in to_text(within)
    (inner,) = (entry for entry in within["verified"] if entry["path"].endswith("/checkpoint"))
    assert inner["problems"] == [], "what it lies in knows of it"
    assert "diverged      training diverged: the loss is nan in step 7" in text
    assert "same command" not in text
    (own / "checkpoint" / "diverged.json").write_text(json.dumps(note | {"identity": "of another run"}))
    assert "same command" in to_text(inspect(path=f"{own}/checkpoint"))


@pytest.mark.parametrize(("where", "message"), [
    ("nowhere", "nowhere does not exist; pass the folder of an artifact"),
    ("dataset/shards", "shards is no artifact .* and holds none"),
    ("sweep/trials", r"trials is no artifact .*; pass one of those below it: t/evaluation$"),
])  # fmt: skip
def test_what_is_no_artifact_is_refused_with_those_below_it(made, where, message):
    """In one line."""
    with pytest.raises(EasyCoreError, match=message):
        inspect(path=f"{made}/{where}")


def test_artifacts_of_0_1_are_shown(own):
    """Every kind, with the names of fields that it had then."""
    for path in sorted(own.rglob("manifest.json")):
        config = json.loads(path.read_text())["config"] | {"dry_run": False, "trades_epochs": 3}
        edit_manifest(path.parent, format_version=1, config=config)
        facts = inspect(path=str(path.parent))
        assert (facts["format_version"], facts["kind"]) == (1, json.loads(path.read_text())["kind"])
        assert "trades_epochs" in to_text(facts) or "trades-epochs" in to_text(facts)


def test_an_artifact_that_cannot_be_read_is_refused(own):
    """Of a newer release, damaged, not ours."""
    edit_manifest(own / "coreset", format_version=9)
    with pytest.raises(EasyCoreError, match="format_version 9, this release reads up to 2"):
        inspect(path=f"{own}/coreset")
    (own / "coreset" / "manifest.json").write_text("{")
    with pytest.raises(EasyCoreError, match="is not valid JSON"):
        inspect(path=f"{own}/coreset")
    (own / "coreset" / "manifest.json").write_text("{}")
    with pytest.raises(EasyCoreError, match="is not one of ours"):
        inspect(path=f"{own}/coreset")


# ---------------------------------------------------------------- damage


def flip(path, at=-40):
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def rewrite(path, change):
    """Change the rows of a Parquet file."""
    pq.write_table(change(pq.read_table(path, partitioning=None)), path)


def flip_pixel(path):
    """Change one bit of the first image of a shard."""
    image = pq.read_table(path)["image"][0].as_py()
    flip(path, path.read_bytes().index(image))


def with_column(name, values):
    """A change of one column."""
    return lambda table: table.set_column(table.schema.get_field_index(name), table.schema.field(name),
                                          pa.array(values, table.schema.field(name).type))  # fmt: skip


DAMAGE = {
    "a pixel": ("dataset", lambda f: flip_pixel(f / "shards/train-00001.parquet"), "holds 1 images that are not those"),
    "a shard that is gone": ("dataset", lambda f: (f / "shards/train-00000.parquet").unlink(), "listed .* not there"),
    "a shard that is cut off": (
        "dataset",
        lambda f: cut(f / "shards/train-00000.parquet"),
        "bytes of shards/train-00000",
    ),
    "labels of a shard": (
        "dataset",
        lambda f: rewrite(f / "shards/train-00000.parquet", with_column("label", [0] * 30)),
        "another label than index.parquet|another schema",
    ),
    "labels of the index": (
        "dataset",
        lambda f: rewrite(f / "index.parquet", with_column("label", [0] * 60)),
        "index.parquet does not have the fingerprint",
    ),
    "a row of the index": (
        "dataset",
        lambda f: rewrite(f / "index.parquet", lambda t: t.slice(1)),
        "train rows in index.parquet: 59 instead of 60",
    ),
    "a bit of a part": (
        "scores",
        lambda f: flip(f / "table/epoch=00001/part-00000-a-r00000.parquet"),
        "checksum in the manifest",
    ),
    "a part that is gone": (
        "scores",
        lambda f: (f / "table/epoch=00002/part-00000-a-r00001.parquet").unlink(),
        "cannot be read",
    ),
    "a part that is not listed": (
        "scores/table",
        lambda f: edit_manifest(f, parts=parts_of(f)[:-1]),
        "epoch 2: 30 of 60 samples were scored\n.*fingerprint",
    ),
    "a part listed twice": (
        "scores/table",
        lambda f: edit_manifest(f, parts=[*parts_of(f), parts_of(f)[-1]]),
        "epoch 2: 90 of 60 samples",
    ),
    "a part in place of another": (
        "scores/table",
        lambda f: edit_manifest(f, parts=[*parts_of(f)[:-1], parts_of(f)[-2]]),
        "some samples were scored twice",
    ),
    "an epoch that is not listed": (
        "scores/table",
        lambda f: edit_manifest(f, parts=parts_of(f)[:4]),
        r"scored epochs: \[0, 1\] instead of \[0, 1, 2\]",
    ),
    "the population": (
        "scores/table",
        lambda f: rewrite(f / "samples.parquet", lambda t: t.slice(1)),
        "59 instead of 60",
    ),
    "labels of the population": (
        "scores/table",
        lambda f: rewrite(f / "samples.parquet", with_column("label", [1] * 60)),
        "other labels than samples.parquet",
    ),
    "a bit of hardness": (
        "scores",
        lambda f: flip(hardness_file(f / "hardness"), 300),
        "checksum in the manifest",
    ),
    "a hardness file that is gone": ("scores/hardness", lambda f: hardness_file(f).unlink(), "not there"),
    "a foreign hardness table": (
        "scores",
        lambda f: edit_manifest(f / "hardness", fingerprint="0" * 64),
        "hardness/ is not the one this run was finished with",
    ),
    "ids of a coreset": ("coreset", lambda f: np.save(f / "sample_ids.npy", np.arange(24)), "sample_ids.npy"),
    "a key of a coreset": (
        "coreset",
        lambda f: (f / "keys.txt").write_text("x\n"),
        "keys.txt does not name the samples",
    ),
    "the mixture of a coreset": ("coreset", lambda f: edit_manifest(f, class_histogram=[0, 0, 24]), "samples by class"),
    "a weight": ("checkpoint", lambda f: flip(f / "model.safetensors"), "these are other weights"),
    "weights that are gone": ("checkpoint", lambda f: (f / "model.safetensors").unlink(), "cannot be read"),
    "a model": ("checkpoint", lambda f: edit_manifest(f, model=model_of(f) | {"width": 3}), "does not fit the model"),
    "outcomes": (
        "evaluation",
        lambda f: rewrite(f / "outcomes.parquet", with_column("clean_correct", [True] * 8)),
        "have the fingerprint.*\n.*clean accuracy in manifest.json: 0.75 instead of 1.0",
    ),
    "a summary": (
        "evaluation",
        lambda f: (f / "summary.json").write_text('{"clean_accuracy": 0.9}'),
        "instead of 0.75",
    ),
    "a finding": ("audit", lambda f: edit_manifest(f, counts={"samples": 60, "findings": 2}), "1 instead of 2"),
    "findings": ("audit", lambda f: flip(f / "findings.parquet"), "does not have the checksum.*\n.*the fingerprint"),
    "an audit's page": ("audit", lambda f: (f / "audit.html").unlink(), "listed in the manifest but not there"),
    "a plot": ("report", lambda f: (f / "plots/a.png").write_bytes(b"other"), "page or its plots"),
    "a trial that is gone": ("sweep", lambda f: shutil.rmtree(f / "trials/t"), "finished trials: 0 instead of 1"),
    "a study's results": ("study", lambda f: (f.parent / "results.json").unlink(), "results file .* is not there"),
    "a study that was moved": (
        "study",
        lambda f: (f / "results.json").write_text('{"trials": {}}'),
        r"its results file .*study/results.json has not the fingerprint",
    ),
    "a record of a study": (
        "study",
        lambda f: (f.parent / "results.json").write_text('{"trials": {"t_s0": {"seed": 0}}}'),
        "a trial was changed, or added since",
    ),
    "a row of a study": (
        "study",
        lambda f: (f / "summary.json").write_text('{"rows": []}'),
        "rows of summary.json: 0 instead of 1",
    ),
    "a page": (".", lambda f: (f / "report.html").write_bytes(b"other"), "report.html is not that of"),
    "a parent that was replaced": (
        "coreset",
        lambda f: edit_manifest(f.parent / "dataset", fingerprint="0" * 64),
        "was made from the dataset .*, which is changed since",
    ),
}


def cut(path):
    """Leave out the end of a file."""
    path.write_bytes(path.read_bytes()[:-10])


def parts_of(table):
    return json.loads((table / "manifest.json").read_text())["parts"]


def model_of(checkpoint):
    return json.loads((checkpoint / "manifest.json").read_text())["model"]


@pytest.mark.parametrize("damage", DAMAGE)
def test_verification_finds(own, damage):
    """Every damage, by name, in the artifact and from the one it lies in; and only where it is."""
    where, harm, message = DAMAGE[damage]
    harm(own / where)
    found = problems(own / where)

    assert re.search(message, found), found
    assert inspect(path=f"{own}/checkpoint", count=0)["kind"] == "checkpoint"
    with pytest.raises(SystemExit) as caught:
        run(InspectConfig, run_inspect, [f"{own}/{where}", "--verify", "--count", "0"])
    assert caught.value.code == 1


# ---------------------------------------------------------------- the command


def test_the_command_prints_json_or_text(made, capsys, monkeypatch):
    """The path is the only word it needs; a relative one starts in the working directory."""
    monkeypatch.chdir(made)
    monkeypatch.delenv("EASYCORE_ROOT", raising=False)
    facts = run(InspectConfig, run_inspect, ["scores", "--json", "--count", "3"])
    assert json.loads(capsys.readouterr().out) == facts
    assert facts["path"] == f"{made}/scores"
    run(InspectConfig, run_inspect, ["scores"])
    assert capsys.readouterr().out.startswith(f"{made}/scores\nscoring run, finished ")


@pytest.mark.parametrize(("arguments", "message"), [
    (["/x", "--score", "agin"], "unknown score 'agin'; allowed are adv_loss, aign"),
    (["/x", "--count", "-1"], "count must be >= 0, got -1"),
    (["/x", "--images", "x.jpg"], r"images must end in .png, got '.*x.jpg'"),
    (["/x", "--images", "x.png", "--count", "0"], r"count must be in 1..100 to draw images, got 0"),
    (["/nowhere/x"], "/nowhere/x does not exist"),
])  # fmt: skip
def test_mistakes_are_one_line(capsys, arguments, message):
    """Exit code 2, nothing on standard output."""
    with pytest.raises(SystemExit) as caught:
        run(InspectConfig, run_inspect, arguments)
    captured = capsys.readouterr()

    assert caught.value.code == 2
    assert captured.out == ""
    assert re.match(f"error: .*{message}", captured.err), captured.err
    assert captured.err.count("\n") == 1


def test_help_explains_every_option(capsys):
    """And does not offer presets, which mean nothing here."""
    with pytest.raises(SystemExit) as caught:
        parse(InspectConfig, ["--help"])
    text = capsys.readouterr().out

    assert caught.value.code == 0
    assert all(f"--{name}" in text for name in ("verify", "score", "count", "images", "json"))
    assert "--preset" not in text


def test_a_run_that_was_never_committed_has_a_claim_only(tmp_path):
    """What inspect says a second after a job has begun."""
    artifact.claim(str(tmp_path / "r"), "scoring_run", "a" * 64)
    facts = inspect(path=f"{tmp_path}/r")
    assert facts["progress"]["committed_epochs"] == 0
    write_commits(tmp_path / "r", [], 3)
    assert inspect(path=f"{tmp_path}/r")["progress"]["committed_epochs"] == 3
