"""A pipeline without its stages: what it says it would do."""

import pytest

from easycore_ray import pipeline
from easycore_ray.storage import artifact, provenance
from easycore_ray.storage.errors import EasyCoreError
from tests.artifacts import make_image_dataset


@pytest.fixture
def dataset(tmp_path):
    """Sixty images to train on."""
    return make_image_dataset(tmp_path / "dataset", [number % 3 for number in range(60)])


def plan(dataset, tmp_path, **fields):
    found = pipeline.plan(
        dataset=dataset, out=tmp_path / "out", model="cnn", score_epochs=2, batch_size=10, num_workers=1, seeds=0,
        training="standard", method="easycore", fraction=0.5, **fields,
    )  # fmt: skip
    assert not (tmp_path / "out").exists()
    return found


def test_a_plan_counts_the_samples_that_would_be_scored(dataset, tmp_path):
    """All of them, or those of a subset that is not drawn yet."""
    whole, part = plan(dataset, tmp_path), plan(dataset, tmp_path, subset=30)

    assert (whole.samples, part.samples) == (60, 30)
    assert part.work == "draw 30 of 60 training samples, score for 2 epochs, run 2 trials and report"
    # 2 epochs of scoring; 20 epochs each on all samples and on half of them; batches of 10.
    assert (whole.steps, part.steps) == (2 * 6 + 20 * (6 + 3), 2 * 3 + 20 * (3 + 2))
    assert (whole.trials, part.trials) == (2, 2)


def test_a_subset_larger_than_the_whole_is_refused_by_a_plan(dataset, tmp_path):
    """As by the run itself."""
    with pytest.raises(EasyCoreError, match="subset must be at most 60"):
        plan(dataset, tmp_path, subset=61)


def test_the_commit_is_that_of_the_code_that_runs(tmp_path, monkeypatch):
    """Not that of a tree which moved on while it ran."""
    artifact.claim(str(tmp_path / "a"), "coreset", "identity")
    before = provenance.git_commit()
    monkeypatch.setattr(provenance.subprocess, "run", lambda *_, **__: pytest.fail("the tree was asked again"))

    assert provenance.git_commit() == before
