"""How many images a device gets through in a second: the measured figures that dry runs assume, and how they scale.

The figures are those of docs/speed.md. Work that was not measured itself follows from the measured work on the same
device and network by the number of forward passes; a device or network that was not measured has no figure. No torch.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from easycore_ray.config.fields import ADVERSARIAL
from easycore_ray.config.work_plan import Estimate

_CPU = "2 threads of an AMD EPYC with AVX-512 and bf16 units, torch 2.14, 2026-11-26"
_GPU = "one NVIDIA H100, torch 2.11, 2026-11-27"
# docs/speed.md, "What bounds it": a backward pass to the input costs as much as a forward pass, a full one twice that.
_STANDARD, _TRADES = 3, 27
# README.md, "The code": fused scores and an exact pass against a plain training epoch, with AVX-512.
_FUSED, _EXACT = 1.04 * _STANDARD, 0.80 * _STANDARD
# What the figures below were measured with: 10 attack steps of TRADES.
_PASSES = {"standard": _STANDARD, "trades": _TRADES}


@dataclass(frozen=True)
class Work:
    """Images that go through a network in one way."""

    task: str
    """standard, trades, pgd, mart or nfgsm training; fused or exact scoring; validation; clean, fgsm, pgd20 or
    autoattack evaluation."""
    images: int
    attack_steps: int = 0
    """Gradient steps of the attack in training, validation or exact scoring."""
    perturbs: bool = False
    """Whether weights are perturbed, which takes the passes of the update once more."""

    @property
    def kind(self) -> tuple[str, int, bool]:
        """What an image costs the same for."""
        return self.task, self.attack_steps, self.perturbs

    @property
    def forward_passes(self) -> float | None:
        """Cost of an image in forward passes; None where it depends on the model (autoattack)."""
        passes = {
            "standard": _STANDARD,
            "trades": 2.0 * self.attack_steps + 7,
            "pgd": 2.0 * self.attack_steps + _STANDARD,
            "mart": 2.0 * self.attack_steps + 2 * _STANDARD,
            "nfgsm": 2.0 + _STANDARD,
            "fused": _FUSED,
            # The start and every iterate are classified, the last without a gradient.
            "exact": _EXACT + (2.0 * self.attack_steps + 1 if self.attack_steps else 0),
            "validation": 2.0 * self.attack_steps + 1,
            "clean": 1,
            "fgsm": 3,
            "pgd20": 41,
        }
        found = passes.get(self.task)
        # The pass that finds the perturbation has no gradient to the input, but is otherwise an update's.
        forwards = 2 if self.task in ("trades", "mart") else 1
        return found + forwards * _STANDARD if found is not None and self.perturbs else found

    @property
    def in_training(self) -> bool:
        """Whether it is done while training, in its precision."""
        return self.task in ("standard", *ADVERSARIAL, "validation", "fused", "exact")

    @property
    def name(self) -> str:
        """What is done, for people."""
        if self.task == "validation":
            return self.task
        if self.task in ("fused", "exact"):
            return f"{self.task} scoring{' under attack' if self.attack_steps else ''}"
        return f"{self.task} {'training' if self.in_training else 'evaluation'}"


@dataclass(frozen=True)
class Network:
    """What decides the cost of an image."""

    model: str
    width: int | None
    """Channels of the first block; None: the network's own default."""
    image_shape: tuple[int, int, int]
    device: str
    """cpu or cuda."""
    precision: str = "fp32"
    compile: bool = False

    def __str__(self) -> str:
        width = "" if self.width is None else f" of width {self.width}"
        shape = "x".join(map(str, self.image_shape))
        how = f", {self.precision}{', --compile' if self.compile else ''}"
        return f"{self.model}{width} on images of {shape} on a {'GPU' if self.device == 'cuda' else 'CPU'}{how}"


@dataclass(frozen=True)
class Figure:
    """A measured rate: ResNet-18 on images of 3 x 32 x 32."""

    device: str
    width: int
    task: str
    precision: str
    compile: bool
    batch_size: int
    images_per_second: float
    conditions: str


FIGURES = (
    Figure("cpu", 16, "trades", "fp32", False, 128, 154.6, _CPU),
    Figure("cpu", 16, "trades", "fp32", True, 128, 169.2, _CPU),
    Figure("cpu", 16, "trades", "bf16", False, 128, 272.2, _CPU),
    Figure("cpu", 16, "trades", "bf16", True, 128, 230.6, _CPU),
    Figure("cpu", 16, "standard", "fp32", False, 128, 1347.8, _CPU),
    Figure("cpu", 16, "autoattack", "fp32", False, 30, 100 / 112, _CPU.replace("2 threads", "1 thread")),
    Figure("cuda", 64, "trades", "fp32", False, 128, 2482.0, _GPU),
    Figure("cuda", 64, "trades", "bf16", False, 128, 4932.0, _GPU),
    Figure("cuda", 64, "trades", "bf16", True, 128, 5577.0, _GPU),
    Figure("cuda", 64, "standard", "fp32", False, 128, 11004.0, _GPU),
    Figure("cuda", 64, "trades", "fp32", False, 512, 2909.0, _GPU),
    Figure("cuda", 64, "trades", "fp32", True, 512, 4179.0, _GPU),
    Figure("cuda", 64, "trades", "bf16", False, 512, 6108.0, _GPU),
    Figure("cuda", 64, "trades", "bf16", True, 512, 5251.0, _GPU),
)

Rates = Callable[[Work], tuple[float | None, str]]
"""Images per second of a worker for a kind of work (None: no figure), and where the figure comes from."""


def assumed_rates(network: Network, batch_size: int = 128) -> Rates:
    """Rates of the table for a network; those with the nearest batch size where there are several."""

    def rate(work: Work) -> tuple[float | None, str]:
        measured = [figure for figure in FIGURES if _same(figure, network)]
        passes = work.forward_passes
        own = [figure for figure in measured if figure.task == work.task and _PASSES.get(figure.task) == passes]
        if own:
            found = _nearest(own, batch_size)
            return found.images_per_second, f"assumed: {found.conditions}, batch {found.batch_size}, docs/speed.md"
        others = [figure for figure in measured if figure.task in ("standard", "trades")]
        if passes is None or not others:
            return None, f"there is no figure for {network}; measure it (--measure)"
        # Long work scales from long work.
        near = [figure for figure in others if figure.task == ("trades" if passes > 2 * _STANDARD else "standard")]
        found = _nearest(near or others, batch_size)
        source = f"assumed: {found.conditions}, docs/speed.md, scaled from {found.task} training by forward passes"
        return found.images_per_second * _PASSES[found.task] / passes, source

    return rate


def estimates_of(works: Iterable[Work], rates: Rates, workers: int) -> tuple[Estimate, ...]:
    """An estimate for each kind of work that has images, those of one kind together."""
    together: dict[tuple[str, int, bool], Work] = {}
    for work in works:
        before = together[work.kind].images if work.kind in together else 0
        together[work.kind] = replace(work, images=before + work.images)
    found = []
    for work in together.values():
        if work.images:
            rate, source = rates(work)
            found.append(Estimate(
                work=work.name, images=work.images, images_per_second=rate, workers=workers, source=source
            ))  # fmt: skip
    return tuple(found)


# Parameters of the built-in networks at their own width, in millions (10 classes), by which checkpoints are sized.
_PARAMETERS = {
    "cnn": (16, 0.024),
    "resnet18": (64, 11.17),
    "preactresnet18": (64, 11.17),
    "preactresnet18-nobn": (64, 11.17),
    "preactresnet18-fast": (64, 11.17),
    "wrn-28-10": (10, 36.48),
    "wrn-34-10": (10, 46.16),
    "resnet18-imagenet": (64, 11.18),
    "resnet50-imagenet": (64, 23.53),
}


def checkpoint_bytes(model: str, width: int | None) -> int | None:
    """Size of a checkpoint of last and best weights in float32; None for a network of others."""
    if model not in _PARAMETERS:
        return None
    own, millions = _PARAMETERS[model]
    return int(2 * 4 * millions * 1e6 * ((width or own) / own) ** 2)


def device_of(gpus_per_worker: float) -> str:
    """Where workers compute."""
    return "cuda" if gpus_per_worker else "cpu"


def network_of(config: Any, image_shape: tuple[int, int, int]) -> Network:
    """What decides the cost of an image in a training or scoring run; ``image_shape`` is (C, H, W)."""
    device = device_of(config.gpus_per_worker)
    return Network(config.model, config.width, image_shape, device, config.precision, config.compile)


def _same(figure: Figure, network: Network) -> bool:
    width = 64 if network.width is None else network.width  # ResNet-18's own
    return (
        (network.model, width, network.image_shape) == ("resnet18", figure.width, (3, 32, 32))
        and figure.device == network.device
        and (figure.precision, figure.compile) == (network.precision, network.compile)
    )


def _nearest(figures: list[Figure], batch_size: int) -> Figure:
    return min(figures, key=lambda figure: abs(figure.batch_size - batch_size))
