"""A prepared digits dataset and a small population of it, shared by the distributed tests."""

import fcntl

import pytest

from easycore_ray import prepare, score, select

# 97 mod batch = 1 for batches of 16, 32 and 48 over all workers: the awkward remainder.
POPULATION = 97


@pytest.fixture(scope="session")
def shared(tmp_path_factory, worker_id):
    """A function that gives ``make(folder)``: what one process of this test run makes, the others find finished."""
    base = tmp_path_factory.getbasetemp()
    root = base if worker_id == "master" else base.parent
    (root / "shared").mkdir(exist_ok=True)

    def made(name, make):
        with (root / "shared" / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return make(str(root / "shared" / name))

    return made


@pytest.fixture(scope="session")
def digits(ray_session, shared):
    """The embedded digits, prepared."""
    return shared("digits", lambda out: prepare(source="digits", out=out))


@pytest.fixture(scope="session")
def population(digits, shared):
    """A coreset of 97 digits to score and train on."""
    fraction = POPULATION / digits.manifest["counts"]["train"]
    return shared("population", lambda out: select(dataset=digits.path, method="random", fraction=fraction, out=out))


@pytest.fixture(scope="session")
def settings(digits, population):
    """A function that gives the fields of a small scoring run into a folder."""

    def fields_of(out, **changes):
        fields = dict(
            dataset=digits.path, coreset=population.path, out=str(out), model="cnn", width=4, epochs=2, batch_size=16,
            augment="crop", crop_pad=1, seed=3, tracking_uri="none", threads_per_worker=1, score_pass="eval",
            initial_pass=True,
        )  # fmt: skip
        return fields | changes

    return fields_of


@pytest.fixture(scope="session")
def two_workers(settings, shared):
    """An uninterrupted run on two workers: what the others are compared with."""
    return shared("two_workers", lambda out: score(**settings(out)))
