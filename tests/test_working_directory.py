"""What travels with ``ray job submit --working-dir .``, by Ray's own rules, and what a job says of it."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import create_package

from easycore_ray import __version__
from easycore_ray.storage import provenance

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def travelling(tmp_path):
    """Makes the package of a user's folder that holds the project and other things; its names and bytes."""
    folder = tmp_path / "project"
    for name in ("easycore_ray", "jobs", "docs"):
        shutil.copytree(ROOT / name, folder / name)
    for name in (".rayignore", ".gitignore", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    for name in ("runs/digits/model.safetensors", "photos/secret.jpg", "mynets/nets.py", "token"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")

    def pack():
        target = tmp_path / "package.zip"
        target.unlink(missing_ok=True)
        create_package(str(folder), target, include_gitignore=True, include_parent_dir=False)
        return set(zipfile.ZipFile(target).namelist()), target.stat().st_size

    return folder, pack


def test_the_code_travels_and_nothing_else(travelling):
    """No images, models, tokens or caches of the folder; a folder that the user adds to the list does."""
    folder, pack = travelling
    (folder / "easycore_ray" / "__pycache__").mkdir(exist_ok=True)
    (folder / "easycore_ray" / "__pycache__" / "x.pyc").write_text("x")
    names, size = pack()
    files = {name for name in names if not name.endswith("/")}
    code = {str(path.relative_to(ROOT)) for name in ("easycore_ray", "jobs") for path in (ROOT / name).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts}  # fmt: skip

    assert files == code
    assert size < 4 * 2**20
    with (folder / ".rayignore").open("a") as rules:
        rules.write("!/mynets\n!/mynets/**\n")
    assert "mynets/nets.py" in pack()[0]


def test_a_submitted_job_names_itself_and_its_code(monkeypatch):
    """By what Ray tells its process; elsewhere there is nothing to say."""
    assert provenance.submitted_job() == {}
    job = {"metadata": {"job_submission_id": "raysubmit_1"}, "runtime_env": {"working_dir": "gcs://_ray_pkg_ab.zip"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))

    assert provenance.submitted_job() == {"submission_id": "raysubmit_1", "working_directory": "gcs://_ray_pkg_ab.zip"}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "[]")
    assert provenance.submitted_job() == {}


def test_a_commit_can_be_told(monkeypatch):
    """No repository travels."""
    provenance.git_commit.cache_clear()
    monkeypatch.setenv(provenance.COMMIT_VARIABLE, "f00")
    assert provenance.git_commit() == "f00"
    provenance.git_commit.cache_clear()
    assert provenance.versions()["easycore-ray"] == __version__
