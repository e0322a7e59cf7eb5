"""Hashes of content: what artifacts are known by to those that are made from them."""

import hashlib
from collections.abc import Mapping
from typing import Any


def content_hash(*parts: bytes | str) -> str:
    """sha256 (hex) over the parts, each preceded by its length so that boundaries count."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def study_fingerprint(trials: Mapping[str, Mapping[str, Any]]) -> str:
    """Fingerprint of a study: of the records in its results file, by key."""
    return content_hash(*(f"{key} {record}" for key, record in sorted(trials.items())))
