"""Evaluation in this process: shards merge to the whole, headline, notes, and what is refused."""

import json
import re
import warnings

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from easycore_ray.cli.command import run
from easycore_ray.cli.results import run_evaluate
from easycore_ray.config.evaluation import EvaluateConfig
from easycore_ray.data.dataset import open_dataset
from easycore_ray.data.samples import Samples
from easycore_ray.evaluation import attack_shards
from easycore_ray.evaluation.attack_shards import attack_rows, attack_shard, merge_shards
from easycore_ray.evaluation.evaluate import evaluate, summarise_outcomes
from easycore_ray.evaluation.sanity_checks import SuspiciousEvaluation
from easycore_ray.evaluation.threats import Threats, threats_of
from easycore_ray.experiments.trial_runner import attack_here
from easycore_ray.storage import paths
from easycore_ray.storage.errors import EasyCoreError
from tests import users_models
from tests.artifacts import make_checkpoint, make_image_dataset


def linear(num_classes=3):
    draws = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, num_classes))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(num_classes, 16, generator=draws))
        model[1].bias.copy_(-0.5 * model[1].weight.sum(dim=1))
    return model.eval()


def rows_of(model, count):
    """Random images; the model's own answers, every seventh wrong."""
    images = torch.randint(0, 256, (count, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        labels = model(images.float() / 255).argmax(dim=1)
    labels[::7] = (labels[::7] + 1) % 3
    return Samples(sample_ids=torch.arange(count), images=images, labels=labels)


def part(rows, start, stop):
    return Samples(*(column[start:stop] for column in rows))


def settings(**changes):
    return EvaluateConfig(**dict(checkpoint="c", dataset="d", out="o") | changes)


@pytest.mark.slow
def test_shards_in_any_order_merge_to_the_whole():
    """AutoAttack and PGD of each shard alone give what one process gives for all, notes included."""
    pytest.importorskip("pyautoattack")
    model = linear()
    rows = rows_of(model, 260)
    threats = Threats(attack=("pgd20", "autoattack"), eps=(0.02,), norm="linf", seed=3)
    whole = attack_rows(model, rows, threats)
    last = attack_shard(model, part(rows, 250, 260), threats, device="cpu")
    first = attack_shard(model, part(rows, 0, 250), threats, device="cpu", first=True)
    summary = summarise_outcomes(whole, threats, 3)
    robust = {row["attack"]: row["accuracy"] for row in summary["robust"]}

    assert merge_shards([first, last]).equals(whole, check_metadata=True)
    assert robust["worst"] == summary["robust_accuracy"] <= robust["autoattack"] <= robust["pgd20"]
    assert robust["pgd20"] <= summary["clean_accuracy"] < 1
    assert any("DLR" in text and "2 of 2 shards" in text for text in summary["warnings"])
    assert summary["suspicious"] == []
    json.dumps(summary, allow_nan=False)


def test_none_is_the_clean_accuracy_only():
    """No column, no row, no headline."""
    model = linear()
    threats = threats_of(settings(attack=("none",)))
    outcomes = attack_rows(model, rows_of(model, 30), threats)
    summary = summarise_outcomes(outcomes, threats, 3)

    assert outcomes.column_names == ["sample_id", "label", "clean_correct"]
    assert (summary["robust"], summary["robust_accuracy"], summary["suspicious"]) == ([], None, [])
    assert summary["clean_accuracy"] == 25 / 30


def test_headline_is_the_pointwise_worst():
    """An image counts only if it is correct under every attack."""
    columns = {"sample_id": np.arange(4), "label": np.zeros(4, np.int32), "clean_correct": np.ones(4, bool)}
    columns |= {"robust_fgsm_0.1": np.array([1, 1, 0, 1], bool), "robust_pgd20_0.1": np.array([0, 1, 1, 1], bool)}
    summary = summarise_outcomes(
        pa.table(columns), Threats(attack=("fgsm", "pgd20"), eps=(0.1,), norm="linf", seed=0), 1
    )

    assert summary["robust_accuracy"] == 0.5


def test_the_calibration_error_is_that_of_all_clean_predictions():
    """Over shards, from logits of the whole at once; the same from shards in any order, and a column of no outcome."""
    model = linear()
    rows = rows_of(model, 260)
    threats = threats_of(settings(attack=("none",)))
    with torch.no_grad():
        sure, answer = model(rows.images.double().float() / 255).softmax(dim=1).max(dim=1)
    error = 0.0
    for number in range(15):
        inside = (sure.double() > number / 15) & (sure.double() <= (number + 1) / 15)
        if inside.any():
            right = (answer == rows.labels)[inside].double().mean()
            error += float(inside.double().mean() * (right - sure[inside].double().mean()).abs())
    shards = [attack_shard(model, part(rows, *ends), threats, device="cpu") for ends in ((0, 250), (250, 260))]
    (ahead, behind) = (summarise_outcomes(merge_shards(order), threats, 3) for order in (shards, shards[::-1]))
    older = merge_shards([shards[0], shards[1].replace_schema_metadata(None)])

    assert ahead["clean_ece"] == behind["clean_ece"] == pytest.approx(error, abs=1e-6) != 0
    assert "clean_ece" not in summarise_outcomes(older, threats, 3), "a shard kept by an earlier version has none"


def test_more_restarts_never_leave_more():
    """Image by image; what one start leaves out of reach another one finds, on a model with steps in its surface."""

    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = linear()

        def forward(self, inputs):
            return self.inner((inputs * 12).round() / 12) + 0 * inputs.flatten(1)[:, :3]

    model = Steps().eval()
    rows = rows_of(model, 260)
    once, often = (
        attack_rows(model, rows, threats_of(settings(eval_eps=(0.06,), pgd_restarts=count)))["robust_pgd20_0.06"]
        for count in (1, 6)
    )

    assert not (often.to_numpy() & ~once.to_numpy()).any()
    assert often.to_numpy().sum() < once.to_numpy().sum()


def test_a_device_without_room_for_a_shard_attacks_it_in_pieces():
    """With the outcomes of a large one, and a warning."""

    class Narrow(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = linear()

        def forward(self, inputs):
            if len(inputs) > 40:
                raise torch.OutOfMemoryError(f"no memory for {len(inputs)}")
            return self.inner(inputs)

    rows = rows_of(linear(), 260)
    threats = Threats(attack=("fgsm", "pgd20"), eps=(0.02,), norm="linf", seed=3)
    whole = attack_rows(linear(), rows, threats)
    with pytest.warns(RuntimeWarning, match="no memory for 250 images at a time"):
        halved = attack_rows(Narrow(), rows, threats)
    summary = summarise_outcomes(halved, threats, 3)

    assert halved.equals(whole)
    assert ["no memory for 250 images" in text and "2 of 2 shards" in text for text in summary["warnings"]] == [True]
    given = attack_rows(Narrow(), rows, threats_of(settings(attack=threats.attack, eval_eps=threats.eps, seed=3,
                                                            eval_batch_size=40)))  # fmt: skip
    assert given.equals(whole)
    assert summarise_outcomes(given, threats, 3)["warnings"] == []


def test_a_model_without_gradients_is_suspicious():
    """PGD at a hopeless eps gets nowhere, which is said."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = linear()

        def forward(self, inputs):
            return self.inner((inputs * 2).round() / 2 + 0 * inputs)

    model = Masked().eval()
    rows = rows_of(model, 120)
    threats = Threats(attack=("fgsm",), eps=(1e-3,), norm="linf", seed=0)

    assert any(
        "masked" in text for text in summarise_outcomes(attack_rows(model, rows, threats), threats, 3)["suspicious"]
    )


@pytest.fixture
def evaluated(tmp_path):
    """A function that gives the command line of an evaluation of some model, done already as in a sweep's trial."""
    labels = [number % 3 for number in range(30)]
    dataset = make_image_dataset(tmp_path / "dataset", labels, labels[:20])

    def evaluation_of(**fields):
        checkpoint = make_checkpoint(tmp_path / "model", dataset.path, **fields)
        config = settings(checkpoint=checkpoint.path, dataset=dataset.path, out=str(tmp_path / "evaluation"))
        attack_here(config, open_dataset(dataset.path), "cpu")
        return ["--checkpoint", config.checkpoint, "--dataset", config.dataset, "--out", config.out]

    return evaluation_of


def test_a_killed_trial_goes_on_from_the_shards_it_has_attacked(tmp_path, monkeypatch):
    """Hours of AutoAttack in a sweep's trial are not lost; the outcome is that of one go, and the shards are gone."""
    pytest.importorskip("pyautoattack")
    monkeypatch.setattr(attack_shards, "SHARD_ROWS", 8)
    labels = [number % 3 for number in range(30)]
    dataset = open_dataset(make_image_dataset(tmp_path / "dataset", labels, labels[:20]).path)
    checkpoint = make_checkpoint(tmp_path / "model", dataset.path, model="tests.users_models:good", width=None)
    config = settings(
        checkpoint=checkpoint.path, dataset=dataset.path, out=str(tmp_path / "killed"), attack=("pgd20", "autoattack"),
        eval_eps=(0.1,),
    )  # fmt: skip
    whole = attack_here(config.replace(out=str(tmp_path / "whole")), dataset, "cpu")
    attacked = []

    def attack(model, rows, *rest, **options):
        if len(attacked) == 2:
            raise KeyboardInterrupt
        attacked.append(int(rows.sample_ids[0]))
        return attack_shard(model, rows, *rest, **options)

    monkeypatch.setattr(attack_shards, "attack_shard", attack)
    with pytest.raises(KeyboardInterrupt):
        attack_here(config, dataset, "cpu")
    kept = [path.name for path in (tmp_path / "killed").glob("shards-*/*")]
    monkeypatch.setattr(attack_shards, "attack_shard", lambda model, rows, *rest, **options: (
        attacked.append(int(rows.sample_ids[0])), attack_shard(model, rows, *rest, **options))[1])  # fmt: skip
    again = attack_here(config, dataset, "cpu")

    assert sorted(kept) == ["000000000.parquet", "000000008.parquet"]
    assert len(attacked) == len(set(attacked)) == 3, "no shard was attacked twice"
    assert again.fingerprint == whole.fingerprint
    assert again.manifest["summary"] == whole.manifest["summary"]
    assert not list((tmp_path / "killed").glob("shards-*/*"))


def test_a_suspicious_evaluation_is_loud_whenever_it_is_asked_for(evaluated, capsys):
    """Exit code 1 and one closing line that gives the reason; in Python a warning; the result is there."""
    arguments = evaluated(model="tests.users_models:masked", width=None)
    out = arguments[-1]
    for _ in range(2):
        with pytest.raises(SystemExit) as caught:
            run(EvaluateConfig, run_evaluate, arguments)
        last = capsys.readouterr().err.splitlines()[-1]

        assert caught.value.code == 1
        assert re.fullmatch(rf"error: this evaluation is suspicious: .*masked.*results are kept in {out}, .*", last)
    with pytest.warns(SuspiciousEvaluation, match=r"masked.*do not quote") as caught:
        found = evaluate(**vars(parsed(arguments)))
    assert caught[0].filename == __file__
    assert found.manifest["summary"]["suspicious"] == paths.read_json(f"{out}/summary.json")["suspicious"] != []


@pytest.mark.parametrize("model", ["detached", "one_hot"])
def test_a_model_whose_logits_carry_no_gradient_is_evaluated_and_doubted(evaluated, capsys, model):
    """No traceback: the attacks do what they can without a gradient, and the result says what it is worth."""
    arguments = evaluated(model=f"tests.users_models:{model}", width=None)
    with pytest.raises(SystemExit) as caught:
        run(EvaluateConfig, run_evaluate, arguments)

    assert caught.value.code == 1
    assert "suspicious: the logits carry no gradient to the pixels" in capsys.readouterr().err.splitlines()[-1]
    summary = paths.read_json(f"{arguments[-1]}/summary.json")
    assert "the logits carry no gradient to the pixels" in summary["suspicious"][0]
    assert summary["robust_accuracy"] <= summary["clean_accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "norm", "eps"), [(users_models.detached, "linf", 0.5), (users_models.one_hot, "l2", 5.0)]
)
def test_every_attack_runs_without_a_gradient(make, norm, eps):
    """FGSM leaves an image as it is, PGD its random start; of AutoAttack's four one needs no gradient."""
    pytest.importorskip("pyautoattack")
    torch.manual_seed(0)
    model = make(num_classes=3, image_shape=(1, 6, 6)).eval()
    images = torch.randint(0, 256, (2, 1, 6, 6), dtype=torch.uint8)
    labels = model(images.float() / 255).argmax(dim=1)
    threats = Threats(attack=("fgsm", "pgd20", "autoattack"), eps=(eps,), norm=norm, seed=0)
    summary = summarise_outcomes(attack_rows(model, Samples(torch.arange(2), images, labels), threats), threats, 3)
    robust = {row["attack"]: row["accuracy"] for row in summary["robust"]}

    assert summary["suspicious"][0].startswith("the logits carry no gradient")
    assert any("gradient zero" in text for text in summary["warnings"])
    assert robust["fgsm"] == 1
    assert robust["autoattack"] < 1
    json.dumps(summary, allow_nan=False)


def test_a_sound_evaluation_is_quiet(evaluated, capsys):
    """No warning, no closing line, no exit."""
    arguments = evaluated(steps=100)  # after one it gives one answer to everything, which no attack changes
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(EvaluateConfig, run_evaluate, arguments).manifest["summary"]["suspicious"] == []
    assert "error" not in capsys.readouterr().err


def parsed(arguments):
    """The configuration of a command line."""
    return run(EvaluateConfig, lambda config: config, arguments)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attack": ("cw",)}, "unknown attack 'cw'"),
        ({"attack": ("none", "fgsm")}, "stands alone"),
        ({"eval_eps": (8.0,)}, "did you mean 8/255"),
        ({"eval_eps": (-0.1,)}, "eps must be"),
        ({"num_workers": 0}, "num_workers must be N >= 1"),
    ],
)
def test_bad_input_is_refused(changes, words):
    """One line, before any work."""
    with pytest.raises(EasyCoreError, match=words):
        settings(**changes)
