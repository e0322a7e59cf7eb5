"""Runs that lose processes at chosen moments: a driver script for tests and for the soak benchmark.

    python tests/faults.py '{"fields": {}, "kills": [{"point": "after_part", "epoch": 1, "rank": 1, "marker": "/a"}]}'

Scores with the given fields. Each kill ends its own process with SIGKILL, once: a marker file remembers it, so that a
restarted worker group, or the same command given again, passes that moment alive. Points in a worker, in order:

    before_part    scored, nothing written            before_commit  all parts written, no checkpoint yet
    after_part     own part written                   half_commit    the checkpoint is half uploaded
    controller     as after_part, but Ray Train's controller process is killed
                                                      after_commit   the checkpoint is registered

and in the driver: ``freeze`` (training is over, the table has no manifest yet) and ``reduce`` (a file of the hardness
table is written, its manifest is not).

With ``"job": "train"`` it trains instead. A kill ends the worker of its ``rank`` in the middle of its ``epoch``, with
``"driver": true`` the driver as well.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

from easycore_ray.config.base import from_dict
from easycore_ray.config.stages import ScoreConfig, TrainConfig
from easycore_ray.scoring import reduce_task
from easycore_ray.scoring import score as scoring
from easycore_ray.training import train as training

MARK = "EASYCORE_TEST_PROCESSES"
"""Environment variable by which a test knows the processes of its own Ray from any other's."""


def processes(mark, title):
    """Ids of the processes whose environment carries ``mark`` and whose title starts with ``title``."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            ours = f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0")
            if ours and (folder / "cmdline").read_bytes().startswith(title.encode()):
                found.append(int(folder.name))
        except OSError:
            continue  # it has ended, or is another user's
    return found


class Killing(scoring.ScoreEachEpoch):
    """``ScoreEachEpoch`` that dies where it is told to."""

    kills = ()

    def __call__(self, context, feed, model, epoch, result, carried):
        def die(point):
            for kill in self.kills:
                wanted = kill["point"] == point and kill["epoch"] == epoch and kill.get("rank") in (None, context.rank)
                marker = Path(f"{kill['marker']}-{context.rank}")
                if not wanted or marker.exists():
                    continue
                marker.touch()
                victims = [os.getpid()]
                if point == "controller":
                    victims = processes(os.environ[MARK], "ray::TrainController")
                for victim in victims:
                    os.kill(victim, signal.SIGKILL)

        gather, commit = context.gather, context.commit

        def gather_or_die(value):
            if isinstance(value, tuple):  # the descriptor of the part
                die("after_part")
                die("controller")
            return gather(value)

        def commit_or_die(state):
            die("before_commit")
            if any(kill["point"] == "half_commit" for kill in self.kills):
                half_upload(die)
            commit(state)
            die("after_commit")

        die("before_part")
        context.gather, context.commit = gather_or_die, commit_or_die
        try:
            return super().__call__(context, feed, model, epoch, result, carried)
        finally:
            context.gather = gather


def half_upload(die):
    """Make this worker's next checkpoint upload stop after a part of its files."""
    from ray.train.v2._internal.execution.storage import StorageContext

    whole = StorageContext.persist_current_checkpoint

    def persist(self, checkpoint, name):
        target = Path(self.build_checkpoint_path_from_name(name))
        target.mkdir(parents=True, exist_ok=True)
        weights = (Path(checkpoint.path) / "model.safetensors").read_bytes()
        (target / "model.safetensors").write_bytes(weights[: len(weights) // 2])
        die("half_commit")
        shutil.rmtree(target)
        return whole(self, checkpoint, name)

    StorageContext.persist_current_checkpoint = persist


def die_in_driver(module, name, marker):
    """End this process when ``module.name`` has been called once more than the marker remembers."""
    original = getattr(module, name)

    def killing(*args, **kwargs):
        if Path(marker).exists():
            return original(*args, **kwargs)
        Path(marker).touch()
        if name != "finish":
            original(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    setattr(module, name, killing)


class DyingMidEpoch:
    """An ``AfterEpoch`` that measures nothing, but has the worker die between two batches of a later epoch."""

    def __init__(self, kills, driver):
        self.kills, self.driver = kills, driver

    def __call__(self, context, feed, model, epoch, result, carried):
        if epoch == 0 or not hasattr(feed, "whole"):
            feed.whole = feed.shuffled
            feed.shuffled = lambda epoch: self.batches(feed.whole(epoch), epoch, context.rank)
        return {}

    def batches(self, whole, epoch, rank):
        for number, batch in enumerate(whole):
            if number == 2:
                self.die(epoch, rank)
            yield batch

    def die(self, epoch, rank):
        for kill in self.kills:
            if (kill["epoch"], kill["rank"]) == (epoch, rank) and not Path(kill["marker"]).exists():
                Path(kill["marker"]).touch()
                for victim in [self.driver] * kill.get("driver", False) + [os.getpid()]:
                    os.kill(victim, signal.SIGKILL)


def train(fields, kills):
    """Train with these fields; the workers die as told."""
    fit_tracked = training.fit_tracked

    def fit(*args, **options):
        return fit_tracked(*args, **options | {"after_epoch": DyingMidEpoch(kills, os.getpid())})

    training.fit_tracked = fit
    training.train(from_dict(TrainConfig, fields))


def main():
    """Score, or train, with the fields and kills given as JSON."""
    request = json.loads(sys.argv[1])
    kills = request.get("kills", ())
    if request.get("job") == "train":
        train(request["fields"], kills)
        return
    # Without a plan the workers run exactly what users' workers run.
    if any(kill["point"] not in ("freeze", "reduce") for kill in kills):
        Killing.kills = tuple(kills)
        scoring.ScoreEachEpoch = Killing
    for kill in kills:
        if kill["point"] == "freeze":
            die_in_driver(scoring, "finish", kill["marker"])
        if kill["point"] == "reduce":
            die_in_driver(reduce_task, "write_hardness", kill["marker"])
    scoring.score(from_dict(ScoreConfig, request["fields"]))


if __name__ == "__main__":
    main()
