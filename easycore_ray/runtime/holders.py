"""Who holds a cluster's resources: placement groups, by the job that made them, and those that a job left behind.

Ray removes the groups of a job when it ends. One that was still pending then may be granted later, and nobody gives it
back: every other job waits for it.
"""

from dataclasses import dataclass

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from easycore_ray.runtime.autoscaler import total_of
from easycore_ray.storage.errors import EasyCoreError

# An id of a placement group ends with that of the job that made it, of so many hexadecimal digits.
_JOB_DIGITS = 8


@dataclass(frozen=True)
class Holder:
    """A job that has resources reserved."""

    job: str
    """Ray's id of the job, hexadecimal."""
    ended: bool
    resources: dict[str, float]
    """Of all its placement groups that were granted."""
    groups: tuple[str, ...]
    """Their ids."""


def holders() -> list[Holder]:
    """Other jobs of the cluster that have placement groups, by id."""
    own = ray.get_runtime_context().get_job_id()
    ended = {entry["JobID"]: entry["IsDead"] for entry in ray._private.state.jobs()}
    found: dict[str, list[tuple[str, dict[str, float]]]] = {}
    for name, entry in placement_group_table().items():
        job = name[-_JOB_DIGITS:]
        if entry["state"] == "CREATED" and job != own:
            found.setdefault(job, []).append((name, total_of(entry["bundles"].values())))
    return [
        Holder(job, ended.get(job, True), total_of(total for _, total in groups), tuple(name for name, _ in groups))
        for job, groups in sorted(found.items())
    ]


def describe_holders(cpus: float) -> str:
    """For people, who holds what of so many CPUs, and how to free what a job has left behind; empty if nobody does."""
    texts = []
    for holder in holders():
        text = f"{holder.resources.get('CPU', 0.0):g} of {cpus:g} CPUs are reserved by job {holder.job}"
        if holder.ended:
            text += (
                ', which has ended; free them: python -c "from easycore_ray.runtime.holders import free; '
                f"free('{holder.job}')\""
            )
        texts.append(text)
    return "; ".join(texts)


def free(job: str) -> None:
    """Give back what a job that has ended has left reserved, on the cluster of ``RAY_ADDRESS`` (``auto`` if not set).

    Args:
        job: Ray's id, as messages show it.

    Raises:
        EasyCoreError: it holds nothing, or it has not ended.
    """
    if not ray.is_initialized():
        ray.init(address="auto", log_to_driver=False)
    mine = next((holder for holder in holders() if holder.job == job), None)
    if mine is None:
        raise EasyCoreError(f"job {job} holds no reserved resources")
    if not mine.ended:
        raise EasyCoreError(f"job {job} has not ended; stop it first (ray job stop)")
    for name in mine.groups:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(name)))
