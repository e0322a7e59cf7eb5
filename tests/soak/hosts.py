"""Jobs of every kind on several hosts, one of which is killed, cut off or drained: the result of an undisturbed run.

A case is one job and one event on a head and two hosts of two CPUs. The job ends with what it gives undisturbed; or it
stops with one sentence, and the same command goes on to that.
"""

import functools
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from easycore_ray.storage.artifact import open_artifact
from tests.soak.network import Network

ROOT = Path(__file__).resolve().parents[2]

EVENTS = ("killed", "killed and back", "cut for 20 s", "cut for 90 s", "cut for good", "drained", "head lost")
_SMALL = "--model cnn --width 4 --augment crop --crop-pad 1 --threads-per-worker 1 --tracking-uri none"
_WORKERS = "--num-workers 2 --cpus-per-worker 1"
JOBS = {
    "prepare": "--source {inputs}/pictures --out {out} --image-size 32",
    "score": f"--dataset {{inputs}}/dataset --out {{out}} --epochs 4 --batch-size 64 --segment-images 400 "
    f"--commit-minutes 0 --seed 3 {_SMALL} {_WORKERS}",
    "train": f"--dataset {{inputs}}/dataset --out {{out}} --epochs 4 --batch-size 64 --segment-images 400 "
    f"--commit-minutes 0 --training trades --eps 0.1 --attack-steps 2 {_SMALL} {_WORKERS}",
    "evaluate": "--dataset {inputs}/dataset --checkpoint {inputs}/train --out {out} --attack pgd20 "
    f"--eval-eps 0.02 0.05 0.1 0.2 --threads-per-worker 1 {_WORKERS}",
    "sweep": "--dataset {inputs}/dataset --scores {inputs}/score --out {out} --method easycore --fraction 0.3 0.5 "
    f"--training standard --seeds 0 --train-epochs 4 --batch-size 64 --eval-eps 0.1 {_SMALL}",
    # In many tasks: the table is small.
    "reduce": "--scores {inputs}/score --out {out} --bucket-rows 20",
}
"""Options of each job; ``inputs`` holds what the others gave undisturbed."""
# Words of a job's output once its work is under way; of others, a host is at work then.
_UNDER_WAY = {"prepare": "check:", "score": "epoch ", "train": "epoch ", "evaluate": "evaluate", "sweep": "trials"}


def command_of(job: str, inputs: Path, out: Path) -> list[str]:
    """The command line of a job."""
    return [sys.executable, "-m", f"jobs.{job}", *JOBS[job].format(inputs=inputs, out=out).split()]


@functools.cache
def make_inputs() -> Path:
    """What every job gives where nothing happens, each in a folder of its name; made once a process."""
    folder = Path(tempfile.mkdtemp(prefix="soak"))
    for number in range(1500):
        path = folder / "pictures" / f"class-{number % 3}" / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (150, 150, 3), np.uint8)
        Image.fromarray(noise).save(path, compress_level=1)
    digits = [sys.executable, "-m", "jobs.prepare", "--source", "digits", "--out", str(folder / "dataset")]
    for command in (digits, *(command_of(job, folder, folder / job) for job in JOBS)):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    return folder


def happen(network: Network, event: str, host: int) -> None:
    """Let an event happen to a host, or to the head, until it is over."""
    if event == "head lost":
        # With it the driver and what Ray knows of the cluster: another one is started in its place.
        network.restart()
    elif event.startswith("killed"):
        network.kill(host)
        if event == "killed and back":
            time.sleep(5)
            network.start(host)
    elif event.startswith("cut"):
        network.cut(host)
        seconds = {"cut for 20 s": 20, "cut for 90 s": 90}.get(event)
        if seconds:
            time.sleep(seconds)
            network.heal(host)
    else:
        network.drain(host, 10)
        time.sleep(10)
        network.kill(host)
        network.start(host)


def wait_until(condition: Callable[[], bool], driver: subprocess.Popen, seconds: float = 120) -> None:
    """Wait for something while a driver runs, but not for ever."""
    deadline = time.monotonic() + seconds
    while driver.poll() is None and not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


def _sentence(code: int, log: Path) -> str:
    """The one line with which a command has stopped."""
    lines = log.read_text().splitlines()
    assert code == 2, lines[-30:]
    assert lines[-1].startswith("error: "), lines[-30:]
    assert "Traceback" not in log.read_text(), lines[-30:]
    return lines[-1]


def run_case(number: int) -> dict:
    """One job, one event; both follow the number (42 pairs), the moment is drawn, the host is the busiest.

    Returns:
        Job, event, commands given, seconds, whether the event came before the end, and what was said of a stop.

    Raises:
        AssertionError: the job hangs, says more than a line, or gives something else than undisturbed.
    """
    rng = random.Random(number)
    job, event = list(JOBS)[number // len(EVENTS) % len(JOBS)], EVENTS[number % len(EVENTS)]
    inputs, out = make_inputs(), Path(tempfile.mkdtemp(prefix="soak")) / "out"
    network, said, commands, in_time = Network(workers=2), [], 0, False
    began = time.monotonic()
    pool = ThreadPoolExecutor(1)
    try:
        while True:
            commands += 1
            assert commands <= 4, f"the command keeps failing: {said}"
            log = out.with_name(f"log-{commands}")
            driver = network.run(command_of(job, inputs, out), log)
            if commands == 1:
                if job in _UNDER_WAY:
                    wait_until(lambda log=log: _UNDER_WAY[job] in log.read_text(), driver)
                    time.sleep(rng.uniform(0, 3))
                else:
                    wait_until(lambda: any(map(network.at_work, network.workers)), driver)
                    time.sleep(rng.uniform(0, 1))
                in_time = driver.poll() is None
                happening = pool.submit(happen, network, event, network.busiest())
            code = driver.wait(timeout=600)
            if code == 0:
                break
            said.append("" if event == "head lost" and code == -signal.SIGKILL else _sentence(code, log))
            happening.result()
        happening.result()
    finally:
        pool.shutdown()
        network.close()
    assert open_artifact(str(out)).fingerprint == open_artifact(str(inputs / job)).fingerprint, "another result"
    seconds = round(time.monotonic() - began, 1)
    return {"job": job, "event": event, "in time": in_time, "commands": commands, "took": seconds, "said": said}
