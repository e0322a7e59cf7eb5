"""Our SGD takes torch's steps and imports no compiler."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from easycore_ray.core.sgd import SGD


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_steps_are_those_of_torch_to_the_bit(momentum, weight_decay):
    """With and without what is optional, at changing rates, in another layout, past a parameter without a gradient."""
    torch.manual_seed(0)
    shapes = [(5, 3, 2, 2), (7,), (), (4,)]
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    ours[0].data = ours[0].data.contiguous(memory_format=torch.channels_last)
    theirs = [nn.Parameter(parameter.detach().clone()) for parameter in ours]
    options = {"momentum": momentum, "nesterov": momentum > 0, "weight_decay": weight_decay}
    mine, other = SGD(ours, **options), torch.optim.SGD(theirs, lr=1.0, foreach=True, **options)
    for step in range(4):
        for parameter, twin in zip(ours[:-1], theirs[:-1], strict=True):
            parameter.grad = torch.randn_like(parameter)
            twin.grad = parameter.grad.clone()
        mine.step(0.1 / (step + 1))
        other.param_groups[0]["lr"] = 0.1 / (step + 1)
        other.step()

    assert all(torch.equal(parameter, twin) for parameter, twin in zip(ours, theirs, strict=True))
    for parameter, twin in zip(ours[:-1] * (momentum > 0), theirs, strict=False):
        assert torch.equal(mine.momentum_buffers[parameter], other.state[twin]["momentum_buffer"])
    assert len(mine.momentum_buffers) == 3 * (momentum > 0)
    assert all(parameter.requires_grad for parameter in ours)


@pytest.mark.slow
def test_training_imports_no_compiler():
    """It would take as long as all of torch, in every worker."""
    code = """
import sys, torch
from easycore_ray.core.loop import make_optimizer, train_epoch
from tests.core.test_loop import make_batches, make_model, make_plan
model, plan = make_model(), make_plan(training="trades")
train_epoch(model, make_optimizer(model, plan), make_batches(), plan, epoch=1, step=0)
sys.exit(str([name for name in ("torch._dynamo", "sympy", "triton") if name in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"
