"""What reduce() costs beside DuckDB and Polars on the same Parquet parts, CPUs and machine.

    python tests/benchmarks/bench_reduce.py --folder /tmp/bench_reduce [--samples 1000000] [--epochs 10] [--ranks 4]
        [--cpus 2] [--repeats 3] [--encodings] [--memory-check]

"ours" is the whole job on Ray: all scores, counts and control, every check, checksums of all parts, the hardness
table written and flushed. "ours aign" is the same job with --only aign: it reads two columns, with every check, but
compares the checksums of the pages it reads instead of those of whole parts. DuckDB and Polars compute means only,
check nothing, and are given the files of the scored epochs alone. All write Parquet.
Each measurement is a process of its own that works twice, the contenders alternate, and medians are shown: of the
first time ("ours": with the start of Ray) and of the second, with its CPU seconds, which other work on the machine
changes less; the peak of memory is that of the process above its imports, for "ours" of the largest task, imports
included. The score table is made once per folder; it has the control (epoch 0) too, which only "ours" reads; rows are
those of the scored epochs for everyone.
"""

import argparse
import cProfile
import json
import multiprocessing
import os
import pstats
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from easycore_ray.scoring import score_table
from easycore_ray.scoring.reduce_task import make_plan, reduce_range
from easycore_ray.scoring.score_reader import ScoreTable, open_table
from easycore_ray.storage import artifact
from easycore_ray.storage.artifact import Artifact, Claim

MEANS = {"aign": ("grad_norm",), "four means": ("grad_norm", "loss", "margin", "el2n")}
CONTENDERS = ("ours", "ours aign", "duckdb aign", "duckdb four means", "polars aign", "polars four means")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", required=True, help="where score tables are made and kept")
    parser.add_argument("--samples", type=int, default=1_000_000, help="samples of the population")
    parser.add_argument("--epochs", type=int, default=10, help="scored epochs, beside the control")
    parser.add_argument("--ranks", type=int, default=4, help="workers that wrote the table, each a random share")
    parser.add_argument("--cpus", "--threads", type=int, default=2, help="CPUs of Ray, threads of the others")
    parser.add_argument("--repeats", type=int, default=3, help="processes per contender")
    parser.add_argument("--contenders", nargs="+", default=CONTENDERS, choices=CONTENDERS, help="who is measured")
    parser.add_argument("--encodings", action="store_true", help="compare encodings of a part instead")
    parser.add_argument("--memory-check", action="store_true", help="peak memory of a task instead, at N and 10 N")
    parser.add_argument("--range-rows", type=int, default=2_500_000, help="samples per task in --memory-check")
    parser.add_argument("--one", choices=(*CONTENDERS, "range"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(_one(options)))
    elif options.encodings:
        _compare_encodings(_table(options, options.samples))
    elif options.memory_check:
        _check_memory(options)
    else:
        _compare(options)


# ---------------------------------------------------------------- the score table


def _run_folder(options: argparse.Namespace, samples: int) -> Path:
    return Path(options.folder) / f"{samples}x{options.epochs}-ranks{options.ranks}"


def _table(options: argparse.Namespace, samples: int) -> ScoreTable:
    """The table of these options, made if it is not there."""
    folder = _run_folder(options, samples) / "table"
    if not (folder / "manifest.json").exists():
        _make_table(str(folder), samples, options.epochs, options.ranks)
    return open_table(str(folder))


def _make_table(folder: str, samples: int, epochs: int, ranks: int) -> None:
    """A table as a scoring run leaves it: the rank of a sample is drawn once and stays."""
    rank_of_sample = np.random.default_rng(0).integers(0, ranks, samples, dtype=np.int8)
    labels = np.random.default_rng(1).integers(0, 1000, samples, dtype=np.int32)
    parts = []
    for epoch in range(epochs + 1):
        for rank in range(ranks):
            ids = np.flatnonzero(rank_of_sample == rank)
            rng, count = np.random.default_rng([epoch, rank]), len(ids)
            columns = {
                "sample_id": ids,
                "label": labels[ids],
                "grad_norm": rng.standard_gamma(2.0, count, np.float32),
                "loss": rng.standard_exponential(count, np.float32),
                "margin": rng.standard_normal(count, np.float32),
                "el2n": rng.random(count, np.float32),
                "correct": rng.random(count, np.float32) < 0.8,
            }
            parts.append(score_table.write_part(folder, columns, epoch=epoch, rank=rank, attempt="a"))
    norms = np.random.default_rng(2).random(samples, np.float32)
    score_table.write_samples(folder, pa.table({"sample_id": np.arange(samples), "label": labels, "input_norm": norms}))
    artifact.finish(
        Claim(folder, "score_table", "benchmark", "nonce", resumed=False),
        fingerprint=score_table.fingerprint(parts),
        config={"score_pass": "eval"},
        parents={"dataset": Artifact("/nowhere", {"kind": "dataset", "fingerprint": "f" * 64})},
        counts={"samples": samples},
        wall_seconds=0.0,
        parts=[part.to_dict() for part in parts],
    )


# ---------------------------------------------------------------- one measurement, in a process of its own


def _one(options: argparse.Namespace) -> dict[str, Any]:
    imported = _peak_mib()
    run = _run_folder(options, options.samples)
    if options.one == "range":
        return _measure_range(open_table(str(run / "table")), options.range_rows)
    out = run / f"out-{os.getpid()}"
    out.mkdir()
    try:
        if options.one in ("ours", "ours aign"):
            return _measure_ours(run, out, options.cpus, ("aign",) if options.one == "ours aign" else None)
        library, means = options.one.split(" ", 1)
        work = {"duckdb": _duckdb, "polars": _polars}[library](run, str(out / "means"), MEANS[means], options)
        seconds = [_timed(work)]
        before = _cpu_seconds()
        seconds.append(_timed(work))
        cpu = _cpu_seconds() - before
        rows = sum(pq.ParquetFile(path).metadata.num_rows for path in out.glob("means*"))
        assert rows == options.samples, rows
        return {"seconds": seconds, "cpu": cpu, "peak": _peak_mib() - imported}
    finally:
        shutil.rmtree(out)


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _cpu_seconds() -> float:
    """Of this process and of the children that still run."""
    own, ticks = resource.getrusage(resource.RUSAGE_SELF), 0
    for child in multiprocessing.active_children():
        ticks += sum(map(int, Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))
    return own.ru_utime + own.ru_stime + ticks / os.sysconf("SC_CLK_TCK")


def _peak_mib() -> float:
    # Not ru_maxrss, which a new program inherits from the one that started it.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10


def _scored(run: Path) -> list[str]:
    """The parts without those of the control: nobody else need look which rows are its."""
    return sorted(str(path) for path in run.glob("table/epoch=*/*.parquet") if path.parent.name != "epoch=00000")


def _duckdb(run: Path, out: str, means: tuple[str, ...], options: argparse.Namespace) -> Callable[[], object]:
    import duckdb

    connection = duckdb.connect(config={"threads": options.cpus, "preserve_insertion_order": False})
    query = (
        f"COPY (SELECT sample_id, {', '.join(f'avg({name}) AS {name}' for name in means)} "
        f"FROM read_parquet({_scored(run)}, hive_partitioning = false) GROUP BY sample_id) "
        f"TO '{out}' (FORMAT parquet)"
    )
    return lambda: connection.execute(query)


def _polars(run: Path, out: str, means: tuple[str, ...], options: argparse.Namespace) -> Callable[[], object]:
    os.environ["POLARS_MAX_THREADS"] = str(options.cpus)
    import polars as pl

    rows = pl.scan_parquet(_scored(run), hive_partitioning=False)
    # As the others: sums in float64.
    found = rows.group_by("sample_id").agg([pl.col(name).cast(pl.Float64).mean() for name in means])
    return lambda: found.sink_parquet(out)


def _measure_ours(run: Path, out: Path, cpus: int, only: tuple[str, ...] | None) -> dict[str, Any]:
    import logging

    import ray

    # Not at the top: it loads PyTorch, and memory is measured here.
    from easycore_ray.scoring.reduce import reduce

    def work(name: str) -> None:
        if not ray.is_initialized():
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False,
                     logging_level=logging.ERROR)  # fmt: skip
        reduce(scores=str(run), out=f"{out}/{name}", only=only)

    def look() -> tuple[int, tuple[float, float]]:
        time.sleep(0.5)
        return os.getpid(), (_peak_mib(), _cpu_seconds())

    def workers() -> dict[int, tuple[float, float]]:
        return dict(ray.get([ray.remote(look).remote() for _ in range(cpus)]))

    seconds = [_timed(lambda: work("a"))]
    before, mine = workers(), _cpu_seconds()
    seconds.append(_timed(lambda: work("b")))
    after = workers()
    cpu = _cpu_seconds() - mine + sum(used - before.get(pid, (0.0, 0.0))[1] for pid, (_, used) in after.items())
    if only is None:
        shutil.rmtree(run / "hardness", ignore_errors=True)
        shutil.move(f"{out}/b", run / "hardness")
    ray.shutdown()
    return {"seconds": seconds, "cpu": cpu, "peak": max(peak for peak, _ in after.values())}


def _measure_range(table: ScoreTable, range_rows: int) -> dict[str, Any]:
    """Peak memory of one range in the middle of the table, above that of the imports."""
    before = _peak_mib()
    samples = table.artifact.manifest["counts"]["samples"]
    out = f"{table.path}/../out-range"
    plan = make_plan(table, tuple(table.epochs()), out, max(1, samples // range_rows))
    number = len(plan.ranges) // 2
    seconds = _timed(lambda: reduce_range(plan, number))
    shutil.rmtree(out)
    low, high = plan.ranges[number]
    return {"seconds": [seconds], "before": before, "peak": _peak_mib(), "rows": high - low}


# ---------------------------------------------------------------- comparisons


def _spawn(options: argparse.Namespace, name: str, samples: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", name, "--folder", options.folder, "--samples", str(samples),
               "--epochs", str(options.epochs), "--ranks", str(options.ranks), "--cpus", str(options.cpus),
               "--range-rows", str(options.range_rows)]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _compare(options: argparse.Namespace) -> None:
    table = _table(options, options.samples)
    rows = options.samples * options.epochs
    size = sum(part.num_bytes for part in table.parts)
    print(f"{options.samples:,} samples × {options.epochs} epochs (and the control) = {rows / 1e6:,.0f} M rows, "
          f"{options.ranks} ranks, {options.cpus} CPUs; {size / 2**30:.2f} GiB, "
          f"{size / sum(part.rows for part in table.parts):.2f} bytes/row", flush=True)  # fmt: skip
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in options.contenders}
    for _ in range(options.repeats):
        for name in options.contenders:
            found[name].append(_spawn(options, name, options.samples))
            print(f"  {name}: {found[name][-1]}", file=sys.stderr, flush=True)
    print(f"{'':>18} {'M rows/s':>9} {'s per 1e9':>9} {'seconds (spread)':>19} {'first time':>10} {'CPU s':>6} "
          f"{'peak MiB':>9} {'DuckDB AIGN = 1: rows/s':>24} {'CPU':>6}")  # fmt: skip
    base = found.get("duckdb aign")
    for name, runs in found.items():
        second = [run["seconds"][1] for run in runs]
        median, cpu = statistics.median(second), statistics.median(run["cpu"] for run in runs)
        first = statistics.median(run["seconds"][0] for run in runs)
        ratios = ""
        if base:
            ratios = f"{statistics.median(run['seconds'][1] for run in base) / median:22.2f} × "
            ratios += f"{statistics.median(run['cpu'] for run in base) / cpu:5.2f} ×"
        print(f"{name:>18} {rows / median / 1e6:9.1f} {median / rows * 1e9:9.1f} {median:6.2f} [{min(second):.2f}, "
              f"{max(second):.2f}] {first:10.2f} {cpu:6.1f} {max(run['peak'] for run in runs):9,.0f} "
              f"{ratios}")  # fmt: skip
    _show_phases(table)


def _show_phases(table: ScoreTable) -> None:
    """Where the time of the tasks goes, all ranges in one process one after another."""
    out = f"{table.path}/../out-phases"
    plan = make_plan(table, tuple(table.epochs()), out, -(-table.artifact.manifest["counts"]["samples"] // 2_500_000))
    # CPU time: what waits for the disk or for other work does not count.
    profile = cProfile.Profile(time.process_time)
    profile.enable()
    for number in range(len(plan.ranges)):
        reduce_range(plan, number)
    profile.disable()
    shutil.rmtree(out)
    stats = pstats.Stats(profile)
    within = {key[2]: entry[3] for key, entry in stats.stats.items()}  # type: ignore[attr-defined]
    phases = {
        "checksums of parts": within["verify_part"],
        "read": within["_read_groups"],
        "add": within["_add_rows"],
        "new order": sum(within.get(name, 0.0) for name in ("_find", "_mark", "_reorder", "_ranks")),
        "sort and divide": within["_rows"],
        "write (encode, checksum, flush)": within["write_hardness"],
    }
    total = stats.total_tt  # type: ignore[attr-defined]
    shares = ", ".join(f"{name} {100 * seconds / total:.0f} %" for name, seconds in phases.items())
    print(f"one process, {total:.2f} CPU s: {shares}, rest {100 * (1 - sum(phases.values()) / total):.0f} %")


def _compare_encodings(table: ScoreTable) -> None:
    part = table.of_epoch(1)[0]
    rows = pq.read_table(f"{table.path}/{part.path}", partitioning=None)
    plain = {name: score_table._ENCODINGS[name] for name in rows.column_names}
    split = plain | dict.fromkeys(("grad_norm", "loss", "margin", "el2n"), "BYTE_STREAM_SPLIT")
    variants: dict[str, tuple[dict[str, str], str]] = {
        "current": (plain, "NONE"),
        "zstd": (plain, "ZSTD"),
        "byte-stream-split": (split, "NONE"),
        "byte-stream-split + zstd": (split, "ZSTD"),
        "plain ids": (plain | {"sample_id": "PLAIN"}, "NONE"),
        "run-length correct": (plain | {"correct": "RLE"}, "NONE"),
    }
    columns = ["sample_id", "grad_norm", "loss", "margin", "el2n", "correct"]
    print(f"{'':>26} bytes/row  decode ns/row  checksum ns/row  both")
    for name, (encodings, compression) in variants.items():
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink, compression=compression, use_dictionary=False, column_encoding=encodings,
                       write_statistics=["sample_id"], row_group_size=score_table._ROW_GROUP_ROWS)  # fmt: skip
        content = sink.getvalue()

        def decode(content: pa.Buffer = content) -> None:
            file = pq.ParquetFile(pa.BufferReader(content))
            for _ in file.iter_batches(score_table._ROW_GROUP_ROWS, columns=columns, use_threads=False):
                pass

        def checksum(content: pa.Buffer = content) -> None:
            score_table.hashlib.sha256(content).hexdigest()

        cost = [1e9 * min(_timed(work) for _ in range(7)) / len(rows) for work in (decode, checksum)]
        print(f"{name:>26} {content.size / len(rows):9.2f} {cost[0]:14.1f} {cost[1]:16.1f} {sum(cost):5.1f}")


def _check_memory(options: argparse.Namespace) -> None:
    for samples in (options.samples, 10 * options.samples):
        _table(options, samples)
        found = _spawn(options, "range", samples)
        above = (found["peak"] - found["before"]) * 2**20 / found["rows"]
        print(f"{samples:,} samples × {options.epochs} epochs, one task of {found['rows']:,}: peak "
              f"{found['peak']:,.0f} MiB ({found['before']:,.0f} before; {above:.0f} bytes/sample), "
              f"{found['seconds'][0]:.1f} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
