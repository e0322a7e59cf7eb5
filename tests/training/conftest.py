"""A small dataset to train on, and threads as they were."""

import pytest
import torch

from tests.artifacts import make_image_dataset


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """A run sets the number of threads; it is put back."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """60 random images to train on, 21 to validate with."""
    folder = tmp_path_factory.mktemp("training") / "dataset"
    return make_image_dataset(
        folder, [number % 3 for number in range(60)], val_labels=[number % 3 for number in range(21)]
    )
