"""Types of configuration fields: what a value may be, how text becomes one, and what is said of any other.

Each type is an ``Annotated`` alias that pydantic validates and tyro turns into an option. A caller in Python may write
what a command line accepts: numbers of NumPy, lists for tuples, one value where several are allowed, paths and
artifacts for their text, ``"8/255"`` for a number. True and False are no numbers, and no number is rounded.
"""

import math
import os
import re
from collections.abc import Callable, Iterable
from pathlib import PurePath
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, Strict
from tyro.constructors import PrimitiveConstructorSpec

from easycore_ray.core.eps import format_eps, parse_eps
from easycore_ray.core.names import ATTACK_NAMES, CORRUPTION_NAMES, MODEL_NAMES, is_timm_model, is_user_model
from easycore_ray.core.selection import HIGHER_IS_HARDER, METHODS
from easycore_ray.core.selection_methods import describe
from easycore_ray.core.trajectory_scores import TRAJECTORY_SCORES, is_trajectory_score, parse_trajectory_score
from easycore_ray.storage.errors import EasyCoreError

T = TypeVar("T")


def _plain_number(value: Any) -> Any:
    """A number of NumPy, or an array of one, as Python's."""
    return value.item() if isinstance(value, np.generic | np.ndarray) and value.size == 1 else value


def _plain_text(value: Any) -> Any:
    """A path object or an artifact as text that means the same path and nothing else."""
    if not isinstance(value, os.PathLike):
        return value
    text = os.fspath(value)
    if isinstance(value, PurePath):
        if re.match(r"[a-z0-9]+:/", text):
            raise ValueError(f"must be text for a remote path, got {value!r}, which has lost a slash")
        # "digits" alone would be the name of a source, not a folder.
        text = text if value.is_absolute() else f"./{text}"
    return text


def parse_amounts(text: str) -> dict[str, float]:
    """Amounts of resources by name, from text such as ``CPU=128,GPU=4``.

    Raises:
        ValueError: it is no list of names and positive numbers.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, amount = part.strip().partition("=")
        try:
            number = float(amount)
        except ValueError:
            number = math.nan
        if not (name in ("CPU", "GPU") and 0 <= number < math.inf) or name in found:
            raise ValueError(f"must be amounts such as CPU=128,GPU=4, got {text!r}")
        found[name] = number
    return found


def _amounts(text: str) -> str:
    parse_amounts(text)
    return text


def _as_tuple(value: Any) -> Any:
    """Several values as a tuple; a single one as a tuple of one."""
    if isinstance(value, np.ndarray):
        return tuple(value.reshape(-1).tolist())
    return tuple(value) if isinstance(value, list | tuple | range) else (value,)


def _within(allowed: Callable[[float], bool], words: str) -> AfterValidator:
    """Refuse a number out of a range, with ``words`` in which ``{}`` is the number."""

    def check(value: float) -> float:
        if not allowed(value):
            raise ValueError(words.format(f"{value:g}"))
        return value

    return AfterValidator(check)


def _listed(noun: str, names: Iterable[str], hint: str = "") -> AfterValidator:
    """Refuse a word that is not one of a registry's."""

    def check(value: str) -> str:
        if value not in names:
            raise ValueError(f"unknown {noun} {value!r}; allowed are {', '.join(sorted(names))}{hint}")
        return value

    return AfterValidator(check)


def cli_option(metavar: str, parse: Callable[[str], Any] = str, write: Callable[[Any], str] = str) -> Any:
    """How the command line reads and shows a field; what it may be is checked on construction."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda args: parse(args[0]),
        is_instance=lambda _: True,
        str_from_instance=lambda value: [write(value)],
    )


def _choices(names: Iterable[str]) -> Any:
    return cli_option("{" + ",".join(names) + "}")


Text = Annotated[str, Strict(), BeforeValidator(_plain_text)]
Flag = Annotated[bool, Strict(), BeforeValidator(_plain_number)]
Whole = Annotated[int, Strict(), BeforeValidator(_plain_number)]
Natural = Annotated[int, Strict(), BeforeValidator(_plain_number), Field(ge=0)]
Count = Annotated[int, Strict(), BeforeValidator(_plain_number), Field(ge=1)]
Number = Annotated[float, Strict(), BeforeValidator(_plain_number)]
NonNegative = Annotated[Number, Field(ge=0)]
Weight = Annotated[Number, _within(lambda value: 0 <= value < math.inf, "must be a number >= 0, got {}")]
Positive = Annotated[Number, _within(lambda value: 0 < value < math.inf, "must be a positive number, got {}")]
PartialShare = Annotated[Number, _within(lambda value: 0 <= value < 1, "must be in [0, 1), got {}")]
Fraction = Annotated[
    Number,
    _within(
        lambda value: 0 < value <= 1,
        "must be in (0, 1], got {}; it is the share kept: to drop 30 % of the data pass 0.7",
    ),
]
Decay = Annotated[
    Number,
    _within(
        lambda value: 0 < value < 1,
        "must be in (0, 1), got {}; it is the share of the average that each step keeps, e.g. 0.995",
    ),
]
Amounts = Annotated[Text, AfterValidator(_amounts)]
Several = Annotated[tuple[T, ...], BeforeValidator(_as_tuple)]


def _read_eps(value: Any) -> Any:
    return parse_eps(value) if isinstance(value, str) else _plain_number(value)


Eps = Annotated[float, Strict(), BeforeValidator(_read_eps), cli_option("EPS", parse_eps, format_eps)]


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


def _read_workers(value: Any) -> int | tuple[int, int]:
    value = parse_workers(value) if isinstance(value, str) else value
    several = isinstance(value, list | tuple)
    ends = [_plain_number(end) for end in (value if several else (value, value))]
    if len(ends) == 2 and all(type(end) is int for end in ends) and 1 <= ends[0] <= ends[1]:
        return (ends[0], ends[1]) if several else ends[0]
    shown = ":".join(map(str, value)) if several else repr(value)
    raise ValueError(f"must be N >= 1 or MIN:MAX with 1 <= MIN <= MAX, got {shown}")


Workers = Annotated[
    int | tuple[int, int], PlainValidator(_read_workers), cli_option("N|MIN:MAX", parse_workers, format_workers)
]


def parse_epoch_range(text: str) -> tuple[int, int]:
    """``A:B``, a range of scored epochs, both ends inclusive, as two numbers.

    Raises:
        EasyCoreError: if the text is no such range or not 1 <= A <= B.
    """
    found = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", text.strip())
    first, last = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= first <= last:
        raise EasyCoreError(f"must be A:B with 1 <= A <= B, got {text!r}; e.g. 1:10 for the first ten epochs")
    return first, last


def _check_epoch_range(text: str) -> str:
    first, last = parse_epoch_range(text)
    return f"{first}:{last}"


EpochRange = Annotated[Text, AfterValidator(_check_epoch_range)]


def _check_model(name: str) -> str:
    if name not in MODEL_NAMES and not is_user_model(name) and not is_timm_model(name):
        allowed = ", ".join(sorted(MODEL_NAMES))
        raise ValueError(
            f"unknown model {name!r}; allowed are {allowed}, timm:NAME (an architecture of timm, no tag of pretrained "
            "weights), or your own as package.module:function"
        )
    return name


ModelName = Annotated[Text, AfterValidator(_check_model), cli_option("NAME|timm:NAME|MODULE:FUNCTION")]
# Every method's own first line: a new method explains itself.
METHOD_HELP = f"How to choose. {describe()}"
MethodName = Annotated[Text, _listed("method", METHODS), _choices(METHODS)]


_ALIASES = {"csl": "loss"}
"""Names by which scores are known as well: CSL (Ravikumar et al. 2025) is the loss, summed over the epochs."""


def check_score(text: str) -> str:
    """A score as it is written in identities and names of columns: without options that have their default.

    Raises:
        EasyCoreError: it is unknown, or an option cannot be what it is.
    """
    text = _ALIASES.get(text, text)
    if text in HIGHER_IS_HARDER:
        return text
    if not is_trajectory_score(text):
        names = ", ".join(sorted({*HIGHER_IS_HARDER, *TRAJECTORY_SCORES}))
        raise EasyCoreError(f"unknown score {text!r}; allowed are {names}")
    try:
        return str(parse_trajectory_score(text))
    except ValueError as error:
        raise EasyCoreError(str(error)) from error


ScoreName = Annotated[
    Text,
    AfterValidator(check_score),
    cli_option("{" + ",".join((*HIGHER_IS_HARDER, *TRAJECTORY_SCORES)) + "}[:OPTION=VALUE,…]"),
]
TableScoreName = Annotated[Text, _listed("score", HIGHER_IS_HARDER), _choices(HIGHER_IS_HARDER)]
"""One of those that every hardness table has."""
SWEEP_ATTACKS = (*ATTACK_NAMES, "autoattack")
EVALUATION_ATTACKS = ("none", *SWEEP_ATTACKS)
AttackName = Annotated[Text, _listed("attack", EVALUATION_ATTACKS), _choices(EVALUATION_ATTACKS)]
SweepAttackName = Annotated[Text, _listed("attack", SWEEP_ATTACKS), _choices(SWEEP_ATTACKS)]
CORRUPTION_CHOICES = ("all", *CORRUPTION_NAMES)
CorruptionName = Annotated[Text, _listed("corruption", CORRUPTION_CHOICES), _choices(CORRUPTION_CHOICES)]
Training = Literal["standard", "trades", "pgd", "mart", "nfgsm"]
ScoringTraining = Literal["standard", "trades", "pgd", "mart"]
ADVERSARIAL = {"trades", "pgd", "mart", "nfgsm"}
"""Objectives that train against an attacker."""
WEIGHTED = {"trades", "mart"}
"""Objectives with a weight, beta."""
ScorePass = Literal["eval", "fused", "fused+eval"]
Recorded = Literal["features", "kd"]
InputSpace = Literal["pixel", "normalised"]
WeightsName = Literal["last", "best", "averaged"]
Normalisation = Literal["none", "half", "cifar10", "pytorch-cifar", "cifar100", "imagenet", "dataset", "file"]
Balance = Literal["none", "class"]
Norm = Literal["linf", "l2"]
EvaluationNorm = Literal["linf", "l2", "l1"]
SourceFormat = Literal["auto", "imagefolder", "parquet", "webdataset"]
OnDuplicate = Literal["keep", "drop", "error"]
StudyPart = Literal[
    "standard",
    "trades",
    "fractions",
    "autoattack",
    "half",
    "half-autoattack",
    "half-others",
    "half-others-autoattack",
    "30-percent",
    "30-percent-autoattack",
    "10-percent",
    "10-percent-autoattack",
    "standard-half",
    "standard-half-autoattack",
    "half-autoattack-500",
]
FindingKind = Literal["label_error", "label_conflict", "duplicate"]
"""What an audit finds of a sample: its label is likely wrong, an equal image has another label, or an equal image with
this label is there already."""
