"""Where runs go: odd folder names, and addresses that would give a password away."""

import shutil

import pytest

from easycore_ray.config.stages import ScoreConfig
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.tracking.addresses import default_uri
from easycore_ray.tracking.mlflow import Tracker
from easycore_ray.tracking.runs import TrackedRun
from tests.tracking.stores import EXPERIMENT, make_empty_store, runs_of


@pytest.mark.slow
@pytest.mark.parametrize("name", ["50%20off", "what?", "c#", "ü and spaces"])
def test_the_database_lies_in_the_folder_whatever_its_name(tmp_path, name):
    """Not in one that is nearly called so; its artifacts lie beside it."""
    out = tmp_path / name
    out.mkdir()
    shutil.copy(make_empty_store(tmp_path), out / "mlflow.db")
    (tmp_path / "note.txt").write_text("hello")
    run = TrackedRun("t", "t", {"lr": 0.1}, files={"note.txt": str(tmp_path / "note.txt")}, status="FINISHED")
    Tracker(default_uri(str(out)), EXPERIMENT).close([run])

    assert {path.name for path in tmp_path.rglob("*.db")} == {"mlflow.db"}
    assert {path.parent for path in tmp_path.rglob("*.db")} == {tmp_path, out}, "that of the set-up, and ours"
    assert runs_of(default_uri(str(out)))["t"].data.params == {"lr": "0.1"}
    assert [path.read_text() for path in out.rglob("note.txt")] == ["hello"]


@pytest.mark.parametrize("scheme", ["https", "postgresql"])
def test_a_password_in_the_address_is_refused_unrepeated(scheme):
    """Manifests and MLflow's parameters would show it to everybody."""
    with pytest.raises(EasyCoreError, match=r"tracking_uri holds a password; .* MLFLOW_TRACKING_PASSWORD") as caught:
        ScoreConfig(out="s", dataset="d", tracking_uri=f"{scheme}://me:s3cret@host/db")
    assert "s3cret" not in str(caught.value)
