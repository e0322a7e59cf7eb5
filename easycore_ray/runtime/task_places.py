"""Where tasks run, so that those of a node that is cut off are given out again.

Ray knows within half a minute that such a node is dead, yet a driver goes on waiting for the answers of its tasks until
their connections break: seven minutes, where a network ends without a word. So each task says at its start where it is.
"""

import uuid
from collections.abc import Iterable

import ray
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

# Of the cluster's own key-value store.
_NAMESPACE = b"easycore"


class Places:
    """The nodes of one driver's tasks."""

    def __init__(self) -> None:
        self._name, self._count = uuid.uuid4().hex, 0
        self._dead: set[str] = set()

    def new_key(self) -> str:
        """What a task is known by that is about to be submitted."""
        self._count += 1
        return f"{self._name}-{self._count}"

    def lost(self, keys: Iterable[str]) -> set[str]:
        """Those of the tasks that are not at work on a living node; none if no node has died since the last call.

        One that has not begun may wait for a process of a dead node. Given out again it may run twice.
        """
        dead = {node["NodeID"] for node in ray.nodes() if not node["Alive"]} - self._dead
        self._dead |= dead
        return {key for key in keys if _place_of(key) in dead | {None}} if dead else set()

    @staticmethod
    def forget(key: str) -> None:
        """A task is done."""
        _internal_kv_del(key.encode(), namespace=_NAMESPACE)


def note_place(key: str) -> None:
    """In a task: say on which node it runs."""
    _internal_kv_put(key.encode(), ray.get_runtime_context().get_node_id().encode(), namespace=_NAMESPACE)


def _place_of(key: str) -> str | None:
    found = _internal_kv_get(key.encode(), namespace=_NAMESPACE)
    return found.decode() if found else None
