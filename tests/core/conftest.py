"""A small model and a small batch, new for every test; one thread."""

import pytest
import torch

from easycore_ray.core.models import build_model


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tensors this small are slower on several threads, much slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def model():
    """A convnet with batch norm whose running statistics are not the initial ones, in train mode."""
    net = build_model("cnn", num_classes=5, image_shape=(3, 8, 8), width=4, mean=[0.4] * 3, std=[0.25] * 3)
    draws = torch.Generator().manual_seed(1)
    for _ in range(3):
        net(torch.rand(32, 3, 8, 8, generator=draws))
    return net


@pytest.fixture
def inputs():
    """Eleven images of pixels in [0, 1]; 11 divides by no batch size a test uses."""
    return torch.rand(11, 3, 8, 8, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def labels():
    """A label for each of the eleven images."""
    return torch.randint(0, 5, (11,), generator=torch.Generator().manual_seed(3))
