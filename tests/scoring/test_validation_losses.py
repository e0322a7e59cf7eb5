"""Validation losses of each class: what validation measures, what a scoring run records, what CLD makes of them."""

import numpy as np
import pytest
import torch

from easycore_ray import reduce
from easycore_ray.core.models import build_model
from easycore_ray.core.passes import validate
from easycore_ray.data.dataset import open_dataset
from easycore_ray.data.samples import read_split
from easycore_ray.scoring.hardness_table import read_hardness
from easycore_ray.storage.errors import EasyCoreError
from tests.artifacts import draw_rows, edit_manifest, finish_table, make_image_dataset, samples_of, write_parts
from tests.hardness import population
from tests.soak.segments import Case

pytestmark = pytest.mark.usefixtures("same_threads")

VAL_LABELS = [0] * 150 + [1] * 40 + [3] * 9


def plain_losses(model, dataset, num_classes):
    """Mean cross-entropy of each class, one image after the other; None without images."""
    found = [[] for _ in range(num_classes)]
    model.eval()
    with torch.no_grad():
        for image, label in zip(*read_split(dataset, "val")[1:], strict=True):
            found[label].append(-torch.log_softmax(model(image[None].float() / 255)[0], 0)[label].item())
    return [float(np.mean(losses)) if losses else None for losses in found]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Four classes, of which one has no validation images; two blocks of those."""
    folder = tmp_path_factory.mktemp("losses") / "dataset"
    return make_image_dataset(folder, [number % 4 for number in range(49)], val_labels=VAL_LABELS).path


def test_losses_are_those_of_one_image_after_the_other(dataset):
    """Sums and rows of each class, however rows are cut into batches."""
    opened = open_dataset(dataset)
    ids, images, labels = read_split(opened, "val")
    model = build_model("cnn", num_classes=4, image_shape=tuple(images.shape[1:]), width=2,
                        mean=[0.5], std=[0.2], seed=1)  # fmt: skip
    found = validate(model, zip(ids.split(70), images.split(70), labels.split(70), strict=True))

    assert found.class_rows == (150, 40, 0, 9)
    plain = plain_losses(model, opened, 4)
    assert [found.losses[label] / found.class_rows[label] for label in (0, 1, 3)] == pytest.approx(
        [plain[label] for label in (0, 1, 3)], rel=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("score_pass", ["eval", "fused+eval"])
def test_a_scoring_run_carries_the_losses_of_every_epoch(dataset, tmp_path, score_pass, workers):
    """Of its weights at the epoch's end; killed and resumed they are the same bits."""
    case = Case(dataset, workers, score_pass=score_pass, commit_minutes=0.0)
    whole, state = case.attempt(tmp_path / "whole")
    losses = state.carried["val_losses"]
    model = build_model(**case.fit.model)
    model.load_state_dict(state.model)

    assert len(losses) == 3
    assert losses[0] != losses[2]
    plain = plain_losses(model, case.dataset, 4)
    assert losses[2][2] is plain[2] is None
    assert [losses[2][label] for label in (0, 1, 3)] == pytest.approx([plain[label] for label in (0, 1, 3)], rel=1e-5)
    commits = [at for at, name in enumerate(whole.names) if name[0] in ("commit", "half a commit", "committed")]
    for number, event in enumerate(commits[1::7]):
        folder = tmp_path / str(number)
        assert case.attempt(folder, (0, event))[1] is None
        _, resumed = case.attempt(folder)
        assert case.outcome(resumed, folder) == case.outcome(state, tmp_path / "whole")


def test_a_run_that_records_no_scores_carries_none(dataset, tmp_path):
    """Nothing grows in the commits of a training run."""
    _, state = Case(dataset, 1, "standard", epochs=1).attempt(tmp_path)
    assert "val_losses" not in state.carried
    assert "val_accuracy" in state.history[0]


# ---------------------------------------------------------------- CLD


@pytest.fixture
def scored(tmp_path):
    """A run of eight epochs, of which every second one was scored, and the final weights once more as epoch 9."""
    ids, labels = population()
    rows = draw_rows(ids, labels, [2, 4, 6, 8, 9])
    finish_table(tmp_path, write_parts(tmp_path / "table", rows, np.arange(len(ids)) % 3), samples_of(ids, labels))
    losses = np.random.default_rng(3).gamma(1.0, 1.0, (8, int(labels.max()) + 1))
    edit_manifest(tmp_path / "table", val_losses=losses.tolist())
    return tmp_path, rows, losses


def correlation(first, second):
    """Pearson's, 0 where one is constant."""
    first, second = first - first.mean(), second - second.mean()
    size = np.sqrt((first**2).sum() * (second**2).sum())
    return (first * second).sum() / size if size > 0 else 0.0


def test_cld_goes_by_the_losses_of_the_class_at_the_scored_epochs(scored):
    """The exact pass of the final weights has the validation loss of the last epoch."""
    folder, rows, losses = scored
    table = read_hardness(reduce(scores=str(folder), out=f"{folder}/own", only=("cld",)))
    at = losses[[1, 3, 5, 7, 7]]
    order = np.argsort(rows[0]["sample_id"])
    mine = np.array([columns["loss"] for columns in rows], np.float64)[:, order]
    plain = [
        correlation(np.diff(mine[:, row]), np.diff(at[:, label])) for row, label in enumerate(rows[0]["label"][order])
    ]
    np.testing.assert_allclose(table["cld"], plain, atol=1e-12)


def test_cld_of_some_epochs_takes_their_losses(scored):
    """2:6 alone."""
    folder, rows, losses = scored
    table = read_hardness(reduce(scores=str(folder), out=f"{folder}/own", only=("cld",), epoch_range="2:6"))
    at = losses[[1, 3, 5]]
    first = int(np.argmin(rows[0]["sample_id"]))
    mine = np.array([columns["loss"][first] for columns in rows[:3]], np.float64)
    plain = correlation(np.diff(mine), np.diff(at[:, rows[0]["label"][first]]))
    assert table["cld"][0].as_py() == pytest.approx(plain, abs=1e-12)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (None, r"holds no validation losses; they need a dataset with a validation split \(prepare --val-fraction"),
        ([], r"holds no validation losses"),
        ([[1.0, None, 2.0]] * 8, r"class 1 has no validation samples, .* larger --val-fraction"),
    ],
)
def test_cld_without_losses_is_refused(scored, losses, message):
    """Before anything is read or written; other scores do not need them."""
    folder, *_ = scored
    edit_manifest(folder / "table", val_losses=losses)
    with pytest.raises(EasyCoreError, match=message):
        reduce(scores=str(folder), out=f"{folder}/own", only=("cld", "aign"))
    assert not (folder / "own").exists()
    reduce(scores=str(folder), out=f"{folder}/own", only=("aign",))
