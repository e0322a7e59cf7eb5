"""The wheel: holds the package with its data files and nothing else, and works where no source tree is."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import easycore_ray

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


def call(*arguments, cwd, **environment):
    """Run a Python command; its output."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy so that the source tree stays clean; jobs and tests lie beside the package."""
    source = tmp_path_factory.mktemp("source")
    for folder in ("easycore_ray", "jobs", "tests"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    call("-m", "build", "--wheel", "--no-isolation", "--outdir", source / "dist", cwd=source)
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with the wheel installed in it, without its dependencies."""
    target = tmp_path_factory.mktemp("target")
    call("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel, cwd=target)
    return target


def test_it_holds_the_package_whole_and_nothing_else(wheel):
    """Every source and data file, py.typed included; no jobs, no tests."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "easycore_ray").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    assert names == files
    assert "easycore_ray/py.typed" in names


def test_its_metadata_says_what_it_is(wheel):
    """Name, version, licence, readme, and what it needs."""
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = archive.read(name).decode()

    assert "Name: easycore-ray\n" in metadata
    assert "License-Expression: Apache-2.0\n" in metadata
    assert "Requires-Python: >=3.11\n" in metadata
    assert "Requires-Dist: ray[data,default,train,tune]" in metadata
    assert len(metadata.split("\n\n", 1)[1]) > 100
    assert "easycore = easycore_ray.cli:main" in archive.read(name.replace("METADATA", "entry_points.txt")).decode()
    assert any(entry.endswith("licenses/LICENSE") for entry in archive.namelist())


def test_it_works_where_no_source_tree_is(installed, tmp_path):
    """From an empty folder: version, verbs, core, and every module of the package."""
    program = (
        "import easycore_ray, importlib, pkgutil\n"
        "print(easycore_ray.__file__)\n"
        "verbs = [getattr(easycore_ray, name).__name__ for name in easycore_ray._VERBS]\n"
        "for module in pkgutil.walk_packages(easycore_ray.__path__, 'easycore_ray.'):\n"
        "    importlib.import_module(module.name)\n"
        "print(easycore_ray.__version__, *verbs)\n"
    )
    output = call("-c", program, cwd=tmp_path, PYTHONPATH=str(installed)).splitlines()

    assert output[0] == str(installed / "easycore_ray" / "__init__.py")
    assert output[-1].split() == [easycore_ray.__version__, *easycore_ray._VERBS]
