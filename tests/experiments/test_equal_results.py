"""What is in no identity changes no bit of a result: each such field of each stage, by a run in this process.

``tests/config/test_identity.py`` says which fields those are. What several processes do is compared where they are
started: outcomes on one, two and three workers (tests/distributed/test_training.py, test_analysis.py), ranges of a
reduction (tests/scoring/test_reduce.py). That equal findings are drawn alike is in tests/reporting/test_report.py.
"""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from easycore_ray import prepare, reduce, select
from easycore_ray.analysis.analyze import attack_samples, open_analysis
from easycore_ray.config.evaluation import EvaluateConfig
from easycore_ray.config.experiments import AnalyzeConfig
from easycore_ray.config.stages import CoresetConfig, PrepareConfig, ReduceConfig, ScoreConfig, TrainConfig
from easycore_ray.core.hashing import uniform_draws
from easycore_ray.data.coreset import read_sample_ids
from easycore_ray.data.dataset import open_dataset
from easycore_ray.data.samples import read_split
from easycore_ray.engine.extra_data import extra_data
from easycore_ray.engine.run import fit_here
from easycore_ray.engine.run_identity import run_identity
from easycore_ray.engine.run_inputs import open_run_inputs
from easycore_ray.engine.worker_group import LocalContext
from easycore_ray.experiments.trial_runner import attack_here
from easycore_ray.scoring.hardness_table import open_hardness, read_hardness
from easycore_ray.scoring.score import make_recorder, make_scoring_fit
from easycore_ray.scoring.score_table import fingerprint, read_part_lists
from easycore_ray.training.train import make_training_fit, train_here
from tests.artifacts import make_checkpoint, make_image_dataset, make_scoring_run
from tests.config.test_identity import OTHER, SAME

LABELS = [number % 3 for number in range(60)]
SMALL = {"model": "cnn", "width": 2, "epochs": 1, "batch_size": 16, "num_workers": 1, "augment": "none",
         "threads_per_worker": 1}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """A run sets the number of threads; it is put back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """Folders with the same inputs at two places: dataset, scores, a user's scores, coreset, checkpoints and more."""
    root = tmp_path_factory.mktemp("worlds")
    dataset = make_image_dataset(root / "here" / "dataset", LABELS, LABELS[:20])
    make_scoring_run(root / "here" / "scores", dataset, LABELS)
    coreset = select(out=f"{root}/here/coreset", scores=f"{root}/here/scores", fraction=0.8)
    make_checkpoint(root / "here" / "checkpoint", dataset.path, coreset=coreset.path)
    make_checkpoint(root / "here" / "init_from", dataset.path, width=2)
    extra = make_image_dataset(root / "here" / "extra_dataset", LABELS[:40])
    select(out=f"{root}/here/extra_coreset", dataset=extra.path, method="random", fraction=0.5)
    ids = dataset_ids(dataset)
    pq.write_table(pa.table({"sample_id": ids, "score": uniform_draws(0, ids)}), root / "here" / "user_scores")
    pq.write_table(pa.table({"sample_id": ids[::7]}), root / "here" / "exclude")
    shutil.copytree(root / "here", root / "there")
    return root / "here", root / "there"


def dataset_ids(dataset):
    """Ids of its training samples."""
    return open_dataset(dataset.path).index("train")["sample_id"].to_numpy()


def run_training(config):
    """Identity and weights."""
    dataset, parents = open_run_inputs(config)
    extra = extra_data(config, dataset, parents)
    fit = make_training_fit(config, dataset, parents["coreset"], parents["init_from"], extra)
    state = train_here(fit, read_split(dataset, "train", fit.read_sample_ids()))
    return run_identity("checkpoint", config, parents), [tensor.tolist() for tensor in state.model.values()]


def run_scoring(config):
    """Identity and the content of the score table."""
    dataset, parents = open_run_inputs(config)
    rows = read_split(dataset, "train", read_sample_ids(parents["coreset"]))
    fit = make_scoring_fit(
        config, dataset, parents["coreset"], parents["init_from"], extra_data(config, dataset, parents)
    )
    each = make_recorder(config, fit, dataset, config.out, f"{config.out}/lists")
    state = fit_here(fit, rows, LocalContext(), each)
    parts = read_part_lists(f"{config.out}/lists", state.carried["part_lists"])
    parts += read_part_lists(f"{config.out}/lists/extra", state.carried["extra.part_lists"])
    return run_identity("scoring_run", config, parents), fingerprint(parts)


def run_evaluation(config):
    """Identity and the outcome of every image."""
    made = attack_here(config, open_dataset(config.dataset), "cpu")
    return made.manifest["identity"], made.fingerprint


def run_reduction(config):
    """Identity and every row."""
    made = reduce(config)
    return made.manifest["identity"], read_hardness(open_hardness(made.path)).to_pylist()


def run_selection(config):
    """Identity and the kept ids with what is written beside them."""
    made = select(config)
    return made.manifest["identity"], made.fingerprint


def run_analysis(config):
    """The parents' fingerprints and the distance of every sample."""
    inputs = open_analysis(config)
    return [parent.fingerprint for parent in inputs.parents.values()], attack_samples(config, inputs).to_pylist()


RUN_INPUTS = ("dataset", "coreset", "init_from", "extra_dataset", "extra_coreset")
RUNS = {
    TrainConfig: (run_training, SMALL | {"training": "trades", "attack_steps": 1}, RUN_INPUTS),
    ScoreConfig: (run_scoring, SMALL | {"score_pass": "eval", "initial_pass": True}, RUN_INPUTS),
    EvaluateConfig: (run_evaluation, {"eval_eps": 0.1, "threads_per_worker": 1}, ("dataset", "checkpoint")),
    ReduceConfig: (run_reduction, {"bucket_rows": 100}, ("scores",)),
    CoresetConfig: (run_selection, {"fraction": 0.5}, ("scores", "dataset", "user_scores", "exclude")),
    AnalyzeConfig: (run_analysis, {"num_train_samples": 50, "eval_eps": 0.1}, ("scores", "checkpoint", "dataset")),
}


def assert_fields_change_nothing(kind, worlds, tmp_path):
    """One field after the other, inputs moved to another place among them."""
    run, fields, inputs = RUNS[kind]
    here, there = worlds
    moved = {name: str(there / name) for name in inputs} | {"bucket_rows": 70}
    base = fields | {name: str(here / name) for name in inputs}
    whole = run(kind(out=str(tmp_path / "whole"), **base))
    # A file of weights stands instead of a checkpoint, and a claim needs AutoAttack: tests/evaluation/ has both.
    for name in sorted(SAME[kind] - {"weights_file", "claim"}):
        out = str(tmp_path / f"other-{name}")
        value = out if name == "out" else (OTHER | moved)[name]
        assert run(kind(**base | {"out": out, name: value})) == whole, name


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(RUNS.keys() - {CoresetConfig}, key=str))
def test_a_field_that_is_in_no_identity_changes_no_result(kind, worlds, tmp_path):
    """What is computed in one process."""
    assert_fields_change_nothing(kind, worlds, tmp_path)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_field_that_is_in_no_identity_changes_no_coreset(worlds, tmp_path):
    """Its images, where they are kept as well, are written by Ray tasks."""
    assert_fields_change_nothing(CoresetConfig, worlds, tmp_path)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_what_an_import_merely_allows_changes_no_dataset(tmp_path):
    """A dataset is known by its labels and images."""
    assert SAME[PrepareConfig] == {"out", "overwrite", "take_over", "allow_one_class", "source_check"}
    one = prepare(out=str(tmp_path / "one"))
    two = prepare(out=str(tmp_path / "two"), overwrite=True, take_over=True, allow_one_class=True,
                  source_check=False)  # fmt: skip

    assert one.manifest["identity"] == two.manifest["identity"]
    assert one.fingerprint == two.fingerprint
