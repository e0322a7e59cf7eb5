"""Command lines: help that tells all, presets and saved configurations, and mistakes in one line."""

import dataclasses
import functools
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest

from easycore_ray.cli.command import run
from easycore_ray.cli.options import parse
from easycore_ray.cli.start_values import preset_fields
from easycore_ray.config import evaluation, experiments, inspection, stages
from easycore_ray.config.base import to_dict
from easycore_ray.config.evaluation import EvaluateConfig
from easycore_ray.config.experiments import AnalyzeConfig, PipelineConfig, StudyConfig, SweepConfig
from easycore_ray.config.inspection import AuditConfig, ReportConfig
from easycore_ray.config.presets import PRESETS, STUDIES
from easycore_ray.config.stages import CoresetConfig, PrepareConfig, ReduceConfig, ScoreConfig, TrainConfig
from easycore_ray.core.eps import format_eps
from easycore_ray.core.models import MODELS
from easycore_ray.core.names import ATTACK_NAMES
from easycore_ray.core.selection import HIGHER_IS_HARDER, METHODS
from easycore_ray.scoring.reduce import reduce
from easycore_ray.selection.select import select
from easycore_ray.storage import artifact
from easycore_ray.storage.errors import EasyCoreError
from tests.artifacts import make_dataset

ROOT = Path(__file__).resolve().parents[2]
# Those that make an artifact; inspect, status, clean and export have tests of their own.
JOBS = sorted(
    path.stem
    for path in (ROOT / "jobs").glob("*.py")
    if path.stem not in ("__init__", "command", "inspect", "status", "clean", "export")
)
CONFIGS = {**vars(stages), **vars(evaluation), **vars(inspection), **vars(experiments)}
KINDS = {job: CONFIGS[f"{job.capitalize()}Config"] for job in JOBS}
# The least a command line must say.
NEEDED = {
    ScoreConfig: ["--dataset", "/d"],
    ReduceConfig: ["--scores", "/s"],
    CoresetConfig: ["--scores", "/s"],
    TrainConfig: ["--dataset", "/d"],
    EvaluateConfig: ["--dataset", "/d", "--checkpoint", "/c"],
    SweepConfig: ["--dataset", "/d", "--scores", "/s"],
    ReportConfig: ["--sweep", "/w"],
    AuditConfig: ["--scores", "/s"],
    StudyConfig: ["--dataset", "/d"],
    AnalyzeConfig: ["--scores", "/s", "/t", "--checkpoint", "/c"],
}


@functools.cache
def command(kind, *arguments):
    """A command line of a job, as parsed."""
    return parse(kind, ["--out", "/o", *NEEDED.get(kind, []), *arguments])


def plain(text):
    """Text without frames and line breaks."""
    return " ".join(re.sub(r"[╭╮╰╯│─]", " ", text).split())


# ---------------------------------------------------------------- help


@pytest.fixture(scope="module", params=JOBS)
def job_help(request):
    """(configuration, exit code, help) of a job run as ``python -m jobs.NAME --help``, in this process."""
    sys.modules.pop(f"jobs.{request.param}", None)  # another test may have imported it
    with pytest.MonkeyPatch.context() as patch:
        written = []
        patch.setattr(sys, "argv", ["x", "--help"])
        patch.setattr(sys.stdout, "write", written.append)
        with pytest.raises(SystemExit) as caught:
            runpy.run_module(f"jobs.{request.param}", run_name="__main__")
    return KINDS[request.param], caught.value.code, "".join(written)


def entry_of(field, text):
    """What help says of a field."""
    flag = "--" + field.name.replace("_", "-")
    found = re.search(rf"^│ {flag}[ ,].*?(?=^│ --|^╰)", text, re.MULTILINE | re.DOTALL)
    assert found, f"{flag} is not in the help"
    return plain(found[0])


def allowed_values(field):
    """Words a field may take, where there is a list of them."""
    options = [field.type, *get_args(field.type)]
    found = [word for option in options if get_origin(option) is Literal for word in get_args(option)]
    registries = {"model": MODELS, "attack": ATTACK_NAMES, "score": HIGHER_IS_HARDER, "method": METHODS}
    return [*found, *registries.get(field.name, ())]


def shown_default(field):
    """A default as help prints it."""
    values = field.default if isinstance(field.default, tuple) else [field.default]
    if field.name in ("eps", "eval_eps", "standard_eval_eps", "autoattack_eval_eps"):
        values = [format_eps(value) for value in values]
    return f"(default: {shlex.join(map(str, values))})"


def test_help_names_every_field_with_its_default_and_what_is_allowed(job_help):
    """Exit code 0; required fields say so; presets and saved configurations are explained."""
    kind, code, text = job_help
    assert code == 0
    presets = "--preset{" + ",".join(STUDIES if kind is StudyConfig else PRESETS) + "}"
    assert presets in plain(text).replace(" ", "")  # a long list is wrapped
    assert "--config PATH/manifest.json" in plain(text)
    for field in dataclasses.fields(kind):
        entry = entry_of(field, text)
        required = field.default is dataclasses.MISSING
        assert entry.endswith("(required)" if required else shown_default(field)), entry
        assert all(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", entry) for word in allowed_values(field)), entry
        assert re.search(r"[A-Za-z0-9].*\. \((required|default)", entry), f"not explained: {entry}"


def test_help_shows_the_defaults_of_a_preset(capsys):
    """What will be used, not what would be without it."""
    with pytest.raises(SystemExit) as caught:
        parse(SweepConfig, ["--preset", "tiny", "--help"])
    text = plain(capsys.readouterr().out)

    assert caught.value.code == 0
    assert "(default: 0.125)" in text
    assert "the same number whatever the size of the coreset. (default: 10)" in text


def test_a_job_runs_as_a_process():
    """``python -m jobs.NAME --help`` from the root of the repository, as submitted."""
    done = subprocess.run([sys.executable, "-m", "jobs.reduce", "--help"], cwd=ROOT, capture_output=True, text=True,
                          check=False)  # fmt: skip

    assert done.returncode == 0
    assert "--bucket-rows" in done.stdout


# ---------------------------------------------------------------- presets


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_a_pipeline(preset):
    """It checks, all its stages check, and it goes where it is told."""
    config = PRESETS[preset]("/somewhere")

    assert isinstance(config, PipelineConfig)
    assert config.out == "/somewhere"
    config.prepare_config()
    config.score_config("d")
    config.sweep_config("d", "s")
    assert PRESETS[preset].__doc__


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind is not StudyConfig])
def test_every_job_takes_every_preset(kind):
    """Its fields make a valid configuration; on a command line they fill in what is left out, and no more."""
    without = command(kind)
    filled_in = {preset: without.replace(**preset_fields(kind, preset)) for preset in PRESETS}

    assert command(kind, "--preset", "tiny") == filled_in["tiny"]
    if kind is PipelineConfig:
        assert {preset: command(kind, "--preset", preset) for preset in PRESETS} == filled_in


def test_stages_take_what_the_preset_says_of_them():
    """The scoring epochs for score, the sweep's workers for a sweep, the attack's eps for an evaluation."""
    digits = PRESETS["digits"]("/o")

    assert command(PipelineConfig, "--preset", "digits") == digits
    assert command(ScoreConfig, "--preset", "digits").epochs == digits.score_epochs
    assert command(SweepConfig, "--preset", "digits").trial_workers == digits.trial_workers
    assert command(TrainConfig, "--preset", "cifar10").epochs == 200
    assert command(TrainConfig, "--preset", "digits").steps == digits.steps
    assert command(EvaluateConfig, "--preset", "cifar10-cpu").eval_eps == PRESETS["cifar10-cpu"]("/o").eval_eps
    assert command(EvaluateConfig, "--preset", "cifar10-cpu").num_eval_samples == 1000


@pytest.mark.parametrize("arguments", [["--preset", "tiny", "--epochs", "5"], ["--epochs=5", "--preset=tiny"]])
def test_a_flag_overrides_the_preset(arguments):
    """Before it or behind it, with a space or a sign between."""
    found = command(ScoreConfig, *arguments)

    assert (found.epochs, found.width) == (5, 4)


# ---------------------------------------------------------------- parsing


def test_words_become_values():
    """Fractions of 255, lists, switches, pairs."""
    found = command(EvaluateConfig, "--eval-eps", "0", "0.25/255", "8/255", "--attack", "pgd20", "--num-workers", "3")
    assert found.eval_eps == (0.0, 0.25 / 255, 8 / 255)
    assert (found.attack, found.num_workers) == (("pgd20",), 3)
    assert command(CoresetConfig, "--method", "band", "--band", "0", "0.5", "--overwrite").band == (0.0, 0.5)
    assert command(SweepConfig, "--method", "easycore/class", "easiest:el2n").method == (
        "easycore/class", "easiest:el2n",
    )  # fmt: skip


def test_paths_become_absolute_at_the_command_line(tmp_path, monkeypatch):
    """So that a saved configuration means the same folders from anywhere; named sources are not paths."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EASYCORE_ROOT", raising=False)
    given = ["--out", "c", "--scores", "s3://b/s/", "--user-scores", "../mine.parquet", "--exclude", "audit"]
    found = parse(CoresetConfig, given)
    assert (found.out, found.scores, found.dataset) == (f"{tmp_path}/c", "s3://b/s", None)
    assert found.user_scores == f"{tmp_path.parent}/mine.parquet"
    assert found.exclude == f"{tmp_path}/audit"

    sources = {"digits": "digits", "torchvision:CIFAR10": "torchvision:CIFAR10", "images": f"{tmp_path}/images"}
    for given, expected in sources.items():
        assert parse(PrepareConfig, ["--out", "o", "--source", given]).source == expected


@pytest.mark.parametrize("kind", KINDS.values())
def test_a_saved_configuration_repeats_the_run(kind, tmp_path):
    """From the manifest of what it made; flags still count, and an old --overwrite does not."""
    special = {ReportConfig: ["--note", "words"], StudyConfig: ["--preset", "cifar10-cpu"]}
    config = command(kind, *special.get(kind, ["--preset", "tiny"]))
    made = artifact.claim(str(tmp_path / "x"), "coreset", "k")
    saved = to_dict(config.replace(overwrite=True))
    artifact.finish(made, fingerprint="f", config=saved, parents={}, counts={}, wall_seconds=0)

    again = ["--config", str(tmp_path / "x" / "manifest.json")]
    assert parse(kind, again) == config
    assert parse(kind, [*again, "--out", "/other"]) == config.replace(out="/other")


# ---------------------------------------------------------------- mistakes


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A dataset of twelve labels."""
    return make_dataset(tmp_path_factory.mktemp("inputs") / "dataset", [0, 1, 2] * 4).path


def mistake(capsys, kind, verb, *arguments):
    """The one line a mistaken command prints on standard error."""
    with pytest.raises(SystemExit) as caught:
        run(kind, verb, list(map(str, arguments)))
    captured = capsys.readouterr()

    assert caught.value.code == 2
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def never(config):
    """A verb that must not be reached."""
    raise AssertionError(config)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (ScoreConfig, ["--preset", "imagenet"], "unknown preset 'imagenet'; allowed are digits, tiny, cifar10-cpu"),
        (ScoreConfig, ["--preset"], "--preset needs a value"),
        (ScoreConfig, ["--preset", "tiny", "--config", "x"], "--preset and --config are both given"),
        (ScoreConfig, ["--config", "/nowhere/manifest.json"], "/nowhere/manifest.json cannot be read"),
        (CoresetConfig, ["--method", "easiest", "--score", "agin"], "unknown score 'agin'; allowed are adv_loss, aign"),
        (CoresetConfig, ["--fraction", "0"], r"fraction must be in \(0, 1\], got 0; .*to drop 30 % .* pass 0.7"),
        (CoresetConfig, ["--out", ""], "a path is empty"),
        (TrainConfig, ["--eps", "8"], r"eps.*got 8.*did you mean 8/255\?"),
        (EvaluateConfig, ["--eval-eps", "8/255", "8"], r"did you mean 8/255\?"),
        (TrainConfig, ["--eps=-8/255"], r"eps must be a number >= 0 in \[0, 1\] pixel units, got -0.03"),
        (EvaluateConfig, ["--attack", "none", "fgsm"], "attack none stands alone"),
        (EvaluateConfig, ["--eval-eps", "-0.1"], "eps must be a number >= 0 .* got -0.1"),
        (EvaluateConfig, ["--norm", "l2", "--eval-eps", "-1"], "eps must be a number >= 0 .* got -1"),
        (SweepConfig, ["--attack", "pgd20", "none"], "unknown attack 'none'; allowed are autoattack, fgsm, pgd20"),
        (SweepConfig, ["--attack", "autoattack"], "attack must include pgd20, .* got 'autoattack'"),
        (SweepConfig, ["--eval-eps", "1/255", "8"], r"eval_eps: .*did you mean 8/255\?"),
        (PipelineConfig, ["--attack", "autoattack"], "attack must include pgd20"),
        (SweepConfig, ["--method", "easycore", "best"], "unknown method 'best'"),
        (PipelineConfig, ["--fraction", "30"], "fraction must be in"),
    ],
)
def test_a_mistaken_value_is_one_line(capsys, kind, arguments, message):
    """What is wrong, the value, what is allowed; exit code 2 and no work done."""
    line = mistake(capsys, kind, never, "--out", "/o", *NEEDED.get(kind, []), *arguments)

    assert re.search(message, line), line


@pytest.mark.parametrize(
    "arguments", [["--fraction", "half"], ["--balance", "classes"], ["--eps", "8"], ["--fractoin", "0.5"]]
)
def test_what_the_parser_refuses_exits_with_2(capsys, arguments):
    """In the parser's own words, which name the flag."""
    with pytest.raises(SystemExit) as caught:
        run(CoresetConfig, never, ["--out", "/o", "--scores", "/s", *arguments])

    assert caught.value.code == 2
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "holds no configuration"),
        ('{"name": "app"}', "holds no configuration; pass the manifest.json of an artifact"),
        ('{"config": {"out": "/o", "sweep": "/w", "title": "t"}}', "unknown fields sweep, title for CoresetConfig"),
        ('{"config": {"out": "/o", "scores": "/s", "fraction": 3}}', "fraction must be in"),
        ('{"config": {"scores": "/s"}}', "is the manifest damaged"),
    ],
)
def test_a_saved_configuration_of_something_else_is_one_line(capsys, tmp_path, content, message):
    """Damaged, another program's, another job's."""
    (tmp_path / "manifest.json").write_text(content)
    line = mistake(capsys, CoresetConfig, never, "--config", tmp_path / "manifest.json")

    assert message in line


def test_a_missing_input_is_one_line(capsys, tmp_path, dataset):
    """Named with the kind of thing that is looked for."""
    out = tmp_path / "o"
    lines = [
        mistake(capsys, CoresetConfig, select, "--out", out, "--dataset", "/nowhere", "--method", "random"),
        mistake(capsys, CoresetConfig, select, "--out", out, "--scores", "/nowhere"),
        mistake(capsys, ReduceConfig, reduce, "--out", out, "--scores", "/nowhere"),
        mistake(capsys, CoresetConfig, select, "--out", out, "--scores", dataset),
    ]

    assert "/nowhere does not exist; pass the folder of a finished dataset" in lines[0]
    assert "/nowhere does not exist; pass the folder of a finished hardness table" in lines[1]
    assert "/nowhere/table does not exist; pass the folder of a finished score table" in lines[2]
    assert "holds a dataset, not a hardness table; check the path" in lines[3]
    assert not out.exists()


@pytest.mark.parametrize("job", ["score", "train", "sweep", "evaluate", "pipeline", "report", "analyze", "study"])
def test_every_job_names_a_missing_input_before_it_starts_anything(capsys, tmp_path, monkeypatch, job):
    """As ``python -m jobs.NAME`` does it: one line, exit code 2, and no Ray."""
    sys.modules.pop(f"jobs.{job}", None)  # another test may have imported it
    inputs = [
        word.replace("/", "/nowhere/", 1) if word.startswith("/") else word for word in NEEDED.get(KINDS[job], [])
    ]
    arguments = ["--out", f"{tmp_path}/o", *(inputs or ["--dataset", "/nowhere/d"])]
    monkeypatch.setattr(sys, "argv", [job, *arguments])
    monkeypatch.setattr("ray.init", never)
    with pytest.raises(SystemExit) as caught:
        runpy.run_module(f"jobs.{job}", run_name="__main__")
    line = capsys.readouterr().err

    assert caught.value.code == 2
    assert re.fullmatch(r"error: /nowhere/\S+ does not exist; pass the folder of a finished .*\n", line), line
    assert not (tmp_path / "o").exists()


def test_an_out_that_cannot_be_used_is_one_line(capsys, tmp_path, dataset):
    """Below a file, on a file, in a folder of something else."""
    (tmp_path / "file").write_text("keep")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("keep")
    arguments = ["--dataset", dataset, "--method", "random"]

    line = mistake(capsys, CoresetConfig, select, "--out", tmp_path / "file" / "deep" / "x", *arguments)
    assert re.search(r"file/deep/x cannot be written: .*choose another --out", line)
    line = mistake(capsys, CoresetConfig, select, "--out", tmp_path / "file", *arguments)
    assert "file is a file; --out must be a folder" in line
    for overwrite in ([], ["--overwrite"]):
        line = mistake(capsys, CoresetConfig, select, "--out", tmp_path / "photos", *arguments, *overwrite)
        assert "photos is not empty and not ours" in line
        line = mistake(capsys, CoresetConfig, select, "--out", dataset, *arguments, *overwrite)
        assert "holds a dataset, not a coreset; choose another --out" in line
    assert (tmp_path / "photos" / "a.jpg").read_text() == (tmp_path / "file").read_text() == "keep"


def test_overwrite_replaces_a_result_of_other_words(capsys, tmp_path, dataset):
    """Without it, the line says how; with it, the new result is there."""
    arguments = ["--dataset", dataset, "--method", "random", "--out", f"{tmp_path}/c"]
    first = run(CoresetConfig, select, [*arguments, "--seed", "1"])
    assert run(CoresetConfig, select, [*arguments, "--seed", "1"]) == first
    assert "is finished, reused" in capsys.readouterr().err

    assert "pass --overwrite to replace it" in mistake(capsys, CoresetConfig, select, *arguments, "--seed", "2")
    second = run(CoresetConfig, select, [*arguments, "--seed", "2", "--overwrite"])
    assert second.fingerprint != first.fingerprint


def test_a_library_message_of_many_lines_is_still_one(capsys):
    """Object stores answer in paragraphs."""

    def verb(_):
        raise EasyCoreError("s3://b/x cannot be reached: first\n  second\n\nthird")

    line = mistake(capsys, CoresetConfig, verb, "--out", "/o", "--scores", "/s")
    assert line == "error: s3://b/x cannot be reached: first second third\n"


def test_a_bug_of_ours_keeps_its_traceback():
    """Only mistakes of the user are shortened."""

    def verb(_):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        run(CoresetConfig, verb, ["--out", "/o", "--scores", "/s"])


def test_a_mistake_in_a_submitted_job_ends_the_process_with_2(tmp_path):
    """A relative path where the working directory is thrown away: a real process, one line, no traceback."""
    copy = tmp_path / "working_dir_files" / "_ray_pkg_1"
    copy.mkdir(parents=True)
    environment = {key: value for key, value in os.environ.items() if key != "EASYCORE_ROOT"}
    environment |= {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}", "PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-m", "jobs.coreset", "--out", "runs/c", "--dataset", "/nowhere", "--method", "random"]
    refused = subprocess.run(call, cwd=copy, env=environment, capture_output=True, text=True, check=False)

    assert refused.returncode == 2
    assert refused.stdout == ""
    assert re.fullmatch(r"error: runs/c is relative, and a submitted job .* EASYCORE_ROOT .*\n", refused.stderr)


def test_a_submitted_job_takes_relative_paths_below_its_root(tmp_path, monkeypatch, dataset):
    """With EASYCORE_ROOT set they mean a folder that outlives the job."""
    copy = tmp_path / "working_dir_files" / "_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({}))
    monkeypatch.setenv("EASYCORE_ROOT", f"{tmp_path}/shared")
    made = run(CoresetConfig, select, ["--out", "runs/c", "--dataset", dataset, "--method", "random"])

    assert made.path == f"{tmp_path}/shared/runs/c"
    assert made.manifest["config"]["out"] == made.path
