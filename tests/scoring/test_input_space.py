"""A scoring run in the space of normalised inputs: the same training, gradients multiplied by the deviation."""

import numpy as np
import pytest

from tests.artifacts import make_image_dataset
from tests.soak.segments import Case, rows_of


@pytest.mark.parametrize("score_pass", ["eval", "fused+eval"])
def test_every_row_of_a_run_is_in_its_input_space(tmp_path, score_pass):
    """Of grey images, whose one channel makes it a factor: in fused and exact passes; other columns are equal."""
    dataset = make_image_dataset(tmp_path / "dataset", [number % 3 for number in range(48)])
    found = []
    for space in ("pixel", "normalised"):
        case = Case(dataset.path, 1, score_pass=score_pass, initial_pass=True, epochs=2, input_space=space)
        folder = tmp_path / space
        _, state = case.attempt(folder)
        found.append(rows_of(case.parts(state, folder), folder))
    (std,) = case.dataset.std

    assert found[0].keys() == found[1].keys() == ({0, 1, 2, 3} if score_pass == "fused+eval" else {0, 1, 2})
    assert not 0.9 < std < 1.1
    for epoch, pixels in found[0].items():
        normalised = found[1][epoch]
        np.testing.assert_allclose(normalised["grad_norm"], std * np.asarray(pixels["grad_norm"]), rtol=1e-6)
        assert normalised.drop(["grad_norm"]) == pixels.drop(["grad_norm"])
