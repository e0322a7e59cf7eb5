"""State dicts that others saved: unwrapped, brought into the names of our networks, and checked tensor by tensor.

Takes what a file held, gives the weights of a network and, where the file brings one, the normalisation. Read so far:

- TRADES (yaodongyu/TRADES, models/wideresnet.py) and the WideResNet of RobustBench: ``conv1``,
  ``block1.layer.0.{bn1,conv1,bn2,conv2,convShortcut}``, ``bn1``, ``fc``, and ``sub_block1``, which is never used.
- Bag of Tricks for AT (P2333/Bag-of-Tricks-for-AT) and robust_overfitting (locuslab/robust_overfitting):
  ``{"state_dict": …}`` of a ``DataParallel`` network, so with ``module.`` before each name; the networks are TRADES'
  WideResNet and a PreActResNet-18 with a last batch norm ``bn``.
- pytorch-cifar (kuangliu/pytorch-cifar, main.py, models/resnet.py, models/preact_resnet.py): ``{"net": …}``,
  ``conv1``, ``layer1.0.{conv1,bn1,conv2,bn2}``, ``shortcut.0``, ``linear``.
- RobustBench (robustbench/utils.py, model_zoo/cifar10.py): prefixes ``module.`` and ``model.``, ``{"last": …}``, and
  the normalisation as buffers ``mu`` and ``sigma``, or ``normalize.mean`` and ``normalize.std``.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from easycore_ray.core.models import BasicBlock, PreActBlock

WRAPPERS = ("state_dict", "model_state_dict", "net", "model", "last")
"""Keys under which training scripts keep a state dict among other things, first come first."""

# After the prefix that all names share: mean and std of a layer before the network.
_NORM = re.compile(r"(?:(?:normali[sz]er?|norm|0)\.)?(?:(?P<mean>mean|mu)|(?P<std>std|sigma))")
_PREACT = {"activation.0": "bn1", "residual.0": "conv1", "residual.1": "bn2", "residual.3": "conv2"}
_BASIC = {"residual.0": "conv1", "residual.1": "bn1", "residual.3": "conv2", "residual.4": "bn2",
          "shortcut.0": "shortcut.0", "shortcut.1": "shortcut.1"}  # fmt: skip
_UNUSED = "sub_block1."
_SHOWN = 3


@dataclass(frozen=True)
class AdoptedWeights:
    """What a state dict of others holds, in our words."""

    tensors: dict[str, Tensor]
    """State dict of the network, float32 where it is of floats."""
    norm: tuple[tuple[float, ...], tuple[float, ...]] | None
    """Mean and std per channel, of pixels in [0, 1], where the file brings them."""


def unwrap(content: Any) -> dict[str, Tensor]:
    """The state dict in what a training script saved.

    Args:
        content: a mapping of names to tensors of any shape, or one that holds it under a key of WRAPPERS.

    Returns:
        The tensors by name; what is no tensor is left out.

    Raises:
        ValueError: there is none; says what is there.
    """
    while isinstance(content, Mapping):
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            found = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
            if found:
                return found
            keys = ", ".join(map(str, list(content)[:10])) or "nothing"
            raise ValueError(f"holds no tensors, but {keys}; a state dict is looked for under {', '.join(WRAPPERS)}")
        content = inner
    kind = type(content).__name__
    raise ValueError(f"holds a {kind}, no state dict; save one with torch.save(model.state_dict(), FILE)")


def adopt(tensors: Mapping[str, Tensor], name: str, network: nn.Module) -> AdoptedWeights:
    """Weights for a network, from a state dict with its own names or those of the source it is known from.

    Args:
        tensors: of any shapes, by name; a prefix that all share is dropped.
        name: of the model, see ``models.build_model``.
        network: what they are for, without the normalisation.

    Raises:
        ValueError: they do not fit; names what is missing, unknown or of another shape, in the words of the file.
    """
    own = network.state_dict()
    layouts = [_source_names(name, network, own), {key: key for key in own}]
    norm, found = _split_norm(tensors, {theirs for layout in layouts for theirs in layout.values()})
    layout = max(layouts, key=lambda each: len(found.keys() & set(each.values())))
    if not any(theirs.startswith(_UNUSED) for theirs in layout.values()):
        found = {key: tensor for key, tensor in found.items() if not key.startswith(_UNUSED)}
    # Releases of PyTorch before 0.4.1 counted no batches; evaluation does not use the count.
    optional = {theirs for theirs in layout.values() if theirs.endswith("num_batches_tracked")}
    shapes = {theirs: tuple(own[key].shape) for key, theirs in layout.items()}
    if problems := _differences(found, shapes, optional):
        raise ValueError(f"does not fit {name}: {'; '.join(problems)}; {_advice(name, found, shapes)}")
    weights = {
        key: found[theirs].to(own[key].dtype) if theirs in found else torch.zeros_like(own[key])
        for key, theirs in layout.items()
    }
    return AdoptedWeights(weights, _read_norm(norm))


def _source_names(name: str, network: nn.Module, own: Iterable[str]) -> dict[str, str]:
    """What the source of a built-in network calls its tensors, by our names; our own names for other networks."""
    children = dict(network.named_children())
    blocks = [key for key, child in children.items() if isinstance(child, BasicBlock | PreActBlock)]
    if not blocks:
        return {key: key for key in own}
    wide = name.startswith("wrn")
    per_stage = len(blocks) // (3 if wide else 4)
    modules: dict[str, str] = {}
    for position, key in enumerate(blocks):
        stage, number = position // per_stage + 1, position % per_stage
        theirs = f"block{stage}.layer.{number}" if wide else f"layer{stage}.{number}"
        inside = _BASIC if isinstance(children[key], BasicBlock) else _PREACT | {
            "shortcut": "convShortcut" if wide else "shortcut.0"
        }  # fmt: skip
        modules |= {f"{key}.{ours}": f"{theirs}.{module}" for ours, module in inside.items()}
    for key, child in children.items():
        if isinstance(child, nn.Conv2d):
            modules[key] = "conv1"
        elif isinstance(child, nn.Linear):
            modules[key] = "fc" if wide else "linear"
        elif isinstance(child, nn.BatchNorm2d):
            modules[key] = "bn1" if wide or isinstance(children[blocks[0]], BasicBlock) else "bn"
    return {key: f"{modules[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}" for key in own}


def _split_norm(tensors: Mapping[str, Tensor], known: set[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The normalisation's tensors, and the network's without the prefix that their names share."""
    norm: dict[str, Tensor] = {}
    rest = dict(tensors)
    for found in _fewer_words(tensors):
        norm = {key: tensor for key, tensor in found.items() if key not in known and _NORM.fullmatch(key)}
        if norm:
            rest = {key: tensor for key, tensor in found.items() if key not in norm}
            break
    return norm, next((found for found in _fewer_words(rest) if found.keys() & known), rest)


def _fewer_words(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The tensors by name, then without the first word, as long as it is one that all names share."""
    found = dict(tensors)
    yield found
    while len({key.partition(".")[0] for key in found}) == 1 and all("." in key for key in found):
        found = {key.partition(".")[2]: tensor for key, tensor in found.items()}
        yield found


def _differences(found: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], optional: set[str]) -> list[str]:
    """What a state dict lacks, has too much, or has in another shape, a phrase each."""
    problems = []
    if missing := [key for key in shapes if key not in found and key not in optional]:
        problems.append(f"it lacks {_listed(missing)}")
    if unknown := [key for key in found if key not in shapes]:
        problems.append(f"it has {_listed(unknown)}, which the network has not")
    other = [key for key in shapes if key in found and tuple(found[key].shape) != shapes[key]]
    problems += [f"{key} is of shape {tuple(found[key].shape)}, in the network {shapes[key]}" for key in other[:_SHOWN]]
    if len(other) > _SHOWN:
        problems.append(f"{len(other) - _SHOWN} more are of other shapes")
    return problems


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _advice(name: str, found: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What to do: another of the PreActResNets, where the last batch norm is all that differs."""
    if {key.partition(".")[0] for key in found.keys() ^ shapes.keys()} == {"bn"}:
        if name == "preactresnet18":
            return "pass --model preactresnet18-nobn (pytorch-cifar) or preactresnet18-fast (Wong et al. 2020)"
        return "pass --model preactresnet18, which has a last batch norm"
    return "check --model, --width, and the classes of the dataset"


def _read_norm(norm: Mapping[str, Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and std of a normalisation, if both are there."""
    values: dict[str, tuple[float, ...]] = {}
    for key, tensor in norm.items():
        matched = _NORM.fullmatch(key)
        assert matched is not None
        values["mean" if matched["mean"] else "std"] = tuple(tensor.double().flatten().tolist())
    return (values["mean"], values["std"]) if len(values) == 2 else None
