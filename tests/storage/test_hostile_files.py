"""Files made to run code when they are loaded, in place of those of an artifact: refused, or nothing runs."""

import io
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import torch
import yaml

from easycore_ray import clean, inspect, reduce, select
from easycore_ray.data.dataset import open_dataset
from easycore_ray.engine.checkpoint import open_checkpoint
from easycore_ray.engine.state import State, load_state, save_state, unpack_state
from easycore_ray.scoring.hardness_table import open_hardness, read_hardness
from easycore_ray.storage.errors import EasyCoreError
from tests.artifacts import make_checkpoint, make_image_dataset, make_scoring_run

LABELS = [number % 3 for number in range(30)]


class Bomb:
    """An object whose pickle writes a file when it is loaded."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return open, (self.mark, "w")


def arrays(bomb):
    """A file of NumPy with an object in it."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([bomb], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def weights(bomb):
    """A file of ``torch.save``."""
    buffer = io.BytesIO()
    torch.save({"network.weight": bomb}, buffer)
    return buffer.getvalue()


def archive(bomb):
    """An archive with a name that leads out of its folder."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        opened.writestr(f"../../../../../../../..{bomb.mark}", "")
        opened.writestr("state.json", pickle.dumps(bomb))
    return buffer.getvalue()


CONTENTS = {
    "pickle": pickle.dumps,
    "arrays": arrays,
    "weights": weights,
    "archive": archive,
    "yaml": lambda bomb: f'!!python/object/apply:builtins.open ["{bomb.mark}", "w"]'.encode(),
}
LOADERS = {
    "pickle": pickle.loads,
    "arrays": lambda content: np.load(io.BytesIO(content), allow_pickle=True),
    "weights": lambda content: torch.load(io.BytesIO(content), weights_only=False),
    "yaml": yaml.unsafe_load,
}

# What a careless reader of such a file would run.
LIKELY = {".npy": "arrays", ".safetensors": "weights", ".json": "yaml"}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """An artifact of each kind, and a training state."""
    root = tmp_path_factory.mktemp("template") / "all"
    dataset = make_image_dataset(root / "dataset", LABELS)
    scores = make_scoring_run(root / "scores", dataset, LABELS)
    select(out=str(root / "coreset"), scores=scores.path, fraction=0.5, method="easiest")
    make_checkpoint(root / "model", dataset.path)
    (root / "state").mkdir()
    tensors = {"weight": torch.zeros(2)}
    save_state(str(root / "state"), State(1, 1, tensors, tensors, [], {}, 1, tensors, None, ""))
    return root


def read_all(root):
    """Everything that reads: each until its first error."""
    readers = (
        lambda: open_dataset(f"{root}/dataset"),
        lambda: make_checkpoint(root / "again", f"{root}/dataset", coreset=f"{root}/coreset"),
        lambda: open_checkpoint(f"{root}/model"),
        lambda: reduce(scores=f"{root}/scores", out=f"{root}/reduced"),
        lambda: select(scores=f"{root}/scores", out=f"{root}/selected", fraction=0.3, method="easiest"),
        lambda: read_hardness(open_hardness(f"{root}/scores")),
        lambda: load_state(f"{root}/state"),
        *(lambda name=name: inspect(path=f"{root}/{name}", verify=True) for name in ("model", "coreset", "scores")),
        lambda: clean(path=str(root)),
    )
    refused = 0
    for read in readers:
        try:
            read()
        except EasyCoreError:
            refused += 1
    return refused


@pytest.mark.parametrize("kind", LOADERS)
def test_the_contents_would_run(tmp_path, kind):
    """Where someone loads them carelessly."""
    LOADERS[kind](CONTENTS[kind](Bomb(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["likely", *(pytest.param(kind, marks=pytest.mark.soak) for kind in CONTENTS)])
def test_nothing_runs_whichever_file_is_replaced(template, tmp_path, kind):
    """Each file of each artifact in turn; also nothing but our own one-line errors comes of it."""
    contents = {name: make(Bomb(tmp_path / "ran")) for name, make in CONTENTS.items()}
    refused = 0
    for number, file in enumerate(sorted(path for path in template.rglob("*") if path.is_file())):
        root = shutil.copytree(template, tmp_path / f"{number}")
        likely = LIKELY.get(file.suffix, "pickle") if kind == "likely" else kind
        (root / file.relative_to(template)).write_bytes(contents[likely])
        refused += read_all(root)
        assert not (tmp_path / "ran").exists(), file
    assert refused > number, "hardly anything reads these files"


@pytest.mark.parametrize("kind", CONTENTS)
def test_nothing_runs_in_a_packed_state(tmp_path, kind):
    """Which a sweep's trial reads to go on."""
    with pytest.raises(EasyCoreError, match="the training state in a trial is damaged"):
        unpack_state(CONTENTS[kind](Bomb(tmp_path / "ran")), "a trial")
    assert not (tmp_path / "ran").exists()
