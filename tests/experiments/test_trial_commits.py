"""A trial in one process that dies within an epoch goes on from its last segment to the same model."""

import dataclasses
from pathlib import Path

import pytest

from easycore_ray.config.arms import Arm
from easycore_ray.config.evaluation import EvaluateConfig
from easycore_ray.config.stages import TrainConfig
from easycore_ray.engine import run
from easycore_ray.engine.worker_group import LocalContext, segment_file
from easycore_ray.experiments.trial_runner import _train_and_attack as train_and_attack
from easycore_ray.experiments.trials import Trial
from easycore_ray.inspection.inspect import inspect
from easycore_ray.storage.artifact import open_artifact
from easycore_ray.storage.errors import EasyCoreError
from tests.artifacts import make_image_dataset

pytestmark = pytest.mark.usefixtures("same_threads")


class KilledError(BaseException):
    """The end of a process."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    labels = [number % 3 for number in range(60)]
    return make_image_dataset(tmp_path_factory.mktemp("trials") / "dataset", labels, val_labels=labels[:9]).path


def make_trial(dataset, out):
    """Three epochs of four segments, each of which commits."""
    train = TrainConfig(
        dataset=dataset, out=f"{out}/checkpoint", model="cnn", width=2, epochs=3, batch_size=16, segment_images=16,
        commit_minutes=0.0, augment="crop", crop_pad=1, eps=0.05, attack_steps=1, val_attack_steps=1, num_workers=1,
        training="trades", seed=5, tracking_uri="none", threads_per_worker=1,
    )  # fmt: skip
    evaluate = EvaluateConfig(out=f"{out}/evaluation", checkpoint=train.out, dataset=dataset, split="val",
                              eval_eps=(0.0,), threads_per_worker=1)  # fmt: skip
    return Trial(arm=Arm("full", None, "none"), fraction=1.0, training="trades", beta=6.0, seed=5, train=train,
                 evaluate=evaluate)  # fmt: skip


def die_at(monkeypatch, epoch, segment):
    """End the process before a segment is trained; gives the segments that were."""
    trained, train_epoch = [], run.train_epoch

    def watched(*args, epoch, segment, **options):
        if (epoch, segment) == point:
            raise KilledError
        trained.append((epoch, segment))
        return train_epoch(*args, epoch=epoch, segment=segment, **options)

    point = (epoch, segment)
    monkeypatch.setattr(run, "train_epoch", watched)
    return trained


@pytest.mark.parametrize(
    "point", [(1, 2), *(pytest.param(point, marks=pytest.mark.slow) for point in ((1, 0), (2, 0), (2, 3)))]
)
def test_a_trial_that_dies_within_an_epoch_loses_a_segment(dataset, tmp_path, monkeypatch, point):
    """Nothing before the segment is trained again, the model is the same, and no state is left."""
    whole, killed = make_trial(dataset, tmp_path / "whole"), make_trial(dataset, tmp_path / "killed")
    train_and_attack(whole, [].append)
    with monkeypatch.context() as patch:
        die_at(patch, *point)
        with pytest.raises(KilledError):
            train_and_attack(killed, [].append)
    progress = inspect(path=killed.train.out)["progress"]
    assert (progress["committed_epochs"], progress["committed_segments"]) == (point[0] - 1, point[1])
    reported = []
    with monkeypatch.context() as patch:
        trained = die_at(patch, 99, 0)
        train_and_attack(killed, reported.append)

    assert trained[0] == point
    assert [entry["epoch"] for entry in reported] == list(range(point[0], 4))
    assert open_artifact(killed.train.out).fingerprint == open_artifact(whole.train.out).fingerprint
    assert list(Path(killed.train.out).rglob("*.zip")) == []


def test_a_state_of_an_epoch_that_was_completed_since_is_not_gone_back_to(tmp_path):
    """Killed after the end of the epoch was committed, before the state within it was removed."""
    file = str(tmp_path / "state.zip")
    context = LocalContext(commit_file=file)
    within = run.State(0, 0, {}, {}, progress=run.EpochProgress(1, 1, segments=2))
    context.commit(within)
    left = Path(segment_file(file)).read_bytes()
    assert context.restore().progress == within.progress
    assert context.restore(whole=True) is None
    context.commit(run.State(1, 3, {}, {}, [{"epoch": 1}]))
    Path(segment_file(file)).write_bytes(left)

    assert context.restore().progress is None
    assert context.restore().epoch == context.restore(whole=True).epoch == 1


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_trial_whose_images_do_not_fit_the_cache_streams_them(dataset, tmp_path, monkeypatch):
    """In another order than images in memory, the same one whenever and wherever it begins anew."""
    kept, whole, killed = (make_trial(dataset, tmp_path / name) for name in ("kept", "whole", "killed"))
    train_and_attack(kept, [].append)
    streamed = [dataclasses.replace(trial, train=trial.train.replace(cache_gib=0.0)) for trial in (whole, killed)]
    train_and_attack(streamed[0], [].append)
    with monkeypatch.context() as patch:
        die_at(patch, 2, 2)
        with pytest.raises(KilledError):
            train_and_attack(streamed[1], [].append)
    train_and_attack(streamed[1], [].append)
    prints = [open_artifact(trial.train.out).fingerprint for trial in (kept, *streamed)]
    assert prints[1] == prints[2] != prints[0]


def test_nothing_is_committed_once_another_command_has_taken_over(tmp_path):
    """Neither at the end of an epoch nor within one."""

    def taken_over():
        raise EasyCoreError("another command is at work")

    context = LocalContext(commit_file=str(tmp_path / "state.zip"), check=taken_over)
    for state in (run.State(1, 3, {}, {}, [{"epoch": 1}]), run.State(0, 0, {}, {}, progress=run.EpochProgress(1, 1))):
        with pytest.raises(EasyCoreError, match="another command"):
            context.commit(state)
    assert list(tmp_path.iterdir()) == []
