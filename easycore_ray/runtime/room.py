"""Room for a job on a cluster: waited for where nodes may come, refused where they never can.

A placement group asks for what a job will reserve, all at once, so that the autoscaler starts as many nodes as are
needed. It is given back as soon as it is granted: Ray Train, Tune and tasks reserve the same again, on nodes that are
there by then.
"""

import time
from collections import Counter
from collections.abc import Sequence

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from easycore_ray.runtime.autoscaler import Bundles, Outlook, Resources, look
from easycore_ray.runtime.console import duration, say
from easycore_ray.runtime.reservations import describe_holders
from easycore_ray.storage.errors import EasyCoreError

_LOOK_SECONDS = 2.0
_SAY_SECONDS = 30.0
# Looks in a row after which a demand is refused: one that can never be met, once the autoscaler has seen the nodes that
# it has just asked for; and one for which an autoscaler that tells neither its limits nor refusals starts nothing.
_LOOKS, _LOOKS_OF_SILENCE = 3, 30


def await_room(bundles: Bundles, label: str, hint: str) -> None:
    """Wait until the cluster has room for all of these at the same time; every half minute say for what.

    Args:
        bundles: resources of each worker.
        label: the job, for messages.
        hint: what to lower if there can never be room.

    Raises:
        EasyCoreError: no node that the cluster has or may add is large enough, or there are too few of them.
    """
    group = placement_group([dict(bundle) for bundle in bundles], strategy="PACK")
    try:
        _await_group(group, bundles, label, hint)
    finally:
        remove_placement_group(group)


def _await_group(group: PlacementGroup, bundles: Bundles, label: str, hint: str) -> None:
    awaited, looks = Awaited(label), 0
    wanted = describe_bundles(bundles)
    while not group.wait(_LOOK_SECONDS):
        outlook, nodes = look(), nodes_there()
        enough = looks_until_refused(outlook, bundles, nodes)
        looks = 0 if enough is None else looks + 1
        if enough is not None and looks >= enough:
            raise EasyCoreError(
                f"{label}: {wanted} {'is' if len(bundles) == 1 else 'are'} wanted at the same time, and the cluster "
                f"can never give that: it has {describe_nodes(nodes)}, and {_limits(outlook)}; lower {hint}"
            )
        awaited.see(bundles)


class Awaited:
    """Says every half minute what a job waits for.

    Args:
        label: the job.
    """

    def __init__(self, label: str) -> None:
        self._label, self._since, self._said, self._fewer = label, 0.0, 0.0, 0

    def see(self, bundles: Bundles, at_work: int = 0) -> None:
        """Take note of what is not granted at this moment, nothing if all is.

        Args:
            bundles: resources of each that waits.
            at_work: others of the same kind, which have theirs; that they are fewer than wanted is said once.
        """
        now = time.monotonic()
        if not bundles:
            self._since = 0.0
            return
        if not self._since:
            self._since, self._said, self._fewer = now, now, 0
        if now - self._said < _SAY_SECONDS or (at_work and at_work == self._fewer):
            return
        self._said, self._fewer = now, at_work
        meanwhile = f"{at_work} of {at_work + len(bundles)} workers at work, " if at_work else ""
        prospects = _prospects(look(), bundles, nodes_there())
        awaited = f"waiting for {describe_bundles(bundles)} ({duration(now - self._since)}; {prospects})"
        say(f"{self._label}: {meanwhile}{awaited}")


def looks_until_refused(outlook: Outlook, bundles: Bundles, nodes: Sequence[Resources]) -> int | None:
    """How many looks in a row a demand is waited for that finds this; None if it may be met.

    Args:
        outlook: what the autoscaler says.
        bundles: wanted at the same time.
        nodes: resources of those there are.
    """
    if outlook.refuses(bundles) or not outlook.fits(bundles, nodes):
        return _LOOKS
    if outlook.starting or outlook.holds(bundles, nodes):
        return None
    if not outlook.grows:
        return _LOOKS
    return None if outlook.types or outlook.tells_refusals else _LOOKS_OF_SILENCE


def nodes_there() -> list[Resources]:
    """CPUs, GPUs and other resources of every node that is alive."""
    return [{key: float(value) for key, value in node["Resources"].items()} for node in ray.nodes() if node["Alive"]]


def describe_bundles(bundles: Bundles) -> str:
    """For people: ``2 × {CPU: 14, GPU: 1}``."""
    counts = Counter(
        "{" + ", ".join(f"{key}: {value:g}" for key, value in bundle.items() if value) + "}" for bundle in bundles
    )
    return " and ".join(f"{count} × {text}" if count > 1 else text for text, count in counts.items())


def describe_nodes(nodes: Sequence[Resources]) -> str:
    """For people: how many nodes, and their CPUs and GPUs."""
    cpus, gpus = (sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU"))
    return f"{len(nodes)} node{'s' * (len(nodes) != 1)} with {cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")


def _limits(outlook: Outlook) -> str:
    if outlook.types:
        return "may add " + " and ".join(
            f"{kind.most} × {describe_bundles([kind.resources])}" for kind in outlook.types
        )
    return "its autoscaler has no nodes for it" if outlook.grows else "adds none"


def _prospects(outlook: Outlook, bundles: Bundles, nodes: Sequence[Resources]) -> str:
    if outlook.starting:
        return f"autoscaler: {outlook.starting} node{'s' * (outlook.starting > 1)} starting"
    if outlook.failures:
        return f"autoscaler: no node could be had: {outlook.failures[0]}"
    if outlook.holds(bundles, nodes):
        cpus = sum(node.get("CPU", 0.0) for node in nodes)
        return describe_holders(cpus) or f"the cluster has {describe_nodes(nodes)}, which others use"
    return "autoscaler: no node is starting yet"
