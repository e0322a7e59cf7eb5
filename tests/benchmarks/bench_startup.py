"""How soon a command answers, and with how much memory: the median of fresh processes, files in the page cache.

    python tests/benchmarks/bench_startup.py SCORES [--repeats 5]

SCORES is the folder of a scoring run, e.g. ``runs/digits/scores`` after ``make demo``. Seconds are wall time from the
start of the interpreter to its end, MiB the largest resident size.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scores", help="folder of a scoring run")
    parser.add_argument("--repeats", type=int, default=5, help="processes per command")
    options = parser.parse_args()
    scores = str(Path(options.scores).resolve())
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in commands(scores, folder).items():
            runs = [measure([word.format(number) for word in arguments]) for number in range(options.repeats + 1)][1:]
            seconds, mebibytes = (statistics.median(column) for column in zip(*runs, strict=True))
            print(f"{name:<24} {seconds:6.2f} s  {mebibytes:6.0f} MiB", flush=True)


def commands(scores: str, folder: str) -> dict[str, list[str]]:
    """Command lines by name; ``{}`` in a word is the number of the repeat."""
    out = f"{folder}/{{}}"
    return {
        "python -c pass": [],
        "--help": ["--help"],
        "--version": ["--version"],
        "unknown verb": ["scroe"],
        "score --help": ["score", "--help"],
        "coreset, wrong option": ["coreset", "--fractoin", "0.5"],
        "inspect": ["inspect", scores],
        "coreset": ["coreset", "--scores", scores, "--out", out],
        "coreset --dry-run": ["coreset", "--scores", scores, "--out", out, "--dry-run"],
        "pipeline --dry-run": ["pipeline", "--preset", "digits", "--out", out, "--dry-run"],
    }


def measure(arguments: list[str]) -> tuple[float, float]:
    """Seconds and MiB of one process."""
    program = "from easycore_ray.cli import main; main()" if arguments else "pass"
    started = time.perf_counter()
    process = os.posix_spawn(
        sys.executable, [sys.executable, "-c", program, *arguments], os.environ | {"PYTHONPATH": str(ROOT)},
        file_actions=[(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2)],
    )  # fmt: skip
    _, _, usage = os.wait4(process, 0)
    return time.perf_counter() - started, usage.ru_maxrss / 1024


if __name__ == "__main__":
    main()
