"""Which fields of a configuration decide its result, and so belong to an artifact's identity."""

import dataclasses
from typing import Any

from easycore_ray.config.base import to_dict


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
