"""Accuracy on corrupted images: each outcome, means over severities and corruptions, what shards and readers see."""

import numpy as np
import pytest
import torch
from torch import nn

from easycore_ray.config.stages import EvaluateConfig
from easycore_ray.data.corruptions import corrupt
from easycore_ray.data.samples import Samples
from easycore_ray.evaluation.attack_shards import attack_rows, attack_shard, merge_shards
from easycore_ray.evaluation.corrupted import corruption_text
from easycore_ray.evaluation.evaluate import summarise_outcomes
from easycore_ray.evaluation.threats import check_threats, threats_of
from easycore_ray.evaluation.tracked_evaluation import flat_metrics
from easycore_ray.storage.errors import EasyCoreError


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
