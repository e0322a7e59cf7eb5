"""The parts of a study, its results so far, and the trials that are missing."""

import itertools
from dataclasses import dataclass, replace
from typing import Any

from easycore_ray.config.experiments import StudyConfig, SweepConfig
from easycore_ray.config.identity import identity_fields
from easycore_ray.config.study_parts import ATTACK_PARTS, PARTS, trained_parts
from easycore_ray.data.dataset import Dataset, open_dataset
from easycore_ray.engine.run_inputs import check_training
from easycore_ray.evaluation.threats import check_threats, threats_of
from easycore_ray.experiments.comparison_rules import check_comparable
from easycore_ray.experiments.trials import AUTOATTACK_SUFFIX, Trial, coreset_folders, make_trials
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import FORMAT_VERSION, Artifact, Claim, refuse_other_format
from easycore_ray.storage.errors import EasyCoreError

# Fields that say how much of the study is done, not how.
_EXTENT = {"seeds", "parts"}


class Book:
    """What has been found so far: one JSON file, rewritten whole after every trial."""

    def __init__(self, path: str, setting: dict[str, Any], dataset: Artifact) -> None:
        self.path = path
        self._content: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "setting": setting,
            "dataset": dataset.fingerprint,
            "scoring": {},
            "trials": {},
            "diverged": {},
        }
        if paths.exists(path):
            found = paths.read_json(path)
            _refuse_other(path, found, self._content)
            self._content |= {kind: found[kind] for kind in ("scoring", "trials", "diverged") if kind in found}
        self.made: Claim | None = None
        """The claim under which records are added, once there is one."""

    @property
    def trials(self) -> dict[str, dict[str, Any]]:
        """Records by key, in the order of the parts they were run in."""
        return self._content["trials"]

    @property
    def scoring(self) -> dict[str, dict[str, Any]]:
        """What the scoring run of each seed cost."""
        return self._content["scoring"]

    @property
    def diverged(self) -> dict[str, dict[str, Any]]:
        """What is known of trials whose training diverged, by name: no attack has a model to attack."""
        return self._content["diverged"]

    def knows(self, trial: Trial, *, diverged: bool) -> bool:
        """Whether nothing is left to run; ``diverged``: that it diverged is an answer, too."""
        return key_of(trial) in self.trials or (diverged and trial.name in self.diverged)

    def add(self, kind: str, key: str, record: dict[str, Any]) -> None:
        """Keep a record; a trial that was finished after all has not diverged."""
        if self.made is not None:
            self.made.check()
        self._content[kind][key] = record
        if kind == "trials":
            self.diverged.pop(key.partition(AUTOATTACK_SUFFIX)[0], None)
        paths.write_json(self.path, self._content)


@dataclass(frozen=True)
class OpenStudy:
    """What a study is about, and what is left of it."""

    dataset: Dataset
    setting: dict[str, Any]
    results: str
    book: Book
    missing: dict[str, list[Trial]]
    """Trials by part that the results do not have."""
    total: int
    """Trials of the whole study, those that belong to several parts counted once."""


def open_study(config: StudyConfig) -> OpenStudy:
    """Open a study's dataset and results, and find what is missing; nothing is changed.

    Raises:
        EasyCoreError: results of another setting, an attack that is wider than the images or not installed, or a score
            that needs a validation split where there is none.
    """
    dataset = open_dataset(config.dataset)
    setting = {key: value for key, value in identity_fields(config).items() if key not in _EXTENT}
    results = paths.absolute(config.results or paths.join(config.out, "results.json"))
    book = Book(results, setting, dataset)
    wanted: dict[str, list[Trial]] = {part: trials_of_part(config, part) for part in config.parts}
    missing = {
        part: [trial for trial in trials if not book.knows(trial, diverged=config.keep_going)]
        for part, trials in wanted.items()
    }
    for name in dict.fromkeys(name for part in config.parts for name in trained_parts(part)):
        check_comparable(sweep_of_part(config, name, config.seeds[0]), dataset)
    for trial in itertools.chain(*missing.values()):
        check_threats(threats_of(trial.evaluate), dataset.image_shape)
        check_training(trial.train, dataset.image_shape)
    total = len({key_of(trial) for trial in itertools.chain(*wanted.values())})
    return OpenStudy(dataset, setting, results, book, missing, total)


def key_of(trial: Trial) -> str:
    """The name of a trial in the results, e.g. ``easycore_f0.5_standard_s0`` or the same with ``+autoattack``.

    With ``+autoattack500`` where a part says on how many images.
    """
    return trial.name + trial.attack_suffix


def _refuse_other(path: str, found: Any, mine: dict[str, Any]) -> None:
    """Refuse results that are no study's, of another release, of another dataset or of another setting."""
    if not isinstance(found, dict) or not {"setting", "dataset", "scoring", "trials"} <= set(found):
        raise EasyCoreError(f"{path} holds no results of a study; pass another --results")
    refuse_other_format(path, found)
    if found["dataset"] != mine["dataset"]:
        raise EasyCoreError(
            f"{path} is of another dataset (fingerprint {found['dataset'][:12]}, this one has "
            f"{mine['dataset'][:12]}); pass that dataset or another --results"
        )
    for key in sorted({*mine["setting"], *found["setting"]}):
        theirs, value = found["setting"].get(key), mine["setting"].get(key)
        if theirs != value:
            raise EasyCoreError(f"{path} was made with {key} = {theirs}, not {value}; pass that or another --results")


def scores_folder(config: StudyConfig, seed: int) -> str:
    """Where the scoring run of a seed lies."""
    return paths.join(config.out, "scores", f"seed-{seed}")


def sweep_of_part(config: StudyConfig, part: str, seed: int) -> SweepConfig:
    """One seed of one part."""
    what = PARTS[part]
    return config.sweep_config(
        scores_folder(config, seed),
        seed,
        what.method,
        fraction=what.fraction,
        cutoff=what.cutoff,
        training=(what.training,),
        eval_eps=config.eval_eps if what.training == "trades" else config.standard_eval_eps,
    )


def trials_of_part(config: StudyConfig, part: str) -> list[Trial]:
    """The trials of a part, seed by seed."""
    if part in ATTACK_PARTS:
        attack = ATTACK_PARTS[part]
        attacked = config if attack.all_seeds else config.replace(seeds=config.seeds[:1])
        return [
            _under_autoattack(config, trial, attack.num_samples)
            for name in attack.parts
            for trial in trials_of_part(attacked, name)
        ]
    found: list[Trial] = []
    for seed in config.seeds:
        sweep = sweep_of_part(config, part, seed)
        trials = make_trials(sweep, sweep.out, coreset_folders(sweep, sweep.out))
        found += [replace(trial, others_too=("averaged",)) for trial in trials]
    return found


def _under_autoattack(config: StudyConfig, trial: Trial, num_samples: int | None) -> Trial:
    """The same model after its last epoch, evaluated with PGD and AutoAttack at one eps."""
    out = trial.evaluate.out.rsplit("/", 1)[0]
    evaluation = trial.evaluate.replace(
        out=paths.join(out, f"autoattack{num_samples or ''}"),
        attack=("pgd20", "autoattack"),
        eval_eps=(config.eps if trial.training == "trades" else config.autoattack_eval_eps,),
        num_eval_samples=num_samples or config.num_autoattack_samples,
    )
    return replace(trial, evaluate=evaluation, others_too=())
