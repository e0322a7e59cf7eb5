"""What every selection method promises, as checks of ``(method, score, balance)``: see ``CHECKS``.

A method that is registered is checked by ``test_methods.py`` without further ado. Each choice is made from files, by
``choosing``, and compared with what is plainly right.
"""

import atexit
import functools
import itertools
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from easycore_ray.core.feature_selection import Features
from easycore_ray.core.selection import HIGHER_IS_HARDER, budget, choose, class_quotas, is_higher_harder
from easycore_ray.core.selection_methods import METHODS
from easycore_ray.scoring.hardness_table import ADVERSARIAL_HARDNESS_SCHEMA, write_hardness
from easycore_ray.selection import exact_cut, partitions
from easycore_ray.selection.user_scores import with_user_scores
from easycore_ray.storage.artifact import Artifact

COUNT = 101
SCALE = 3  # sample ids are 5, 8, 11 …


@functools.cache
def columns():
    """A hardness table of 101 samples in three of five classes: many ties, no two scores in the same order."""
    rng = np.random.default_rng(7)
    return {
        "sample_id": np.arange(COUNT) * SCALE + 5,
        "label": rng.choice([0, 1, 4], COUNT, p=[0.6, 0.3, 0.1]).astype(np.int32),
        "num_scores": np.full(COUNT, 9, np.int32),
        "aign": rng.integers(0, 12, COUNT) / 4,
        "el2n": rng.integers(0, 30, COUNT) / 8,
        "loss": rng.gamma(1.0, 1.0, COUNT),
        "aum": rng.integers(-9, 9, COUNT) / 2,
        "forgetting_events": rng.integers(0, 4, COUNT, np.int32),
        "first_learned_epoch": rng.choice([-1, 1, 2], COUNT).astype(np.int32),
        "input_norm": rng.integers(1, 20, COUNT).astype(np.float32),
        "aign_epoch0": rng.random(COUNT).astype(np.float32),
        "adv_loss": rng.gamma(2.0, 1.0, COUNT),
        "problematic": rng.integers(0, 10, COUNT, np.int32),
        "dual": rng.gamma(1.0, 0.1, COUNT),
        "confidence": rng.random(COUNT),
    }


@functools.cache
def features():
    """Of the same samples: places of no two alike, and a softmax."""
    rng = np.random.default_rng(8)
    odds = rng.gamma(1.0, 1.0, (COUNT, 5)).astype(np.float32)
    return Features(rng.normal(size=(COUNT, 6)).astype(np.float32), odds / odds.sum(axis=1, keepdims=True))


def stored(score):
    """A score as the table means it, in its own direction."""
    table = columns()
    if score == "forgetting":
        return np.where(table["first_learned_epoch"] < 0, table["num_scores"] + 1.0, table["forgetting_events"])
    return table[score].astype(np.float64)


@functools.cache
def table(num_files=1, id_scale=SCALE):
    """The table in so many files; another scale renames the samples in the same order."""
    folder = tempfile.mkdtemp(prefix="contract-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    renamed = columns() | {"sample_id": np.arange(COUNT) * id_scale + 5}
    trajectories = [pa.field(name, pa.float64()) for name in ("dual", "confidence")]
    rows = pa.table(renamed, schema=pa.schema([*ADVERSARIAL_HARDNESS_SCHEMA, *trajectories]))
    bounds = np.linspace(0, COUNT, num_files + 1).astype(int).tolist()
    files = [
        write_hardness(folder, number, rows.slice(low, high - low))
        for number, (low, high) in enumerate(itertools.pairwise(bounds))
    ]
    return Artifact(folder, {"files": files})


def fraction_of(method):
    """A share that the method can keep."""
    return 1.0 if METHODS[method].keeps_all else 0.3


def kept(method, score, balance, *, fraction=None, seed=0, where=None, samples=None, limit=20, **options):
    """The ids that are kept, file by file."""
    if samples is None:
        samples = partitions.hardness_partitions(where or table(4), score)
    chosen = METHODS[method]
    selection = exact_cut.Selection(
        method=chosen, fraction=fraction or fraction_of(method), score=score if chosen.needs_score else None,
        num_classes=5 if balance == "class" else None, seed=seed, options=chosen.known(options),
    )  # fmt: skip
    choice = exact_cut.decide(selection, samples, second=stored(chosen.second_score) if chosen.second_score else None,
                              features=features() if chosen.needs_features else None, limit=limit)  # fmt: skip
    parts = [
        batch.sample_ids
        for partition, rule in zip(choice.partitions, choice.rules, strict=True)
        for batch in exact_cut.kept_rows(partition, selection, rule)
    ]
    return np.concatenate(parts)


@functools.cache
def usual(method, score, balance):
    """The ids that are kept of four files by seed 0: what most checks compare with."""
    return kept(method, score, balance)


def in_memory(method, score, balance, *, order=None, **options):
    """The ids that ``choose`` keeps, of the rows in some order."""
    order = np.arange(COUNT) if order is None else order
    scores = stored(score)[order] if METHODS[method].needs_score else None
    second = stored(METHODS[method].second_score)[order] if METHODS[method].second_score else None
    return choose(method, sample_ids=columns()["sample_id"][order], labels=columns()["label"][order], scores=scores,
                  second=second, features=features().take(order) if METHODS[method].needs_features else None,
                  score=score, balance=balance, fraction=fraction_of(method), **options)  # fmt: skip


def check_count(method, score, balance):
    """Exactly the budget, sorted, different, of the samples; with balance, of each class its share."""
    labels = dict(zip(columns()["sample_id"].tolist(), columns()["label"].tolist(), strict=True))
    for fraction in [1.0] if METHODS[method].keeps_all else [1 / COUNT, 0.3, 0.5]:
        ids = kept(method, score, balance, fraction=fraction)
        assert len(ids) == budget(COUNT, fraction)
        assert (np.diff(ids) > 0).all()
        assert set(ids.tolist()) <= set(labels)
        if balance == "class":
            of = [labels[sample_id] for sample_id in ids.tolist()]
            quotas = class_quotas(columns()["label"], len(ids))
            assert {label: of.count(label) for label in quotas} == quotas


def check_files(method, score, balance):
    """However the rows are cut into files, it is the choice that is made in memory."""
    expected = in_memory(method, score, balance).tolist()
    for num_files, limit in ((1, 1), (4, 1), (12, 1000)):
        assert kept(method, score, balance, where=table(num_files), limit=limit).tolist() == expected


def check_order(method, score, balance):
    """Rows in another order are the same rows, and are left as they are."""
    before = {name: values.copy() for name, values in columns().items()}
    shuffled = np.random.default_rng(1).permutation(COUNT)
    expected = in_memory(method, score, balance).tolist()
    assert in_memory(method, score, balance, order=shuffled).tolist() == expected
    assert all(np.array_equal(values, before[name]) for name, values in columns().items())


def check_names(method, score, balance):
    """Other ids in the same order stand for the same samples, but for draws, which go by the id."""
    if METHODS[method].draws:
        return
    renamed = kept(method, score, balance, where=table(4, id_scale=7))
    assert ((renamed - 5) // 7).tolist() == ((usual(method, score, balance) - 5) // SCALE).tolist()


def check_seed(method, score, balance):
    """One seed repeats a choice; another changes it if, and only if, the method says that it draws."""
    first = usual(method, score, balance).tolist()
    assert kept(method, score, balance).tolist() == first
    changed = kept(method, score, balance, seed=1).tolist() != first
    assert changed == METHODS[method].draws


def check_nan(method, score, balance):
    """A sample without a score is refused by its id, if scores are read at all."""
    samples = partitions.hardness_partitions(table(4), score)
    scores = stored(score) if score else np.zeros(COUNT)
    scores[[3, 50]] = np.nan
    samples = given(samples, scores)
    if METHODS[method].needs_score:
        first = columns()["sample_id"][[3, 50]].tolist()
        with pytest.raises(ValueError, match=rf"2 of 101 scores are NaN \(first ids: \[{first[0]}, {first[1]}\]"):
            kept(method, score, balance, samples=samples)
    else:
        assert len(kept(method, score, balance, samples=samples))


def check_direction(method, score, balance):
    """A score is turned so that its hard end is high: as a user's own scores, of which higher is harder."""
    if METHODS[method].needs_score and method != "dual_beta":
        hardness = stored(score) if is_higher_harder(score) else -stored(score)
        theirs = given(partitions.hardness_partitions(table(4), None), hardness)
        # easycore has one score and another name for any other
        name = "easiest" if method == "easycore" else method
        assert usual(method, score, balance).tolist() == kept(name, "user", balance, samples=theirs).tolist()


def check_nested(method, score, balance):
    """A method that ranks keeps on keeping what it kept of a smaller fraction."""
    if METHODS[method].ranks and not METHODS[method].keeps_all and balance == "none":
        smaller: set[int] = set()
        for fraction in (0.1, 0.3, 0.5, 1.0):
            larger = set(kept(method, score, balance, fraction=fraction).tolist())
            assert smaller < larger
            smaller = larger


def given(samples, scores):
    """The partitions with a user's scores, through a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "mine.parquet")
        pq.write_table(pa.table({"sample_id": columns()["sample_id"], "score": scores}), path)
        return with_user_scores(samples, path)


CHECKS = [check_count, check_files, check_order, check_names, check_seed, check_nan, check_direction, check_nested]


def combinations(methods=METHODS):
    """Every (method, score, balance) there is."""
    for name, method in methods.items():
        scores = list(HIGHER_IS_HARDER) if method.needs_score else [None]
        for score in [method.default_score] if method.bound else scores:
            for balance in ("none", "class"):
                yield name, score, balance
