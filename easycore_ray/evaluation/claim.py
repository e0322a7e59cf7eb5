"""A claim of robustness in the form that RobustBench asks for (https://github.com/RobustBench/robustbench).

Takes a finished evaluation with AutoAttack, gives the content of a ``model_info`` file: the fields of ``ModelInfo`` in
robustbench/utils.py as its files have them (numbers as text, accuracies in percent with two digits, eps as ``8/255``),
and ``threat_model``, which RobustBench holds in the name of the folder, model_info/DATASET/THREAT_MODEL/NAME.json.
"""

from typing import Any

from easycore_ray.core.eps import format_eps
from easycore_ray.data.dataset import Dataset
from easycore_ray.engine.extra_data import EXTRA_DATASET
from easycore_ray.evaluation.threats import AUTOATTACK
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Artifact
from easycore_ray.storage.errors import EasyCoreError

TO_FILL_IN = ("name", "authors", "link", "venue", "reported")
"""Empty in a new claim: title, authors and address of the paper, where it appeared, and the accuracy it reports."""
_ARCHITECTURES = {
    "resnet18": "ResNet-18",
    "preactresnet18": "PreActResNet-18",
    "preactresnet18-nobn": "PreActResNet-18",
    "preactresnet18-fast": "PreActResNet-18",
    "wrn-28-10": "WideResNet-28",
    "wrn-34-10": "WideResNet-34",
    "resnet18-imagenet": "ResNet-18",
    "resnet50-imagenet": "ResNet-50",
}
_THREAT_MODELS = {"linf": "Linf", "l2": "L2"}
_CIFAR10 = {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"}
_SOURCES = {"torchvision:CIFAR10": "cifar10", "torchvision:CIFAR100": "cifar100"}


def check_claim(path: str) -> dict[str, Any]:
    """What a file of a claim holds already; empty if there is none. To be called before hours of AutoAttack.

    Raises:
        EasyCoreError: something else is there, which is not overwritten.
    """
    if not paths.exists(path):
        return {}
    if paths.is_dir(path):
        raise EasyCoreError(f"--claim {path} is a folder; pass the name of a JSON file")
    found = paths.read_json(path)
    if not isinstance(found, dict) or "autoattack_acc" not in found:
        raise EasyCoreError(f"--claim {path} is there and is no claim; choose another file, or remove it")
    return found


def write_claim(path: str, evaluation: Artifact, attacked: Artifact, dataset: Dataset) -> list[str]:
    """Write the claim; what was filled in by hand in a file that is there already is kept.

    Returns:
        Names of the fields that are left to fill in.
    """
    before = check_claim(path)
    content = make_claim(evaluation, attacked, dataset)
    content |= {name: before[name] for name, value in content.items() if value == "" and name in before}
    kept = {name: value for name, value in before.items() if name not in ("external", *content)}
    paths.write_json(path, content | kept)
    return [name for name, value in content.items() if value == "" and name != "footnote"]


def make_claim(evaluation: Artifact, attacked: Artifact, dataset: Dataset) -> dict[str, Any]:
    """The content of a claim: what is known is measured, what is not is an empty text.

    ``external`` is there if another attack left less than AutoAttack alone: the share that withstood all.

    Args:
        evaluation: a finished one, of AutoAttack at one eps.
        attacked: the checkpoint, or the file of weights, that it attacked.
        dataset: the images.
    """
    summary, config = evaluation.manifest["summary"], evaluation.manifest["config"]
    accuracies = {row["attack"]: row["accuracy"] for row in summary["robust"]}
    autoattack, worst = accuracies[AUTOATTACK], summary["robust_accuracy"]
    content: dict[str, Any] = dict.fromkeys(TO_FILL_IN, "") | {
        "dataset": _dataset_name(dataset),
        "threat_model": _THREAT_MODELS[config["norm"]],
        "eps": format_eps(summary["robust"][0]["eps"]),
        "clean_acc": _percent(summary["clean_accuracy"]),
        "autoattack_acc": _percent(autoattack),
        "additional_data": _additional_data(attacked, dataset),
        "number_forward_passes": 1,
        "architecture": _architecture(attacked.manifest["model"]),
        "footnote": _footnote(summary["num_samples"], dataset),
        "unreliable": bool(summary["suspicious"]),
    }
    return content | ({"external": _percent(worst)} if worst < autoattack else {})


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _dataset_name(dataset: Dataset) -> str:
    """RobustBench's name of the dataset, by where it came from or its classes; empty for others."""
    if {str(name).lower() for name in dataset.manifest["classes"]} == _CIFAR10:
        return "cifar10"
    return _SOURCES.get(dataset.manifest["config"].get("source", ""), "")


def _additional_data(attacked: Artifact, dataset: Dataset) -> bool | str:
    """False for a checkpoint that saw this dataset's training split alone, True for one that saw extra data as well.

    Unknown, and empty, for other weights.
    """
    parents = attacked.manifest.get("parents", {})
    if EXTRA_DATASET in parents:
        return True
    trained_on = parents.get("dataset", {}).get("fingerprint")
    return False if trained_on == dataset.fingerprint and "init_from" not in parents else ""


def _architecture(model: dict[str, Any]) -> str:
    """The network as RobustBench writes it, wide ones with their factor; others by their name here."""
    name = _ARCHITECTURES.get(model["name"], model["name"].removeprefix("timm:"))
    return f"{name}-{model['width']}" if name.startswith("Wide") else name


def _footnote(images: int, dataset: Dataset) -> str:
    """That only a part of the test images was attacked."""
    total = dataset.num_rows("test")
    return "" if images == total else f"AutoAttack on {images:,} of the {total:,} test images."
