"""Pruned epochs of whole runs: which samples each worker trains on, and runs that die and go on."""

import threading

import numpy as np
import pytest
import torch

from easycore_ray.core.hashing import uniform_draws
from easycore_ray.core.loop import train_epoch
from easycore_ray.core.pruning import last_pruned_step
from easycore_ray.core.seeding import derive_seed
from easycore_ray.engine import run
from easycore_ray.engine.state import load_state
from tests.artifacts import make_image_dataset
from tests.soak.segments import Case

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("same_threads")]
ROWS, SEED = 97, 3


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruned") / "dataset"
    labels = [number % 3 for number in range(ROWS)]
    return make_image_dataset(folder, labels, val_labels=labels[:9]).path


def case_of(dataset, workers=1, job="standard", **fields):
    """A run of steps for eight passes over all samples."""
    own = dict(pruning="infobatch", epochs=8, commit_minutes=0.0, lr=0.05, augment="crop", segment_images=48)
    return Case(dataset, workers, job, **own | fields)


@pytest.fixture
def epochs(monkeypatch):
    """For each epoch of what is run: its segments, worker by worker, as (ids, weights, losses, steps done before)."""
    seen, lock = {}, threading.Lock()

    def watched(model, optimizer, batches, plan, *, epoch, step, segment, rank, weigh, **options):
        kept = list(batches)
        found = train_epoch(model, optimizer, kept, plan, epoch=epoch, step=step, segment=segment, rank=rank,
                            weigh=weigh, **options)  # fmt: skip
        rows = found.row_losses
        ids = torch.from_numpy(rows["sample_id"])
        assert torch.equal(ids, torch.cat([batch[0] for batch in kept]))
        weights = torch.ones(len(ids)) if weigh is None else weigh(ids)
        with lock:
            # What is begun anew is the epoch that counts.
            if (segment, rank) in seen.setdefault(epoch, {}) and segment == 0:
                seen[epoch].clear()
            seen[epoch][segment, rank] = (ids.numpy(), weights.numpy(), rows["loss"], step, len(kept))
        return found

    monkeypatch.setattr(run, "train_epoch", watched)
    return seen


def check_rule(epochs, total_steps, ratio=0.5):
    """Every epoch has the samples and weights that a plain loop over the losses seen before says; pruned epochs."""
    losses, pruned, limit = {}, 0, last_pruned_step(total_steps)
    for epoch in sorted(epochs):
        parts = epochs[epoch].values()
        step = min(part[3] for part in parts)
        done = max(part[3] + part[4] for part in parts)
        found = {int(i): float(w) for ids, weights, *_ in parts for i, w in zip(ids, weights, strict=True)}
        assert len(found) == sum(len(part[0]) for part in parts), "a sample came twice"
        expected = {}
        mean = np.mean([np.float64(loss) for loss in losses.values()]) if losses else 0
        for number in range(ROWS):
            low = step < limit and number in losses and losses[number] < mean
            draw = uniform_draws(derive_seed("infobatch", SEED, epoch), np.array([number]))[0]
            if not low or draw >= ratio:
                expected[number] = 1 / (1 - ratio) if low else 1.0
        whole = found.keys() == expected.keys()
        assert whole or done in (limit, total_steps), (
            "an epoch ends early only where all samples begin, or the run ends"
        )
        assert all(expected[number] == weight for number, weight in found.items())
        assert set(found.values()) == {1.0} if step >= limit else done <= limit
        pruned += len(expected) < ROWS
        losses |= {int(i): loss for ids, _, values, *_ in parts for i, loss in zip(ids, values, strict=True)}
    return pruned


@pytest.mark.parametrize(("workers", "job"), [(1, "standard"), (1, "trades"), (2, "standard"), (3, "standard")])
def test_epochs_have_the_samples_that_the_losses_say(dataset, tmp_path, epochs, workers, job):
    """On all workers together, segment by segment; the metrics say how many samples; steps are as many as without."""
    case = case_of(dataset, workers, job)
    total = case.fit.plan.total_steps
    group, state = case.attempt(tmp_path)

    assert state.step == total == 8 * 9
    assert len(state.history) > 8
    assert check_rule(epochs, total) >= 6
    kept = [entry["kept_samples"] for entry in state.history]
    assert kept[0] == kept[-1] == ROWS
    assert min(kept) < 0.9 * ROWS
    trained = [sum(len(part[0]) for part in epochs[entry["epoch"]].values()) for entry in state.history]
    assert sum(more > less for more, less in zip(kept, trained, strict=True)) <= 2, "but for the last of each kind"
    assert {len(batches) for batches in steps_of(epochs, workers)} == {1}
    assert all(torch.equal(group.states[rank].model[name], value)
               for rank in range(workers) for name, value in state.model.items())  # fmt: skip


def steps_of(epochs, workers):
    """For each segment the numbers of batches that workers had."""
    for segments in epochs.values():
        for segment in {segment for segment, _ in segments}:
            yield {segments[segment, rank][4] for rank in range(workers)}


@pytest.mark.parametrize("workers", [1, 2])
def test_wherever_a_pruned_run_dies_it_resumes_to_the_same_bits(dataset, tmp_path, workers):
    """Within epochs too: the choice of the epoch under way and all losses are part of a commit."""
    case = case_of(dataset, workers, epochs=3)
    whole, state = case.attempt(tmp_path / "whole")
    expected, losses = case.outcome(state, tmp_path / "whole"), state.carried["sample_losses"]
    assert min(entry["kept_samples"] for entry in state.history) < ROWS
    within = 0
    for event in range(0, whole.events[0], 6 * workers):
        folder = tmp_path / str(event)
        case.attempt(folder, (0, event))
        record = folder / "registered"
        within += record.exists() and load_state(str(folder / record.read_text())).progress is not None
        _, state = case.attempt(folder)
        found = case.outcome(state, folder)
        assert [name for name in expected if found[name] != expected[name]] == [], event
        assert torch.equal(state.carried["sample_losses"], losses)
        assert "sample_weights" not in state.carried
    assert within >= 4


def test_another_number_of_workers_goes_by_the_same_losses(dataset, tmp_path, epochs):
    """They are kept by sample, so the rule holds in every epoch of a run that went on with three workers."""
    case = case_of(dataset, 2)
    whole, _ = case.attempt(tmp_path / "whole")
    epochs.clear()
    folder, commits = tmp_path / "run", [at for at, name in enumerate(whole.names) if name == ("committed",)]
    case.attempt(folder, (0, commits[len(commits) // 2] + 1))
    begun = load_state(str(folder / (folder / "registered").read_text()))
    assert begun.epoch >= 2
    _, state = case.attempt(folder, workers=3)

    assert {entry["num_workers"] for entry in state.history} == {2, 3}
    assert check_rule(epochs, case.fit.plan.total_steps) >= 6


def test_whatever_leaves_nothing_out_changes_no_bit(dataset, tmp_path):
    """A ratio that rounds to none is the run without pruning: keeping losses costs no random number."""
    outcomes = []
    for number, fields in enumerate((dict(pruning="none"), dict(prune_ratio=1e-12))):
        case = case_of(dataset, 2, epochs=2, **fields)
        _, state = case.attempt(tmp_path / str(number))
        for entry in state.history:
            for name in ("kept_samples", "steps"):
                entry.pop(name, None)
        outcomes.append(case.outcome(state, tmp_path / str(number)))
    assert outcomes[0] == outcomes[1]


def test_an_epoch_that_would_leave_a_worker_with_a_single_row_has_all_samples(dataset, tmp_path, epochs):
    """Eight workers with four samples each a step: who keeps too few for two in every step makes the epoch whole."""
    case = case_of(dataset, 8, batch_size=32, prune_ratio=0.95, epochs=8, segment_images=600)
    _, state = case.attempt(tmp_path)
    assert state.step == case.fit.plan.total_steps
    sizes = [[len(segments[0, rank][0]) / segments[0, rank][4] for rank in range(8)] for segments in epochs.values()]
    assert min(min(each) for each in sizes) >= 2
    kept = [entry["kept_samples"] for entry in state.history]
    assert kept.count(ROWS) > 2
