"""Scoring runs on real Ray Train workers: exact, exactly once, reproducible, resumable."""

import signal
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from easycore_ray import score
from easycore_ray.core import passes
from easycore_ray.core.augment import to_float
from easycore_ray.core.models import build_model
from easycore_ray.core.scores import score_batch
from easycore_ray.data.coreset import open_coreset, read_sample_ids
from easycore_ray.data.dataset import open_dataset
from easycore_ray.data.samples import read_split
from easycore_ray.engine.plan import model_arguments
from easycore_ray.engine.run import fit_here
from easycore_ray.engine.worker_group import LocalContext
from easycore_ray.scoring.hardness_table import open_hardness, read_hardness
from easycore_ray.scoring.score import ScoreConfig, ScoreRecorder, make_scoring_fit
from easycore_ray.scoring.score_reader import open_table
from easycore_ray.scoring.score_table import id_checksum, read_part_lists, scored_epochs
from easycore_ray.storage.errors import EasyCoreError

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

FIELDS = ["grad_norm", "loss", "margin", "el2n", "correct"]


def rows_of(run, epoch):
    """All rows of an epoch, by sample_id, read with plain pyarrow."""
    table = open_table(run.path + "/table")
    parts = [pq.read_table(f"{table.path}/{part.path}", partitioning=None) for part in table.of_epoch(epoch)]
    merged = {name: np.concatenate([part[name].to_numpy() for part in parts]) for name in ["sample_id", *FIELDS]}
    order = np.argsort(merged["sample_id"], kind="stable")
    return {name: values[order] for name, values in merged.items()}


def fingerprint_of(run):
    """Hash of the content of a run's score table."""
    return open_table(run.path + "/table").artifact.fingerprint


def test_scores_equal_a_slow_loop_over_single_images(settings, two_workers, digits, population):
    """At the initial weights every row equals a plain one-image computation to 1e-5."""
    dataset = open_dataset(digits.path)
    config = ScoreConfig(**settings("unused"))
    model = build_model(**model_arguments(config, dataset)).eval()
    rows = read_split(dataset, "train", read_sample_ids(population))
    found = rows_of(two_workers, 0)

    for at in range(0, len(rows.labels), 7):
        inputs = to_float(rows.images[at : at + 1]).requires_grad_()
        logits = model(inputs)
        loss = torch.nn.functional.cross_entropy(logits, rows.labels[at : at + 1], reduction="sum")
        (gradient,) = torch.autograd.grad(loss, inputs)
        probabilities = logits.softmax(1)[0].detach().numpy()
        onehot = np.eye(10)[int(rows.labels[at])]
        assert found["sample_id"][at] == int(rows.sample_ids[at])
        np.testing.assert_allclose(found["grad_norm"][at], float(gradient.norm()), rtol=1e-5)
        np.testing.assert_allclose(found["loss"][at], float(loss.detach()), rtol=1e-5)
        np.testing.assert_allclose(found["el2n"][at], np.linalg.norm(probabilities - onehot), rtol=1e-5)


@pytest.mark.parametrize(
    ("num_workers", "batch_size", "cache_gib", "epochs", "score_pass"),
    [(1, 32, 2.0, 2, "eval"), pytest.param(2, 48, 0.0, 1, "fused", marks=pytest.mark.soak)],
)
def test_every_sample_is_scored_once_whatever_the_workers(
    settings, two_workers, digits, population, tmp_path, num_workers, batch_size, cache_gib, epochs, score_pass
):
    """One worker, or two that stream, score each sample once; scores of given weights are the same.

    (Two in memory, three that stream: see the runs above and below.)
    """
    changes = dict(
        num_workers=num_workers, batch_size=batch_size, cache_gib=cache_gib, epochs=epochs, score_pass=score_pass
    )
    run = score(**settings(tmp_path / "run", cpus_per_worker=0.5, **changes))
    ids = read_sample_ids(population)

    for epoch in range(epochs + 1):
        np.testing.assert_array_equal(rows_of(run, epoch)["sample_id"], ids)
    ours, theirs = rows_of(run, 0), rows_of(two_workers, 0)
    for name in FIELDS:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-6)


@pytest.fixture
def pythons_handler():
    """That of an interactive process, whatever these tests were started by."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_the_same_seed_gives_the_same_table_bit_for_bit(settings, two_workers, tmp_path, pythons_handler):
    """A second run of the same configuration has the same fingerprint, part by part.

    It leaves the handler of interrupts as it was: Ray Train puts its own in its place, and what comes after training
    could not be interrupted.
    """
    again = score(**settings(tmp_path / "run"))

    assert fingerprint_of(again) == fingerprint_of(two_workers)
    assert signal.getsignal(signal.SIGINT) is pythons_handler


def test_aign_is_the_mean_over_epochs_without_the_initial_weights(two_workers):
    """The hardness table holds the mean gradient norm of epochs 1 and 2, and the control apart."""
    hardness = read_hardness(open_hardness(two_workers.path))
    expected = (rows_of(two_workers, 1)["grad_norm"].astype(float) + rows_of(two_workers, 2)["grad_norm"]) / 2

    np.testing.assert_allclose(hardness["aign"].to_numpy(), expected, rtol=1e-12)
    np.testing.assert_array_equal(hardness["aign_epoch0"].to_numpy(), rows_of(two_workers, 0)["grad_norm"])


def test_fused_scores_cover_every_sample_once(settings, two_workers, digits, population, tmp_path):
    """score_pass=fused takes one row per sample from the training steps, and says so; on 3 workers that stream."""
    changes = dict(score_pass="fused", score_every=2, num_workers=3, batch_size=48, cpus_per_worker=0.5, cache_gib=0.0)
    run = score(**settings(tmp_path / "run", **changes))

    np.testing.assert_array_equal(rows_of(run, 2)["sample_id"], read_sample_ids(population))
    assert open_table(run.path + "/table").epochs() == [0, 2]
    assert open_hardness(run.path).manifest["score_pass"] == "fused"
    assert fingerprint_of(run) != fingerprint_of(two_workers)
    for name in FIELDS:
        np.testing.assert_allclose(rows_of(run, 0)[name], rows_of(two_workers, 0)[name], rtol=1e-5, atol=1e-6)


def test_a_finished_run_is_reused_without_work(settings, two_workers, digits, population):
    """The same configuration returns the finished run at once."""
    started = time.monotonic()
    again = score(**settings(two_workers.path))

    assert again.manifest["created"] == two_workers.manifest["created"]
    assert time.monotonic() - started < 5


def test_another_configuration_does_not_replace_a_run(settings, two_workers, digits, population):
    """A run with another seed is refused at the same place."""
    with pytest.raises(EasyCoreError, match="another configuration or input; choose another --out"):
        score(**settings(two_workers.path, seed=9))


@pytest.mark.soak
def test_a_diverged_run_says_so_and_is_not_retried(settings, digits, population, tmp_path):
    """An absurd learning rate ends in one clear error."""
    with pytest.raises(EasyCoreError, match=r"diverged|not finite"):
        score(**settings(tmp_path / "run", lr=1e30, warmup_fraction=0.0, num_workers=1))


def test_more_workers_than_the_cluster_can_give_are_refused(settings, digits, population, tmp_path):
    """Demands that would hang are refused before any work."""
    with pytest.raises(EasyCoreError, match=r"64 CPUs are wanted, the cluster has 3; lower --num-workers"):
        score(**settings(tmp_path / "a", num_workers=2, cpus_per_worker=32))
    with pytest.raises(EasyCoreError, match=r"2 GPUs are wanted, the cluster has 0"):
        score(**settings(tmp_path / "c", gpus_per_worker=1))


def in_process(settings, table, **changes):
    """A one-worker scoring run in this process: its last state, and the norms of each scored epoch by id."""
    config = ScoreConfig(**settings("unused", num_workers=1, **changes))
    dataset = open_dataset(config.dataset)
    fit = make_scoring_fit(config, dataset, open_coreset(config.coreset, dataset))
    ids = fit.read_sample_ids()
    recorder = ScoreRecorder(
        table=str(table), lists=str(table), epochs=config.epochs, every=config.score_every,
        score_pass=config.score_pass, initial_pass=config.initial_pass,
        num_samples=len(ids), checksum=id_checksum(ids), stop_when_stable=config.stop_when_stable,
    )  # fmt: skip
    state = fit_here(fit, read_split(dataset, "train", ids), LocalContext(), recorder)
    listed = read_part_lists(str(table), state.carried["part_lists"])
    parts = {part.epoch: pq.ParquetFile(f"{table}/{part.path}").read() for part in listed}
    return state, {epoch: rows["grad_norm"].to_numpy() for epoch, rows in parts.items()}


def test_fused_and_eval_ends_with_the_exact_scores_of_the_final_weights(settings, tmp_path):
    """Training is the same however it is scored; one exact pass of its last weights counts as one more epoch."""
    _, exact = in_process(settings, tmp_path / "exact", epochs=3)
    _, both = in_process(settings, tmp_path / "both", epochs=3, score_pass="fused+eval")
    _, fused = in_process(settings, tmp_path / "fused", epochs=3, score_pass="fused")

    assert sorted(both) == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(both.pop(4), exact[3])
    assert sorted(both) == sorted(fused)
    for epoch, norms in fused.items():
        np.testing.assert_array_equal(both[epoch], norms)


def test_scores_are_taken_in_batches_of_the_size_that_is_asked_for(settings, tmp_path, monkeypatch):
    """Of 97 rows: they change by rounding only, and fit where larger ones did not."""
    sizes = []

    def take(model, inputs, *rest, **options):
        sizes.append(len(inputs))
        return score_batch(model, inputs, *rest, **options)

    monkeypatch.setattr(passes, "score_batch", take)
    _, whole = in_process(settings, tmp_path / "whole", epochs=1, initial_pass=False)
    _, small = in_process(settings, tmp_path / "small", epochs=1, initial_pass=False, score_batch_size=30)

    assert sizes == [97, 30, 30, 30, 7]
    np.testing.assert_allclose(whole[1], small[1], rtol=1e-5)


@pytest.mark.parametrize("score_pass", ["eval", "fused+eval"])
def test_a_stable_run_ends_early_and_says_how_stable(settings, tmp_path, score_pass):
    """The first epoch whose easiest half stays as asked is the last; a plain loop over the table says the same."""
    state, norms = in_process(settings, tmp_path / "t", epochs=6, score_pass=score_pass, stop_when_stable=0.8)
    overlaps = {}
    for epoch in range(2, state.epoch + 1):
        before, now = (np.mean([norms[at] for at in range(1, last + 1)], axis=0) for last in (epoch - 1, epoch))
        halves = [set(np.lexsort((np.arange(97), values.astype(np.float64)))[:49]) for values in (before, now)]
        overlaps[epoch] = len(halves[0] & halves[1]) / 49

    assert 2 <= state.epoch < 6, "the threshold no longer tells the epochs apart"
    found = {int(entry["epoch"]): entry for entry in state.history}
    for epoch, expected in overlaps.items():
        if score_pass == "eval" or epoch < state.epoch:
            assert found[epoch]["easiest_overlap"] == pytest.approx(expected)
        assert (expected >= 0.8) == (epoch == state.epoch)
    assert state.carried["stopped"] is True
    assert sorted(norms) == scored_epochs(
        {"epochs": 6, "score_every": 1, "score_pass": score_pass, "initial_pass": True}, state.epoch
    )
