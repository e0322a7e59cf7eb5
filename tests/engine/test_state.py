"""Training states: what was written is read, anything else is one error that names the folder."""

import json
import shutil

import pytest
import torch

from easycore_ray.engine.run_history import check_committed_states, read_committed_history
from easycore_ray.engine.state import State, load_state, pack_state, save_state, unpack_state
from easycore_ray.storage.errors import EasyCoreError

FILES = ["best.safetensors", "carried.safetensors", "model.safetensors", "optimizer.safetensors", "state.json"]
NAME = "epoch-00002-" + "a" * 12


@pytest.fixture
def folder(tmp_path):
    """A state of two epochs, of which the first did best, and another run's."""
    for number, name in enumerate((NAME, "other")):
        (tmp_path / name).mkdir()
        weights = {"w": torch.full((3,), float(number))}
        carried = {"parts": [], "sums": torch.ones(2 + number)}
        save_state(str(tmp_path / name), State(2, 4, weights, weights, [{"epoch": 2}], carried, 1, weights))
    record = {"checkpoint_results": [{"checkpoint_dir_name": NAME}], "latest_checkpoint_result": None}
    record["latest_checkpoint_result"] = record["checkpoint_results"][0]
    (tmp_path / "checkpoint_manager_snapshot.json").write_text(json.dumps(record))
    return tmp_path / NAME


def test_a_state_is_read_as_it_was_written(folder):
    """Also one of a release that wrote no checksums."""
    content = json.loads((folder / "state.json").read_text())
    assert sorted(content["sha256"]) == FILES[:-1]
    (folder / "old").mkdir()
    for path in folder.glob("*.*"):
        shutil.copy(path, folder / "old")
    (folder / "old" / "state.json").write_text(json.dumps({k: v for k, v in content.items() if k != "sha256"}))
    for where in (folder, folder / "old"):
        state = load_state(str(where))
        assert (state.epoch, state.step, state.best_epoch, state.carried["parts"]) == (2, 4, 1, [])
        assert state.model["w"].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("how", ["cut", "empty", "gone", "another run's"])
@pytest.mark.parametrize("name", FILES)
def test_a_state_that_is_not_what_was_written_is_refused(folder, name, how):
    """Weights of another run of the same model would be trained on without a word."""
    path = folder / name
    if how == "gone":
        path.unlink()
    elif how == "another run's":
        other = path.parent.parent / "other" / name
        path.write_bytes(other.read_bytes() if name != "state.json" else b'{"name": "web app"}')
    else:
        path.write_bytes(path.read_bytes()[: -3 if how == "cut" else 0])

    with pytest.raises(
        EasyCoreError, match=rf"training state in .*{NAME} is damaged \(.*pass --overwrite to begin again"
    ):
        load_state(str(folder))


@pytest.mark.parametrize("name", ["../" + NAME, "/tmp/" + NAME, "", "epoch-00003-" + "a" * 12, 3])
def test_a_record_that_names_a_state_elsewhere_is_refused(folder, name):
    """Ray Train would load what is there; nor is its history shown."""
    (folder.parent / "checkpoint_manager_snapshot.json").write_text(
        json.dumps({"checkpoint_results": [], "latest_checkpoint_result": {"checkpoint_dir_name": name}})
    )
    with pytest.raises(EasyCoreError, match=r"names the training state .*, which is not there; pass --overwrite"):
        check_committed_states(str(folder.parent))
    assert read_committed_history(str(folder.parent)) == []


@pytest.mark.parametrize("content", ["", '{"checkpoint_results": [', "[]", '{"checkpoint_results": 3}'])
def test_a_record_that_is_damaged_is_refused(folder, content):
    """In one line, before Ray Train reads it."""
    check_committed_states(str(folder.parent))
    check_committed_states(str(folder.parent / "none"))
    (folder.parent / "checkpoint_manager_snapshot.json").write_text(content)
    with pytest.raises(EasyCoreError, match=r"snapshot\.json is damaged; pass --overwrite to begin again"):
        check_committed_states(str(folder.parent))


@pytest.mark.parametrize("damage", [lambda content: content[:-30], lambda _: b"", lambda _: b"PK"])
def test_a_state_in_one_file_that_is_damaged_is_refused(folder, damage):
    """That of a run in one process."""
    content = pack_state(load_state(str(folder)))
    assert unpack_state(content, "x.zip").epoch == 2
    with pytest.raises(EasyCoreError, match=r"training state in x\.zip is damaged \(.*pass --overwrite to begin again"):
        unpack_state(damage(content), "x.zip")
