"""Strided 1x1 convolutions of few channels: the same function, and gradients that are right on every CPU."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from easycore_ray.core.batchnorm_folding import folded
from easycore_ray.core.models import build_model
from easycore_ray.core.onednn_workaround import SubsampledConv2d, spare_narrow_strides


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 5, 1, stride=2),
        nn.Conv2d(15, 5, 1, stride=(1, 3), bias=False),
        nn.Conv2d(8, 4, 1, stride=2, groups=4),
        nn.Conv2d(32, 4, 1, stride=2, groups=4, padding="valid"),
    ],
)
@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
def test_the_function_and_its_gradients_are_those_of_the_plain_layer(layer, size):
    """In float64, which oneDNN does not compute: output, gradient of the input, of weight and bias."""
    plain = layer.double()
    spared = copy.deepcopy(plain)
    spare_narrow_strides(spared)
    assert type(spared) is SubsampledConv2d
    found = []
    for each in (plain, spared):
        torch.manual_seed(0)
        inputs = torch.randn(3, layer.in_channels, *size, dtype=torch.float64, requires_grad=True)
        outputs = each(inputs)
        each.zero_grad()
        outputs.square().sum().backward()
        found.append([outputs, inputs.grad, *(parameter.grad for parameter in each.parameters())])

    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert list(plain.state_dict()) == list(spared.state_dict())


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(16, 4, 1, stride=2),
        nn.Conv2d(3, 4, 1),
        nn.Conv2d(3, 4, 3, stride=2),
        nn.Conv2d(3, 4, 1, stride=2, padding=1),
        type("Own", (nn.Conv2d,), {})(3, 4, 1, stride=2),
    ],
)
def test_other_layers_are_left_alone(layer):
    """Enough channels, no stride, wider kernels, padding, and classes of others."""
    kind = type(layer)
    spare_narrow_strides(layer)

    assert type(layer) is kind


@pytest.mark.parametrize("name", ["resnet18", "preactresnet18"])
def test_narrow_networks_have_none_of_the_layers_at_risk(name):
    """Shortcuts of a network of width 4 are spared, and batch norm is folded into them all the same."""
    model = build_model(name, num_classes=3, image_shape=(3, 32, 32), width=4, mean=(0.5,) * 3, std=(0.25,) * 3).eval()
    spared = [layer for layer in model.modules() if type(layer) is SubsampledConv2d]
    inputs = torch.rand(2, 3, 32, 32)
    expected = model(inputs)
    with folded(model):
        still = [layer for layer in model.modules() if type(layer) is SubsampledConv2d]
        torch.testing.assert_close(model(inputs), expected, rtol=1e-4, atol=1e-4)
        assert all(layer.bias is not None for layer in still) == (name == "resnet18")

    assert len(spared) == len(still) == 2


TRAIN = """
import torch
from easycore_ray.core.models import build_model
torch.set_num_threads(2)
for width in (3, 4, 8, 12):
    model = build_model("resnet18", num_classes=3, image_shape=(3, 32, 32), width=width, mean=[0.5] * 3, std=[0.25] * 3)
    model = model.to(memory_format=torch.channels_last)
    for batch in (11, 5, 1):
        inputs = torch.rand(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
        for _ in range(8):
            model(inputs).square().sum().backward()
print("whole")
"""


@pytest.mark.slow
def test_narrow_networks_train_in_channels_last_with_odd_batches():
    """In a process of its own: with the plain layers it ends in a corrupted heap on a CPU with AVX-512, or AVX2."""
    run = subprocess.run([sys.executable, "-c", TRAIN], capture_output=True, text=True, timeout=300)

    assert (run.returncode, run.stdout.strip()) == (0, "whole"), run.stderr[-2000:]
