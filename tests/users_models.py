"""Models as a user writes them: one that works and the ways to get it wrong."""

import math
import os
import signal
from pathlib import Path

import torch
from torch import nn

NUMBER = 3


def good(*, num_classes, image_shape):
    """A linear model with batch norm and dropout."""
    channels, height, width = image_shape
    size = channels * height * width
    return nn.Sequential(nn.BatchNorm2d(channels), nn.Flatten(), nn.Dropout(0.5), nn.Linear(size, num_classes))


def other_arguments(classes):
    """Cannot be called by the package."""
    return nn.Linear(1, classes)


def no_module(*, num_classes, image_shape):
    """Gives a number."""
    return num_classes + len(image_shape)


def one_output_too_many(*, num_classes, image_shape):
    """Gives logits of another number of classes."""
    return good(num_classes=num_classes + 1, image_shape=image_shape)


def other_image_size(*, num_classes, image_shape):
    """Takes 5 pixels."""
    return nn.Sequential(nn.Flatten(), nn.Linear(5, num_classes))


def a_pair(*, num_classes, image_shape):
    """Gives logits and something else."""

    class Pair(nn.Module):
        def forward(self, inputs):
            return inputs.flatten(1)[:, :num_classes], inputs

    return Pair()


def masked(*, num_classes, image_shape):
    """A linear model of pixels rounded to four levels: its gradients at the pixels are zero."""
    channels, height, width = image_shape
    return nn.Sequential(Rounded(), nn.Flatten(), nn.Linear(channels * height * width, num_classes))


class Rounded(nn.Module):
    """Inputs to the nearest multiple of two; the graph is kept, the gradient is lost."""

    def forward(self, inputs):
        """The rounded inputs."""
        return (inputs / 2).round() * 2 + 0 * inputs


class Ungraded(nn.Module):
    """Learns as any model; in evaluation its logits have lost their way to the pixels."""

    def __init__(self, network, ending):
        super().__init__()
        self.network, self.ending = network, ending

    def forward(self, inputs):
        """Logits; in evaluation of detached inputs, or a one for the class and zeros."""
        if self.training:
            return self.network(inputs)
        if self.ending == "detached":
            return self.network(inputs.detach())
        logits = self.network(inputs)
        return nn.functional.one_hot(logits.argmax(dim=1), logits.shape[1])


def detached(*, num_classes, image_shape):
    """A linear model that detaches its inputs in evaluation."""
    return Ungraded(good(num_classes=num_classes, image_shape=image_shape), "detached")


def one_hot(*, num_classes, image_shape):
    """A linear model that gives classes in evaluation, as whole numbers."""
    return Ungraded(good(num_classes=num_classes, image_shape=image_shape), "one-hot")


def branching(*, num_classes, image_shape):
    """A linear model that looks at the values of its inputs to choose its way."""
    channels, height, width = image_shape
    return nn.Sequential(Choosing(), nn.Flatten(), nn.Linear(channels * height * width, num_classes))


class Choosing(nn.Module):
    """Bright batches are halved."""

    def forward(self, inputs):
        """The inputs, or half of them."""
        return inputs / 2 if float(inputs.sum()) > 1e6 else inputs


class _Raising(nn.Module):
    """Raises in its fifth training step, on the last worker, and leaves a line for each time."""

    def __init__(self, num_classes, image_shape):
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(image_shape), num_classes))
        self.steps = 0

    def forward(self, images):
        """Logits, four times."""
        self.steps += self.training
        workers = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        rank = torch.distributed.get_rank() if workers > 1 else 0
        if self.steps >= 5 and rank == workers - 1:
            with Path(os.environ["EASYCORE_TEST_PROCESSES"], "raised").open("a") as stream:
                stream.write(f"{workers}\n")
            raise TypeError("half of the images\nare upside down")
        return self.network(images)


class _Killing(nn.Module):
    """Ends its process with SIGKILL in one training step, once; leaves a line for each step before that and after."""

    def __init__(self, num_classes, image_shape):
        super().__init__()
        self.network = good(num_classes=num_classes, image_shape=image_shape)
        self.places = Path(os.environ["EASYCORE_TEST_PROCESSES"])

    def forward(self, images):
        """Logits, except once."""
        if self.training:
            with (self.places / "steps").open("a") as stream:
                stream.write(f"{os.getpid()}\n")
            steps = len((self.places / "steps").read_text().splitlines())
            if steps == KILLED_STEP and not (self.places / "killed").exists():
                (self.places / "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return self.network(images)


KILLED_STEP = 17


def killing(*, num_classes, image_shape):
    """A model whose process is lost."""
    return _Killing(num_classes, image_shape)


def raising(*, num_classes, image_shape):
    """A model with a mistake that only training shows."""
    return _Raising(num_classes, image_shape)
