"""What makes training more robust, in a whole run: averaged weights, and the watch of single-step training."""

import pytest
import torch

from easycore_ray.data.dataset import open_dataset
from easycore_ray.engine.checkpoint import open_checkpoint
from easycore_ray.engine.checkpoint_files import overfitted_epochs, overfitting_text
from easycore_ray.engine.plan import build
from easycore_ray.engine.validation import ValidationBlocks
from easycore_ray.engine.worker_group import LocalContext
from easycore_ray.inspection.inspect import inspect
from easycore_ray.reporting.inspect_text import to_text
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.training.train import make_training_fit
from tests.training.test_train import finished, problems, same, settings, trained

# ---------------------------------------------------------------- catastrophic overfitting


def accuracies(fgsm, pgd):
    return [{"epoch": 1 + number, "val_fgsm_accuracy": one, "val_robust_accuracy": other}
            for number, (one, other) in enumerate(zip(fgsm, pgd, strict=True))]  # fmt: skip


def test_overfitting_to_single_steps_is_seen_and_said():
    """As in published logs: PGD falls from 0.45 to 0.03 within an epoch while FGSM rises."""
    history = accuracies((0.30, 0.50, 0.71, 0.52, 0.77), (0.27, 0.45, 0.03, 0.44, 0.01))
    assert overfitted_epochs(history) == [3, 5]
    assert overfitting_text(history) == (
        "catastrophic overfitting to single-step attacks after 2 epochs, first 3, last 5: FGSM leaves 77.0 % on the "
        "validation split, PGD 1.0 %"
    )


def test_what_is_not_overfitted_is_left_alone():
    """A gap as usual, an untrained network, one that no attack leaves anything, runs without FGSM in validation."""
    history = accuracies((0.50, 0.12, 0.0, 0.40), (0.45, 0.02, 0.0, 0.21))
    assert overfitted_epochs(history) == []
    assert overfitting_text(history) == ""
    assert overfitted_epochs([{"epoch": 1, "val_robust_accuracy": 0.0}]) == []


def test_single_step_training_is_watched(dataset, tmp_path):
    """Each epoch is validated under FGSM as well; the manifest, the row and inspect say when it has overfitted."""
    config = settings(dataset, out=str(tmp_path / "model"), training="nfgsm", epochs=2)
    state = trained(config)
    for entry in state.history:
        assert entry["val_robust_accuracy"] <= entry["val_fgsm_accuracy"] <= entry["val_accuracy"]
    assert not any("val_fgsm_accuracy" in entry for entry in trained(settings(dataset, epochs=1)).history)

    state.history[-1] |= {"val_fgsm_accuracy": 0.7, "val_robust_accuracy": 0.02}
    made = finished(config, state)
    assert made.manifest["overfitted_epochs"] == [2]
    text = " ".join(to_text(inspect(path=made.path)).split())
    assert "FGSM leaves 70.0 % on the validation split, PGD 2.0 %" in text


# ---------------------------------------------------------------- averaged weights


def test_averaged_weights_are_kept_beside_the_last(dataset, tmp_path):
    """The training itself is the same; the average is validated, verified, and evaluated on request."""
    plain = finished(settings(dataset, out=str(tmp_path / "plain")), trained(settings(dataset)))
    config = settings(dataset, out=str(tmp_path / "averaged"), ema=0.9)
    made = finished(config, trained(config))
    last, averaged = (open_checkpoint(made.path, weights)[1].state_dict() for weights in ("last", "averaged"))

    assert same(open_checkpoint(plain.path)[1].state_dict(), last)
    assert averaged.keys() == last.keys()
    assert not same(averaged, last)
    assert made.manifest["weights"]["averaged"] == "averaged.safetensors"
    for entry, without in zip(made.manifest["epochs"], plain.manifest["epochs"], strict=True):
        assert {"averaged_val_accuracy", "averaged_val_robust_accuracy"} <= entry.keys()
        assert entry["val_robust_accuracy"] == without["val_robust_accuracy"]
        assert not any(name.startswith("averaged") for name in without)
    assert problems(made) == []


def test_weights_that_were_not_averaged_are_refused(dataset, tmp_path):
    """With what would make them."""
    made = finished(settings(dataset, out=str(tmp_path / "model")), trained(settings(dataset)))
    with pytest.raises(EasyCoreError, match="has no averaged weights: it was trained without --ema; pass --weights"):
        open_checkpoint(made.path, "averaged")


def test_the_average_is_validated_with_its_own_weights(dataset):
    """Its accuracies are those of the averaged network; the last weights stay as they are, to the bit."""
    config = settings(dataset, ema=0.9, epochs=3)
    state, fit = trained(config), make_training_fit(config, open_dataset(dataset.path), None)
    model = build(fit.model)
    model.load_state_dict(state.averaged)
    measured = ValidationBlocks(fit, LocalContext()).measure(model.to(memory_format=torch.channels_last))[0]
    for name in ("val_accuracy", "val_robust_accuracy"):
        assert state.history[-1][f"averaged_{name}"] == measured[name]


# ---------------------------------------------------------------- options of a recipe


def test_options_of_a_recipe_reach_the_loop(dataset):
    """What the configuration says is what the plan of a run says."""
    said = {"crop_reflect": True, "final_lr": 1e-4, "clean_forwards": True}
    plans = [
        make_training_fit(settings(dataset, training="pgd", **fields), open_dataset(dataset.path), None).plan
        for fields in (said, {})
    ]

    assert [{name: getattr(plan, name) for name in said} for plan in plans] == [said, dict.fromkeys(said, 0)]


# ---------------------------------------------------------------- what is asked for reaches the loop


def test_options_reach_the_plan(dataset):
    """Each under its own name, and 0 where nothing is asked for."""
    wanted = {"ema": 0.9, "awp": 0.01, "label_smoothing": 0.1}
    asked, plain = (
        make_training_fit(settings(dataset, **options), open_dataset(dataset.path), None).plan
        for options in (wanted, {})
    )
    assert {name: getattr(asked, name) for name in wanted} == wanted
    assert {name: getattr(plain, name) for name in wanted} == dict.fromkeys(wanted, 0.0)


@pytest.mark.parametrize(("training", "given", "expected"), [
    ("pgd", None, 2.5 * 0.03 / 2), ("mart", None, 2.5 * 0.03 / 2), ("nfgsm", None, 0.03), ("nfgsm", 0.01, 0.01),
])  # fmt: skip
def test_a_step_is_as_long_as_its_source_has_it(dataset, training, given, expected):
    """Of N-FGSM the whole eps, of others 2.5 · eps / steps, unless one is given."""
    config = settings(dataset, training=training, attack_step_size=given)
    plan = make_training_fit(config, open_dataset(dataset.path), None).plan
    assert plan.attack_step_size == pytest.approx(expected)
