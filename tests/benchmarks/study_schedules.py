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
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from easycore_ray.config.stages import ScoreConfig
from easycore_ray.core.metrics import overlap, spearman
from easycore_ray.core.selection import lowest
from easycore_ray.data.dataset import open_dataset
from easycore_ray.data.samples import read_split
from easycore_ray.engine.plan import Fit, make_training_plan, model_arguments
from easycore_ray.engine.run import fit_here
from easycore_ray.engine.worker_group import Context, LocalContext
from easycore_ray.runtime.console import say


class KeepBoth:
    """A ``Recorder`` that keeps both kinds of gradient norms of each epoch, in id order."""

    def __init__(self) -> None:
        self.fused: list[np.ndarray] = []
        self.exact: list[np.ndarray] = []

    def records_steps(self, epoch: int) -> bool:
        """See ``engine.run.Recorder``."""
        return epoch > 0

    def exact_pass(self, epoch: int, carried: dict[str, Any]) -> int | None:
        """See ``engine.run.Recorder``; exact scores are told from fused ones by a negative epoch."""
        return -epoch if epoch else None

    def record(self, context: Context, columns: dict[str, np.ndarray], *, epoch: int, **options: Any) -> None:
        """See ``engine.run.Recorder``; an epoch has one segment."""
        kept = self.fused if epoch > 0 else self.exact
        kept.append(columns["grad_norm"][np.argsort(columns["sample_id"])])

    def complete(self, context: Context, epoch: int, carried: dict[str, Any]) -> dict[str, float]:
        """See ``engine.run.Recorder``."""
        say(f"  epoch {abs(epoch)}: {'fused' if epoch > 0 else 'exact'} scores")
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
            dataset=dataset.path, coreset=None, num_rows=len(rows.labels), model=model_arguments(config, dataset),
            plan=make_training_plan(config, total_steps=steps), epochs=epochs,
            batch_size=config.batch_size, segment_images=len(rows.labels), commit_minutes=10.0, cache_gib=8,
            threads=options.threads, record_scores=True,
        )  # fmt: skip
        keep = KeepBoth()
        state = fit_here(fit, rows, LocalContext(), keep)
        temporary = path.with_suffix(".tmp.npz")
        np.savez(
            temporary,
            fused=np.stack(keep.fused),
            exact=np.stack(keep.exact),
            pass_seconds=[entry["score_seconds"] for entry in state.history],
            train_seconds=[entry["train_seconds"] for entry in state.history],
            val_accuracy=state.history[-1]["val_accuracy"],
            width=options.width,
        )
        temporary.rename(path)


# A fused step against a plain one: bench_steps.py on the same machine.
FUSED_COST = 1.04


@dataclass(frozen=True)
class Run:
    """A recorded run: gradient norms of every epoch, float32 (E, N) of each kind, and seconds."""

    fused: np.ndarray
    exact: np.ndarray
    train_seconds: float
    pass_seconds: np.ndarray

    def cost(self, passes: int, *, fused: bool) -> float:
        """Seconds of the run with this many exact passes; training was recorded with fused scores on."""
        training = self.train_seconds / (1.0 if fused else FUSED_COST)
        return training + float(self.pass_seconds.mean()) * passes


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

    def cost(self, run: Run) -> float:
        """Seconds of a run that is scored so."""
        return run.cost(self.passes, fused="fused" in self.name)


def schedules(epochs: int) -> list[Schedule]:
    """Every schedule that a long run holds."""
    exact = {f"every {every}": [at - 1 for at in range(epochs, 0, -every)] for every in (2, 4)}
    exact |= {"last epoch only": [epochs - 1]}
    exact |= {f"first {count}": list(range(count)) for count in (1, 2, epochs // 2)}
    return [
        Schedule("exact, every epoch", lambda run: run.exact.mean(0), epochs),
        *(Schedule(f"exact, {name}", lambda run, at=at: run.exact[at].mean(0), len(at)) for name, at in exact.items()),
        Schedule("fused, every epoch", lambda run: run.fused.mean(0), 0),
        Schedule("fused, last half", lambda run: run.fused[epochs // 2 :].mean(0), 0),
        Schedule("fused, and exact at the end", fused_and_exact, 1),
    ]


def fused_and_exact(run: Run) -> np.ndarray:
    """``--score-pass fused+eval``: the exact pass of the final weights counts as one more epoch."""
    return np.concatenate([run.fused, run.exact[-1:]]).mean(0)


def compare(folder: Path) -> list[dict[str, Any]]:
    """Each schedule of one seed against the exact AIGN of every other: agreement, and cost over plain training."""
    long, short = load(folder, "long"), load(folder, "short")
    plain = statistics.mean(run.cost(0, fused=False) for run in long)
    rows = []
    for schedule in schedules(len(long[0].exact)):
        pairs = [(schedule.aign(a), b.exact.mean(0)) for a, b in itertools.permutations(long, 2)]
        cost = statistics.mean(schedule.cost(run) for run in long)
        own = statistics.mean(_overlap(schedule.aign(run), run.exact.mean(0)) for run in long)
        rows.append(_row(schedule.name, cost / plain, pairs) | {"own_run": own})
    ways = {
        "exact": (lambda run: run.exact.mean(0), len(long[0].exact)),
        "fused": (lambda run: run.fused.mean(0), 0),
        "fused, and exact at the end": (fused_and_exact, 1),
    }
    for name, (aign, passes) in ways.items():
        groups = [(pair, [run for run in long if all(run is not one for one in pair)])
                  for pair in itertools.combinations(long, 2)]  # fmt: skip
        rows.append(_several(Schedule(f"{name}, mean of 2 seeds", aign, passes), groups, plain))
    for (name, (aign, passes)), count in itertools.product(ways.items(), (1, 2, 4)):
        name = f"half the epochs: {name}" + (f", mean of {count} seeds" if count > 1 else "")
        groups = [(group, long) for group in itertools.combinations(short, count)]
        rows.append(_several(Schedule(name, aign, passes if passes < 2 else len(short[0].exact)), groups, plain))
    return rows


def _several(schedule: Schedule, groups: list[tuple[tuple[Run, ...], list[Run]]], plain: float) -> dict[str, Any]:
    """The mean over the runs of a group against the exact AIGN of the runs it does not hold."""
    means = [(sum(schedule.aign(run) for run in group) / len(group), others) for group, others in groups]
    pairs = [(mean, other.exact.mean(0)) for mean, others in means for other in others]
    cost = statistics.mean(sum(schedule.cost(run) for run in group) for group, _ in groups)
    return _row(schedule.name, cost / plain, pairs)


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


def settling(long: list[Run]) -> list[str]:
    """Epoch by epoch: how much of the easiest half stays, and how well AIGN up to here agrees with another seed's."""
    lines = ["| epoch | exact: half that stays | agreement | fused: half that stays | agreement |",
             "| ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for epoch in range(2, len(long[0].exact) + 1):
        cells = [str(epoch)]
        for kind in ("exact", "fused"):
            before = [getattr(run, kind)[: epoch - 1].mean(0) for run in long]
            now = [getattr(run, kind)[:epoch].mean(0) for run in long]
            pairs = [(now[a], long[b].exact.mean(0)) for a, b in itertools.permutations(range(len(long)), 2)]
            cells.append(f"{statistics.mean(_overlap(a, b) for a, b in zip(before, now, strict=True)):.3f}")
            cells.append(f"{statistics.mean(_overlap(a, b) for a, b in pairs):.3f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


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
    lines += ["", *settling(load(Path(options.folder), "long"))]
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

    figure, axes = pyplot.subplots(figsize=(9, 6), layout="constrained")
    groups = {
        "exact passes": ("tab:blue", "o", lambda name: name.startswith("exact")),
        "fused": ("tab:orange", "s", lambda name: name.startswith("fused")),
        "half the epochs, exact": ("tab:blue", "^", lambda name: name.startswith("half") and "fused" not in name),
        "half the epochs, fused": ("tab:orange", "v", lambda name: name.startswith("half") and "fused" in name),
    }
    for label, (color, marker, belongs) in groups.items():
        mine = [row for row in rows if belongs(row["schedule"])]
        x, y = [100 * row["added_cost"] for row in mine], [row["overlap"] for row in mine]
        spread = [[row["overlap"] - row["lowest"] for row in mine], [row["highest"] - row["overlap"] for row in mine]]
        axes.errorbar(x, y, spread, fmt=marker, color=color, markersize=6, elinewidth=0.7, label=label,
                      markerfacecolor="white" if label.startswith("half") else color)  # fmt: skip
        for row, left, up in zip(mine, x, y, strict=True):
            name = row["schedule"].removeprefix("half the epochs: ").removeprefix("exact, ").removeprefix("fused, ")
            name = name.replace("and exact at the end", "+ exact end").replace("mean of ", "")
            axes.annotate(
                name,
                (left, up),
                xytext=(6, 4 if "end" in name else -10),
                textcoords="offset points",
                fontsize=7,
                color=color,
            )
    yardstick = rows[0]["overlap"]
    axes.axhline(yardstick, color="0.5", linewidth=1, linestyle="--")
    axes.text(0.99, yardstick - 0.001, "exact AIGN of one seed against that of another",
              transform=axes.get_yaxis_transform(), ha="right", va="top", color="0.4", fontsize=8)  # fmt: skip
    axes.set_ylim(0.72, 0.885)
    axes.set_xlabel("added cost over plain training (%)")
    axes.set_ylabel("share of the easiest half in common with another seed's exact AIGN")
    axes.legend(frameon=False, loc="lower right", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
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
