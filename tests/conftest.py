"""Fixtures that test files share."""

import logging
import os
import shutil
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
    RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S="120",
    MLFLOW_DISABLE_TELEMETRY="true",
)


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
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
