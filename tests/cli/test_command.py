"""``easycore``: verbs, dry runs, completion, and how little is imported for an answer."""

import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import easycore_ray
from easycore_ray.cli.command import SHELLS, help_text, main
from easycore_ray.cli.options import GROUPS, completion_script, parse_request
from easycore_ray.cli.verbs import COMMANDS, load
from easycore_ray.config.inspection import InspectConfig
from easycore_ray.config.stages import CoresetConfig, TrainConfig
from easycore_ray.storage.errors import EasyCoreError
from tests.artifacts import make_dataset

ROOT = Path(__file__).resolve().parents[2]
TRAINS = {"torch", "torchvision", "ray", "mlflow", "matplotlib"}
"""Libraries that take half a second or more to import, each."""
READS = {"pyarrow", "pandas", "PIL"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A dataset of twelve labels."""
    return make_dataset(tmp_path_factory.mktemp("inputs") / "dataset", [0, 1, 2] * 4).path


def answer(capsys, *arguments):
    """(exit code, standard output, standard error) of a command line."""
    code = 0
    try:
        main(list(map(str, arguments)))
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


# ---------------------------------------------------------------- verbs


def test_help_lists_every_verb_with_a_line(capsys):
    """All of them, and how to get further."""
    code, out, _ = answer(capsys, "--help")

    assert code == 0
    assert out == help_text() + "\n"
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.summary)}$", out, re.MULTILINE)
    assert "easycore VERB --help" in out


def test_version(capsys):
    """The package's."""
    assert answer(capsys, "--version") == (0, f"easycore {easycore_ray.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scroe"], "unknown verb 'scroe'; did you mean score? easycore --help lists them all"),
        (["select"], "unknown verb 'select'; did you mean coreset? easycore --help lists them all"),
        (["xyzzy"], "unknown verb 'xyzzy'; easycore --help lists them all"),
        ([], "a verb is missing; easycore --help lists them"),
        (["--print-completion", "tcsh"], "--print-completion takes one of bash, zsh, fish, got tcsh"),
        (["--print-completion"], "--print-completion takes one of bash, zsh, fish, got nothing"),
        (["coreset", "--out", "/o", "--scores", "/s", "--measure"], "--measure goes with --dry-run; pass both"),
        (["coreset", "--out", "/o", "--scores", "/s", "--fraction", "0"],
         "fraction must be in (0, 1], got 0; it is the share kept: to drop 30 % of the data pass 0.7"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(capsys, arguments, message):
    """With the nearest verb where one is near; exit code 2."""
    assert answer(capsys, *arguments) == (2, "", f"error: {message}\n")


def test_every_verb_has_a_job_its_parts_and_the_plan_of_the_python_function():
    """Names in the table are those of the modules; a job for each verb; the same dry run as from Python."""
    jobs = {path.stem for path in (ROOT / "jobs").glob("*.py")} - {"__init__"}
    assert jobs == set(COMMANDS)
    for name, command in COMMANDS.items():
        verb = getattr(easycore_ray, "select" if name == "coreset" else name)
        assert callable(load(command.function))
        assert command.kind is verb.kind
        assert (command.plan is not None) == hasattr(verb, "plan"), name


def test_an_interrupt_ends_with_130(capsys, monkeypatch):
    """As shells expect, with a line that says how to resume."""

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("easycore_ray.selection.select.select", interrupt)
    code, _, err = answer(capsys, "coreset", "--out", "/o", "--scores", "/s")

    assert (code, err) == (130, "interrupted; run the same command again to resume\n")


# ---------------------------------------------------------------- dry runs


def test_a_dry_run_prints_the_plan_that_python_gets(capsys, tmp_path, dataset):
    """And writes nothing."""
    arguments = {"out": f"{tmp_path}/c", "dataset": dataset, "method": "random"}
    words = [word for name, value in arguments.items() for word in (f"--{name}", value)]
    code, out, _ = answer(capsys, "coreset", *words, "--dry-run")

    assert code == 0
    assert out == f"{easycore_ray.select.plan(**arguments)}\n"
    assert "keep 6 of 12 samples" in out
    assert not (tmp_path / "c").exists()


def test_dry_run_and_measure_are_no_part_of_the_configuration():
    """They are options of every verb that has a plan."""
    words = ["--out", "/o", "--scores", "/s"]
    asked = parse_request(CoresetConfig, [*words, "--dry-run", "--measure"])

    assert (asked.dry_run, asked.measure) == (True, True)
    assert asked.config == parse_request(CoresetConfig, words).config
    with pytest.raises(SystemExit):
        parse_request(InspectConfig, ["/a", "--dry-run"], dry_run=False)


# ---------------------------------------------------------------- help of a verb


def test_options_are_grouped_and_their_texts_are_whole(capsys, monkeypatch):
    """A box for each heading, in order; sentences run on to the width of the terminal; presets listed as options."""
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        parse_request(TrainConfig, ["--help"])
    text = capsys.readouterr().out

    headings = re.findall(r"^ (\w+) options ", text, re.MULTILINE)
    assert headings == list(GROUPS)
    assert re.search(r"^  --preset \{digits", text, re.MULTILINE)
    assert re.search(r"^  --config PATH/manifest.json", text, re.MULTILINE)
    lines = [line.rstrip() for line in text.split("\n")]
    # Texts stand beside their options, or below them where those are long.
    wrapped = [pair for pair in itertools.pairwise(lines) if all(line.startswith(" " * 6) for line in pair)]
    assert len(wrapped) > 20
    for line, following in wrapped:  # no room for the next word
        assert len(line) + 1 + len(following.split()[0]) > 97, (line, following)


# ---------------------------------------------------------------- completion


@pytest.mark.slow
def test_completion_scripts_are_printed_for_each_shell(capsys):
    """The whole of it, on standard output."""
    for shell in SHELLS:
        code, out, err = answer(capsys, "--print-completion", shell)
        assert (code, err) == (0, "")
        assert "easycore" in out
        assert all(name in out for name in COMMANDS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [(["easycore", "sco"], {"score"}), (["easycore", "coreset", "--frac"], {"--fraction"})],
    ids=["verb", "option"],
)
def test_bash_completes(tmp_path, words, expected):
    """The script is valid, and gives what bash would offer."""
    script = tmp_path / "easycore.bash"
    script.write_text(completion_script("bash"))
    subprocess.run(["bash", "-n", script], check=True)
    listed = " ".join(words)
    program = (
        f"source {script}; function=$(complete -p easycore | sed 's/.*-F \\([^ ]*\\).*/\\1/');"
        f"COMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}; COMP_LINE='{listed}'; COMP_POINT={len(listed)};"
        '$function; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)

    assert set(done.stdout.split()) == expected, done.stderr


# ---------------------------------------------------------------- what is imported


def imported_after(*arguments):
    """Libraries a fresh interpreter has imported after a command line, and its exit code."""
    program = (
        "import sys\nfrom easycore_ray.cli import main\ncode = 0\n"
        "try:\n    main()\nexcept SystemExit as end:\n    code = end.code\n"
        "print(code, *{name.split('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    call = [sys.executable, "-c", program, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(call, capture_output=True, text=True, check=True, env=environment)
    code, *names = done.stderr.splitlines()[-1].split()
    return int(code), set(names)


def test_the_list_of_verbs_is_answered_by_the_standard_library():
    """As are the version and a misspelt verb."""
    for arguments, expected in ((["--help"], 0), (["--version"], 0), (["scroe"], 2)):
        code, names = imported_after(*arguments)
        assert code == expected
        assert not names & (TRAINS | READS | {"numpy", "tyro", "pydantic"})


@pytest.mark.slow
def test_help_and_a_wrong_option_need_no_more_than_the_parser():
    """No pyarrow, and nothing that trains, for any verb."""
    for arguments, expected in ((["pipeline", "--help"], 0), (["coreset", "--fractoin", "1"], 2)):
        code, names = imported_after(*arguments)
        assert code == expected
        assert not names & (TRAINS | READS)


@pytest.mark.slow
def test_help_may_be_read_in_part():
    """As by ``| head``: no traceback."""
    line = f"{shlex.quote(sys.executable)} -m jobs.evaluate --help | head -1"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: ")
    assert done.stderr == ""


@pytest.mark.slow
def test_reading_and_selecting_import_nothing_that_trains(tmp_path, dataset):
    """inspect, coreset, clean and dry runs, that of a pipeline included."""
    out = tmp_path / "coreset"
    lines = [
        ["coreset", "--dataset", dataset, "--method", "random", "--out", out],
        ["coreset", "--dataset", dataset, "--method", "random", "--out", out, "--dry-run"],
        ["inspect", out],
        ["clean", out],
        ["pipeline", "--preset", "digits", "--out", tmp_path / "pipeline", "--dry-run"],
    ]
    for arguments in lines:
        code, names = imported_after(*arguments)
        assert (code, names & TRAINS) == (0, set()), arguments


@pytest.mark.slow
def test_no_plan_imports_what_trains():
    """Nor do the modules it is made in, so that no dry run waits for it."""
    modules = sorted({command.plan.partition(":")[0] for command in COMMANDS.values() if command.plan})
    statements = "; ".join(f"import easycore_ray.{name}" for name in modules)
    call = [sys.executable, "-c", f"{statements}; import sys; print(*sys.modules)"]
    done = subprocess.run(call, capture_output=True, text=True, check=True, cwd=ROOT)

    assert not {name.split(".")[0] for name in done.stdout.split()} & TRAINS


def test_a_value_that_is_refused_is_an_error_of_the_package():
    """What Python callers catch."""
    with pytest.raises(EasyCoreError, match="fraction must be in"):
        parse_request(CoresetConfig, ["--out", "/o", "--scores", "/s", "--fraction", "2"])
