"""Types of configuration fields, their parsers and the names they may take."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tyro.constructors import PrimitiveConstructorSpec

from easycore_ray.core.attacks import ATTACKS
from easycore_ray.core.models import MODELS
from easycore_ray.core.selection import HIGHER_IS_HARDER, METHODS
from easycore_ray.core.selection_methods import describe
from easycore_ray.core.threat import check_eps, format_eps, parse_eps
from easycore_ray.storage.errors import EasyCoreError

Eps = Annotated[
    float,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="EPS",
        instance_from_str=lambda args: parse_eps(args[0]),
        is_instance=lambda value: isinstance(value, float),
        str_from_instance=lambda value: [format_eps(value)],
    ),
]


def parse_workers(text: str) -> int | tuple[int, int]:
    """``4`` as 4, ``2:8`` as (2, 8).

    Raises:
        ValueError: anything else.
    """
    low, colon, high = text.partition(":")
    try:
        return (int(low), int(high)) if colon else int(low)
    except ValueError:
        raise ValueError(f"must be N or MIN:MAX, e.g. 4 or 2:8, got {text!r}") from None


def format_workers(value: int | tuple[int, int]) -> str:
    """4 as ``4``, (2, 8) as ``2:8``."""
    return f"{value[0]}:{value[1]}" if isinstance(value, tuple) else str(value)


Workers = Annotated[
    int | tuple[int, int],
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="N|MIN:MAX",
        instance_from_str=lambda args: parse_workers(args[0]),
        is_instance=lambda value: isinstance(value, int | tuple),
        str_from_instance=lambda value: [format_workers(value)],
    ),
]


def _one_of_spec(names: Iterable[str], metavar: str | None = None) -> PrimitiveConstructorSpec[str]:
    """A string option whose help lists a registry, so that a new entry needs no further edit."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar or "{" + ",".join(names) + "}",
        # Checked on construction, where the message can say more than a parser's.
        instance_from_str=lambda args: args[0],
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [value],
    )


ModelName = Annotated[str, _one_of_spec((), "{" + ",".join(MODELS) + "}|MODULE:FUNCTION")]


# Every method's own first line: a new method explains itself.
METHOD_HELP = f"How to choose. {describe()}"


MethodName = Annotated[str, _one_of_spec(METHODS)]


ScoreName = Annotated[str, _one_of_spec(HIGHER_IS_HARDER)]


SWEEP_ATTACKS = (*ATTACKS, "autoattack")


EVALUATION_ATTACKS = ("none", *SWEEP_ATTACKS)


AttackName = Annotated[str, _one_of_spec(EVALUATION_ATTACKS)]


ArmName = Annotated[str, _one_of_spec((), "{" + ",".join(METHODS) + "}[:SCORE][/class]")]


Training = Literal["standard", "trades", "pgd"]


ADVERSARIAL = {"trades", "pgd"}
"""Objectives that train against an attacker."""


ScorePass = Literal["eval", "fused", "fused+eval"]


Balance = Literal["none", "class"]


Norm = Literal["linf", "l2"]


StudyPart = Literal["standard", "trades", "fractions", "autoattack"]


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
    problems = arm_problems(text)
    if problems:
        raise EasyCoreError(problems[0])
    name, _, balance = text.partition("/")
    method, _, score = name.partition(":")
    return Arm(method, score or METHODS[method].default_score, "class" if balance else "none")


def arm_problems(text: str) -> list[str]:
    """What is wrong with an arm's name."""
    name, slash, balance = text.partition("/")
    method, colon, score = name.partition(":")
    found = one_of("method", method, METHODS)
    if slash and balance != "class":
        found.append(f"method may end in /class only, got {text!r}")
    if colon:
        found += one_of("score", score, HIGHER_IS_HARDER)
        if not found and METHODS[method].default_score is None:
            found.append(f"method {method} uses no score, got {text!r}; write {method}")
        found += easycore_problem(method, score)
    return found


def epochs_problem(text: str) -> list[str]:
    """What is wrong with a range of epochs."""
    try:
        parse_epochs(text)
    except EasyCoreError as error:
        return [str(error)]
    return []


def easycore_problem(method: str, score: str) -> list[str]:
    """What is wrong with a score given to the method easycore."""
    # The name stands for the paper's method; a lowest-EL2N coreset under it would mislead.
    if method != "easycore" or score == "aign":
        return []
    return [f"method easycore goes by aign, got score {score!r}; write easiest for another score"]


def workers_problems(value: int | tuple[int, int]) -> list[str]:
    """What is wrong with a number or range of workers."""
    if not isinstance(value, tuple):
        return at_least("num_workers", value, 1)
    if len(value) == 2 and 1 <= value[0] <= value[1]:
        return []
    return [f"num_workers must be N >= 1 or MIN:MAX with 1 <= MIN <= MAX, got {':'.join(map(str, value))}"]


def parse_epochs(text: str) -> tuple[int, int]:
    """``A:B``, a range of scored epochs, both ends inclusive, as two numbers.

    Raises:
        EasyCoreError: if the text is no such range or not 1 <= A <= B.
    """
    found = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", text.strip())
    first, last = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= first <= last:
        raise EasyCoreError(
            f"score_epochs must be A:B with 1 <= A <= B, got {text!r}; e.g. 1:10 for the first ten epochs"
        )
    return first, last


def at_least(name: str, value: float, least: float) -> list[str]:
    """What is wrong with a number that must be at least ``least``."""
    return [] if value >= least else [f"{name} must be >= {least:g}, got {value:g}"]


def one_of(name: str, value: str, allowed: Any) -> list[str]:
    """What is wrong with a word that must be one of those allowed."""
    return [] if value in allowed else [f"unknown {name} {value!r}; allowed are {', '.join(sorted(allowed))}"]


def fraction_problem(value: float) -> list[str]:
    """What is wrong with a kept share; nothing if it is in (0, 1]."""
    if 0 < value <= 1:
        return []
    return [f"fraction must be in (0, 1], got {value:g}; it is the share kept: to drop 30 % of the data pass 0.7"]


def eps_problem(name: str, value: float, norm: str) -> list[str]:
    """What is wrong with a perturbation."""
    try:
        check_eps(value, norm)
    except ValueError as error:
        # The message begins with the word eps; --eval-eps and --attack-step-size say which one is meant.
        return [str(error) if name == "eps" else f"{name}: {error}"]
    return []
