"""Runs that end at any point and are started again: weights, metrics and score tables of an uninterrupted run."""

from pathlib import Path

import pytest
import torch

from easycore_ray.config.stages import ScoreConfig
from easycore_ray.data.dataset import open_dataset
from easycore_ray.data.samples import read_split
from easycore_ray.engine.run import fit_here
from easycore_ray.engine.state import load_state, save_state
from easycore_ray.engine.worker_group import LocalContext
from easycore_ray.scoring.score import ScoreEachEpoch, make_scoring_fit
from easycore_ray.scoring.score_table import ScorePart, fingerprint, id_checksum
from tests.artifacts import make_image_dataset

EPOCHS = 3


class KilledError(BaseException):
    """The end of a process: nothing in the loop may catch it."""


class DyingContext(LocalContext):
    """A worker whose commits survive it, and that dies once at a point of an epoch.

    A commit counts when the file ``registered`` names it, as Ray Train's record of checkpoints does.
    """

    def __init__(self, folder, point=None, epoch=None):
        super().__init__()
        self.folder, self.point, self.epoch = Path(folder), point, epoch
        self.reached = 0
        self.register = self.folder / "registered"

    def restore(self):
        if not self.register.exists():
            return None
        state = load_state(str(self.folder / self.register.read_text()))
        self.reached = state.epoch + 1
        return state

    def die(self, point):
        if (point, self.reached) == (self.point, self.epoch):
            raise KilledError

    def gather(self, value):
        if isinstance(value, tuple) and isinstance(value[0], dict):  # the descriptor of a part that is written
            self.die("after the part")
        return super().gather(value)

    def post(self, done, note):
        self.reached = int(note.split()[1])
        self.die("within the epoch")

    def commit(self, state):
        self.die("before the commit")
        name = f"epoch-{state.epoch}-{self.attempt}"
        target = self.folder / name
        target.mkdir(parents=True)
        save_state(str(target), state)
        if (self.point, self.epoch) == ("within the commit", state.epoch):
            weights = target / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
            raise KilledError
        self.register.write_text(name)
        self.die("after the commit")
        self.reached += 1


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_image_dataset(tmp_path_factory.mktemp("crashes") / "dataset", [number % 3 for number in range(37)])


def run(dataset, folder, point=None, epoch=None, *, score_pass="eval"):
    """One attempt of a scoring run; its last state."""
    config = ScoreConfig(dataset=dataset.path, out="unused", model="cnn", width=4, epochs=EPOCHS, batch_size=8,
                         augment="crop", crop_pad=1, seed=3, score_pass=score_pass, threads_per_worker=1)  # fmt: skip
    opened = open_dataset(dataset.path)
    rows = read_split(opened, "train")
    each = ScoreEachEpoch(table=f"{folder}/table", epochs=EPOCHS, every=1, score_pass=score_pass, initial_pass=True,
                          num_samples=len(rows.labels), checksum=id_checksum(rows.sample_ids.numpy()))  # fmt: skip
    threads = torch.get_num_threads()
    try:
        return fit_here(make_scoring_fit(config, opened, None), rows, DyingContext(folder, point, epoch), each)
    finally:
        torch.set_num_threads(threads)


def table_of(state):
    """Hash of the content of the parts a state lists."""
    return fingerprint([ScorePart.from_dict(entry) for entry in state.carried["parts"]])


def metrics_of(state):
    """What was measured, without times."""
    times = ("train_seconds", "score_seconds", "val_seconds", "stall_share")
    return [{name: value for name, value in entry.items() if name not in times} for entry in state.history]


def parts_of(folder, epoch):
    """Files of an epoch, listed or not."""
    return list(Path(folder, "table").glob(f"epoch={epoch:05d}/*.parquet"))


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    """Uninterrupted runs by score pass."""
    passes = ("eval", "fused", "fused+eval")
    return {name: run(dataset, tmp_path_factory.mktemp("whole"), score_pass=name) for name in passes}


POINTS = ("within the epoch", "after the part", "before the commit", "within the commit", "after the commit")
# An exception is the part of the initial weights, which is written before any epoch.
CRASHES = [("after the part", 0), *((point, epoch) for point in POINTS for epoch in (1, 2, EPOCHS))]


@pytest.mark.slow
@pytest.mark.parametrize("score_pass", ["eval", "fused", "fused+eval"])
def test_wherever_a_run_dies_it_resumes_to_the_same_bits(dataset, whole, tmp_path, score_pass):
    """Each crash point by itself: weights, optimizer, metrics and table are equal; no committed epoch is redone."""
    expected = whole[score_pass]
    for number, (point, epoch) in enumerate(CRASHES):
        case, folder = f"{point} of epoch {epoch}", tmp_path / str(number)
        with pytest.raises(KilledError):
            run(dataset, folder, point, epoch, score_pass=score_pass)
        state = run(dataset, folder, score_pass=score_pass)
        assert table_of(state) == table_of(expected), case
        assert metrics_of(state) == metrics_of(expected), case
        for mine, other in ((state.model, expected.model), (state.optimizer, expected.optimizer)):
            if point == "after the commit" and epoch == EPOCHS and mine is state.optimizer:
                continue  # nothing was left to train
            assert mine.keys() == other.keys(), case
            assert all(torch.equal(mine[name], other[name]) for name in mine), case
        committed = epoch if point == "after the commit" else epoch - 1
        for done in range(1, committed + 1):
            assert len(parts_of(folder, done)) == 1, f"{case}: epoch {done} was committed and done again"
        if point in ("after the part", "before the commit", "within the commit"):
            assert len(parts_of(folder, epoch)) == 2, f"{case}: nothing was lost, so nothing was shown"


def test_a_run_that_dies_again_and_again_ends_with_the_same_bits(dataset, whole, tmp_path):
    """Every crash point once, one after the other, in one run."""
    for point, epoch in sorted(CRASHES, key=lambda crash: crash[1]):
        with pytest.raises(KilledError):
            run(dataset, tmp_path, point, epoch)
    state = run(dataset, tmp_path)

    assert table_of(state) == table_of(whole["eval"])
    assert metrics_of(state) == metrics_of(whole["eval"])
    assert all(torch.equal(state.model[name], value) for name, value in whole["eval"].model.items())
