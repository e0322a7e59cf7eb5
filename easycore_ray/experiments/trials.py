"""The trials of a sweep: every arm, fraction, objective and seed, with their configurations and folders."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from easycore_ray.config.arms import Arm, parse_arm
from easycore_ray.config.base import from_dict
from easycore_ray.config.evaluation import EvaluateConfig
from easycore_ray.config.experiments import SweepConfig, stage_config
from easycore_ray.config.fields import ADVERSARIAL, WEIGHTED
from easycore_ray.config.stages import CoresetConfig, ScoreConfig, TrainConfig
from easycore_ray.data.dataset import Dataset
from easycore_ray.engine.budget import read_budget, settle_budget, with_steps
from easycore_ray.engine.checkpoint_files import weights_files
from easycore_ray.engine.throughput import Work
from easycore_ray.scoring.plans import scoring_works
from easycore_ray.selection.select import arm_config, select
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Claim, open_artifact

FULL = Arm("full", None, "none")
AUTOATTACK_SUFFIX = "+autoattack"
"""What names of evaluations under AutoAttack have after that of their trial."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training run of a sweep, and where its artifacts go."""

    arm: Arm
    fraction: float
    training: str
    beta: float | None
    seed: int
    train: TrainConfig
    evaluate: EvaluateConfig
    others_too: tuple[str, ...] = ("best", "averaged")
    """What is evaluated beside the last epoch, where a checkpoint has it: the best one, the averaged weights."""

    @property
    def name(self) -> str:
        """What the trial is, for people and as its folder: ``easycore-class_f0.5_trades_b6_s1``."""
        return _trial_name(self.arm, self.fraction, self.training, self.beta, self.seed)

    @property
    def attack_suffix(self) -> str:
        """What its name lacks of which evaluation it is: nothing, ``+autoattack``, ``+autoattack500`` by its folder."""
        folder = self.place.rpartition("/")[2].removeprefix("evaluation").removeprefix("autoattack")
        return f"{AUTOATTACK_SUFFIX}{folder}" if "autoattack" in self.evaluate.attack else ""

    @property
    def place(self) -> str:
        """The folder of its evaluation, which no other trial has."""
        return self.evaluate.out

    def evaluation_of(self, weights: str) -> EvaluateConfig:
        """The same attacks on other weights of the trial: ``best`` or ``averaged``."""
        return self.evaluate.replace(out=f"{self.evaluate.out}_{weights}", weights=weights)

    def evaluations(self, checkpoint: Mapping[str, Any]) -> list[EvaluateConfig]:
        """What is evaluated: the last epoch, and what the checkpoint's manifest names as other weights than its."""
        files = weights_files(checkpoint)
        others = [name for name, file in files.items() if file != files["last"] and name in self.others_too]
        return [self.evaluate, *map(self.evaluation_of, others)]


def is_finished(out: str) -> bool:
    """Whether a folder holds a finished artifact."""
    return paths.exists(paths.join(out, "manifest.json"))


def sweep_arms(config: SweepConfig) -> list[tuple[Arm, float]]:
    """(arm, fraction) pairs of the grid; full data first, once, and alone where points are searched for."""
    chosen = [parse_arm(text) for text in config.method]
    if config.search != "none":
        chosen = []  # see ``search_points``
    pairs = [(arm, fraction) for arm in chosen if arm.method != "full" for fraction in config.fraction]
    return [(FULL, 1.0), *dict.fromkeys(pairs)]


def sweep_objectives(config: SweepConfig) -> list[tuple[str, float | None]]:
    """(training, beta) pairs; beta is None where the objective has none."""
    found: list[tuple[str, float | None]] = []
    for training in dict.fromkeys(config.training):
        found += [(training, beta) for beta in config.beta] if training in WEIGHTED else [(training, None)]
    return found


def _slug(arm: Arm) -> str:
    return re.sub(r"[^\w.]+", "-", arm.name)


def _trial_name(arm: Arm, fraction: float, training: str, beta: float | None, seed: int) -> str:
    weight = f"_b{beta:g}" if beta is not None else ""
    return f"{_slug(arm)}_f{fraction:g}_{training}{weight}_s{seed}"


def _coreset_name(arm: Arm, fraction: float, seed: int) -> str:
    """Methods that draw at random draw anew with each seed; the others select once. Dynamic arms have all samples."""
    if arm.is_dynamic:
        return _coreset_name(FULL, 1.0, seed)
    return f"{_slug(arm)}_f{fraction:g}" + (f"_s{seed}" if arm.draws else "")


def coreset_folders(config: SweepConfig, out: str) -> dict[str, str]:
    """Where each coreset of the sweep goes, by name."""
    names = [_coreset_name(arm, fraction, seed) for arm, fraction in sweep_arms(config) for seed in config.seeds]
    return {name: paths.join(out, "coresets", name) for name in names}


def select_coresets(config: SweepConfig, dataset: Dataset, out: str) -> dict[str, str]:
    """Select every coreset of the sweep; folders by name."""
    folders = coreset_folders(config, out)
    chosen: dict[str, CoresetConfig] = {}
    for arm, fraction in sweep_arms(config):
        for seed in config.seeds if not arm.is_dynamic else ():
            out = folders[_coreset_name(arm, fraction, seed)]
            wanted = arm_config(arm, out=out, scores=config.scores, dataset=dataset.path, fraction=fraction, seed=seed,
                                cutoff=config.cutoff)  # fmt: skip
            chosen.setdefault(out, wanted)
    for wanted in chosen.values():
        select(wanted)
    return folders


def make_trials(
    config: SweepConfig, out: str, coresets: dict[str, str], steps: Mapping[str, int] | None = None
) -> list[Trial]:
    """Every training run of the sweep.

    Args:
        config: of the sweep.
        out: its folder.
        coresets: folders by name.
        steps: of each objective, in the place of ``config.device_seconds``; as recorded in ``out`` if left out, else
            those of the epochs.
    """
    trials, charges = [], _charges(config) if config.count_scoring else {}
    if config.device_seconds is not None and steps is None:
        recorded = read_budget(out, config.device_seconds) or {}
        steps = {name: entry.steps for name, entry in recorded.items()}
    own: dict[str, SweepConfig] = {
        name: config if steps is None else with_steps(config, steps.get(name)) for name in config.training
    }
    for arm, fraction in sweep_arms(config):
        for objective in sweep_objectives(config):
            for seed in config.seeds:
                coreset = coresets[_coreset_name(arm, fraction, seed)]
                charged = charges.get(objective[0], 0) if arm.needs_score else 0
                trials.append(_make_trial(own[objective[0]], out, coreset, (arm, fraction), objective, seed, charged))
    return trials


def settle_steps(config: SweepConfig, made: Claim) -> None:
    """Turn the device-seconds of a sweep, if it has any, into steps, or read those: see ``engine.budget``."""
    if config.device_seconds is not None:
        first = make_trials(config, made.path, coreset_folders(config, made.path))[0].train
        settle_budget("sweep", made, first, config.training, config.device_seconds)


def budget_columns(config: SweepConfig, out: str) -> dict[str, dict[str, float]]:
    """Columns of result rows that say of each objective what its steps were made from; empty without device-seconds."""
    if config.device_seconds is None:
        return {}
    recorded = read_budget(out, config.device_seconds) or {}
    return {
        name: {"budget_device_seconds": config.device_seconds, "seconds_per_step": entry.seconds_per_step}
        for name, entry in recorded.items()
    }


def _charges(config: SweepConfig) -> dict[str, int]:
    """Steps that scoring takes off a training run of each objective, by what images cost (``engine.throughput``).

    The cost of the scoring run is shared by all models of the sweep whose coresets go by its scores. Nothing is known,
    and nothing charged, before there is one.
    """
    if not is_finished(config.scores):
        return {}
    scoring = open_artifact(config.scores, "scoring_run").manifest
    counts, scored_by = scoring["counts"], from_dict(ScoreConfig, scoring["config"])
    # Of RUN/extra the counts are those of the extra data, and the cost is that of both.
    sources = scoring.get("sources", {"main": counts, "extra": {"samples": 0}})
    samples, extra = (sources[name]["samples"] for name in ("main", "extra"))
    works = scoring_works(scored_by, samples, counts["rows"] // counts["samples"], extra)
    cost = sum(work.images * (work.forward_passes or 0.0) for work in works)
    objectives = sweep_objectives(config)
    models = sum(arm.needs_score for arm, _ in sweep_arms(config)) * len(objectives) * len(config.seeds)
    found = {}
    for training, _ in objectives:
        steps = config.attack_steps if training in ADVERSARIAL else 0
        passes = Work(training, 1, steps, perturbs=config.awp is not None).forward_passes or 1.0
        found[training] = round(cost / (models * passes * config.batch_size)) if models else 0
    return found


def _make_trial(
    config: SweepConfig,
    out: str,
    coreset: str,
    selected: tuple[Arm, float],
    objective: tuple[str, float | None],
    seed: int,
    charged_steps: int,
) -> Trial:
    (arm, fraction), (training, beta) = selected, objective
    epochs = config.train_epochs
    if training != "standard" and config.adversarial_epochs is not None:
        epochs = config.adversarial_epochs
    folder = paths.join(out, "trials", _trial_name(arm, fraction, training, beta, seed))
    train_config = stage_config(
        config,
        TrainConfig,
        out=paths.join(folder, "checkpoint"),
        overwrite=False,
        take_over=False,
        coreset=coreset,
        training=training,
        beta=beta or 0.0,
        epochs=epochs,
        seed=seed,
        num_workers=config.trial_workers,
        tracking_uri="none",
        steps_fraction=fraction if arm.is_dynamic and config.steps is None else None,
        pruning="infobatch" if arm.method == "infobatch" else "none",
        charged_steps=charged_steps,
    )
    evaluation = stage_config(
        config,
        EvaluateConfig,
        out=paths.join(folder, "evaluation"),
        overwrite=False,
        take_over=False,
        checkpoint=train_config.out,
        num_workers=config.trial_workers,
        tracking_uri="none",
    )
    return Trial(
        arm=arm, fraction=fraction, training=training, beta=beta, seed=seed, train=train_config, evaluate=evaluation
    )
