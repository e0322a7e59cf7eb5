"""What stopping trials early saves, and what it costs: a full grid and the same with --scheduler asha, seed by seed.

For each seed both sweeps are run anew. Of each the coreset is taken that does best on the validation split after the
last epoch, all data left out, which no sweep stops; printed are its robust accuracy on the test split, and the seconds
of training and validation on all devices, those of stopped trials and of all data included.

    python tests/benchmarks/bench_asha.py --out runs/asha
"""

import argparse

from easycore_ray import prepare, score, sweep
from easycore_ray.config.base import from_dict
from easycore_ray.config.experiments import SweepConfig
from easycore_ray.experiments.comparison_rules import compared_by
from easycore_ray.experiments.finished_trials import read_finished
from easycore_ray.experiments.search_points import sweep_trials
from easycore_ray.experiments.trials import FULL

RECIPE = dict(model="cnn", augment="crop", crop_pad=1, batch_size=32, tracking_uri="none")
GRID = dict(
    method=("easycore", "easycore/class", "random", "hardest"), fraction=(0.1, 0.2, 0.3, 0.4, 0.5, 0.7),
    training=("trades",), beta=(6.0,), eps=0.125, eval_eps=(0.125,), attack_steps=3, val_attack_steps=3,
)  # fmt: skip


def best_coreset(made):
    """(name, validation, test) of the coreset that is ahead in validation; robust accuracies in per cent."""
    trials = [trial for trial in sweep_trials(from_dict(SweepConfig, made.manifest["config"]), made.path)
              if trial.arm != FULL]  # fmt: skip
    found = []
    for each in read_finished(trials).values():
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
        for kind, made in (("grid", grid), ("asha", asha)):
            name, validation, test = best_coreset(made)
            counts, seconds = made.manifest["counts"], made.manifest["device_seconds"]
            print(
                f"seed {seed} {kind}: {counts['trials']} finished, {counts.get('stopped', 0)} stopped, {seconds:.1f} "
                f"device-seconds; best {name}: validation {validation:.1f} %, test {test:.1f} %"
            )
        ratio = asha.manifest["device_seconds"] / grid.manifest["device_seconds"]
        print(f"seed {seed}: device-seconds {100 * ratio:.0f} % of the grid's", flush=True)


if __name__ == "__main__":
    main()
