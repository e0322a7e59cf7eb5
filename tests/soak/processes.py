"""Cases that are tests: those marked ``soak``, which lose workers, controllers, drivers, nodes, disks and stores.

One of them runs the GPU suite small on a CPU.
"""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = {
    "scoring workers": "tests/distributed/test_faults.py::test_lost_workers_cost_an_epoch_and_no_row",
    "scoring driver": "tests/distributed/test_faults.py::test_a_lost_driver_and_controller_cost_no_row",
    "nodes": "tests/distributed/test_faults.py::test_a_lost_or_drained_node_costs_no_row",
    "full disk": "tests/distributed/test_faults.py::test_a_full_disk_is_an_error_and_no_loss",
    "evaluation": "tests/distributed/test_evaluation_faults.py",
    "object storage": "tests/distributed/test_object_storage.py",
    "store outages": "tests/storage/test_object_store.py",
    "gpu suite": "tests/gpu/test_suite.py",
    # What none of the others runs.
    "other tests": "tests",
}


def case_of(name: str) -> Callable[[int], dict]:
    """A case that runs one of the tests, with the seed as that of its random order and draws."""

    def run_case(seed: int) -> dict:
        files = {path.partition("::")[0] for path in TESTS.values() if path != "tests"}
        others = [f"--ignore={path}" for path in sorted(files)] if TESTS[name] == "tests" else []
        command = [sys.executable, "-m", "pytest", "-q", "-m", "soak", "-p", "no:cacheprovider",
                   f"--randomly-seed={seed}", "--timeout=1500", *others, TESTS[name]]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600, check=False)
        assert done.returncode == 0, done.stdout[-3500:]
        passed = re.search(r"(\d+) passed", done.stdout)
        assert passed, f"nothing ran: {done.stdout[-500:]}"
        return {"tests": int(passed.group(1))}

    return run_case
