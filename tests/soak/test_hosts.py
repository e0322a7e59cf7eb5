"""Workers on hosts of their own, whose names lead to a loopback address, train as they do on one machine."""

import os
import shutil
import time

import pytest

from easycore_ray.storage.artifact import open_artifact
from tests.soak.hosts import command_of, make_inputs
from tests.soak.network import Network

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2"),
]


@pytest.mark.parametrize("job", ["train", "score"])
def test_workers_on_two_hosts_train_as_on_one(tmp_path, job):
    """Two of 1.5 CPUs fit on no host of two: gradients and weights cross the network between them."""
    inputs, out, seen = make_inputs(), tmp_path / "out", set()
    network = Network(workers=2)
    try:
        command = [*command_of(job, inputs, out), "--cpus-per-worker", "1.5"]
        driver = network.run(command, tmp_path / "log")
        while driver.poll() is None:
            if all(map(network.at_work, network.workers)):
                seen.update(network.workers)
            time.sleep(0.2)
    finally:
        network.close()
    assert driver.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    assert seen == {1, 2}
    assert open_artifact(str(out)).fingerprint == open_artifact(str(inputs / job)).fingerprint
