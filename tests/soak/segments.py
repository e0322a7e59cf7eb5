"""Runs of several segments an epoch that die again and again inside their epochs, in this process, without Ray.

Workers are threads (``tests.worker_group``). Each case draws a run (scoring with one of its passes, or training; 1 to 3
workers; size of segments; minutes between commits), makes it without interruption, then kills it at random events, and
compares weights, optimizer, metrics and score table bit for bit.
"""

import random
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from easycore_ray.config.stages import ScoreConfig, TrainConfig
from easycore_ray.data.dataset import open_dataset
from easycore_ray.engine.extra_data import extra_data
from easycore_ray.engine.machine_use import SYSTEM
from easycore_ray.engine.run_inputs import open_run_inputs
from easycore_ray.scoring.score import make_recorder, make_scoring_fit
from easycore_ray.scoring.score_table import ScorePart, fingerprint, read_part_lists
from easycore_ray.training.train import make_training_fit
from tests.artifacts import make_image_dataset
from tests.worker_group import Group, KilledError

NEVER = 1e9
_TIMES = ("train_seconds", "score_seconds", "val_seconds", "stall_share")


class Case:
    """A run that can be begun any number of times.

    Args:
        dataset: path of its dataset.
        workers: in a group.
        job: ``score``, or an objective to train for.
        fields: of its configuration.
    """

    def __init__(self, dataset, workers, job="score", **fields):
        self.job, self.workers = job, workers
        small = dict(model="cnn", width=2, crop_pad=1, seed=3, num_workers=workers, threads_per_worker=1, epochs=3,
                     batch_size=12, segment_images=24, out="unused")  # fmt: skip
        attacked = dict(training=job, eps=0.05, attack_steps=1, val_attack_steps=1, ema=0.9)
        kind, make_fit = (ScoreConfig, make_scoring_fit) if job == "score" else (TrainConfig, make_training_fit)
        self.config = kind(dataset=dataset, **small | (attacked if kind is TrainConfig else {}) | fields)
        self.dataset, parents = open_run_inputs(self.config)
        extra = extra_data(self.config, self.dataset, parents)
        self.fit = make_fit(self.config, self.dataset, None, None, extra)
        self.ids = ids_of(self.dataset)
        self.extra_ids = None if extra is None else ids_of(open_dataset(extra.dataset))

    def attempt(self, folder, kill=None, workers=None):
        """The group of an attempt in a folder, and its last state, None if it was killed."""
        group = Group(folder, workers or self.workers, kill)
        try:
            return group, group.run(self.fit, self.recorder(folder))
        except KilledError:
            return group, None

    def recorder(self, folder):
        """What scores in a folder."""
        if self.job != "score":
            return None
        return make_recorder(self.config, self.fit, self.dataset, str(folder), f"{folder}/lists")

    def outcome(self, state, folder):
        """What must be the same bit for bit, however often a run was killed."""
        history = [{name: value for name, value in entry.items() if not name.startswith((SYSTEM, *_TIMES))}
                   for entry in state.history]  # fmt: skip
        tensors = {**state.model, **{f"momentum {name}": value for name, value in state.optimizer.items()}}
        tensors |= {f"best {name}": value for name, value in state.best.items()}
        tensors |= {f"averaged {name}": value for name, value in state.averaged.items()}
        found = {name: value.numpy().tobytes() for name, value in tensors.items()}
        tables = [fingerprint(self.parts(state, folder)), fingerprint(self.parts(state, folder, extra=True))]
        carried = state.carried.get("val_losses")
        return {**found, "metrics": history, "tables": tables, "best": state.best_epoch, "val_losses": carried}

    def parts(self, state, folder, extra=False):
        """The listed parts of the score table, or of that of the extra rows, of which nothing may be left over."""
        carried = {name.removeprefix("extra."): value for name, value in state.carried.items()
                   if name.startswith("extra.") == extra}  # fmt: skip
        under_way = {"parts", "norm_sum", "adv_loss_sum", "adv_correct_sum", "followed_ids", "followed_norms"}
        assert not under_way & carried.keys()
        return read_part_lists(f"{folder}/lists{'/extra' if extra else ''}", carried.get("part_lists", []))

    def lost_and_doubled(self, state, folder):
        """Samples that are missing in a scored epoch, and those that are there twice, over all epochs, by reading."""
        lost = doubled = 0
        for extra, all_ids in ((False, self.ids), (True, self.extra_ids)):
            where = f"{folder}/extra" if extra else folder
            for rows in rows_of(self.parts(state, folder, extra), where).values():
                ids = rows["sample_id"].to_numpy()
                lost += len(np.setdiff1d(all_ids, ids))
                doubled += len(ids) - len(np.unique(ids))
        return lost, doubled

    def most_redone(self):
        """Batches of a worker that a kill may cost: those of the minutes, of one minute each, and of a segment."""
        minutes = self.config.commit_minutes
        per_segment = -(-self.config.segment_images // self.config.batch_size)
        batches = -(-len(self.ids) // self.config.batch_size)
        # Of the first epoch: the initial pass, training and an exact pass.
        return 3 * batches if minutes == NEVER else minutes + per_segment


def ids_of(dataset):
    """Ids of its training split."""
    return dataset.index("train")["sample_id"].to_numpy()


def rows_of(parts: list[ScorePart], folder) -> dict[int, pa.Table]:
    """The rows of every scored epoch, as the files have them."""
    found: dict[int, list] = {}
    for part in parts:
        found.setdefault(part.epoch, []).append(pq.ParquetFile(f"{folder}/table/{part.path}").read())
    return {epoch: pa.concat_tables(tables) for epoch, tables in found.items()}


def draw_case(dataset, rng: random.Random) -> Case:
    """A run of any kind."""
    workers = rng.choice([1, 2, 3])
    fields = dict(
        batch_size=rng.choice([12, 18]), segment_images=rng.choice([1, 24, 40]), augment=rng.choice(["none", "crop"]),
        commit_minutes=rng.choice([0.0, 2.0, 4.0, NEVER]), epochs=rng.choice([2, 3]),
        crop_reflect=rng.choice([True, False]),
    )  # fmt: skip
    job = rng.choice(["score", "score", "score", "standard", "trades", "pgd"])
    if job == "score":
        fields |= dict(
            score_pass=rng.choice(["eval", "fused", "fused+eval"]), initial_pass=rng.choice([True, False]),
            score_every=rng.choice([1, 1, 2]), input_space=rng.choice(["pixel", "normalised"]),
        )  # fmt: skip
    if job == "score" and fields["score_pass"] == "eval" and rng.random() < 0.7:
        fields |= dict(training=rng.choice(["trades", "pgd", "mart"]), norm=rng.choice(["linf", "l2"]), attack_steps=1)
    if job != "score":
        fields |= dict(pruning=rng.choice(["none", "infobatch"]))
    if job == "pgd":
        fields |= dict(clean_forwards=rng.choice([True, False]))
    return Case(dataset, workers, job, **fields)


def kill_again_and_again(case: Case, folder: Path, whole: Group, rng: random.Random, kills: int) -> Counter:
    """A run that is killed up to so many times; what was counted.

    Raises:
        AssertionError: more was done again than a kill may cost.
    """
    counts: Counter = Counter()
    reached, state = 0, None
    while state is None:
        rank = rng.randrange(case.workers)
        kill = (rank, rng.randrange(max(whole.events) // 2)) if counts["kills"] < kills else None
        group, state = case.attempt(folder, kill)
        redone = max(reached - group.resumed_at, 0)
        assert redone <= case.most_redone(), f"{redone} batches were done again"
        counts["most batches redone"] = max(counts["most batches redone"], redone)
        reached = group.batches
        counts["kills"] += state is None
        counts["commits within epochs"] = len(list(folder.glob("epoch-*-*-*")))
    return counts | {"state": state}


def run_case(seed: int, kills: int = 12) -> dict:
    """An uninterrupted run and one with ``kills`` kills; both must give the same bits.

    Raises:
        AssertionError: a row is lost or doubled, too much was done again, or anything differs.
    """
    rng = random.Random(seed)
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="soak") as name:
        folder = Path(name)
        labels = [number % 3 for number in range(rng.randrange(40, 60))]
        dataset = make_image_dataset(folder / "dataset", labels, val_labels=labels[:9]).path
        case = draw_case(dataset, rng)
        whole, state = case.attempt(folder / "whole")
        assert state is not None
        expected = case.outcome(state, folder / "whole")
        done: Counter = Counter()
        while done["kills"] < kills:
            run = folder / f"run-{done['runs']}"
            counts = kill_again_and_again(case, run, whole, rng, kills - done["kills"])
            last = counts.pop("state")
            found = case.outcome(last, run)
            different = [key for key in expected if found[key] != expected[key]]
            assert not different, f"other {different} after {counts}: {case.config}"
            assert case.lost_and_doubled(last, run) == (0, 0), case.config
            done.update({"runs": 1, "kills": counts["kills"], "commits": counts["commits within epochs"]})
            done["most batches redone"] = max(done["most batches redone"], counts["most batches redone"])
    torch.set_num_threads(threads)
    return {**done, "job": case.job, "workers": case.workers, "most allowed": case.most_redone()}
