"""The GPU suite, small and on a CPU: every part runs and gives figures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.__main__ import PARTS

ROOT = Path(__file__).parents[2]


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.timeout(1500)
def test_every_part_runs(tmp_path):
    """With its figures in the JSON file, none of them missing or not as it must be."""
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "tests.gpu", "--tiny", "--device", "cpu", "--seconds", "1200", "--json", str(out)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    content = json.loads(out.read_text())

    assert done.returncode == 0, done.stdout
    assert {entry["part"] for entry in content["rows"]} == set(PARTS)
    assert all(entry["value"] != "" for entry in content["rows"]), done.stdout


@pytest.mark.slow
def test_a_part_that_fails_is_a_line_and_the_others_go_on(tmp_path):
    """No GPU is at hand: part (a) cannot run, nor can (d); both are named, and the exit code says it."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "tests.gpu", "--tiny", "--parts", "ad", "--json", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    rows = json.loads(out.read_text())["rows"]

    assert done.returncode == 1
    assert [entry["part"] for entry in rows if entry["passed"] is False] == ["a", "d"]
    assert "(a)" in done.stdout
