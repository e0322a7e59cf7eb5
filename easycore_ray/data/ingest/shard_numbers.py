"""Numbers in file names: ``train-00003-of-00010.parquet`` says that there should be ten.

Takes file names, refuses sets that are not whole.
"""

import re
from collections.abc import Iterable

from easycore_ray.data.ingest.listing import name_some
from easycore_ray.storage.errors import EasyCoreError

_NUMBERED = re.compile(r"(?P<stem>.*?)(?P<number>\d+)-of-(?P<total>\d+)(?=[^/\d]|$)[^/]*")


def check_shard_numbers(root: str, names: Iterable[str]) -> None:
    """Refuse a set of ``…-NNNNN-of-NNNNN…`` files with a gap, a number twice, or another total beside it.

    Args:
        root: folder of the names, for messages.
        names: of all files; those without such numbers are passed over.

    Raises:
        EasyCoreError: names the files that are missing, or those that exclude each other.
    """
    sets: dict[str, dict[str, dict[str, list[str]]]] = {}
    for name in names:
        found = _NUMBERED.fullmatch(name)
        if found:
            of_stem = sets.setdefault(found["stem"], {}).setdefault(found["total"], {})
            of_stem.setdefault(found["number"], []).append(name)
    for stem, by_total in sets.items():
        if len({int(total) for total in by_total}) > 1:
            raise EasyCoreError(
                f"{root} holds {stem}* of {' and of '.join(sorted(by_total))} files; one set is older: remove it, or "
                "pass a folder that holds one of them"
            )
        for total, by_number in by_total.items():
            _check_set(root, stem, total, by_number)


def _check_set(root: str, stem: str, total: str, by_number: dict[str, list[str]]) -> None:
    twice = next((names for names in by_number.values() if len(names) > 1), None)
    if twice:
        raise EasyCoreError(
            f"{root} holds number {_NUMBERED.fullmatch(twice[0])['number']} of {stem}* more than once: "  # type: ignore[index]
            f"{' and '.join(twice[:2])}; remove those of the older set"
        )
    there = {int(number) for number in by_number}
    # Nearly all count from 0; a whole set that counts from 1 is whole as well.
    first = 1 if 0 not in there and int(total) in there else 0
    missing = sorted(set(range(first, int(total) + first)) - there)
    if missing:
        width = len(next(iter(by_number)))
        named = name_some([f"{stem}{number:0{width}d}-of-{total}" for number in missing])
        raise EasyCoreError(
            f"{root} lacks {len(missing):,} of {int(total):,} files: {named}; fetch them again, or pass the files that "
            "are meant in a folder of their own, renamed"
        )
