"""Weights that are not those a training run wrote."""

import json
import shutil

import pytest

from easycore_ray.engine.checkpoint import open_checkpoint
from easycore_ray.storage.errors import EasyCoreError
from tests import artifacts


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint's file of weights."""
    root = tmp_path_factory.mktemp("model")
    dataset = artifacts.make_image_dataset(root / "dataset", [0, 1] * 4)
    artifacts.make_checkpoint(root / "model", dataset.path)
    return root / "model/model.safetensors"


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: content[:100],
        lambda content: content[:0],
    ],
    ids=["a bit", "cut", "empty"],
)
def test_damaged_weights_are_refused_by_name(weights, damage):
    """Another model is not evaluated without a word; what is no safetensors file is no traceback."""
    content = weights.read_bytes()
    weights.write_bytes(damage(content))
    try:
        with pytest.raises(EasyCoreError, match=r"model\.safetensors: not the fingerprint .* other weights"):
            open_checkpoint(str(weights.parent))
    finally:
        weights.write_bytes(content)
    assert open_checkpoint(str(weights.parent))


@pytest.mark.parametrize("content", ["", "gen-0123abcd"])
@pytest.mark.parametrize("module", ["downloaded.network", "downloaded.inner.network"])
def test_code_that_lies_in_a_checkpoint_is_not_run(weights, tmp_path, monkeypatch, module, content):
    """A folder from elsewhere, unpacked where Python looks for modules, whose manifest names a model of its own.

    Also where the files of the checkpoint lie in a generation, beside the code.
    """
    folder = tmp_path / "downloaded"
    shutil.copytree(weights.parent, folder / content)
    file = tmp_path / f"{module.replace('.', '/')}.py"
    file.parent.mkdir(exist_ok=True)
    for place in (file, file.with_name("__init__.py")):
        place.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    manifest = json.loads((folder / content / "manifest.json").read_text())
    manifest["model"]["name"] = f"{module}:make"
    manifest |= {"generation": content} if content else {}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(EasyCoreError, match=r"whose code .*\.py lies in the checkpoint itself"):
        open_checkpoint(str(folder))
    assert not (tmp_path / "ran").exists()
