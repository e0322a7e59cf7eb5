"""Runs that end at any point and are started again: weights, metrics and score tables of an uninterrupted run."""

import itertools

import pytest
import torch

from easycore_ray.engine.state import HaltedError
from tests.artifacts import make_image_dataset
from tests.soak.segments import NEVER, Case, run_case

PASSES = ("eval", "fused", "fused+eval")


@pytest.fixture(autouse=True, scope="module")
def same_threads():
    """A run sets the number of threads; it is put back."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


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
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("score_pass", PASSES)
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


@pytest.mark.parametrize("seed", range(6))
def test_a_run_that_dies_again_and_again_ends_with_the_same_bits(seed):
    """Of any kind, with 1 to 3 workers; see ``tests.soak.segments``."""
    assert run_case(seed)["kills"] == 12


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


def test_small_data_is_one_segment_that_commits_at_ends_of_epochs(dataset, tmp_path):
    """With the defaults, as if there were no segments."""
    case = Case(dataset, 2, segment_images=65_536, commit_minutes=10.0)
    whole, state = case.attempt(tmp_path)
    assert [entry["epoch"] for entry in state.history] == [1, 2, 3]
    assert len(list(tmp_path.glob("epoch-*"))) == 3
    assert sum(name == ("commit",) for name in whole.names) == 3
    assert {part.segment for part in case.parts(state, tmp_path)} == {0}


def test_another_number_of_workers_begins_the_epoch_anew(dataset, tmp_path):
    """What is left of an epoch is cut by the shares of those that began it; each epoch is scored whole all the same."""
    case = Case(dataset, 2, score_pass="fused+eval", commit_minutes=0.0)
    counted = itertools.count()
    for workers, kill in ((2, (0, 24)), (3, (2, 40)), (1, None)):
        group, state = case.attempt(tmp_path, kill, workers)
        assert (state is None) == (kill is not None)
        if next(counted) == 0:
            assert "-" in (tmp_path / "registered").read_text().removeprefix("epoch-")
    assert group.world_size == 1
    assert [int(entry["epoch"]) for entry in state.history] == [1, 2, 3]
    assert len({entry["num_workers"] for entry in state.history}) >= 2
    assert case.lost_and_doubled(state, tmp_path) == (0, 0)


def test_a_diverged_run_ends_with_its_last_whole_epoch(dataset, tmp_path):
    """Also where it goes on within an epoch: which state is the last good one does not depend on commits."""
    case = Case(dataset, 1, "standard", commit_minutes=0.0, lr=1e6, schedule="constant", warmup_fraction=0.0, epochs=3)
    calm = Case(dataset, 1, "standard", commit_minutes=0.0, lr=0.1, schedule="constant", warmup_fraction=0.0, epochs=3)
    _, state = calm.attempt(tmp_path, (0, 22))
    assert state is None
    registered = (tmp_path / "registered").read_text()
    assert registered.startswith("epoch-1-"), registered
    with pytest.raises(HaltedError) as halted:
        case.attempt(tmp_path)
    assert halted.value.state is not None
    assert (halted.value.state.epoch, halted.value.state.progress) == (1, None)
