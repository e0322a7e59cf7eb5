"""A second dataset beside the first: classes by name, what does not go together, identities and what dry runs say."""

import pytest

from easycore_ray import pipeline, score, select, sweep, train
from easycore_ray.config.experiments import PipelineConfig, SweepConfig
from easycore_ray.config.stages import ScoreConfig, TrainConfig
from easycore_ray.data.dataset import open_dataset
from easycore_ray.engine.extra_data import extra_data, match_classes, own_labels
from easycore_ray.engine.run_identity import run_identity
from easycore_ray.engine.run_inputs import open_run_inputs
from easycore_ray.experiments.trials import coreset_folders, make_trials
from easycore_ray.storage.artifact import Artifact
from easycore_ray.storage.errors import EasyCoreError, FieldsError
from tests.artifacts import edit_manifest, make_dataset, make_image_dataset, make_scoring_run

LABELS = [number % 3 for number in range(48)]


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    """Nothing here may come so far."""

    def never(*arguments, **options):
        raise AssertionError("Ray was started")

    monkeypatch.setattr("ray.init", never)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two datasets of the same classes and shape; the second has them in another order and lacks one."""
    folder = tmp_path_factory.mktemp("extra")
    make_image_dataset(folder / "main", LABELS)
    make_image_dataset(folder / "extra", [number % 2 for number in range(30)])
    edit_manifest(folder / "extra", classes=["class 2", "class 0"])
    return folder


def named(folder, classes, **changes):
    """A dataset with these class names."""
    made = make_dataset(folder, range(len(classes)))
    edit_manifest(made.path, classes=classes, **changes)
    return open_dataset(made.path)


def refuse(words, verb, root, **fields):
    """The verb ends in one line with these words, before anything is written."""
    with pytest.raises(EasyCoreError, match=words) as caught:
        verb(**{"dataset": f"{root}/main", "out": f"{root}/new", "extra_dataset": f"{root}/extra", "num_workers": 1,
                "model": "cnn", **fields})  # fmt: skip
    assert "\n" not in str(caught.value)
    assert not (root / "new").exists()


# ---------------------------------------------------------------- classes


@pytest.mark.parametrize(
    ("names", "labels"),
    [(["a", "b", "c"], (0, 1, 2)), (["c", "a", "b"], (2, 0, 1)), (["b"], (1,)), (["c", "a"], (2, 0))],
)
def test_classes_are_matched_by_name(tmp_path, names, labels):
    """In any order, with some of them missing; labels find back to those of the extra dataset."""
    main, extra = named(tmp_path / "main", ["a", "b", "c"]), named(tmp_path / "extra", names)
    assert match_classes(extra, main) == labels
    assert own_labels(list(labels), labels).tolist() == list(range(len(names)))


def test_unknown_classes_are_named(tmp_path):
    """Those that the main dataset lacks, and those that it has."""
    main, extra = named(tmp_path / "main", ["cat", "dog"]), named(tmp_path / "extra", ["dog", "horse", "cow"])
    with pytest.raises(
        EasyCoreError, match=r"extra has classes that .*main does not have: horse, cow; it has cat, dog"
    ):
        match_classes(extra, main)


def test_without_names_numbers_match_if_there_are_as_many(tmp_path):
    """Where one side has names, they count."""
    ten, seven = ([str(label) for label in range(count)] for count in (10, 7))
    main, same, fewer = (
        named(tmp_path / name, names, names_from="") for name, names in (("main", ten), ("same", ten), ("few", seven))
    )
    assert match_classes(same, main) == tuple(range(10))
    with pytest.raises(EasyCoreError, match=r"few has 7 classes, .*main 10, and neither has names .*--classes FILE"):
        match_classes(fewer, main)
    assert match_classes(named(tmp_path / "digits", seven, names_from="the folders"), main) == tuple(range(7))


def test_what_is_mixed_in_is_said(root):
    """How many rows, from where, and which classes are not among them."""
    config = TrainConfig(dataset=f"{root}/main", extra_dataset=f"{root}/extra", out="o", batch_size=128)
    dataset, parents = open_run_inputs(config)
    extra = extra_data(config, dataset, parents)
    assert extra.labels == (2, 0)
    assert extra.describe(128) == f"90 of 128 rows of each batch are of 30 in {root}/extra, which has no class class 1"


# ---------------------------------------------------------------- refusals


def test_what_does_not_go_together_is_refused(root, tmp_path):
    """By train and score alike, and by their plans."""
    make_image_dataset(tmp_path / "empty", [0, 1], val_labels=[0])
    edit_manifest(tmp_path / "empty", counts={"train": 0, "val": 1, "test": 0})
    make_image_dataset(tmp_path / "large", LABELS)
    edit_manifest(tmp_path / "large", image_shape=[3, 32, 32])
    make_image_dataset(tmp_path / "other", [*LABELS, 3])
    coreset = select(out=f"{tmp_path}/coreset", dataset=f"{root}/main", method="random", fraction=0.5)
    large = r"large has images of 3x32x32, .*main of 1x4x4; prepare it with --image-size 4"
    for verb, fields in ((train, {}), (score, {"score_pass": "eval"})):
        for each in (verb, verb.plan):
            refuse(large, each, root, extra_dataset=f"{tmp_path}/large", **fields)
            refuse("does not have: class 3; ", each, root, extra_dataset=f"{tmp_path}/other", **fields)
            refuse("empty has no training samples", each, root, extra_dataset=f"{tmp_path}/empty", **fields)
            refuse(
                "coreset was selected from .*main.*, not from .*extra", each, root, extra_coreset=coreset.path, **fields
            )
            refuse("nowhere does not exist", each, root, extra_dataset=f"{tmp_path}/nowhere", **fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"extra_fraction": 0.0}, r"extra_fraction must be in \(0, 1\), got 0; "),
        ({"extra_fraction": 1.0}, r"extra_fraction must be in \(0, 1\), got 1; "),
        ({"batch_size": 1}, "batch_size 1 has no room for extra rows"),
        ({"extra_dataset": None, "extra_fraction": 0.5}, "extra_fraction goes with extra_dataset, which is missing"),
        ({"extra_dataset": None, "extra_coreset": "c"}, "extra_coreset goes with extra_dataset, which is missing"),
    ],
)
def test_fields_that_make_no_sense_are_refused(fields, words):
    """By every configuration that has them."""
    for kind, own in ((TrainConfig, {}), (ScoreConfig, {"score_pass": "eval"}), (SweepConfig, {"scores": "s"})):
        workers = {"num_workers": 1} if kind is not SweepConfig else {}
        with pytest.raises(FieldsError, match=words):
            kind(**{"dataset": "d", "out": "o", "extra_dataset": "e", **own, **workers, **fields})


@pytest.mark.parametrize("score_pass", ["fused", "fused+eval"])
def test_extra_rows_are_not_scored_while_they_are_trained_on(score_pass):
    """Of a pass over the main rows they are some, not all."""
    with pytest.raises(
        FieldsError, match=rf"score_pass {score_pass.replace('+', '.')} scores rows .*--score-pass eval"
    ):
        ScoreConfig(dataset="d", out="o", extra_dataset="e", score_pass=score_pass)


# ---------------------------------------------------------------- identity, plans, sweeps


def test_the_extra_data_is_part_of_the_identity(root, tmp_path):
    """Its content, its coreset, its share and how it is loaded; not where it lies. Its default share is 0.7."""
    make_image_dataset(tmp_path / "others", [number % 2 for number in range(31)])
    coreset = select(out=f"{tmp_path}/coreset", dataset=f"{root}/extra", method="random", fraction=0.5)

    def identity(**fields):
        config = TrainConfig(**{"dataset": f"{root}/main", "extra_dataset": f"{root}/extra", "out": "o", **fields})
        return run_identity("checkpoint", config, open_run_inputs(config)[1])

    known = identity()
    others = [
        identity(extra_dataset=None), identity(extra_dataset=f"{tmp_path}/others"), identity(extra_fraction=0.5),
        identity(extra_coreset=coreset.path), identity(cache_gib=0.0), identity(cache_gib=24 * 16 / 2**30),
    ]  # fmt: skip
    assert len({known, *others}) == 7
    assert identity(extra_fraction=0.7) == known
    (tmp_path / "moved").symlink_to(root / "extra")
    assert identity(extra_dataset=f"{tmp_path}/moved") == known


def test_dry_runs_count_extra_rows(root):
    """Of 12 rows a step 8 are extra: 48 samples take 12 steps and 96 extra rows."""
    fields = dict(dataset=f"{root}/main", extra_dataset=f"{root}/extra", out=f"{root}/new", model="cnn", batch_size=12,
                  num_workers=1, epochs=2)  # fmt: skip
    plan = train.plan(**fields)
    assert "for 24 steps on 48 samples and 96 rows an epoch of 30 extra samples (8 in each batch of 12)" in plan.work
    assert plan.steps == 24
    assert plan.estimates[0].images == 2 * (48 + 96)
    plan = score.plan(**fields, score_pass="eval")
    assert "for 2 epochs on 48 samples and 96 rows an epoch of 30 extra samples" in plan.work
    assert [estimate.images for estimate in plan.estimates] == [2 * (48 + 96), 2 * (48 + 30)]
    assert plan.makes == tuple(f"{root}/new/{name}" for name in ("table", "hardness", "extra/table", "extra/hardness"))


def test_all_trials_of_a_sweep_mix_in_the_same(root, tmp_path):
    """Those of a pipeline too, whose scores are those of the main rows alone."""
    mixed = dict(extra_dataset=f"{root}/extra", extra_fraction=0.5, model="cnn", batch_size=12)
    scores = make_scoring_run(tmp_path / "scores", Artifact(f"{root}/main", open_dataset(f"{root}/main").manifest),
                              LABELS)  # fmt: skip
    config = SweepConfig(dataset=f"{root}/main", scores=scores.path, out=f"{tmp_path}/sweep", fraction=(0.5,), **mixed)
    trials = make_trials(config, config.out, coreset_folders(config, config.out))
    assert {(trial.train.extra_dataset, trial.train.extra_fraction) for trial in trials} == {(f"{root}/extra", 0.5)}
    # The full data takes 8 steps an epoch, half of it 4.
    plan = sweep.plan(config)
    assert "; 6 of 12 rows of each batch are of 30 in " in plan.work
    assert plan.steps == sum(20 * (8 if trial.fraction == 1 else 4) for trial in trials)

    whole = PipelineConfig(dataset=f"{root}/main", out=f"{tmp_path}/pipeline", score_epochs=1, **mixed)
    assert whole.score_config("d").extra_dataset is None
    assert whole.sweep_config("d", "s").extra_dataset == f"{root}/extra"
    for verb, fields in ((sweep, {"scores": scores.path}), (pipeline, {})):
        with pytest.raises(EasyCoreError, match="nowhere does not exist"):
            verb(**{"dataset": f"{root}/main", "out": f"{tmp_path}/new", **fields, **mixed,
                    "extra_dataset": f"{tmp_path}/nowhere"})  # fmt: skip
    assert not (tmp_path / "new").exists()
