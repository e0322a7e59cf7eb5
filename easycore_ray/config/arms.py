"""Arms of a comparison: ``METHOD[:SCORE][/class]``, as command lines and tables name them."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator

from easycore_ray.config.fields import Balance, Text, cli_option
from easycore_ray.core.selection import HIGHER_IS_HARDER, METHODS
from easycore_ray.storage.errors import EasyCoreError


@dataclass(frozen=True)
class Arm:
    """A way to select: method, score that orders the samples (None: not needed), balance."""

    method: str
    score: str | None
    balance: Balance

    @property
    def name(self) -> str:
        """The arm as it is written on the command line, e.g. ``easiest:el2n/class``."""
        default = METHODS[self.method].default_score
        score = f":{self.score}" if self.score not in (None, default) else ""
        return f"{self.method}{score}{'/class' if self.balance == 'class' else ''}"


def parse_arm(text: str) -> Arm:
    """``METHOD[:SCORE][/class]`` as an ``Arm``.

    Raises:
        EasyCoreError: says which part is unknown and what is allowed.
    """
    name, slash, balance = text.partition("/")
    method, colon, score = name.partition(":")
    for noun, word, registry in (("method", method, METHODS), ("score", score, HIGHER_IS_HARDER)):
        if word not in registry and (noun == "method" or colon):
            raise EasyCoreError(f"unknown {noun} {word!r}; allowed are {', '.join(sorted(registry))}")
    if slash and balance != "class":
        raise EasyCoreError(f"method may end in /class only, got {text!r}")
    if colon and METHODS[method].default_score is None:
        raise EasyCoreError(f"method {method} uses no score, got {text!r}; write {method}")
    if problem := easycore_problem(method, score or None):
        raise EasyCoreError(problem)
    return Arm(method, score or METHODS[method].default_score, "class" if balance else "none")


def easycore_problem(method: str, score: str | None) -> str:
    """What is wrong with a score for ``easycore``: the name stands for the paper's method, which goes by AIGN."""
    if method != "easycore" or score in (None, "aign"):
        return ""
    return f"method easycore goes by aign, got score {score!r}; write easiest for another score"


def _check_arm(text: str) -> str:
    parse_arm(text)
    return text


ArmName = Annotated[Text, AfterValidator(_check_arm), cli_option("{" + ",".join(METHODS) + "}[:SCORE][/class]")]
