"""Names of classes: read from files, compared, and put in place of the numbers that a file has for them.

A file may have a list of names of its own. Where it differs from the dataset's, its numbers stand for its own names.
"""

import json
from collections.abc import Sequence

from easycore_ray.data.ingest.listing import name_some
from easycore_ray.data.ingest.readers import Named, Piece
from easycore_ray.storage import paths
from easycore_ray.storage.errors import EasyCoreError


def read_classes(path: str) -> list[str]:
    """Class names in label order, from a JSON list, ``{"classes": [...]}``, or text with one name a line.

    Raises:
        EasyCoreError: the file is none of these, or names a class twice.
    """
    text = paths.read_bytes(path).decode(errors="replace")
    try:
        content = json.loads(text)
    except ValueError:
        content = [line.strip() for line in text.splitlines() if line.strip()]
    names = content.get("classes") if isinstance(content, dict) else content
    if not isinstance(names, list) or not names:
        raise EasyCoreError(
            f'{path} names no classes; allowed are a JSON list, {{"classes": [...]}} or one name a line'
        )
    names = [str(name) for name in names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise EasyCoreError(f"{path} names {twice[0]} twice; every class needs a name of its own")
    return names


def classes_file_beside(root: str) -> str | None:
    """Path of a ``classes.json`` in the folder or its parent."""
    parent = root.rsplit("/", 1)[0]
    for folder in [root] if parent.endswith("/") else [root, parent]:  # a bucket has no parent
        path = f"{folder}/classes.json"
        if paths.exists(path):
            return path
    return None


def name_labels(
    pieces: Sequence[Piece], own: Sequence[str] | None, classes: Sequence[str] | None, *, place: str, classes_place: str
) -> list[Piece]:
    """The pieces with labels that mean the dataset's classes: by name where their own list is another.

    Args:
        pieces: of one file or source.
        own: its class names in label order; None if it has none.
        classes: those of the dataset.
        place: where ``own`` comes from.
        classes_place: where ``classes`` come from.

    Raises:
        EasyCoreError: a name of ``own`` is no class of the dataset; both places are named.
    """
    if own is None or classes is None or list(own) == list(classes):
        return list(pieces)
    unknown = sorted(set(own) - set(classes))
    if unknown:
        raise EasyCoreError(
            f"{place} names classes that {classes_place} does not name: {name_some(unknown)}; write both with the "
            "same list of classes, or import them one by one"
        )
    return [Named(piece, tuple(own)) for piece in pieces]


def rename_classes(
    pieces: Sequence[Piece], own: Sequence[str] | None, classes: Sequence[str], *, place: str, classes_place: str
) -> list[Piece]:
    """The same for a list that the user passes: the same names in another order, or new names one for one.

    Raises:
        EasyCoreError: the lists are of different length, or share a name that stands at different places.
    """
    if own is None or set(own) == set(classes):
        return name_labels(pieces, own, classes, place=place, classes_place=classes_place)
    if len(own) != len(classes):
        raise EasyCoreError(
            f"{classes_place} names {len(classes):,} classes, {place} {len(own):,}; pass a list of the same classes, "
            "or none to keep those of the source"
        )
    moved = [name for number, name in enumerate(own) if name in classes and classes[number] != name]
    if moved:
        raise EasyCoreError(
            f"{classes_place} and {place} both name {name_some(moved)}, at different places, and other names differ; "
            "pass a list that has the same names, or new ones for all"
        )
    return list(pieces)
