"""Which errors of a worker would come again, and what is said of them."""

from pathlib import Path

import pytest
import ray.train
import torch

from easycore_ray.engine.failures import WorkerError, describe_error, first_failure
from easycore_ray.storage.errors import EasyCoreError


def raised_by(function):
    try:
        function()
    except Exception as error:
        return describe_error(error)
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize(
    ("function", "repeats", "text"),
    [
        (lambda: torch.zeros(2) @ torch.zeros(3), True, "RuntimeError: "),
        (lambda: {}["a"], True, "KeyError: 'a' (test_failures.py, line "),
        (lambda: torch.distributed.all_reduce(torch.zeros(1)), False, "ValueError: "),
        (lambda: Path("/nowhere").read_bytes(), False, "FileNotFoundError: "),
    ],
)
def test_an_error_repeats_unless_it_comes_from_elsewhere(function, repeats, text):
    """Peers, devices and stores may do better another time; code and data do not."""
    error = raised_by(function)
    assert error.text.startswith(text)
    assert error.repeats == repeats


def test_a_refusal_is_told_as_it_is():
    """It is a sentence for the user already."""

    def refuse():
        raise EasyCoreError("shard 3 is damaged; prepare again")

    assert raised_by(refuse).text == "shard 3 is damaged; prepare again"


def test_the_error_that_repeats_explains_those_of_the_peers():
    """A rank that waited for another fails as well, with a message that helps nobody."""
    both = {0: WorkerError("connection reset", False), 2: WorkerError("TypeError: x", True)}
    assert first_failure(ray.train.WorkerGroupError("two ranks", both)).text == "TypeError: x"
    lost = first_failure(ray.train.WorkerGroupError("one rank", {1: RuntimeError("it died\n  killed by signal 9\n")}))
    assert (lost.text, lost.repeats) == ("killed by signal 9", False)


def test_a_node_without_the_package_is_said_whoever_met_it():
    """A worker that cannot even read what it is to run, or Ray Train's controller."""
    missing = ModuleNotFoundError("No module named 'easycore_ray'")
    for error in (
        ray.train.WorkerGroupError("one rank", {1: missing}),
        ray.train.ControllerError(missing),
    ):
        found = first_failure(error)
        assert found.repeats
        assert found.text.startswith("a node of the cluster does not have easycore_ray; install this version")
    assert first_failure(ray.train.ControllerError(ValueError("x"))).text == "Ray Train cannot run it: x"
