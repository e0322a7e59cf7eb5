"""Random streams: named, stable, apart from each other."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from easycore_ray.core.seeding import derive_seed, generator, numpy_rng, seeded

PARTS = st.lists(st.integers() | st.text(max_size=6), max_size=4)


@pytest.mark.parametrize(
    ("parts", "seed"),
    [
        ((), 8238016292129134938),
        (("shuffle", 0, 7), 6987618124789768953),
        (("ünïcode", -1), 4912554028118268833),
    ],
)
def test_seeds_are_golden(parts, seed):
    """A release never moves a stream: these values hold in every process and on every platform."""
    assert derive_seed(*parts) == seed


@given(PARTS)
def test_seed_fits_every_generator(parts):
    """A seed is a non-negative 63-bit integer."""
    assert 0 <= derive_seed(*parts) < 2**63


@pytest.mark.slow
@given(PARTS, PARTS)
def test_different_names_have_different_seeds(first, second):
    """No two names share a stream, however their parts are cut or typed."""
    assert (derive_seed(*first) == derive_seed(*second)) == (first == second)


@pytest.mark.parametrize(("a", "b"), [(("ab", "c"), ("a", "bc")), (("1",), (1,)), (("i1:1",), (1,)), ((12,), (1, 2))])
def test_encoding_is_unambiguous(a, b):
    """Names that look alike when joined are still different streams."""
    assert derive_seed(*a) != derive_seed(*b)


def test_numpy_integers_count_as_integers():
    """A seed that came out of an array names the same stream."""
    assert derive_seed("a", np.int64(3)) == derive_seed("a", 3)


def test_fractions_are_refused():
    """A float has no one spelling, so it cannot be a part."""
    with pytest.raises(TypeError):
        derive_seed("a", 0.5)


def test_generators_repeat_and_differ_by_name():
    """One name gives one stream, another name another one."""
    first, again, other = (torch.rand(4, generator=generator("x", n)) for n in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert np.array_equal(numpy_rng("x", 1).random(4), numpy_rng("x", 1).random(4))


def test_seeded_restores_the_global_generator():
    """Code after the block draws what it would have drawn without it."""
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with seeded("weights", 1):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(5)
    with seeded("weights", 1):
        assert torch.equal(torch.rand(3), inside)


def test_seeded_restores_after_an_error():
    """A failure inside the block does not leave the generator seeded."""
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="size"), seeded("weights"):
        torch.rand(2) + torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
