"""Reads of an object store made ahead of their use, many at the same time: each waits for the store by itself."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Content = TypeVar("Content")

# Connections that pyarrow keeps to a store by default; more threads would wait for one.
READERS = 25
_AHEAD_BYTES = 64 << 20


def read_ahead(reads: Iterable[tuple[int, Callable[[], Content]]], most: int = 2 * READERS) -> Iterator[Content]:
    """Results of the reads, in their order; those to come are made by threads while one is used.

    Args:
        reads: bytes that each will hold, and a function that gives them. At most 64 MiB are held ahead, but one read
            at least.
        most: reads that are held ahead; by default two for each of 25 threads.

    Raises:
        Exception: what a read raised, when its turn comes.
    """
    waiting = iter(reads)
    running: deque[tuple[int, Future[Content]]] = deque()
    held = 0
    with ThreadPoolExecutor(min(READERS, most)) as threads:
        try:
            while True:
                while not running or (len(running) < most and held < _AHEAD_BYTES):
                    size, read = next(waiting, (0, None))
                    if read is None:
                        break
                    running.append((size, threads.submit(read)))
                    held += size
                if not running:
                    return
                size, done = running.popleft()
                held -= size
                yield done.result()
        finally:
            for _, future in running:
                future.cancel()
