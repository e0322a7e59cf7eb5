"""Which fields of a configuration decide its result, and so belong to an artifact's identity."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from easycore_ray.config.base import to_dict
from easycore_ray.storage import paths
from easycore_ray.storage.artifact import Artifact, Claim, claim, identity


def identity_fields(config: Any) -> dict[str, Any]:
    """The fields that change what a job computes, as JSON content: each field says itself whether it does.

    Where and how a job runs is no part of it, and inputs enter by fingerprint, not by path. A field that this
    configuration does not use (milestones without ``multistep``, say) is left out.
    """
    content = to_dict(config)
    found = {}
    for spec in dataclasses.fields(config):
        counts = spec.metadata["identity"]
        if counts(config) if callable(counts) else counts:
            found[spec.name] = content[spec.name]
    return found


def artifact_identity(kind: str, config: Any, parents: Mapping[str, Artifact]) -> str:
    """Hash (hex) of what decides an artifact's content: ``identity_fields`` and the parents' fingerprints by role."""
    return identity(kind, identity_fields(config), {role: parent.fingerprint for role, parent in parents.items()})


def claim_artifact(kind: str, config: Any, parents: Mapping[str, Artifact]) -> Artifact | Claim:
    """Claim ``config.out`` for the artifact of a configuration; the finished one if it is there.

    Raises:
        EasyCoreError: see ``storage.artifact.claim``.
    """
    key = artifact_identity(kind, config, parents)
    return claim(paths.absolute(config.out), kind, key, overwrite=config.overwrite)
