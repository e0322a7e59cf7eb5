"""A soak: scoring runs that lose processes at random moments, each compared with an uninterrupted run bit for bit.

    python tests/benchmarks/soak_kills.py [--kills 50] [--seed 0] [--out soak.json]

One Ray cluster of a head and two nodes on this machine. Short scoring runs of two workers on the embedded digits;
while one runs, at a random moment, a random victim gets SIGKILL: one training worker, all of them, Ray Train's
controller, the raylet of a node (another node joins afterwards), or the driver (the same command is then given again).
Training, reduce and select all lie in the window. Prints what was killed and whether anything was lost.
"""

import argparse
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
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from ray.cluster_utils import Cluster

from easycore_ray.data.coreset import read_sample_ids
from easycore_ray.scoring.hardness_table import open_hardness, read_hardness
from easycore_ray.scoring.score_reader import open_table
from easycore_ray.storage.artifact import open_artifact

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests import faults  # noqa: E402  (the tests are not installed)

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


def fields_of(folder: Path, dataset: str, out: str) -> dict:
    """Configurations of the two jobs of a run."""
    return {
        "score": dict(
            dataset=dataset, out=f"{folder}/{out}", model="cnn", width=4, epochs=4, batch_size=64, augment="crop",
            crop_pad=1, seed=3, num_workers=2, cpus_per_worker=1, threads_per_worker=1, max_failures=100,
            tracking_uri="none",
        ),
        "select": dict(scores=f"{folder}/{out}", out=f"{folder}/{out}-coreset", fraction=0.5),
    }  # fmt: skip


def start(fields: dict, address: str) -> subprocess.Popen:
    """The driver, as a user starts it."""
    environment = os.environ | {"RAY_ADDRESS": address, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
    return subprocess.Popen(
        [sys.executable, "-c", _DRIVER, json.dumps(fields)], env=environment, cwd=ROOT, stdout=subprocess.DEVNULL
    )


def one_run(machines: Machines, fields: dict, kills: int, window: float, rng: random.Random) -> Counter:
    """A run to its end with up to this many kills; what was killed, and how often the command was given."""
    done: Counter = Counter()
    driver = start(fields, machines.cluster.address)
    done["commands"] += 1
    for _ in range(kills):
        moment = time.monotonic() + rng.uniform(0.1, 1.0) * window
        while driver.poll() is None and time.monotonic() < moment:
            time.sleep(0.02)
        if driver.poll() is None:
            victim = rng.choice(VICTIMS)
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
    hardness = read_hardness(open_hardness(out))
    coreset = open_artifact(fields["select"]["out"], "coreset")
    return {
        "table": table.artifact.fingerprint,
        "hardness": hardness,
        "coreset": read_sample_ids(coreset).tolist(),
        "rows lost": lost,
        "rows doubled": doubled,
        "orphans": len(written - listed),
        # An attempt that was killed with parts of an epoch written: that epoch was scored again.
        "epochs redone": len({path.rsplit("-r", 1)[0] for path in written - listed}),
    }


def main() -> None:
    """Run until enough was killed, then say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="processes or nodes to kill in all")
    parser.add_argument("--per-run", type=int, default=4, help="most kills in one run")
    parser.add_argument("--seed", type=int, default=0, help="seed of victims and moments")
    parser.add_argument("--out", help="file for the figures (JSON)")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="soak") as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-m", "jobs.prepare", "--source", "digits", "--out", f"{folder}/digits"],
                       cwd=ROOT, check=True, stdout=subprocess.DEVNULL)  # fmt: skip
        machines = Machines()
        began = time.monotonic()
        calm = fields_of(folder, f"{folder}/digits", "calm")
        assert start(calm, machines.cluster.address).wait() == 0
        window = time.monotonic() - began
        print(f"an uninterrupted run takes {window:.0f} s", flush=True)
        expected, total, runs = results(calm), Counter(), 0
        identical = 0
        while sum(total[victim] for victim in VICTIMS) < options.kills:
            fields = fields_of(folder, f"{folder}/digits", f"run{runs}")
            killed = one_run(machines, fields, options.per_run, window, rng)
            found = results(fields)
            same = all(
                found[key] == expected[key] if key != "hardness" else found[key].equals(expected[key])
                for key in ("table", "hardness", "coreset")
            )
            identical += same
            runs += 1
            for key in ("rows lost", "rows doubled", "orphans", "epochs redone"):
                total[key] += found[key]
            total += killed
            print(f"run {runs}: {dict(killed)}, {found['orphans']} orphaned parts, "
                  f"{'identical' if same else 'DIFFERENT'}", flush=True)  # fmt: skip
        machines.cluster.shutdown()
    figures = {"runs": runs, "identical": identical, "kills": sum(total[victim] for victim in VICTIMS)}
    figures |= {
        key: total[key] for key in (*VICTIMS, "commands", "rows lost", "rows doubled", "orphans", "epochs redone")
    }
    figures["seconds"] = round(time.monotonic() - began)
    print(json.dumps(figures, indent=2))
    if options.out:
        Path(options.out).write_text(json.dumps(figures, indent=2) + "\n")
    if identical != runs or total["rows lost"] or total["rows doubled"]:
        raise SystemExit("NOT exact")


if __name__ == "__main__":
    main()
