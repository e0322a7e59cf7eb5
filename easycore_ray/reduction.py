"""reduce(): score table → hardness table, one row per sample.

Ids are cut into ranges; one Ray task per range adds up its rows in dense arrays. Parts are sorted by
id, so a task reads only its own stretch of each, and its memory is set by the range, not by the
table. Sums are float64 in epoch order: the result depends neither on the order of parts nor on how
many workers wrote them. Each task also proves that every sample has exactly one row per epoch.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from easycore_ray import paths
from easycore_ray.config import ReduceConfig, identity_fields, to_dict, verb
from easycore_ray.errors import EasyCoreError
from easycore_ray.hardness_table import SCHEMA, write_hardness
from easycore_ray.manifest import Artifact, claim, content_hash, finish, identity
from easycore_ray.progress import Progress, say
from easycore_ray.score_table import ScoreTable, open_table, read_range, read_samples

_FLOATS = {"aign": "grad_norm", "el2n": "el2n", "loss": "loss", "aum": "margin"}


@verb(ReduceConfig)
def reduce(config: ReduceConfig) -> Artifact | None:
    """Reduce the score table of a scoring run to ``aign`` and the other scores of each sample.

    ``aign`` is the mean gradient norm over the scored epochs 1..E (arXiv 2510.11018); ``el2n``,
    ``loss`` and ``aum`` are the means of the rows' ``el2n``, ``loss`` and ``margin``;
    ``forgetting_events`` counts correct → wrong between consecutive scored epochs (Toneva et al.
    2019); ``first_learned_epoch`` is the first epoch with a correct prediction, −1 if there is none.

    Returns:
        The hardness table; ``config.out`` is usually ``<scores>/hardness``. None with ``dry_run``.

    Raises:
        EasyCoreError: if the table is unfinished or damaged, or a sample lacks or doubles a row.
    """
    started = time.monotonic()
    table = open_table(paths.join(paths.absolute(config.scores), "table"))
    parents = {"score_table": table.artifact}
    out = paths.absolute(config.out)
    if config.dry_run:
        samples = table.artifact.manifest["counts"]["samples"]
        say(f"reduce: would reduce {samples:,} samples × {len(table.epochs())} epochs → {out}")
        return None
    # How ids are cut into ranges changes no value: only where rows are filed.
    fields = {key: value for key, value in identity_fields(config).items() if key != "bucket_rows"}
    made = claim(out, "hardness_table", identity("hardness_table", fields, _fingerprints(parents)),
                 overwrite=config.overwrite)  # fmt: skip
    if isinstance(made, Artifact):
        say(f"reduce: {out} is finished, reused")
        return made
    files = _reduce_ranges(table, out, config.bucket_rows)
    rows = sum(entry["rows"] for entry in files)
    expected = table.artifact.manifest["counts"]["samples"]
    if rows != expected:
        raise EasyCoreError(f"{table.path}: {rows:,} of {expected:,} samples have scores; the table is damaged")
    artifact = finish(
        made,
        # The rows follow from the table alone, however they are cut into files.
        fingerprint=content_hash("hardness_table", table.artifact.fingerprint),
        config=to_dict(config),
        parents=parents,
        counts={"samples": rows, "scored_epochs": len([epoch for epoch in table.epochs() if epoch > 0])},
        wall_seconds=time.monotonic() - started,
        files=files,
        score_pass=table.artifact.manifest["config"]["score_pass"],
        dataset=table.artifact.manifest["parents"]["dataset"],
    )
    say(f"reduce: {rows:,} samples × {len(table.epochs())} epochs → {out}")
    return artifact


def _fingerprints(parents: dict[str, Artifact]) -> dict[str, str]:
    return {role: parent.fingerprint for role, parent in parents.items()}


def _reduce_ranges(table: ScoreTable, out: str, bucket_rows: int) -> list[dict[str, Any]]:
    """Run one task per id range; the files they wrote, in id order."""
    first = min((part.first_id for part in table.parts if part.rows), default=0)
    last = max((part.last_id for part in table.parts if part.rows), default=-1)
    lows = range(first, last + 1, bucket_rows)
    ranges = [(low, min(low + bucket_rows, last + 1)) for low in lows]
    if len(ranges) == 1:
        # A table this small is reduced before a Ray task has started.
        return [reduce_range(table, out, 0, *ranges[0])]
    import ray

    from easycore_ray.cluster import connect

    connect()
    shared = ray.put(table)
    task = ray.remote(max_retries=5)(reduce_range)
    pending = [task.remote(shared, out, number, low, high) for number, (low, high) in enumerate(ranges)]
    order = {ref: number for number, ref in enumerate(pending)}
    files: dict[int, dict[str, Any]] = {}
    progress = Progress("reduce", len(ranges), "ranges")
    while pending:
        done, pending = ray.wait(pending)
        try:
            files[order[done[0]]] = ray.get(done[0])
        except ray.exceptions.RayTaskError as error:
            # Our own sentence, without the task's traceback around it.
            if isinstance(error.cause, EasyCoreError):
                raise error.cause from None
            raise
        progress.update(len(files))
    progress.close()
    return [files[number] for number in sorted(files)]


def reduce_range(table: ScoreTable, out: str, number: int, low: int, high: int) -> dict[str, Any]:
    """Reduce the ids in [low, high) and write them; idempotent, so it may run twice."""
    return write_hardness(out, number, _Range(table, low, high).reduce())


@dataclass
class _Sums:
    """Running sums of one id range; index = sample_id − low."""

    values: dict[str, np.ndarray]
    num_scores: np.ndarray
    forgetting: np.ndarray
    first_learned: np.ndarray
    was_correct: np.ndarray
    epoch0: np.ndarray


class _Range:
    """Dense reduction of one id range, epoch by epoch."""

    def __init__(self, table: ScoreTable, low: int, high: int) -> None:
        self._table, self._low, self._high = table, low, high
        size = high - low
        self._sums = _Sums(
            values={name: np.zeros(size) for name in _FLOATS},
            num_scores=np.zeros(size, np.int32),
            forgetting=np.zeros(size, np.int32),
            first_learned=np.full(size, -1, np.int32),
            was_correct=np.zeros(size, bool),
            epoch0=np.full(size, np.nan, np.float32),
        )

    def reduce(self) -> pa.Table:
        """The range's rows of the hardness table."""
        samples = read_samples(self._table.path)
        ids = samples["sample_id"].to_numpy()
        start, stop = np.searchsorted(ids, [self._low, self._high])
        samples = samples.slice(start, stop - start)
        expected = np.zeros(self._high - self._low, bool)
        expected[samples["sample_id"].to_numpy() - self._low] = True
        labels = samples["label"].to_numpy()
        for epoch in self._table.epochs():
            self._add_epoch(epoch, expected)
        return self._rows(samples, labels)

    def _add_epoch(self, epoch: int, expected: np.ndarray) -> None:
        seen = np.zeros(len(expected), bool)
        columns = ["sample_id", "grad_norm", "loss", "margin", "el2n", "correct"]
        for part in self._table.of_epoch(epoch):
            # Once per part, by the task that holds its first id: hashing reads all of it.
            verify = self._low <= part.first_id < self._high
            for batch in read_range(self._table.path, part, self._low, self._high, columns, verify=verify):
                at = batch.column("sample_id").to_numpy() - self._low
                if np.any(np.diff(at) <= 0):
                    raise EasyCoreError(f"{part.path} is not sorted by sample_id, or holds one twice; it is damaged")
                if seen[at].any():
                    twice = int(at[seen[at]][0]) + self._low
                    raise EasyCoreError(f"epoch {epoch}: sample_id {twice} has more than one row; the table is damaged")
                seen[at] = True
                self._add_rows(epoch, at, batch)
        if not np.array_equal(seen, expected):
            wrong = np.flatnonzero(seen != expected) + self._low
            raise EasyCoreError(
                f"epoch {epoch}: {len(wrong):,} samples have no row or are foreign (first sample_id: {wrong[0]}); "
                "the table is damaged"
            )

    def _add_rows(self, epoch: int, at: np.ndarray, batch: pa.RecordBatch) -> None:
        sums = self._sums
        column = {name: batch.column(name).to_numpy(zero_copy_only=False) for name in batch.schema.names}
        if not all(np.isfinite(column[name]).all() for name in _FLOATS.values()):
            raise EasyCoreError(f"epoch {epoch} holds scores that are not finite; the scoring run has diverged")
        if epoch == 0:
            sums.epoch0[at] = column["grad_norm"]
            return
        for name, source in _FLOATS.items():
            sums.values[name][at] += column[source]
        correct = column["correct"]
        sums.num_scores[at] += 1
        sums.forgetting[at] += sums.was_correct[at] & ~correct
        sums.was_correct[at] = correct
        sums.first_learned[at] = np.where((sums.first_learned[at] < 0) & correct, epoch, sums.first_learned[at])

    def _rows(self, samples: pa.Table, labels: np.ndarray) -> pa.Table:
        at = samples["sample_id"].to_numpy() - self._low
        sums = self._sums
        count = sums.num_scores[at]
        if len(count) and count.min() == 0:
            raise EasyCoreError(f"{self._table.path} holds no scored epoch after the first weights; nothing to average")
        epoch0 = sums.epoch0[at]
        columns: dict[str, Any] = {
            "sample_id": samples["sample_id"],
            "label": labels,
            "num_scores": count,
            **{name: sums.values[name][at] / count for name in _FLOATS},
            "forgetting_events": sums.forgetting[at],
            "first_learned_epoch": sums.first_learned[at],
            "input_norm": samples["input_norm"],
            "aign_epoch0": pa.array(epoch0, mask=np.isnan(epoch0)),
        }
        return pa.table(columns, schema=SCHEMA).combine_chunks()
