"""From the words of a command line to a configuration: a preset or saved configuration first, then the options.

Each field of the configuration is an option, listed by ``--help`` under the heading that the field names. ``--help``
is answered without pyarrow: neither this module nor ``config`` imports it before there is a path to look at.
"""

import contextlib
import dataclasses
import io
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_type_hints

import tyro

from easycore_ray.cli.start_values import preset_fields, saved_fields
from easycore_ray.cli.verbs import COMMANDS
from easycore_ray.config.base import Group, JobConfig
from easycore_ray.config.experiments import StudyConfig
from easycore_ray.config.presets import PRESETS, STUDIES
from easycore_ray.config.signatures import field_docs
from easycore_ray.storage.errors import EasyCoreError

GROUPS = get_args(Group)
"""Headings of the options, in the order of ``--help``."""

_SOURCES = {"source", "test_source"}
_PATHS = {
    "out", "dataset", "scores", "coreset", "checkpoint", "sweep", "user_scores", "classes", "path", "images",
    "results", "init_from", "weights_file", "claim", "extra_dataset", "extra_coreset",
    "exclude",
} | _SOURCES  # fmt: skip


@dataclass(frozen=True)
class Request:
    """What a command line asks for."""

    config: Any
    dry_run: bool = False
    """Say what would be done instead of doing it."""
    measure: bool = False
    """Measure for that."""


def parse(kind: type[Any], arguments: list[str]) -> Any:
    """The configuration a command line describes."""
    return parse_request(kind, arguments).config


def parse_request(kind: type[Any], arguments: list[str], *, prog: str = "easycore", dry_run: bool = True) -> Request:
    """The configuration a command line describes, and whether it is a dry run.

    Args:
        kind: class of the configuration.
        arguments: the words behind the verb.
        prog: how the command is called, for its help.
        dry_run: whether the verb has one.

    Raises:
        EasyCoreError: a value is not allowed. What the parser itself refuses exits with code 2.
    """
    fields: dict[str, Any] = {}
    if issubclass(kind, JobConfig):
        preset, arguments = _take(arguments, "--preset")
        saved, arguments = _take(arguments, "--config")
        if preset is not None and saved is not None:
            raise EasyCoreError("--preset and --config are both given; pass one of them")
        if preset is not None:
            fields = preset_fields(kind, preset)
        if saved is not None:
            fields = saved_fields(kind, saved)
    options = make_options(kind, fields, dry_run=dry_run)
    parsed = tyro.cli(options, args=arguments, prog=prog, description=kind.__doc__, config=(tyro.conf.OmitArgPrefixes,))
    values = _flatten(parsed)
    names = [spec.name for spec in dataclasses.fields(kind)]
    config = kind(**{name: _from_here(name, values[name]) for name in names})
    return Request(config, values.get("dry_run", False), values.get("measure", False))


def make_options(kind: type[Any], fields: dict[str, Any], *, dry_run: bool) -> type[Any]:
    """A dataclass that holds the options of a configuration in groups, for the parser. It checks no values.

    Args:
        kind: class of the configuration.
        fields: defaults in place of the configuration's own, so that the help shows what will be used.
        dry_run: whether to offer ``--dry-run`` and ``--measure``.
    """
    hints, docs = get_type_hints(kind, include_extras=True), field_docs(kind)
    groups: dict[str, list[tuple[str, Any, Any]]] = {"": _starting_options(kind)} | {name: [] for name in GROUPS}
    for spec in dataclasses.fields(kind):
        default = fields.get(spec.name, spec.default)
        positional = tyro.conf.Positional in getattr(hints[spec.name], "__metadata__", ())
        metavar = spec.name.upper() if positional else None
        described: Any = Annotated[hints[spec.name], tyro.conf.arg(help=docs[spec.name], metavar=metavar)]
        # The parser would call a positional argument inside a group GROUP.NAME.
        group = groups["" if positional else spec.metadata["group"]]
        group.append((spec.name, described, dataclasses.field(default=default)))
    if dry_run:
        groups["output"] += _dry_run_options()
    members = groups.pop("")
    members += [(name, _make_group(name, options), dataclasses.field()) for name, options in groups.items() if options]
    return _make_group(kind.__name__, members)


def completion_script(shell: str) -> str:
    """The script that completes verbs and options in a shell."""
    verbs = [
        Annotated[
            make_options(command.kind, {}, dry_run=command.plan is not None),
            tyro.conf.subcommand(name, prefix_name=False, description=command.summary),
        ]
        for name, command in COMMANDS.items()
    ]
    any_verb: Any = Union[tuple(verbs)]  # noqa: UP007  (made of a list)
    written = io.StringIO()
    with contextlib.redirect_stdout(written), contextlib.suppress(SystemExit):
        tyro.cli(
            any_verb,
            args=["--tyro-print-completion", shell],
            prog="easycore",
            config=(tyro.conf.OmitArgPrefixes,),
        )
    return written.getvalue()


def _make_group(name: str, members: list[tuple[str, Any, Any]]) -> type[Any]:
    made = dataclasses.make_dataclass(name.capitalize(), members, frozen=True, kw_only=True)
    made.__doc__ = ""  # or the parser would show the signature
    return made


def _starting_options(kind: type[Any]) -> list[tuple[str, Any, Any]]:
    """--preset and --config, which ``parse_request`` reads first, as the help lists them."""
    if not issubclass(kind, JobConfig):
        return []
    names = ",".join(STUDIES if kind is StudyConfig else PRESETS)
    texts = {
        "preset": ("{" + names + "}", "Values for what is left out."),
        "config": ("PATH/manifest.json", "Repeat the run that made this artifact."),
    }
    return [
        (name, Annotated[str | None, tyro.conf.arg(metavar=metavar, help=text)], dataclasses.field(default=None))
        for name, (metavar, text) in texts.items()
    ]


def _dry_run_options() -> list[tuple[str, Any, Any]]:
    texts = {
        "dry_run": "Say what would be done, how much it is and where it would be written; do nothing.",
        "measure": "With --dry-run: take a few real steps and ask the cluster first, at most 60 s.",
    }
    return [
        (name, Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help=text)],
         dataclasses.field(default=False))
        for name, text in texts.items()
    ]  # fmt: skip


def _flatten(parsed: Any) -> dict[str, Any]:
    """Values by option, out of their groups."""
    found: dict[str, Any] = {}
    for name, value in vars(parsed).items():
        found |= _flatten(value) if name in GROUPS and dataclasses.is_dataclass(value) else {name: value}
    return found


def _from_here(name: str, value: Any) -> Any:
    """Paths absolute, so that they mean the same to every process and in the saved configuration."""
    if isinstance(value, tuple):
        return tuple(_from_here(name, entry) for entry in value)
    if name not in _PATHS or value is None:
        return value
    if name in _SOURCES and isinstance(value, str):
        from easycore_ray.data.ingest.sources import is_path

        if not is_path(value):
            return value
    from easycore_ray.storage import paths

    return paths.absolute(value)


def _take(arguments: list[str], flag: str) -> tuple[str | None, list[str]]:
    """The value of ``--flag VALUE`` or ``--flag=VALUE``, and the arguments without it."""
    rest: list[str] = []
    value: str | None = None
    waiting = False
    for argument in arguments:
        if waiting:
            value, waiting = argument, False
        elif argument == flag:
            waiting = True
        elif argument.startswith(flag + "="):
            value = argument.removeprefix(flag + "=")
        else:
            rest.append(argument)
    if waiting:
        raise EasyCoreError(f"{flag} needs a value")
    return value, rest
