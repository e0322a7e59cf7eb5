"""The README's commands parse as they stand, and its ten lines of Python run."""

import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from easycore_ray.cli.options import parse
from easycore_ray.cli.verbs import COMMANDS
from tests.artifacts import make_checkpoint, make_image_dataset

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = {path.name: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}


def blocks(language, page=README):
    """Contents of the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)


def commands(page=README):
    """(verb, words behind it) of every full command line in a page's shell blocks."""
    text = "\n".join(blocks("sh", page)).replace("\\\n", " ")
    found = re.findall(r"(?:^|\s)(?:easycore |python -m jobs\.)(\w+)( .*)", text, re.MULTILINE)
    return [(verb, shlex.split(words, comments=True)) for verb, words in found]


def test_there_are_commands_to_test():
    """The README shows how to run verbs here, and how to submit one."""
    assert len(commands()) >= 10
    assert "-- python -m jobs." in README


@pytest.mark.parametrize(("verb", "words"), commands())
def test_a_command_of_the_readme_parses(verb, words):
    """Every command in the README names existing options with allowed values."""
    assert parse(COMMANDS[verb].kind, words)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "verb", "words"), [(name, *command) for name, page in PAGES.items() for command in commands(page)]
)
def test_a_command_of_the_docs_parses(page, verb, words):
    """As those of the README."""
    assert parse(COMMANDS[verb].kind, words), page


def test_every_verb_is_in_the_readme():
    """The table of verbs is complete, and names none that is not there."""
    assert set(re.findall(r"^\| `easycore (\w+)` \|", README, re.MULTILINE)) == set(COMMANDS)


def test_files_the_readme_names_exist():
    """Pictures and modules that the README points to are there."""
    for path in re.findall(r"\]\((docs/[^)#]+)", README):
        assert (ROOT / path).exists(), path
    for module in re.findall(r"`((?:\w+/)?\w+\.py)`", README):
        assert (ROOT / "easycore_ray" / module).exists(), module


def test_a_trained_model_is_used_in_three_lines_of_plain_pytorch(tmp_path, monkeypatch):
    """As they stand, but for the size of the images."""
    (lines,) = [block for block in blocks("python") if "load_model" in block]
    labels = [number % 3 for number in range(30)]
    make_checkpoint(tmp_path / "runs" / "mine" / "model", make_image_dataset(tmp_path / "dataset", labels).path)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(lines.replace("1, 8, 8", "1, 4, 4"), names)

    assert names["classes"].shape == (16,)
    assert len([line for line in lines.splitlines() if line and not line.startswith("import")]) == 3


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_python_story_runs(tmp_path, ray_session):
    """The ten lines of Python in the README run as they stand, but for the length of training, and leave a report."""
    (story,) = [block for block in blocks("python") if "prepare(" in block]
    story, shortened = re.subn(r"\b(epochs=10|steps=150|steps=50)\b", lambda found: found[0].rstrip("0"), story)
    assert shortened == 3
    imports, _, body = story.partition("\n\n")
    script = tmp_path / "story.py"
    script.write_text(f"{imports}\n\nif __name__ == '__main__':\n{textwrap.indent(body, '    ')}")
    import ray

    environment = {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=850,
                          env=os.environ | environment, check=False)  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert "clean_accuracy" in done.stdout
    assert (tmp_path / "runs" / "mine" / "report" / "report.html").exists()
