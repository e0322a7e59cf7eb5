"""Object stores: how ``s3://`` and ``gs://`` are opened, how patient we are, and what their errors mean.

Everything is configured by the standard environment (``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL``, ``AWS_REGION`` or
``AWS_DEFAULT_REGION``, ``AWS_ACCESS_KEY_ID`` …, else the node's role), never by our configurations. The first contact
is impatient and all later ones are patient, so that a mistake ends in seconds while a store that restarts or is
overloaded in the middle of a run costs nothing but the wait.
"""

import functools
import os
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from easycore_ray.storage.errors import EasyCoreError

SCHEMES = ("s3://", "gs://")

# Attempts of a request, with pauses of random length up to 1, 2, 4, 8, 16, then 20 s between them: where
# connections are refused, two give up within a second, ten after 48 to 102 (measured), which outlasts the restart
# of a server and a store that says "slow down".
_FIRST_ATTEMPTS, _ATTEMPTS = 2, 10
# Seconds for a connection to come about, and without a single byte on it, before an attempt is given up. The
# SDK's own 3 s of silence are too short for a busy store, which puts large uploads together before it answers.
_CONNECT_SECONDS, _SILENT_SECONDS = 3.0, 10.0
_FIRST_SILENT_SECONDS = 3.0
# Google's client counts seconds of retrying in all, a quarter of an hour by default.
_FIRST_RETRY_SECONDS, _RETRY_SECONDS = 5, 60
# Small files go up in one request instead of three; mistakes are then seen on closing, which is as good. Older
# releases do not know the option.
_LATER_OPTIONS = {"allow_delayed_open": True} if int(pa.__version__.partition(".")[0]) >= 21 else {}


class _S3(pafs.S3FileSystem):
    """``S3FileSystem`` that other processes open anew, since its own pickle forgets the retries."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_s3, self.arguments


def open_store(scheme: str, bucket: str) -> pafs.FileSystem:
    """The filesystem of a bucket, patient with its store; opened once per process, safe in threads.

    Raises:
        EasyCoreError: for another scheme than s3 and gs, or an endpoint that is no address.
        OSError: the region of the bucket cannot be found out.
    """
    return _open(scheme, bucket, first=False)


def check_bucket(scheme: str, bucket: str) -> None:
    """Ask for a bucket once per process, and wait for some seconds at most.

    Raises:
        EasyCoreError: there is no such bucket.
        OSError: the store does not answer or refuses.
    """
    _reach(scheme, bucket, _endpoint(), _region(), os.environ.get("AWS_ACCESS_KEY_ID"))


@functools.cache
def _reach(scheme: str, bucket: str, *_environment: Any) -> None:
    if _open(scheme, bucket, first=True).get_file_info(bucket).type == pafs.FileType.NotFound:
        raise FileNotFoundError("AWS Error NO_SUCH_BUCKET")


def _open(scheme: str, bucket: str, *, first: bool) -> pafs.FileSystem:
    if scheme == "gs":
        return _open_gs(bucket, _FIRST_RETRY_SECONDS if first else _RETRY_SECONDS)
    if scheme != "s3":
        raise EasyCoreError(f"{scheme}://{bucket} cannot be opened; allowed are local paths, s3:// and gs://")
    endpoint = _endpoint()
    # Stores with an endpoint of their own take any region; on AWS the bucket knows where it lies.
    region = (_region() or "us-east-1") if endpoint else _region_of(bucket)
    patience = (_FIRST_ATTEMPTS, _FIRST_SILENT_SECONDS) if first else (_ATTEMPTS, _SILENT_SECONDS)
    return _open_s3(endpoint, region, *patience)


# Opening takes tens of milliseconds, and each client has connections and threads of its own.
@functools.cache
def _open_s3(endpoint: str | None, region: str, attempts: int, silent_seconds: float) -> pafs.FileSystem:
    parts = urlsplit(endpoint or "https://")
    opened = _S3(
        endpoint_override=(parts.netloc + parts.path).rstrip("/") or None,
        scheme=parts.scheme,
        region=region,
        connect_timeout=_CONNECT_SECONDS,
        request_timeout=silent_seconds,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=attempts),
        **_LATER_OPTIONS,
    )
    opened.arguments = (endpoint, region, attempts, silent_seconds)
    return opened


@functools.cache
def _open_gs(bucket: str, retry_seconds: int) -> pafs.FileSystem:
    return pafs.FileSystem.from_uri(f"gs://{bucket}?retry_limit_seconds={retry_seconds}")[0]


@functools.cache
def _region_of(bucket: str) -> str:
    """Where AWS keeps a bucket; the environment's region where the bucket cannot be queried."""
    try:
        return pafs.resolve_s3_region(bucket)
    except OSError:
        if _region() is None:
            raise
    return _region() or ""


def _region() -> str | None:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None


def _endpoint() -> str | None:
    """The store's address; None for AWS itself.

    Raises:
        EasyCoreError: it is no http(s) address.
    """
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        endpoint = os.environ.get(name)
        if endpoint:
            parts = urlsplit(endpoint)
            if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
                seen = "an address with credentials" if "@" in endpoint else repr(endpoint)
                raise EasyCoreError(f"{name} is {seen}; allowed is an address such as http://minio:9000")
            return endpoint
    return None


_REFUSED = ("ACCESS_DENIED", "403", "401", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "INVALID_CLIENT_TOKEN")
_AWAY = ("NETWORK_CONNECTION", "HTTP status 50", "SLOW_DOWN", "SERVICE_UNAVAILABLE", "INTERNAL_FAILURE", "THROTTLING")
_MOST_CHARACTERS = 300


def reason(path: str, error: OSError) -> str:
    """What a store's error means and what to do, in one sentence; the error itself if it is none of the usual."""
    text = str(error)
    bucket = path.partition("://")[2].partition("/")[0]
    name = _endpoint() or path.partition("://")[0]
    # "… AWS Error CODE (HTTP status 403) during HeadObject operation: …", where … may hold any key.
    code = text.partition("AWS Error ")[2].partition(" during ")[0]
    if "NO_SUCH_BUCKET" in code or text.startswith(f"Bucket '{bucket}' not found"):
        return f"{name} has no bucket {bucket}; create it or pass another"
    if any(word in code for word in _REFUSED):
        return (
            f"{name} refuses access to bucket {bucket}; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the "
            "node's role, and that they may list, read, write and delete there"
        )
    if any(word in code for word in _AWAY):
        why = text.partition("Details: ")[2].partition(" (Request ID")[0].strip().rstrip(".") or code
        return f"{name} does not answer ({why}); check AWS_ENDPOINT_URL and the network"
    if "Path does not exist" in text:
        return "it does not exist"
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"
