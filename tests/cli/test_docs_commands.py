"""Commands that pages of docs/ say run as they stand: each is one that the command line takes."""

import re
import shlex
from pathlib import Path

import pytest

from easycore_ray.cli.options import parse
from easycore_ray.cli.verbs import COMMANDS

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"


def commands_of(page):
    """Words of every ``easycore`` line in the shell blocks of a page, continued lines joined."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith("easycore ")]


@pytest.mark.parametrize(
    "words", [words for page in ("models.md", "evaluation.md") for words in commands_of(page)], ids=" ".join
)
def test_a_command_of_the_docs_is_understood(words):
    """Its options exist, their values are allowed, and they go together."""
    _, verb, *arguments = words
    assert isinstance(parse(COMMANDS[verb].kind, arguments), COMMANDS[verb].kind)
