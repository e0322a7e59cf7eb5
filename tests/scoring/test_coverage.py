"""An epoch is committed only if every sample of the population has exactly one row of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from easycore_ray.scoring import score_table
from easycore_ray.scoring.score_table import (
    ScorePart,
    check_coverage,
    id_checksum,
)
from easycore_ray.storage.errors import EasyCoreError

IDS = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=30)


def splitmix64(value):
    """The finaliser of splitmix64 on Python's integers: the state after one step, mixed."""
    mask = 2**64 - 1
    mixed = (value + 0x9E3779B97F4A7C15) & mask
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
    return mixed ^ (mixed >> 31)


def test_the_mixing_function_is_splitmix64():
    """The generator's published first output for seed 0."""
    assert id_checksum(np.array([0])) == splitmix64(0) == 0xE220A8397B1DCDAF


@given(IDS)
def test_id_checksum_adds_up_hashes(ids):
    """Sum of the hashes modulo 2**64, on all of int64."""
    assert id_checksum(np.array(ids, np.int64)) == sum(splitmix64(i % 2**64) for i in ids) % 2**64


@given(st.lists(st.integers(0, 10**9)), st.data())
def test_id_checksum_is_the_same_for_any_division(ids, data):
    """Whatever workers got which rows in which order, their checksums add up to the same."""
    shuffled = data.draw(st.permutations(ids))
    cut = data.draw(st.integers(0, len(ids)))
    pieces = (np.array(part, np.int64) for part in (shuffled[:cut], shuffled[cut:]))
    assert sum(map(id_checksum, pieces)) % 2**64 == id_checksum(np.array(ids, np.int64))


def described(ids, epoch=3, rank=0):
    """A descriptor of these ids, without a file."""
    ids = np.array(ids, np.int64)
    return ScorePart(path=f"{rank}", epoch=epoch, rank=rank, rows=len(ids), num_bytes=1, first_id=0, last_id=0,
                id_checksum=id_checksum(ids), sha256="")  # fmt: skip


@given(st.sets(st.integers(0, 10**6), min_size=1, max_size=40), st.data())
def test_coverage_holds_for_every_division_of_the_population(population, data):
    """Any cut into parts passes; parts of other epochs do not count."""
    ids = data.draw(st.permutations(sorted(population)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=3)))
    parts = [
        described(ids[low:high], rank=rank)
        for rank, (low, high) in enumerate(zip([0, *cuts], [*cuts, len(ids)], strict=True))
    ]
    checksum = id_checksum(np.array(sorted(population)))
    check_coverage([*parts, described([5], epoch=2)], epoch=3, num_samples=len(ids), checksum=checksum)


@given(st.sets(st.integers(0, 50), min_size=2, max_size=40), st.data())
def test_coverage_catches_every_single_mistake(population, data):
    """An id missing, doubled, or swapped for another one of the population or for a foreign one."""
    ids = sorted(population)
    one, other = data.draw(st.permutations(ids))[:2]
    wrong = {
        "missing": [i for i in ids if i != one],
        "doubled": [*ids, one],
        "swapped": [other if i == one else i for i in ids],
        "foreign": [99 if i == one else i for i in ids],
        "padding": [-1 if i == one else i for i in ids],
        "more": [*ids, 99],
    }[data.draw(st.sampled_from(["missing", "doubled", "swapped", "foreign", "padding", "more"]))]
    cut = data.draw(st.integers(0, len(wrong)))
    parts = [described(wrong[:cut]), described(wrong[cut:], rank=1)]
    with pytest.raises(EasyCoreError, match=r"epoch 3: .*the epoch is not committed"):
        check_coverage(parts, epoch=3, num_samples=len(ids), checksum=id_checksum(np.array(ids)))


@pytest.mark.parametrize(
    ("trained", "every", "score_pass", "epochs"),
    [
        (5, 1, "eval", [1, 2, 3, 4, 5]),
        (5, 2, "fused", [1, 3, 5]),
        (5, 2, "fused+eval", [1, 3, 5, 6]),
        (3, 1, "eval", [1, 2, 3]),
        (3, 2, "fused+eval", [1, 3, 4]),
        (5, 9, "eval", [5]),
    ],
)
@pytest.mark.parametrize("initial_pass", [False, True])
def test_scored_epochs_count_back_from_the_last_planned_one(trained, every, score_pass, initial_pass, epochs):
    """Of five planned epochs, some cut short; fused+eval adds the exact pass as one more, the initial pass epoch 0."""
    config = {"epochs": 5, "score_every": every, "score_pass": score_pass, "initial_pass": initial_pass}
    assert score_table.scored_epochs(config, trained) == [0] * initial_pass + epochs


def test_coverage_says_how_many_rows_there_are():
    """Rows of one epoch do not make up for another's."""
    with pytest.raises(EasyCoreError, match="epoch 3: 2 of 3 samples were scored"):
        check_coverage(
            [described([1, 2]), described([3], epoch=2)], epoch=3, num_samples=3, checksum=id_checksum(np.arange(1, 4))
        )
