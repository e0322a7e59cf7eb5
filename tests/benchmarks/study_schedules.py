"""How cheaply can AIGN be had? Added cost of a scoring schedule against its agreement with exact AIGN.

    python tests/benchmarks/study_schedules.py record --dataset data/cifar10 --folder runs/schedules
    python tests/benchmarks/study_schedules.py show --folder runs/schedules --out docs/schedules

``record`` trains the same recipe with several seeds and keeps, for every epoch, both kinds of scores: the training
steps' own (fused) and the exact pass after the epoch. Every schedule is a choice among these, so ``show`` compares
them all on the same runs. Finished runs are skipped: the command can be stopped and given again.

The yardstick is how well the exact AIGN of one seed agrees with the exact AIGN of another: a schedule that agrees with
another seed's exact AIGN as well as exact AIGN does has lost nothing.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from easycore_ray.config import ScoreConfig
from easycore_ray.core.loop import EpochResult, score_epoch
from easycore_ray.dataset import open_dataset, read_split
from easycore_ray.feeding import Feed
from easycore_ray.fitting import Context, Fit, LocalContext, fit_here, make_plan, model_arguments
from easycore_ray.progress import say


class KeepBoth:
    """After an epoch: both kinds of gradient norms in id order, and what the exact pass took."""

    def __init__(self) -> None:
        self.fused: list[np.ndarray] = []
        self.exact: list[np.ndarray] = []
        self.pass_seconds: list[float] = []

    def __call__(
        self, context: Context, feed: Feed, model: nn.Module, epoch: int, result: EpochResult | None, carried: Any
    ) -> dict[str, float]:
        """See ``fitting.AfterEpoch``."""
        if result is None:
            return {}
        started = time.monotonic()
        exact = score_epoch(model, feed.ordered())
        self.pass_seconds.append(time.monotonic() - started)
        self.exact.append(exact["grad_norm"][np.argsort(exact["sample_id"])])
        self.fused.append(result.scores["grad_norm"][np.argsort(result.scores["sample_id"])])
        say(f"  epoch {epoch}: loss {result.loss_sum / result.num_rows:.3f}")
        return {}


def record(options: argparse.Namespace) -> None:
    """Train every run that is not there yet."""
    dataset = open_dataset(options.dataset)
    rows = read_split(dataset, "train")
    folder = Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    runs = [("long", options.epochs, seed) for seed in range(options.seeds)]
    runs += [("short", options.epochs // 2, 100 + seed) for seed in range(options.short_seeds)]
    for kind, epochs, seed in runs:
        path = folder / f"{kind}-{seed}.npz"
        if path.exists():
            continue
        say(f"{kind} run, {epochs} epochs, seed {seed}")
        config = ScoreConfig(
            out="unused", dataset=options.dataset, width=options.width, epochs=epochs, seed=seed, batch_size=128
        )
        steps = epochs * -(-len(rows.labels) // config.batch_size)
        fit = Fit(
            dataset=dataset.path, sample_ids=None, num_rows=len(rows.labels), model=model_arguments(config, dataset),
            plan=make_plan(config, total_steps=steps), epochs=epochs, batch_size=config.batch_size, cache_gib=8,
            threads=options.threads, record_scores=True,
        )  # fmt: skip
        keep = KeepBoth()
        state = fit_here(fit, rows, LocalContext(), keep)
        temporary = path.with_suffix(".tmp.npz")
        np.savez(
            temporary,
            fused=np.stack(keep.fused),
            exact=np.stack(keep.exact),
            pass_seconds=keep.pass_seconds,
            train_seconds=[entry["train_seconds"] for entry in state.history],
            val_accuracy=state.history[-1]["val_accuracy"],
            width=options.width,
        )
        temporary.rename(path)


def main() -> None:
    """Record runs, or show what they say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="train and keep both kinds of scores of every epoch")
    recording.add_argument("--dataset", required=True, help="prepared CIFAR-10")
    recording.add_argument("--epochs", type=int, default=8, help="epochs of a long run; short runs have half")
    recording.add_argument("--seeds", type=int, default=3, help="long runs")
    recording.add_argument("--short-seeds", type=int, default=4, help="short runs")
    recording.add_argument("--width", type=int, default=8, help="width of the ResNet-18")
    recording.add_argument("--threads", type=int, default=2, help="CPU threads")
    recording.set_defaults(run=record)
    for command in (recording,):
        command.add_argument("--folder", required=True, help="where recorded runs are kept")
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
