"""Signatures and docstrings of verbs, generated from their configurations: for help(), completion, type checkers."""

import ast
import dataclasses
import functools
import inspect
import sys
import textwrap
from collections.abc import Callable
from typing import Any, get_type_hints


def describe_verb(call: Any, kind: type[Any], gives: Any) -> Any:
    """Give a verb, and its ``plan``, the signature of its configuration and a docstring with an Args section."""
    from easycore_ray.config.work_plan import WorkPlan

    call.kind = kind
    doc = inspect.getdoc(call) or ""
    _describe(call, kind, gives, doc)
    if hasattr(call, "plan"):
        sentence = f"What {call.__name__} would do: how much it is, what it costs and where it is written."
        measure = {"measure": "Take a few real steps, ask the cluster (at most 60 s) and use what is measured."}
        _describe(call.plan, kind, WorkPlan, sentence, measure)
        call.plan.__name__, call.plan.__qualname__ = "plan", f"{call.__name__}.plan"
        call.plan.__module__ = call.__module__
    return call


def signature_of(kind: type[Any], gives: Any, *, measure: bool = False) -> inspect.Signature:
    """Keyword-only parameters, one for each field of a configuration; those without a default come first."""
    keyword, empty = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.empty
    hints = get_type_hints(kind)  # without what the command line adds to them
    found = [
        inspect.Parameter(
            spec.name, keyword, default=empty if spec.default is dataclasses.MISSING else spec.default,
            annotation=hints[spec.name],
        )
        for spec in dataclasses.fields(kind)
    ]  # fmt: skip
    if measure:
        found.append(inspect.Parameter("measure", keyword, default=False, annotation=bool))
    found.sort(key=lambda parameter: parameter.default is not empty)
    return inspect.Signature(found, return_annotation=gives)


def field_docs(kind: type[Any]) -> dict[str, str]:
    """The docstring of every field of a configuration, on one line each, from the class that says it last."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            found |= _docs_of_module(base.__module__).get(base.__name__, {})
    # A text that is put together says itself in the options of the command line.
    for name, hint in get_type_hints(kind, include_extras=True).items():
        for option in getattr(hint, "__metadata__", ()):
            if getattr(option, "help", None):
                found[name] = " ".join(option.help.split())
    return {spec.name: found.get(spec.name, "") for spec in dataclasses.fields(kind)}


@functools.cache
def _docs_of_module(module: str) -> dict[str, dict[str, str]]:
    """What stands below each annotated name of each class of a module."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (OSError, TypeError, KeyError):  # no source at hand: signatures without descriptions
        return {}
    found: dict[str, dict[str, str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            pairs = zip(node.body, node.body[1:], strict=False)
            found[node.name] = {
                one.target.id: " ".join(after.value.value.split())
                for one, after in pairs
                if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
                and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            }  # fmt: skip
    return found


def _describe(
    call: Callable[..., Any], kind: type[Any], gives: Any, doc: str, more: dict[str, str] | None = None
) -> None:
    signature = signature_of(kind, gives, measure=more is not None)
    docs = field_docs(kind) | (more or {})
    lines = [
        textwrap.fill(f"{name}: {docs[name] or 'see the configuration.'}", 110, initial_indent=" " * 4,
                      subsequent_indent=" " * 8)
        for name in signature.parameters
    ]  # fmt: skip
    section = "\n".join([f"Args (keywords, or one {kind.__name__} in their place):", *lines])
    before, mark, after = doc.partition("\nReturns:")
    call.__doc__ = f"{before.rstrip()}\n\n{section}\n" + (mark + after if mark else "")
    call.__signature__ = signature  # type: ignore[attr-defined]
    annotations = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    call.__annotations__ = annotations | {"return": gives}
