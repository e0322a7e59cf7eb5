"""Names that a manifest lists lie in its folder: one that leads elsewhere is refused by every reader, and by clean."""

import json
import os
import shutil

import pytest

from easycore_ray import clean, inspect, reduce, select
from easycore_ray.data.dataset import open_dataset
from easycore_ray.engine.checkpoint import open_checkpoint
from easycore_ray.scoring.hardness_table import open_hardness
from easycore_ray.scoring.score_reader import open_table
from easycore_ray.storage.artifact import open_artifact
from easycore_ray.storage.errors import EasyCoreError
from tests.artifacts import make_checkpoint, make_image_dataset, make_scoring_run

pytestmark = pytest.mark.slow

LABELS = [number % 3 for number in range(30)]
CHOICE = {"fraction": 0.5, "method": "easiest"}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """One artifact of each kind that lists files."""
    root = tmp_path_factory.mktemp("template") / "all"
    dataset = make_image_dataset(root / "dataset", LABELS)
    scores = make_scoring_run(root / "scores", dataset, LABELS)
    select(out=str(root / "coreset"), scores=scores.path, **CHOICE)
    make_checkpoint(root / "model", dataset.path)
    return root


@pytest.fixture
def root(template, tmp_path):
    """A copy of the template."""
    return shutil.copytree(template, tmp_path / "all")


def edit(folder, change):
    """Change a manifest in place."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


READERS = {
    "open": lambda out, _: open_artifact(out),
    "inspect": lambda out, _: inspect(path=out, verify=True),
    "clean": lambda out, _: clean(path=out, yes=True, older_than=0),
    "reuse": lambda out, scores: select(out=out, scores=scores, **CHOICE),
    "overwrite": lambda out, scores: select(out=out, scores=scores, overwrite=True, **CHOICE),
    "dry run": lambda out, scores: select.plan(out=out, scores=scores, **CHOICE),
}


@pytest.mark.parametrize("generation", ["../coreset", "..", "/etc", "", ".", "gen-1/../..", 3, ["gen-00000000"]])
@pytest.mark.parametrize("reader", READERS)
def test_a_generation_elsewhere_is_refused(root, generation, reader):
    """And nothing is removed: what lies beside the named folder would count as left over."""
    edit(root / "coreset", lambda manifest: manifest.update(generation=generation))
    before = sorted(os.walk(root))

    with pytest.raises(
        EasyCoreError, match=r"coreset/manifest\.json names the generation .*; it is damaged or not ours"
    ):
        READERS[reader](str(root / "coreset"), str(root / "scores"))
    assert sorted(os.walk(root)) == before


OPENERS = {
    ("dataset", "shards"): lambda root: open_dataset(f"{root}/dataset"),
    ("model", "weights"): lambda root: open_checkpoint(f"{root}/model"),
    ("coreset", "files"): lambda root: open_artifact(f"{root}/coreset"),
    ("scores/hardness", "files"): lambda root: open_hardness(f"{root}/scores"),
    ("scores/table", "parts"): lambda root: reduce(scores=f"{root}/scores", out=f"{root}/again"),
}


def rename(listed, name):
    """Give the first file of a list, or of one of the lists in it, another name."""
    if isinstance(listed, list):
        listed[0]["path"] = name(listed[0]["path"])
    elif "train" in listed:
        rename(listed["train"], name)
    else:
        listed["last"] = name(listed["last"])


@pytest.mark.parametrize(
    "name",
    [lambda own: f"../x/{own}", lambda own: f"/{own}", lambda own: f"a/../{own}", lambda _: "", lambda _: 7],
    ids=["above", "absolute", "way back", "empty", "a number"],
)
@pytest.mark.parametrize(("folder", "key"), OPENERS)
def test_a_file_elsewhere_is_refused(root, folder, key, name):
    """Whatever the kind of artifact: of what lies there no checksum says that it is meant."""
    edit(root / folder, lambda manifest: rename(manifest[key], name))

    with pytest.raises(EasyCoreError, match=r"manifest\.json names the file .*, which does not lie in its folder"):
        OPENERS[folder, key](root)


@pytest.mark.parametrize("change", [lambda part: part.pop("rows"), lambda part: part.update(path="epoch=1/x.parquet")])
def test_an_entry_that_is_no_score_part_is_refused(root, change):
    """Also one that lies in the folder."""
    edit(root / "scores" / "table", lambda manifest: change(manifest["parts"][0]))

    with pytest.raises(EasyCoreError, match="its manifest or state is damaged"):
        open_table(str(root / "scores" / "table"))


@pytest.mark.parametrize(
    "file", ["dataset/index.parquet", "coreset/sample_ids.npy", "dataset/shards/train-00000.parquet"]
)
@pytest.mark.parametrize("keep", [0.5, 0.0])
def test_a_file_that_is_cut_is_named(root, file, keep):
    """By training, which reads them all."""
    path = root / file
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])

    with pytest.raises(EasyCoreError, match=rf"{path.name} cannot be read .*; it is damaged"):
        make_checkpoint(root / "again", f"{root}/dataset", coreset=f"{root}/coreset")
