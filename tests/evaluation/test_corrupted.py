"""Accuracy on corrupted images: each outcome, means over severities and corruptions, what shards and readers see."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from easycore_ray.config.evaluation import EvaluateConfig
from easycore_ray.data.corruptions import corrupt
from easycore_ray.data.dataset import open_dataset
from easycore_ray.data.samples import Samples
from easycore_ray.evaluation.attack_shards import attack_rows, attack_shard, merge_shards
from easycore_ray.evaluation.corrupted import corruption_text
from easycore_ray.evaluation.evaluate import summarise_outcomes
from easycore_ray.evaluation.plans import attack_works
from easycore_ray.evaluation.threats import check_threats, threats_of
from easycore_ray.evaluation.tracked_evaluation import describe_evaluation, flat_metrics
from easycore_ray.experiments.trial_runner import attack_here
from easycore_ray.inspection.inspect import inspect
from easycore_ray.reporting.inspect_text import to_text
from easycore_ray.storage.errors import EasyCoreError
from tests.artifacts import make_checkpoint, make_image_dataset


class Brightness(nn.Module):
    """Class 1 above a mean of one half."""

    def forward(self, inputs):
        mean = inputs.flatten(1).mean(dim=1)
        return torch.stack([0.5 - mean, mean - 0.5], dim=1)


def rows_of(count, low=40, high=215):
    """Plain images of one level each, with the model's answers."""
    levels = torch.linspace(low, high, count).to(torch.uint8)
    images = levels[:, None, None, None].expand(count, 1, 8, 8).clone()
    return Samples(torch.arange(100, 100 + count), images, (levels > 127).long())


def threats(*corruptions, **changes):
    fields = dict(checkpoint="c", dataset="d", out="o", attack=("none",), corruptions=corruptions) | changes
    return threats_of(EvaluateConfig(**fields))


def test_each_image_is_judged_by_its_corrupted_self():
    """Brightness moves dark images over the border: exactly those within its step of it."""
    rows = rows_of(120)
    outcomes = attack_rows(Brightness(), rows, threats("brightness", "contrast"))
    level = rows.images[:, 0, 0, 0].numpy().astype(int)

    assert outcomes.column_names[3:8] == [f"corrupted_contrast_{severity}" for severity in range(1, 6)]
    for severity, step in enumerate((0.05, 0.1, 0.15, 0.2, 0.3), 1):
        right = (np.floor(level + 255 * step + 1e-6) > 127.5) == (level > 127)
        np.testing.assert_array_equal(outcomes[f"corrupted_brightness_{severity}"].to_numpy(), right)
        assert outcomes[f"corrupted_contrast_{severity}"].to_numpy().all(), "a plain image has no contrast to lose"


def test_the_summary_has_the_mean_and_each():
    """Mean over severities, then over corruptions; not part of the robust accuracy."""
    rows = rows_of(60)
    outcomes = attack_rows(Brightness(), rows, threats("all"))
    summary = summarise_outcomes(outcomes, threats("all"), 2)
    bright = summary["corruptions"][-1]
    shares = [outcomes[f"corrupted_brightness_{severity}"].to_numpy().mean() for severity in range(1, 6)]

    assert [entry["corruption"] for entry in summary["corruptions"]] == [
        "gaussian_noise", "gaussian_blur", "jpeg_compression", "contrast", "brightness",
    ]  # fmt: skip
    assert bright["by_severity"] == shares
    assert bright["accuracy"] == pytest.approx(np.mean(shares))
    assert shares[0] > shares[-1]
    each = [entry["accuracy"] for entry in summary["corruptions"]]
    assert summary["corruption_accuracy"] == pytest.approx(np.mean(each))
    assert summary["robust_accuracy"] is None
    assert flat_metrics(summary)["corruption_accuracy_brightness"] == bright["accuracy"]
    assert corruption_text(summary).endswith(f"brightness {100 * bright['accuracy']:.1f} %")
    assert "corruptions" not in summarise_outcomes(outcomes, threats(), 2)


def test_outcomes_do_not_depend_on_shards():
    """Noise of an image is the same alone and among others."""
    rows = rows_of(300, low=110, high=145)
    whole = attack_rows(Brightness(), rows, threats("gaussian_noise"))
    parts = [
        attack_shard(Brightness(), Samples(*(column[start : start + 100] for column in rows)),
                     threats("gaussian_noise"), device="cpu")
        for start in (0, 100, 200)
    ]  # fmt: skip

    assert merge_shards(parts).equals(whole)
    assert not whole["corrupted_gaussian_noise_5"].to_numpy().all(), "or there is nothing to depend on"


def test_noise_is_drawn_by_the_seed_of_the_evaluation():
    """As the attacks' random starts are."""
    rows = rows_of(200, low=110, high=145)
    columns = [
        attack_rows(Brightness(), rows, threats("gaussian_noise", seed=seed))["corrupted_gaussian_noise_5"].to_numpy()
        for seed in (0, 1)
    ]
    noisy = corrupt("gaussian_noise", 5, rows.images, rows.sample_ids, 1).float() / 255

    assert (columns[0] != columns[1]).any()
    np.testing.assert_array_equal(columns[1], (Brightness()(noisy).argmax(1) == rows.labels).numpy())


def test_what_cannot_be_corrupted_is_refused():
    """Before any work: an unknown name, channels that JPEG has not."""
    with pytest.raises(EasyCoreError, match="unknown corruption 'fog'; allowed are all, brightness"):
        threats("fog")
    with pytest.raises(EasyCoreError, match="1 or 3 channels, got 4"):
        check_threats(threats("all"), (4, 8, 8))
    check_threats(threats("contrast"), (4, 8, 8))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The folder of an evaluation with all there is, made as in a sweep's trial, and its configuration."""
    root = tmp_path_factory.mktemp("corrupted")
    labels = [number % 3 for number in range(30)]
    dataset = make_image_dataset(root / "dataset", labels, labels[:20])
    checkpoint = make_checkpoint(root / "model", dataset.path, steps=100)
    config = EvaluateConfig(checkpoint=checkpoint.path, dataset=dataset.path, out=str(root / "evaluation"),
                            eval_eps=0.02, pgd_restarts=2, corruptions="all")  # fmt: skip
    attack_here(config, open_dataset(dataset.path), "cpu")
    return config


def test_inspect_verify_and_mlflow_show_all_of_it(evaluated):
    """A line for each corruption, the calibration, the machine; nothing is found wrong; a metric for each."""
    facts = inspect(path=evaluated.out, verify=True)
    text, run = to_text(facts), describe_evaluation(evaluated, evaluated.out)
    summary = facts["details"]["summary"]

    assert [entry["problems"] for entry in facts["verified"]] == [[]]
    assert text.count("severity 1 to 5: ") == 5
    assert f"{100 * summary['corruption_accuracy']:.1f} % on average" in text
    assert f"{100 * summary['clean_ece']:.1f} % expected calibration error" in text
    assert re.search(r"machine +[\d,.e+]+ images/s and worker, at most [\d,]+ MB", text)
    names = {"clean_ece", "corruption_accuracy", "corruption_accuracy_contrast", "images_per_second",
             "peak_memory_megabytes"}  # fmt: skip
    assert names <= run.points[0].keys()


def test_an_evaluation_of_an_earlier_version_is_shown_without(evaluated, tmp_path):
    """Its summary has neither calibration nor corruptions, its manifest no cost; all of it can be read."""
    older = shutil.copytree(evaluated.out, tmp_path / "older")
    manifest = json.loads((older / "manifest.json").read_text())
    del manifest["machine_cost"]
    for name in ("pgd_restarts", "corruptions"):
        del manifest["config"][name]
    for name in ("clean_ece", "corruption_accuracy", "corruptions"):
        del manifest["summary"][name]
    (older / "manifest.json").write_text(json.dumps(manifest))
    (older / "summary.json").write_text(json.dumps(manifest["summary"]))
    facts = inspect(path=str(older), verify=True)
    text = to_text(facts)

    assert [entry["problems"] for entry in facts["verified"]] == [[]]
    assert "clean" in text
    assert not {word for word in ("calibration", "corrupted ", "machine ") if f"  {word}" in text}
    assert "clean_ece" not in describe_evaluation(evaluated, str(older)).points[0]


def test_the_plan_counts_what_is_classified():
    """Once clean and once per corruption and severity; every eps from every start."""
    config = EvaluateConfig(checkpoint="c", dataset="d", out="o", attack=("fgsm", "pgd20"), eval_eps=(0.1, 0.2),
                            pgd_restarts=3, corruptions=("contrast", "brightness"))  # fmt: skip

    assert {work.task: work.images for work in attack_works(config, 100)} == {"clean": 1100, "fgsm": 200, "pgd20": 600}
