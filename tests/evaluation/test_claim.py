"""Claims for RobustBench: what was measured, in its words; what is not known is empty; nothing without AutoAttack."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from easycore_ray import evaluate
from easycore_ray.config.evaluation import EvaluateConfig
from easycore_ray.data.dataset import open_dataset
from easycore_ray.evaluation.attacked_model import open_attacked
from easycore_ray.evaluation.claim import check_claim, make_claim
from easycore_ray.evaluation.evaluate import finish_evaluation
from easycore_ray.runtime.claims import claim_artifact
from easycore_ray.storage.errors import EasyCoreError, FieldsError
from tests.artifacts import edit_manifest, make_checkpoint, make_image_dataset

pytestmark = pytest.mark.slow

LABELS = [number % 3 for number in range(30)]
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture
def claimed(tmp_path):
    """Configuration of an evaluation that is finished: of 20 images 15 clean, 9 under AutoAttack, 8 under PGD too."""
    dataset = make_image_dataset(tmp_path / "dataset", LABELS, LABELS[:20]).path
    checkpoint = make_checkpoint(tmp_path / "model", dataset).path
    config = EvaluateConfig(checkpoint=checkpoint, dataset=dataset, out=f"{tmp_path}/evaluation", eval_eps="8/255",
                            attack=("pgd20", "autoattack"), claim=f"{tmp_path}/claim.json")  # fmt: skip
    finish(config, {"autoattack": range(9), "pgd20": range(1, 11)})
    return config


def finish(config, kept):
    """A finished evaluation in which these images withstand each attack."""
    parents = open_attacked(config, open_dataset(config.dataset)) | {"dataset": open_dataset(config.dataset)}
    columns = {
        "sample_id": np.arange(20),
        "label": np.array(LABELS[:20], np.int32),
        "clean_correct": np.arange(20) < 15,
    }
    columns |= {f"robust_{name}_8/255": np.isin(np.arange(20), ids) for name, ids in kept.items()}
    made = claim_artifact("evaluation", config, parents)
    return finish_evaluation(config, made, parents, [pa.table(columns)], 1.0)


def written(config):
    """The claim of an evaluation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray.init", lambda *_, **__: pytest.fail("Ray was started"))
        evaluate(config)
    return json.loads(Path(config.claim).read_text())


def test_what_was_measured_is_there_and_what_is_not_known_is_empty(claimed):
    """The fields and the forms of RobustBench's model_info files; nothing is attacked anew for it."""
    assert written(claimed) == {
        "name": "", "authors": "", "link": "", "venue": "", "reported": "",
        "dataset": "", "threat_model": "Linf", "eps": "8/255", "clean_acc": "75.00", "autoattack_acc": "45.00",
        "external": "40.00", "additional_data": False, "number_forward_passes": 1, "architecture": "cnn",
        "footnote": "", "unreliable": False,
    }  # fmt: skip


def test_what_was_filled_in_stays(claimed, tmp_path):
    """When the claim is written again; measured values are those of the evaluation."""
    (tmp_path / "claim.json").write_text(
        json.dumps(
            {"name": "A title", "autoattack_acc": "99.00", "external": "98.00", "code": "https://c", "dataset": "x"}
        )
    )
    found = written(claimed)

    assert (found["name"], found["code"], found["dataset"], found["authors"]) == ("A title", "https://c", "x", "")
    assert (found["autoattack_acc"], found["external"]) == ("45.00", "40.00")


def test_what_is_left_to_fill_in_is_said(claimed, capsys):
    written(claimed)
    assert "left to fill in: name, authors, link, venue, reported, dataset" in capsys.readouterr().err


def test_no_external_accuracy_where_autoattack_leaves_least(claimed, tmp_path):
    """It alone decides then."""
    config = claimed.replace(out=f"{tmp_path}/other", attack="autoattack")
    finish(config, {"autoattack": range(9)})

    assert "external" not in written(config)


@pytest.mark.parametrize(
    ("edits", "changes", "expected"),
    [
        ({"classes": CIFAR10}, {}, {"dataset": "cifar10"}),
        ({"config": {"source": "torchvision:CIFAR100"}}, {}, {"dataset": "cifar100"}),
        ({"counts": {"train": 30, "val": 0, "test": 10_000}}, {},
         {"footnote": "AutoAttack on 20 of the 10,000 test images."}),
        ({"fingerprint": "f" * 64}, {}, {"additional_data": ""}),
        ({}, {"norm": "l2"}, {"threat_model": "L2"}),
    ],
)  # fmt: skip
def test_dataset_data_and_threat_are_in_robustbenchs_words(claimed, edits, changes, expected):
    """By classes or source; that data of others were seen or not is known of our own checkpoints alone."""
    evaluation = evaluate(claimed)
    evaluation.manifest["config"].update(changes)
    (attacked,) = open_attacked(claimed, open_dataset(claimed.dataset)).values()
    edit_manifest(claimed.dataset, **edits)
    found = make_claim(evaluation, attacked, open_dataset(claimed.dataset))

    assert {name: found[name] for name in expected} == expected


def test_extra_data_is_additional_data(claimed):
    """As RobustBench counts it: generated images too."""
    evaluation, dataset = evaluate(claimed), open_dataset(claimed.dataset)
    (attacked,) = open_attacked(claimed, dataset).values()
    attacked.manifest["parents"]["extra_dataset"] = {"path": "e", "fingerprint": "e" * 64}

    assert make_claim(evaluation, attacked, dataset)["additional_data"] is True


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"name": "wrn-34-10", "width": 20}, "WideResNet-34-20"),
        ({"name": "preactresnet18-fast", "width": 64}, "PreActResNet-18"),
        ({"name": "timm:vit_tiny_patch16_224", "width": None}, "vit_tiny_patch16_224"),
    ],
)
def test_architectures_are_written_as_robustbench_does(claimed, model, expected):
    """Wide ones with their factor."""
    (attacked,) = open_attacked(claimed, open_dataset(claimed.dataset)).values()
    attacked.manifest["model"].update(model)

    assert make_claim(evaluate(claimed), attacked, open_dataset(claimed.dataset))["architecture"] == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attack": ("pgd20",)}, "claim needs autoattack among the attacks, got pgd20: .*pass --attack autoattack"),
        ({"attack": "none"}, "claim needs autoattack"),
        ({"eval_eps": (0.1, 0.2)}, "claim is of one eval_eps, got 2"),
        ({"split": "val"}, "claim is of the test split, got val"),
        ({"claim": "claim.txt"}, r"claim must end in \.json, got 'claim.txt'"),
    ],
)
def test_a_claim_that_would_be_none_is_refused(changes, message):
    """On construction, before hours of attacks."""
    fields = {"checkpoint": "c", "dataset": "d", "out": "o", "attack": "autoattack", "claim": "claim.json"}
    with pytest.raises(FieldsError, match=message):
        EvaluateConfig(**fields | changes)


def test_what_is_no_claim_is_never_overwritten(claimed, tmp_path):
    """Found out before anything is attacked."""
    (tmp_path / "claim.json").write_text('{"mine": 1}')
    for refused in (lambda: check_claim(claimed.claim), lambda: evaluate(claimed.replace(out=f"{tmp_path}/new"))):
        with pytest.raises(EasyCoreError, match=r"claim\.json is there and is no claim; choose another file"):
            refused()
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(EasyCoreError, match="is a folder; pass the name of a JSON file"):
        check_claim(f"{tmp_path}/folder.json")
    assert not (tmp_path / "new").exists()
