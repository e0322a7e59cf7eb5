"""MLflow, and nothing else imports it: one run per trial, children of their sweep's run.

Takes what a job knows of a trial (parameters, metrics per epoch, texts) and gives MLflow runs. The one
decision behind this module: tracking may not stop or slow a run. Calls return at once; importing MLflow,
setting up its database and every request happen in a thread behind a journal in ``<out>/tracking``
(``easycore_ray.journal``), and what an absent server missed is sent by the next job with the same ``out``.

Sending an event twice does no harm: runs are found by the tag ``easycore.trial_key``, and a point that a
run already holds is left out. With the journal's at-least-once that makes exactly once.
"""

import contextlib
import functools
import getpass
import hashlib
import math
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from easycore_ray.runtime.console import say
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import git_commit
from easycore_ray.tracking.journal import Courier, Event, Refused, lock

__all__ = ["TRIAL_KEY", "Tracker", "default_uri", "ui_command"]

TRIAL_KEY = "easycore.trial_key"
NON_FINITE = "easycore.non_finite_metrics"
CHANGED = "easycore.changed_params"

# MLflow allows more in most stores; these are the smallest limits of any (Databricks).
_MAX_PARAM_CHARS, _MAX_TAG_CHARS, _PARAMS_PER_BATCH = 500, 5000, 100
# Errors of the event itself. All others mean that the store is away.
_REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST"}
# Set before MLflow is imported, unless the user has: no calls home, no minutes of retries inside one call
# (the courier has its own), no chatter between a job's own lines.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def ui_command(uri: str) -> str:
    """The line that shows the runs: a command to type, or a server's address."""
    if uri.startswith(("http://", "https://")):
        return _without_credentials(uri)
    # The command of this environment, whether or not it has been activated.
    command = os.path.relpath(Path(sys.executable).with_name("mlflow"))
    command = "mlflow" if shutil.which("mlflow") or command.startswith("..") else command
    return f"{shlex.quote(command)} ui --backend-store-uri {shlex.quote(uri)} --host 127.0.0.1 --port 5000"


def default_uri(out: str) -> str:
    """The store a job uses if none is named: ``mlflow.db`` in its folder; ``none`` for a remote folder, said in a line.

    An object store cannot hold a database, and one on this machine would be lost with the driver's node.
    """
    if not paths.is_remote(out):
        return f"sqlite:///{out}/mlflow.db"
    say(f"tracking is off: {out} cannot hold a database; pass --tracking-uri to track this run")
    return "none"


class Tracker:
    """Sends a job's runs to MLflow; no method raises, and none but ``close`` waits.

    Made by ``Tracker.open``, one per job, in the driver or controller process. Leaving a ``with`` block
    closes it. ``uri`` is the store, None if nothing is tracked.
    """

    def __init__(self, uri: str | None, courier: Courier | None) -> None:
        self.uri = uri
        self._courier = courier

    @classmethod
    def open(cls, uri: str | None, *, out: str, experiment: str) -> Self:
        """A tracker for the job that writes to ``out``; what an earlier job could not send goes first.

        Open it after ``manifest.claim``, which wants ``out`` empty: the journal is kept there.

        Args:
            uri: MLflow server or store; None for ``mlflow.db`` in ``out`` (local folders only: an object
                store cannot hold a database, so nothing is tracked then); ``none`` to track nothing.
            out: absolute folder of the job's result.
            experiment: MLflow experiment, made if missing.
        """
        artifacts = Path(out, "mlflow_artifacts").as_uri() if uri is None and not paths.is_remote(out) else None
        uri = uri or default_uri(out)
        if uri == "none":
            return cls(None, None)
        folder = _journal_folder(out)
        store = _Store(uri, experiment=experiment, artifacts=artifacts, lock=folder / "lock")
        shown = _without_credentials(uri)
        return cls(uri, Courier(folder, store.deliver, destination=shown, complete=_with_source))

    def run(
        self,
        trial_key: str,
        *,
        name: str,
        parent_key: str | None = None,
        params: Mapping[str, Any],
        tags: Mapping[str, Any],
    ) -> None:
        """Start the run of this key, or go on with it if the experiment has one.

        Args:
            trial_key: identifies the run in its experiment for ever: make it from identity and nonce.
            name: shown in the UI.
            parent_key: key of the run this one is a child of, started before.
            params: nested mappings become ``outer.inner``; values are cut at 500 characters. Written once:
                what differs when a run goes on is named in the tag ``easycore.changed_params``.
            tags: further tags, e.g. fingerprints. Source, commit and user are added.
        """
        with self._quietly("run", trial_key):
            cut = {key: str(value)[:_MAX_TAG_CHARS] for key, value in tags.items()}
            self._put("run", trial_key, name=name, parent=parent_key, params=dict(_flat(params)), tags=cut)

    def log(self, trial_key: str, metrics: Mapping[str, float | None], step: int) -> None:
        """Add a point to each metric, in one request.

        A metric that is None was not measured; one that is not finite is left out and counted in a tag.
        """
        with self._quietly("log", trial_key):
            values = {name: float(value) for name, value in metrics.items() if value is not None}
            finite = {name: value for name, value in values.items() if math.isfinite(value)}
            self._put("log", trial_key, step=int(step), metrics=finite, dropped=len(values) - len(finite))

    def artifact(self, trial_key: str, name: str, *, text: str = "", path: str | None = None) -> None:
        """Attach a text, or a file (read when it is sent), under a name such as ``report/report.html``."""
        with self._quietly("artifact", trial_key):
            self._put("artifact", trial_key, name=name, text=text, path=path)

    def finish(self, trial_key: str, status: str = "FINISHED") -> None:
        """End the run: FINISHED, FAILED or KILLED."""
        with self._quietly("finish", trial_key):
            self._put("finish", trial_key, status=status)

    def close(self, timeout: float = 30.0) -> None:
        """Send what is left, for at most ``timeout`` seconds; what then remains stays in the journal."""
        if self._courier is not None:
            self._courier.close(timeout)

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune pickles its callbacks, and all they hold, into a file that nobody reads; a copy tracks nothing.
        return type(self), (self.uri, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _put(self, event: str, trial_key: str, **content: Any) -> None:
        if self._courier is not None:
            now = int(time.time() * 1000)
            self._courier.put({"event": event, "trial": trial_key, "time": now, **content})

    @contextlib.contextmanager
    def _quietly(self, event: str, trial_key: str) -> Iterator[None]:
        """Turn a mistake in what is to be tracked into a line."""
        try:
            yield
        except Exception as error:
            say(f"tracking: a {event} of {trial_key} is left out: {error}")


class _Store:
    """An MLflow experiment, opened with the first event and again after every failure."""

    def __init__(self, uri: str, *, experiment: str, artifacts: str | None, lock: Path) -> None:
        self._uri, self._experiment, self._artifacts, self._lock = uri, experiment, artifacts, lock
        self._runs: _Runs | None = None

    def deliver(self, event: Event) -> None:
        """Bring one event to MLflow; doing so again changes nothing.

        Raises:
            Refused: the event is at fault.
            ConnectionError: the store is away.
        """
        try:
            if self._runs is None:
                self._runs = self._open()
        except Exception as error:
            raise ConnectionError(_brief(error)) from error
        try:
            self._runs.apply(event)
        except Exception as error:
            if _is_refusal(error, event):
                raise Refused(_brief(error)) from error
            self._runs = None
            raise ConnectionError(_brief(error)) from error

    def _open(self) -> "_Runs":
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        # Two processes that set up the same fresh database, or make the same experiment, break each other.
        with _one_process(self._lock):
            client = MlflowClient(tracking_uri=self._uri)
            found = client.get_experiment_by_name(self._experiment)
            if found is None:
                return _Runs(client, client.create_experiment(self._experiment, self._artifacts), self._lock)
        if found.lifecycle_stage != "active":
            raise ConnectionError(f"experiment {self._experiment} is deleted; restore it or name another")
        return _Runs(client, found.experiment_id, self._lock)


class _Runs:
    """The runs of one experiment. Raises what MLflow raises."""

    def __init__(self, client: Any, experiment_id: str, lock: Path) -> None:
        self._client, self._experiment_id, self._lock = client, experiment_id, lock
        self._ids: dict[str, str] = {}
        # Points of runs that were begun earlier, by run and metric: they are not to be added again.
        self._held: dict[str, dict[str, set[tuple[int, float]]]] = {}

    def apply(self, event: Event) -> None:
        """Do what one event says."""
        actions = {"run": self._run, "log": self._log, "artifact": self._artifact, "finish": self._finish}
        actions[event["event"]](event)

    def _run(self, event: Event) -> None:
        key, params = event["trial"], event["params"]
        tags = {**event["tags"], TRIAL_KEY: key, "mlflow.runName": event["name"]}
        if event["parent"]:
            tags["mlflow.parentRunId"] = self._id(event["parent"])
        with _one_process(self._lock):
            found = self._find(key)
            self._ids[key] = found or self._create(tags, event["time"])
        if found:
            self._client.update_run(found, status="RUNNING")
            params, changes = _new_params(params, self._client.get_run(found).data.params)
            self._batch(found, tags={**tags, **changes})
        entries = list(params.items())
        for first in range(0, len(entries), _PARAMS_PER_BATCH):
            self._batch(self._ids[key], params=dict(entries[first : first + _PARAMS_PER_BATCH]))

    def _log(self, event: Event) -> None:
        run_id, step = self._id(event["trial"]), event["step"]
        points = event["metrics"].items()
        new = {name: value for name, value in points if (step, value) not in self._points(run_id, name)}
        tags = {}
        if event["dropped"]:
            before = int(self._client.get_run(run_id).data.tags.get(NON_FINITE, "0"))
            tags[NON_FINITE] = str(before + event["dropped"])
        self._batch(run_id, metrics=new, step=step, when=event["time"], tags=tags)

    def _artifact(self, event: Event) -> None:
        run_id = self._id(event["trial"])
        content = paths.read_bytes(event["path"]) if event["path"] else event["text"].encode()
        folder, _, name = event["name"].rpartition("/")
        with tempfile.TemporaryDirectory() as temporary:
            local = Path(temporary, name)
            local.write_bytes(content)
            self._client.log_artifact(run_id, str(local), folder or None)

    def _finish(self, event: Event) -> None:
        self._client.set_terminated(self._id(event["trial"]), event["status"], event["time"])

    def _id(self, trial_key: str) -> str:
        """Id of the run of a key; a bare run is made where its own was deleted."""
        if trial_key not in self._ids:
            self._ids[trial_key] = self._find(trial_key) or self._create({TRIAL_KEY: trial_key}, None)
        return self._ids[trial_key]

    def _find(self, trial_key: str) -> str | None:
        quote = '"' if "'" in trial_key else "'"
        wanted = f"tags.`{TRIAL_KEY}` = {quote}{trial_key}{quote}"
        oldest = ["attributes.start_time ASC"]
        found = self._client.search_runs([self._experiment_id], wanted, order_by=oldest, max_results=1)
        if not found:
            return None
        self._held.setdefault(found[0].info.run_id, {})
        return found[0].info.run_id

    def _create(self, tags: Mapping[str, str], when: int | None) -> str:
        run = self._client.create_run(
            self._experiment_id, start_time=when, tags=dict(tags), run_name=tags.get("mlflow.runName")
        )
        return run.info.run_id

    def _points(self, run_id: str, metric: str) -> set[tuple[int, float]]:
        """(step, value) of a metric as the run held them when it was found; none for a run made here."""
        held = self._held.get(run_id)
        if held is None:
            return set()
        if metric not in held:
            history = self._client.get_metric_history(run_id, metric)
            held[metric] = {(point.step, point.value) for point in history}
        return held[metric]

    def _batch(
        self,
        run_id: str,
        *,
        metrics: Mapping[str, float] | None = None,
        step: int = 0,
        when: int = 0,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """One request with everything in it; none if there is nothing."""
        from mlflow.entities import Metric, Param, RunTag

        if metrics or params or tags:
            self._client.log_batch(
                run_id,
                metrics=[Metric(name, value, when, step) for name, value in (metrics or {}).items()],
                params=[Param(name, value) for name, value in (params or {}).items()],
                tags=[RunTag(name, value) for name, value in (tags or {}).items()],
            )


@contextlib.contextmanager
def _one_process(path: Path) -> Iterator[None]:
    """Hold the lock of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        lock(handle)
        yield


def _new_params(params: Mapping[str, str], held: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Parameters a run does not have yet, and a tag that names those it has with another value."""
    changed = [key for key, value in params.items() if held.get(key, value) != value]
    text = "; ".join(f"{key}: {held[key]} → {params[key]}" for key in changed)
    new = {key: value for key, value in params.items() if key not in held}
    return new, {CHANGED: text[:_MAX_TAG_CHARS]} if changed else {}


def _flat(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in params.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            yield f"{prefix}{key}", text[:_MAX_PARAM_CHARS]


def _with_source(event: Event) -> Event:
    """The event, with the tags that MLflow's own fluent interface would add to a run."""
    return {**event, "tags": {**_source_tags(), **event["tags"]}} if event["event"] == "run" else event


@functools.cache
def _source_tags() -> dict[str, str]:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # containers run under ids without a name
        user = "unknown"
    tags = {"mlflow.source.name": Path(sys.argv[0]).name or "python", "mlflow.user": user}
    commit = git_commit()
    return {**tags, "mlflow.source.git.commit": commit} if commit else tags


def _journal_folder(out: str) -> Path:
    """``<out>/tracking``; for a remote ``out`` a folder of this machine: object stores cannot append."""
    if not paths.is_remote(out):
        return Path(out, "tracking")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "easycore_ray" / "tracking" / hashlib.sha256(out.encode()).hexdigest()[:16]


def _is_refusal(error: Exception, event: Event) -> bool:
    """True if the event is at fault, False if the way to the store is."""
    code = getattr(error, "error_code", None)
    if code is not None:
        return code in _REFUSALS
    if event.get("event") == "artifact":
        return True  # its file or the artifact storage is at fault: no reason to hold up the metrics behind
    return isinstance(error, KeyError | TypeError | ValueError) and not isinstance(error, OSError)


def _brief(error: Exception) -> str:
    """An error in a few words; MLflow's own repeat the whole request."""
    for cause in ("Connection refused", "timed out", "Name or service not known", "name resolution"):
        if cause in str(error):
            return cause.lower()
    text = (str(error).splitlines() or [""])[0] or type(error).__name__
    return text if len(text) <= 160 else f"{text[:160]}…"


def _without_credentials(uri: str) -> str:
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else uri
