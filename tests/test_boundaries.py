"""Who may import whom: core is mathematics only, MLflow has one place, and importing the package starts nothing."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import easycore_ray

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "easycore_ray"
CORE = sorted((PACKAGE / "core").glob("*.py"))
SOURCES = sorted(path for folder in (PACKAGE, ROOT / "jobs") for path in folder.rglob("*.py"))
# Names under which files, processes and machines are reached.
OUTSIDE = {"os", "io", "pathlib", "shutil", "tempfile", "subprocess", "socket", "pickle", "urllib"}
# From the ground up: a module imports from its own package and from layers below.
LAYERS = (
    {"core", "storage"},
    {"config"},
    {"runtime"},
    {"data", "tracking"},
    {"engine"},
    {"scoring", "training"},
    {"selection", "evaluation", "reporting"},
    {"experiments", "analysis", "inspection"},
    {"cli"},
)
LAYER = {name: height for height, names in enumerate(LAYERS) for name in names}
# Who imports what from outside: everything else uses what these offer.
ALONE = {
    "mlflow": {"tracking"},
    "ray.train": {"engine"},
    "ray.tune": {"experiments"},
    "ray.data": {"data", "engine", "easycore_ray/runtime/cluster.py"},
    "tyro": {"cli", "config"},
}


# Libraries that a file of core imports inside the one function that needs them.
CORE_LIBRARIES = {
    "easycore_ray/core/gradient_selection.py": {"scipy"},
    "easycore_ray/core/selection_methods.py": {"scipy"},
    "easycore_ray/core/paired_differences.py": {"scipy"},
    "easycore_ray/core/timm_models.py": {"timm"},
}


def name_of(path):
    return path.relative_to(ROOT).as_posix()


@functools.cache
def syntax(path):
    """The syntax tree of a file."""
    return ast.parse(path.read_text())


@functools.cache
def imported(path):
    """Whole names of the modules a file imports, wherever in it; relative imports are resolved."""
    package = list(path.relative_to(ROOT).parts[:-1])
    found = set()
    for node in ast.walk(syntax(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names} | {module}
    return found


def roots(path):
    """First words of the modules a file imports."""
    return {name.split(".")[0] for name in imported(path)}


def loaded(statement):
    """First words of all modules that a fresh interpreter has loaded after a statement."""
    program = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_core_imports_mathematics_only():
    """PyTorch, torchvision, NumPy, the standard library without its ways to the outside, and core."""
    allowed = {"torch", "torchvision", "numpy", "easycore_ray"} | (sys.stdlib_module_names - OUTSIDE)

    assert len(CORE) > 10
    for path in CORE:
        assert roots(path) <= allowed | CORE_LIBRARIES.get(name_of(path), set()), name_of(path)
        ours = {name for name in imported(path) if name.split(".")[0] == "easycore_ray"}
        assert all(name.startswith("easycore_ray.core") for name in ours), name_of(path)


def called(path):
    """Names of the functions a file calls, as they are written."""
    return {ast.unparse(node.func) for node in ast.walk(syntax(path)) if isinstance(node, ast.Call)}


def test_core_opens_no_file():
    """Numbers in, numbers out."""
    for path in CORE:
        found = called(path) & {"open", "torch.load", "torch.save", "np.load", "np.save", "np.savez"}
        assert not found, f"{name_of(path)} calls {found}"


def room(path):
    """The package a file lies in; its own name for one that lies beside the packages."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_imports_point_downwards():
    """Every module, wherever the import stands in it; the package knows no job and no test."""
    backwards = []
    for path in SOURCES:
        if PACKAGE not in path.parents or path == PACKAGE / "__init__.py":
            continue
        assert not roots(path) & {"jobs", "tests"}, name_of(path)
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "easycore_ray" and len(parts) > 1 and parts[1] in LAYER:
                mine = room(path)
                if parts[1] != mine and LAYER[parts[1]] >= LAYER[mine]:
                    backwards.append(f"{name_of(path)} imports {name}")
    assert sorted(backwards) == []


def test_every_package_has_a_layer():
    """A new one is put somewhere on purpose; none bears the name of a verb, which it would hide."""
    rooms = {room(path) for path in SOURCES if PACKAGE in path.parents} - {"__init__"}

    assert rooms <= set(LAYER)
    assert not rooms & set(easycore_ray.__all__)


@pytest.mark.parametrize("library", ALONE)
def test_libraries_are_imported_in_their_own_place(library):
    """Each can be replaced, and its absence survived, in one place."""
    users = {path for path in SOURCES if any((name + ".").startswith(library + ".") for name in imported(path))}
    places = {path: {name_of(path), room(path) if PACKAGE in path.parents else "jobs"} for path in users}
    strangers = {name_of(path) for path in users if not places[path] & ALONE[library]}

    assert sorted(strangers) == []


def test_no_file_is_read_that_could_run_code():
    """Artifacts hold no pickles."""
    assert len(SOURCES) > 60
    for path in SOURCES:
        name, calls = name_of(path), called(path)
        if path.name not in {"pipeline.py", "readers.py"}:  # these hand work to Ray tasks, as Ray itself does
            assert "pickle" not in roots(path), name
        assert not roots(path) & {"cloudpickle", "dill", "joblib", "shelve", "marshal"}, name
        assert not calls & {"pickle.load", "pickle.dump"}, name
        assert not calls & {"torch.save", "pd.read_pickle", "Tuner.restore", "tune.Tuner.restore"}, name
        assert "torch.load" not in calls or name == "easycore_ray/engine/weights_file.py", name
        for node in ast.walk(syntax(path)):
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert ast.literal_eval(node.value) is False, name


def test_weights_of_others_are_read_as_tensors_alone():
    """Every call of ``torch.load`` says so itself, whatever torch's default is."""
    found = [
        {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        for node in ast.walk(syntax(PACKAGE / "engine" / "weights_file.py"))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]

    assert [each.get("weights_only") for each in found] == ["True"]


def test_jobs_only_parse_and_call():
    """No Ray, Arrow or PyTorch of their own: what they do can be done from Python."""
    jobs = sorted((ROOT / "jobs").glob("*.py"))

    assert jobs
    for path in jobs:
        assert roots(path) <= {"easycore_ray", "jobs", "tyro"} | sys.stdlib_module_names, name_of(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import easycore_ray", {"ray", "torch", "pyarrow", "mlflow", "numpy", "tyro", "safetensors"}),
        (
            "; ".join(f"import easycore_ray.core.{path.stem}" for path in CORE if path.stem != "__init__"),
            {"ray", "pyarrow", "mlflow", "safetensors", "tyro"},
        ),
        (
            "import easycore_ray.scoring.score_table, easycore_ray.scoring.reduce_task\n"
            "import easycore_ray.selection.exact_cut",
            {"ray", "torch", "mlflow", "tyro"},
        ),
        ("import easycore_ray.data.ingest.readers, easycore_ray.data.shards", {"torch", "mlflow"}),
    ],
    ids=["package", "core", "reduction and selection", "import workers"],
)
def test_a_fresh_interpreter_loads_no_more_than_it_needs(statement, forbidden):
    """Importing starts nothing, and workers that need no PyTorch do not wait for it."""
    assert not loaded(statement) & forbidden


def test_a_verb_stays_a_function():
    """However often it is looked up, and whatever has been imported before."""
    for name in easycore_ray.__all__:
        if not name.startswith("_"):
            first = getattr(easycore_ray, name)
            assert callable(first), name
            assert getattr(easycore_ray, name) is first, name
