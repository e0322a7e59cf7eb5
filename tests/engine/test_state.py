"""Training states: what was written is read, anything else is one error that names the folder."""

import json
import shutil

import pytest
import torch

from easycore_ray.engine.run_history import check_committed_states, read_committed_history
from easycore_ray.engine.state import State, load_state, pack_state, save_state, unpack_state
from easycore_ray.scoring.score_table import ScorePart, read_part_lists, write_part_list
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


def test_a_state_grows_by_an_entry_for_each_epoch_whatever_the_number_of_parts(tmp_path):
    """Parts of whole epochs are in lists beside the states: of a thousand workers as of one."""
    sizes = {}
    for workers in (1, 1000):
        carried = {"part_lists": [], "parts": []}
        for epoch in (1, 2, 3):
            parts = [
                ScorePart(path=f"epoch={epoch:05d}/part-00000-{'a' * 12}-r{rank:05d}.parquet", epoch=epoch, rank=rank,
                          rows=1281, num_bytes=23_500, first_id=rank, last_id=1_281_000 + rank,
                          id_checksum=2**63 + rank, sha256="0" * 64)
                for rank in range(workers)
            ]  # fmt: skip
            entry = write_part_list(str(tmp_path), parts, epoch=epoch, attempt="a" * 12)
            carried["part_lists"].append(entry)
            assert read_part_lists(str(tmp_path), [entry]) == parts
        sizes[workers] = len(pack_state(State(3, 30, {}, {}, [{"epoch": 3}], carried)))
    assert sizes[1000] - sizes[1] < 50


@pytest.mark.parametrize("damage", ["gone", "changed", "elsewhere"])
def test_a_list_of_parts_that_is_not_what_was_written_is_refused(tmp_path, damage):
    """By its name; a finished table is made of these lists."""
    entry = write_part_list(str(tmp_path), [], epoch=1, attempt="a" * 12)
    path = tmp_path / entry["path"]
    if damage == "gone":
        path.unlink()
    elif damage == "changed":
        path.write_text("[ ]")
    else:
        entry["path"] = "../" + entry["path"]
    with pytest.raises(EasyCoreError, match=r"parts-00001-a+\.json.* (cannot be read|is damaged)"):
        read_part_lists(str(tmp_path), [entry])
