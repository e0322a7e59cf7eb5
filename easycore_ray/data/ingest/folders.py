"""What the folders of images mean: which are splits, which are classes.

Takes names of image files, gives the split and class of each. Understood are ``CLASS/…/image``,
``…/SPLIT/CLASS/…/image`` and ``…/CLASS/SPLIT/image``, where ``…`` in front stands for folders that hold everything.
What can be read in more than one way is refused, with the readings.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from easycore_ray.data.ingest.listing import name_some
from easycore_ray.data.ingest.readers import Split
from easycore_ray.storage.errors import EasyCoreError

SPLIT_WORDS: dict[str, Split] = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "val": "val", "valid": "val", "validation": "val",
}  # fmt: skip


class Reading(NamedTuple):
    """What folders were found to mean.

    Attributes:
        by_split: (class, file name) of every image, by split.
        parents: folders that hold the classes of the training split, relative to the root; "" is the root.
    """

    by_split: dict[Split, list[tuple[str, str]]]
    parents: list[str]


def split_of_word(word: str) -> Split | None:
    """The split a folder is named after, if any."""
    return SPLIT_WORDS.get(word.lower())


def read_image_folders(root: str, names: Sequence[str], *, allow_one_class: bool) -> Reading:
    """Splits and classes of images.

    Args:
        root: folder the names are relative to, for messages.
        names: of all images.
        allow_one_class: whether all images may be of one class.

    Raises:
        EasyCoreError: an image lies in no class, there is one class only, or there are several readings.
    """
    # Files of one folder share its words: a list of a million images is not held twice.
    split = functools.cache(lambda folder: tuple(folder.split("/")) if folder else ())
    folders = [split(name.rpartition("/")[0]) for name in names]
    depth = _common_depth(folders)
    tops = {parts[depth] if len(parts) > depth else "" for parts in folders}
    splits = {top for top in tops if split_of_word(top)}
    if splits == tops:
        at, label = depth, depth + 1
        if depth and all(len(parts) == depth + 1 for parts in folders):
            label = depth - 1  # the splits of a single class
    elif splits:
        _check_mixed_level(root, folders, depth, tops)
        at, label = None, 0
    elif _split_depths(folders, depth + 1) == {depth + 1} and all(len(parts) == depth + 2 for parts in folders):
        at, label = depth + 1, depth
    else:
        at, label = None, 0
    _check_class_folders(root, names, folders, label)
    if at is not None:
        _check_split_words(root, sorted({parts[at] for parts in folders}))
    _check_stray_splits(root, folders, max(label, -1 if at is None else at + 1), has_splits=at is not None)
    reading = _read(names, folders, at, label)
    if not allow_one_class:
        _check_one_class(root, folders, label)
    return reading


def use_val_as_test(found: dict[Split, list]) -> dict[Split, list]:
    """``val`` stands in for a missing ``test``, as in ImageNet."""
    if "val" in found and "test" not in found:
        found["test"] = found.pop("val")
    return found


def _common_depth(folders: Sequence[tuple[str, ...]]) -> int:
    """How many folders in front hold all images and are named after no split."""
    depth = 0
    while True:
        heads = {parts[depth : depth + 1] for parts in folders}
        if len(heads) != 1 or not (head := heads.pop()) or split_of_word(head[0]):
            return depth
        depth += 1


def _split_depths(folders: Sequence[tuple[str, ...]], first: int) -> set[int]:
    """Depths, from ``first`` on, at which folders are named after splits; −1 among them if some image has none."""
    found = set()
    for parts in set(folders):
        depths = [depth for depth in range(first, len(parts)) if split_of_word(parts[depth])]
        found |= set(depths) or {-1}
    return found


def _read(names: Sequence[str], folders: Sequence[tuple[str, ...]], at: int | None, label: int) -> Reading:
    by_split: dict[Split, list[tuple[str, str]]] = {}
    parents = set()
    for name, parts in zip(names, folders, strict=True):
        split: Split = "train" if at is None else SPLIT_WORDS[parts[at].lower()]
        by_split.setdefault(split, []).append((parts[label], name))
        if split == "train":
            parents.add("/".join(parts[:label]))
    # Sorted by class first: the order of torchvision's ImageFolder.
    return Reading(use_val_as_test({split: sorted(files) for split, files in by_split.items()}), sorted(parents))


def _check_class_folders(root: str, names: Sequence[str], folders: Sequence[tuple[str, ...]], label: int) -> None:
    loose = next((name for name, parts in zip(names, folders, strict=True) if len(parts) <= label), None)
    if loose is not None:
        raise EasyCoreError(f"{root}/{loose} lies in no class folder; the layout is CLASS/image, or train/CLASS/image")


def _check_split_words(root: str, words: Sequence[str]) -> None:
    """Refuse two names of one split."""
    first: dict[Split, str] = {}
    for word in words:
        split = SPLIT_WORDS[word.lower()]
        other = first.setdefault(split, word)
        if other.lower() != word.lower():
            raise EasyCoreError(
                f"{root} has the folders {other} and {word}, which both name the {split} split; move one away, or "
                "rename both to one name"
            )


def _check_mixed_level(root: str, folders: Sequence[tuple[str, ...]], depth: int, tops: set[str]) -> None:
    """Refuse folders of splits beside others, unless the only such folder holds images as a class does."""
    splits = sorted(top for top in tops if split_of_word(top))
    nested = any(len(parts) > depth + 1 and parts[depth] in splits for parts in folders)
    if len(splits) == 1 and not nested:
        return
    others = sorted(tops - set(splits) - {""})
    where = "/".join((root, *folders[0][:depth]))
    first: dict[Split, str] = {}
    for top in splits:
        first.setdefault(SPLIT_WORDS[top.lower()], top)
    readings = []
    if "train" in first:
        test = first.get("test") or first.get("val")
        own = f" --test-source {where}/{test}" if test else ""
        readings.append(f"--source {where}/{first['train']}{own} if {name_some(splits)} are splits")
    own_splits = {
        parts[depth] for parts in folders
        if len(parts) > depth + 1 and parts[depth] in others and split_of_word(parts[depth + 1])
    }  # fmt: skip
    readings += [f"--source {where}/{other} for the splits in it" for other in sorted(own_splits)]
    beside = f"{name_some(others)} lie beside them" if others else "images lie beside them"
    _refuse(f"{where} holds folders named after splits ({', '.join(splits)}), and {beside}", readings)


def _check_stray_splits(root: str, folders: Sequence[tuple[str, ...]], first: int, *, has_splits: bool) -> None:
    """Refuse folders named after splits inside of classes; a class of that name holds images directly."""
    for parts in sorted(set(folders)):
        for depth in range(first, len(parts)):
            if split_of_word(parts[depth]) and (depth > first or len(parts) > depth + 1):
                stray = "/".join(parts[: depth + 1])
                readings = [f"--source {root}/{'/'.join(parts[:depth])} for the splits in it"] if depth else []
                level = "inside of a split" if has_splits else "while other images are in no split"
                _refuse(f"{root}/{stray} is named after a split, {level}", readings)


def _refuse(problem: str, readings: Sequence[str]) -> NoReturn:
    passed = ", or ".join(readings)
    raise EasyCoreError(
        f"{problem}; pass {passed}, or move or rename what is neither split nor class" if readings
        else f"{problem}; move or rename what is neither split nor class"
    )  # fmt: skip


def _check_one_class(root: str, folders: Sequence[tuple[str, ...]], label: int) -> None:
    """Refuse a single class, and name the folders that may be the classes."""
    if len({parts[label] for parts in folders}) > 1:
        return
    top = folders[0][: label + 1]
    # One folder in another: the first level that has several.
    while len(inner := sorted({parts[len(top)] if len(parts) > len(top) else "" for parts in folders})) == 1:
        if not inner[0] or any(parts[: len(top)] != top for parts in folders):
            break
        top = (*top, inner[0])
    below = [name for name in inner if name]
    same = all(parts[: len(top)] == top for parts in folders)
    hint = ""
    if len(below) > 1 and same:
        hint = f"pass --source {root}/{'/'.join(top)} if its folders ({name_some(below)}) are the classes, or "
    elif len(below) > 1:
        hint = f"it holds {name_some(below)}: if these are the classes, move them up; or "
    raise EasyCoreError(
        f"{root} holds one class, {folders[0][label]}, of {len(folders):,} images; {hint}"
        "pass --allow-one-class if that is meant"
    )
