"""Runs that end at any point and are started again: weights, metrics and score tables of an uninterrupted run."""

import itertools

import numpy as np
import pytest
import torch

from easycore_ray.engine.state import HaltedError, load_state
from tests.artifacts import make_image_dataset
from tests.soak.segments import NEVER, Case, rows_of, run_case

pytestmark = pytest.mark.usefixtures("same_threads")

PASSES = ("eval", "fused", "fused+eval")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crashes") / "dataset"
    labels = [number % 3 for number in range(49)]
    return make_image_dataset(folder, labels, val_labels=labels[:9]).path


def assert_same(case, state, folder, expected):
    """What a run ended with is what is expected, and each epoch was scored whole."""
    found = case.outcome(state, folder)
    assert [name for name in expected if found[name] != expected[name]] == []
    assert case.lost_and_doubled(state, folder) == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("score_pass", "workers"),
    [
        ("fused+eval", 2),
        ("eval", 1),
        *(
            pytest.param(score_pass, workers, marks=pytest.mark.soak)
            for score_pass, workers in itertools.product(PASSES, (1, 2))
            if (score_pass, workers) not in (("fused+eval", 2), ("eval", 1))
        ),
    ],
)
def test_wherever_a_run_dies_it_resumes_to_the_same_bits(dataset, tmp_path, score_pass, workers):
    """Before every third batch, gather and step of a commit: nothing lost, no more done again than allowed."""
    case = Case(dataset, workers, score_pass=score_pass, initial_pass=True, epochs=2, commit_minutes=2.0)
    whole, state = case.attempt(tmp_path / "whole")
    expected = case.outcome(state, tmp_path / "whole")
    points = [(rank, event) for rank in range(workers) for event in range(rank, whole.events[rank], 3 * workers)]
    reached = set()
    for number, kill in enumerate(points):
        folder = tmp_path / str(number)
        killed, state = case.attempt(folder, kill)
        assert state is None
        again, state = case.attempt(folder)
        assert killed.batches - again.resumed_at <= case.most_redone(), kill
        assert_same(case, state, folder, expected)
        reached.add(whole.names[min(kill[1], len(whole.names) - 1)][0])
    assert reached == {"batch", "gather", "commit", "half a commit", "committed"}


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
def test_a_run_that_dies_again_and_again_ends_with_the_same_bits(seed):
    """Of any kind, with 1 to 3 workers; see ``tests.soak.segments``."""
    assert run_case(seed)["kills"] == 12


@pytest.mark.slow
@pytest.mark.parametrize("job", ["score", "trades"])
def test_results_do_not_depend_on_where_commits_fall(dataset, tmp_path, job):
    """Committing at every end of a segment or of epochs only; three workers, whose batch norm differs within one."""
    outcomes = []
    for minutes in (0.0, NEVER):
        case = Case(dataset, 3, job, commit_minutes=minutes, augment="crop")
        _, state = case.attempt(tmp_path / str(minutes))
        outcomes.append(case.outcome(state, tmp_path / str(minutes)))
    assert outcomes[0] == outcomes[1]
    within = [len(list((tmp_path / str(minutes)).glob("epoch-*-*-*"))) for minutes in (0.0, NEVER)]
    assert within[0] >= 6
    assert within[1] == 0


def test_workers_end_with_the_same_weights_and_the_same_average(dataset, tmp_path):
    """To the bit: running statistics of batch norm are each worker's own within a segment alone."""
    group, state = Case(dataset, 3, "trades").attempt(tmp_path)
    assert any("running_mean" in name for name in state.averaged)
    for other in (group.states[1], group.states[2]):
        for mine, theirs in ((state.model, other.model), (state.averaged, other.averaged)):
            assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_small_data_is_one_segment_that_commits_at_ends_of_epochs(dataset, tmp_path):
    """With the defaults, as if there were no segments."""
    case = Case(dataset, 2, segment_images=65_536, commit_minutes=10.0)
    whole, state = case.attempt(tmp_path)
    assert [entry["epoch"] for entry in state.history] == [1, 2, 3]
    assert len(list(tmp_path.glob("epoch-*"))) == 3
    assert sum(name == ("commit",) for name in whole.names) == 3
    assert {part.segment for part in case.parts(state, tmp_path)} == {0}


def after_commit(group, number):
    """The event of rank 0 that follows its commit of this number, from 1."""
    return [event for event, name in enumerate(group.names) if name == ("committed",)][number - 1] + 1


def resumed(folder):
    """The state that the next attempt begins with."""
    return load_state(str(folder / (folder / "registered").read_text()))


def test_another_number_of_workers_begins_the_epoch_anew(dataset, tmp_path):
    """What is left of an epoch is cut by the shares of those that began it; each epoch is scored whole all the same."""
    case = Case(dataset, 2, score_pass="fused+eval", commit_minutes=0.0)
    whole, _ = case.attempt(tmp_path / "whole")
    folder = tmp_path / "run"
    # Three segments an epoch: the fifth commit is within the second.
    _, state = case.attempt(folder, (0, after_commit(whole, 5)))
    assert state is None
    assert (resumed(folder).epoch, resumed(folder).progress.trained) == (1, 2)
    again, state = case.attempt(folder, workers=3)
    assert next(name for name in again.names if name[0] == "batch") == ("batch", "trained", 2, 0, 0)
    assert [(entry["epoch"], entry["num_workers"]) for entry in state.history] == [(1, 2), (2, 3), (3, 3)]
    assert case.lost_and_doubled(state, folder) == (0, 0)


def test_a_diverged_run_ends_with_its_last_whole_epoch(dataset, tmp_path):
    """Also where it goes on within an epoch: which state is the last good one does not depend on commits."""
    fields = dict(commit_minutes=0.0, schedule="constant", warmup_fraction=0.0)
    calm, case = (Case(dataset, 1, "standard", lr=lr, **fields) for lr in (0.1, 1e9))
    whole, _ = calm.attempt(tmp_path / "whole")
    folder = tmp_path / "run"
    calm.attempt(folder, (0, after_commit(whole, 4)))
    assert (resumed(folder).epoch, resumed(folder).progress.trained) == (1, 1)
    with pytest.raises(HaltedError, match=r"\(epoch 2, ") as halted:
        case.attempt(folder)
    assert halted.value.state is not None
    assert (halted.value.state.epoch, halted.value.state.progress) == (1, None)


def test_metrics_of_scores_are_over_all_segments(dataset, tmp_path):
    """The mean gradient norm, and how stable the easiest half is, as plain loops over the table say."""
    case = Case(dataset, 2, score_pass="eval", augment="none")
    _, state = case.attempt(tmp_path)
    norms = {
        epoch: rows["grad_norm"].to_numpy()[np.argsort(rows["sample_id"].to_numpy())].astype(np.float64)
        for epoch, rows in rows_of(case.parts(state, tmp_path), tmp_path).items()
    }
    assert {part.segment for part in case.parts(state, tmp_path)} == {0, 1, 2}
    for entry in state.history:
        epoch = entry["epoch"]
        assert entry["mean_grad_norm"] == pytest.approx(norms[epoch].mean(), rel=1e-12)
        if epoch > 1:
            before, now = (np.mean([norms[at] for at in range(1, last + 1)], axis=0) for last in (epoch - 1, epoch))
            halves = [set(np.lexsort((case.ids, values))[:25]) for values in (before, now)]
            assert entry["easiest_overlap"] == pytest.approx(len(halves[0] & halves[1]) / 25)
