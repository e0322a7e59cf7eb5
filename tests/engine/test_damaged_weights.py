"""Weights that are not those a training run wrote."""

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
