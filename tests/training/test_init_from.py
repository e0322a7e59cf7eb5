"""Runs that start from a checkpoint: its weights and normalisation, in the identity, refused where they do not fit."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from easycore_ray import train
from easycore_ray.config.stages import ScoreConfig, TrainConfig
from easycore_ray.core.passes import ScoreAttack, score_epoch
from easycore_ray.core.scores import score_batch
from easycore_ray.data.samples import read_split
from easycore_ray.engine.checkpoint import open_checkpoint
from easycore_ray.engine.run import fit_here
from easycore_ray.engine.run_identity import run_identity
from easycore_ray.engine.run_inputs import open_run_inputs
from easycore_ray.engine.worker_group import LocalContext
from easycore_ray.inspection.inspect import inspect
from easycore_ray.scoring.plans import plan_score
from easycore_ray.scoring.score import ScoreRecorder, make_scoring_fit
from easycore_ray.scoring.score_table import id_checksum
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.training.plans import plan_train
from easycore_ray.training.train import make_training_fit, train_here
from tests.artifacts import edit_manifest, make_checkpoint, make_image_dataset

LABELS = [number % 3 for number in range(30)]
FIELDS = {"model": "cnn", "width": 4, "steps": 1, "batch_size": 30, "augment": "none", "num_workers": 1,
          "warmup_fraction": 0.0, "schedule": "constant", "tracking_uri": "none"}  # fmt: skip


@pytest.fixture
def start(tmp_path):
    """A dataset and a checkpoint of it that was trained for some steps."""
    dataset = make_image_dataset(tmp_path / "dataset", LABELS)
    return dataset.path, make_checkpoint(tmp_path / "start", dataset.path, steps=5, seed=3).path


def settings(start, **changes):
    return TrainConfig(**{"dataset": start[0], "out": "unused", "init_from": start[1], **FIELDS, **changes})


def weights_after(config):
    """Weights of a run in this process."""
    dataset, parents = open_run_inputs(config)
    fit = make_training_fit(config, dataset, parents.get("coreset"), parents.get("init_from"))
    return train_here(fit, read_split(dataset, "train")).model


def test_the_first_step_is_one_from_the_given_weights(start):
    """By hand: the gradient of the loss at the checkpoint's weights, times the learning rate."""
    _, model = open_checkpoint(start[1])
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    rows = read_split(open_run_inputs(settings(start))[0], "train")
    model.train()
    torch.nn.functional.cross_entropy(model(rows.images.float() / 255), rows.labels).backward()
    after = weights_after(settings(start, lr=0.01, momentum=0.0, nesterov=False, weight_decay=0.0))

    for name, weight in model.named_parameters():
        assert torch.allclose(after[name], before[name] - 0.01 * weight.grad, atol=1e-6), name


@pytest.mark.parametrize("objective", [{}, {"training": "pgd", "eps": 0.05, "attack_steps": 3}])
def test_scores_at_the_initial_weights_are_those_of_the_checkpoint(start, tmp_path, objective):
    """Epoch 0 of a scoring run: its gradient norms and, in adversarial training, losses under attack."""
    config = ScoreConfig(dataset=start[0], out=f"{tmp_path}/scores", init_from=start[1], model="cnn", width=4, epochs=1,
                         num_workers=1, batch_size=30, score_pass="eval", initial_pass=True, **objective)  # fmt: skip
    dataset, parents = open_run_inputs(config)
    rows = read_split(dataset, "train")
    table = f"{config.out}/table"
    recorder = ScoreRecorder(table=table, lists=f"{config.out}/lists", epochs=1, every=1, score_pass="eval",
                             initial_pass=True, num_samples=30, checksum=id_checksum(np.arange(30)))  # fmt: skip
    fit = make_scoring_fit(config, dataset, None, parents["init_from"])
    fit_here(fit, rows, LocalContext(), recorder)
    (part,) = (tmp_path / "scores" / "table").glob("epoch=00000/*.parquet")
    found = pq.read_table(part).sort_by("sample_id")
    _, model = open_checkpoint(start[1])
    expected = score_batch(model, rows.images.float() / 255, rows.labels)

    assert np.allclose(found["grad_norm"].to_numpy(), expected["grad_norm"].numpy(), rtol=1e-5)
    if objective:
        attacked = score_epoch(model, [rows], attack=ScoreAttack.of_plan(fit.plan, 0))
        assert np.allclose(found["adv_loss"].to_numpy(), attacked["adv_loss"], rtol=1e-5)


def test_the_checkpoints_content_is_part_of_the_identity(start, tmp_path):
    """Not its path; and without one the identity is what it was."""
    dataset, path = start
    twin = make_checkpoint(tmp_path / "twin", dataset, steps=5, seed=3).path
    other = make_checkpoint(tmp_path / "other", dataset, steps=5, seed=4).path
    configs = [settings(start, init_from=each) for each in (path, twin, other, None)]
    first, second, third, without = (run_identity("checkpoint", each, open_run_inputs(each)[1]) for each in configs)
    plain = TrainConfig(dataset=dataset, out="unused", **FIELDS)

    assert first == second
    assert len({first, third, without}) == 3
    assert run_identity("checkpoint", plain, open_run_inputs(plain)[1]) == without


def test_the_finished_run_names_its_start_and_keeps_its_normalisation(start, tmp_path):
    """Among the parents; the pixels are normalised as those the weights were trained on."""
    dataset, path = start
    edit_manifest(dataset, mean=[0.1])
    made = make_checkpoint(tmp_path / "model", dataset, init_from=path)
    _, model = open_checkpoint(made.path)

    assert made.manifest["parents"]["init_from"]["path"] == path
    assert made.manifest["model"]["mean"] == [0.5]
    assert model.normalise.mean.item() == 0.5
    assert [line["state"] for line in inspect(path=made.path)["parents"] if line["role"] == "init_from"] == [
        "unchanged"
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 8}, "it has width 4, this run width 8; pass the --model, --width and dataset"),
        ({"model": "resnet18", "width": 4}, "it has model cnn, this run model resnet18"),
        ({"model": "tests.users_models:good", "width": None}, "model cnn, width 4, this run .*good, width None"),
        ({"init_from": "/nowhere"}, "/nowhere does not exist; pass the folder of a finished checkpoint"),
    ],
)
def test_weights_of_another_network_are_refused(start, change, message):
    """Before any work, and in a dry run."""
    config = settings(start, **change)
    for refused in (train, plan_train):
        with pytest.raises(EasyCoreError, match=message):
            refused(config)
    scoring = {name: getattr(config, name) for name in ("dataset", "init_from", "model", "width", "num_workers")}
    with pytest.raises(EasyCoreError, match=message):
        plan_score(ScoreConfig(out="unused", batch_size=30, **scoring))


def test_weights_for_other_images_or_classes_are_refused(start, tmp_path):
    """A dataset with one class more; and an artifact that is no checkpoint."""
    more = make_image_dataset(tmp_path / "more", [*LABELS, 3]).path
    with pytest.raises(EasyCoreError, match="it has classes 3, this run classes 4"):
        plan_train(settings(start, dataset=more))
    with pytest.raises(EasyCoreError, match="holds a dataset, not a checkpoint"):
        plan_train(settings(start, init_from=more))


def test_a_start_that_was_replaced_meanwhile_is_refused(start):
    """Workers read it when they begin."""
    config = settings(start)
    dataset, parents = open_run_inputs(config)
    fit = make_training_fit(config, dataset, None, parents["init_from"])
    make_checkpoint(start[1], dataset.path, steps=6, seed=3, overwrite=True)

    with pytest.raises(EasyCoreError, match="another checkpoint than when the run began"):
        train_here(fit, read_split(dataset, "train"))
