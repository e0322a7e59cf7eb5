"""A pipeline of random size, then ``inspect --verify`` of what it left, many times."""

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# In one process: it is the reading that is repeated, not the start of Python.
_VERIFY = """
import json, sys
from easycore_ray import inspect
found = []
for _ in range(int(sys.argv[2])):
    said = inspect(path=sys.argv[1], verify=True)
    problems = [problem for entry in said["verified"] for problem in entry["problems"]]
    found.append(problems)
print(json.dumps({"verified": len(said["verified"]), "problems": found}))
"""


def run_case(seed: int, times: int = 10) -> dict:
    """Run the pipeline of a seed, verify it by the command once and in one process ``times`` more."""
    rng = random.Random(seed)
    changes = ["--score-epochs", str(rng.choice([1, 2, 3])), "--training", rng.choice(["standard", "trades"]),
               "--fraction", str(rng.choice([0.3, 0.5, 0.7]))]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="soak") as folder:
        out = f"{folder}/run"
        run_module("jobs.pipeline", "--preset", "tiny", "--out", out, *changes)
        said = run_module("jobs.inspect", out, "--verify")
        assert "nothing wrong" in said, said
        again = json.loads(run_python("-c", _VERIFY, out, str(times)).splitlines()[-1])
    assert again["verified"] >= 8, again
    assert again["problems"] == [[]] * times, again
    return {"changes": changes, "verifications": 1 + times, "artifacts": again["verified"]}


def run_module(module: str, *arguments: str) -> str:
    """Run a module to its end; what it printed."""
    return run_python("-m", module, *arguments)


def run_python(*arguments: str) -> str:
    """Run Python to its end; what it printed."""
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=800,
                          check=False)  # fmt: skip
    assert done.returncode == 0, f"{arguments}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout
