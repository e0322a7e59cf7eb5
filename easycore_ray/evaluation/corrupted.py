"""Accuracy on corrupted images: outcomes of a shard, and their summary."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from easycore_ray.core.loop import prepare_inputs
from easycore_ray.core.memory import RowLimit
from easycore_ray.core.names import SEVERITIES
from easycore_ray.core.passes import predicted_right
from easycore_ray.data.corruptions import corrupt
from easycore_ray.data.samples import Samples
from easycore_ray.evaluation.threats import Threats, corruption_column


def corrupted_outcomes(
    model: nn.Module, rows: Samples, threats: Threats, *, device: str, limit: RowLimit
) -> dict[str, np.ndarray]:
    """Whether each corrupted image is classified right: bool (B,) by the name of its column.

    Args:
        model: returns logits, on the device.
        rows: images uint8 (B, C, H, W) with ids and labels int64 (B,).
        threats: corruptions and seed.
        device: ``cpu`` or ``cuda``.
        limit: images that go through the model at once.
    """
    labels = rows.labels.to(device)
    found = {}
    for name in threats.corruptions:
        for severity in SEVERITIES:
            images = corrupt(name, severity, rows.images, rows.sample_ids, threats.seed)
            right = predicted_right(model, prepare_inputs(images, torch.device(device)), labels, limit)
            found[corruption_column(name, severity)] = right.cpu().numpy()
    return found


def summarise_corruptions(outcomes: pa.Table, threats: Threats) -> dict[str, Any]:
    """``corruption_accuracy``, the mean over corruptions and severities, and ``corruptions``: each; {} without any.

    Each entry: ``corruption``, ``accuracy`` (mean over severities) and ``by_severity``, five accuracies from mild to
    severe, in [0, 1].
    """
    if not threats.corruptions:
        return {}
    each: list[dict[str, Any]] = []
    for name in threats.corruptions:
        right = [outcomes[corruption_column(name, severity)].to_numpy() for severity in SEVERITIES]
        by_severity = [float(column.mean()) for column in right]
        each.append({"corruption": name, "accuracy": fmean(by_severity), "by_severity": by_severity})
    return {"corruption_accuracy": fmean(entry["accuracy"] for entry in each), "corruptions": each}


def corruption_text(summary: Mapping[str, Any]) -> str:
    """``61.5 % on average: gaussian_noise 50.2 %, contrast 72.8 %``; of a summary that has corruptions."""
    each = ", ".join(f"{entry['corruption']} {100 * entry['accuracy']:.1f} %" for entry in summary["corruptions"])
    return f"{100 * summary['corruption_accuracy']:.1f} % on average: {each}"
