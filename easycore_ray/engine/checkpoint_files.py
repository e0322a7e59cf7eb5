"""The files of a checkpoint, and what its manifest says of them; no weights are read."""

from collections.abc import Mapping
from typing import Any

LAST, BEST = "model.safetensors", "best.safetensors"
"""Files of the weights after the last epoch and after the best one."""


def has_only_last(manifest: Mapping[str, Any]) -> bool:
    """Whether a checkpoint has no weights but those after its last epoch: it is the best one, or none was chosen."""
    return BEST not in manifest.get("weights", {}).values()


def best_epoch_text(details: Mapping[str, Any]) -> str:
    """Which epoch of a training run validation chose, and by what."""
    number = details["best_epoch"]
    if number is None:
        return "none chosen, since the dataset has no validation split; there are the weights of the last alone"
    where = details["weights"]["best"]
    which = "the last" if where == details["weights"]["last"] else f"kept as {where} beside the last"
    metric = details["selected_by"].removeprefix("val_").replace("_", " ")
    return f"{number} ({which}), by {metric} on the validation split: {100 * details['best_value']:.1f} %"
