"""Small pipelines of random size, each followed by ``inspect --verify`` of what it left.

    python -m tests.soak.verify SEED PIPELINES

One process and one Ray for all of them, so that hundreds are feasible. It prints one JSON object: pipelines,
verifications and verified artifacts. A folder in which a verification finds anything wrong is kept.
"""

import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from easycore_ray import inspect, pipeline
from easycore_ray.config.experiments import PipelineConfig
from easycore_ray.config.presets import tiny

ROOT = Path(__file__).resolve().parents[2]
PIPELINES = 20
VERIFICATIONS = 3
"""Of each pipeline: it is the reading that may go wrong."""


def draw_config(out: str, rng: random.Random) -> PipelineConfig:
    """A pipeline of a few seconds: 100 to all 1,409 digits, one to three scoring epochs, one or two trials."""
    return tiny(out).replace(
        seed=rng.randrange(1000),
        subset=rng.choice([None, rng.randrange(100, 1000)]),
        width=rng.randint(2, 8),
        batch_size=rng.choice([16, 32, 64]),
        num_workers=rng.choice([1, 1, 1, 2]),
        max_concurrent_trials=1,
        score_epochs=rng.choice([1, 2, 3]),
        score_pass=rng.choice(["eval", "fused", "fused+eval"]),
        initial_pass=rng.choice([False, True]),
        method=rng.choice([(), ("easycore",), ("easycore/class",), ("random",), ("hardest",)]),
        fraction=(rng.choice([0.3, 0.5, 0.7]),),
        training=(rng.choice(["standard", "trades", "pgd"]),),
        seeds=(rng.randrange(10),),
        steps=rng.randint(2, 12),
        num_eval_samples=rng.randint(10, 60),
        cpus_per_worker=0.5,
        tracking_uri="none",
    )


def verify_pipelines(seed: int, pipelines: int) -> dict:
    """Run and verify as many pipelines.

    Raises:
        AssertionError: a verification found something wrong, or too little to verify; names the folder, which is kept.
    """
    rng = random.Random(seed)
    artifacts = 0
    for number in range(pipelines):
        folder = tempfile.mkdtemp(prefix="soak")
        config = draw_config(f"{folder}/run", rng)
        pipeline(config)
        for time in range(VERIFICATIONS):
            verified = inspect(path=config.out, verify=True)["verified"]
            problems = [problem for entry in verified for problem in entry["problems"]]
            found = f"pipeline {number} of seed {seed}, verification {time}, in {folder}: {config}"
            assert not problems, f"{problems}, {found}"
            assert len(verified) >= 8, f"{verified}, {found}"
        artifacts += len(verified)
        shutil.rmtree(folder)
    return {"pipelines": pipelines, "verifications": pipelines * VERIFICATIONS, "artifacts": artifacts}


def run_case(seed: int) -> dict:
    """Run and verify ``PIPELINES`` pipelines in a process of their own; what it counted."""
    command = [sys.executable, "-m", "tests.soak.verify", str(seed), str(PIPELINES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=7200, check=False)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout[-500:]}{done.stderr[-3500:]}"
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(verify_pipelines(int(sys.argv[1]), int(sys.argv[2]))))
