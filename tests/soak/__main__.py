"""The soak: numbered cases of lost processes, nodes, disks and stores on real Ray, and of damaged files, all exact.

    python -m tests.soak [--cases 0:50] [--results soak.jsonl] [--kinds kills verify …]

Case N has the kind ``KINDS[N % len(KINDS)]`` and the seed N. A case that has a line in the results file is not run
again, so a soak that was interrupted goes on with the same command. Each line is one JSON object: ``case``, ``kind``,
``seed``, ``passed``, ``seconds`` and what the case counted. Exit code 1 if any case of the range failed.
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.soak import fuzz, hosts, kills, processes, segments, verify

KINDS: dict[str, Callable[[int], dict]] = {
    "kills": kills.run_case,
    "kills within epochs": kills.run_case_within_epochs,
    "kills of segments": segments.run_case,
    "verify": verify.run_case,
    "fuzz": fuzz.run_case,
    "hosts": lambda number: hosts.run_case(number // len(KINDS)),
    **{name: processes.case_of(name) for name in processes.TESTS},
}


def read_results(path: Path) -> dict[int, dict]:
    """Finished cases by number; a line that was cut off by a kill is no result."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[entry["case"]] = entry
    return found


def kind_of(number: int) -> str:
    """The kind of a case."""
    return list(KINDS)[number % len(KINDS)]


def append(path: Path, entry: dict) -> None:
    """Add a line, on a line of its own even after one that was cut off."""
    cut_off = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
    with path.open("a") as stream:
        stream.write("\n" * bool(cut_off) + json.dumps(entry) + "\n")


def run_case(number: int) -> dict:
    """Run one case; its line."""
    kind = kind_of(number)
    started = time.monotonic()
    try:
        found = {"passed": True, **KINDS[kind](number)}
    except Exception:
        found = {"passed": False, "error": traceback.format_exc()[-4000:]}
    return {"case": number, "kind": kind, "seed": number, "seconds": round(time.monotonic() - started, 1), **found}


def main(arguments: list[str]) -> int:
    """Run the cases that have no line yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default=f"0:{3 * len(KINDS)}", help="FROM:TO, numbers of cases")
    parser.add_argument("--results", type=Path, default=Path("soak.jsonl"), help="file the lines are appended to")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="only cases of these kinds")
    options = parser.parse_args(arguments)
    first, last = map(int, options.cases.split(":"))
    numbers = [number for number in range(first, last) if kind_of(number) in options.kinds]
    for number in numbers:
        if number in read_results(options.results):
            continue
        entry = run_case(number)
        append(options.results, entry)
        print(json.dumps(entry), flush=True)
    done = read_results(options.results)
    failed = [number for number in numbers if not done[number]["passed"]]
    print(f"{len(numbers)} cases, {len(failed)} failed{f': {failed}' if failed else ''}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
