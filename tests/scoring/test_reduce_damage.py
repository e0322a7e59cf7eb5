"""Reduction refuses damaged, incomplete and foreign score tables in one line, and finishes nothing."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from easycore_ray.scoring import score_table
from easycore_ray.scoring.reduce import reduce
from easycore_ray.scoring.reduce_task import make_plan
from easycore_ray.scoring.score_reader import open_table
from easycore_ray.storage import paths
from easycore_ray.storage.errors import EasyCoreError
from tests.artifacts import draw_rows, edit_manifest, finish_table, samples_of, write_parts
from tests.hardness import EPOCHS, in_ranges, part_file, population, reduced, refuse


def listed(run):
    """The parts in the table's manifest."""
    return json.loads((run / "table" / "manifest.json").read_text())["parts"]


def relist(run, columns, epoch=3, rank=1):
    """Replace a part by these rows, and its descriptor with it: damage that no checksum shows."""
    part = score_table.write_part(str(run / "table"), columns, epoch=epoch, rank=rank, attempt="a")
    edit_manifest(
        run / "table", parts=[part.to_dict() if entry["path"] == part.path else entry for entry in listed(run)]
    )


def columns_of(run, epoch=3, rank=1):
    """The rows of a part."""
    table = pq.read_table(part_file(run, epoch, rank), partitioning=None)
    return {name: table[name].to_numpy().copy() for name in table.column_names}


def change_a_score(run):
    """Flip one bit of one float in a part; it stays a valid file."""
    content = bytearray(part_file(run).read_bytes())
    content[content.index(columns_of(run)["margin"].tobytes())] ^= 1
    part_file(run).write_bytes(content)
    return "epoch=00003/part-00000-a-r00001.parquet does not have the checksum"


def tear_part(run):
    """Its end is missing."""
    part_file(run).write_bytes(part_file(run).read_bytes()[:-20])
    return "epoch=00003/part-00000-a-r00001.parquet does not have the checksum"


def remove_part(run):
    """Listed, but not there."""
    part_file(run).unlink()
    return "epoch=00003/part-00000-a-r00001.parquet is listed in the manifest but cannot be read"


def repeat_row_of_another_part(run):
    """The same sample by two ranks."""
    columns = columns_of(run)
    columns["sample_id"][2] = columns_of(run, rank=0)["sample_id"][4]
    relist(run, columns)
    return rf"epoch 3: sample_id {columns['sample_id'][2]} has more than one row"


def repeat_row(run):
    """The same sample twice by one rank."""
    columns = columns_of(run)
    columns["sample_id"][2] = columns["sample_id"][3]
    relist(run, columns)
    return "epoch=00003/part-00000-a-r00001.parquet is not sorted by sample_id, or holds one twice"


def remove_row(run):
    """One sample lacks one epoch."""
    gone = columns_of(run)["sample_id"][5]
    relist(run, {name: np.delete(values, 5) for name, values in columns_of(run).items()})
    return rf"epoch 3: 1 samples have no row \(first sample_id: {gone}\)"


def forget_part(run):
    """The part of a lost worker, which is not listed."""
    kept = [part for part in listed(run) if part["path"] != "epoch=00003/part-00000-a-r00001.parquet"]
    edit_manifest(run / "table", parts=kept)
    gone = columns_of(run)["sample_id"]
    return rf"epoch 3: {len(gone)} samples have no row \(first sample_id: {gone[0]}\)"


def remove_sample(run):
    """No row in any epoch; no part reaches its id."""
    for epoch in EPOCHS:
        for rank in range(3):
            columns = columns_of(run, epoch, rank)
            keep = columns["sample_id"] != 119
            relist(run, {name: values[keep] for name, values in columns.items()}, epoch, rank)
    return r"epoch 0: 1 samples have no row \(first sample_id: 119\)"


def replace_schema(run):
    """Valid Parquet and listed with its checksum, but no part."""
    pq.write_table(pa.table({"sample_id": columns_of(run)["sample_id"]}), part_file(run))
    parts = listed(run)
    for part in parts:
        if part["path"] == "epoch=00003/part-00000-a-r00001.parquet":
            part["sha256"] = hashlib.sha256(part_file(run).read_bytes()).hexdigest()
    edit_manifest(run / "table", parts=parts)
    return r"part-00000-a-r00001.parquet has another schema than the parts of its table: \['sample_id'\]"


DAMAGE = (
    tear_part,
    remove_part,
    change_a_score,
    repeat_row_of_another_part,
    repeat_row,
    remove_row,
    forget_part,
    remove_sample,
    replace_schema,
)


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_table_is_refused(run, damage):
    """Each kind of damage by its own message, with the epoch and the samples."""
    refuse(run, damage(run))


@pytest.mark.parametrize("num_ranges", [1, 3, 16])
def test_every_part_is_verified_by_one_range(run, num_ranges):
    """However ids are cut, one range reads all of a damaged part and refuses it, and only one does."""
    change_a_score(run)
    refused = []
    for number in range(num_ranges):
        try:
            in_ranges(run, num_ranges, [number])
        except EasyCoreError as error:
            refused.append(str(error))

    assert len(refused) == 1
    assert "does not have the checksum" in refused[0]


@pytest.mark.parametrize("num_ranges", [1, 2, 5])
def test_checksums_are_shared_out_evenly(run, num_ranges):
    """Each part to one range that it has rows in, and no range has much more to do than another."""
    table = open_table(f"{run}/table")
    plan = make_plan(table, tuple(table.epochs()), f"{run}/hardness", num_ranges)
    for (low, high), parts in zip(plan.ranges, plan.verified, strict=True):
        assert all(part.first_id < high and part.last_id >= low for part in parts)
    loads = [sum(part.num_bytes for part in parts) for parts in plan.verified]

    assert sorted(part.path for parts in plan.verified for part in parts) == sorted(part.path for part in table.parts)
    assert max(loads) - min(loads) <= max(part.num_bytes for part in table.parts)


def test_a_part_without_rows_is_verified_too(run):
    """A worker that had none wrote one; it is listed, so it must be there."""
    empty = {name: values[:0] for name, values in columns_of(run).items()}
    part = score_table.write_part(f"{run}/table", empty, epoch=3, rank=9, attempt="a")
    edit_manifest(run / "table", parts=[part.to_dict(), *listed(run)])
    assert reduced(run).num_rows == 37
    (run / "table" / part.path).unlink()
    (run / "hardness" / "manifest.json").unlink()
    refuse(run, "epoch=00003/part-00000-a-r00009.parquet is listed in the manifest but cannot be read")


def test_a_list_of_samples_that_is_not_the_runs_is_refused(run):
    """Shorter than the manifest says, or of another schema, or gone."""
    ids, labels = population()
    score_table.write_samples(f"{run}/table", samples_of(ids[:-1], labels[:-1]))
    refuse(run, "36 of 37 samples are known; the table is damaged")
    pq.write_table(pa.table({"sample_id": ids}), run / "table" / "samples.parquet")
    refuse(run, "samples.parquet has another schema than the samples of a table")
    (run / "table" / "samples.parquet").unlink()
    refuse(run, "samples.parquet belongs to the table but cannot be read")


@pytest.mark.parametrize("foreign", [-1, 12, 500])
def test_a_foreign_row_is_refused(run, foreign):
    """Padding, an id in a gap, an id beyond the population."""
    columns = columns_of(run)
    columns = {name: np.append(values, values[:1]) for name, values in columns.items()}
    columns["sample_id"][-1] = foreign
    relist(run, columns)
    refuse(run, rf"(holds the foreign sample_id {foreign}, |epoch 3: sample_id {foreign} is foreign: )")


@pytest.mark.parametrize("epoch", [0, 3])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["grad_norm", "loss", "margin", "el2n"])
def test_a_score_that_is_not_finite_is_refused(run, monkeypatch, name, bad, epoch):
    """The writer refuses it; a part written by something else is refused here, with its epoch and ids."""
    columns = columns_of(run, epoch)
    columns[name][[0, 4]] = bad
    first, second = columns["sample_id"][[0, 4]]
    monkeypatch.setattr(score_table, "_refuse_non_finite", lambda *_: None)
    relist(run, columns, epoch)
    refuse(run, rf"epoch {epoch}: {name} is not finite for 2 samples \(first sample_ids: {first}, {second}\)")


def test_a_table_with_nothing_but_the_control_is_refused(tmp_path):
    """There is no average of no epochs."""
    ids, labels = population()
    parts = write_parts(tmp_path / "table", draw_rows(ids, labels, [0]), np.zeros(37))
    finish_table(tmp_path, parts, samples_of(ids, labels))
    refuse(tmp_path, "holds no scored epoch after the first weights")


def test_tables_that_cannot_be_used_are_refused(run):
    """Newer, of another kind, unfinished, missing: before anything is written."""
    edit_manifest(run / "table", format_version=7)
    refuse(run, "format_version 7, this release reads up to 2")
    edit_manifest(run / "table", format_version=2, kind="dataset")
    refuse(run, "holds a dataset, not a score table")
    (run / "table" / "manifest.json").unlink()
    paths.write_json(f"{run}/table/run.json", {})
    refuse(run, "is still being written")
    refuse(run / "nowhere", "does not exist")
    assert not (run / "hardness").exists()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_damage_found_by_a_ray_task_is_the_same_single_line(run):
    """Without the task's traceback around it."""
    change_a_score(run)
    refuse(run, "^[^ ]*part-00000-a-r00001.parquet does not have the checksum in the manifest", bucket_rows=20)


def test_a_damaged_page_is_found_without_reading_whole_parts(run):
    """With --only, a flipped bit in a score that is read is refused; one in a column that is not read is not seen."""
    table = open_table(f"{run}/table")
    part = Path(table.path, next(part.path for part in table.parts if part.epoch > 0 and part.rows))
    content = part.read_bytes()
    for column, refused in (("grad_norm", True), ("loss", False)):
        index = score_table.SCORE_SCHEMA.get_field_index(column)
        chunk = pq.ParquetFile(part).metadata.row_group(0).column(index)
        # The last byte of the chunk is one of a value: its lowest mantissa byte would be no other number to a reader.
        at = chunk.data_page_offset + chunk.total_compressed_size - 4
        part.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        if refused:
            with pytest.raises(EasyCoreError, match="is damaged"):
                reduce(scores=str(run), out=f"{run}/a", only=("aign",))
        else:
            reduce(scores=str(run), out=f"{run}/b", only=("aign",))
        with pytest.raises(EasyCoreError, match="does not have the checksum in the manifest"):
            reduce(scores=str(run), out=f"{run}/{column}")
        part.write_bytes(content)
