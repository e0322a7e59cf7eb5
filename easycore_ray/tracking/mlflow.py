"""MLflow runs that follow the artifacts: one run per trial, children of their sweep's run.

The manifests and training states are the record. While a job works, its metrics are sent as best one can: a
thread takes them from a bounded queue, and what does not fit or cannot be sent is dropped. At the end of a job, and
whenever a command with the same ``--out`` runs, each run is compared with its description and what is missing is
added. Nothing else imports MLflow.
"""

import contextlib
import fcntl
import functools
import getpass
import hashlib
import json
import math
import os
import queue
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from easycore_ray.config.base import TrackingConfig
from easycore_ray.runtime.console import say
from easycore_ray.storage import paths
from easycore_ray.storage.provenance import git_commit, submitted_job
from easycore_ray.tracking.addresses import ADDRESS, default_uri, without_credentials
from easycore_ray.tracking.runs import TrackedData, TrackedModel, TrackedRun

__all__ = ["TRIAL_KEY", "Tracker", "reconcile", "track", "track_if_named"]

TRIAL_KEY = "easycore.trial_key"
NON_FINITE = "easycore.non_finite_metrics"
CHANGED = "easycore.changed_params"
DIGEST = "easycore.description"

# MLflow allows more in most stores; these are the smallest limits of any (Databricks).
_MAX_PARAM_CHARS, _MAX_TAG_CHARS, _PARAMS_PER_BATCH, _METRICS_PER_BATCH = 500, 5000, 100, 800
_METRIC_NAME = re.compile(r"[\w\-. :/]{1,250}")
# Errors of the request itself. All others mean that the store is away.
_REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST"}
_QUEUE_SIZE = 1000
# After a failure live metrics are dropped for this long (s).
_PAUSE = 30.0
# How long the end of a job waits for a run to be brought in line (s). Setting up a fresh database takes 10.
_SERVER_SECONDS, _DATABASE_SECONDS = 10.0, 90.0
# Set before MLflow is imported, unless the user has: no calls home, no minutes of retries, no chatter.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class Tracker:
    """Sends descriptions of runs to MLflow from a thread of this process.

    Args:
        uri: MLflow server or store; ``none`` to track nothing.
        experiment: MLflow experiment, made if missing.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        self.uri = None if uri == "none" else uri
        self._store = _Store(uri, experiment)
        self._shown = without_credentials(uri)
        self._queue: queue.Queue[tuple[int, TrackedRun] | None] = queue.Queue(_QUEUE_SIZE)
        self._closing = threading.Event()
        self._final: Sequence[TrackedRun] = ()
        self._missing: set[str] = set()
        self._problem, self._retry_at, self._moved = "", 0.0, 0.0
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)

    def send(self, run: TrackedRun) -> None:
        """Send a part of a run as best one can: returns at once, never raises; dropped if the queue is full."""
        if self.uri is None or self._closing.is_set():
            return
        self._start()
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait((_milliseconds(), run))

    def close(self, runs: Sequence[TrackedRun] = ()) -> None:
        """Bring runs in line with their descriptions and end.

        Returns once this is done, the store does not answer, or nothing has moved for 10 s (90 s for a database);
        one line says what is missing then.
        """
        if self.uri is None or self._closing.is_set():
            return
        self._final, self._missing = runs, {run.key for run in runs}
        self._moved = time.monotonic()
        self._closing.set()
        if runs:
            self._start()
        with contextlib.suppress(queue.Full):  # the thread looks at _closing after each item
            self._queue.put_nowait(None)
        patience = _SERVER_SECONDS if self.uri.startswith(("http://", "https://")) else _DATABASE_SECONDS
        while self._thread.is_alive() and time.monotonic() - self._moved < patience:
            self._thread.join(0.1)
        if self._missing:
            reason = self._problem or "no answer"
            say(
                f"tracking: {len(self._missing)} of {len(runs)} runs are not up to date at {self._shown} ({reason}); "
                "the next command with this --out brings them"
            )

    def _start(self) -> None:
        if self._thread.ident is None:
            self._thread.start()

    def _work(self) -> None:
        """Send what is queued, then the descriptions ``close`` was given (thread)."""
        while (item := self._next()) is not None:
            when, run = item
            if time.monotonic() >= self._retry_at:
                self._reconcile(run, when)
        for run in self._final:
            if self._reconcile(run, _milliseconds()):
                self._missing.discard(run.key)
            elif self._retry_at:
                return

    def _next(self) -> tuple[int, TrackedRun] | None:
        try:
            return self._queue.get(block=not self._closing.is_set())
        except queue.Empty:
            return None

    def _reconcile(self, run: TrackedRun, when: int) -> bool:
        """True if the run is in line; failures are noted, and said once."""
        try:
            self._store.reconcile(run, when)
        except Exception as error:
            self._problem = _brief(error)
            if _is_refusal(error):
                say(f"tracking: {run.name} is left out, {self._shown} refuses it: {self._problem}")
                return False
            if not self._retry_at and not self._closing.is_set():
                say(f"tracking: {self._shown} is away ({self._problem}); the run goes on")
            self._retry_at = time.monotonic() + _PAUSE
            return False
        self._retry_at, self._moved = 0.0, time.monotonic()
        return True


@contextlib.contextmanager
def track(config: TrackingConfig, out: str, describe: Callable[[str], Sequence[TrackedRun]]) -> Iterator[Tracker]:
    """Track a job: live while the body works, and in line with the artifacts when it ends.

    Args:
        config: the store and the experiment.
        out: absolute folder of the job's result, which exists.
        describe: gives the runs as the artifacts have them; called at the end with the status of what is not
            finished: FINISHED, FAILED, or KILLED after Ctrl-C.
    """
    tracker = Tracker(config.tracking_uri or default_uri(out), config.experiment)
    status = "FINISHED"
    try:
        yield tracker
    except BaseException as error:
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        raise
    finally:
        runs: Sequence[TrackedRun] = ()
        try:
            runs = describe(status) if tracker.uri is not None else ()
        except Exception as error:
            say(f"tracking: runs of {out} cannot be described: {_brief(error)}")
        tracker.close(runs)


def track_if_named(config: TrackingConfig, out: str, describe: Callable[[str], TrackedRun]) -> None:
    """Bring the run of a short job in line with its artifact, which is finished.

    Only where the user has named a store, in the configuration or as ``MLFLOW_TRACKING_URI``: setting up a database of
    its own would take longer than the job.
    """
    if (config.tracking_uri or os.environ.get(ADDRESS) or "none") != "none":
        reconcile(config, out, lambda status: [describe(status)])


def reconcile(config: TrackingConfig, out: str, describe: Callable[[str], Sequence[TrackedRun]]) -> None:
    """Bring the runs of a finished artifact in line with it; see ``track``."""
    with track(config, out, describe):
        pass


@dataclass
class _Held:
    """What an MLflow run is known to hold."""

    run_id: str
    status: str
    params: dict[str, str]
    tags: dict[str, str]
    points: dict[str, set[tuple[int, float]]] = field(default_factory=dict)
    data: set[str] = field(default_factory=set)
    """Digests of the datasets it has used."""
    found: bool = True
    """Made by another process, so that points are asked for before any is added."""


class _Store:
    """The runs of one MLflow experiment. Raises what MLflow raises; the next call begins anew."""

    def __init__(self, uri: str, experiment: str) -> None:
        self._uri, self._experiment = uri, experiment
        self._client: Any = None
        self._experiment_id = ""
        self._held: dict[str, _Held] = {}

    def reconcile(self, run: TrackedRun, when: int) -> None:
        """Add to the run of this key what it does not hold; doing so again changes nothing.

        Args:
            run: the description.
            when: time of new points, in milliseconds since 1970.
        """
        if self._client is None:
            self._open()
        known = run.key in self._held
        try:
            self._apply(run, when)
        except Exception as error:
            self._held.clear()
            if not (known and _is_refusal(error)):
                raise
            self._apply(run, when)  # someone has deleted the run meanwhile

    def _open(self) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        # Two processes that set up the same fresh database, or make the same experiment, break each other.
        with _one_process(self._uri):
            client = MlflowClient(tracking_uri=self._uri)
            experiment = client.get_experiment_by_name(self._experiment)
            if experiment is not None and experiment.lifecycle_stage != "active":
                raise ConnectionError(f"experiment {self._experiment} is deleted; restore it or name another")
            if experiment is None:
                self._experiment_id = client.create_experiment(self._experiment, _artifact_root(self._uri))
            else:
                self._experiment_id = experiment.experiment_id
        self._client = client

    def _apply(self, run: TrackedRun, when: int) -> None:
        held = self._held.get(run.key) or self._find_or_create(run, when)
        digest = hashlib.sha256(json.dumps(asdict(replace(run, parent=None)), default=str).encode()).hexdigest()[:16]
        if run.status != "RUNNING" and (held.tags.get(DIGEST), held.status) == (digest, run.status):
            return
        params, tags = _new_params(dict(_flat(run.params)), held.params)
        points, dropped = _finite_points(run)
        new = [point for point in points if point[1:] not in self._points(held, point[0])]
        ended, attaches = run.status != "RUNNING", bool(run.files or run.model)
        tags |= _cut_tags(run.tags) | ({NON_FINITE: str(dropped)} if ended and dropped else {})
        self._add_data(held, [data for data in run.data if _digest(data) not in held.data])
        # It says that all is there, so it comes last.
        last = {DIGEST: digest} if ended else {}
        self._log(held, when, new, params, tags if attaches else tags | last)
        left_out = [name for name, path in run.files.items() if not self._attach(held, name, path)]
        if run.model is not None and ended and not self._keep_model(held, run.model):
            left_out.append(run.model.name)
        if attaches and not left_out:  # else the next command tries again
            self._log(held, when, tags=last)
        self._set_status(held, run.status, when)

    def _find_or_create(self, run: TrackedRun, when: int) -> _Held:
        parent = self._held.get(run.parent.key) or self._find_or_create(run.parent, when) if run.parent else None
        with _one_process(self._uri):
            held = self._find(run.key)
            if held is None:
                tags = _source_tags() | _cut_tags(run.tags) | {TRIAL_KEY: run.key, "mlflow.runName": run.name}
                if parent:
                    tags["mlflow.parentRunId"] = parent.run_id
                made = self._client.create_run(self._experiment_id, when, tags, run.name)
                held = _Held(made.info.run_id, "RUNNING", {}, tags, found=False)
        self._held[run.key] = held
        return held

    def _find(self, key: str) -> _Held | None:
        quote = '"' if "'" in key else "'"
        wanted = f"tags.`{TRIAL_KEY}` = {quote}{key}{quote}"
        oldest = ["attributes.start_time ASC"]
        found = self._client.search_runs([self._experiment_id], wanted, order_by=oldest, max_results=1)
        if not found:
            return None
        info, data, used = found[0].info, found[0].data, found[0].inputs.dataset_inputs
        return _Held(
            info.run_id, info.status, dict(data.params), dict(data.tags), data={entry.dataset.digest for entry in used}
        )

    def _points(self, held: _Held, metric: str) -> set[tuple[int, float]]:
        """(step, value) of a metric as the run holds them."""
        if metric not in held.points:
            history = self._client.get_metric_history(held.run_id, metric) if held.found else []
            held.points[metric] = {(point.step, point.value) for point in history}
        return held.points[metric]

    def _attach(self, held: _Held, name: str, path: str) -> bool:
        """Attach a file that is not there yet; False for one that cannot be read or stored, which is named."""
        folder, _, base = name.rpartition("/")
        try:
            if name in {entry.path for entry in self._client.list_artifacts(held.run_id, folder or None)}:
                return True
            with tempfile.TemporaryDirectory() as temporary:
                Path(temporary, base).write_bytes(paths.read_bytes(path))
                self._client.log_artifact(held.run_id, str(Path(temporary, base)), folder or None)
        except Exception as error:
            say(f"tracking: {name} is left out: {_brief(error)}")
            return False
        return True

    def _keep_model(self, held: _Held, model: TrackedModel) -> bool:
        """Keep what a run has trained; False for what cannot be kept, which is named."""
        from easycore_ray.tracking import models

        try:
            models.keep_model(self._client, self._experiment_id, held.run_id, model)
        except Exception as error:
            say(f"tracking: the model {model.name} is left out: {_brief(error)}")
            return False
        return True

    def _add_data(self, held: _Held, used: Sequence[TrackedData]) -> None:
        """List what a run has used."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        if not used:
            return
        entries = []
        for data in used:
            scheme = data.source.partition("://")[0] if "://" in data.source else "local"
            source, profile = json.dumps({"uri": data.source}), json.dumps(data.profile)
            entry = Dataset(data.name, _digest(data), scheme, source, profile=profile)
            entries.append(DatasetInput(entry, [InputTag("mlflow.data.context", data.context)]))
        self._client.log_inputs(held.run_id, entries)
        held.data |= {_digest(data) for data in used}

    def _set_status(self, held: _Held, status: str, when: int) -> None:
        if status == held.status:
            return
        if status == "RUNNING":
            self._client.update_run(held.run_id, status="RUNNING")
        else:
            self._client.set_terminated(held.run_id, status, when)
        held.status = status

    def _log(
        self,
        held: _Held,
        when: int,
        points: Sequence[tuple[str, int, float]] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Add points, parameters and tags, all in one request if they are not too many."""
        entries = list((params or {}).items())
        new = {name: value for name, value in (tags or {}).items() if held.tags.get(name) != value}
        while points or entries or new:
            now, points = points[:_METRICS_PER_BATCH], points[_METRICS_PER_BATCH:]
            some, entries = dict(entries[:_PARAMS_PER_BATCH]), entries[_PARAMS_PER_BATCH:]
            whole = not (points or entries)
            self._batch(held, when, now, some, new if whole else {})
            new = {} if whole else new

    def _batch(
        self,
        held: _Held,
        when: int,
        points: Sequence[tuple[str, int, float]],
        params: Mapping[str, str],
        tags: Mapping[str, str],
    ) -> None:
        """One request."""
        from mlflow.entities import Metric, Param, RunTag

        self._client.log_batch(
            held.run_id,
            metrics=[Metric(name, value, when, step) for name, step, value in points],
            params=[Param(name, value) for name, value in params.items()],
            tags=[RunTag(name, value) for name, value in tags.items()],
        )
        for name, step, value in points:
            held.points.setdefault(name, set()).add((step, value))
        held.params |= params
        held.tags |= tags


@contextlib.contextmanager
def _one_process(uri: str) -> Iterator[None]:
    """Hold this machine's lock of a database; servers have their own."""
    if not uri.startswith("sqlite:"):
        yield
        return
    name = hashlib.sha256(f"{os.getuid()} {uri}".encode()).hexdigest()[:16]
    with Path(tempfile.gettempdir(), f"easycore-mlflow-{name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _artifact_root(uri: str) -> str | None:
    """Beside a database; None for a server, which knows its own."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(unquote(uri.removeprefix("sqlite:///"))).resolve().with_name("mlflow_artifacts").as_uri()


def _digest(data: TrackedData) -> str:
    """As long as MLflow allows."""
    return data.digest[:36]


def _finite_points(run: TrackedRun) -> tuple[list[tuple[str, int, float]], int]:
    """(metric, step, value) of what MLflow can store, and the number of values that are not finite."""
    found, dropped = [], 0
    for step, metrics in sorted(run.points.items()):
        for name, value in metrics.items():
            if value is None:
                continue
            if not isinstance(value, int | float) or not _METRIC_NAME.fullmatch(name):
                say(f"tracking: metric {name} of {run.name} is left out: {value!r} cannot be stored under this name")
            elif math.isfinite(value):
                found.append((name, int(step), float(value)))
            else:
                dropped += 1
    return found, dropped


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


def _cut_tags(tags: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value)[:_MAX_TAG_CHARS] for key, value in tags.items()}


@functools.cache
def _source_tags() -> dict[str, str]:
    """The tags that MLflow's own fluent interface would add to a run."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # containers run under ids without a name
        user = "unknown"
    tags = {"mlflow.source.name": Path(sys.argv[0]).name or "python", "mlflow.user": user}
    tags |= {f"easycore.{name}": value for name, value in submitted_job().items()}
    commit = git_commit()
    return {**tags, "mlflow.source.git.commit": commit} if commit else tags


def _milliseconds() -> int:
    return int(time.time() * 1000)


def _is_refusal(error: Exception) -> bool:
    """True if the request is at fault, False if the way to the store is."""
    code = getattr(error, "error_code", None)
    if code is not None:
        return code in _REFUSALS
    return isinstance(error, KeyError | TypeError | ValueError) and not isinstance(error, OSError)


def _brief(error: Exception) -> str:
    """An error in a few words; MLflow's own repeat the whole request."""
    for cause in ("Connection refused", "timed out", "Name or service not known", "name resolution"):
        if cause in str(error):
            return cause.lower()
    text = (str(error).splitlines() or [""])[0] or type(error).__name__
    return text if len(text) <= 160 else f"{text[:160]}…"
