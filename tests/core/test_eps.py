"""Eps: read and shown as people write it, and refused where it cannot be meant."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from easycore_ray.core.eps import check_eps, format_eps, parse_eps


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 8 / 255), (" 0.25 / 255", 0.25 / 255), ("0.03", 0.03), (0.03, 0.03), ("0", 0.0)],
)
def test_eps_is_read_as_people_write_it(text, value):
    """Fractions and decimals are both eps."""
    assert parse_eps(text) == value


@pytest.mark.parametrize("text", ["8/", "a/255", "", "8/0", "nan", "inf", "1/2/3", "8%"])
def test_unreadable_eps_is_refused(text):
    """What is no number says how one is written."""
    with pytest.raises(ValueError, match="8/255"):
        parse_eps(text)


@pytest.mark.parametrize(
    ("eps", "text"),
    [
        (8 / 255, "8/255"),
        (0.25 / 255, "0.25/255"),
        (0.5 / 255, "0.5/255"),
        (0.031, "0.031"),
        (0.0, "0"),
        (0.5, "0.5"),
        (1.0, "1"),
        (torch.tensor(8 / 255).item(), "8/255"),
    ],
)
def test_eps_is_shown_as_people_write_it(eps, text):
    """k/255 for quarters of a grey level, also after float32; 0.031 is not 8/255 and is not shown as it."""
    assert format_eps(eps) == text


@given(st.floats(0, 1))
def test_shown_eps_reads_back(eps):
    """What is printed names the same eps up to a ten-thousandth of a grey level."""
    assert math.isclose(parse_eps(format_eps(eps)), eps, abs_tol=1e-4 / 255)


@pytest.mark.parametrize(
    ("eps", "norm", "message"),
    [
        (8.0, "linf", r"got 8.0: did you mean 8/255\?"),
        (-0.1, "linf", "got -0.1"),
        (-0.1, "l2", "got -0.1"),
        (math.nan, "l2", "got nan"),
        (0.1, "max", "linf, l2"),
    ],
)
def test_impossible_eps_is_refused(eps, norm, message):
    """The message guesses what was meant."""
    with pytest.raises(ValueError, match=message):
        check_eps(eps, norm)


def test_large_l2_eps_is_fine():
    """An l2 ball may well be wider than one pixel's range."""
    check_eps(3.0, "l2")
