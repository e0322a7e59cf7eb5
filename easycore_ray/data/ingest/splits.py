"""Where each row of a dataset goes: its split, its id, its shard.

Takes labels in source order, gives arrays of the same length. Everything follows from the order of the source and the
seed, never from how the work was divided, so that one source has one set of ids.
"""

import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from easycore_ray.core.seeding import numpy_rng
from easycore_ray.core.selection import class_quotas
from easycore_ray.data.ingest.readers import Split
from easycore_ray.storage.errors import EasyCoreError

SPLITS: tuple[Split, ...] = ("train", "val", "test")
TRAIN, VAL, TEST = range(3)
LEFT_OUT = -1


class Placement(NamedTuple):
    """Place of every row.

    Attributes:
        split: int8 (N,), index into ``SPLITS``; ``LEFT_OUT`` for rows that are not imported, which have no place.
        sample_id: int64 (N,), dense from 0 over each split, in source order.
        shard: int32 (N,), number of the shard within the split.
        row: int32 (N,), position in the shard.
        names: of all shards, as (split, number within it).
        order: integers (rows that have a place,), all rows of the first shard, then of the second and so on.
        starts: int64 (shards + 1,), where the rows of each shard begin in ``order``.
    """

    split: NDArray[np.int8]
    sample_id: NDArray[np.int64]
    shard: NDArray[np.int32]
    row: NDArray[np.int32]
    names: list[tuple[Split, int]]
    order: NDArray[np.integer]
    starts: NDArray[np.int64]

    def rows_of_shards(self) -> Iterator[NDArray[np.integer]]:
        """The rows of each shard, integers (n,), in the order in which they lie there."""
        return (self.order[start:stop] for start, stop in itertools.pairwise(self.starts.tolist()))


def assign_splits(
    labels: NDArray[np.integer],
    own: NDArray[np.integer],
    own_splits: Collection[str],
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
) -> NDArray[np.int8]:
    """The split of every row: the source's own, and what is held out of its training rows.

    The test split is held out first, validation from what is left; both seeded and class-balanced. The last image of a
    class stays for training.

    Args:
        labels: int (N,), in source order.
        own: int (N,), split that the source puts the row in.
        own_splits: names of the splits that the source has; they are not held out again.
        val_fraction: share of the training rows, in [0, 1).
        test_fraction: share of the training rows, in [0, 1).
        seed: of the draws.

    Raises:
        EasyCoreError: a split that should be there has no rows.
    """
    splits = own.astype(np.int8)
    for split, fraction in ((TEST, test_fraction), (VAL, val_fraction)):
        name = SPLITS[split]
        if name in own_splits:
            _check_own(splits, split)
        elif fraction > 0:
            _hold_out(splits, labels, split, fraction, seed)
    _check_own(splits, TRAIN)
    return splits


def _check_own(splits: NDArray[np.int8], split: int) -> None:
    if not (splits == split).any():
        raise EasyCoreError(f"the {SPLITS[split]} split has no usable image; check --source, or the skipped samples")


def _hold_out(splits: NDArray[np.int8], labels: NDArray[np.integer], split: int, fraction: float, seed: int) -> None:
    """Move a share of every class from train to another split, in place."""
    train = np.flatnonzero(splits == TRAIN)
    count = math.floor(fraction * len(train) + 0.5)
    if count == 0:
        name = SPLITS[split]
        raise EasyCoreError(
            f"the {name} split is empty: {name}_fraction {fraction:g} of {len(train):,} images is none; "
            f"raise --{name}-fraction, or pass 0 to do without"
        )
    quotas = _spare_last_images(class_quotas(labels[train], count), labels[train])
    if not any(quotas.values()):
        name = SPLITS[split]
        raise EasyCoreError(
            f"the {name} split is empty: no class has more than one image, and the last one stays for training; add "
            f"images, or pass --{name}-fraction 0 to do without"
        )
    rng = numpy_rng("split", SPLITS[split], seed)
    by_label = np.argsort(labels[train], kind="stable")
    classes, starts = np.unique(labels[train][by_label], return_index=True)
    members = dict(zip(classes.tolist(), np.split(train[by_label], starts[1:]), strict=True))
    for label, quota in quotas.items():
        splits[rng.choice(members[label], quota, replace=False)] = split


def _spare_last_images(quotas: dict[int, int], labels: NDArray[np.integer]) -> dict[int, int]:
    """Quotas that leave an image of every class; what they may not take is taken of the classes with most to spare."""
    classes, sizes = np.unique(labels, return_counts=True)
    wanted = np.array([quotas[label] for label in classes.tolist()])
    taken = np.minimum(wanted, sizes - 1)
    for _ in range(int(min((wanted - taken).sum(), (sizes - 1 - taken).sum()))):
        taken[np.argmax(sizes - taken)] += 1
    return dict(zip(classes.tolist(), taken.tolist(), strict=True))


def class_names(
    labels: NDArray[np.integer], splits: NDArray[np.integer], known: Sequence[str] | None, *, where: str = "the source"
) -> list[str]:
    """Names of the classes in label order: the known ones, or the labels themselves.

    Args:
        labels: (N,), at least 0.
        splits: (N,), index into ``SPLITS``.
        known: names by label; None if the source has none.
        where: the file or folder that the names or labels come from, for messages.

    Raises:
        EasyCoreError: a class has no training image, or labels count from 1.
    """
    count = len(known) if known else int(labels.max()) + 1
    there = np.unique(labels[splits == TRAIN])
    if known is None and len(there) == count - 1 and there[0] == 1:  # each of 1 .. count - 1
        raise EasyCoreError(
            f"labels of {where} are 1 .. {count - 1}, and none is 0: they seem to count from 1; they have to count "
            "from 0, so write them as label - 1"
        )
    if len(there) < count:
        # Set difference would list every number up to a stray label of a billion.
        gaps = np.flatnonzero(there != np.arange(len(there)))
        first = int(gaps[0]) if len(gaps) else len(there)
        named = f"{first} ({known[first]})" if known else f"{first}"
        raise EasyCoreError(
            f"{count - len(there):,} of {count:,} classes of {where} have no training image, the first is class "
            f"{named}; add images, or remove the class from the source or its list of classes"
        )
    return list(known) if known else [str(label) for label in range(count)]


def place(splits: NDArray[np.int8], hashes: NDArray[np.uint64], rows_per_shard: int) -> Placement:
    """Ids in source order, and places in shards of nearly equal size in the order of hashes, split by split.

    Args:
        splits: int8 (N,), in source order; rows of ``LEFT_OUT`` get no place.
        hashes: uint64 (N,), unique, see ``staging.placement_hash``.
        rows_per_shard: most rows in one shard.
    """
    count = len(splits)
    sample_id, shard, row = np.zeros(count, np.int64), np.zeros(count, np.int32), np.zeros(count, np.int32)
    names: list[tuple[Split, int]] = []
    parts: list[NDArray[np.integer]] = [np.empty(0, np.int64)]
    for split, name in enumerate(SPLITS):
        members = np.flatnonzero(splits == split)
        sample_id[members] = np.arange(len(members))
        # Sources come class by class; in this order every shard, and every part of one, is a fair mixture.
        order = members[np.argsort(hashes[members])]
        for number, rows in enumerate(equal_parts(order, rows_per_shard)):
            shard[rows], row[rows] = number, np.arange(len(rows))
            names.append((name, number))
            parts.append(rows)
    starts = np.cumsum([len(rows) for rows in parts])
    return Placement(splits, sample_id, shard, row, names, np.concatenate(parts), starts)


def equal_parts(rows: NDArray[np.integer], most: int) -> list[NDArray[np.integer]]:
    """The fewest consecutive parts of rows (N,), at most ``most`` in each; sizes differ by one. None for no rows."""
    return np.array_split(rows, math.ceil(len(rows) / most)) if len(rows) else []
