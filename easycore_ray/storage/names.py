"""Names of files that manifests and training states list: inside their folder, whatever wrote them."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from easycore_ray.storage.errors import EasyCoreError

_GENERATION = re.compile(r"gen-[0-9a-f]{8}")


def check_inside(name: Any, where: str) -> None:
    """Refuse a name that is not that of a file below the folder it is joined to.

    Args:
        name: what is listed.
        where: the file that lists it, for the message.

    Raises:
        EasyCoreError: it is empty, absolute, a URI, leads out of the folder, or is no text.
    """
    parts = name.split("/") if isinstance(name, str) else [""]
    if {"", ".", ".."} & set(parts) or "\\" in name or "\0" in name:
        raise EasyCoreError(
            f"{where} names the file {name!r}, which does not lie in its folder; it is damaged or not ours"
        )


def check_listed_names(found: Any, where: str) -> None:
    """Refuse a manifest, or a claim, that names a file or generation outside its folder.

    Args:
        found: content of ``manifest.json`` or ``run.json``; anything that is neither passes.
        where: its path, for the message.

    Raises:
        EasyCoreError: names it.
    """
    if not isinstance(found, Mapping):
        return
    generation = found.get("generation")
    if generation is not None and not (isinstance(generation, str) and _GENERATION.fullmatch(generation)):
        raise EasyCoreError(f"{where} names the generation {generation!r}, which is none; it is damaged or not ours")
    for name in _listed(found):
        check_inside(name, where)


def _listed(manifest: Mapping[str, Any]) -> Iterator[Any]:
    """What a manifest lists as its files, in the keys of all kinds."""
    shards, weights = manifest.get("shards"), manifest.get("weights")
    yield from weights.values() if isinstance(weights, Mapping) else ()
    lists = [manifest.get("files"), manifest.get("parts"), *(shards.values() if isinstance(shards, Mapping) else ())]
    for entries in lists:
        for entry in entries if isinstance(entries, list) else ():
            yield entry.get("path") if isinstance(entry, Mapping) else entry
