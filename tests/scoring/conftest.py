"""A small finished scoring run."""

import shutil

import numpy as np
import pytest

from tests.artifacts import draw_rows, finish_table, samples_of, write_parts
from tests.hardness import EPOCHS, population


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A scoring run with a finished table of 37 samples, five epochs, three ranks; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    ids, labels = population()
    parts = write_parts(folder / "table", draw_rows(ids, labels, EPOCHS), np.arange(37) % 3)
    finish_table(folder, parts, samples_of(ids, labels))
    return folder


@pytest.fixture
def run(tmp_path, finished_run):
    """A copy of the run of its own."""
    return shutil.copytree(finished_run, tmp_path, dirs_exist_ok=True)
