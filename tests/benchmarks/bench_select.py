"""Select the easier half of N samples: ours against DuckDB and Polars, on the same files and cores.

    python tests/benchmarks/bench_select.py [--rows 10000000] [--folder /tmp/bench_select] [--repeats 3] [--cpus 2]

The hardness table (files of --rows-per-file, written as ``reduce`` writes them) is kept in --folder for the next run.
Each system finds the N/2 samples of the lowest (aign, sample_id) and writes their ids and scores to Parquet; they take
turns, each in a process of its own. Ours starts Ray first, which is shown beside the time and not in it, and writes
sample_id, score and label of each file's samples in id order, uncompressed, flushed to disk and hashed. DuckDB
(``ORDER BY aign, sample_id LIMIT``) and Polars (a whole sort, as its ``bottom_k`` is far slower here) write sample_id
and aign to one uncompressed file, in order of aign; DuckDB runs once more without writing. Source keys need a dataset
and are left out. CPU seconds are of all processes of a system; they depend less on what else the machine does.
"""

import argparse
import contextlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from easycore_ray.scoring.hardness_table import HARDNESS_SCHEMA, write_hardness

SYSTEMS = ("ours", "duckdb", "duckdb-unwritten", "polars")


def main() -> None:
    """Measure and print; with --run, one system once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000, help="samples")
    parser.add_argument("--rows-per-file", type=int, default=4_000_000, help="samples in a file")
    parser.add_argument("--folder", default="/tmp/bench_select", help="where the table is kept and results go")
    parser.add_argument("--repeats", type=int, default=3, help="repeats, alternating")
    parser.add_argument("--cpus", type=int, default=2, help="cores for each system")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="which to run, with commas between")
    parser.add_argument("--balance", default="none", help="of ours: none or class")
    parser.add_argument("--run", choices=SYSTEMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(_run(options)))
        return
    _table(options)
    systems = options.systems.split(",")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in systems}
    for repeat in range(options.repeats):
        for name in systems:
            done = subprocess.run(
                [sys.executable, *sys.argv, "--run", name], capture_output=True, text=True, check=True
            )
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"repeat {repeat + 1} {name}: {found[name][-1]}", flush=True)
    _print(options, found)


def _print(options: argparse.Namespace, found: dict[str, list[dict[str, float]]]) -> None:
    print(f"\n{options.rows:,} samples in {len(_files(options))} files, {options.cpus} cores, "
          f"keep {options.rows // 2:,}, balance {options.balance} (ours), medians of {options.repeats}")  # fmt: skip
    median = {name: statistics.median(run["seconds"] for run in runs) for name, runs in found.items()}
    for name, runs in found.items():
        ratio = f"ours is {median[name] / median['ours']:.1f} x as fast" if "ours" in median and name != "ours" else ""
        more = "".join(
            f", {key.replace('_', ' ')} {statistics.median(run[key] for run in runs):,.1f}"
            for key in runs[0]
            if key != "seconds"
        )
        spread = f"[{min(run['seconds'] for run in runs):.2f}, {max(run['seconds'] for run in runs):.2f}]"
        print(f"{name:>18}: {median[name]:7.2f} s {spread}, {options.rows / median[name]:12,.0f} rows/s{more} {ratio}")


def _folder(options: argparse.Namespace) -> Path:
    return Path(options.folder) / f"hardness-{options.rows}-{options.rows_per_file}"


def _files(options: argparse.Namespace) -> list[dict[str, object]]:
    return json.loads((_folder(options) / "files.json").read_text())


def _table(options: argparse.Namespace) -> None:
    """Write the hardness table unless it is there: gamma-distributed scores, ten classes."""
    folder = _folder(options)
    if (folder / "files.json").exists():
        return
    entries = []
    for number, low in enumerate(range(0, options.rows, options.rows_per_file)):
        count = min(options.rows_per_file, options.rows - low)
        rng = np.random.default_rng(number)
        aign = rng.gamma(2.0, 0.01, count)
        columns = {
            "sample_id": np.arange(low, low + count),
            "label": rng.integers(0, 10, count, np.int32),
            "num_scores": np.full(count, 20, np.int32),
            "aign": aign,
            "el2n": aign * 3,
            "loss": aign * 5,
            "aum": 1 - aign,
            "forgetting_events": rng.integers(0, 5, count, np.int32),
            "first_learned_epoch": np.full(count, 1, np.int32),
            "input_norm": aign.astype(np.float32),
            "aign_epoch0": aign.astype(np.float32),
        }
        entries.append(write_hardness(str(folder), number, pa.table(columns, schema=HARDNESS_SCHEMA)))
    (folder / "files.json").write_text(json.dumps(entries))


def _run(options: argparse.Namespace) -> dict[str, float]:
    out = Path(options.folder) / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    try:
        return {"ours": _ours, "duckdb": _duckdb, "duckdb-unwritten": _duckdb, "polars": _polars}[options.run](
            options, out
        )
    finally:
        shutil.rmtree(out, ignore_errors=True)


def _ours(options: argparse.Namespace, out: Path) -> dict[str, float]:
    import ray

    from easycore_ray.core.selection_methods import METHODS
    from easycore_ray.selection import exact_cut, partitions
    from easycore_ray.storage.artifact import Artifact

    started = time.perf_counter()
    ray.init(address="local", num_cpus=options.cpus, include_dashboard=False, log_to_driver=False)
    _warm(options.cpus)
    ray_seconds = time.perf_counter() - started
    samples = partitions.hardness_partitions(Artifact(str(_folder(options)), {"files": _files(options)}), "aign")
    selection = exact_cut.Selection(
        method=METHODS["easycore"],
        fraction=0.5,
        score="aign",
        options={},
        num_classes=10 if options.balance == "class" else None,
    )
    with _Memory() as memory:
        cpu = _cpu_seconds()
        started = time.perf_counter()
        choice = exact_cut.decide(selection, samples)
        decided = time.perf_counter() - started
        files = exact_cut.write_choice(choice, str(out / "coreset.parquet"), None)
        seconds = time.perf_counter() - started
    assert sum(entry["rows"] for entry in files) == options.rows // 2
    return {
        "seconds": seconds,
        "to_decide_s": decided,
        "ray_start_s": ray_seconds,
        "cpu_s": _cpu_seconds() - cpu,
        "driver_MiB": memory.driver,
        "worst_task_MiB": memory.worker,
    }


def _warm(cpus: int) -> None:
    """Start the worker processes and let them import what tasks use."""
    import ray

    @ray.remote
    def load() -> None:
        import easycore_ray.selection.exact_cut  # noqa: F401

        time.sleep(0.5)

    ray.get([load.remote() for _ in range(cpus)])


class _Memory:
    """Highest anonymous memory of driver and Ray workers, MiB, while the body runs (mapped files are page cache)."""

    def __enter__(self) -> "_Memory":
        self.driver, self.worker, self._stop = 0.0, 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me, *others = _family()
        workers = [process for process in others if (process / "cmdline").read_bytes().startswith(b"ray::")]
        while not self._stop.wait(0.05):
            self.driver = max(self.driver, _anonymous(me))
            self.worker = max([self.worker, *map(_anonymous, workers)])


def _family() -> list[Path]:
    """This process and all below it, in /proc."""
    parents = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[process.name] = (process / "stat").read_text().rsplit(")", 1)[1].split()[1]
    found = [str(os.getpid())]
    for name in found:
        found += [child for child, parent in parents.items() if parent == name]
    return [Path("/proc") / name for name in found]


def _anonymous(process: Path) -> float:
    with contextlib.suppress(OSError):
        lines = (process / "status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024
    return 0.0


def _cpu_seconds() -> float:
    """Of this process and all below it (for ours: driver, workers and Ray's own processes)."""
    ticks = 0
    for process in _family():
        with contextlib.suppress(OSError):
            ticks += sum(map(int, (process / "stat").read_text().rsplit(")", 1)[1].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _duckdb(options: argparse.Namespace, out: Path) -> dict[str, float]:
    import duckdb

    connection = duckdb.connect(str(out / "db"))
    connection.execute(f"SET threads = {options.cpus}")
    connection.execute(f"SET temp_directory = '{out / 'spill'}'")
    chosen = (
        f"SELECT sample_id, aign FROM read_parquet('{_folder(options)}/*.parquet') "
        f"ORDER BY aign, sample_id LIMIT {options.rows // 2}"
    )
    cpu, started = _cpu_seconds(), time.perf_counter()
    if options.run == "duckdb":
        connection.execute(f"COPY ({chosen}) TO '{out / 'kept.parquet'}' (FORMAT parquet, COMPRESSION uncompressed)")
    else:
        connection.execute(f"SELECT count(*), sum(sample_id), sum(aign) FROM ({chosen})").fetchall()
    return {"seconds": time.perf_counter() - started, "cpu_s": _cpu_seconds() - cpu, "process_MiB": _peak_mib()}


def _polars(options: argparse.Namespace, out: Path) -> dict[str, float]:
    os.environ["POLARS_MAX_THREADS"] = str(options.cpus)
    import polars

    cpu, started = _cpu_seconds(), time.perf_counter()
    rows = polars.scan_parquet(f"{_folder(options)}/*.parquet").select("sample_id", "aign")
    # Sorted first: joined with the sort, head becomes its bottom_k.
    kept = rows.sort("aign", "sample_id").collect().head(options.rows // 2)
    kept.write_parquet(out / "kept.parquet", compression="uncompressed")
    return {"seconds": time.perf_counter() - started, "cpu_s": _cpu_seconds() - cpu, "process_MiB": _peak_mib()}


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
