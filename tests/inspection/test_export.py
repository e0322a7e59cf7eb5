"""export(): each format is loaded back as its users would, and gives the logits of the checkpoint."""

import io
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import easycore_ray
from easycore_ray import export
from easycore_ray.core.models import build_model
from easycore_ray.inspection import export as exporting
from easycore_ray.storage.errors import EasyCoreError
from tests.artifacts import make_checkpoint, make_image_dataset

pytestmark = pytest.mark.slow

LABELS = [number % 3 for number in range(30)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Small images in three classes, with a validation split."""
    folder = tmp_path_factory.mktemp("dataset")
    return make_image_dataset(folder / "dataset", LABELS, LABELS[:9], val_labels=LABELS[:6])


SLOW = [pytest.param("resnet18", marks=pytest.mark.slow), pytest.param("wrn-28-10", marks=pytest.mark.soak)]


@pytest.fixture(scope="module", params=["cnn", *SLOW])
def checkpoint(request, dataset, tmp_path_factory):
    """A trained network with batch norm and, in resnet18 and wrn, shortcuts."""
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    width = 4 if request.param != "wrn-28-10" else 1
    return make_checkpoint(folder, dataset.path, model=request.param, width=width)


def pixels(batch):
    """Images the exporter has not seen."""
    return torch.rand((batch, 1, 4, 4), generator=torch.Generator().manual_seed(batch))


def logits(checkpoint, batch, weights="last"):
    """What the checkpoint itself says."""
    with torch.no_grad():
        return easycore_ray.open(checkpoint.path).load_model(weights)(pixels(batch))


def test_weights_rebuild_the_network_from_the_file_alone(checkpoint, tmp_path):
    """Normalisation included; the metadata says what to build and which class is which."""
    file = export(checkpoint=checkpoint, out=tmp_path / "model.safetensors")

    with safe_open(file, "pt") as opened:
        found = opened.metadata()
    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in
                 json.loads(found["model"]).items()}  # fmt: skip
    model = build_model(**arguments)
    tensors = load_file(file)
    model.load_state_dict(tensors)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(pixels(4)), logits(checkpoint, 4))
    assert [name for name in tensors if name.endswith("mean") and not name.endswith("running_mean")]
    assert json.loads(found["classes"]) == ["class 0", "class 1", "class 2"]
    assert found["checkpoint"] == checkpoint.fingerprint


@pytest.mark.slow
def test_a_program_needs_torch_alone(checkpoint, tmp_path):
    """Any number of images, in evaluation mode."""
    file = export(checkpoint=checkpoint, out=tmp_path / "model.pt2", format="pt2")
    model = torch.export.load(file).module()

    for batch in (1, 2, 7):
        with torch.no_grad():
            torch.testing.assert_close(model(pixels(batch)), logits(checkpoint, batch), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_onnx_runs_without_torch(checkpoint, tmp_path):
    """Any number of images; input and output have names."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    file = export(checkpoint=checkpoint, out=tmp_path / "model.onnx", format="onnx")
    session = onnxruntime.InferenceSession(file)

    assert ([each.name for each in session.get_inputs()], [each.name for each in session.get_outputs()]) == (
        ["pixels"], ["logits"],
    )  # fmt: skip
    for batch in (1, 2, 7):
        (found,) = session.run(None, {"pixels": pixels(batch).numpy()})
        np.testing.assert_allclose(found, logits(checkpoint, batch).numpy(), atol=1e-4, rtol=1e-4)


def test_the_best_epoch_can_be_exported(dataset, tmp_path):
    """Its weights, not those of the last epoch."""
    checkpoint = make_checkpoint(tmp_path / "model", dataset.path, steps=None, epochs=8, batch_size=5, lr=0.5)
    files = checkpoint.manifest["weights"]
    assert files["best"] != files["last"]
    file = export(checkpoint=checkpoint, out=tmp_path / "best.pt2", format="pt2", weights="best")

    with torch.no_grad():
        found = torch.export.load(file).module()(pixels(3))
    torch.testing.assert_close(found, logits(checkpoint, 3, "best"), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, logits(checkpoint, 3), atol=1e-4)


@pytest.fixture
def small(dataset, tmp_path):
    """The smallest checkpoint."""
    return make_checkpoint(tmp_path / "small", dataset.path)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["pt2", "onnx"])
def test_a_program_that_computes_something_else_is_never_written(small, tmp_path, monkeypatch, form):
    """It is compared before the file appears."""
    if form == "onnx":
        pytest.importorskip("onnxscript")
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    with pytest.raises(EasyCoreError, match="logits differ from the model's by up to"):
        export(checkpoint=small, out=tmp_path / "out" / "model", format=form)
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_kept_unless_it_is_to_be_replaced(small, tmp_path):
    """A file, and always a folder."""
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"mine")
    with pytest.raises(EasyCoreError, match="is there already; choose another --out, or pass --overwrite"):
        export(checkpoint=small, out=file)
    assert file.read_bytes() == b"mine"
    assert "would be refused" in export.plan(checkpoint=small, out=file).warnings[0]
    export(checkpoint=small, out=file, overwrite=True)
    assert load_file(file)
    with pytest.raises(EasyCoreError, match="is a folder; --out of an export must be a file"):
        export(checkpoint=small, out=tmp_path, overwrite=True)


def test_a_plan_says_how_large_the_file_would_be(small, tmp_path):
    """And writes none."""
    plan = export.plan(checkpoint=small, out=tmp_path / "a.safetensors")

    assert not (tmp_path / "a.safetensors").exists()
    export(checkpoint=small, out=tmp_path / "a.safetensors")
    assert plan.bytes_written == pytest.approx((tmp_path / "a.safetensors").stat().st_size, rel=0.1)


@pytest.mark.slow
def test_a_network_that_cannot_be_traced_is_refused_in_one_line(dataset, tmp_path):
    """A user's, whose way depends on the values it sees."""
    checkpoint = make_checkpoint(tmp_path / "model", dataset.path, model="tests.users_models:branching", width=None)
    with pytest.raises(
        EasyCoreError, match=r"torch.export cannot trace this network: .*export --format weights"
    ) as said:
        export(checkpoint=checkpoint, out=tmp_path / "m.pt2", format="pt2")
    assert "\n" not in str(said.value)
    assert str(said.value).endswith("export --format weights instead")
    assert not (tmp_path / "m.pt2").exists()


def test_a_missing_package_is_named(small, tmp_path, monkeypatch):
    """With the line that installs it."""
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EasyCoreError, match=r"needs the package onnxruntime; pip install 'easycore-ray\[export\]'"):
        export(checkpoint=small, out=tmp_path / "m.onnx", format="onnx")


def test_a_program_can_be_read_from_memory(small, tmp_path):
    """The file is the program and nothing else."""
    file = export(checkpoint=small, out=tmp_path / "m.pt2", format="pt2")

    assert torch.export.load(io.BytesIO((tmp_path / "m.pt2").read_bytes())).module()(pixels(1)).shape == (1, 3)
    assert file == str(tmp_path / "m.pt2")


def test_the_job_takes_paths_from_here(small, tmp_path, monkeypatch):
    """As every command line does."""
    from easycore_ray.cli.command import run
    from easycore_ray.config.inspection import ExportConfig

    monkeypatch.chdir(tmp_path)
    file = run(ExportConfig, export, ["--checkpoint", "small", "--out", "m.safetensors"])

    assert file == str(tmp_path / "m.safetensors")
    assert load_file(file)
