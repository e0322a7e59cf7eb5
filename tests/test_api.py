"""The Python API: signatures and stubs from the configurations, handles, plans that touch nothing."""

import dataclasses
import inspect
import os
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import easycore_ray
from easycore_ray import evaluate, reduce, score, select, sweep, train
from easycore_ray.config.stages import ScoreConfig, TrainConfig
from easycore_ray.config.work_plan import Estimate, WorkPlan, join_plans
from easycore_ray.core.models import build_model
from easycore_ray.core.names import default_width
from easycore_ray.data.dataset import open_dataset
from easycore_ray.engine import measure
from easycore_ray.engine.throughput import FIGURES, Network, Work, assumed_rates, checkpoint_bytes, estimates_of
from easycore_ray.runtime.cluster import Capacity
from easycore_ray.storage.errors import EasyCoreError
from tests import stubs
from tests.artifacts import make_checkpoint, make_image_dataset, make_scoring_run

LABELS = [number % 3 for number in range(60)]
VERBS = sorted(easycore_ray._VERBS)
CIFAR = (3, 32, 32)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A dataset, a scoring run, a coreset and a checkpoint."""
    folder = tmp_path_factory.mktemp("world")
    dataset = make_image_dataset(folder / "dataset", LABELS, LABELS[:20], val_labels=LABELS[:6])
    make_scoring_run(folder / "scores", dataset, LABELS)
    select(out=folder / "coreset", scores=folder / "scores", fraction=0.5)
    make_checkpoint(folder / "model", dataset.path)
    return folder


class TestSignatures:
    def test_the_stub_file_is_that_of_the_configurations(self):
        """Type checkers see what the verbs take."""
        assert stubs.STUB.read_text() == stubs.render(), "run: python -m tests.stubs"

    @pytest.mark.parametrize("name", VERBS)
    def test_a_verb_has_the_signature_of_its_configuration(self, name):
        """Names, defaults and order, for help() and completion; plan takes ``measure`` as well."""
        verb = getattr(easycore_ray, name)
        parameters = inspect.signature(verb).parameters
        fields = {spec.name: spec.default for spec in dataclasses.fields(verb.kind)}

        found = {key: each.default for key, each in parameters.items()}
        assert found == {
            key: inspect.Parameter.empty if value is dataclasses.MISSING else value for key, value in fields.items()
        }
        assert set(verb.__annotations__) == {*fields, "return"}
        for key in fields:
            assert f"\n    {key}: " in verb.__doc__
            assert f"{key}: see the configuration" not in verb.__doc__
        if hasattr(verb, "plan"):
            assert list(inspect.signature(verb.plan).parameters) != list(parameters)
            assert set(inspect.signature(verb.plan).parameters) == {*parameters, "measure"}
            assert inspect.signature(verb.plan).return_annotation is WorkPlan

    def test_every_verb_that_makes_an_artifact_has_a_plan(self):
        """The others change nothing, or say themselves what they would do."""
        without = {name for name in VERBS if not hasattr(getattr(easycore_ray, name), "plan")}

        assert without == {"inspect", "status", "clean"}

    def test_what_the_stubs_accept_is_accepted(self, tmp_path):
        """Path objects, one value for several, eps and ranges of workers as text."""
        plain = ScoreConfig(
            dataset=str(tmp_path), out=str(tmp_path / "o"), num_workers=(2, 4), batch_size=120, milestones=(0.5,)
        )

        assert (
            ScoreConfig(dataset=tmp_path, out=tmp_path / "o", num_workers="2:4", batch_size=120, milestones=0.5)
            == plain
        )


class TestHandles:
    def test_each_artifact_opens_as_its_handle(self, world):
        """By its kind; a handle is its folder wherever a path is taken, and so is opened again."""
        names = {"dataset": "Dataset", "scores": "ScoringRun", "scores/hardness": "HardnessTable",
                 "coreset": "Coreset", "model": "Checkpoint", "scores/table": "Artifact"}  # fmt: skip
        for folder, name in names.items():
            found = easycore_ray.open(world / folder)

            assert type(found) is getattr(easycore_ray, name)
            assert os.fspath(found) == str(world / folder)
            assert easycore_ray.open(found) == found

    def test_kinds_and_handles_are_the_same_words(self):
        """Every handle but the plain one is named after a kind of artifact."""
        kinds = {"dataset", "scoring_run", "hardness_table", "coreset", "checkpoint", "evaluation", "sweep", "report",
                 "study", "pipeline", "analysis", "audit"}  # fmt: skip

        assert {"".join(part.capitalize() for part in kind.split("_")) for kind in kinds} | {"Artifact"} == set(
            easycore_ray._HANDLES
        )

    def test_scores_and_coresets_give_their_rows(self, world):
        """Hardness by id as Arrow, kept ids as int64."""
        table, coreset = easycore_ray.open(world / "scores").hardness(["sample_id", "aign"]), easycore_ray.open(
            world / "coreset"
        )  # fmt: skip
        ids = coreset.sample_ids()

        assert table["sample_id"].to_pylist() == list(range(60))
        assert (ids.dtype, len(ids)) == (np.int64, 30)
        assert easycore_ray.open(world / "scores/hardness").table(["sample_id", "aign"]) == table
        aign = table["aign"].to_numpy()
        assert aign[ids].max() <= np.delete(aign, ids).min()

    def test_a_checkpoint_gives_a_plain_module(self, world):
        """On pixels in [0, 1], in evaluation mode: an image's logits do not depend on the others in its batch."""
        model = easycore_ray.open(world / "model").load_model()
        pixels = torch.rand(5, 1, 4, 4)

        assert not model.training
        with torch.no_grad():
            logits = model(pixels)
            torch.testing.assert_close(model(pixels[:1]), logits[:1])
        assert logits.shape == (5, 3)
        assert easycore_ray.open(world / "model").classes == ["class 0", "class 1", "class 2"]

    def test_an_evaluation_gives_its_accuracies(self):
        """By eps, as a number or a fraction; the worst of all attacks unless one is named."""
        given = [("fgsm", 2 / 255, 0.6), ("pgd20", 2 / 255, 0.5), ("worst", 2 / 255, 0.4), ("pgd20", 0.0, 0.9)]
        rows = [{"attack": name, "eps": eps, "accuracy": value} for name, eps, value in given]
        found = easycore_ray.Evaluation("/e", {"summary": {"clean_accuracy": 0.9, "robust": rows}})

        assert found.clean_accuracy == 0.9
        assert found.robust_accuracy("2/255") == found.robust_accuracy(2 / 255) == 0.4
        assert (found.robust_accuracy(2 / 255, "fgsm"), found.robust_accuracy(0)) == (0.6, 0.9)
        with pytest.raises(EasyCoreError, match=r"no robust accuracy at eps 4/255; it has fgsm at 2/255, .*pgd20 at 0"):
            found.robust_accuracy("4/255")
        with pytest.raises(EasyCoreError, match="no autoattack accuracy"):
            found.robust_accuracy("2/255", "autoattack")


class TestPlans:
    def test_a_plan_starts_nothing_and_writes_nothing(self, world, tmp_path, monkeypatch):
        """No Ray, no MLflow, no file; a wrong input is refused as by the run."""
        import ray

        monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was started"))
        shared = {"dataset": world / "dataset", "model": "cnn"}
        before = sorted(tmp_path.parent.rglob("*"))
        plans = [
            score.plan(**shared, out=tmp_path / "a", epochs=2),
            reduce.plan(scores=world / "scores", out=tmp_path / "b"),
            select.plan(scores=world / "scores", out=tmp_path / "c"),
            train.plan(**shared, out=tmp_path / "d", coreset=world / "coreset"),
            evaluate.plan(checkpoint=world / "model", dataset=world / "dataset", out=tmp_path / "e"),
            sweep.plan(**shared, scores=world / "scores", out=tmp_path / "f"),
        ]

        assert sorted(tmp_path.parent.rglob("*")) == before
        assert [plan.verb for plan in plans] == ["score", "reduce", "select", "train", "evaluate", "sweep"]
        assert not any(plan.measured or plan.finished for plan in plans)
        with pytest.raises(EasyCoreError, match="holds a dataset, not a checkpoint"):
            evaluate.plan(checkpoint=world / "dataset", dataset=world / "dataset", out=tmp_path / "e")

    def test_a_training_run_is_counted(self, world, tmp_path):
        """Steps over the coreset's samples; images of training and, after each epoch, of validation."""
        plan = train.plan(
            dataset=world / "dataset", coreset=world / "coreset", model="cnn", epochs=4, batch_size=10, num_workers=1,
            training="trades", attack_steps=3, val_attack_steps=5, out=tmp_path / "m",
        )  # fmt: skip

        assert (plan.steps, plan.samples) == (12, 30)
        assert [(each.work, each.images) for each in plan.estimates] == [("trades training", 120), ("validation", 24)]
        assert 2 * 20_000 * 4 < plan.bytes_written < 2 * 30_000 * 4  # a cnn of width 16 has 24,346 parameters
        assert plan.seconds is None
        assert "there is no figure for cnn" in str(plan)

    def test_what_is_finished_or_foreign_is_said(self, world):
        """Of the folder of the result."""
        same = select.plan(scores=world / "scores", fraction=0.5, out=world / "coreset")
        other = select.plan(scores=world / "scores", fraction=0.4, out=world / "coreset")

        assert same.work.startswith("do nothing")
        assert (same.finished, same.makes) == ((str(world / "coreset"),), ())
        assert "would be refused without --overwrite" in other.warnings[0]

    def test_a_sweep_is_the_sum_of_its_trials(self, world, tmp_path):
        """Full data once, each arm at each fraction; TRADES once per beta; every seed."""
        plan = sweep.plan(
            dataset=world / "dataset", scores=world / "scores", model="cnn", batch_size=10, train_epochs=2,
            method=("easycore", "random"), fraction=(0.5, 0.25), training=("standard", "trades"), beta=(1, 6),
            seeds=(0, 1), out=tmp_path / "s",
        )  # fmt: skip

        assert plan.trials == (1 + 2 * 2) * (1 + 2) * 2
        # Two epochs of 6, 3 and 2 steps on 60, 30 and 15 samples.
        assert plan.steps == 2 * (6 + 2 * 3 + 2 * 2) * 3 * 2


class TestFigures:
    def test_a_measured_network_has_its_own_figure(self):
        """With hardware, date and file; the nearest batch size where there are several."""
        gpu = Network("resnet18", None, CIFAR, "cuda", "bf16")
        trades = Work("trades", 1000, 10)

        assert assumed_rates(gpu, 128)(trades)[0] == 4932.0
        rate, source = assumed_rates(gpu, 512)(trades)
        assert rate == 6108.0
        assert source == "assumed: one NVIDIA H100, torch 2.11, 2026-11-27, batch 512, docs/speed.md"

    def test_other_work_scales_by_forward_passes(self):
        """Five attack steps cost 17 forward passes where ten cost 27; a plain step costs 3."""
        rates = assumed_rates(Network("resnet18", 16, CIFAR, "cpu"))

        assert rates(Work("trades", 1, 5))[0] == pytest.approx(154.6 * 27 / 17)
        assert rates(Work("exact", 1))[0] == pytest.approx(1347.8 / 0.8)
        assert "scaled from trades training" in rates(Work("pgd20", 1))[1]

    @pytest.mark.parametrize("network", [
        Network("cnn", None, CIFAR, "cpu"), Network("resnet18", 8, CIFAR, "cpu"),
        Network("resnet18", 16, (3, 224, 224), "cpu"), Network("resnet18", 16, CIFAR, "cuda"),
    ])  # fmt: skip
    def test_what_was_not_measured_has_no_figure(self, network):
        """No number is invented for another network, size or device."""
        rate, source = assumed_rates(network)(Work("standard", 1))

        assert rate is None
        assert source.startswith(f"there is no figure for {network}")

    def test_figures_are_those_of_the_documentation(self):
        """Each stands in docs/speed.md as it is here."""
        text = (stubs.STUB.parent.parent / "docs" / "speed.md").read_text()

        for figure in FIGURES:
            if figure.task == "autoattack":
                assert f"| {100 / figure.images_per_second:.0f} |" in text
            else:
                shown = figure.images_per_second
                assert f"| {shown:,.1f} |" in text or f"| {shown:,.0f} |" in text

    def test_time_is_shared_by_workers_and_device_hours_are_not(self):
        """An hour of work on four workers takes a quarter of one."""
        (estimate,) = estimates_of([Work("standard", 3000), Work("standard", 600)], lambda _: (1.0, "here"), 4)

        assert (estimate.images, estimate.seconds, estimate.device_hours) == (3600, 900, 1)

    def test_joined_plans_add_up(self):
        """A figure that is missing anywhere leaves the time unknown."""
        known = Estimate(work="a", images=100, images_per_second=10, workers=1, source="x")
        plans = [WorkPlan(verb="a", work="", out="o", steps=2, bytes_written=5, estimates=(known,)),
                 WorkPlan(verb="b", work="", out="o", steps=3)]  # fmt: skip
        whole = join_plans("c", "do both", "o", plans)
        unknown = dataclasses.replace(known, images_per_second=None)

        assert (whole.steps, whole.bytes_written, whole.seconds) == (5, 5, 10)
        assert whole.replace(estimates=(known, unknown)).seconds is None
        assert "time: about 10 s, 0.0028 device-hours, from assumed figures" in str(whole)

    @pytest.mark.parametrize("name", ["cnn", "resnet18", "preactresnet18"])
    def test_checkpoints_have_the_size_of_their_weights(self, name):
        """Last and best, within a few percent at the network's own width."""
        norm = {"mean": (0.5,) * 3, "std": (1.0,) * 3}
        model = build_model(name=name, num_classes=10, image_shape=CIFAR, width=default_width(name), seed=0, **norm)
        weights = sum(tensor.numel() * 4 for tensor in model.parameters())

        assert checkpoint_bytes(name, None) == pytest.approx(2 * weights, rel=0.02)


class TestMeasured:
    def test_figures_are_measured_on_the_data(self, world, tmp_path):
        """A few real steps of each kind of work, in this process; the number of threads stays."""
        config = TrainConfig(dataset=world / "dataset", out=tmp_path, model="cnn", width=4, training="trades", eps=0.1,
                             batch_size=16, num_workers=1)  # fmt: skip
        works = [Work("trades", 60, 3), Work("validation", 6, 2), Work("fused", 5), Work("exact", 5), Work("pgd20", 5),
                 Work("fgsm", 5), Work("autoattack", 5)]  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(measure, "_SECONDS", 0.7)
            # Seconds of this process: what else the machine does must not decide which work is dearer.
            patch.setattr(measure, "time", SimpleNamespace(perf_counter=time.process_time))
            rates = measure.measure_rates(config, open_dataset(f"{world}/dataset"), works, "cpu")

        found = {work.task: rates(work) for work in works}
        assert found.pop("autoattack") == (None, "not measured: AutoAttack takes minutes")
        assert all(rate > 0 and source.startswith("measured in this process: a CPU") for rate, source in found.values())
        # Three attack steps cost several times a plain step.
        assert found["fused"][0] > found["trades"][0]

    def test_a_network_too_slow_for_a_batch_is_measured_with_two_images(self, world, tmp_path, monkeypatch):
        """One alone would give batch norm a single value for each channel."""
        monkeypatch.setattr(measure, "_STEP_SECONDS", 1e-9)
        monkeypatch.setattr(measure, "_SECONDS", 0.1)
        config = TrainConfig(dataset=world / "dataset", out=tmp_path, model="cnn", width=4, num_workers=1)
        work = Work("standard", 60)
        rate, source = measure.measure_rates(config, open_dataset(f"{world}/dataset"), [work], "cpu")(work)

        assert rate > 0
        assert source.endswith("batch 2")

    @pytest.mark.ray
    def test_a_measured_plan_asks_the_cluster(self, ray_session, world, tmp_path, monkeypatch):
        """Idle GPUs and missing ones are warned of; figures say that they were measured."""
        import ray

        monkeypatch.setattr(measure, "_SECONDS", 0.5)
        fields = {"dataset": world / "dataset", "model": "cnn", "width": 4, "num_workers": 1, "out": tmp_path / "m"}
        trial = {name: value for name, value in fields.items() if name != "num_workers"}
        plan = train.plan(**fields, measure=True)
        missing = train.plan(**fields, gpus_per_worker=1, measure=True)
        swept = sweep.plan(**trial, scores=world / "scores", training="standard", measure=True)
        nodes = {"CPU": 2.0, "GPU": 4.0}
        idle = measure.idle_or_missing(TrainConfig(**fields), Capacity(nodes, shapes=(nodes,)))

        assert plan.measured
        assert plan.seconds > 0
        # As many one-worker trials at a time as there are CPUs.
        assert {each.workers for each in swept.estimates} == {int(ray.cluster_resources()["CPU"])}
        assert not plan.warnings
        assert any("GPUs are wanted, the cluster has 0" in text for text in missing.warnings)
        assert idle == ["the cluster has 4 GPUs that would stay idle; pass --gpus-per-worker 1 to use them"]
        assert not (tmp_path / "m").exists()
