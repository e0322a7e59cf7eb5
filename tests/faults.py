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
``"driver": true`` the driver as well. A kill with a ``segment`` waits for that one of its epoch.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

from easycore_ray.config.base import from_dict
from easycore_ray.config.stages import ScoreConfig, TrainConfig
from easycore_ray.engine import run
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


def die(kills, point, epoch, rank, segment=None):
    """End this process if one of the kills that have not happened yet wants it now."""
    for kill in kills:
        here = kill["point"] == point and kill["epoch"] == epoch and kill.get("rank") in (None, rank)
        marker = Path(f"{kill['marker']}-{rank}")
        if not here or kill.get("segment", segment) != segment or marker.exists():
            continue
        marker.touch()
        victims = [os.getpid()]
        if point == "controller":
            victims = processes(os.environ[MARK], "ray::TrainController")
        for victim in victims:
            os.kill(victim, signal.SIGKILL)


class Killing(scoring.ScoreRecorder):
    """``ScoreRecorder`` that dies where it is told to."""

    kills = ()

    def record(self, context, columns, *, epoch, segment, **options):
        if not hasattr(context, "whole_commit"):
            context.whole_commit, context.commit = context.commit, lambda state: self.commit(context, state)
        gather = context.gather

        def gather_or_die(value):
            if isinstance(value, tuple):  # the descriptor of the part
                die(self.kills, "after_part", epoch, context.rank, segment)
                die(self.kills, "controller", epoch, context.rank, segment)
            return gather(value)

        die(self.kills, "before_part", epoch, context.rank, segment)
        context.gather = gather_or_die
        try:
            super().record(context, columns, epoch=epoch, segment=segment, **options)
        finally:
            context.gather = gather

    def commit(self, context, state):
        if state.progress is not None:
            context.whole_commit(state)
            return
        die(self.kills, "before_commit", state.epoch, context.rank)
        if any(kill["point"] == "half_commit" for kill in self.kills):
            half_upload(lambda: die(self.kills, "half_commit", state.epoch, context.rank))
        context.whole_commit(state)
        die(self.kills, "after_commit", state.epoch, context.rank)


def half_upload(interrupt):
    """Make this worker's next checkpoint upload stop after a part of its files."""
    from ray.train.v2._internal.execution.storage import StorageContext

    whole = StorageContext.persist_current_checkpoint

    def persist(self, checkpoint, name):
        target = Path(self.build_checkpoint_path_from_name(name))
        target.mkdir(parents=True, exist_ok=True)
        weights = (Path(checkpoint.path) / "model.safetensors").read_bytes()
        (target / "model.safetensors").write_bytes(weights[: len(weights) // 2])
        interrupt()
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


class DyingInTraining:
    """A ``Recorder`` that records nothing, but has the worker die between two batches.

    Where it arrives, the training loop of its process is replaced by one whose batches it watches.
    """

    def __init__(self, kills, driver):
        self.kills, self.driver = kills, driver

    def __setstate__(self, content):
        self.__dict__.update(content)
        train_epoch = run.train_epoch

        def watched(model, optimizer, batches, plan, *, epoch, segment, rank, **options):
            batches = self.batches(batches, epoch, segment, rank)
            return train_epoch(model, optimizer, batches, plan, epoch=epoch, segment=segment, rank=rank, **options)

        run.train_epoch = watched

    def records_steps(self, epoch):
        return False

    def exact_pass(self, epoch, carried):
        return None

    def batches(self, whole, epoch, segment, rank):
        for number, batch in enumerate(whole):
            if number == 2:
                self.die(epoch, segment, rank)
            yield batch

    def die(self, epoch, segment, rank):
        for kill in self.kills:
            wanted = (kill["epoch"], kill["rank"], kill.get("segment", segment)) == (epoch, rank, segment)
            if wanted and not Path(kill["marker"]).exists():
                Path(kill["marker"]).touch()
                for victim in [self.driver] * kill.get("driver", False) + [os.getpid()]:
                    os.kill(victim, signal.SIGKILL)


def train(fields, kills):
    """Train with these fields; the workers die as told."""
    fit_tracked = training.fit_tracked

    def fit(*args, **options):
        return fit_tracked(*args, **options | {"recorder": DyingInTraining(kills, os.getpid())})

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
        scoring.ScoreRecorder = Killing
    for kill in kills:
        if kill["point"] == "freeze":
            die_in_driver(scoring, "finish", kill["marker"])
        if kill["point"] == "reduce":
            die_in_driver(reduce_task, "write_hardness", kill["marker"])
    scoring.score(from_dict(ScoreConfig, request["fields"]))


if __name__ == "__main__":
    main()
