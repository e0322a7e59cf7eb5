"""Averaged weights: the formula, where they begin, and that they change nothing else."""

import pytest
import torch

from easycore_ray.core.averaging import AveragedWeights
from easycore_ray.core.loop import make_optimizer, train_epoch
from easycore_ray.core.models import build_model
from tests.core.test_loop import make_batches, make_plan


def make_network():
    """With batch norm, whose statistics and count of batches are buffers."""
    return build_model(
        "preactresnet18", num_classes=3, image_shape=(1, 8, 8), width=2, mean=(0.5,), std=(0.25,), seed=1
    )


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("warmup", [0, 2, 5])
@pytest.mark.parametrize("decay", [0.15, 0.995])
def test_the_average_is_its_formula(decay, warmup):
    """Step by step from the end of the warm-up on, in float64, running statistics of batch norm alike."""
    model, plan = make_network(), make_plan(warmup_steps=warmup, total_steps=6)
    averaged, optimizer = AveragedWeights(model, decay, warmup), make_optimizer(model, plan)
    states = [state_of(model)]
    for step, batch in enumerate(make_batches((5, 4, 6, 5, 4, 6))):
        train_epoch(model, optimizer, [batch], plan, epoch=1, step=step, on_step=averaged.update)
        states.append(state_of(model))

    expected = {name: tensor.double() for name, tensor in states[warmup].items()}
    for since, state in enumerate(states[warmup + 1 :], start=1):
        keep = min(decay, (1 + since) / (10 + since))
        for name, tensor in state.items():
            expected[name] = keep * expected[name] + (1 - keep) * tensor.double()
    counts = {name for name in expected if name.endswith("num_batches_tracked")}
    assert counts
    assert averaged.tensors.keys() == expected.keys()
    for name, tensor in averaged.tensors.items():
        if name in counts:
            assert tensor == states[-1][name]
        else:
            torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_there_is_none_within_the_warm_up():
    """Nothing is kept, and nothing is charged, before the first step that counts."""
    model, plan = make_network(), make_plan(warmup_steps=4, total_steps=9)
    averaged = AveragedWeights(model, 0.9, 4)
    train_epoch(
        model, make_optimizer(model, plan), make_batches((5, 4, 6)), plan, epoch=1, step=0, on_step=averaged.update
    )
    assert averaged.tensors == {}


def test_training_is_the_same_with_an_average_beside_it():
    """To the bit, also after the network held the average for a while."""
    plan, results = make_plan(), []
    for kept in (False, True):
        model = make_network()
        averaged = AveragedWeights(model, 0.9, 0) if kept else None
        on_step = None if averaged is None else averaged.update
        optimizer = make_optimizer(model, plan)
        for step, batch in enumerate(make_batches((5, 4, 6))):
            train_epoch(model, optimizer, [batch], plan, epoch=1, step=step, on_step=on_step)
            if averaged is not None:
                with averaged.in_place():
                    held = state_of(model)
                assert all(torch.equal(held[name], tensor) for name, tensor in averaged.tensors.items())
        results.append(state_of(model))
    assert all(torch.equal(results[0][name], tensor) for name, tensor in results[1].items())


def test_an_average_goes_on_from_where_it_was_stored():
    """Segments, epochs and resumed runs make one average."""
    batches, plan, outcomes = make_batches((5, 4, 6, 5)), make_plan(), []
    for stops in ((4,), (1, 3, 4)):
        model = make_network()
        averaged, optimizer, step = AveragedWeights(model, 0.9, 1), make_optimizer(model, plan), 0
        for stop in stops:
            stored, averaged = averaged.tensors, AveragedWeights(model, 0.9, 1)
            averaged.load({name: tensor.contiguous() for name, tensor in stored.items()})
            train_epoch(model, optimizer, batches[step:stop], plan, epoch=1, step=step, on_step=averaged.update)
            step = stop
        outcomes.append(averaged.tensors)
    assert all(torch.equal(outcomes[0][name], tensor) for name, tensor in outcomes[1].items())
