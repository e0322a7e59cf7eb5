"""Write ``easycore_ray/__init__.pyi``, the verbs' signatures for type checkers: ``python -m tests.stubs``.

Generated from the configurations; a test holds the file equal to them.
"""

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, get_args, get_origin

import easycore_ray
from easycore_ray.config.fields import Eps, Workers

STUB = Path(easycore_ray.__file__).with_suffix(".pyi")
PATHS = {
    "out", "dataset", "scores", "coreset", "checkpoint", "sweep", "user_scores", "classes", "path", "images",
    "results", "source", "test_source", "init_from", "weights_file", "claim", "extra_dataset",
    "extra_coreset", "exclude",
}  # fmt: skip
HEADER = '''"""Signatures of the verbs, generated from the configurations by ``python -m tests.stubs``."""

from collections.abc import Sequence
from os import PathLike
from typing import Any, Literal, Protocol, overload

'''


def main() -> None:
    """Write the file."""
    STUB.write_text(render())
    print(STUB)


def render() -> str:
    """The whole content of the stub file."""
    verbs = {name: getattr(easycore_ray, name) for name in easycore_ray._VERBS}
    kinds = (verb.kind.__name__ for verb in verbs.values())
    named = sorted({*easycore_ray._HANDLES, "WorkPlan", "Leftover", "Status", *kinds})
    found = [getattr(easycore_ray, name, None) or _config(name, verbs) for name in named]
    imports: dict[str, list[str]] = {}
    for each in found:
        imports.setdefault(each.__module__, []).append(each.__name__)
    lines = []
    for module, names in sorted(imports.items()):
        aliased = [f"{name} as {name}" if name in easycore_ray.__all__ else name for name in sorted(names)]
        one = f"from {module} import {', '.join(aliased)}"
        lines += [one] if len(one) <= 120 else [f"from {module} import (", *_filled(aliased, "    "), ")"]
    lines += ["", "StrPath = str | PathLike[str]", "", "__version__: str", "__all__: list[str]", ""]
    lines += ["def open(path: StrPath) -> Any: ...", ""]
    for name, verb in verbs.items():
        lines += [*_protocol(name, verb), ""]
    lines += [f"{name}: _{name.capitalize()}" for name in verbs]
    return HEADER + "\n".join(lines) + "\n"


def _config(name: str, verbs: dict[str, Any]) -> type[Any]:
    if name in ("Leftover", "Status"):
        from easycore_ray.inspection.clean import Leftover
        from easycore_ray.inspection.status import Status

        return {"Leftover": Leftover, "Status": Status}[name]
    return next(verb.kind for verb in verbs.values() if verb.kind.__name__ == name)


def _protocol(name: str, verb: Any) -> list[str]:
    """The type of one verb: called with its configuration or with keywords, and so is its plan."""
    gives = _text(verb.__annotations__["return"])
    lines = [f"class _{name.capitalize()}(Protocol):", f"    kind: type[{verb.kind.__name__}]"]
    lines += _overloads("__call__", verb.kind, gives, [])
    if hasattr(verb, "plan"):
        lines += _overloads("plan", verb.kind, "WorkPlan", ["measure: bool = False"])
    return lines


def _overloads(method: str, kind: type[Any], gives: str, more: list[str]) -> list[str]:
    whole = ", ".join(["self", f"config: {kind.__name__}", "/", *(["*", *more] if more else [])])
    return [
        "    @overload",
        f"    def {method}({whole}) -> {gives}: ...",
        "    @overload",
        f"    def {method}(",
        "        self,",
        "        *,",
        *_filled([*_parameters(kind), *more], " " * 8),
        f"    ) -> {gives}: ...",
    ]


def _filled(parts: list[str], indent: str) -> list[str]:
    """Parts with commas between them, as many as fit on a line."""
    lines = [indent]
    for part in parts:
        if len(lines[-1]) + len(part) > 118 and lines[-1] != indent:
            lines[-1] = lines[-1].rstrip()
            lines.append(indent)
        lines[-1] += f"{part}, "
    return [line.rstrip() for line in lines]


def _parameters(kind: type[Any]) -> list[str]:
    """The fields as keyword-only parameters, those without a default first."""
    hints = typing.get_type_hints(kind, include_extras=True)
    needed, optional = [], []
    for spec in dataclasses.fields(kind):
        text = f"{spec.name}: {_accepted(hints[spec.name], spec.name)}"
        if spec.default is dataclasses.MISSING:
            needed.append(text)
        else:
            optional.append(f"{text} = {_default(spec.default)}")
    return needed + optional


def _accepted(hint: Any, name: str) -> str:
    """What a field takes: paths as objects, one value for several, eps and ranges of workers as text."""
    if get_origin(hint) is tuple and get_args(hint)[-1] is Ellipsis:
        one = _accepted(get_args(hint)[0], name)
        return f"{one} | Sequence[{one}]"
    if get_origin(hint) in (types.UnionType, typing.Union):
        return " | ".join(_accepted(part, name) for part in get_args(hint))
    if hint == Eps:
        return "float | str"
    if hint == Workers:
        return "int | str | tuple[int, int]"
    if get_origin(hint) is typing.Annotated:
        return _accepted(get_args(hint)[0], name)
    return "StrPath" if hint is str and name in PATHS else _text(hint)


def _text(hint: Any) -> str:
    """A type as it is written, without what it is annotated with."""
    if get_origin(hint) is typing.Annotated:
        return _text(get_args(hint)[0])
    if hint is types.NoneType:
        return "None"
    if get_origin(hint) is typing.Literal:
        return f"Literal[{', '.join(_default(value) for value in get_args(hint))}]"
    if get_origin(hint) in (list, dict, tuple):
        return f"{get_origin(hint).__name__}[{', '.join(_text(part) for part in get_args(hint))}]"
    return "Any" if hint is Any else hint.__name__


def _default(value: Any) -> str:
    if isinstance(value, str):
        return '"' + value.replace('"', '\\"') + '"'
    if isinstance(value, tuple):
        inner = ", ".join(_default(part) for part in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    return repr(value)


if __name__ == "__main__":
    main()
