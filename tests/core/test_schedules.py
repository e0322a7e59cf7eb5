"""Learning-rate curves: ends, shape, warm-up."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from easycore_ray.core.schedules import SCHEDULES, learning_rate


def curve(kind, total_steps, **options):
    """The rate at every step, the end of the run included."""
    return [learning_rate(s, total_steps=total_steps, base=0.1, kind=kind, **options) for s in range(total_steps + 1)]


def test_constant_is_constant():
    """A constant schedule is the base at every step."""
    assert curve("constant", 7) == [0.1] * 8


def test_cosine_runs_from_base_through_half_to_zero():
    """A cosine starts at the base, is half of it in the middle, and 0 at the end."""
    rates = curve("cosine", 100)
    assert rates[0] == 0.1
    assert rates[50] == pytest.approx(0.05)
    assert rates[100] == pytest.approx(0, abs=1e-12)


def test_cosine_ends_at_the_final_rate_as_torchs_does():
    """Step by step the rates of CosineAnnealingLR with eta_min, that of the last step and after it included."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=37, eta_min=1e-4)
    expected = []
    for _ in range(38):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()

    assert curve("cosine", 37, final=1e-4) == pytest.approx(expected, rel=1e-9)
    assert curve("cosine", 37, final=1e-4, warmup_steps=7)[-1] == pytest.approx(1e-4)


@given(st.integers(1, 60), st.data())
def test_cosine_falls_at_every_step_after_the_warm_up(total_steps, data):
    """After the warm-up the rate only falls, and it is never negative."""
    warmup = data.draw(st.integers(0, total_steps))
    rates = curve("cosine", total_steps, warmup_steps=warmup)[warmup:]
    assert all(a > b >= 0 for a, b in pairwise(rates))


def test_multistep_drops_at_each_milestone():
    """The TRADES script: a tenth from 75/100 on, a hundredth from 90/100 on."""
    rates = curve("multistep", 200, milestones=(0.75, 0.9))
    assert [rates[s] for s in (149, 150, 179, 180, 200)] == pytest.approx([0.1, 0.01, 0.01, 0.001, 0.001])


def test_milestones_meet_their_step_whatever_the_rounding():
    """A milestone written as s / total drops at step s exactly."""
    for step in range(1, 110):
        rates = curve("multistep", 110, milestones=(step / 110,))
        assert rates[step] < rates[step - 1]


@pytest.mark.parametrize("kind", SCHEDULES)
def test_warm_up_rises_to_base_and_joins_the_curve(kind):
    """Four warm-up steps are 1/4 .. 4/4 of the base."""
    assert curve(kind, 20, warmup_steps=4)[:5] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "linear"}, "constant, cosine, multistep"),
        ({"step": 11}, "step 11 of 10"),
        ({"step": -1}, "step -1"),
        ({"total_steps": 0, "step": 0}, "step 0 of 0"),
        ({"warmup_steps": 11}, "warmup_steps"),
        ({"milestones": (75,)}, "shares of the run"),
    ],
)
def test_nonsense_is_refused(change, message):
    """A schedule that cannot be meant says what is wrong."""
    arguments = {"step": 0, "total_steps": 10, "base": 0.1, "kind": "multistep"} | change
    with pytest.raises(ValueError, match=message):
        learning_rate(arguments.pop("step"), **arguments)
