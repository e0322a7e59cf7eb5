"""What stopping trials early saves, and what it costs: a full grid and the same with --scheduler asha, seed by seed.

For each seed both sweeps are run anew. Of each the coreset is taken that does best on the validation split after the
last epoch, all data left out, which no sweep stops; printed are its robust accuracy on the test split, and what the
sweep cost, stopped trials and all data included: optimizer steps, and seconds of training and validation on all
devices, which compare only where nothing else runs meanwhile. Finished sweeps are not run again.

    python tests/benchmarks/bench_asha.py --out runs/asha
"""

import argparse

from easycore_ray import prepare, score, sweep
from easycore_ray.config.base import from_dict
from easycore_ray.config.experiments import SweepConfig
from easycore_ray.experiments.comparison_rules import SHARE, WHOLE, compared_by
from easycore_ray.experiments.finished_trials import read_finished
from easycore_ray.experiments.search_points import sweep_trials
from easycore_ray.experiments.stopped_trials import read_stop
from easycore_ray.experiments.trials import FULL

RECIPE = dict(model="cnn", augment="crop", crop_pad=1, batch_size=32, tracking_uri="none")
GRID = dict(
    method=("easycore", "easycore/class", "random", "hardest"), fraction=(0.1, 0.2, 0.3, 0.4, 0.5, 0.7),
    training=("trades",), beta=(6.0,), eps=0.125, eval_eps=(0.125,), attack_steps=3, val_attack_steps=3,
)  # fmt: skip


def cost(trials):
    """Optimizer steps of finished and stopped trials."""
    finished = read_finished(trials)
    steps = sum(each.checkpoint.manifest["steps"] for each in finished.values())
    return steps + round(sum(trial.train.steps * note[SHARE] / WHOLE for trial in trials if (note := read_stop(trial))))


def best_coreset(trials):
    """(name, validation, test) of the coreset that is ahead in validation; robust accuracies in per cent."""
    found = []
    for each in read_finished(trial for trial in trials if trial.arm != FULL).values():
        validation = each.checkpoint.manifest["epochs"][-1][compared_by(each.trial.training)]
        found.append((validation, each.trial.name, each.summaries["last"]["robust"][-1]["accuracy"]))
    validation, name, test = max(found)
    return name, 100 * validation, 100 * test


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=120)
    options = parser.parse_args()
    dataset = prepare(source="digits", val_fraction=0.1, out=f"{options.out}/dataset").path
    scores = score(dataset=dataset, out=f"{options.out}/scores", epochs=5, num_workers=1, **RECIPE).path
    for seed in options.seeds:
        fields = dict(dataset=dataset, scores=scores, seeds=(seed,), steps=options.steps, **RECIPE, **GRID)
        grid = sweep(out=f"{options.out}/grid-{seed}", **fields)
        asha = sweep(out=f"{options.out}/asha-{seed}", scheduler="asha", **fields)
        steps = {}
        for kind, made in (("grid", grid), ("asha", asha)):
            trials = sweep_trials(from_dict(SweepConfig, made.manifest["config"]), made.path)
            steps[kind], (name, validation, test) = cost(trials), best_coreset(trials)
            counts, seconds = made.manifest["counts"], made.manifest["device_seconds"]
            print(
                f"seed {seed} {kind}: {counts['trials']} finished, {counts.get('stopped', 0)} stopped, {steps[kind]:,} "
                f"steps, {seconds:.1f} device-seconds; best {name}: validation {validation:.1f} %, test {test:.1f} %"
            )
        seconds = asha.manifest["device_seconds"] / grid.manifest["device_seconds"]
        print(f"seed {seed}: {100 * steps['asha'] / steps['grid']:.0f} % of the grid's steps, {100 * seconds:.0f} % of "
              "its device-seconds", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
