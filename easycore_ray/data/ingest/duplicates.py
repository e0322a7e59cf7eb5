"""The same picture more than once: how many there are, and which copy stays where each is to be there once.

Takes a hash of every image's content, gives groups of equal images. The hashes are made while images are checked, so
that nothing is read again.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from easycore_ray.data.ingest.splits import TEST, TRAIN, VAL
from easycore_ray.storage.errors import EasyCoreError


class Copies(NamedTuple):
    """Which samples are the same picture.

    Attributes:
        group: int (N,), number of the picture; equal for copies, in order of their first.
        counts: int (pictures,), samples of each picture.
    """

    group: NDArray[np.integer]
    counts: NDArray[np.integer]


def find_copies(content: pa.ChunkedArray) -> Copies:
    """Group samples by the hash of their images: ``readers.CHECKED_SCHEMA``'s ``content``, binary(16), (N,)."""
    group = content.combine_chunks().dictionary_encode().indices.to_numpy()
    return Copies(group, np.bincount(group))


def count_copies(copies: Copies, splits: NDArray[np.integer], labels: NDArray[np.integer]) -> dict[str, int]:
    """What the manifest says of copies.

    Args:
        copies: of N samples.
        splits: (N,), index into ``splits.SPLITS``.
        labels: (N,).

    Returns:
        ``images`` that are there more than once, their ``samples``, how many of the images are
        ``in_train_and_test``, and how many are there ``with_different_labels``.
    """
    several = copies.counts > 1
    there = [np.bincount(copies.group[splits == split], minlength=len(several)) > 0 for split in (TRAIN, TEST)]
    of_several = several[copies.group]
    pairs = np.unique(np.stack([copies.group[of_several], labels[of_several]]), axis=1)[0]
    return {
        "images": int(several.sum()),
        "samples": int(copies.counts[several].sum()),
        "in_train_and_test": int((there[0] & there[1]).sum()),
        "with_different_labels": int((np.bincount(pairs, minlength=len(several)) > 1).sum()),
    }


def describe_copies(counted: dict[str, int]) -> str:
    """The counts as the first part of a sentence."""
    labels, images = counted["with_different_labels"], counted["images"]
    are = "image is" if images == 1 else "images are"
    return (
        f"{images:,} {are} there more than once, {counted['in_train_and_test']:,} of them in train and "
        f"test{f', {labels:,} with different labels' if labels else ''}"
    )


def choose_copies(copies: Copies, own: NDArray[np.integer]) -> NDArray[np.intp]:
    """Which sample stands for each: its own position, or that of the copy that is kept instead of it.

    Kept is a copy of the source's test split if there is one, else of its validation split; of several the first.

    Args:
        copies: of N samples.
        own: (N,), split of the source that each sample is in.

    Returns:
        Integers (N,).
    """
    rank = np.empty(3, np.int64)
    rank[[TEST, VAL, TRAIN]] = range(3)
    order = np.lexsort((np.arange(len(own)), rank[own], copies.group))
    _, first = np.unique(copies.group[order], return_index=True)
    return order[first][copies.group]


def refuse_copies(
    copies: Copies, counted: dict[str, int], read_keys_of: Callable[[NDArray[np.integer]], list[str]]
) -> None:
    """Stop if any picture is there more than once.

    Args:
        copies: of N samples.
        counted: see ``count_copies``.
        read_keys_of: gives the keys of samples by their positions, integers (n,).

    Raises:
        EasyCoreError: how many there are, with the first two copies of the first.
    """
    if counted["images"]:
        first = np.flatnonzero(copies.group == np.flatnonzero(copies.counts > 1)[0])[:2]
        named = " and ".join(read_keys_of(first))
        raise EasyCoreError(
            f"{describe_copies(counted)}: {named} are the first; remove copies from the source, or pass "
            "--on-duplicate drop or keep"
        )
