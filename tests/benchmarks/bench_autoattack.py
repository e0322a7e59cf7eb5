"""Seconds that AutoAttack takes per 100 images, and whether the memory layout or folded batch norm change outcomes.

    python tests/benchmarks/bench_autoattack.py --checkpoint runs/model --dataset data/cifar10 --eps 8/255

``library`` runs pyautoattack on the checkpoint as it is loaded, channels first. The others run the same attacks on the
same images with convolutions in channels-last layout, and with batch norm folded into them: the same functions up to
rounding. Variants alternate; seconds are of CPU time, so that others on the machine do not count.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from easycore_ray.core.attacks import frozen_eval
from easycore_ray.core.augment import to_float
from easycore_ray.core.batchnorm_folding import folded
from easycore_ray.core.eps import parse_eps
from easycore_ray.data.dataset import open_dataset
from easycore_ray.data.samples import read_split
from easycore_ray.engine.checkpoint import open_checkpoint
from easycore_ray.evaluation.autoattack import autoattack
from easycore_ray.evaluation.evaluate import evaluation_ids


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="folder of a trained model")
    parser.add_argument("--dataset", required=True, help="folder of the dataset whose test images are attacked")
    parser.add_argument("--eps", type=parse_eps, default=8 / 255, help="perturbation, e.g. 8/255")
    parser.add_argument("--images", type=int, default=50, help="test images")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--repeats", type=int, default=3, help="repeats, alternating")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    dataset = open_dataset(options.dataset)
    rows = read_split(dataset, "test", evaluation_ids(dataset, "test", options.images, 0))
    inputs, labels = to_float(rows.images), rows.labels
    described = open_checkpoint(options.checkpoint)[0].manifest["model"]
    seconds: dict[str, list[float]] = {}
    robust: dict[str, Tensor] = {}
    for _ in range(options.repeats):
        for name, variant in _variants(options.checkpoint).items():
            started = time.process_time()
            robust[name] = variant(inputs, labels, options.eps)
            seconds.setdefault(name, []).append((time.process_time() - started) * 100 / len(labels))
    print(f"{described['name']} width {described['width']}, {len(labels)} images, {options.threads} threads")
    for name, times in seconds.items():
        ratios = [theirs / mine for mine, theirs in zip(times, seconds["library"], strict=True)]
        other = int((robust[name] != robust["library"]).sum())
        print(f"{name:>24}: {statistics.median(times):6.1f} s per 100 images   {statistics.median(ratios):.2f} × "
              f"[{min(ratios):.2f}, {max(ratios):.2f}]   robust {100 * robust[name].float().mean():.1f} %, "
              f"{other} outcomes differ")  # fmt: skip


def _variants(checkpoint: str) -> dict[str, Callable[[Tensor, Tensor, float], Tensor]]:
    """What is compared, by name: a function that tells which images stay right."""

    def variant(layout: torch.memory_format, fold: bool) -> Callable[[Tensor, Tensor, float], Tensor]:
        model = open_checkpoint(checkpoint)[1].to(memory_format=layout)

        def run(inputs: Tensor, labels: Tensor, eps: float) -> Tensor:
            kept = _right(model, inputs, labels)
            with frozen_eval(model), folded(model) if fold else contextlib.nullcontext():
                attacked, _ = autoattack(model, inputs[kept], labels[kept], eps=eps, norm="linf", seed=0)
            kept[kept.clone()] = _right(model, attacked, labels[kept])
            return kept

        return run

    return {
        "library": variant(torch.contiguous_format, False),
        "channels last": variant(torch.channels_last, False),
        "channels last, folded": variant(torch.channels_last, True),
    }


@torch.no_grad()
def _right(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    return model(inputs).argmax(dim=1) == labels


if __name__ == "__main__":
    main()
