"""A network that costs next to nothing, for benchmarks of everything else: ``--model patch_network:make``."""

from torch import nn


def make(num_classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
    """Patches of 16 × 16 pixels, one hidden layer on each, their average."""
    channels, height, width = image_shape
    assert height % 16 == 0
    assert width % 16 == 0
    return nn.Sequential(
        nn.Conv2d(channels, 32, 16, stride=16),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, num_classes),
    )
