"""How long a file or function may be, how many arguments it may ask for, one place for each public name, and shapes."""

import ast
import functools
import re
from collections import defaultdict
from pathlib import Path

import easycore_ray

ROOT = Path(__file__).resolve().parent.parent


def files_in(*folders):
    """Texts of all Python files of some folders, by their paths."""
    return {
        path.relative_to(ROOT).as_posix(): path.read_text()
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
    }


parse = functools.cache(ast.parse)
FILES = files_in("easycore_ray", "jobs")
TESTS = files_in("tests")
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_REQUIRED_ARGUMENTS = 500, 60, 7


def statements(node):
    """All statements below a node; expressions, of which there are ten times as many, are not entered."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield child
            yield from statements(child)


def functions(files=FILES):
    """(file and name, node) of every function and method, nested ones too."""
    for name, text in files.items():
        for node in statements(parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{name}:{node.name}", node


def required_arguments(function):
    """Number of arguments without a default, self and cls not counted."""
    arguments = function.args
    positional = [argument.arg for argument in arguments.posonlyargs + arguments.args]
    required = positional[: len(positional) - len(arguments.defaults)]
    keywords = [default for default in arguments.kw_defaults if default is None]
    return len([name for name in required if name not in {"self", "cls"}]) + len(keywords)


def public_names(text):
    """Functions, classes and constants that a module defines at its top level, without an underscore before them."""
    found = set()
    for node in parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return {name for name in found if not name.startswith("_")}


def test_files_are_short():
    """Those of tests too."""
    assert {name for name, text in (FILES | TESTS).items() if text.count("\n") > MAX_FILE_LINES} == set()


def test_functions_are_short():
    """Those of tests too."""
    long = {name for name, node in functions(FILES | TESTS) if node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES}

    assert long == set()


def test_functions_ask_for_few_arguments():
    """Neither verbs, whose arguments are the fields of their configurations, nor tests, which name fixtures, count."""
    verbs = set(easycore_ray.__all__)
    many = {name for name, node in functions() if required_arguments(node) > MAX_REQUIRED_ARGUMENTS}

    assert {name for name in many if name.split(":")[1] not in verbs} == set()


def test_a_public_name_has_one_place():
    """So that a name alone says what is meant; jobs are command lines and define no names for others."""
    places = defaultdict(set)
    for path, text in FILES.items():
        for name in public_names(text) if path.startswith("easycore_ray/") else ():
            places[name].add(path)

    assert {name for name, paths in places.items() if len(paths) > 1} == set()


def arrays_without_a_shape(text):
    """Public functions that take or give a tensor or an array and do not say of what shape."""
    shape = re.compile(r"\([\w ]+,[^)]*\)|shape|See ``(Context|TrajectoryScore)``")
    for scope in [node for node in ast.walk(parse(text)) if isinstance(node, ast.Module | ast.ClassDef)]:
        for node in scope.body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                types = [argument.annotation for argument in node.args.args + node.args.kwonlyargs] + [node.returns]
                named = " ".join(ast.unparse(kind) for kind in types if kind is not None)
                said = ast.get_docstring(node) or ""
                if re.search(r"Tensor|NDArray|\bIds\b|\bValues\b", named) and not shape.search(said):
                    yield node.name


def test_docstrings_say_what_shape_an_array_has():
    """(B, C, H, W), (N,), any shape: of every public function that takes or gives a tensor or an array."""
    missing = [f"{path}:{name}" for path, text in FILES.items() for name in arrays_without_a_shape(text)]

    assert missing == []
