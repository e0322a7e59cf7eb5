"""Configurations: checked when made, saved and read back, and honest about what changes a result."""

import dataclasses
import inspect
import json
import typing

import pytest

from easycore_ray.config import base, evaluation, experiments, inspection, stages
from easycore_ray.config.arms import Arm, parse_arm
from easycore_ray.config.base import from_dict, to_dict, verb
from easycore_ray.config.evaluation import EvaluateConfig
from easycore_ray.config.experiments import AnalyzeConfig, PipelineConfig, StudyConfig, SweepConfig
from easycore_ray.config.fields import format_workers, parse_epoch_range, parse_workers
from easycore_ray.config.identity import identity_fields
from easycore_ray.config.inspection import AuditConfig, ReportConfig
from easycore_ray.config.stages import CoresetConfig, PrepareConfig, ReduceConfig, ScoreConfig, TrainConfig
from easycore_ray.core.selection import HIGHER_IS_HARDER, METHODS
from easycore_ray.core.training_plan import TRAINING
from easycore_ray.storage.errors import EasyCoreError

JOBS = {
    PrepareConfig: {},
    ScoreConfig: {"dataset": "d"},
    ReduceConfig: {"scores": "s"},
    CoresetConfig: {"dataset": "d", "method": "random"},
    TrainConfig: {"dataset": "d"},
    EvaluateConfig: {"dataset": "d", "checkpoint": "c"},
    SweepConfig: {"dataset": "d", "scores": "s"},
    ReportConfig: {"sweep": "w"},
    AuditConfig: {"scores": "s"},
    AnalyzeConfig: {"scores": ("s",)},
    PipelineConfig: {},
    StudyConfig: {"dataset": "d"},
}


def make(kind, **changes):
    """The configuration with the least that is needed, and these changes."""
    return kind(**({"out": "o"} | JOBS[kind] | changes))


def test_every_job_configuration_is_covered_here():
    """A new job is added to the list above."""
    found = {
        value
        for module in (stages, evaluation, inspection, experiments)
        for name, value in inspect.getmembers(module, inspect.isclass)
        if issubclass(value, base.JobConfig) and value not in (base.JobConfig, base.ResourceConfig, base.ComputeConfig)
    }
    assert found == set(JOBS)


@pytest.mark.parametrize("kind", JOBS)
class TestEveryConfiguration:
    """What holds for each job."""

    def test_it_survives_its_manifest(self, kind):
        """Written as JSON and read back, it is equal."""
        config = make(kind)

        assert from_dict(kind, json.loads(json.dumps(to_dict(config)))) == config

    def test_it_cannot_be_changed(self, kind):
        """What a manifest says is what was run."""
        with pytest.raises(dataclasses.FrozenInstanceError):
            make(kind).out = "elsewhere"

    def test_every_field_is_given_by_name(self, kind):
        """Positions would mean something else in the next release."""
        assert all(field.kw_only for field in dataclasses.fields(kind))

    def test_every_field_says_whether_it_is_identity_and_where_help_lists_it(self, kind):
        """A new field cannot be forgotten in either."""
        for spec in dataclasses.fields(kind):
            assert {"identity", "group"} <= set(spec.metadata), spec.name
            assert spec.metadata["group"] in typing.get_args(base.Group), spec.name

    def test_an_unknown_field_is_refused(self, kind):
        """A manifest of another job, or of another release, is not half understood."""
        with pytest.raises(EasyCoreError, match=rf"unknown fields colour for {kind.__name__}"):
            from_dict(kind, to_dict(make(kind)) | {"colour": "red"})

    def test_a_field_that_is_missing_or_of_another_type_is_refused(self, kind):
        """A damaged manifest is a sentence, not a traceback."""
        content = to_dict(make(kind))
        del content["out"]

        with pytest.raises(EasyCoreError, match="is the manifest damaged"):
            from_dict(kind, content)


@pytest.mark.parametrize(("text", "epochs"), [("1:1", (1, 1)), ("2:10", (2, 10)), (" 01:010 ", (1, 10))])
def test_parse_epoch_range_gives_both_ends(text, epochs):
    """Inclusive; blanks around and leading zeros do not matter."""
    assert parse_epoch_range(text) == epochs


BAD = [
    (PrepareConfig, {"val_fraction": 1.0}, r"val_fraction must be in \[0, 1\), got 1"),
    (PrepareConfig, {"test_fraction": -0.1}, r"test_fraction must be in \[0, 1\), got -0.1"),
    (PrepareConfig, {"image_size": 0}, "image_size must be >= 1, got 0"),
    (PrepareConfig, {"shard_mib": 0}, "shard_mib must be a positive number, got 0"),
    (PipelineConfig, {"shard_mib": 0}, "shard_mib must be a positive number, got 0"),
    (PipelineConfig, {"store": "resized"}, "store resized needs an image_size"),
    (ScoreConfig, {"epochs": 0}, "epochs must be >= 1, got 0"),
    (ScoreConfig, {"score_every": 0}, "score_every must be >= 1"),
    (ScoreConfig, {"num_workers": 0}, "num_workers must be N >= 1 or MIN:MAX .* got 0"),
    (ScoreConfig, {"num_workers": (0, 2)}, "num_workers must be .* got"),
    (ScoreConfig, {"num_workers": (3, 2)}, "num_workers must be .* got"),
    (ScoreConfig, {"stop_when_stable": 0}, r"stop_when_stable must be in \(0, 1\], got"),
    (ScoreConfig, {"stop_when_stable": 1.5}, r"stop_when_stable must be in \(0, 1\], got"),
    (ScoreConfig, {"stop_when_stable": -0.1}, r"stop_when_stable must be in \(0, 1\], got"),
    (ScoreConfig, {"cpus_per_worker": 0.0}, "cpus_per_worker must be > 0, got 0; leave it out"),
    *[
        (ScoreConfig, {"cluster_max": text}, "cluster_max must be amounts such as CPU=128,GPU=4, got")
        for text in ("128", "CPU=", "CPU=a", "TPU=1", "CPU=1,CPU=2", "CPU=-1", "CPU=inf", "")
    ],
    (ScoreConfig, {"threads_per_worker": 0}, "threads_per_worker must be >= 1"),
    (ScoreConfig, {"gpus_per_worker": -1.0}, "gpus_per_worker must be >= 0"),
    (ScoreConfig, {"max_failures": -1}, "max_failures must be >= 0"),
    (ScoreConfig, {"cache_gib": -1.0}, "cache_gib must be >= 0"),
    (ScoreConfig, {"model": "vgg"}, "unknown model 'vgg'; allowed are .*resnet18"),
    (ScoreConfig, {"batch_size": 0}, "batch_size must be >= 1"),
    (ScoreConfig, {"width": 0}, "width must be >= 1"),
    (ScoreConfig, {"lr": 0.0}, "lr must be a positive number, got 0"),
    (ScoreConfig, {"lr": float("nan")}, "lr must be a positive number, got nan"),
    (ScoreConfig, {"lr": float("inf")}, "lr must be a positive number, got inf"),
    (ScoreConfig, {"momentum": -1.0}, "momentum must be >= 0"),
    (ScoreConfig, {"weight_decay": float("nan")}, "weight_decay must be >= 0, got nan"),
    (ScoreConfig, {"warmup_fraction": 1.0}, r"warmup_fraction must be in \[0, 1\)"),
    (ScoreConfig, {"seed": -1}, "seed must be >= 0"),
    (ReduceConfig, {"bucket_rows": 0}, "bucket_rows must be >= 1"),
    (ReduceConfig, {"epoch_range": "5"}, "epoch_range must be A:B with 1 <= A <= B, got '5'; e.g. 1:10"),
    (ReduceConfig, {"epoch_range": "3:2"}, "epoch_range must be A:B with 1 <= A <= B, got '3:2'"),
    (ReduceConfig, {"epoch_range": "0:2"}, "epoch_range must be A:B with 1 <= A <= B, got '0:2'"),
    (ReduceConfig, {"epoch_range": "-1:2"}, "epoch_range must be A:B"),
    (ReduceConfig, {"epoch_range": "1:2:3"}, "epoch_range must be A:B"),
    (ReduceConfig, {"epoch_range": ""}, "epoch_range must be A:B"),
    (CoresetConfig, {"fraction": 0.0}, r"fraction must be in \(0, 1\], got 0; .*pass 0.7"),
    (CoresetConfig, {"fraction": 1.5}, r"fraction must be in \(0, 1\], got 1.5"),
    (CoresetConfig, {"fraction": float("nan")}, r"fraction must be in \(0, 1\], got nan"),
    (CoresetConfig, {"method": "easyest"}, "unknown method 'easyest'; allowed are .*easycore"),
    (CoresetConfig, {"score": "agin"}, "unknown score 'agin'; allowed are .*aign"),
    (CoresetConfig, {"method": "easycore", "score": "el2n"}, "easycore goes by aign, got score 'el2n'; write easiest"),
    (CoresetConfig, {"dataset": None}, "scores and dataset are both missing"),
    (CoresetConfig, {"cutoff": 1.0}, r"cutoff must be in \[0, 1\)"),
    (CoresetConfig, {"band": (0.5, 0.5)}, "band must be two quantiles 0 <= LO < HI <= 1, got 0.5 0.5"),
    (TrainConfig, {"eps": 8.0}, r"eps.*got 8.0: did you mean 8/255\?"),
    (TrainConfig, {"beta": -1.0}, "beta must be a number >= 0, got -1"),
    (TrainConfig, {"beta": float("inf")}, "beta must be a number >= 0, got inf"),
    (TrainConfig, {"attack_steps": 0}, "attack_steps must be >= 1"),
    (TrainConfig, {"val_attack_steps": -1}, "val_attack_steps must be >= 0"),
    (SweepConfig, {"val_attack_steps": -1}, "val_attack_steps must be >= 0"),
    (TrainConfig, {"attack_step_size": 2.0}, "attack_step_size: .*got 2"),
    *(
        (
            TrainConfig,
            {"ema": decay},
            rf"ema must be in \(0, 1\), got {decay:g}; it is the share of the average that each",
        )
        for decay in (0.0, 1.0, -0.5, 1.5)
    ),
    (TrainConfig, {"final_lr": 0.2}, "final_lr must be at most lr 0.1, got 0.2"),
    (TrainConfig, {"awp": 0.005}, "awp 0.005 perturbs weights in adversarial training, and training is standard; pass"),
    (TrainConfig, {"awp": 0.0, "training": "trades"}, "awp must be a positive number, got 0"),
    (
        TrainConfig,
        {"clean_forwards": True, "training": "trades"},
        "clean_forwards is for training pgd alone, got trades",
    ),
    (SweepConfig, {"clean_forwards": True, "training": ("pgd", "standard")}, "pgd alone, got pgd standard"),
    (SweepConfig, {"awp": 0.005}, "awp 0.005 perturbs weights in adversarial training"),
    (TrainConfig, {"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1"),
    (
        TrainConfig,
        {"label_smoothing": 0.1, "training": "mart"},
        "label_smoothing is 0.1, and mart has no smoothed form",
    ),
    (TrainConfig, {"training": "nfgsm", "norm": "l2"}, "nfgsm steps along the sign .* for norm linf alone; got 'l2'"),
    (TrainConfig, {"steps": 0}, "steps must be >= 1"),
    (TrainConfig, {"steps": 9, "device_seconds": 60}, "steps is 9 and device_seconds 60; pass one of them"),
    (SweepConfig, {"steps": 9, "device_seconds": 60}, "steps is 9 and device_seconds 60; pass one of them"),
    (TrainConfig, {"steps_fraction": 0.5, "device_seconds": 60}, "device_seconds is 60 and steps_fraction 0.5; pass"),
    (TrainConfig, {"compile": True, "device_seconds": 60}, "device_seconds times plain steps before the start, not"),
    (TrainConfig, {"device_seconds": 0.0}, "device_seconds must be a positive number, got 0"),
    (TrainConfig, {"steps": 9, "steps_fraction": 0.5}, "steps is 9 and steps_fraction 0.5; pass one of them"),
    (
        TrainConfig,
        {"pruning": "infobatch", "prune_ratio": 0.0},
        r"prune_ratio must be in \(0, 1\), got 0; leave --prun",
    ),
    (
        TrainConfig,
        {"pruning": "infobatch", "extra_dataset": "e"},
        "pruning infobatch leaves rows out by their losses, and extra_dataset has a share of every batch; pass one",
    ),
    (
        SweepConfig,
        {"method": ("infobatch",), "extra_dataset": "e"},
        "method infobatch cannot go with extra_dataset, whose rows have a share of every batch",
    ),
    (
        TrainConfig,
        {"pruning": "infobatch", "batch_size": 12, "num_workers": (1, 4)},
        "pruning infobatch needs at least four samples a worker in a batch, got batch_size 12 for 4 workers; raise",
    ),
    (TrainConfig, {"steps_fraction": 1.5}, r"steps_fraction must be in \(0, 1\], got 1.5"),
    (
        SweepConfig,
        {"method": ("rs2:aign",)},
        "method rs2 draws from all samples by no score, got 'rs2:aign'; write rs2",
    ),
    (
        SweepConfig,
        {"method": ("infobatch:loss",)},
        "method infobatch draws from all samples by no score, got 'infobatch",
    ),
    (SweepConfig, {"method": ("rs2/class",)}, "method rs2 draws from all samples by no score, got 'rs2/class'; write"),
    (TrainConfig, {"epochs": 0}, "epochs must be >= 1"),
    (EvaluateConfig, {"attack": ("pdg20",)}, "unknown attack 'pdg20'; allowed are .*pgd20"),
    (EvaluateConfig, {"attack": ()}, "attack and eval_eps need at least one value"),
    (EvaluateConfig, {"eval_eps": (0.1, 8.0)}, "eval_eps: eps is in .*got 8"),
    (EvaluateConfig, {"eval_eps": ()}, "attack and eval_eps need at least one value"),
    (EvaluateConfig, {"num_eval_samples": 0}, "num_eval_samples must be >= 1"),
    (AnalyzeConfig, {"eval_eps": (1 / 255, 8.0)}, "eval_eps: eps is in .*did you mean 8/255"),
    (AnalyzeConfig, {"eval_eps": ()}, "eval_eps needs at least one value"),
    (AnalyzeConfig, {"scores": ()}, "scores needs at least one value"),
    (AnalyzeConfig, {"scores": ("s", "t", "s")}, "scores names s twice"),
    (AnalyzeConfig, {"score": "agin"}, "unknown score 'agin'; allowed are .*aign"),
    (AnalyzeConfig, {"num_train_samples": 49}, "num_train_samples must be >= 50, five for each decile, got 49"),
    (AnalyzeConfig, {"num_workers": 0}, "num_workers must be N >= 1"),
    (SweepConfig, {"method": ("easycore", "random:aign")}, "method random uses no score"),
    (SweepConfig, {"fraction": (0.5, 30.0)}, "got 30"),
    (SweepConfig, {"fraction": ()}, "fraction needs at least one value"),
    (SweepConfig, {"training": ()}, "training needs at least one value"),
    (SweepConfig, {"seeds": ()}, "seeds needs at least one value"),
    (SweepConfig, {"eval_eps": ()}, "eval_eps needs at least one value"),
    (SweepConfig, {"eval_eps": (4.0,)}, "eval_eps: .*got 4"),
    (SweepConfig, {"beta": ()}, "beta needs at least one value for trades and mart"),
    (SweepConfig, {"beta": (-1.0,)}, "beta must be a number >= 0"),
    (SweepConfig, {"adversarial_epochs": 0}, "adversarial_epochs must be >= 1"),
    (SweepConfig, {"max_concurrent_trials": 0}, "max_concurrent_trials must be >= 1"),
    (TrainConfig, {"milestones": (0.9, 0.75)}, "milestones must be rising shares"),
    (TrainConfig, {"milestones": (75.0,)}, r"milestones must be rising shares of the run in \(0, 1\).*got \(75.0,\)"),
    (TrainConfig, {"model": "mine:make", "width": 4}, "width is for the built-in networks, got 4 with mine:make"),
    (
        TrainConfig,
        {"model": "resnet18-imagenet", "width": 8},
        "width of resnet18-imagenet is 64, got 8; pass --width 64",
    ),
    (TrainConfig, {"model": "a/models.py:make"}, "unknown model 'a/models.py:make'.*package.module:function"),
    (TrainConfig, {"milestones": ()}, "milestones must be rising shares"),
    (PipelineConfig, {"subset": 0}, "subset must be >= 1"),
    (
        PipelineConfig,
        {"method": ("random", "hardest:adv_loss")},
        "method hardest:adv_loss needs scores of adversarial training, and a pipeline scores in standard",
    ),
    (
        PipelineConfig,
        {"method": ("easycore", "dual_beta"), "score_epochs": 8},
        "method dual_beta: score dual needs at least 10 scored epochs, there are 9; score more, or give it a shorter",
    ),
    (
        PipelineConfig,
        {"method": ("easiest:dyn_unc:window=5",), "score_epochs": 8, "score_every": 2, "score_pass": "eval"},
        "method easiest:dyn_unc:window=5: score dyn_unc:window=5 needs at least 5 scored epochs, there are 4",
    ),
    (
        PipelineConfig,
        {"method": ("easycore", "moderate/class")},
        "method moderate/class needs what scoring records on request; pass --record features",
    ),
    (PipelineConfig, {"score_epochs": 0}, "score_epochs must be >= 1"),
    (PipelineConfig, {"fraction": (0.0,)}, r"fraction must be in \(0, 1\]"),
    (PipelineConfig, {"trial_workers": 0}, "trial_workers must be >= 1"),
    *(
        (kind, {"trial_workers": (1, 2)}, r"trial_workers must be a whole number, got \(1, 2\)")
        for kind in (SweepConfig, StudyConfig, PipelineConfig)
    ),
]


@pytest.mark.parametrize(("kind", "change", "message"), BAD)
def test_a_value_out_of_range_is_refused(kind, change, message):
    """With its name, the value seen and what is allowed; on construction and on replacement."""
    with pytest.raises(EasyCoreError, match=message):
        make(kind, **change)
    with pytest.raises(EasyCoreError, match=message):
        make(kind).replace(**change)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (PrepareConfig, {"val_fraction": 0.0}),
        (CoresetConfig, {"fraction": 1.0}),
        (CoresetConfig, {"band": (0.0, 1.0)}),
        (TrainConfig, {"eps": 0.0}),
        (TrainConfig, {"eps": 2.0, "norm": "l2"}),
        (TrainConfig, {"beta": 0.0}),
        (EvaluateConfig, {"eval_eps": (0.0, 1.0)}),
        (SweepConfig, {"method": ("easiest:el2n/class",)}),
        (SweepConfig, {"training": ("standard",), "beta": ()}),
        (ScoreConfig, {"warmup_fraction": 0.0, "weight_decay": 0.0, "momentum": 0.0, "cache_gib": 0.0}),
    ],
)
def test_the_ends_of_a_range_belong_to_it(kind, change):
    """What is allowed at its limit is not refused."""
    make(kind, **change)


def test_all_problems_are_told_at_once():
    """No mistake waits behind another, and none is told twice."""
    with pytest.raises(EasyCoreError) as caught:
        PipelineConfig(out="o", lr=-1.0, batch_size=0, fraction=(2.0,), score_epochs=0)

    problems = str(caught.value).split("; ")
    assert sum("lr must be" in problem for problem in problems) == 1
    assert {problem.split(" must")[0] for problem in problems if " must" in problem} == {
        "lr", "batch_size", "fraction", "score_epochs",
    }  # fmt: skip


# ---------------------------------------------------------------- stages of the pipeline


def test_a_pipeline_hands_its_fields_to_its_stages():
    """The same word means the same thing in each, and every stage has its folder."""
    pipeline = PipelineConfig(
        out="o", source="torchvision:CIFAR10", seed=3, lr=0.05, score_epochs=7, train_epochs=9, trial_workers=2,
        num_workers=4, tracking_uri="none", image_size=32,
    )  # fmt: skip
    prepare, score, sweep = (
        pipeline.prepare_config(),
        pipeline.score_config("d", "c"),
        pipeline.sweep_config("d", "s"),
    )

    assert (prepare.out, score.out, sweep.out) == ("o/dataset", "o/scores", "o/sweep")
    assert (prepare.source, prepare.image_size, prepare.seed) == ("torchvision:CIFAR10", 32, 3)
    assert (score.dataset, score.coreset, score.epochs, score.num_workers) == ("d", "c", 7, 4)
    assert (sweep.dataset, sweep.scores, sweep.train_epochs, sweep.trial_workers) == ("d", "s", 9, 2)
    assert (score.lr, sweep.lr, score.tracking_uri, sweep.tracking_uri) == (0.05, 0.05, "none", "none")


# ---------------------------------------------------------------- arms


@pytest.mark.parametrize("balance", ["none", "class"])
@pytest.mark.parametrize("method", METHODS)
def test_an_arm_is_its_name(method, balance):
    """Written and parsed, it is the same arm, for every method and every score it takes."""
    scores = sorted(HIGHER_IS_HARDER) if METHODS[method].needs_score else [None]
    for score in [METHODS[method].default_score] if METHODS[method].bound else scores:
        arm = Arm(method, score, balance)
        assert parse_arm(arm.name) == arm


@pytest.mark.parametrize(
    ("text", "arm"),
    [
        ("easycore", Arm("easycore", "aign", "none")),
        ("easycore/class", Arm("easycore", "aign", "class")),
        ("easiest:el2n", Arm("easiest", "el2n", "none")),
        ("hardest:forgetting/class", Arm("hardest", "forgetting", "class")),
        ("random/class", Arm("random", None, "class")),
        ("stratified", Arm("stratified", "aum", "none")),
    ],
)
def test_arms_are_read(text, arm):
    """Method, score (its own if none is named), balance."""
    assert parse_arm(text) == arm


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown method ''"),
        ("easy", "unknown method 'easy'"),
        ("easiest:", "unknown score ''"),
        ("easiest:foo", "unknown score 'foo'"),
        ("easycore:loss", "easycore goes by aign, got score 'loss'; write easiest"),
        ("easiest/classes", "may end in /class only, got 'easiest/classes'"),
        ("easiest/", "may end in /class only"),
        ("random:aign", "method random uses no score, got 'random:aign'; write random"),
    ],
)
def test_what_is_no_arm_is_refused(text, message):
    """The message says which part is wrong."""
    with pytest.raises(EasyCoreError, match=message):
        parse_arm(text)


# ---------------------------------------------------------------- verbs


@verb(ReduceConfig, gives=ReduceConfig)
def look(config):
    """Return what it was called with."""
    return config


def test_a_verb_takes_a_configuration_or_its_fields():
    """From a job and from a notebook, the same call."""
    config = ReduceConfig(out="o", scores="s")

    assert look(config) is config
    assert look(out="o", scores="s") == config
    assert look.__name__ == "look"
    assert look.__doc__.startswith("Return what it was called with.")


def test_a_verb_refuses_both_and_checks_fields():
    """Half of each would leave open which one holds."""
    with pytest.raises(TypeError, match="pass a ReduceConfig or keywords to look, not both"):
        look(ReduceConfig(out="o", scores="s"), out="x")
    with pytest.raises(EasyCoreError, match="bucket_rows must be >= 1"):
        look(out="o", scores="s", bucket_rows=0)


@pytest.mark.parametrize(("text", "value"), [("4", 4), ("2:8", (2, 8))])
def test_workers_are_a_number_or_a_range(text, value):
    """As written on the command line, and back."""
    assert parse_workers(text) == value
    assert format_workers(value) == text
    config = ScoreConfig(out="o", dataset="d", num_workers=value, batch_size=840)
    assert (config.min_workers, config.max_workers) == (value if isinstance(value, tuple) else (value, value))
    assert from_dict(ScoreConfig, to_dict(config)) == config


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        (TrainConfig, {"batch_size": 100, "num_workers": 3}, "3 workers; the nearest that are: 99, 102"),
        (ScoreConfig, {"batch_size": 2, "num_workers": 3}, "3 workers; the least that is: 3"),
        (
            ScoreConfig,
            {"batch_size": 100, "num_workers": (2, 4)},
            "every number of workers in 2:4; the nearest that are: 96, 108",
        ),
        (SweepConfig, {"batch_size": 100, "trial_workers": 3}, "3 workers; the nearest that are: 99, 102"),
        (PipelineConfig, {"batch_size": 100, "num_workers": 3}, "3 workers"),
        (PipelineConfig, {"batch_size": 100, "trial_workers": 3}, "3 workers"),
        (StudyConfig, {"batch_size": 100, "num_workers": 3}, "3 workers"),
    ],
)
def test_a_batch_that_workers_cannot_share_equally_is_refused_with_the_nearest(kind, change, words):
    """The batch is that of all workers together, so that their number changes no step."""
    with pytest.raises(EasyCoreError, match=f"batch_size {change['batch_size']} is not divisible by .*{words}"):
        make(kind, **change)


def test_milestones_are_identity_only_where_they_change_the_result():
    """Other drops are another multistep run, and the same cosine run."""

    def identities(schedule):
        return [
            identity_fields(TrainConfig(out="o", dataset="d", schedule=schedule, milestones=drops))
            for drops in ((0.75, 0.9), (0.5,))
        ]

    multistep, cosine = identities("multistep"), identities("cosine")
    assert multistep[0] != multistep[1]
    assert cosine[0] == cosine[1]


@pytest.mark.parametrize("training", TRAINING)
def test_the_attack_in_validation_is_identity_only_where_there_is_one(training):
    """It picks the best epoch of adversarial runs; a standard run has none, and its old results stay valid."""
    one, other = (
        identity_fields(TrainConfig(out="o", dataset="d", training=training, val_attack_steps=n)) for n in (0, 5)
    )

    assert (one == other) == (training == "standard")


def test_evaluating_the_best_weights_is_another_evaluation_than_the_last():
    """They are other weights."""
    last, best = (identity_fields(make(EvaluateConfig, weights=which)) for which in ("last", "best"))

    assert best == last | {"weights": "best"}
