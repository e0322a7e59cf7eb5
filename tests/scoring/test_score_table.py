"""The score table: parts that are whole, described exactly, and counted exactly once."""

import contextlib
import dataclasses
import hashlib
import json
import resource
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from easycore_ray.scoring import score_table
from easycore_ray.scoring.score_reader import open_table, population, read_range, read_samples
from easycore_ray.scoring.score_table import (
    SCORE_SCHEMA,
    ScorePart,
    fingerprint,
    id_checksum,
    write_part,
    write_samples,
)
from easycore_ray.storage import artifact, paths
from easycore_ray.storage.errors import EasyCoreError
from tests.artifacts import draw_rows, edit_manifest, finish_table, samples_of, write_parts

IDS = np.array([9, 2, 70, 4, 0, 31])

LABELS = np.array([1, 0, 1, 2, 0, 0])


def columns(ids=IDS, labels=LABELS, epoch=3, **changes):
    """Score rows of one epoch, in the order of the ids."""
    return draw_rows(ids, labels, [epoch])[0] | changes


def write(table, rows=None, **changes):
    """A part of epoch 3 by rank 1."""
    return write_part(str(table), rows or columns(), **({"epoch": 3, "rank": 1, "attempt": "abc-0"} | changes))


def everything(table, part, **options):
    """All rows of a part, as one table."""
    found = read_range(str(table), part, -(2**62), 2**62, SCORE_SCHEMA.names, **options)
    return pa.Table.from_batches((rows.to_batch() for rows in found), schema=SCORE_SCHEMA)


# ---------------------------------------------------------------- writing


def test_a_part_holds_its_rows_sorted_by_id(tmp_path):
    """Every column moves with its id; the epoch is the part's."""
    rows = columns()
    part = write(tmp_path, rows)
    order = np.argsort(IDS)
    read = pq.read_table(tmp_path / part.path, partitioning=None)

    assert read.schema == SCORE_SCHEMA
    for name in set(SCORE_SCHEMA.names) - {"epoch"}:
        np.testing.assert_array_equal(read[name].to_numpy(), rows[name][order])
    assert read["epoch"].to_pylist() == [3] * 6


def test_a_part_is_described_exactly(tmp_path):
    """The descriptor is what a checkpoint keeps: it must fit the file."""
    part = write(tmp_path)
    content = (tmp_path / "epoch=00003" / "part-00000-abc-0-r00001.parquet").read_bytes()

    assert part == ScorePart(
        path="epoch=00003/part-00000-abc-0-r00001.parquet",
        epoch=3,
        rank=1,
        rows=6,
        num_bytes=len(content),
        first_id=0,
        last_id=70,
        id_checksum=id_checksum(IDS),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    assert ScorePart.from_dict(json.loads(json.dumps(part.to_dict()))) == part


def test_encodings_are_those_of_the_contract(tmp_path):
    """Deltas for ids, epoch and label, plain scores, nothing compressed, statistics of the id only."""
    part = write(tmp_path)
    group = pq.ParquetFile(tmp_path / part.path).metadata.row_group(0)
    found = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}

    deltas = {"sample_id", "epoch", "label"}
    assert {name for name, column in found.items() if "DELTA_BINARY_PACKED" in column.encodings} == deltas
    assert {name for name, column in found.items() if "PLAIN" in column.encodings} == set(SCORE_SCHEMA.names) - deltas
    assert {column.compression for column in found.values()} == {"UNCOMPRESSED"}
    assert {name for name, column in found.items() if column.is_stats_set} == {"sample_id"}


def test_a_row_takes_at_most_19_bytes(tmp_path):
    """What --dry-run estimates with: 16 of float32, a bit, and small deltas."""
    ids = np.random.default_rng(0).permutation(200_000)[:100_000]
    part = write(tmp_path, columns(ids, ids % 10))

    assert part.num_bytes <= 19 * 100_000


def test_the_order_rows_come_in_does_not_change_a_byte(tmp_path):
    """Workers see their rows in any order; the part is the same."""
    rows = columns()
    order = np.random.default_rng(0).permutation(6)
    shuffled = {name: values[order] for name, values in rows.items()}

    assert write(tmp_path, rows, attempt="a").sha256 == write(tmp_path, shuffled, attempt="b").sha256


def test_a_worker_without_rows_writes_an_empty_part(tmp_path):
    """It is described, read and counted like any other."""
    part = write(tmp_path, columns(IDS[:0], LABELS[:0]))

    assert (part.rows, part.first_id, part.last_id, part.id_checksum) == (0, -1, -1, 0)
    assert everything(tmp_path, part).num_rows == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["grad_norm", "loss", "margin", "el2n"])
def test_scores_that_are_not_finite_are_refused(tmp_path, name, bad):
    """A diverged run leaves no part; the message names epoch, column and first ids, lowest first."""
    rows = columns()
    rows[name][[0, 3]] = bad

    with pytest.raises(EasyCoreError, match=rf"epoch 3: {name} is not finite for 2 samples \(first sample_ids: 4, 9\)"):
        write(tmp_path, rows)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["disk", "fsync", "rename"])
def test_a_part_is_whole_or_absent(tmp_path, monkeypatch, step):
    """When the disk is full, the flush fails or the rename does, no file is left, hidden ones included."""

    def fail(*_):
        raise OSError("File too large")

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ids = np.arange(20_000)
    if step == "disk":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    elif step == "fsync":
        monkeypatch.setattr("os.fsync", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    try:
        with pytest.raises(OSError, match="File too large"):
            write(tmp_path, columns(ids, ids % 3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# ---------------------------------------------------------------- coverage


# ---------------------------------------------------------------- identity of the content


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    """Names, attempts and the order of the list do not matter; one score of one row does."""
    rows = [columns(epoch=epoch) for epoch in (1, 2)]
    ranks = np.array([0, 1, 0, 1, 0, 1])
    parts = write_parts(tmp_path, rows, ranks)
    renamed = [dataclasses.replace(part, path=f"epoch=x/{9 - i}") for i, part in enumerate(parts)]
    rows[1]["loss"][4] += 1

    assert fingerprint(reversed(renamed)) == fingerprint(parts)
    assert fingerprint(write_parts(tmp_path / "other", rows, ranks)) != fingerprint(parts)
    assert fingerprint(parts[:-1]) != fingerprint(parts)


# ---------------------------------------------------------------- reading


@given(
    st.sets(st.integers(0, 60), min_size=1), st.integers(-5, 65), st.integers(-5, 65), st.integers(1, 9), st.booleans()
)
@settings(max_examples=40, deadline=None)
def test_a_range_is_what_a_filter_gives(ids, low, high, group_rows, verify):
    """However the range lies to ids and row groups, and in id order."""
    ids = np.random.default_rng(0).permutation(sorted(ids))
    rows = columns(ids, ids % 3)
    with tempfile.TemporaryDirectory() as table, pytest.MonkeyPatch.context() as patch:
        patch.setattr(score_table, "_ROW_GROUP_ROWS", group_rows)
        part = write(table, rows)
        found = read_range(table, part, low, high, ["sample_id", "loss"], verify=verify)
        batches = [rows.to_batch() for rows in found]

    wanted = [pair for pair in zip(ids.tolist(), rows["loss"].tolist(), strict=True) if low <= pair[0] < high]
    found = [(row["sample_id"], row["loss"]) for batch in batches for row in batch.to_pylist()]
    assert found == sorted(wanted)
    assert all(batch.num_rows for batch in batches)


def test_samples_are_kept_sorted_as_given(tmp_path):
    """The scored population, in its own types; further columns are left out."""
    samples = samples_of(IDS, LABELS)
    write_samples(str(tmp_path), samples.append_column("key", pa.array(["x"] * 6)))
    read = read_samples(str(tmp_path))

    assert read.schema == score_table.SAMPLES_SCHEMA
    assert read["sample_id"].to_pylist() == sorted(IDS.tolist())
    assert read["label"].to_pylist() == LABELS[np.argsort(IDS)].tolist()
    np.testing.assert_array_equal(read["input_norm"].to_numpy(), np.sqrt(np.sort(IDS)).astype(np.float32))


def test_a_range_of_samples_is_what_a_filter_gives(tmp_path, monkeypatch):
    """However it lies to the row groups of their file; its footer tells first, last and number."""
    monkeypatch.setattr(score_table, "_ROW_GROUP_ROWS", 4)
    ids = np.arange(23) * 3 + 7
    samples = samples_of(ids, ids % 5)
    write_samples(str(tmp_path), samples)
    whole = read_samples(str(tmp_path))

    assert population(str(tmp_path)) == (7, 73, 23)
    for low in range(0, 80, 3):
        for high in (low, low + 1, low + 20, 90):
            wanted = whole.filter((pc.field("sample_id") >= low) & (pc.field("sample_id") < high))
            assert read_samples(str(tmp_path), low, high).equals(wanted)


class CountingFiles(LocalFileSystem):
    """Local files that count the bytes read from them."""

    read = 0

    def open(self, path, mode="rb", **options):
        file = super().open(path, mode, **options)
        if mode == "rb":
            read = file.f.read

            def counted(*size):
                content = read(*size)
                CountingFiles.read += len(content)
                return content

            file.read = counted
        return file


class TestObjectStore:
    """``s3://`` served from a folder by code that counts what is read."""

    GROUP = 4096
    ROWS = 100_000

    @pytest.fixture
    def part(self, tmp_path, monkeypatch):
        """A part of 25 row groups in the store."""
        store = pafs.PyFileSystem(pafs.FSSpecHandler(CountingFiles(auto_mkdir=True)))
        filesystem = pafs.SubTreeFileSystem(str(tmp_path), store)
        monkeypatch.setattr(score_table, "_ROW_GROUP_ROWS", self.GROUP)
        monkeypatch.setattr(paths, "locate", lambda path: (filesystem, path.removeprefix("s3://")))
        ids = np.arange(self.ROWS)
        part = write("s3://bucket/table", columns(ids, ids % 3))
        CountingFiles.read = 0
        return part

    def rows(self, part, low, high, **options):
        wanted = ["sample_id", "grad_norm", "loss", "margin", "el2n", "correct"]
        return sum(len(rows) for rows in read_range("s3://bucket/table", part, low, high, wanted, **options))

    def test_a_task_reads_its_own_stretch_only(self, part):
        """A tenth of the ids: their row groups and the footer, not the whole object."""
        assert self.rows(part, 40_000, 50_000) == 10_000
        assert CountingFiles.read < part.num_bytes * (10_000 + 2 * self.GROUP) / self.ROWS + 100_000
        assert CountingFiles.read > part.num_bytes / 10

    def test_verifying_reads_all_of_it_once_more(self, part):
        """And only the task that verifies does."""
        assert self.rows(part, 40_000, 50_000, verify=True) == 10_000
        assert part.num_bytes < CountingFiles.read < 1.5 * part.num_bytes

    def test_a_part_that_is_wanted_whole_is_fetched_once(self, part):
        """Its checksum and its rows come from the same bytes."""
        assert self.rows(part, 0, self.ROWS, verify=True) == self.ROWS
        assert CountingFiles.read == part.num_bytes

    @pytest.mark.parametrize("high", [10, ROWS])
    def test_damage_is_found_there_too(self, part, tmp_path, high):
        """A flipped bit, whether the part is wanted whole or not; then no part at all."""
        file = tmp_path / "bucket" / "table" / part.path
        content = bytearray(file.read_bytes())
        content[part.num_bytes // 2] ^= 1
        file.write_bytes(content)
        with pytest.raises(EasyCoreError, match="does not have the checksum in the manifest"):
            self.rows(part, 0, high, verify=True)
        file.unlink()
        with pytest.raises(EasyCoreError, match="is listed in the manifest but cannot be read"):
            self.rows(part, 0, high)


class TestDamage:
    """A part that is not the one that was committed is refused by name."""

    @pytest.fixture
    def part(self, tmp_path):
        """A part, and with it its table."""
        return write(tmp_path)

    def refuse(self, table, part, message, **options):
        with pytest.raises(EasyCoreError, match=f"part-00000-abc-0-r00001.parquet .*{message}"):
            everything(table, part, **options)

    @pytest.mark.parametrize("keep", [0, 1, 10, 500, -1])
    @pytest.mark.parametrize("verify", [False, True])
    def test_a_torn_part(self, tmp_path, part, keep, verify):
        """Cut off anywhere, with or without looking at the checksum."""
        file = tmp_path / part.path
        file.write_bytes(file.read_bytes()[:keep])

        self.refuse(tmp_path, part, "checksum" if verify else "is not a whole Parquet file", verify=verify)

    def test_a_missing_part(self, tmp_path, part):
        """Listed, but gone."""
        (tmp_path / part.path).unlink()

        self.refuse(tmp_path, part, "is listed in the manifest but cannot be read")

    def test_a_changed_score(self, tmp_path, part):
        """One bit of one float: a valid file that only the checksum tells apart."""
        file = tmp_path / part.path
        content = bytearray(file.read_bytes())
        at = content.index(columns()["loss"][np.argsort(IDS)].tobytes())
        content[at] ^= 1
        file.write_bytes(content)

        assert everything(tmp_path, part).num_rows == 6
        self.refuse(tmp_path, part, "does not have the checksum in the manifest", verify=True)

    def test_another_number_of_rows(self, tmp_path, part):
        """A whole part of another attempt under this name."""
        rows = {name: values[:4] for name, values in columns().items()}
        write(tmp_path, rows)

        self.refuse(tmp_path, part, "has 4 rows, the manifest lists 6")

    def test_other_ids_than_listed(self, tmp_path, part):
        """As many rows, but of other samples: rows beyond the listed ids would be left out of every range."""
        write(tmp_path, columns(ids=IDS + 1))

        self.refuse(tmp_path, part, "has ids 1 to 71, the manifest lists 0 to 70; it is damaged")

    @pytest.mark.parametrize("at", range(4, 300, 7))
    def test_a_flipped_byte_anywhere(self, tmp_path, part, at):
        """Never a traceback, with or without the checksum: a refusal by name, or (without) other values."""
        file = tmp_path / part.path
        content = bytearray(file.read_bytes())
        content[at] ^= 0xFF
        file.write_bytes(content)

        self.refuse(tmp_path, part, "does not have the checksum in the manifest", verify=True)
        with contextlib.suppress(EasyCoreError):
            everything(tmp_path, part)

    def test_another_table(self, tmp_path, part):
        """A Parquet file that is no part."""
        pq.write_table(pa.table({"sample_id": [1]}), tmp_path / part.path)

        self.refuse(tmp_path, part, "has another schema than the parts of its table")


# ---------------------------------------------------------------- opening


@pytest.fixture
def run(tmp_path):
    """A scoring run with a finished table: epochs 0, 2, 10, two ranks."""
    parts = write_parts(tmp_path / "table", draw_rows(IDS, LABELS, [0, 2, 10]), np.array([0, 1, 0, 1, 0, 1]))
    finish_table(tmp_path, parts[::-1], samples_of(IDS, LABELS))
    return tmp_path


def test_open_table_lists_epochs_and_parts(run):
    """Ascending, and by first id, whatever the order of the manifest."""
    table = open_table(str(run / "table"))

    assert table.path == str(run / "table")
    assert table.epochs() == [0, 2, 10]
    assert [(part.epoch, part.rank) for part in table.of_epoch(2)] == [(2, 0), (2, 1)]
    assert sum(part.rows for part in table.parts) == 18


def test_parts_that_are_not_listed_are_not_read(run):
    """What a lost worker left behind is no part of the table."""
    write_part(str(run / "table"), columns(), epoch=2, rank=0, attempt="lost")

    assert len(open_table(str(run / "table")).parts) == 6


def test_a_table_that_cannot_be_used_is_refused(run, tmp_path):
    """Unfinished, of another kind, of a newer release: each by name."""
    edit_manifest(run / "table", format_version=99)
    with pytest.raises(EasyCoreError, match="format_version 99, this release reads up to 2"):
        open_table(str(run / "table"))
    edit_manifest(run / "table", format_version=2, kind="dataset")
    with pytest.raises(EasyCoreError, match="holds a dataset, not a score table"):
        open_table(str(run / "table"))
    (run / "table" / "manifest.json").unlink()
    entry = {"kind": "score_table", "identity": "k", "nonce": "n", "format_version": artifact.FORMAT_VERSION}
    paths.write_json(str(run / "table" / "run.json"), entry)
    with pytest.raises(EasyCoreError, match="is still being written"):
        open_table(str(run / "table"))
    with pytest.raises(EasyCoreError, match="does not exist; pass the folder of a finished score table"):
        open_table(str(tmp_path / "nothing"))
