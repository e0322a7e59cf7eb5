"""The files of a checkpoint, and what its manifest says of them; no weights are read."""

from collections.abc import Mapping, Sequence
from typing import Any

LAST, BEST, AVERAGED = "model.safetensors", "best.safetensors", "averaged.safetensors"
"""Files of the weights after the last epoch, after the best one, and of the average over the steps."""


# How much of its accuracy under FGSM a network loses at least under PGD once it has overfitted to single steps.
_OVERFITTED_BY = 0.15


def weights_files(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The files of a checkpoint's weights by what they are, ``last`` first; best and last may share one."""
    found = {"last": LAST} | manifest.get("weights", {})
    return {name: found[name] for name in ("last", "best", "averaged") if name in found}


def best_epoch_text(details: Mapping[str, Any]) -> str:
    """Which epoch of a training run validation chose, and by what."""
    number = details["best_epoch"]
    if number is None:
        return "none chosen, since the dataset has no validation split; there are the weights of the last alone"
    where = details["weights"]["best"]
    which = "the last" if where == details["weights"]["last"] else f"kept as {where} beside the last"
    metric = details["selected_by"].removeprefix("val_").replace("_", " ")
    return f"{number} ({which}), by {metric} on the validation split: {100 * details['best_value']:.1f} %"


def overfitted_epochs(history: Sequence[Mapping[str, float]]) -> list[int]:
    """Epochs after which a network had overfitted to single-step attacks: FGSM leaves much, PGD little of that.

    Catastrophic overfitting (Wong et al. 2020, arXiv 2001.03994): within an epoch the accuracy under PGD falls to
    nearly 0, while that under FGSM rises. Here: less than half of it, and 15 points less.

    Args:
        history: metrics of every epoch; those without both accuracies on the validation split tell nothing.
    """
    found = []
    for entry in history:
        fgsm, pgd = entry.get("val_fgsm_accuracy"), entry.get("val_robust_accuracy")
        if fgsm is not None and pgd is not None and pgd < fgsm / 2 and fgsm - pgd > _OVERFITTED_BY:
            found.append(int(entry["epoch"]))
    return found


def overfitting_text(history: Sequence[Mapping[str, float]]) -> str:
    """What ``overfitted_epochs`` found, in a sentence; empty if it found nothing."""
    epochs = overfitted_epochs(history)
    if not epochs:
        return ""
    last = next(entry for entry in history if entry["epoch"] == epochs[-1])
    fgsm, pgd = 100 * last["val_fgsm_accuracy"], 100 * last["val_robust_accuracy"]
    when = f"epoch {epochs[0]}" if len(epochs) == 1 else f"{len(epochs)} epochs, first {epochs[0]}, last {epochs[-1]}"
    return (
        f"catastrophic overfitting to single-step attacks after {when}: FGSM leaves {fgsm:.1f} % on the validation "
        f"split, PGD {pgd:.1f} %"
    )
