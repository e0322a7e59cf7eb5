"""What the driver holds of N samples without their images: peak memory of every kind of bookkeeping.

    python tests/benchmarks/bench_bookkeeping.py [--rows 100000000] [--folder /tmp/bench_bookkeeping] [--limit-gib 4]

An index of N training samples (ids, labels of 1,000 classes, shards of 10,000 rows) and a coreset of half of them are
written to --folder, a range of ids at a time, and kept for the next run. Each kind of bookkeeping runs in a process
of its own, whose peak resident memory is printed; exit code 1 if one is above the limit.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from easycore_ray.core.selection import budget, class_quotas
from easycore_ray.data.coreset import read_sample_ids
from easycore_ray.data.dataset import Dataset, draw_ids, locate_samples
from easycore_ray.data.index import INDEX_FILE, INDEX_SCHEMA, index_spans, read_index_range
from easycore_ray.scoring.score import scored_samples
from easycore_ray.storage.artifact import Artifact

CLASSES = 1000
_GROUP_ROWS = 1 << 17  # as ``data.index`` writes them
_SHARD_ROWS = 10_000


def main() -> None:
    """Measure and print; with --run, one kind once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000_000, help="samples")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/bench_bookkeeping"), help="where files are kept")
    parser.add_argument("--limit-gib", type=float, default=4.0, help="most memory of a process, GiB")
    parser.add_argument("--run", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.folder / str(options.rows)
    if options.run:
        print(json.dumps(measure(KINDS[options.run], folder, options.rows)))
        return
    write_inputs(folder, options.rows)
    too_much = []
    for name in KINDS:
        done = subprocess.run([sys.executable, *sys.argv, "--run", name], capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{name:>16}: peak {found['peak_gib']:5.2f} GiB, {found['seconds']:6.1f} s, {found['result']}", flush=True
        )
        too_much += [name] * (found["peak_gib"] > options.limit_gib)
    sys.exit(f"above {options.limit_gib:g} GiB: {', '.join(too_much)}" if too_much else 0)


def write_inputs(folder: Path, rows: int) -> None:
    """Write index and coreset unless they are there."""
    if (folder / "sample_ids.npy").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(folder / INDEX_FILE, INDEX_SCHEMA, compression="zstd") as writer:
        for low in range(0, rows, _GROUP_ROWS):
            writer.write_table(_index_rows(low, min(low + _GROUP_ROWS, rows)), row_group_size=_GROUP_ROWS)
    np.save(folder / "sample_ids.npy", np.arange(0, rows, 2))


def _index_rows(low: int, high: int) -> pa.Table:
    count, rng = high - low, np.random.default_rng(low)
    ids = np.arange(low, high)
    numbers = {
        "sample_id": ids,
        "label": rng.integers(0, CLASSES, count, np.int32),
        "input_norm": rng.random(count),
        "shard": (ids // _SHARD_ROWS).astype(np.int32),
        "row": (ids % _SHARD_ROWS).astype(np.int32),
    }
    texts = {"split": "train", "key": "a/0.jpg", "sha256": "0" * 64}
    return pa.table(numbers | {name: [text] * count for name, text in texts.items()}).select(
        INDEX_SCHEMA.names
    ).cast(INDEX_SCHEMA)  # fmt: skip


def measure(kind: Callable[[Dataset], str], folder: Path, rows: int) -> dict[str, object]:
    """Peak memory and seconds of one kind of bookkeeping, in this process."""
    manifest = {"counts": {"train": rows, "val": 0, "test": 0}}
    started = time.perf_counter()
    result = kind(Dataset(str(folder), manifest))
    seconds = time.perf_counter() - started
    return {
        "result": result,
        "seconds": seconds,
        "peak_gib": peak_bytes() / 2**30,
    }


def peak_bytes() -> int:
    """Most resident memory of this process so far; not by ``getrusage``, which begins with the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def nothing(dataset: Dataset) -> str:
    """What the imports alone take."""
    return f"of {dataset.num_rows('train'):,} samples"


def draw(dataset: Dataset) -> str:
    """A class-balanced draw."""
    return f"{len(draw_ids(dataset, 'train', dataset.num_rows('train') // 100, seed=0)):,} ids drawn"


def quotas(dataset: Dataset) -> str:
    """The share of every class."""
    labels = dataset.index("train", ["label"])["label"].to_numpy()
    found = class_quotas(labels, budget(len(labels), 0.5))
    return f"{len(found):,} classes, {sum(found.values()):,} samples"


def coreset(dataset: Dataset) -> str:
    """The ids of a coreset."""
    ids = read_sample_ids(Artifact(dataset.path, {}))
    return f"{len(ids):,} ids, the last {ids[-1]:,}"


def coreset_places(dataset: Dataset) -> str:
    """Where the images of a coreset lie."""
    ids = read_sample_ids(Artifact(dataset.path, {}))
    return f"{len(locate_samples(dataset, 'train', ids)):,} places"


def places(dataset: Dataset) -> str:
    """Where all images lie."""
    return f"{len(locate_samples(dataset, 'train', None)):,} places"


def samples(dataset: Dataset) -> str:
    """The scored samples of a run on a coreset, as its table lists them."""
    ids = read_sample_ids(Artifact(dataset.path, {}))
    return f"{len(scored_samples(dataset, ids)):,} samples"


def spans(dataset: Dataset) -> str:
    """The split, a span of 4 million ids after the other, as selection reads it."""
    rows = 0
    for span in index_spans(dataset.path, "train", 4_000_000):
        rows += len(read_index_range(dataset.path, "train", span.first_id, span.last_id, ["sample_id", "label"]))
    return f"{rows:,} ids and labels"


KINDS = {
    "imports": nothing,
    "draw": draw,
    "class quotas": quotas,
    "coreset ids": coreset,
    "coreset places": coreset_places,
    "all places": places,
    "scored samples": samples,
    "spans": spans,
}

if __name__ == "__main__":
    main()
