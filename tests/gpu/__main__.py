"""The GPU suite: one command, one table, one JSON file.

    python -m tests.gpu [--parts abcdefgh] [--seconds 480] [--json gpu.json] [--tiny] [--device cpu]

Parts run in this order, each in a process of its own and within its share of the time: (a) training steps that do not
wait for the device, (b) scores on the GPU and the CPU, (c) TRADES against the official algorithm, (d) fused and exact
scores, (e) the Ray job against bare PyTorch, (f) the loader feeding a ResNet-50, (g) attacks, (h) coresets under
TRADES. One that fails is a line of the table, and the others go on; exit code 1 if any failed or was not as it must
be. Data is made from random numbers; nothing is downloaded. ``--tiny`` shows that everything runs, on a CPU too.
"""

import argparse
import datetime
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PARTS = {
    "a": ("steps", "no_step_waits", 45),
    "b": ("jobs", "scores_agree", 90),
    "c": ("steps", "trades_rates", 120),
    "d": ("steps", "scoring_rates", 30),
    "e": ("jobs", "ray_against_bare", 90),
    "f": ("jobs", "loader_feeds", 90),
    "g": ("steps", "attack_rates", 90),
    "h": ("jobs", "coresets_compare", 90),
}
"""Module, function and seconds of each."""
_LEAST_SHARE = 0.6
"""Of its seconds, below which a part is not begun."""


def main(arguments: list[str]) -> int:
    """Run the parts and print the table; with --part, one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default="".join(PARTS), help="letters of the parts to run")
    parser.add_argument("--seconds", type=float, default=480.0, help="time of all parts together")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="where the table is written")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that everything runs")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where to compute")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.part:
        run_part(options)
        return 0
    started, rows = time.monotonic(), list[dict[str, Any]]()
    print(describe(options.device), flush=True)
    for letter in options.parts:
        left = options.seconds - (time.monotonic() - started)
        rows += [{"part": letter, **entry} for entry in _run_apart(letter, min(PARTS[letter][2], left), options)]
        for entry in [entry for entry in rows if entry["part"] == letter]:
            print(_line(entry), flush=True)
    taken = time.monotonic() - started
    content = {"machine": describe(options.device), "date": datetime.date.today().isoformat(), "tiny": options.tiny,
               "seconds": round(taken, 1), "rows": rows}  # fmt: skip
    options.json.write_text(json.dumps(content, indent=2) + "\n")
    failed = [entry for entry in rows if entry["passed"] is False]
    print(f"{len(rows)} figures in {taken:.0f} s, {len(failed)} not as they must be; written to {options.json}")
    return 1 if failed else 0


def describe(device: str) -> str:
    """The card or processor, and versions."""
    import torch

    card = torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else platform.processor()
    return f"{card or platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"


def run_part(options: argparse.Namespace) -> None:
    """One part in this process: a line of JSON for each figure."""
    import importlib

    import torch

    from tests.gpu.setup import Setup

    module, function, seconds = PARTS[options.part]
    if options.device == "cpu":
        torch.set_num_threads(1)
    work = getattr(importlib.import_module(f"tests.gpu.{module}"), function)
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(torch.device(options.device), options.tiny, min(seconds, options.seconds), Path(folder))
        for entry in work(setup):
            print(json.dumps(entry), flush=True)


def _run_apart(letter: str, seconds: float, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The figures of a part, and a line for what went wrong."""
    if seconds < _LEAST_SHARE * PARTS[letter][2]:
        return [_note("not run: no time was left", passed=None)]
    command = [sys.executable, "-m", "tests.gpu", "--part", letter, "--seconds", str(seconds), "--device",
               options.device, *["--tiny"] * options.tiny]  # fmt: skip
    # Loading torch and Ray is not in a part's own time.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wrong = ""
    try:
        said, complaints = process.communicate(timeout=seconds + (300 if options.tiny else 0))
        if process.returncode:
            wrong = next((line for line in reversed(complaints.splitlines()) if line.strip()), "failed")
    except subprocess.TimeoutExpired:
        process.terminate()
        said, complaints = process.communicate()
        wrong = f"not finished within {seconds:.0f} s"
    if wrong:
        print(*complaints.splitlines()[-30:], sep="\n", file=sys.stderr, flush=True)
    rows = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    return [*rows, _note(wrong[:200], passed=False)] if wrong else rows


def _note(text: str, *, passed: bool | None) -> dict[str, Any]:
    return {"what": text, "value": "", "unit": "", "passed": passed}


def _line(entry: dict[str, Any]) -> str:
    verdict = {True: "ok", False: "FAILED", None: ""}[entry["passed"]]
    return f"({entry['part']}) {entry['what']:<62} {entry['value']!s:>12} {entry['unit']:<10} {verdict}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
