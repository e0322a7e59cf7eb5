"""Which fields of a configuration decide its result, and so belong to an artifact's identity."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from easycore_ray.config.base import to_dict
from easycore_ray.storage.artifact import Artifact, identity


def identity_fields(config: Any) -> dict[str, Any]:
    """The fields that change what a job computes, as JSON content: each field says itself whether it does.

    Whatever changes a bit of the result belongs to it, so of the resources the number of training workers, their
    threads and whether they compute on a GPU. Where a job runs is no part of it, and inputs enter by fingerprint, not
    by path. A field that this configuration does not use (milestones without ``multistep``, say) is left out.
    """
    content = to_dict(config)
    found = {}
    for spec in dataclasses.fields(config):
        counts, held = spec.metadata["identity"], spec.metadata["held"]
        if counts(config) if callable(counts) else counts:
            found[spec.name] = content[spec.name] if held is None else held(config)
    return found


def artifact_identity(kind: str, config: Any, parents: Mapping[str, Artifact], **more: Any) -> str:
    """Hash (hex) of what decides an artifact's content: ``identity_fields`` and the parents' fingerprints by role.

    Args:
        kind: of the artifact.
        config: how it is made.
        parents: what it is made from, by role.
        more: what follows from configuration and parents together, as JSON content.
    """
    fields = identity_fields(config) | more
    return identity(kind, fields, {role: parent.fingerprint for role, parent in parents.items()})
