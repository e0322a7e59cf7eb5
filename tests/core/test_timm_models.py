"""Models of timm: made for the images and classes at hand; what cannot be made is refused in one line."""

import sys

import pytest
import torch

from easycore_ray.core.models import build_model
from easycore_ray.core.timm_models import timm_network

pytestmark = pytest.mark.slow


def build(name, shape, *, seed=0):
    """The model of this name for 7 classes."""
    norm = {"mean": [0.5] * shape[0], "std": [0.25] * shape[0]}
    return build_model(name, num_classes=7, image_shape=shape, seed=seed, **norm)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("timm:resnet18", (1, 32, 32)),  # takes any size
        ("timm:vit_tiny_patch16_224", (3, 32, 48)),  # has positions, which are made for the size
    ],
)
def test_a_network_is_made_for_the_images_and_classes(name, shape):
    """Logits, behind the normalisation; equal seeds give equal weights."""
    pytest.importorskip("timm")
    model, again, other = build(name, shape), build(name, shape), build(name, shape, seed=1)
    pixels = torch.rand(2, *shape)
    model.eval()

    assert model(pixels).shape == (2, 7)
    assert torch.equal(model(pixels), model.network((pixels - 0.5) / 0.25))
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))
    assert not all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("timm:resnet19", (3, 32, 32), r"no model 'resnet19' among its [\d,]+; the nearest are .*resnet18"),
        ("timm:q_q_q_q_q", (3, 32, 32), "no model 'q_q_q_q_q'.*list_models"),
        ("timm:vit_tiny_patch16_224", (1, 8, 8), r"fails on images \(2, 1, 8, 8\)"),
        ("timm:swin_tiny_patch4_window7_224", (3, 2, 2), "swin_tiny_patch4_window7_224 .*images"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(name, shape, message):
    """The nearest names, or the sizes."""
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=message) as caught:
        build(name, shape)
    assert "\n" not in str(caught.value)


def test_without_timm_the_command_that_installs_it_is_named(monkeypatch):
    """With the extra of this package."""
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"timm:resnet18 needs the package timm.*pip install 'easycore-ray\[timm\]'"):
        timm_network("timm:resnet18", 10, (3, 32, 32))
