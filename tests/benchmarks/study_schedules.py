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
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from easycore_ray.config import ScoreConfig
from easycore_ray.core.loop import EpochResult, score_epoch
from easycore_ray.core.metrics import overlap, spearman
from easycore_ray.core.selection import lowest
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


@dataclass(frozen=True)
class Run:
    """A recorded run: gradient norms of every epoch, float32 (E, N) of each kind, and seconds."""

    fused: np.ndarray
    exact: np.ndarray
    train_seconds: float
    pass_seconds: np.ndarray

    def cost(self, passes: int) -> float:
        """Seconds of the run with this many exact passes."""
        return self.train_seconds + float(self.pass_seconds.mean()) * passes


def load(folder: Path, kind: str) -> list[Run]:
    """The recorded runs of a kind, by seed."""
    found = []
    for path in sorted(folder.glob(f"{kind}-*.npz")):
        with np.load(path) as content:
            found.append(
                Run(content["fused"], content["exact"], float(content["train_seconds"].sum()), content["pass_seconds"])
            )
    return found


@dataclass(frozen=True)
class Schedule:
    """A way to come by AIGN: from which epochs of which kind, and how many exact passes that takes."""

    name: str
    aign: Callable[[Run], np.ndarray]
    passes: int


def schedules(epochs: int) -> list[Schedule]:
    """Every schedule that a long run holds."""
    last, middle = epochs - 1, epochs // 2 - 1
    exact = {f"every {every}": [at - 1 for at in range(epochs, 0, -every)] for every in (2, 4)}
    exact |= {"last epoch only": [last]}
    exact |= {f"first {count}": list(range(count)) for count in (1, 2, epochs // 2)}
    helped = {"last": [last], "middle and last": [middle, last]}
    return [
        Schedule("exact, every epoch", lambda run: run.exact.mean(0), epochs),
        *(Schedule(f"exact, {name}", lambda run, at=at: run.exact[at].mean(0), len(at)) for name, at in exact.items()),
        Schedule("fused, every epoch", lambda run: run.fused.mean(0), 0),
        Schedule("fused, last half", lambda run: run.fused[middle + 1 :].mean(0), 0),
        *(Schedule(f"fused, with exact {name}", lambda run, at=at: _mean_rank(run.fused.mean(0), run.exact[at].mean(0)),
                   len(at)) for name, at in helped.items()),
    ]  # fmt: skip


def _mean_rank(*scores: np.ndarray) -> np.ndarray:
    """Scores of different scales combined: the mean of their ranks."""
    return sum(np.argsort(np.argsort(score, kind="stable"), kind="stable") for score in scores) / len(scores)


def compare(folder: Path) -> list[dict[str, Any]]:
    """Each schedule of one seed against the exact AIGN of every other: agreement, and cost over plain training."""
    long, short = load(folder, "long"), load(folder, "short")
    plain = statistics.mean(run.train_seconds for run in long)
    rows = []
    for schedule in schedules(len(long[0].exact)):
        pairs = [(schedule.aign(a), b.exact.mean(0)) for a, b in itertools.permutations(long, 2)]
        cost = statistics.mean(run.cost(schedule.passes) for run in long)
        own = statistics.mean(_overlap(schedule.aign(run), run.exact.mean(0)) for run in long)
        rows.append(_row(schedule.name, cost / plain, pairs) | {"own_run": own})
    for kind in ("exact", "fused"):
        groups = [(pair, [run for run in long if all(run is not one for one in pair)])
                  for pair in itertools.combinations(long, 2)]  # fmt: skip
        rows.append(_several(f"{kind}, mean of 2 seeds", kind, groups, plain))
    for kind, count in itertools.product(("exact", "fused"), (1, 2, 4)):
        name = f"{kind}, half the epochs" + (f", mean of {count} seeds" if count > 1 else "")
        groups = [(group, long) for group in itertools.combinations(short, count)]
        rows.append(_several(name, kind, groups, plain))
    return rows


def _several(name: str, kind: str, groups: list[tuple[tuple[Run, ...], list[Run]]], plain: float) -> dict[str, Any]:
    """The mean over the runs of a group against the exact AIGN of the runs it does not hold."""
    means = [(sum(getattr(run, kind).mean(0) for run in group) / len(group), others) for group, others in groups]
    pairs = [(mean, other.exact.mean(0)) for mean, others in means for other in others]
    cost = statistics.mean(sum(run.cost(len(run.exact) * (kind == "exact")) for run in group) for group, _ in groups)
    return _row(name, cost / plain, pairs)


def _row(name: str, cost: float, pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """One line of the table."""
    return {"schedule": name, "added_cost": cost - 1} | _agreement(list(pairs))


def _agreement(pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    overlaps = [_overlap(score, other) for score, other in pairs]
    return {
        "overlap": statistics.mean(overlaps),
        "lowest": min(overlaps),
        "highest": max(overlaps),
        "spearman": statistics.mean(spearman(score, other) for score, other in pairs),
    }


def _overlap(score: np.ndarray, other: np.ndarray) -> float:
    """Share of the easiest half by one score that is in the easiest half by the other."""
    ids, half = np.arange(len(score)), len(score) // 2
    return overlap(lowest(score, ids, half), lowest(other, ids, half))


def show(options: argparse.Namespace) -> None:
    """Print the table; write it and the picture."""
    rows = compare(Path(options.folder))
    lines = [
        "| schedule | added cost | overlap with another seed's exact AIGN (range) | Spearman | with its own |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        own = f"{row['own_run']:.3f}" if "own_run" in row else ""
        lines.append(f"| {row['schedule']} | {row['added_cost']:+.0%} | {row['overlap']:.3f} ({row['lowest']:.3f} to "
                     f"{row['highest']:.3f}) | {row['spearman']:.3f} | {own} |")  # fmt: skip
    say("\n".join(lines))
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "schedules.json").write_text(json.dumps(rows, indent=2) + "\n")
    (out / "schedules.md").write_text("\n".join(lines) + "\n")
    draw(rows, out / "schedules.png")


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Agreement over added cost; the yardstick is the line that exact AIGN itself draws."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5.2), layout="constrained")
    yardstick = rows[0]["overlap"]
    axes.axhline(yardstick, color="0.6", linewidth=1, linestyle="--")
    axes.text(1.0, yardstick, "exact against exact of another seed", transform=axes.get_yaxis_transform(),
              ha="right", va="bottom", color="0.4", fontsize=8)  # fmt: skip
    for row in rows:
        color = "tab:orange" if "fused" in row["schedule"] else "tab:blue"
        axes.errorbar(100 * row["added_cost"], row["overlap"],
                      [[row["overlap"] - row["lowest"]], [row["highest"] - row["overlap"]]],
                      fmt="o", color=color, markersize=5, elinewidth=0.8)  # fmt: skip
        axes.annotate(row["schedule"], (100 * row["added_cost"], row["overlap"]), xytext=(5, 3),
                      textcoords="offset points", fontsize=7)  # fmt: skip
    axes.set_xlabel("added cost over plain training of the long run (%)")
    axes.set_ylabel("overlap of the easiest half")
    axes.set_title("What a scoring schedule costs, and how well it agrees with another seed's exact AIGN", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


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
    showing = commands.add_parser("show", help="compare schedules; print, write and draw")
    showing.add_argument("--out", required=True, help="folder for the table and the picture")
    showing.set_defaults(run=show)
    for command in (recording, showing):
        command.add_argument("--folder", required=True, help="where recorded runs are kept")
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
