"""Scoring runs that lose processes at random moments, each compared with an uninterrupted run bit for bit.

One Ray cluster of a head and two nodes on this machine. Short scoring runs of two workers on the embedded digits;
while one runs, at a random moment, a random victim gets SIGKILL: one training worker, all of them, Ray Train's
controller, the raylet of a node (another node joins afterwards), or the driver (the same command is then given again).
Training, reduce and select all lie in the window.

With segments, epochs are made of many, each of which commits: kills of workers and drivers then fall within epochs, and
may cost a segment each.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from ray.cluster_utils import Cluster

from easycore_ray.data.coreset import read_sample_ids
from easycore_ray.scoring.hardness_table import open_hardness, read_hardness
from easycore_ray.scoring.score_reader import open_table
from easycore_ray.storage.artifact import open_artifact
from tests import faults

ROOT = Path(__file__).resolve().parents[2]

VICTIMS = ("worker", "all workers", "controller", "node", "driver")
_DRIVER = """
import json, sys
from easycore_ray import score, select
fields = json.loads(sys.argv[1])
score(**fields["score"])
select(**fields["select"])
"""


class Machines:
    """The cluster of the soak."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        os.environ[faults.MARK] = self.mark
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 200 * 2**20}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self._add(), self._add()]

    def _add(self) -> object:
        return self.cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)

    def kill(self, victim: str, driver: subprocess.Popen, rng: random.Random) -> bool:
        """SIGKILL the victim; False if there is none at the moment."""
        if victim == "node":
            number = rng.randrange(2)
            self.cluster.remove_node(self.nodes[number], allow_graceful=False)
            self.nodes[number] = self._add()
            return True
        if victim == "driver":
            driver.kill()
            return True
        title = "ray::TrainController" if victim == "controller" else "ray::RayTrainWorker"
        found = faults.processes(self.mark, title)
        chosen = found if victim != "worker" else found[:1]
        for pid in chosen:
            os.kill(pid, signal.SIGKILL)
        return bool(chosen)


SEGMENTS = {"segment_images": 192, "commit_minutes": 0.0, "epochs": 3}
"""Eight segments an epoch."""


def fields_of(folder: Path, dataset: str, out: str, **changes) -> dict:
    """Configurations of the two jobs of a run, with changes to scoring."""
    return {
        "score": dict(
            dataset=dataset, out=f"{folder}/{out}", model="cnn", width=4, epochs=4, batch_size=64, augment="crop",
            crop_pad=1, seed=3, num_workers=2, cpus_per_worker=1, threads_per_worker=1, max_failures=100,
            tracking_uri="none",
        ) | changes,
        "select": dict(scores=f"{folder}/{out}", out=f"{folder}/{out}-coreset", fraction=0.5),
    }  # fmt: skip


def start(fields: dict, address: str) -> subprocess.Popen:
    """The driver, as a user starts it."""
    environment = os.environ | {"RAY_ADDRESS": address, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
    return subprocess.Popen(
        [sys.executable, "-c", _DRIVER, json.dumps(fields)], env=environment, cwd=ROOT, stdout=subprocess.DEVNULL
    )


def commits_of(fields: dict) -> set[str]:
    """Names of the training states of a run that are or were begun; the newest three or so."""
    return {path.name for path in Path(fields["score"]["out"], "commits").glob("*/epoch-*")}


def wait_for_commit(fields: dict, driver: subprocess.Popen, rng: random.Random) -> None:
    """Until some segments have been committed from now on, and a part of the next is done; or the driver has ended."""
    seen, wanted = commits_of(fields), rng.randint(1, 4)
    while driver.poll() is None and wanted:
        new = commits_of(fields) - seen
        seen |= new
        wanted -= bool(new)
        time.sleep(0.02)
    time.sleep(rng.uniform(0.0, 0.6))


def one_run(
    machines: Machines, fields: dict, kills: int, window: float, rng: random.Random, victims: Sequence[str] = VICTIMS
) -> Counter:
    """A run to its end with up to this many kills; what was killed, and how often the command was given."""
    within = "segment_images" in fields["score"]
    done: Counter = Counter()
    driver = start(fields, machines.cluster.address)
    done["commands"] += 1
    for _ in range(kills):
        # The first run of a cluster may take twice as long as the next.
        moment = time.monotonic() + rng.uniform(0.05, 0.5) * window
        while driver.poll() is None and time.monotonic() < moment and not within:
            time.sleep(0.02)
        if within:
            wait_for_commit(fields, driver, rng)
        if driver.poll() is None:
            victim = rng.choice(victims)
            done[victim] += machines.kill(victim, driver, rng)
        if ended(driver) and driver.returncode:
            driver = start(fields, machines.cluster.address)
            done["commands"] += 1
    while driver.wait() != 0:
        driver = start(fields, machines.cluster.address)
        done["commands"] += 1
        if done["commands"] > kills + 3:
            raise SystemExit("the command keeps failing without being killed")
    return done


def ended(driver: subprocess.Popen) -> bool:
    """True once a driver is gone; a moment's grace, since a kill takes effect a little later."""
    try:
        driver.wait(timeout=0.5)
    except subprocess.TimeoutExpired:
        return False
    return True


def results(fields: dict) -> dict:
    """Fingerprints of what a run made, and an oracle's count of its rows."""
    out = fields["score"]["out"]
    table = open_table(f"{out}/table")
    samples = table.artifact.manifest["counts"]["samples"]
    lost = doubled = 0
    for epoch in table.epochs():
        parts = [pq.ParquetFile(f"{table.path}/{part.path}").read(["sample_id"]) for part in table.of_epoch(epoch)]
        ids = np.concatenate([part["sample_id"].to_numpy() for part in parts])
        lost += samples - len(np.unique(ids))
        doubled += len(ids) - len(np.unique(ids))
    listed = {part.path for part in table.parts}
    written = {f"{path.parent.name}/{path.name}" for path in Path(table.path).glob("epoch=*/*.parquet")}
    orphaned = {path for path in written - listed if path.endswith("-r00000.parquet")}
    hardness = read_hardness(open_hardness(out))
    coreset = open_artifact(fields["select"]["out"], "coreset")
    return {
        "table": table.artifact.fingerprint,
        "hardness": hardness,
        "coreset": read_sample_ids(coreset).tolist(),
        "rows lost": lost,
        "rows doubled": doubled,
        "orphans": len(written - listed),
        # An attempt that was killed with parts of a segment written: that segment was scored again.
        "segments redone": Counter(path.rsplit("-r", 1)[0].rsplit("-", 1)[1] for path in orphaned),
    }


def run_case(seed: int, kills: int = 4, victims: Sequence[str] = VICTIMS, **changes) -> dict:
    """An uninterrupted run, then one with up to ``kills`` kills; both must give the same bits.

    Args:
        seed: of victims and moments.
        kills: at most.
        victims: to draw from.
        changes: fields of the scoring run.

    Returns:
        How often each victim was killed, commands given, orphaned parts and segments redone.

    Raises:
        AssertionError: if nothing was killed, a row is lost or doubled, more than a segment was done again after a
            kill, or anything differs.
    """
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="soak") as name:
        folder, dataset = Path(name), f"{name}/digits"
        subprocess.run([sys.executable, "-m", "jobs.prepare", "--source", "digits", "--out", dataset],
                       cwd=ROOT, check=True, stdout=subprocess.DEVNULL)  # fmt: skip
        machines = Machines()
        try:
            calm = fields_of(folder, dataset, "calm", **changes)
            began = time.monotonic()
            assert start(calm, machines.cluster.address).wait() == 0
            window = time.monotonic() - began
            fields = fields_of(folder, dataset, "killed", **changes)
            counts = one_run(machines, fields, kills, window, rng, victims)
            expected, found = results(calm), results(fields)
        finally:
            machines.cluster.shutdown()
    assert sum(counts[victim] for victim in VICTIMS) > 0, "nothing was killed, so nothing was shown"
    assert found["rows lost"] == found["rows doubled"] == 0, found
    for key in ("table", "coreset"):
        assert found[key] == expected[key], f"another {key}"
    assert found["hardness"].equals(expected["hardness"]), "another hardness table"
    redone = found["segments redone"]
    if changes.get("commit_minutes") == 0:
        assert max(redone.values(), default=0) <= 1, f"an attempt lost more than a segment: {redone}"
    return {**counts, "orphans": found["orphans"], "segments redone": redone.total()}


def run_case_within_epochs(seed: int) -> dict:
    """Many kills of workers and drivers in a run whose epochs have eight segments; see ``run_case``.

    Every other case streams its images.
    """
    victims = ("worker", "worker", "all workers", "driver")
    return run_case(seed, kills=8, victims=victims, cache_gib=2.0 * (seed // 2 % 2), **SEGMENTS)
