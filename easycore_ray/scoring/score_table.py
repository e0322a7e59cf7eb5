"""The score table: one row per (sample, scored epoch), in Parquet parts that are counted exactly once.

Workers write parts under names that are never used twice and hand their descriptors to the training
checkpoint, which holds those of the epoch under way and names lists of those before; once the run is complete all are
frozen into ``manifest.json``. Readers see listed
parts only, so a part left behind by a lost worker changes nothing. pyarrow only, no Ray.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from easycore_ray.core.hashing import mix64
from easycore_ray.storage import paths
from easycore_ray.storage.errors import EasyCoreError
from easycore_ray.storage.hashes import content_hash

SCORE_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.int64(), nullable=False),
        pa.field("epoch", pa.int32(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("grad_norm", pa.float32(), nullable=False),
        pa.field("loss", pa.float32(), nullable=False),
        pa.field("margin", pa.float32(), nullable=False),
        pa.field("el2n", pa.float32(), nullable=False),
        pa.field("correct", pa.bool_(), nullable=False),
    ]
)
"""Of a scoring run in standard training."""


ADVERSARIAL_SCORE_SCHEMA = pa.schema(
    [
        *SCORE_SCHEMA,
        pa.field("adv_loss", pa.float32(), nullable=False),
        pa.field("adv_correct", pa.bool_(), nullable=False),
    ]
)
"""Of one in adversarial training. All parts of a table have the same schema."""


KD_PREV = pa.field("kd_prev", pa.float32(), nullable=False)
"""The column that ``--record kd`` adds; 0 at the first scored epoch."""


def score_schema(*, attacked: bool, kd: bool) -> pa.Schema:
    """Of the parts of a table.

    Args:
        attacked: whether samples were scored under attack.
        kd: whether the change of their softmax was recorded.
    """
    schema = ADVERSARIAL_SCORE_SCHEMA if attacked else SCORE_SCHEMA
    return schema.append(KD_PREV) if kd else schema


SAMPLES_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.int64(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("input_norm", pa.float32(), nullable=False),
    ]
)


FLOAT_SCORES = ("grad_norm", "loss", "margin", "el2n", "adv_loss", "kd_prev")
"""Columns of which every value must be finite."""


# Part of the contract with the reducer: sorted ids shrink to a bit or two as deltas, a constant epoch to
# nothing, and plain floats are read at memory speed. Bytes a row, and ns to decode and
# to hash one (tests/benchmarks/bench_reduce.py --encodings, one core): these 18.2, 4.5, 9.2; all in zstd 16.5, 40, 8;
# floats as split byte streams 18.2, 6.4, 11, and in zstd 15.9, 40, 16; plain ids 25.6, 3.9, 21; run-length correct
# 18.2, 4.7, 10. 10 % fewer bytes would make reading three times as slow. Every page carries its own checksum, for
# readers of some columns, to whom the checksum of the whole part would cost more than the reading.
_ENCODINGS = {
    "sample_id": "DELTA_BINARY_PACKED",
    "epoch": "DELTA_BINARY_PACKED",
    "label": "DELTA_BINARY_PACKED",
    "grad_norm": "PLAIN",
    "loss": "PLAIN",
    "margin": "PLAIN",
    "el2n": "PLAIN",
    "correct": "PLAIN",
    "adv_loss": "PLAIN",
    "adv_correct": "PLAIN",
    "kd_prev": "PLAIN",
    "input_norm": "PLAIN",
}


# What a reader of a range of ids loads at least. Smaller groups fit short ranges better, but every task reads
# the footers of all parts, which grow with the number of groups.
_ROW_GROUP_ROWS = 1 << 18


EXTRA_SCORES = "extra"
"""Folder, in that of a scoring run, of what holds the scores of its extra rows, a scoring run itself."""
CARRIED_EXTRA = EXTRA_SCORES + "."
"""What names of what a training state carries of them begin with."""


_SAMPLES = "samples.parquet"


_PART_PATH = re.compile(r"epoch=\d{5,}/part-[0-9a-z-]+-r\d{5,}\.parquet")


_LIST_PATH = re.compile(r"parts-\d{5,}-[0-9a-z-]+\.json")


_HASH_BYTES = 1 << 20


_REMOTE_HASH_BYTES = 8 << 20


@dataclass(frozen=True, kw_only=True)
class ScorePart:
    """Descriptor of one written part, as checkpoints and the manifest store it.

    ``num_bytes`` is the size of the file, ``first_id`` and ``last_id`` (inclusive, int64) its range of ids.
    """

    path: str
    """Relative to the table's folder."""
    epoch: int
    rank: int
    rows: int
    num_bytes: int
    first_id: int
    last_id: int
    id_checksum: int
    sha256: str
    segment: int = 0
    """Of the epoch; 0 in tables of releases without segments."""

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "ScorePart":
        """The part that an entry of a manifest or training state describes.

        Raises:
            EasyCoreError: it is none.
        """
        try:
            part = cls(**content)
        except TypeError as error:
            raise EasyCoreError(f"{content!r} describes no score part; its manifest or state is damaged") from error
        if not isinstance(part.path, str) or not _PART_PATH.fullmatch(part.path):
            raise EasyCoreError(f"{part.path!r} is not the path of a score part; its manifest or state is damaged")
        return part

    def to_dict(self) -> dict[str, Any]:
        """The entry of a manifest."""
        return dataclasses.asdict(self)


def id_checksum(sample_ids: np.ndarray) -> int:
    """Order-free checksum of a set of ids: the sum of their splitmix64 hashes, modulo 2**64.

    Equal for any division of the same ids into parts (their checksums add up), different, but for a
    chance of 2**-64, when an id is missing, doubled or foreign.
    """
    return int(np.sum(mix64(sample_ids), dtype=np.uint64))


def write_part(
    table: str, columns: Mapping[str, np.ndarray], *, epoch: int, rank: int, attempt: str, segment: int = 0
) -> ScorePart:
    """Write one worker's rows of a segment of an epoch; the part exists whole or not at all.

    Args:
        table: folder of the score table.
        columns: arrays (n,) in any order of rows: ``sample_id`` int64, ``label`` integers, ``correct`` and
            ``adv_correct`` bool, the other score fields float32; those of ``score_schema``, with what is among them.
        epoch: completed training epochs (0: initial weights).
        rank: the worker that writes.
        attempt: unique for every start of the worker group, so that no name is used twice.
        segment: of the epoch.

    Raises:
        EasyCoreError: if a score is not finite (the run has diverged), naming the
            epoch and the first ids.
    """
    order = np.argsort(columns["sample_id"], kind="stable")
    ids = np.asarray(columns["sample_id"])[order]
    _refuse_non_finite(columns, epoch)
    schema = score_schema(attacked="adv_loss" in columns, kd="kd_prev" in columns)
    arrays = [
        np.full(len(ids), epoch) if name == "epoch" else np.asarray(columns[name])[order] for name in schema.names
    ]
    rows = pa.table(
        [pa.array(array).cast(spec.type) for array, spec in zip(arrays, schema, strict=True)], schema=schema
    )
    content = _encode(rows)
    return store_part(table, content, ids, epoch=epoch, rank=rank, attempt=attempt, segment=segment)


def store_part(
    table: str, content: pa.Buffer, sample_ids: np.ndarray, *, epoch: int, rank: int, attempt: str, segment: int
) -> ScorePart:
    """Write an encoded part under a name that is never used twice.

    Args:
        table: folder of a table.
        content: the file.
        sample_ids: int64 (n,), ascending, of its rows.
        epoch: see ``write_part``, as for the rest.
        rank: the worker that writes.
        attempt: unique for every start of the worker group.
        segment: of the epoch.
    """
    path = f"epoch={epoch:05d}/part-{segment:05d}-{attempt}-r{rank:05d}.parquet"
    paths.write_bytes(paths.join(table, path), content)
    return ScorePart(
        path=path,
        epoch=epoch,
        rank=rank,
        rows=len(sample_ids),
        num_bytes=content.size,
        first_id=int(sample_ids[0]) if len(sample_ids) else -1,
        last_id=int(sample_ids[-1]) if len(sample_ids) else -1,
        id_checksum=id_checksum(sample_ids),
        sha256=hashlib.sha256(content).hexdigest(),
        segment=segment,
    )


def write_part_list(
    folder: str, parts: Iterable[ScorePart], *, epoch: int, attempt: str, write: bool = True
) -> dict[str, Any]:
    """Write the list of an epoch's parts, so that a training state need not hold those of all epochs before it.

    Args:
        folder: that the file goes to, under a name that is never used twice.
        parts: of the epoch.
        epoch: they belong to.
        attempt: as for ``write_part``.
        write: False on all workers but one, which need the entry only.

    Returns:
        The entry of a training state: ``path`` within the folder, ``sha256``, ``epoch``, ``rows`` and ``parts``, their
        numbers.
    """
    entries = [part.to_dict() for part in parts]
    content = json.dumps(entries).encode()
    name = f"parts-{epoch:05d}-{attempt}.json"
    if write:
        paths.write_bytes(paths.join(folder, name), content)
    return {
        "path": name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "epoch": epoch,
        "rows": sum(entry["rows"] for entry in entries),
        "parts": len(entries),
    }


def read_part_lists(folder: str, lists: Iterable[Mapping[str, Any]]) -> list[ScorePart]:
    """The parts in lists that ``write_part_list`` has written.

    Args:
        folder: that they lie in.
        lists: entries of a training state.

    Raises:
        EasyCoreError: a list is missing or damaged.
    """
    found = []
    for entry in lists:
        if not _LIST_PATH.fullmatch(entry["path"]):
            raise EasyCoreError(f"{entry['path']!r} is not the path of a list of parts; the training state is damaged")
        where = paths.join(folder, entry["path"])
        try:
            content = paths.read_bytes(where)
        except EasyCoreError as error:
            raise EasyCoreError(f"{error}; pass --overwrite to begin again") from error
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise EasyCoreError(f"{where} is damaged; pass --overwrite to begin again")
        found += [ScorePart.from_dict(part) for part in json.loads(content)]
    return found


def _refuse_non_finite(columns: Mapping[str, np.ndarray], epoch: int) -> None:
    for name in (name for name in FLOAT_SCORES if name in columns):
        bad = ~np.isfinite(columns[name])
        if bad.any():
            ids = sorted(np.asarray(columns["sample_id"])[bad].tolist())
            raise EasyCoreError(
                f"epoch {epoch}: {name} is not finite for {len(ids)} samples (first sample_ids: "
                f"{', '.join(map(str, ids[:5]))}); the run has diverged, lower --lr or check these images"
            )


def _encode(rows: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    pq.write_table(
        rows,
        sink,
        compression="NONE",
        use_dictionary=False,
        column_encoding={name: _ENCODINGS[name] for name in rows.column_names},
        write_statistics=["sample_id"],
        row_group_size=_ROW_GROUP_ROWS,
        write_page_checksum=True,
        # One page for each column of a row group: few headers to parse.
        data_page_size=1 << 30,
        max_rows_per_page=1 << 30,
    )
    return sink.getvalue()


def scored_epochs(config: Mapping[str, Any], trained: int) -> list[int]:
    """The epochs that a whole table has rows of, ascending.

    The last epoch and every so many before it; with ``initial_pass`` the untrained network as epoch 0, and for
    ``fused+eval`` also ``trained + 1``, in whose name the final weights are scored exactly.

    Args:
        config: fields of a ``ScoreConfig``.
        trained: epochs that were trained; fewer than ``epochs`` if the run ended because its scores were stable.
    """
    found = [epoch for epoch in range(config["epochs"], 0, -config["score_every"]) if epoch <= trained]
    first = [0] if config["initial_pass"] else []
    return [*first, *reversed(found), *([trained + 1] if config["score_pass"] == "fused+eval" else [])]


def check_segment(parts: Iterable[ScorePart], *, epoch: int, segment: int, num_rows: int) -> None:
    """Make sure that the parts of a segment have as many rows as it has; which, ``check_coverage`` sees at the end.

    Args:
        parts: descriptors from all workers.
        epoch: the epoch they belong to.
        segment: of the epoch.
        num_rows: rows of the segment over all workers.

    Raises:
        EasyCoreError: they have more or fewer; nothing of the segment is committed.
    """
    rows = sum(part.rows for part in parts)
    if rows != num_rows:
        raise EasyCoreError(
            f"epoch {epoch}, segment {segment}: {rows:,} of {num_rows:,} samples were scored; it is not committed"
        )


def check_coverage(parts: Iterable[ScorePart], *, epoch: int, num_samples: int, checksum: int) -> None:
    """Make sure that the parts of an epoch hold every sample exactly once.

    Args:
        parts: descriptors from all workers.
        epoch: the epoch they belong to.
        num_samples: number of scored samples.
        checksum: ``id_checksum`` of the scored samples.

    Raises:
        EasyCoreError: if rows are missing or doubled. It would be a bug of ours or of the loader;
            nothing of the epoch is committed.
    """
    mine = [part for part in parts if part.epoch == epoch]
    rows = sum(part.rows for part in mine)
    if rows != num_samples:
        raise EasyCoreError(
            f"epoch {epoch}: {rows:,} of {num_samples:,} samples were scored; the epoch is not committed"
        )
    if sum(part.id_checksum for part in mine) % 2**64 != checksum:
        raise EasyCoreError(f"epoch {epoch}: some samples were scored twice and others not; the epoch is not committed")


def fingerprint(parts: Iterable[ScorePart]) -> str:
    """Hash (hex) of a table's content, independent of part names and of the attempts that wrote them."""
    ordered = sorted(parts, key=lambda part: (part.epoch, part.first_id, part.rank))
    return content_hash(*(f"{part.epoch} {part.rows} {part.sha256}" for part in ordered))


def write_samples(table: str, samples: pa.Table) -> None:
    """Write the file of the scored samples.

    Args:
        table: folder of the score table.
        samples: sorted by id: sample_id int64, label int32, input_norm float32 (L2 norm in [0, 1] pixel units).
    """
    rows = samples.select(SAMPLES_SCHEMA.names).cast(SAMPLES_SCHEMA)
    paths.write_bytes(paths.join(table, _SAMPLES), _encode(rows))
