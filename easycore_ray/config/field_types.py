"""The value of a configuration's field, in the type that its annotation says.

Takes a name, a value and a type hint; gives the value in that type, where it plainly means one. The one decision: a
caller in Python may write what a command line would accept, and everything else is refused before any work, because
a word that no branch of the code knows ("Trades") would otherwise be taken for the default branch.
"""

import os
import re
import types
import typing
from collections.abc import Iterable
from numbers import Integral, Real
from pathlib import PurePath
from typing import Annotated, Any, Literal, Union

import numpy as np
from tyro.constructors import PrimitiveConstructorSpec

_SEVERAL = (list, tuple, range, np.ndarray)


def settle(name: str, value: Any, hint: Any) -> Any:
    """The value in the type of the hint.

    Numbers of numpy become Python's, lists tuples, a single value a tuple of one where several are allowed, a path
    object (or an artifact) its path, and text what the command line takes it for (``"8/255"``, ``"2:8"``).

    Args:
        name: of the field, for messages.
        value: as the caller gave it.
        hint: a class, ``Literal``, ``Annotated``, tuple or union of them.

    Raises:
        ValueError: it is none of these; says what is allowed and what was given.
    """
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return settle(name, _from_text(name, value, parts), parts[0])
    if origin in (Union, types.UnionType):
        return _one_of_types(name, value, parts)
    if origin is Literal:
        if isinstance(value, str) and value in parts:
            return value
        raise ValueError(f"{name} must be one of {', '.join(parts)}, got {value!r}")
    if origin is tuple:
        return _several(name, value, parts)
    return _single(name, value, hint)


def _from_text(name: str, value: Any, parts: tuple[Any, ...]) -> Any:
    """What the command line makes of a text, for types that are none themselves."""
    specs = [part for part in parts[1:] if isinstance(part, PrimitiveConstructorSpec)]
    if not isinstance(value, str) or parts[0] is str or not specs:
        return value
    try:
        return specs[0].instance_from_str([value])
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _one_of_types(name: str, value: Any, parts: tuple[Any, ...]) -> Any:
    """The first type of a union that fits; None only where it is one of them."""
    if value is None and type(None) in parts:
        return None
    problems = []
    for part in parts:
        if part is not type(None):
            try:
                return settle(name, value, part)
            except ValueError as error:
                problems.append(error)
    raise problems[0]


def _several(name: str, value: Any, parts: tuple[Any, ...]) -> tuple[Any, ...]:
    """A tuple of any length, ``tuple[X, ...]``, or of a fixed one."""
    if isinstance(value, np.ndarray) and not value.ndim:
        value = value.item()
    any_number = len(parts) == 2 and parts[1] is Ellipsis
    if any_number:
        values: Iterable[Any] = value if isinstance(value, _SEVERAL) else (value,)
        return tuple(settle(name, one, parts[0]) for one in values)
    if not isinstance(value, _SEVERAL) or len(value) != len(parts):
        raise ValueError(f"{name} must be {len(parts)} values, got {value!r}")
    return tuple(settle(name, one, part) for one, part in zip(value, parts, strict=True))


def _path_text(name: str, value: Any) -> str:
    """A path object as text that means the same path and nothing else."""
    text = os.fspath(value)
    if isinstance(value, PurePath):
        if re.match(r"[a-z0-9]+:/", text):
            raise ValueError(f"{name} must be text for a remote path, got {value!r}, which has lost a slash")
        # "digits" alone would be the name of a source, not a folder.
        text = text if value.is_absolute() else f"./{text}"
    return text


def _single(name: str, value: Any, kind: Any) -> Any:
    """A value of a plain class. True and False are no numbers, and no number is rounded."""
    truth = isinstance(value, bool | np.bool_)
    if kind is bool and truth:
        return bool(value)
    if kind is int and isinstance(value, Integral) and not truth:
        return int(value)
    if kind is float and isinstance(value, Real) and not truth:
        return float(value)
    if kind is str and isinstance(value, str):
        return value
    if kind is str and isinstance(value, os.PathLike):
        return _path_text(name, value)
    words = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}
    if kind in words:
        raise ValueError(f"{name} must be {words[kind]}, got {value!r}")
    return value
