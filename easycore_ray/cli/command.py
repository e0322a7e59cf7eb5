"""``easycore``: list the verbs, or hand the words behind a verb to its parser and its function.

A mistake of the user ends in one line on standard error (the parser's own in a box) and exit code 2, an interrupt in
130. Anything else that escapes is a bug and keeps its traceback. This module imports neither the parser nor a verb, so
that the list of verbs and a misspelt one are answered at once.
"""

import contextlib
import difflib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from easycore_ray import __version__
from easycore_ray.cli.verbs import COMMANDS, Command, load
from easycore_ray.runtime.interrupts import TerminatedError, terminable
from easycore_ray.storage.errors import EasyCoreError

SHELLS = ("bash", "zsh", "fish")
"""Shells that completion scripts can be printed for."""

# Names of the Python functions whose verb on the command line is another.
_OTHER_NAMES = {"select": "coreset"}


def main(argv: Sequence[str] | None = None) -> None:
    """The program ``easycore``."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    with mistakes_in_one_line():
        first, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
        if first in ("-h", "--help"):
            print(help_text())
        elif first == "--version":
            print(f"easycore {__version__}")
        elif first == "--print-completion":
            _print_completion(rest)
        elif first in COMMANDS:
            _run_command(first, rest, f"easycore {first}")
        elif not first:
            raise EasyCoreError("a verb is missing; easycore --help lists them")
        else:
            raise EasyCoreError(f"unknown verb {first!r}; {_nearest(first)}easycore --help lists them all")


def run_job(name: str, argv: Sequence[str] | None = None) -> Any:
    """The verb of a job, as ``python -m jobs.NAME`` runs it."""
    with mistakes_in_one_line():
        return _run_command(name, list(sys.argv[1:] if argv is None else argv), f"python -m jobs.{name}")


def run(kind: type[Any], verb: Callable[[Any], Any], argv: Sequence[str]) -> Any:
    """Parse a command line into a configuration and call a function with it; mistakes end in one line."""
    from easycore_ray.cli.options import parse

    with mistakes_in_one_line():
        return verb(parse(kind, list(argv)))


@contextlib.contextmanager
def mistakes_in_one_line() -> Iterator[None]:
    """Turn a user's mistake into a line and exit code 2, an interrupt into one and 130, SIGTERM into one and 143."""
    try:
        with terminable():
            yield
    except EasyCoreError as error:
        # One line, also where a library's message inside it has more.
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        raise SystemExit(2) from None
    except TerminatedError:
        print("terminated; run the same command again to resume", file=sys.stderr)
        raise SystemExit(143) from None
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        raise SystemExit(130) from None


def help_text() -> str:
    """The verbs with a line each."""
    width = max(map(len, COMMANDS))
    verbs = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join([
        "usage: easycore VERB [options]",
        "",
        "Choose training data for robust models: score, select, train, compare.",
        "",
        *verbs,
        "",
        "  easycore VERB --help        options of a verb",
        "  easycore VERB … --dry-run   what it would do, without doing it",
        "  easycore --version",
        f"  easycore --print-completion {{{','.join(SHELLS)}}}",
    ])  # fmt: skip


def _run_command(name: str, arguments: list[str], prog: str) -> Any:
    from easycore_ray.cli.options import parse_request

    # A thread that is left behind by Ctrl-C (runtime.interrupts) would have Ray start again by whatever it calls next.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    command = COMMANDS[name]
    try:
        request = parse_request(command.kind, arguments, prog=prog, dry_run=command.plan is not None)
    except BrokenPipeError:
        # Of the help, the reader (``| head``) has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    if request.dry_run or request.measure:
        return _show_plan(command, request.config, measure=request.measure, dry_run=request.dry_run)
    return command.run(request.config)


def _show_plan(command: Command, config: Any, *, measure: bool, dry_run: bool) -> Any:
    from easycore_ray.cli.results import show
    from easycore_ray.storage import paths

    if not dry_run:
        raise EasyCoreError("--measure goes with --dry-run; pass both")
    assert command.plan is not None
    paths.reach(*vars(config).values())
    plan = load(command.plan)(config, measure)
    show(str(plan))
    return plan


def _print_completion(arguments: list[str]) -> None:
    from easycore_ray.cli.options import completion_script

    if len(arguments) != 1 or arguments[0] not in SHELLS:
        found = " ".join(arguments) or "nothing"
        raise EasyCoreError(f"--print-completion takes one of {', '.join(SHELLS)}, got {found}")
    print(completion_script(arguments[0]))


def _nearest(word: str) -> str:
    near = [_OTHER_NAMES[word]] if word in _OTHER_NAMES else difflib.get_close_matches(word, COMMANDS, n=1)
    return f"did you mean {near[0]}? " if near else ""
