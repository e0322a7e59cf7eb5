"""Evaluations of weights that others trained: read as data, known by content, refused in one line."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from easycore_ray import evaluate, export
from easycore_ray.cli.command import run
from easycore_ray.cli.results import run_evaluate
from easycore_ray.config.base import to_dict
from easycore_ray.config.evaluation import EvaluateConfig
from easycore_ray.core.names import NORMALISATIONS
from easycore_ray.data.dataset import open_dataset
from easycore_ray.data.samples import read_split
from easycore_ray.evaluation.attacked_model import load_attacked, open_attacked
from easycore_ray.evaluation.tracked_evaluation import describe_evaluation
from easycore_ray.experiments.trial_runner import attack_here
from easycore_ray.inspection.inspect import inspect
from easycore_ray.storage.errors import EasyCoreError, FieldsError
from tests.artifacts import edit_manifest, make_checkpoint, make_image_dataset
from tests.foreign_networks import PreActResNet, SmallResNet, conv, trained

pytestmark = pytest.mark.slow

FILE = {"weights_file": "w", "model": "cnn", "normalise": "none"}
LABELS = [number % 3 for number in range(30)]


class Grey(SmallResNet):
    """The source's network for the grey images of this test."""

    def __init__(self):
        super().__init__(4, 3)
        self.conv1 = conv(1, 4)


@pytest.fixture
def dataset(tmp_path):
    return make_image_dataset(tmp_path / "dataset", LABELS, LABELS[:20]).path


@pytest.fixture
def theirs(tmp_path):
    """A network of another project, and the file that its script saves."""
    network = trained(Grey())
    state = torch.nn.DataParallel(network).state_dict()
    torch.save({"net": state, "acc": 91.0, "epoch": 3}, tmp_path / "ckpt.pth")
    return network, f"{tmp_path}/ckpt.pth"


def settings(dataset, file, **changes):
    """An evaluation of a file of weights."""
    fields = {"weights_file": file, "model": "resnet18", "width": 4, "normalise": "none", "attack": "fgsm"}
    return EvaluateConfig(**fields | {"dataset": dataset, "out": "unused", "eval_eps": 0.02} | changes)


def load(config):
    """The model of a configuration."""
    (attacked,) = open_attacked(config, open_dataset(config.dataset)).values()
    return load_attacked(config, attacked)


def test_an_evaluation_says_what_the_sources_network_gets_right(dataset, theirs, tmp_path):
    """Image by image, by the source's own module; the file is a parent, known by its content."""
    network, file = theirs
    config = settings(dataset, file, out=f"{tmp_path}/evaluation")
    made = attack_here(config, open_dataset(dataset), "cpu")
    rows = read_split(open_dataset(dataset), "test")
    with torch.no_grad():
        right = network(rows.images.float() / 255).argmax(dim=1) == rows.labels
    found = pq.read_table(tmp_path / "evaluation" / "outcomes.parquet")
    moved = tmp_path / "elsewhere.pt"
    moved.write_bytes((tmp_path / "ckpt.pth").read_bytes())
    again = attack_here(config.replace(weights_file=str(moved), out=f"{tmp_path}/again"), open_dataset(dataset), "cpu")
    parent = made.manifest["parents"]["weights_file"]

    assert np.array_equal(found["clean_correct"].to_numpy(), right.numpy())
    assert (parent["kind"], parent["path"]) == ("weights_file", file)
    assert (made.manifest["identity"], made.fingerprint) == (again.manifest["identity"], again.fingerprint)
    assert [line["state"] for line in inspect(path=made.path)["parents"]] == ["unchanged", "unchanged"]
    assert describe_evaluation(config, made.path).tags["weights_file"] == file
    moved.write_bytes(b"other")
    assert inspect(path=again.path)["parents"][0]["state"] == "changed"


@pytest.mark.parametrize("form", ["new.pt", "old.pth", "plain.safetensors"])
def test_every_format_is_read(dataset, theirs, tmp_path, form):
    """torch.save of today and of before 1.6, and safetensors: the same weights."""
    network, file = theirs
    path = tmp_path / form
    if form.endswith(".safetensors"):
        save_file(network.state_dict(), path)
    else:
        torch.save(network.state_dict(), path, _use_new_zipfile_serialization=form.startswith("new"))
    states = [load(settings(dataset, each)).state_dict() for each in (file, str(path))]

    assert all(map(torch.equal, *(state.values() for state in states)))


def test_a_dry_run_and_a_real_one_have_one_identity(dataset, theirs, tmp_path):
    """The plan hashes the file and reads no weights."""
    config = settings(dataset, theirs[1], out=f"{tmp_path}/evaluation")
    before = evaluate.plan(config)
    attack_here(config, open_dataset(dataset), "cpu")

    assert before.samples == 20
    assert (before.finished, evaluate.plan(config).finished) == ((), (config.out,))


@pytest.mark.parametrize("change", [{"normalise": "half"}, {"normalise": "dataset"}])
def test_pixels_are_normalised_as_was_said(dataset, theirs, change):
    """half: (x - 0.5) / 0.5; dataset: its own mean 0.5 and std 0.25."""
    network, file = theirs
    pixels = torch.rand(2, 1, 4, 4)
    std = 0.5 if change["normalise"] == "half" else 0.25
    with torch.no_grad():
        expected = network((pixels - 0.5) / std)
        assert torch.allclose(load(settings(dataset, file, **change))(pixels), expected, rtol=1e-4, atol=1e-5)


def test_a_normalisation_in_the_file_is_used_and_never_contradicted(dataset, theirs, tmp_path):
    """RobustBench's buffers mu and sigma: --normalise file takes them, and another that differs is refused."""
    network, _ = theirs
    buffers = {"mu": torch.full((1, 1, 1, 1), 0.5), "sigma": torch.full((1, 1, 1, 1), 0.25)}
    torch.save(network.state_dict() | buffers, tmp_path / "with.pt")
    model = load(settings(dataset, f"{tmp_path}/with.pt", normalise="file"))
    same = load(settings(dataset, f"{tmp_path}/with.pt", normalise="dataset"))

    assert (model.normalise.mean.item(), model.normalise.std.item()) == (0.5, 0.25)
    assert torch.equal(model.normalise.std, same.normalise.std)
    with pytest.raises(
        EasyCoreError, match=r"normalisation of its own .*0.5 and 0.25\), not none; pass --normalise file"
    ):
        load(settings(dataset, f"{tmp_path}/with.pt"))


def test_an_exported_model_of_ours_is_read_back(dataset, tmp_path):
    """The same logits as the checkpoint it was exported from."""
    made = make_checkpoint(tmp_path / "model", dataset)
    file = export(checkpoint=made.path, out=f"{tmp_path}/model.safetensors")
    model = load(settings(dataset, file, model="cnn", normalise="file"))
    pixels = torch.rand(2, 1, 4, 4)

    assert torch.equal(model(pixels), load(EvaluateConfig(checkpoint=made.path, dataset=dataset, out="unused"))(pixels))


class Harmful:
    """What a pickle can do."""

    def __reduce__(self):
        return (print, ("this code ran",))


def write_bad(path, kind):
    """A file that is not to be read."""
    if kind == "code":
        torch.save({"state_dict": {"a": torch.zeros(1)}, "args": Harmful()}, path)
    elif kind == "module":
        torch.save(trained(Grey()), path)
    elif kind == "bytes":
        path.write_bytes(b"no weights at all")
    elif kind == "other":
        torch.save(trained(PreActResNet(4, 3)).state_dict(), path)
    elif kind == "nothing":
        torch.save({"epoch": 3}, path)
    else:
        path.mkdir()


@pytest.mark.parametrize(
    ("file", "kind", "message"),
    [
        ("a.pt", "code", r"a.pt holds pickled objects \(.*print\).* would run code: refused; where you trust"),
        ("a.pt", "module", r"a.pt holds pickled objects \(tests.foreign_networks|test_weights_file"),
        ("a.pt", "bytes", "a.pt is no file of weights"),
        ("a.safetensors", "bytes", "a.safetensors is no safetensors file"),
        ("a.pt", "other", "a.pt does not fit resnet18: it lacks bn1.weight"),
        ("a.pt", "nothing", "a.pt holds no tensors, but epoch"),
        ("a.pt", "folder", "a.pt is a folder; pass a .pt, .pth or .safetensors file"),
    ],
)
def test_what_cannot_be_attacked_is_refused_in_one_line(dataset, tmp_path, capsys, file, kind, message):
    """No code runs; the command ends with exit code 2 and leaves nothing."""
    write_bad(tmp_path / file, kind)
    words = ["--dataset", dataset, "--weights-file", f"{tmp_path}/{file}", "--model", "resnet18", "--width", "4",
             "--normalise", "none", "--out", f"{tmp_path}/out"]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        run(EvaluateConfig, run_evaluate, words)
    said = capsys.readouterr()

    assert ended.value.code == 2
    assert "this code ran" not in said.out
    (line,) = said.err.strip().splitlines()
    assert line.startswith("error: ")
    with pytest.raises(EasyCoreError, match=message):
        load(settings(dataset, f"{tmp_path}/{file}"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "checkpoint and weights_file are both missing; pass --checkpoint, or --weights-file"),
        ({"checkpoint": "c", "weights_file": "w"}, "checkpoint and weights_file are both given"),
        ({"weights_file": "w"}, "weights_file needs model and normalise as well"),
        ({"weights_file": "w", "model": "cnn"}, "weights_file needs normalise as well"),
        ({"checkpoint": "c", "model": "cnn"}, "model go with weights_file"),
        (
            {"weights_file": "w", "model": "cnn", "normalise": "none", "weights": "best"},
            "weights best is of a checkpoint",
        ),
        ({"weights_file": "w", "model": "timm:vit", "width": 3, "normalise": "none"}, "width is for the built-in"),
        ({"weights_file": "w", "model": "cnn", "normalise": "mnist"}, "normalise must be one of none, half, cifar10"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields, message):
    """On construction."""
    with pytest.raises(FieldsError, match=message):
        EvaluateConfig(dataset="d", out="o", **fields)


def test_a_normalisation_of_other_channels_is_refused(dataset, theirs):
    """Of colour images, on grey ones."""
    with pytest.raises(EasyCoreError, match=r"normalise cifar10 is for images of 3 channels, .* has 1"):
        load(settings(dataset, theirs[1], normalise="cifar10"))


def test_a_normalisation_that_the_file_lacks_or_has_for_other_channels_is_refused(dataset, theirs, tmp_path):
    """--normalise file needs one, for as many channels as the images have."""
    colour = {"mu": torch.full((3,), 0.5), "sigma": torch.full((3,), 0.25)}
    torch.save(theirs[0].state_dict() | colour, tmp_path / "colour.pt")
    with pytest.raises(EasyCoreError, match="brings no mean and std; pass another --normalise"):
        load(settings(dataset, theirs[1], normalise="file"))
    with pytest.raises(EasyCoreError, match="normalises 3 channels, the images have 1"):
        load(settings(dataset, f"{tmp_path}/colour.pt", normalise="file"))


def test_a_missing_file_is_named(dataset):
    with pytest.raises(EasyCoreError, match=r"--weights-file /nowhere/w\.pt does not exist; pass a \.pt"):
        evaluate.plan(settings(dataset, "/nowhere/w.pt"))


def test_every_normalisation_has_a_positive_std_for_each_mean():
    """And those that the option offers are all there, beside dataset and file."""
    assert all(len(mean) == len(std) and min(std) > 0 for mean, std in NORMALISATIONS.values())
    assert all(settings("d", "w", normalise=name) for name in [*NORMALISATIONS, "dataset", "file"])


def test_a_manifest_of_before_is_still_read(dataset, tmp_path):
    """Evaluations made when checkpoint was a required field, and had no others beside it."""
    made = make_checkpoint(tmp_path / "model", dataset)
    config = EvaluateConfig(checkpoint=made.path, dataset=dataset, out=f"{tmp_path}/evaluation", attack="none")
    evaluation = attack_here(config, open_dataset(dataset), "cpu")
    new = {"weights_file", "model", "width", "normalise"}
    edit_manifest(evaluation.path, config={k: v for k, v in to_dict(config).items() if k not in new})

    assert attack_here(config, open_dataset(dataset), "cpu").fingerprint == evaluation.fingerprint
    assert json.loads((tmp_path / "evaluation" / "manifest.json").read_text())["config"].keys().isdisjoint(new)
