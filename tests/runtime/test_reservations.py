"""Who holds a cluster's CPUs, and what a job that has ended has left behind."""

import os
import subprocess
import sys
import threading
import time

import pytest
import ray
from ray.util.placement_group import placement_group_table

from easycore_ray.runtime.reservations import describe_holders, free, holders
from easycore_ray.runtime.room import await_room
from easycore_ray.storage.errors import EasyCoreError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

# Holds two CPUs in a group that outlives it; with a line from its standard input it ends.
PROGRAM = """
import ray
from ray.util.placement_group import placement_group
ray.init(address={address!r}, log_to_driver=False)
ray.get(placement_group([{{"CPU": 1}}] * 2, lifetime="detached").ready())
print(ray.get_runtime_context().get_job_id(), flush=True)
input()
"""


@pytest.fixture
def other():
    """Another job, and its id."""
    address = ray.get_runtime_context().gcs_address
    program = PROGRAM.format(address=address)
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                          env=environment) as process:  # fmt: skip
        yield process, process.stdout.readline().strip()
        process.kill()


def test_a_job_that_waits_says_who_holds_what_and_how_to_free_it(other, capsys, monkeypatch):
    """First a job at work; then it has ended, and what it left is freed by the command of the message."""
    process, job = other
    assert describe_holders(3) == f"2 of 3 CPUs are reserved by job {job}"
    with pytest.raises(EasyCoreError, match="has not ended"):
        free(job)

    monkeypatch.setattr("easycore_ray.runtime.room._SAY_SECONDS", 1.0)
    waiting = threading.Thread(target=await_room, args=([{"CPU": 2.0}], "score", "--cpus-per-worker"), daemon=True)
    waiting.start()
    said, deadline = "", time.monotonic() + 60
    while f"reserved by job {job}" not in said and time.monotonic() < deadline:
        waiting.join(timeout=0.5)
        said += capsys.readouterr().err
    process.communicate("\n", timeout=60)
    while f"free('{job}')" not in said and time.monotonic() < deadline:
        waiting.join(timeout=0.5)
        said += capsys.readouterr().err
    assert waiting.is_alive()
    assert f"2 of 3 CPUs are reserved by job {job})" in said
    assert f"by job {job}, which has ended; free them: python -c" in said
    (holder,) = holders()
    assert (holder.job, holder.ended, holder.resources) == (job, True, {"CPU": 2.0})

    free(job)
    waiting.join(timeout=30)
    assert not waiting.is_alive()
    assert holders() == []
    with pytest.raises(EasyCoreError, match="holds no reserved resources"):
        free(job)
    assert {entry["state"] for entry in placement_group_table().values()} <= {"REMOVED"}
