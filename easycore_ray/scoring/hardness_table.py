"""The hardness table: one row per sample, in Parquet files that each hold a range of ids.

What ``reduce`` writes and everything after it reads. Files are in id order and rows sorted by id, so a
range of samples is a range of files, and a job at scale can work file by file. pyarrow only, no Ray.
"""

import hashlib
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from easycore_ray.core.selection import ADVERSARIAL_SCORES
from easycore_ray.core.trajectory_scores import is_trajectory_score
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Artifact, content_folder, open_artifact
from easycore_ray.storage.errors import EasyCoreError

HARDNESS_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.int64(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("num_scores", pa.int32(), nullable=False),
        pa.field("aign", pa.float64()),
        pa.field("el2n", pa.float64()),
        pa.field("loss", pa.float64()),
        pa.field("aum", pa.float64()),
        pa.field("forgetting_events", pa.int32()),
        pa.field("first_learned_epoch", pa.int32()),
        pa.field("input_norm", pa.float32(), nullable=False),
        pa.field("aign_epoch0", pa.float32(), nullable=True),
    ]
)
"""Of a scoring run in standard training."""

ADVERSARIAL_HARDNESS_SCHEMA = pa.schema(
    [*HARDNESS_SCHEMA, pa.field("adv_loss", pa.float64()), pa.field("problematic", pa.int32())]
)
"""Of one in adversarial training."""

# As in the score table: ids and counts as deltas, floats plain, so that one column is read at memory speed.
_DELTA = ("sample_id", "label", "num_scores", "forgetting_events", "first_learned_epoch", "problematic")
_ENCODINGS = {
    spec.name: "DELTA_BINARY_PACKED" if spec.name in _DELTA else "PLAIN" for spec in ADVERSARIAL_HARDNESS_SCHEMA
}
# A group is a page for each column, which a reader of one column takes as it lies.
_ROW_GROUP_ROWS = 1 << 18


COLUMNS_OF_SCORE = {
    **{name: (name,) for name in ("aign", "el2n", "loss", "aum", "input_norm", "aign_epoch0")},
    "forgetting": ("forgetting_events", "first_learned_epoch", "num_scores"),
    "adv_loss": ("adv_loss",),
    "problematic": ("problematic",),
}
"""The columns each score is made of."""


def schema_of(only: Collection[str] | None, *, attacked: bool) -> pa.Schema:
    """The schema of a table; of one that was reduced to some scores their columns, ids and labels.

    Args:
        only: those scores; None for all.
        attacked: whether samples were scored under attack.
    """
    schema = ADVERSARIAL_HARDNESS_SCHEMA if attacked else HARDNESS_SCHEMA
    if only is None:
        return schema
    names = {"sample_id", "label", *(name for score in only for name in columns_of(score))}
    trajectories = [pa.field(score, pa.float64()) for score in only if is_trajectory_score(score)]
    return pa.schema([*(spec for spec in schema if spec.name in names), *trajectories])


def columns_of(score: str) -> tuple[str, ...]:
    """The columns a score is made of; a trajectory score has one, named as it is written."""
    return COLUMNS_OF_SCORE.get(score, (score,))


def write_hardness(folder: str, number: int, rows: pa.Table, *, count: int = 1) -> dict[str, Any]:
    """Write one file of the table; the entry of the manifest that lists it.

    Args:
        folder: of the hardness table.
        number: place of the file in id order.
        rows: of ``ADVERSARIAL_HARDNESS_SCHEMA`` or some columns of it, sorted by ``sample_id``.
        count: files of the table. It is part of the name: a late task of a killed job that cut ids otherwise
            cannot replace a file of this one.
    """
    # Allocated at once, with room for the worst of delta encoding: a buffer that grows copies itself as it does.
    buffer = pa.allocate_buffer(int(1.1 * rows.nbytes) + (1 << 20))
    sink = pa.FixedSizeBufferWriter(buffer)
    pq.write_table(
        rows,
        sink,
        compression="NONE",
        use_dictionary=False,
        column_encoding={name: _ENCODINGS.get(name, "PLAIN") for name in rows.column_names},
        write_statistics=["sample_id"],
        row_group_size=_ROW_GROUP_ROWS,
        # One page for each column of a row group: few headers to parse.
        data_page_size=1 << 30,
        max_rows_per_page=1 << 30,
    )
    path = f"hardness-{number:05d}-of-{count:05d}.parquet"
    content = buffer.slice(0, sink.tell())
    # Hashed while the disk works.
    with ThreadPoolExecutor(1) as aside:
        digest = aside.submit(hashlib.sha256, content)
        paths.write_bytes(paths.join(folder, path), content)
    ids = rows["sample_id"]
    return {
        "path": path,
        "rows": rows.num_rows,
        "first_id": ids[0].as_py() if rows.num_rows else -1,
        "last_id": ids[-1].as_py() if rows.num_rows else -1,
        "bytes": content.size,
        "sha256": digest.result().hexdigest(),
    }


class HardnessTable(Artifact):
    """A finished hardness table: one row per sample."""

    def table(self, columns: list[str] | None = None) -> pa.Table:
        """Its rows, sorted by ``sample_id`` (int64): scores as float64, counts as int32; null where one was left out.

        Args:
            columns: names of those to read; all if left out.
        """
        return read_hardness(self, columns)


def open_hardness(path: str) -> HardnessTable:
    """Open the hardness table of a scoring run (its folder, or its ``hardness`` folder).

    Raises:
        EasyCoreError: if it is missing, unfinished, of another kind or of another format.
    """
    path = content_folder(paths.absolute(path))
    inner = paths.join(path, "hardness")
    found = open_artifact(inner if paths.exists(inner) else path, "hardness_table")
    return HardnessTable(found.path, found.manifest)


def read_hardness_file(folder: str, entry: dict[str, Any], columns: list[str] | None = None) -> pa.Table:
    """One file of the table, as the manifest lists it; local files are memory-mapped.

    Columns of scores that were left out of the table (``reduce --only``) are null, and so are those of scores under
    attack in a table that has none, if they are asked for by name.

    Raises:
        EasyCoreError: if it is missing, damaged, or has another number of rows than the manifest says.
    """
    where = paths.join(folder, entry["path"])
    try:
        source = pa.BufferReader(paths.read_bytes(where)) if paths.is_remote(where) else pa.memory_map(where)
        with pq.ParquetFile(source) as file:
            there = set(file.schema_arrow.names)
            extra = [name for name in file.schema_arrow.names if name not in HARDNESS_SCHEMA.names]
            columns = columns or [*HARDNESS_SCHEMA.names, *extra]
            rows = file.read([name for name in columns if name in there])
    except (OSError, pa.ArrowInvalid) as error:
        if isinstance(error, EasyCoreError):
            raise
        raise EasyCoreError(f"{where} is listed in the manifest but cannot be read: {error}") from error
    if rows.num_rows != entry["rows"]:
        raise EasyCoreError(f"{where} has {rows.num_rows:,} rows, the manifest lists {entry['rows']:,}; it is damaged")
    return _filled(rows, columns)


def _filled(rows: pa.Table, columns: list[str]) -> pa.Table:
    """The rows with all these columns, null where there are none."""
    missing = [name for name in columns if name not in rows.column_names]
    for name in missing:
        known = name in ADVERSARIAL_HARDNESS_SCHEMA.names
        kind = ADVERSARIAL_HARDNESS_SCHEMA.field(name).type if known else pa.float64()
        rows = rows.append_column(pa.field(name, kind), pa.nulls(rows.num_rows, kind))
    return rows.select(columns) if missing else rows


def read_hardness(hardness: Artifact, columns: list[str] | None = None) -> pa.Table:
    """Rows of a hardness table, sorted by ``sample_id`` (int64); local files are memory-mapped.

    Args:
        hardness: the table.
        columns: names in ``ADVERSARIAL_HARDNESS_SCHEMA``; if left out all of ``HARDNESS_SCHEMA``, and what else there
            is. Scores are float64, counts int32.

    Raises:
        EasyCoreError: see ``read_hardness_file``.
    """
    return pa.concat_tables(read_hardness_file(hardness.path, entry, columns) for entry in hardness.manifest["files"])


def not_recorded(score: str) -> str:
    """What is said of a score that a hardness table does not hold, in a sentence."""
    if is_trajectory_score(score):
        return (
            f"the hardness table was reduced without {score}, which is made when asked for: easycore reduce --only "
            f"{score} --scores RUN --out FOLDER"
        )
    which = ", which needs scoring in adversarial training (score --training trades --score-pass eval)"
    return (
        f"the scoring run did not record {score}{which if score in ADVERSARIAL_SCORES else ''}, or it was reduced "
        "without it (--only); choose another --score"
    )


def hardness_column(table: pa.Table, score: str) -> pa.ChunkedArray:
    """A score of every row, float64, in the score's own direction (see ``HIGHER_IS_HARDER``).

    ``forgetting`` counts events; samples that were never learned rank above all others, not among the
    easiest as in some reference implementations.

    Raises:
        EasyCoreError: if the table does not hold the score.
    """
    column = table[columns_of(score)[0]]
    if column.null_count:
        raise EasyCoreError(not_recorded(score))
    values = column if column.type == pa.float64() else column.cast(pa.float64())
    if score == "forgetting":
        never = pc.equal(table["first_learned_epoch"], -1)
        values = pc.if_else(never, pc.add(table["num_scores"].cast(pa.float64()), 1.0), values)
    return values
