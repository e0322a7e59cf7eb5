"""Scores of whole trajectories, against slow versions that go sample by sample."""

import statistics
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from easycore_ray.core.trajectory import RunFacts, TooFewEpochsError, TrajectoryScore
from easycore_ray.core.trajectory_scores import TRAJECTORY_SCORES, Dual, RunningNorm, parse_trajectory_score

SAMPLES, EPOCHS, CLASSES = 17, 13, 3


@pytest.fixture
def table():
    """Columns of a score table, (EPOCHS, SAMPLES) each, and labels."""
    rng = np.random.default_rng(0)
    columns = {
        name: rng.gamma(1.0, 1.0, (EPOCHS, SAMPLES)).astype(np.float32) for name in ("loss", "grad_norm", "kd_prev")
    }
    columns["margin"] = rng.normal(size=(EPOCHS, SAMPLES)).astype(np.float32)
    columns["correct"] = rng.random((EPOCHS, SAMPLES)) < 0.5
    return columns, rng.integers(0, CLASSES, SAMPLES), rng.gamma(1.0, 1.0, (EPOCHS, CLASSES))


def scored(score: TrajectoryScore, table, parts=(slice(0, 6), slice(6, None)), epochs=EPOCHS) -> np.ndarray:
    """The score of a table whose epochs come in two parts each."""
    columns, labels, val_loss = table
    threshold = None
    if score.NAME == "learning_time":
        threshold = float(scored(RunningNorm(), table, epochs=epochs).mean())
    run = RunFacts(count=epochs, val_loss=val_loss[:epochs], threshold=threshold)
    state = score.begin(SAMPLES, run)
    if "label" in state:
        state["label"][:] = labels
    for number in range(epochs):
        for part in parts:
            rows = {name: columns[name][number, part] for name in score.COLUMNS}
            score.add({name: values[part] for name, values in state.items()}, rows, number, run)
    return score.finish(state, run)


def tdds(kd, window=10):
    changes, total = kd[1:], 0.0
    parts = windows(changes, window - 1)
    for place, part in enumerate(parts):
        spread = sum((value - statistics.fmean(part)) ** 2 for value in part) ** 0.5
        total += spread * 0.9 * 0.1 ** (len(parts) - 1 - place)
    return total


def windows(values, length):
    return [values[start : start + length] for start in range(len(values) - length + 1)]


def dyn_unc(p, window=10):
    return statistics.fmean(statistics.stdev(part) for part in windows(p, window))


def dual(p, window=10, epochs=30):
    return statistics.fmean(
        statistics.stdev(part) * (1 - statistics.fmean(part)) for part in windows(p[:epochs], window)
    )


ORACLES = {
    "tdds": lambda of: tdds(of.kd_prev),
    "tdds:window=4": lambda of: tdds(of.kd_prev, 4),
    "dyn_unc": lambda of: dyn_unc(of.p),
    "dyn_unc:window=4": lambda of: dyn_unc(of.p, 4),
    "dual": lambda of: dual(of.p),
    "dual:window=3,epochs=7": lambda of: dual(of.p, 3, 7),
    "confidence": lambda of: statistics.fmean(of.p),
    "confidence:epochs=5": lambda of: statistics.fmean(of.p[:5]),
    "frequency": lambda of: np.abs(np.fft.fft(of.p))[1:].sum(),
    "frequency:epochs=8": lambda of: np.abs(np.fft.fft(of.p[:8]))[1:].sum(),
    "correctness": lambda of: sum(of.correct),
    "margin_std": lambda of: statistics.stdev(of.margin),
    "grad_norm_std": lambda of: statistics.stdev(of.grad_norm),
    "learning_time": lambda of: 1 - (of.running < of.threshold).mean(),
    "cld": lambda of: np.corrcoef(np.diff(of.loss), np.diff(of.val_loss))[0, 1],
}
ASKED = tuple(ORACLES)


def trajectories(table):
    """What happened to each sample, in lists of float."""
    columns, labels, val_loss = table
    running = np.cumsum(columns["grad_norm"], axis=0, dtype=float) / np.arange(1, EPOCHS + 1)[:, None]
    for sample in range(SAMPLES):
        own = {name: values[:, sample].astype(float).tolist() for name, values in columns.items()}
        yield SimpleNamespace(**own, p=np.exp(-np.array(own["loss"])).tolist(), val_loss=val_loss[:, labels[sample]],
                              running=running[:, sample], threshold=running.mean())  # fmt: skip


def expected(text, table):
    """The score of each sample from its source's formula."""
    return np.array([ORACLES[text](of) for of in trajectories(table)])


@pytest.mark.parametrize("text", ASKED)
def test_equals_its_formula(text, table):
    np.testing.assert_allclose(
        scored(parse_trajectory_score(text), table), expected(text, table), rtol=1e-12, atol=1e-14
    )


def test_every_score_is_held_against_a_formula():
    assert {text.partition(":")[0] for text in ASKED} | {"grand"} == set(TRAJECTORY_SCORES)


@pytest.mark.parametrize("text", ASKED)
def test_does_not_depend_on_how_rows_are_cut(text, table):
    score = parse_trajectory_score(text)
    rows = [slice(place, place + 1) for place in range(SAMPLES)]
    assert np.array_equal(scored(score, table), scored(score, table, parts=rows))


@pytest.mark.parametrize("text", ASKED)
def test_is_written_as_it_is_parsed(text):
    assert str(parse_trajectory_score(text)) == text


def test_constant_losses_correlate_with_nothing(table):
    columns, labels, val_loss = table
    still = {**columns, "loss": np.ones_like(columns["loss"])}
    assert (scored(parse_trajectory_score("cld"), (still, labels, val_loss)) == 0).all()
    assert (scored(parse_trajectory_score("cld"), (columns, labels, np.ones_like(val_loss))) == 0).all()


@pytest.mark.parametrize(
    ("text", "count"), [("dyn_unc", 9), ("dual", 9), ("tdds", 9), ("cld", 2), ("margin_std", 1), ("frequency", 1)]
)
def test_too_short_a_trajectory_is_refused(text, count):
    with pytest.raises(TooFewEpochsError, match=f"at least {count + 1} scored epochs, there are {count}"):
        parse_trajectory_score(text).check_epochs(count)
    parse_trajectory_score(text).check_epochs(count + 1)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("dule", "there are dyn_unc, dual"),
        ("dual:windows=3", "no option 'windows'; its options are: window, epochs"),
        ("correctness:window=3", "its options are: none"),
        ("dual:window=", "must be a whole number, got ''"),
        ("dual:window=1", "dual:window must be at least 2, got 1"),
        ("dual:window=10,epochs=5", "dual:window must be at most epochs, 5, got 10"),
        ("dual:", "no option ''"),
    ],
)
def test_what_cannot_be_meant_is_refused(text, problem):
    with pytest.raises(ValueError, match=problem):
        parse_trajectory_score(text)


def test_default_options_are_those_of_the_sources():
    assert (Dual().window, Dual().epochs) == (10, 30)
    assert parse_trajectory_score("dyn_unc").window == parse_trajectory_score("dual").window == 10


def test_grand_is_the_norm_of_the_last_layers_gradient():
    """Of the last epoch's weights, whatever came before, by autograd."""
    rng = np.random.default_rng(1)
    layer, features = torch.nn.Linear(5, 3).double(), torch.from_numpy(rng.normal(size=(SAMPLES, 5)))
    labels = torch.from_numpy(rng.integers(0, 3, SAMPLES))
    norms = []
    for row in range(SAMPLES):
        layer.zero_grad()
        torch.nn.functional.cross_entropy(layer(features[row : row + 1]), labels[row : row + 1]).backward()
        norms.append(float(torch.cat([layer.weight.grad.flatten(), layer.bias.grad]).norm()))
    errors = (layer(features).softmax(1) - torch.nn.functional.one_hot(labels, 3)).norm(dim=1).detach().numpy()
    score, run = parse_trajectory_score("grand"), RunFacts(count=2)
    state = score.begin(SAMPLES, run)
    state["feature_squares"][:] = (features**2).sum(1)
    for number, el2n in enumerate((rng.random(SAMPLES), errors)):
        score.add(state, {"el2n": el2n}, number, run)
    np.testing.assert_allclose(score.finish(state, run), norms, rtol=1e-12)
