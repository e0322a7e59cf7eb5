"""Placement groups: what a cluster's jobs have reserved, what they wait for, and what a job has left behind.

Ray removes the groups of a job when it ends. One that was still pending then may be granted later, and nobody gives it
back: every other job waits for it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from easycore_ray.runtime.autoscaler import Resources, total_of
from easycore_ray.storage.errors import EasyCoreError

# An id of a placement group ends with that of the job that made it, of so many hexadecimal digits.
_JOB_DIGITS = 8
_WAITING = ("PENDING", "RESCHEDULING")


class _Group(NamedTuple):
    name: str
    job: str
    state: str
    bundles: list[Resources]


def _groups() -> Iterator[_Group]:
    """All that are not removed."""
    for name, entry in placement_group_table().items():
        if entry["state"] != "REMOVED":
            yield _Group(name, name[-_JOB_DIGITS:], entry["state"], list(entry["bundles"].values()))


def _own_job() -> str:
    return str(ray.get_runtime_context().get_job_id())


def reservations() -> set[str]:
    """Ids of the placement groups this job has: resources reserved for its workers, or asked for."""
    return {group.name for group in _groups() if group.job == _own_job()}


def pending_bundles() -> list[Resources]:
    """What the placement groups of this job reserve that are not granted, or not any more."""
    waiting = [group for group in _groups() if group.job == _own_job() and group.state in _WAITING]
    return [bundle for group in waiting for bundle in group.bundles]


def give_back(names: Iterable[str]) -> None:
    """Remove placement groups whose owner is dead; Ray keeps them, and the resources, until the job ends."""
    for name in names:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(name)))


@dataclass(frozen=True)
class Holder:
    """A job that has resources reserved."""

    job: str
    """Ray's id of the job, hexadecimal."""
    ended: bool
    resources: Resources
    """Of all its placement groups that were granted."""
    groups: tuple[str, ...]
    """Their ids."""


def holders() -> list[Holder]:
    """Other jobs of the cluster that have placement groups, by id."""
    ended = {entry["JobID"]: entry["IsDead"] for entry in ray._private.state.jobs()}
    found: dict[str, list[_Group]] = {}
    for group in _groups():
        if group.state == "CREATED" and group.job != _own_job():
            found.setdefault(group.job, []).append(group)
    return [
        Holder(
            job,
            ended.get(job, True),
            total_of(bundle for group in groups for bundle in group.bundles),
            tuple(group.name for group in groups),
        )
        for job, groups in sorted(found.items())
    ]


def describe_holders(cpus: float) -> str:
    """For people, who holds what of so many CPUs, and how to free what a job has left behind; empty if nobody does."""
    texts = []
    for holder in holders():
        text = f"{holder.resources.get('CPU', 0.0):g} of {cpus:g} CPUs are reserved by job {holder.job}"
        if holder.ended:
            text += (
                ', which has ended; free them: python -c "from easycore_ray.runtime.reservations import free; '
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
    give_back(mine.groups)
