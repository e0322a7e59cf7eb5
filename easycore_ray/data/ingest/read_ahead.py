"""Reading many files one after the other, with the next ones on their way."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def map_ahead(function: Callable[[_Item], _Result], items: Iterable[_Item], ahead: int) -> Iterator[_Result]:
    """``function(item)`` of every item, in order; at most ``ahead`` results are made and not yet taken."""
    waiting: deque[Future[_Result]] = deque()
    remaining = iter(items)
    with ThreadPoolExecutor(ahead) as pool:
        waiting.extend(pool.submit(function, item) for item in itertools.islice(remaining, ahead))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in itertools.islice(remaining, 1))
