"""Every field of every configuration: in the identity, or shown to change no result."""

import dataclasses

import pytest

from easycore_ray.config import evaluation, experiments, inspection, recipes, stages
from easycore_ray.config.identity import identity_fields
from easycore_ray.data.coreset import open_run_data
from easycore_ray.data.dataset import open_dataset
from easycore_ray.data.ingest.plans import dataset_identity
from easycore_ray.engine.run_identity import run_identity, ways_of_loading
from easycore_ray.experiments.pipeline import pipeline_identity
from easycore_ray.experiments.study_results import trials_of_part
from easycore_ray.experiments.trials import coreset_folders, make_trials
from easycore_ray.storage.artifact import identity
from tests.artifacts import make_image_dataset

PREPARE, SCORE, TRAIN = stages.PrepareConfig, stages.ScoreConfig, stages.TrainConfig
SWEEP, STUDY, PIPELINE = experiments.SweepConfig, experiments.StudyConfig, experiments.PipelineConfig
TRAINED = {"schedule": "multistep", "threads_per_worker": 2, "batch_size": 120}
# The least that is needed, and what makes every field count that counts at all.
NEEDED = {
    PREPARE: {"on_duplicate": "drop", "image_size": 8},
    SCORE: {"dataset": "d", **TRAINED, "training": "trades", "score_pass": "eval"},
    stages.ReduceConfig: {"scores": "s"},
    stages.CoresetConfig: {"dataset": "d", "scores": "s", "method": "easiest"},
    TRAIN: {"dataset": "d", "training": "pgd", **TRAINED},
    evaluation.EvaluateConfig: {"dataset": "d", "checkpoint": "c", "threads_per_worker": 2},
    SWEEP: {"dataset": "d", "scores": "s", **TRAINED, "trial_workers": 2, "training": ("pgd",)},
    inspection.ReportConfig: {"sweep": "w"},
    inspection.AuditConfig: {"scores": "s"},
    experiments.AnalyzeConfig: {"scores": ("s",), "threads_per_worker": 2},
    PIPELINE: {**TRAINED, "on_duplicate": "drop", "image_size": 8, "training": ("pgd",)},
    STUDY: {"dataset": "d", **TRAINED},
}
# Another value of every field.
OTHER = {
    "adversarial_epochs": 3, "allow_one_class": True, "attack": ("pgd20", "fgsm"), "attack_step_size": 0.01,
    "attack_steps": 3, "augment": "none", "autoattack_eval_eps": 0.01, "awp": 0.01,
    "balance": "class", "band": (0.1, 0.2),
    "batch_size": 240, "beta": 2.0, "bucket_rows": 9, "cache_gib": 0.0, "charged_steps": 3,
    "checkpoint": "t", "claim": "t.json", "classes": "t", "clean_forwards": True,
    "cluster_max": "CPU=8", "count_scoring": True,
    "commit_minutes": 0.0, "compile": True, "corruptions": ("contrast",),
    "coreset": "t", "cpus_per_worker": 3.0, "crop_pad": 2, "crop_reflect": True,
    "cut_score": "el2n", "cutoff": 0.1,
    "cuda_graphs": False, "dataset": "t", "device_seconds": 9.0, "ema": 0.9, "eval_batch_size": 9,
    "extra_coreset": "t", "extra_dataset": "t", "extra_fraction": 0.5,
    "epoch_range": "1:2", "epochs": 3, "eps": 0.01, "eval_eps": (0.01,), "exclude": "t",
    "exclude_kind": ("duplicate",), "exif": "ignore", "experiment": "t",
    "final_lr": 0.001,
    "format": "parquet", "fraction": 0.2, "gpus_per_worker": 1.0, "grace_fraction": 0.2,
    "image_column": "t", "image_size": 9,
    "init_from": "t", "initial_pass": True, "input_space": "normalised", "keep_going": True, "label_column": "t",
    "label_errors": 0.1,
    "label_smoothing": 0.1, "lr": 0.2, "materialize": True, "max_failures": 9,
    "max_concurrent_trials": 5, "method": "hardest", "milestones": (0.5,), "model": "cnn", "momentum": 0.5,
    "nesterov": False, "norm": "l2", "normalise": "half", "note": "t",
    "num_autoattack_samples": 7, "num_eval_samples": 7, "num_trials": 9,
    "num_train_samples": 70, "num_workers": 4, "on_bad_sample": "skip", "on_duplicate": "keep", "only": ("aign",),
    "option": ("strata=20",), "out": "t", "overwrite": True, "parts": ("trades",),
    "prune_ratio": 0.3, "pruning": "infobatch",
    "pgd_restarts": 3, "precision": "bf16", "reduction_factor": 4.0, "results": "t",
    "resize_size": 10, "shard_mib": 9.0, "schedule": "cosine", "scheduler": "asha",
    "score": "el2n", "score_epochs": 3, "score_every": 2,
    "score_pass": "eval", "scores": "t", "score_batch_size": 9, "search": "optuna", "seed": 5,
    "segment_images": 480, "seeds": (5,), "source": "t", "source_check": False, "split": "val",
    "standard_eval_eps": (0.01,), "starved": 0.1, "steps": 5, "steps_fraction": 0.5, "stop_when_stable": 0.9,
    "store": "pixels", "subset": 9, "sweep": "t",
    "take_over": True, "test_fraction": 0.3,
    "record": ("features",), "register": "r",
    "test_source": "t", "threads_per_worker": 4, "title": "t", "tracking_uri": "none",
    "train_epochs": 3,
    "training": "trades", "trial_workers": 3, "user_scores": "t", "val_attack_steps": 3, "val_fraction": 0.1,
    "warmup_fraction": 0.2, "weight_decay": 0.1, "weights": "best", "weights_file": "t", "width": 8,
}  # fmt: skip
SEVERAL = {"beta": (2.0,), "fraction": (0.2,), "method": ("hardest",), "training": ("trades", "pgd")}
OTHER_OF = {
    stages.CoresetConfig: {"option": ("strata=20",), "method": "stratified", "cutoff_score": "aum"},
    SCORE: {"training": "mart", "score_pass": "fused"},
    SWEEP: SEVERAL, PIPELINE: SEVERAL, experiments.AnalyzeConfig: {"scores": ("t",), "checkpoint": ("t",)},
}  # fmt: skip
PLACES = {"out", "overwrite", "take_over"}
TRACKING = {"tracking_uri", "experiment"}
RESERVED = {"cpus_per_worker", "max_failures", "cluster_max"}
COMMITS = {"commit_minutes", "cuda_graphs"}
EXTRA = {"extra_dataset", "extra_coreset"}
TRIALS = {"max_concurrent_trials", "keep_going"}
# What is in no identity. Inputs are known by their fingerprints. tests/experiments/test_equal_results.py runs each of
# these fields of a stage; of what runs stages, a test below compares the stages.
SAME = {
    PREPARE: PLACES | {"allow_one_class", "source_check"},
    SCORE: PLACES | TRACKING | RESERVED | COMMITS | EXTRA | {"dataset", "coreset", "init_from"},
    stages.ReduceConfig: PLACES | {"scores", "bucket_rows"},
    stages.CoresetConfig: PLACES | TRACKING | {"scores", "dataset", "user_scores", "exclude", "materialize"},
    TRAIN: PLACES | TRACKING | RESERVED | COMMITS | EXTRA | {"dataset", "coreset", "init_from"},
    evaluation.EvaluateConfig: PLACES
    | TRACKING
    | RESERVED
    | {"dataset", "checkpoint", "weights_file", "claim", "num_workers", "cache_gib"},
    inspection.ReportConfig: PLACES,
    inspection.AuditConfig: PLACES | {"scores", "dataset"},
    experiments.AnalyzeConfig: PLACES
    | TRACKING
    | RESERVED
    | {"scores", "checkpoint", "dataset", "num_workers", "cache_gib"},
    SWEEP: PLACES | TRACKING | {"register"} | RESERVED | COMMITS | TRIALS | EXTRA | {"dataset", "scores"},
    STUDY: PLACES | TRACKING | RESERVED | COMMITS | TRIALS | {"dataset", "results"},
    PIPELINE: PLACES
    | TRACKING
    | {"register"}
    | RESERVED
    | COMMITS
    | TRIALS
    | EXTRA
    | {"allow_one_class", "source_check"},
}


def fields_of(kind):
    """Names of all its fields."""
    return {spec.name for spec in dataclasses.fields(kind)}


def make(kind, **changes):
    """The configuration with the least that is needed, and these changes."""
    return kind(**{"out": "o", **NEEDED[kind], **changes})


def beside(kind, name):
    """What else has to be given where a field is."""
    of_a_file = {"weights_file": "w", "model": "resnet18", "normalise": "none"}
    if kind is evaluation.EvaluateConfig and name in {*of_a_file, "width"}:
        return of_a_file | {"checkpoint": None}
    if kind is SCORE and name == "score_pass":
        return {"training": "standard"}
    if name.startswith("extra_"):
        return {"extra_dataset": "e"} | ({"score_pass": "eval"} if kind is SCORE else {})
    if name == "claim":
        return {"attack": "autoattack"}
    if name in {"scheduler", "reduction_factor", "grace_fraction"}:
        return {"trial_workers": 1} | ({} if name == "scheduler" else {"scheduler": "asha"})
    if name in {"search", "num_trials"}:
        return {"seeds": (0,)} | ({} if name == "search" else {"search": "optuna"})
    if name == "cutoff_score":
        return {"method": "stratified", "scores": "s"}
    if name == "cutoff" and kind in (SWEEP, PIPELINE):
        return {"method": ("stratified",)}
    if name == "exclude_kind":
        return {"exclude": "e"}
    if name == "prune_ratio":
        return {"pruning": "infobatch"}
    return {}


def change(kind, name):
    """The same with another value of one field."""
    if kind is stages.CoresetConfig and name == "option":
        return make(kind, method="stratified", option=("strata=20",))
    return make(kind, **beside(kind, name) | {name: (OTHER | OTHER_OF.get(kind, {}))[name]})


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    """Of a training run: a small dataset."""
    folder = tmp_path_factory.mktemp("identity") / "dataset"
    return open_run_data(make_image_dataset(folder, [0, 1] * 30).path, None)[1]


def identity_of(config, parents):
    """The identity of what a configuration makes, inputs apart."""
    if isinstance(config, TRAIN | SCORE):
        return run_identity("checkpoint" if isinstance(config, TRAIN) else "scoring_run", config, parents)
    if isinstance(config, PREPARE):
        return dataset_identity(config)
    if isinstance(config, PIPELINE):
        return pipeline_identity(config, {})
    return identity("study", identity_fields(config), {})


@pytest.mark.parametrize("kind", NEEDED)
def test_a_field_changes_the_identity_unless_it_is_known_to_change_no_result(kind, parents):
    """All fields, one by one; a new one has to be added above."""
    changed = {
        name
        for name in fields_of(kind)
        if identity_of(change(kind, name), parents) != identity_of(make(kind, **beside(kind, name)), parents)
    }

    assert changed == fields_of(kind) - SAME[kind]


@pytest.mark.parametrize("kind", NEEDED)
def test_options_that_came_later_leave_identities_as_they_were(kind):
    """Left out they are in none, so that runs of earlier releases are resumed and reused."""
    later = {"scheduler", "reduction_factor", "grace_fraction", "search", "num_trials", "extra_fraction"}
    later |= {"record", "cutoff_score", "exclude", "exclude_kind", "device_seconds", "prune_ratio", "pruning"}
    later |= {"awp", "clean_forwards", "crop_reflect", "ema", "final_lr", "input_space", "label_smoothing"}

    assert later & identity_fields(make(kind)).keys() == set()
    assert kind is stages.CoresetConfig or "cutoff" not in identity_fields(make(kind))


def test_scoring_runs_in_standard_training_are_known_by_what_they_were():
    """By no field of adversarial training, which came later; and not by beta where the objective has none."""
    objective = {spec.name for spec in dataclasses.fields(recipes.ScoringObjectiveConfig)}
    standard, pgd, trades = (
        identity_fields(make(SCORE, training=training)).keys() for training in ("standard", "pgd", "trades")
    )

    assert objective == {"training", "beta", "eps", "norm", "attack_steps", "attack_step_size"}
    assert objective & standard == set()
    assert pgd - standard == objective - {"beta"}
    assert trades - standard == objective


@pytest.mark.parametrize("kind", [inspection.ExportConfig, inspection.InspectConfig, inspection.CleanConfig])
def test_what_makes_no_artifact_has_no_identity(kind):
    """Nothing would hold it."""
    assert not any(spec.metadata["identity"] for spec in dataclasses.fields(kind))


def stages_of(config):
    """What the stages of a sweep, study or pipeline are known by, as far as their configurations tell."""
    found = []
    if isinstance(config, STUDY):
        trials = [trial for part in config.parts for trial in trials_of_part(config, part)]
        runs = [config.score_config("s", seed) for seed in config.seeds]
    else:
        sweep = config if isinstance(config, SWEEP) else config.sweep_config("d", "s")
        trials = make_trials(sweep, "o", coreset_folders(sweep, "o"))
        runs = [] if sweep is config else [config.score_config("d")]
    if isinstance(config, PIPELINE):
        found.append(dataset_identity(config.prepare_config()))
    runs += [trial.train for trial in trials]
    found += [identity_fields(run) | {"cache_gib": run.cache_gib} for run in runs]
    return found + [identity_fields(trial.evaluate) for trial in trials]


@pytest.mark.slow
@pytest.mark.parametrize("trial_workers", [1, 2])
@pytest.mark.parametrize("kind", [SWEEP, STUDY, PIPELINE])
def test_what_is_not_identity_of_a_sweep_is_none_of_its_stages(kind, trial_workers):
    """A finished sweep, study or pipeline is reused without a look at its stages."""
    base = make(kind, trial_workers=trial_workers)
    # Early stopping, which is identity, takes one worker.
    for name in fields_of(kind) - {"trial_workers", "scheduler", "reduction_factor", "grace_fraction"}:
        other = change(kind, name).replace(trial_workers=trial_workers)
        if identity_of(other, None) == identity_of(base, None):
            assert stages_of(other) == stages_of(base), name


@pytest.mark.parametrize("trial_workers", [1, 2])
def test_what_a_sweep_keeps_in_memory_is_its_identity(trial_workers):
    """Trials stream what does not fit, in another order; how many rows each has, the sweep does not know."""
    some, other = (make(SWEEP, trial_workers=trial_workers, cache_gib=gib) for gib in (0.0, 2.0))

    assert identity_fields(some) != identity_fields(other)


def test_threads_are_what_the_configuration_says_and_never_what_a_machine_has():
    """Those that are asked for, else the whole CPUs that are, else one: the identity holds the number itself."""
    threads = [
        make(TRAIN, threads_per_worker=threads, cpus_per_worker=cpus)
        for threads, cpus in ((None, None), (1, None), (None, 0.5), (1, 4.0), (None, 3.5), (3, None))
    ]

    assert [config.threads for config in threads] == [1, 1, 1, 1, 3, 3]
    assert [identity_fields(config)["threads_per_worker"] for config in threads] == [1, 1, 1, 1, 3, 3]


def test_a_run_holds_whether_each_number_of_workers_streams(parents):
    """Of 60 images of 16 bytes a share of 30 does not fit in 400 bytes, one of 20 does. What fits anyway is one run."""
    dataset = open_dataset(parents["dataset"].path)
    gib = 400 / 2**30
    elastic, fixed = (make(TRAIN, num_workers=workers, cache_gib=gib) for workers in ((2, 4), 3))

    assert ways_of_loading(elastic, dataset, 60) == ["streamed", "cached", "cached"]
    assert ways_of_loading(fixed, dataset, 60) == ["cached"]
    assert run_identity("checkpoint", fixed, parents) == run_identity("checkpoint", fixed.replace(cache_gib=2), parents)
    assert run_identity("checkpoint", elastic, parents) != run_identity(
        "checkpoint", elastic.replace(cache_gib=2), parents
    )


def test_any_gpu_is_a_gpu():
    """Half a GPU computes what a whole one does."""
    some, whole, none = (identity_fields(make(TRAIN, gpus_per_worker=count)) for count in (0.5, 1.0, 0.0))

    assert some == whole != none
