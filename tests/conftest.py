"""Fixtures that test files share."""

import logging
import os
import shutil
import sys
import tempfile

import hypothesis
import pytest

# A shared or busy machine makes any example slow now and then; that is no failure.
hypothesis.settings.register_profile("easycore", deadline=None)
hypothesis.settings.load_profile("easycore")

# Read at import by Ray and MLflow, so set before any test file is.
os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_AUTH_MODE="disabled",
    RAY_DATA_DISABLE_PROGRESS_BARS="1",
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2",
    # Nothing takes a node away with a notice here; another process in every run for it takes a second to start.
    RAY_TRAIN_ENABLE_PREEMPTION_WATCHER="0",
    RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S="120",
    MLFLOW_DISABLE_TELEMETRY="true",
    # Tensors of tests are small, and tests run on all cores at once: threads would only wait for each other.
    OMP_NUM_THREADS="1",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Files that need a Ray come first, small ones fill up what is left: two workers then end at the same time."""
    ray, slow = ({item.path for item in items if item.get_closest_marker(name)} for name in ("ray", "slow"))
    sizes = {path: path.stat().st_size for path in {item.path for item in items}}
    items.sort(key=lambda item: (item.path not in ray, item.path not in slow, -sizes[item.path]))


# Folders of the Ray that runs for tests, if one does.
_STARTED: list[str] = []


@pytest.fixture(scope="session")
def ray_session():
    """A small private Ray for all tests that need one; it never joins another on this machine."""
    import ray
    import ray.data

    # Short, because the paths of Unix sockets are limited to some 100 characters.
    folder = tempfile.mkdtemp(prefix="ec", dir="/tmp")
    os.environ["RAY_TMPDIR"] = folder
    # Inherited by every process of this Ray, so that a test that kills some finds its own.
    os.environ["EASYCORE_TEST_PROCESSES"] = folder
    # As where a command starts Ray itself.
    os.environ["EASYCORE_OWN_RAY"] = "1"
    assert not ray.is_initialized(), "a test that did not ask for ray_session has started Ray"
    ray.init(
        address="local",
        num_cpus=3,
        include_dashboard=False,
        object_store_memory=400 * 1024**2,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    _STARTED.append(folder)
    yield
    ray.shutdown()
    _STARTED.clear()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def same_threads():
    """A run in this process sets the number of threads; it is put back."""
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """The file of a fresh MLflow database, made once: setting it up takes seconds."""
    from tests.tracking.stores import make_empty_store

    return make_empty_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(autouse=True)
def no_heartbeats_left():
    """A command that a test has "killed" in this process beats no more.

    Its heartbeat would go on, to wherever the environment points by then. Seven of them to stores that are gone
    occupy the eight threads with which pyarrow writes to any store for 100 s; a later test then waits for that long.
    """
    yield
    lease = sys.modules.get("easycore_ray.storage.lease")
    if lease is not None:
        for _, stop, _ in lease._held.values():
            stop.set()
        lease._held.clear()


@pytest.fixture(autouse=True)
def no_ray_unasked(request):
    """Ray is started for tests that say so: another would depend on the order of tests."""
    yield
    ray = sys.modules.get("ray")
    if "ray_session" not in request.fixturenames and request.node.get_closest_marker("ray") is None:
        assert ray is None or not ray.is_initialized() or _STARTED, "this test has started Ray"
