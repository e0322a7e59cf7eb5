"""A small artifact of every kind."""

import shutil

import numpy as np
import pyarrow as pa
import pytest

from easycore_ray import audit, select
from easycore_ray.config.base import to_dict
from easycore_ray.config.evaluation import EvaluateConfig
from easycore_ray.config.stages import TrainConfig
from easycore_ray.core.models import build_model
from easycore_ray.engine.checkpoint import write_model
from easycore_ray.evaluation.evaluate import finish_evaluation
from easycore_ray.storage import artifact, hashes, paths
from easycore_ray.storage.artifact import Claim
from tests.artifacts import make_image_dataset, make_scoring_run

LABELS = [number % 3 for number in range(60)]


def claim_of(folder, kind):
    """A claim that goes straight to its manifest."""
    return Claim(str(folder), kind, "i" * 64, "nonce", resumed=False)


def make_all(root):
    """An artifact of every kind, by kind; those after the coreset with made-up content in the real format."""
    dataset = make_image_dataset(root / "dataset", LABELS)
    scores = make_scoring_run(root / "scores", dataset, LABELS)
    coreset = select(out=f"{root}/coreset", scores=scores.path, fraction=0.4)
    audit(out=f"{root}/audit", scores=scores.path)
    model = dict(name="cnn", num_classes=3, image_shape=[1, 4, 4], width=2, mean=[0.5], std=[0.25], seed=0)
    weights = build_model(**model | {"image_shape": (1, 4, 4), "mean": (0.5,), "std": (0.25,)}).state_dict()
    content = write_model(f"{root}/checkpoint", weights)
    config = TrainConfig(out=f"{root}/checkpoint", dataset=dataset.path, coreset=coreset.path, eps=4 / 255)
    checkpoint = artifact.finish(
        claim_of(root / "checkpoint", "checkpoint"), fingerprint=hashes.content_hash(content), wall_seconds=100.0,
        config=to_dict(config), parents={"dataset": dataset, "coreset": coreset}, counts={"samples": 24},
        model=model, epochs=[{"epoch": 1, "train_loss": 1.0, "train_accuracy": 0.5}], num_workers=1,
    )  # fmt: skip
    outcomes = pa.table({"sample_id": np.arange(8), "label": np.arange(8, dtype=np.int32) % 3,
                         "clean_correct": np.arange(8) < 6, "robust_pgd20_8/255": np.arange(8) < 2})  # fmt: skip
    config = EvaluateConfig(out=f"{root}/evaluation", checkpoint=checkpoint.path, dataset=dataset.path)
    parents = {"checkpoint": checkpoint, "dataset": dataset}
    evaluation = finish_evaluation(config, claim_of(root / "evaluation", "evaluation"), parents, [outcomes], 7200.0)
    page = {"report.html": b"<p>", "plots/a.png": b"png"}
    for name, part in page.items():
        paths.write_bytes(f"{root}/report/{name}", part)
    digest = hashes.content_hash(*(hashes.content_hash(name, part) for name, part in page.items()))
    report = artifact.finish(claim_of(root / "report", "report"), fingerprint=digest, config={}, parents={},
                             counts={"plots": 1}, wall_seconds=0.0, files=list(page))  # fmt: skip
    shutil.copytree(evaluation.path, root / "sweep" / "trials" / "t" / "evaluation")
    paths.write_json(f"{root}/sweep/summary.json", {"rows": [{}]})
    sweep = artifact.finish(claim_of(root / "sweep", "sweep"), fingerprint="s" * 64, config={}, wall_seconds=0.0,
                            parents={"dataset": dataset, "scores": scores},
                            counts={"trials": 1, "rows": 1})  # fmt: skip
    trials = {"t_s1": {"seed": 1, "clean_accuracy": 0.5}, "t_s0": {"seed": 0, "clean_accuracy": 1 / 3}}
    paths.write_json(f"{root}/results.json", {"trials": trials})
    paths.write_json(f"{root}/study/summary.json", {"rows": [{}]})
    artifact.finish(claim_of(root / "study", "study"), fingerprint=hashes.study_fingerprint(trials), config={},
                    parents={"dataset": dataset}, counts={"trials": 2, "rows": 1}, wall_seconds=0.0,
                    results=f"{root}/results.json")  # fmt: skip
    for stage, name in ((sweep, "summary.json"), (report, "report.html")):
        paths.copy_file(f"{stage.path}/{name}", f"{root}/{name}")
    artifact.finish(claim_of(root, "pipeline"), fingerprint=hashes.content_hash(sweep.fingerprint), config={},
                    parents={"dataset": dataset, "scores": scores, "sweep": sweep, "report": report},
                    counts={"trials": 1}, wall_seconds=0.0)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Artifacts of all kinds; not to be changed."""
    root = tmp_path_factory.mktemp("made") / "run"
    make_all(root)
    return root


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Where the artifacts to be damaged lie, and a copy of them; they name each other by their paths."""
    root = tmp_path_factory.mktemp("own")
    make_all(root / "run")
    return root / "run", shutil.copytree(root / "run", root / "copy")


@pytest.fixture
def own(whole):
    """The same, to be damaged."""
    root, copy = whole
    shutil.rmtree(root)
    return shutil.copytree(copy, root)
